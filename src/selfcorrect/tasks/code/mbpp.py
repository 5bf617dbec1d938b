"""MBPP (arXiv 2108.07732), MBPP+ (arXiv 2305.01210) and MBPP-R, the repair of given incorrect programs."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfcorrect.errors import ConfigError, DataError
from selfcorrect.tasks.code.data import DataRow, read_rows, require_fields
from selfcorrect.tasks.code.extraction import functions, parse
from selfcorrect.tasks.code.task import CodeSettings, CodeTask
from selfcorrect.tasks.rows import refuse
from selfcorrect.types import Problem, Split

ASK = (
    "You are an expert Python programmer, and here is your task: {text} "
    "Your code should pass these tests:\n\n{tests}\n[BEGIN]\n"
)
"""The paper's prompt (docs/method.md, section 9); an example continues with its program and ``[DONE]``."""

SHOT_IDS = (2, 3, 4)
"""The MBPP numbers of the examples in the three-shot prompt, which are never problems of a split."""

SPLIT_IDS = {Split.TEST: range(11, 511), Split.DEV: range(511, 601), Split.TRAIN: range(601, 975)}
"""MBPP's official splits by number; 1 to 10 are reserved for prompts."""


@dataclass(frozen=True, slots=True)
class Shot:
    """A worked example in the prompt."""

    text: str
    tests: str
    code: str


OWN_SHOTS = (
    Shot(
        "Write a function to count how often an element occurs in a list.",
        "assert count_of([1, 2, 1], 1) == 2\nassert count_of([], 5) == 0\nassert count_of(['a'], 'a') == 1",
        "def count_of(items, element):\n    return sum(1 for item in items if item == element)",
    ),
    Shot(
        "Write a function to find the smallest multiple of n that is at least m.",
        "assert next_multiple(5, 12) == 15\nassert next_multiple(4, 8) == 8\nassert next_multiple(7, 0) == 0",
        "def next_multiple(n, m):\n    return -(-m // n) * n",
    ),
    Shot(
        "Write a function to reverse the words of a sentence.",
        "assert reverse_words('a b c') == 'c b a'\nassert reverse_words('one') == 'one'\nassert reverse_words('') == ''",
        "def reverse_words(sentence):\n    return ' '.join(reversed(sentence.split()))",
    ),
)
"""The examples used where a file lacks the three published ones."""


class _FromRows(CodeTask):
    """The base of MBPP and MBPP-R: problems from rows in MBPP's schema. ``wrong_field`` holds given incorrect programs."""

    def __init__(
        self,
        name: str,
        source: str | Path,
        *,
        splits: str | None,
        shots: int,
        wrong_field: str | None = None,
        **options: Any,
    ) -> None:
        if not source:
            raise ConfigError(f"task {name!r} has no data: set its option source to a file or a hub id.")
        if splits not in (None, "official", "test"):
            raise ConfigError(f"splits = {splits!r}: choose 'official' or 'test'.")
        if not 0 <= shots <= len(OWN_SHOTS):
            raise ConfigError(f"shots = {shots}: the prompt has 0 to {len(OWN_SHOTS)} worked examples.")
        found = read_rows(source, name)
        rows = _checked([row for _, row in found.rows], name)
        if wrong_field is not None:
            require_fields(rows, (wrong_field,), name)
        head = "".join(_shown(shot) for shot in _shots(rows)[:shots])
        problems = [_problem(row, head, row[wrong_field] if wrong_field else None) for row in rows]
        super().__init__(name, "{prompt}", _shared_out(problems, rows, splits), CodeSettings(**options))
        self.data_commits = found.commits


class MbppTask(_FromRows):
    """MBPP from a file or a hub id: three-shot first attempt, the tests in the prompt. MBPP+ as published on the hub, too.

    Args:
        source: a file or a hub id (``google-research-datasets/mbpp``, ``evalplus/mbppplus``).
        splits: ``official`` splits the rows by MBPP's numbers, ``test`` makes all of them test problems; unset means
            ``test`` for MBPP+ and ``official`` for MBPP.
        shots: the number of worked examples before the problem, 0 to 3.
        options: see `CodeSettings`.

    Raises:
        ConfigError: an option is invalid, or the isolation or the data are not available.
        DataError: the rows are malformed.
    """

    def __init__(self, source: str | Path = "", *, splits: str | None = None, shots: int = 3, **options: Any) -> None:
        super().__init__("mbpp", source, splits=splits, shots=shots, **options)


