"""Mathematics: loading problems, and verifiers that never hang."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("math_verify")
pytest.importorskip("reasoning_gym")


from selfcorrect.errors import ConfigError, DataError
from selfcorrect.tasks.math.task import FAULTY, Gsm8kTask, GsmSymbolicTask, MathsVerifier, MathTask, final_answer
from selfcorrect.tasks.verifier import Verifier
from selfcorrect.types import Outcome, Problem, Split


def problem(reference: str) -> Problem:
    return Problem("p", "?", reference)


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    with Verifier(GsmSymbolicTask(), time_limit_s=60, workers=1) as found:
        yield found


# --- verdicts ---------------------------------------------------------------------------------------


def test_both_readings_are_kept_and_the_chosen_one_counts() -> None:
    informal = "So the answer is \\boxed{5}."
    flexible, strict = (MathsVerifier(name)(informal, "5") for name in ("flexible", "strict"))
    by_rule = {"strict": Outcome.NO_ANSWER, "flexible": Outcome.CORRECT}
    assert (flexible.outcome, flexible.extracted, flexible.by_rule) == (Outcome.CORRECT, "5", by_rule)
    assert (strict.outcome, strict.extracted, strict.by_rule) == (Outcome.NO_ANSWER, None, by_rule)
    assert strict.detail == "no answer by the strict rule"


def test_a_pathological_answer_costs_nothing_but_its_own_verdict() -> None:
    towers = ["10^{10^{10}}", "9^{9^{9^9}}", "99999999!", "\\sum_{k=1}^{10^{20}} \\sin k"] * 100
    answers = ["5", *towers, "__import__('os').abort()", "1" * 5000, "5"]
    with Verifier(GsmSymbolicTask(), time_limit_s=60, workers=1) as found:
        verdicts = found.verify([(problem("5"), final_answer(answer)) for answer in answers])
    right, wrong = Outcome.CORRECT, Outcome.INCORRECT
    assert [verdict.outcome for verdict in verdicts] == [right, *[wrong] * (len(answers) - 2), right]


def test_an_unknown_extraction_is_refused() -> None:
    with pytest.raises(ConfigError, match="extraction = 'loose': choose one of strict, flexible"):
        GsmSymbolicTask(extraction="loose")


# --- MATH and GSM8K ---------------------------------------------------------------------------------


def math_rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    """In the schema of MATH."""
    return [
        {"problem": f"What is ${i} + 1$?", "level": f"Level {i % 5 + 1}", "type": "Algebra", "solution": _solution(i)}
        for i in range(start, start + count)
    ]


def _solution(i: int) -> str:
    return f"We see $\\boxed{{0}}$ is too small. It is $\\boxed{{\\frac{{{2 * i + 2}}}{{2}}}}$."


def math500_rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    """In the schema of MATH-500 and of the 12,000 / 500 files."""
    return [
        {
            "problem": f"What is  ${i} + 1$?",
            "solution": _solution(i),
            "answer": str(i + 1),
            "subject": "Algebra",
            "level": i % 5 + 1,
            "unique_id": f"test/algebra/{i}.json",
        }
        for i in range(start, start + count)
    ]


def gsm8k_rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    """In the schema of GSM8K."""
    return [
        {"question": f"{i} boxes of 1000?", "answer": f"They hold {i}*1000=<<{i}*1000={i}000>>.\n#### {i},000"}
        for i in range(start, start + count)
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_math_is_all_of_it_without_the_test_problems(tmp_path: Path, ending: str) -> None:
    everything = write(tmp_path / f"math.{ending}", math_rows(60))
    test = write(tmp_path / f"math500.{ending}", math500_rows(10, start=20))
    task = MathTask(everything, test)
    train, dev, tests = (task.problems(split, seed=0) for split in Split)
    assert (len(train), len(dev), len(tests)) == (45, 5, 10), "a tenth of what is not a test problem"
    assert {p.prompt for p in [*train, *dev]} == {r["problem"] for r in math_rows(20) + math_rows(30, start=30)}
    assert {p.id for p in tests} == {f"test/algebra/{i}.json" for i in range(20, 30)}
    one = next(p for p in [*train, *dev] if p.prompt == "What is $7 + 1$?")
    assert (one.reference, one.difficulty) == ("\\frac{16}{2}", "level 3")
    assert task.verify(one, final_answer("8")).correct
    assert not task.verify(one, task.corrupt(one)).correct
    assert len(MathTask(everything, test, dev=0).problems(Split.TRAIN, seed=0)) == 50
    assert [p.id for p in MathTask(everything, test, dev=2).problems(Split.DEV, seed=0)] != []


def test_gsm8k_reads_the_number_behind_the_hashes(tmp_path: Path) -> None:
    task = Gsm8kTask(
        write(tmp_path / "train.jsonl", gsm8k_rows(30)), write(tmp_path / "test.parquet", gsm8k_rows(5, start=30))
    )
    (one, *_) = [p for p in task.problems(Split.TEST, seed=0) if p.prompt.startswith("31 ")]
    assert (one.reference, one.difficulty) == ("31000", "1 steps")
    assert task.verify(one, "#### 31,000 boxes").correct
    assert len(task.problems(Split.TRAIN, seed=0)) == 27


@pytest.mark.parametrize("number", ["", " ", "NaN", "\\boxed{}"])
def test_gsm8k_refuses_a_number_that_nothing_equals(tmp_path: Path, number: str) -> None:
    path = write(tmp_path / "some.jsonl", [{"question": "?", "answer": f"so #### {number}"}])
    with pytest.raises(DataError, match=r"some.jsonl:1: .*(does not end in|is empty)"):
        Gsm8kTask(test_path=path)


def test_a_directory_laid_out_as_on_the_hub_is_read_by_configuration_and_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datasets")
    home = tmp_path / "math"
    write(home / "algebra" / "train.parquet", math_rows(8))
    write(home / "algebra" / "test.parquet", math_rows(4, start=8))
    write(home / "geometry" / "train.parquet", math_rows(3, start=12))
    configs = "".join(
        f"- config_name: {name}\n  data_files:\n"
        + "".join(f"  - split: {s}\n    path: {name}/{s}.parquet\n" for s in splits)
        for name, splits in {"algebra": ["train", "test"], "geometry": ["train"]}.items()
    )
    (home / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    task = MathTask(test_path=home)
    assert {p.prompt for p in task.problems(Split.TEST, seed=0)} == {row["problem"] for row in math_rows(15)}
    assert "algebra/test[3]" in {p.id for p in task.problems(Split.TEST, seed=0)}
    only = MathTask(test_path=f"{home}:train")
    assert len(only.problems(Split.TEST, seed=0)) == 11


def test_adjacent_boxes_are_a_list_and_a_retracted_box_is_not_the_reference(tmp_path: Path) -> None:
    solutions = {
        "roots": "So $x = \\boxed{2}$ or $x = \\boxed{3}$.",
        "one": "\\boxed{2} is too small. Hence \\boxed{3}.",
        "nested": "\\boxed{\\boxed{3}}",
    }
    rows = [{"problem": name, "solution": solution} for name, solution in solutions.items()]
    task = MathTask(test_path=write(tmp_path / "some.jsonl", rows))
    found = {p.prompt: p for p in task.problems(Split.TEST, seed=0)}
    assert {name: p.reference for name, p in found.items()} == {"roots": "2, 3", "one": "3", "nested": "\\boxed{3}"}
    assert task.verify(found["roots"], final_answer("x=3 \\text{ or } x=2")).correct
    assert not task.verify(found["roots"], final_answer("3")).correct
    assert task.verify(found["nested"], final_answer("3")).correct


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"problem": "?", "solution": "no box"}, r"no closed \\boxed"),
        ({"problem": "?"}, "field 'solution' = None is not text; the fields are 'problem'"),
        ({"problem": "?", "solution": "\\boxed{}"}, r"no closed \\boxed"),
        ({"problem": "?", "answer": ""}, "the reference '' is empty"),
        ({"problem": "?", "answer": "$\\boxed{}$."}, "is empty; give the answer"),
        ({"problem": "?", "answer": "NaN"}, "the reference 'NaN' is empty"),
        ({"problem": "?", "answer": float("nan")}, "the reference nan is empty"),
        ({"question": "?", "answer": "1"}, "field 'problem' = None"),
    ],
)
def test_a_row_of_another_schema_is_refused_with_its_line(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "some.jsonl", [*math_rows(1), row])
    with pytest.raises(DataError, match=rf"some.jsonl:2: .*{message}"):
        MathTask(path)


@pytest.mark.parametrize(
    ("place", "error", "message"),
    [
        ("nowhere.jsonl", ConfigError, "nowhere.jsonl: there is no such file or directory, and it is not a hub id"),
        ("some/nowhere.jsonl", ConfigError, "no such file or directory"),
        ("nobody/nothing", DataError, "nobody/nothing cannot be loaded .*give its path"),
    ],
)
def test_a_place_without_problems_is_one_message(place: str, error: type[Exception], message: str) -> None:
    pytest.importorskip("datasets")
    with pytest.raises(error, match=message):
        Gsm8kTask(test_path=place)


def test_the_version_follows_data_and_extraction(tmp_path: Path) -> None:
    path, other = (write(tmp_path / f"{n}.jsonl", math_rows(n)) for n in (30, 31))
    versions = {MathTask(path).version, MathTask(other).version, MathTask(path, extraction="strict").version}
    assert len(versions) == 3
    assert MathTask(path).version in versions


# --- GSM-Symbolic -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def symbolic() -> list[Problem]:
    return list(GsmSymbolicTask().problems(Split.TEST, seed=0, limit=150))


def test_the_word_problems_are_sound(symbolic: list[Problem]) -> None:
    assert len({p.prompt for p in symbolic}) == len({p.id for p in symbolic}) == 150
    assert not {p.data["template"] for p in symbolic} & set(FAULTY)
    assert len({p.data["template"] for p in symbolic}) > 50
    assert all(re.fullmatch(r"-?\d+(\.\d+)?", p.reference) for p in symbolic)
    train = GsmSymbolicTask().problems(Split.TRAIN, seed=0, limit=300)
    assert not {p.prompt for p in symbolic} & {p.prompt for p in train}


def test_references_of_the_word_problems_by_hand(symbolic: list[Problem]) -> None:
    # "exercise on Friday for 2 the amount of Sunday and Monday combined", 50 minutes each: 2 * (50 + 50)
    assert "How many minutes does he have to exercise on Friday" in symbolic[0].prompt
    assert symbolic[0].reference == "200"


@pytest.mark.slow
def test_the_word_problems_are_the_same_in_every_process(symbolic: list[Problem]) -> None:
    code = (
        "from selfcorrect.tasks.math.task import GsmSymbolicTask; from selfcorrect.types import Split; "
        "print([p.prompt for p in GsmSymbolicTask().problems(Split.TEST, seed=0, limit=20)])"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([p.prompt for p in symbolic[:20]])


def test_references_pass_and_corrupted_ones_fail(symbolic: list[Problem], verifier: Verifier) -> None:
    task = GsmSymbolicTask()
    own = verifier.verify([(p, final_answer(p.reference)) for p in symbolic])
    bad = verifier.verify([(p, task.corrupt(p)) for p in symbolic])
    assert {verdict.outcome for verdict in own} == {Outcome.CORRECT}
    assert {verdict.outcome for verdict in bad} == {Outcome.INCORRECT}
