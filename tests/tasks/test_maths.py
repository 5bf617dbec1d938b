"""Mathematics: finding answers, comparing them, loading problems, and verifiers that never hang."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("math_verify")
pytest.importorskip("reasoning_gym")

from selfcorrect.errors import ConfigError, DataError
from selfcorrect.tasks.math.answers import bare, equal, flexible_answer, plain_number, strict_answer
from selfcorrect.tasks.math.task import FAULTY, Gsm8kTask, GsmSymbolicTask, MathsVerifier, MathTask, final_answer
from selfcorrect.tasks.verifier import Verifier
from selfcorrect.types import Outcome, Problem, Split

PAIRS = Path(__file__).parents[1] / "data" / "maths_pairs.tsv"
DEVIATIONS = {("(1+i)^2", "2i"), ("i", r"\sqrt{-1}")}
"""Pairs on which the verdict is known to be wrong: math-verify takes i for a variable."""


def problem(reference: str) -> Problem:
    return Problem("p", "?", reference)


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    with Verifier(GsmSymbolicTask(), time_limit_s=60, workers=1) as found:
        yield found


# --- equality ---------------------------------------------------------------------------------------


def test_the_corpus_of_pairs_gets_the_verdicts_written_by_hand(verifier: Verifier) -> None:
    with PAIRS.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert len(rows) >= 200
    assert min(sum(row["verdict"] == kind for row in rows) for kind in ("equal", "different")) >= 100
    # The bare answer stands in the strict form, so that extraction is part of what is tested.
    verdicts = verifier.verify([(problem(row["reference"]), _written(row["answer"])) for row in rows])
    wrong = {
        (row["reference"], row["answer"])
        for row, verdict in zip(rows, verdicts, strict=True)
        if verdict.correct != (row["verdict"] == "equal")
    }
    assert wrong == DEVIATIONS
    assert {verdict.outcome for verdict in verdicts} <= {Outcome.CORRECT, Outcome.INCORRECT, Outcome.NO_ANSWER}


def _written(answer: str) -> str:
    return f"Final Answer: The final answer is {answer}. I hope it is correct."


numerators = st.integers(-200, 200)
denominators = st.integers(1, 60)


@given(st.integers(-(10**12), 10**12))
def test_every_way_to_write_an_integer_is_the_integer(n: int) -> None:
    ways = [f"{n}", f"{n:,}", f"{n:,}".replace(",", "{,}"), f"{n}.0", f"${n}$", f"\\boxed{{{n:,}}}.", f"{n} apples"]
    assert all(equal(str(n), way) for way in ways)
    assert not any(equal(str(n + 1), way) for way in ways)


@settings(max_examples=15)
@given(numerators, denominators, st.integers(2, 9))
def test_fractions_are_compared_by_value(a: int, b: int, k: int) -> None:
    assert equal(f"\\frac{{{a}}}{{{b}}}", f"\\frac{{{k * a}}}{{{k * b}}}")
    assert equal(f"\\frac{{{a}}}{{{b}}}", f"{a}/{b}")
    assert not equal(f"\\frac{{{a}}}{{{b}}}", f"\\frac{{{a * k + 1}}}{{{b * k}}}")


@settings(max_examples=15)
@given(st.integers(-999, 999), st.integers(-999, 999))
def test_naming_two_answers_earns_nothing(a: int, b: int) -> None:
    for text in (f"{a} or {b}", f"{a}, {b}", f"{a} and {b}"):
        assert equal(str(a), text) is False or a == b


@given(st.decimals(-(10**6), 10**6, places=3))
def test_plain_numbers_are_exact(x: Any) -> None:
    assert plain_number(f"{x:,f}") == Fraction(x)


@pytest.mark.parametrize("text", ["", "-", ".", "1e5", "1,00", "1.2.3", "٣a", "½"])
def test_what_is_no_plain_number(text: str) -> None:
    assert plain_number(text) is None


# --- extraction -------------------------------------------------------------------------------------

FORM = "Final Answer: The final answer is $7$. I hope it is correct."


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        (f"We add. {FORM}", "7", "7"),
        (f"Final Answer: The final answer is $6$. I hope it is correct. No: {FORM}", "7", "7"),
        (f"{FORM} Or is the answer 8?", "7", "7"),
        ("Final Answer: The final answer is 7", None, "7"),
        ("Final Answer: The final answer is $$. I hope it is correct.", None, None),
        ("final answer: the final answer is $7$. i hope it is correct.", None, "7"),
        ("So $x = 3$ and the answer is \\boxed{\\frac{1}{2}}.", None, "\\frac{1}{2}"),
        ("\\boxed{1} is wrong. Therefore \\boxed{2}", None, "2"),
        ("\\boxed{3}. Check: the answer is 4.", None, "4"),
        ("It holds that 3 + 4 = 7.\n#### 7", None, "7"),
        ("The answer is 1.5. The rest is left.", None, "1.5"),
        ("The answer is: 12 apples", None, "12 apples"),
        ("**Answer:** 12", None, "12"),
        ("She has 3 bags of 4, which makes 12 in all", None, "12"),
        ("We find $a$ and then $b+1$ at last", None, "b+1"),
        ("\\frac{1}{2}", None, "\\frac{1}{2}"),
        ("x^2+1", None, "x^2+1"),
        ("(1,2]", None, "(1,2]"),
        ("I do not know", None, None),
        ("", None, None),
        ("\\boxed{1", None, "1"),
    ],
)
def test_the_answer_is_found_by_the_documented_rules(text: str, strict: str | None, flexible: str | None) -> None:
    assert (strict_answer(text), flexible_answer(text)) == (strict, flexible)


@given(st.text(max_size=200) | st.text("$\\{}()[]boxed answeri:#1 .\n", max_size=200))
def test_any_text_has_an_answer_or_none(text: str) -> None:
    found = flexible_answer(text)
    assert found is None or (found and bare(found) == found)
    assert strict_answer(text) in (None, found)


@given(st.text(st.characters(codec="ascii", exclude_characters="$*`"), max_size=60))
def test_what_is_written_in_the_form_is_found(answer: str) -> None:
    text = f"The answer is \\boxed{{1}}.\n{final_answer(answer)}\n"
    if "Final Answer:" not in answer and "I hope it" not in answer:
        assert strict_answer(text) == (bare(answer) or None)


@pytest.mark.parametrize(
    "part", ["\\boxed{", "\\(", "$", "answer is\n", "Final Answer: The final answer is", "1,", "#### "]
)
def test_long_nonsense_is_read_in_linear_time(part: str) -> None:
    begin = time.process_time()
    flexible_answer(part * (20_000 // len(part)))
    assert time.process_time() - begin < 5


# --- verdicts ---------------------------------------------------------------------------------------


def test_both_readings_are_kept_and_the_chosen_one_counts() -> None:
    informal = "So the answer is \\boxed{5}."
    flexible, strict = (MathsVerifier(name)(informal, "5") for name in ("flexible", "strict"))
    by_rule = {"strict": Outcome.NO_ANSWER, "flexible": Outcome.CORRECT}
    assert (flexible.outcome, flexible.extracted, flexible.by_rule) == (Outcome.CORRECT, "5", by_rule)
    assert (strict.outcome, strict.extracted, strict.by_rule) == (Outcome.NO_ANSWER, None, by_rule)
    assert strict.detail == "no answer by the strict rule"


def test_a_pathological_answer_costs_its_own_verdict_only() -> None:
    answers = ["5", "10^{10^{10}}", "__import__('os').abort()", "1" * 5000, "5"]
    texts = [final_answer(answer) for answer in answers]
    with Verifier(GsmSymbolicTask(), time_limit_s=2, workers=1) as found:
        outcomes = [verdict.outcome for verdict in found.verify([(problem("5"), text) for text in texts])]
    right, late, wrong = Outcome.CORRECT, Outcome.TIMED_OUT, Outcome.INCORRECT
    assert outcomes == [right, late, wrong, wrong, right]


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


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"problem": "?", "solution": "no box"}, r"no closed \\boxed"),
        ({"problem": "?"}, "field 'solution' = None is not text; the fields are 'problem'"),
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
    assert all(plain_number(p.reference) is not None for p in symbolic)
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