class MbppRepairTask(_FromRows):
    """MBPP-R: every problem has an incorrect program as its first attempt; only the second attempt is sampled.

    ``Acc@t1`` is the accuracy of the given programs. The options are those of ``mbpp``; by default all rows are test
    problems and there are no worked examples. ``wrong_field`` names the field with the program. For evaluation only.
    """

    def __init__(
        self,
        source: str | Path = "",
        *,
        wrong_field: str = "wrong_code",
        splits: str = "test",
        shots: int = 0,
        **options: Any,
    ) -> None:
        super().__init__("mbpp_r", source, splits=splits, shots=shots, wrong_field=wrong_field, **options)

    def first_attempt(self, problem: Problem) -> str:
        """Return the given incorrect program, as the model would have written it."""
        return f"{problem.data['wrong'][0]}\n[DONE]"


# --- from rows to problems --------------------------------------------------------------------------


def _checked(rows: Sequence[DataRow], name: str) -> Sequence[DataRow]:
    if any("plus_input" in row for row in rows):
        raise DataError(
            f"task {name!r}: these rows come from an MBPP+ release, whose inputs lost their Python types in JSON. Use MBPP+ "
            "as published on the hub (evalplus/mbppplus), or its rows in a file: their field 'test' is complete."
        )
    require_fields(rows, ("code",), name)
    errors = []
    for index, row in enumerate(rows, 1):
        if not isinstance(row.get("text", row.get("prompt")), str):
            errors.append(f"row {index}: neither 'text' nor 'prompt' is text")
        if not isinstance(row.get("test_list"), list) or not row["test_list"]:
            errors.append(f"row {index}: field 'test_list' is not a list of tests")
        if not defined(row["code"]):
            errors.append(f"row {index}: field 'code' is not Python that defines a function")
    refuse(name, errors)
    return rows


def defined(code: str) -> set[str]:
    """Return the names that a program defines at its top level; none if it is not Python."""
    tree = parse(code)
    return functions(tree) if tree else set()


def _problem(row: DataRow, head: str, wrong: str | None) -> Problem:
    code = row["code"].replace("\r\n", "\n").strip()
    lines = [*(row.get("test_imports") or ()), row.get("test_setup_code") or ""]
    shown = "\n".join(row["test_list"])
    tests = row.get("test") or "\n".join([shown, *(row.get("challenge_test_list") or ())])
    entry = called(code, tests)
    data = {
        "entry_point": entry,
        "tests": "\n".join([*lines, tests]),
        "names": sorted(defined(code) & used(tests)),
        "preamble": "",
        **({"wrong": [wrong]} if wrong is not None else {}),
    }
    prompt = head + _asked(row.get("text", row.get("prompt")), shown)
    return Problem(f"mbpp/{row['task_id']}", prompt, code, data=data)


def called(code: str, tests: str) -> str:
    """Return the function that the tests call: among the names they use, the last one defined."""
    tree = ast.parse(code)
    named = [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in used(tests)]
    return named[-1] if named else sorted(functions(tree))[-1]


def used(tests: str) -> set[str]:
    """Return the names that a program uses; none if it is not Python."""
    tree = parse(tests)
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} if tree else set()


def _asked(text: str, tests: str) -> str:
    return ASK.replace("{text}", text.strip()).replace("{tests}", tests)


def _shots(rows: Sequence[DataRow]) -> tuple[Shot, ...]:
    by_id = {row.get("task_id"): row for row in rows}
    if not all(number in by_id and "text" in by_id[number] for number in SHOT_IDS):
        return OWN_SHOTS
    found = [by_id[number] for number in SHOT_IDS]
    return tuple(Shot(row["text"], "\n".join(row["test_list"]), row["code"].replace("\r\n", "\n")) for row in found)


def _shown(shot: Shot) -> str:
    return f"{_asked(shot.text, shot.tests)}{shot.code.strip()}\n[DONE]\n\n"


def _shared_out(
    problems: Sequence[Problem], rows: Sequence[DataRow], splits: str | None
) -> Mapping[Split, Sequence[Problem]]:
    splits = splits or ("test" if "test" in rows[0] else "official")
    if splits == "test":
        return {Split.TEST: problems}
    numbers = [int(row["task_id"]) for row in rows]
    return {
        split: [problem for problem, number in zip(problems, numbers, strict=True) if number in ids]
        for split, ids in SPLIT_IDS.items()
    }
