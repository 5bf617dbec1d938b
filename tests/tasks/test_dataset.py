"""Test the task `dataset`: its sources, columns, splits and verifiers, `tasks check`, and the example of docs/tasks.md."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.chat_server import Answer, says, serving
from support.hub import FakeHub
from support.models import tiny_model
from support.sums import SUMS, write

from selfcorrect.cli.app import main
from selfcorrect.errors import ConfigError, DataError
from selfcorrect.evaluation.task_check import WIDTH, check_task, check_text
from selfcorrect.tasks.base import get_task, origin_of
from selfcorrect.tasks.dataset.choice import chosen
from selfcorrect.tasks.dataset.task import DatasetTask
from selfcorrect.tasks.dataset.verifiers import VERIFIERS, make_verifier
from selfcorrect.tasks.math.equality import rational
from selfcorrect.tasks.rows import RowsTask, _source_code
from selfcorrect.tasks.splits import normalise, split_of
from selfcorrect.tasks.verifier import Verifier
from selfcorrect.tasks.verifier_pool import judge
from selfcorrect.types import Outcome, Split

ROOT = Path(__file__).parents[2]
RIGHT, WRONG, NO_ANSWER = Outcome.CORRECT, Outcome.INCORRECT, Outcome.NO_ANSWER


def prompts(task: DatasetTask, split: Split = Split.TEST) -> list[str]:
    return sorted(problem.prompt for problem in task.problems(split, seed=0))


# --- multiple choice --------------------------------------------------------------------------------

CITIES = {"A": "Lyon", "B": "Paris", "C": "Nice", "D": "Lille"}
CHOOSES_B = """(B)|B|b|B.|b)|[B]|**B**|**B.** Paris|B) Paris|B: Paris|B - Paris|B Paris|Paris|paris.|"Paris"
The answer is B.|The answer is (b)|the answer is b|The answer is B because it is.|The answer is B, not C.|The answer is B Paris
The correct answer is **(B) Paris**.|The correct option is B: Paris|The answer is option B|The answer would be B|Answer - B
The best choice among the given options is B|Answer: B|Final answer: B|**Answer:** B|Answer:~~B|The answer is:~~**B) Paris**
My final choice is: [B]|Option B is correct.|B is the correct answer.|(B) is correct|A is wrong. B is right. The answer is B
The answer is Paris.|The capital is Paris, so the answer is B) Paris.|The answer is "B".
The answer is C. Wait, the correct answer is B.|I choose B|I would go with option (B).|So it must be (B).|Hence B.|I think it's B
B~~Because it is the capital.|Let me think.~~B
\\boxed{B}|$\\boxed{\\text{B}}$|\\boxed{\\text{(B) Paris}}|So \\boxed{Paris}|The final answer is: $\\boxed{B}$|#### B
答案：B|答案是B|A) Lyon~B) Paris~C) Nice~~The answer is B|Therefore, the answer is $\\textbf{(B)}$.|<think>A? C?</think>B
The answer is: B. Paris~~Question: Another?~Answer: C"""
CHOOSES_NOTHING = """|I don't know.|B or C|The answer is B or C.|The answer is (A) and (B).|The answer is A, B|\\boxed{B, C}
Both B and C are correct|It's either B or C, hard to say|The answer is not B.|It is not (B).|The answer is a city.
The answer is A train|The answer is A city.|The answer is E.|A) Lyon~B) Paris~C) Nice~D) Lille
Let me think.~A) Lyon is not.~B) Paris is.
<think>The answer is B|I choose a city|The answer is in the list.|Option B is not correct."""


def cases(table: str) -> list[str]:
    return [text.replace("~", "\n").replace("\\\\", "\\") for line in table.split("\n") for text in line.split("|")]


@pytest.mark.parametrize("text", cases(CHOOSES_B))
def test_a_choice_is_read_as_models_write_it(text: str) -> None:
    assert chosen(text, CITIES) == "B"


@pytest.mark.parametrize("text", cases(CHOOSES_NOTHING))
def test_an_open_choice_is_none(text: str) -> None:
    assert chosen(text, CITIES) is None


@settings(max_examples=30)
@given(st.text(alphabet="ABab ()*.:\n\\boxed{}isanswertheor,", max_size=40))
def test_a_choice_is_an_option_or_none(text: str) -> None:
    assert chosen(text, {"A": "is", "B": ""}) in {"A", "B", None}


def test_a_long_completion_is_read_in_linear_time() -> None:
    for piece in ("answer ", "(A ", "the option is ", "\\boxed{", "A) ", "answer a-", "\\text{", "B is ", "A.\n"):
        chosen(piece * 4_000, CITIES)


MC = {"question": "Capital of France?", "options": ["Lyon", "Paris"], "answer": "B"}


@pytest.mark.parametrize(
    ("row", "options", "key", "shown"),
    [
        (MC, {}, "B", "A) Lyon\nB) Paris"),
        ({**MC, "answer": "paris"}, {}, "B", "A) Lyon\nB) Paris"),
        ({**MC, "answer": "(b)"}, {}, "B", "A) Lyon\nB) Paris"),
        ({**MC, "answer": 1}, {"count_from": 0}, "B", "A) Lyon\nB) Paris"),
        ({**MC, "answer": "1"}, {"count_from": 1}, "A", "A) Lyon\nB) Paris"),
        ({**MC, "options": {"text": ["6", "7"], "label": ["1", "2"]}, "answer": "2"}, {}, "B", "A) 6\nB) 7"),
        (
            {"question": "?", "x": 6, "y": 7, "answer": "y"},
            {"options_field": ["x", "y"]},
            "B",
            "A) 6\nB) 7",
        ),
    ],
)
def test_options_come_from_a_list_from_labels_or_from_columns(
    row: dict[str, Any], options: dict[str, Any], key: str, shown: str, here: Path
) -> None:
    options = {"options_field": "options", "prompt_field": "question", **options}
    task = DatasetTask(test_path=write(here / "mc.jsonl", [row]), verifier="choice", **options)
    [problem] = task.problems(Split.TEST, seed=0)
    assert (problem.reference, problem.prompt) == (key, f"{row['question']}\n\n{shown}")
    assert judge(task, problem, task.answer(problem)).correct
    assert judge(task, problem, task.corrupt(problem)).outcome is WRONG


def test_options_that_the_problem_lists_are_known(here: Path) -> None:
    row = {"prompt": "Which?\n(A) red\n(B) blue", "answer": "B"}
    task = DatasetTask(test_path=write(here / "mc.jsonl", [row]), verifier="choice")
    [problem] = task.problems(Split.TEST, seed=0)
    assert judge(task, problem, "blue").correct
    with pytest.raises(DataError, match=r"mc.jsonl:1: the key 'C' is not among the options A, B"):
        DatasetTask(test_path=write(here / "mc.jsonl", [{**row, "answer": "C"}]), verifier="choice")


QUIZ = {"prompt": "What is 6 * 7?", "A": 41, "B": 42, "C": 43, "answer": "B"}


@pytest.mark.parametrize(
    ("row", "advised"),
    [
        (QUIZ, '["A", "B", "C"]'),
        ({"prompt": "6 * 7?", "option 1": "41", "option 2": "42", "answer": "B"}, '["option 1", "option 2"]'),
        ({"prompt": "6 * 7?", "Choices": ["41", "42"], "answer": "B"}, "'Choices'"),
        ({"prompt": "6 * 7?", "choices": {"text": ["41", "42"], "label": ["A", "B"]}, "answer": "B"}, "'choices'"),
    ],
)
def test_options_that_the_model_would_not_see_are_rejected(row: dict[str, Any], advised: str, here: Path) -> None:
    path = write(here / "mc.jsonl", [row])
    with pytest.raises(ConfigError, match=f"would not see the options.*options_field = {re.escape(advised)}"):
        DatasetTask(test_path=path, verifier="choice")
    told = DatasetTask(test_path=path, verifier="choice", options_field=json.loads(advised.replace("'", '"')))
    assert not told.notes and "B) 42" in prompts(told)[0]


@pytest.mark.parametrize("template", ["{prompt}\nA) {A}\nB) {B}\nC) {C}", "{prompt} (A) {A} (B) {B} (C) {C}"])
def test_options_that_a_template_shows_are_accepted(template: str, here: Path) -> None:
    task = DatasetTask(test_path=write(here / "mc.jsonl", [QUIZ]), verifier="choice", template=template)
    assert not task.notes


@pytest.mark.parametrize("verifier", ["choice", "exact"])
def test_a_note_says_that_a_letter_can_only_be_guessed(verifier: str, here: Path) -> None:
    row = {"prompt": "6 * 7?", "answer": "B"} if verifier == "choice" else QUIZ
    task = DatasetTask(test_path=write(here / "mc.jsonl", [row]), verifier=verifier)
    assert "options_field" in " ".join(task.notes)
    assert "note: " in check_text(check_task(task, task.script))


def test_a_check_says_how_large_the_splits_are_and_what_few_problems_show(here: Path) -> None:
    rows = [{"prompt": f"{i} + 1?", "answer": i + 1} for i in range(300)]
    few = DatasetTask(write(here / "sums.jsonl", rows), "number", shares=[85, 10, 5])
    size = len(few.problems(Split.TRAIN, seed=0))
    found = check_task(few, few.script, limit=20)
    text = check_text(found)
    assert f"train  {size} (20 tried)" in text and found.splits["train"] == 20 and sum(found.sizes.values()) == 300
    assert found.sizes["test"] < 100 and f"note: {found.sizes['test']} test problems are few" in text
    assert f"note: {found.sizes['dev']} development problems are few" in text, "they decide which checkpoint is kept"
    assert all("a larger share of them (the task's option shares)" in note for note in found.notes)
    many = DatasetTask(write(here / "more.jsonl", rows), "number", shares=[20, 40, 40])
    assert not check_task(many, many.script, limit=20).notes
    own = DatasetTask(
        here / "more.jsonl",
        "number",
        test_path=write(here / "test.jsonl", [{"prompt": "900?", "answer": 9}]),
        shares=[60, 40, 0],
    )
    (note,) = check_task(own, own.script, limit=20).notes
    assert note.startswith("1 test problems are few") and note.endswith("For more, add rows of data to the test split")


def test_columns_that_are_no_options_pass_without_a_note(here: Path) -> None:
    rows = [{"prompt": f"{i} + 1?", "a": i, "b": 1, "option": "x", "answer": str(i + 1)} for i in range(2)]
    assert not DatasetTask(test_path=write(here / "sums.jsonl", rows), verifier="exact").notes


# --- the other verifiers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verifier", "options", "reference", "text", "outcome"),
    [
        ("exact", {}, "New York", " New  York\n", RIGHT),
        ("exact", {}, "New York", "new york", WRONG),
        ("exact", {"ignore_case": True}, "New York", "new YORK", RIGHT),
        ("exact", {"ignore_space": False}, "New York", "New  York", WRONG),
        ("exact", {}, "Paris", "<think>Lyon?</think>Paris", RIGHT),
        ("exact", {}, "Paris", "Well. <answer>Paris</answer>", RIGHT),
        ("exact", {}, "Paris", "<think>Paris", NO_ANSWER),
        ("number", {}, 1000, "So it is 1,000.", RIGHT),
        ("number", {}, 3.5, "The answer is $\\frac{7}{2}$ cm.", RIGHT),
        ("number", {}, "1/3", "The answer is 0.333333333.", WRONG),
        ("number", {}, 2, "The answer is 2 dozen.", WRONG),
        ("number", {}, 2, "Nobody knows.", NO_ANSWER),
        ("regex", {"pattern": "#### (.+)", "form": "#### {answer}"}, 7, "#### 6\nNo.\n#### 7", RIGHT),
        ("regex", {"pattern": "#### (.+)", "form": "#### {answer}"}, 7, "#### 7\nNo.\n#### 6", WRONG),
        ("regex", {"pattern": "#### (.+)", "form": "#### {answer}"}, 7, "7", NO_ANSWER),
        ("regex", {"pattern": "x=(.)|y=(.)", "form": "y={answer}", "ignore_case": True}, "b", "y=B", RIGHT),
        ("regex", {"pattern": r"\w+$"}, "yes", "I say yes", RIGHT),
    ],
)
def test_a_verdict(
    verifier: str, options: dict[str, Any], reference: Any, text: str, outcome: Outcome, here: Path
) -> None:
    path = write(here / "one.jsonl", [{"prompt": "?", "answer": reference}])
    task = DatasetTask(test_path=path, verifier=verifier, **options)
    [problem] = task.problems(Split.TEST, seed=0)
    assert judge(task, problem, text).outcome is outcome
    assert judge(task, problem, task.answer(problem)).correct
    assert not judge(task, problem, task.corrupt(problem)).correct


def test_mathematics_is_judged_as_in_the_task_math(here: Path) -> None:
    pytest.importorskip("math_verify")
    path = write(here / "one.jsonl", [{"prompt": "?", "answer": "\\frac{x+1}{2}"}])
    task = DatasetTask(test_path=path, verifier="math")
    [problem] = task.problems(Split.TEST, seed=0)
    assert judge(task, problem, "So \\boxed{(1+x)/2}.").by_rule == {"strict": NO_ANSWER, "flexible": RIGHT}
    assert task.version != DatasetTask(test_path=path, verifier="math", extraction="strict").version


def test_numbers_are_exact() -> None:
    assert rational("0.1") == rational("1/10") != rational("0.10000000000000000000001")
    assert [rational(text) for text in ("x", "1/0", "7 or 8", "9^9^9^9", "1" * 500)] == [None] * 5


@pytest.mark.parametrize("text", ["6*11", r"6 \times 11", r"6 \cdot 11", "60 + 6", "132/2", "70 - 4", "66^1", "6(11)"])
def test_what_is_left_to_compute_states_no_number(here: Path, text: str) -> None:
    """ "What is 6 times 11?" is not answered by saying it again."""
    assert rational(text) is None
    task = DatasetTask(test_path=write(here / "one.jsonl", [{"prompt": "?", "answer": "66"}]), verifier="number")
    [problem] = task.problems(Split.TEST, seed=0)
    for answer in (text, f"The answer is {text}.", f"So \\boxed{{{text}}}."):
        assert not judge(task, problem, answer).correct
    assert judge(task, problem, f"{text} = 66").correct


@pytest.mark.parametrize(
    ("text", "value"),
    [("-3", "-3"), ("4/6", "2/3"), (r"-\frac{1}{2}", "-1/2"), ("3 1/2", "7/2"), (r"-7\frac12", "-15/2"), ("50%", "50"),
     ("1.5e3", "1500"), (r"-2 \times 10^{-3}", "-1/500"), ("10^5", "100000"), ("+7", "7"), ("12 red apples", "12")],
)  # fmt: skip
def test_a_number_may_be_written_in_many_ways(text: str, value: str) -> None:
    assert str(rational(text)) == value


def test_a_reference_may_be_left_to_compute(here: Path) -> None:
    task = DatasetTask(test_path=write(here / "one.jsonl", [{"prompt": "?", "answer": "6*11"}]), verifier="number")
    [problem] = task.problems(Split.TEST, seed=0)
    assert judge(task, problem, "66").correct and not judge(task, problem, "6*11").correct
    assert judge(task, problem, task.answer(problem)).correct


@pytest.mark.parametrize(
    ("verifier", "text", "extracted", "outcome", "detail"),
    [
        ("number", "2 + 8 = 10", "10", RIGHT, ""),
        ("number", "The answer is 10.0 apples.", "10", RIGHT, ""),
        ("number", "The answer is 21/2.", "10.5", WRONG, ""),
        ("number", "x = 1/3", "1/3", WRONG, ""),
        ("number", "2 + 10 = 10", "2 + 10 = 10", WRONG, "it states no single number that is written out"),
        ("number", "5*2", "5*2", WRONG, "it states no single number that is written out"),
        ("math", "2 + 8 = 10", "10", RIGHT, ""),
        ("math", r"\boxed{x = 10}", "10", RIGHT, ""),
        ("math", "2 + 10 = 10", "2 + 10 = 10", WRONG, "an equation whose sides differ states no value"),
        ("math", "y = 2x", "2x", WRONG, ""),
    ],
)
def test_the_extracted_answer_is_what_was_compared(
    here: Path, verifier: str, text: str, extracted: str, outcome: Outcome, detail: str
) -> None:
    task = DatasetTask(test_path=write(here / "one.jsonl", [{"prompt": "?", "answer": "10"}]), verifier=verifier)
    [problem] = task.problems(Split.TEST, seed=0)
    verdict = judge(task, problem, text)
    assert (verdict.extracted, verdict.outcome, verdict.detail) == (extracted, outcome, detail)


def test_an_equation_that_is_asked_for_is_compared_whole(here: Path) -> None:
    task = DatasetTask(test_path=write(here / "one.jsonl", [{"prompt": "?", "answer": "y = 2x"}]), verifier="math")
    [problem] = task.problems(Split.TEST, seed=0)
    verdict = judge(task, problem, r"\boxed{2x = y}")
    assert (verdict.extracted, verdict.outcome) == ("2x = y", RIGHT)


def test_white_space_around_a_match_is_no_part_of_the_answer(here: Path) -> None:
    path = write(here / "one.jsonl", [{"prompt": "?", "answer": "Nairobi"}])
    task = DatasetTask(test_path=path, verifier="regex", pattern="####(.+)", form="#### {answer}")
    [problem] = task.problems(Split.TEST, seed=0)
    assert judge(task, problem, "####  Nairobi ").extracted == "Nairobi"


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_a_table_with_another_separator_is_named(here: Path, separator: str) -> None:
    (here / "some.csv").write_text(f"prompt{separator}answer\na{separator}1\n")
    with pytest.raises(DataError, match=re.escape(f"the table is separated by {separator!r}: save it with commas")):
        DatasetTask(test_path="some.csv", verifier="number")
    (here / "some.csv").write_text("question,answer\na,1\n")
    with pytest.raises(DataError, match="set prompt_field or template to the right one"):
        DatasetTask(test_path="some.csv", verifier="number")


def test_a_function_gets_the_whole_row(here: Path) -> None:
    (here / "dataset_checks.py").write_text("def check(text, reference, row):\n    return text == row['other']\n")
    path = write(here / "one.jsonl", [{"prompt": "?", "answer": "a", "other": "b"}])
    task = DatasetTask(test_path=path, verifier="dataset_checks:check", trusted=True)
    [problem] = task.problems(Split.TEST, seed=0)
    assert task.trusted_verifier and judge(task, problem, "b").correct and not judge(task, problem, "a").correct


CODE = {"prompt": "Write inc.", "answer": "def inc(x):\n    return x + 1", "tests": ["assert inc(1) == 2"]}


@pytest.mark.sandbox
def test_a_program_runs_in_the_sandbox(here: Path) -> None:
    rows = [CODE, {**CODE, "prompt": "Again.", "tests": "def check(f):\n    assert f(1) == 2"}]
    task = DatasetTask(test_path=write(here / "code.jsonl", rows), verifier="code")
    try:
        for problem in task.problems(Split.TEST, seed=0):
            answers = (task.answer(problem), task.corrupt(problem), "No idea.")
            assert [judge(task, problem, text).outcome for text in answers] == [RIGHT, WRONG, NO_ANSWER]
    finally:
        task.close()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**CODE, "answer": "x + 1"}, "not Python that defines a function"),
        ({**CODE, "tests": None}, "column 'tests' has no tests"),
        ({**CODE, "tests": "assert inc(1"}, "are not Python"),
        ({**CODE, "tests": "inc(1)"}, "assert nothing"),
    ],
)
@pytest.mark.sandbox
def test_a_program_that_cannot_be_tested_is_refused(row: dict[str, Any], message: str, here: Path) -> None:
    with pytest.raises(DataError, match=rf"code.jsonl:1: .*{message}"):
        DatasetTask(test_path=write(here / "code.jsonl", [row]), verifier="code")


# --- sources and splits -----------------------------------------------------------------------------


def test_csv_keeps_quoted_lines_and_their_places(here: Path) -> None:
    (here / "some.csv").write_text('\ufeffprompt,answer\n"two\nlines, one comma",1\nnext,2\n\nlast,3\n')
    task = DatasetTask(test_path="some.csv", verifier="number")
    assert {p.id: p.prompt for p in task.problems(Split.TEST, seed=0)} == {
        "some.csv:2": "two\nlines, one comma",
        "some.csv:4": "next",
        "some.csv:6": "last",
    }
    (here / "some.csv").write_text('prompt,answer\na,1,2\nb\n"c,3\n')
    with pytest.raises(
        DataError, match=r"3 error.*\n  some.csv:2: 3 values for 2 .*\n  some.csv:3: 1 .*\n  some.csv:4: not"
    ):
        DatasetTask(test_path="some.csv", verifier="number")
    (here / "some.tsv").write_text("prompt\tprompt\n")
    with pytest.raises(DataError, match="must have different names"):
        DatasetTask(test_path="some.tsv", verifier="number")


@pytest.mark.parametrize("kind", ["json", "tsv", "parquet", "stream.arrow", "file.arrow"])
def test_every_kind_of_file_gives_the_same_problems(kind: str, here: Path) -> None:
    path = here / f"same.{kind}"
    if kind == "json":
        path.write_text(json.dumps(SUMS))
    elif kind == "tsv":
        text = io.StringIO()
        table = csv.DictWriter(text, ["prompt", "answer"], delimiter="\t")
        table.writeheader()
        table.writerows(SUMS)
        path.write_text(text.getvalue())
    else:
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        table = pyarrow.Table.from_pylist(SUMS)
        if kind == "parquet":
            parquet.write_table(table, path)
        else:
            with (pyarrow.ipc.new_file if kind == "file.arrow" else pyarrow.ipc.new_stream)(path, table.schema) as file:
                file.write_table(table)
    found = DatasetTask(test_path=path, verifier="number").problems(Split.TEST, seed=0)
    assert {p.prompt: p.reference for p in found} == {row["prompt"]: str(row["answer"]) for row in SUMS}


def test_several_files_are_one_source(here: Path) -> None:
    files = [str(write(here / f"{n}.jsonl", SUMS[30 * n : 30 * n + 30])) for n in range(2)]
    assert len(prompts(DatasetTask(test_path=files, verifier="number"))) == 60


def test_named_splits_of_a_saved_dataset(here: Path) -> None:
    datasets = pytest.importorskip("datasets")
    parts = {"train": SUMS[:40], "validation": SUMS[40:50], "test": SUMS[50:]}
    saved = datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in parts.items()})
    saved.save_to_disk("saved")
    task = DatasetTask("saved", "number")
    assert [len(task.problems(split, seed=0)) for split in Split] == [40, 10, 10]
    task = DatasetTask("saved:train", "number", test_path="saved:validation")
    assert prompts(task) == sorted(row["prompt"] for row in SUMS[40:50])
    drawn = [row["prompt"] for row in SUMS[:40] if split_of(row["prompt"]) is Split.DEV]
    assert prompts(task, Split.DEV) == sorted(drawn)
    assert len(prompts(DatasetTask(test_path="saved", verifier="number"))) == 10
    with pytest.raises(ConfigError, match=r"saved has its own test split: name one split of it, as saved:train"):
        DatasetTask("saved", "number", test_path=write(here / "more.jsonl", SUMS))
    with pytest.raises(ConfigError, match=r"no split 'tset' among train, validation, test"):
        DatasetTask("saved:tset", "number")
    saved.rename_column("prompt", "q")["train"].save_to_disk("single")
    assert len(prompts(DatasetTask(test_path="single", verifier="number", prompt_field="q"))) == 40


def test_a_hub_id_names_configuration_and_split(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    hub = FakeHub({"main": {"train": SUMS[:50], "test": SUMS[50:]}, "odd": {"a": SUMS[:5], "b": SUMS[5:9]}})
    monkeypatch.setattr("selfcorrect.tasks.sources.require", lambda *_, **__: hub)
    task = DatasetTask("some/sums/main", "number")
    assert {p.id for p in task.problems(Split.TEST, seed=0)} == {f"some/sums/main/test[{i}]" for i in range(10)}
    assert task.name == "some/sums"
    assert len(prompts(DatasetTask(test_path="some/sums/odd:a", verifier="number"))) == 5
    with pytest.raises(ConfigError, match=r"choose a configuration, as some/sums/CONFIG: main, odd"):
        DatasetTask("some/sums", "number")
    with pytest.raises(ConfigError, match=r"has the splits a, b: name those to use, as path = 'some/sums/odd:a'"):
        DatasetTask("some/sums/odd", "number")
    with pytest.raises(ConfigError, match=r"has the splits a, b"):
        DatasetTask(test_path="some/sums/odd", verifier="number")


def test_shares_and_a_seed_draw_the_splits(here: Path) -> None:
    path = write(here / "sums.jsonl", [{"prompt": f"problem {n}", "answer": n} for n in range(400)])
    default, again, other = (DatasetTask(path, "exact", split_seed=seed) for seed in (0, 0, 7))
    assert prompts(default) == sorted(p for p in (f"problem {n}" for n in range(400)) if split_of(p) is Split.TEST)
    assert prompts(default) == prompts(again) != prompts(other)
    assert default.version == again.version != other.version
    halves = DatasetTask(path, "exact", shares=[50, 0, 50])
    assert [abs(len(prompts(halves, split)) - 200) < 50 for split in (Split.TRAIN, Split.TEST)] == [True, True]
    with pytest.raises(DataError, match=r"no dev problems .*50/0/50%"):
        prompts(halves, Split.DEV)
    with pytest.raises(ConfigError, match=r"shares = \[50, 60, 0\]: give the percentages .* sum to 100"):
        DatasetTask(path, "exact", shares=[50, 60, 0])


def test_an_overlap_says_how_many_and_shows_one(here: Path) -> None:
    write(here / "train.jsonl", SUMS[:20])
    twins = [{"prompt": f"what is  {n} + 1?", "answer": n + 1} for n in (3, 4, 5)]
    write(here / "test.jsonl", [*SUMS[30:40], *twins])
    with pytest.raises(DataError) as caught:
        DatasetTask("train.jsonl", "number", test_path="test.jsonl")
    assert str(caught.value).splitlines()[1:] == [
        "  test.jsonl:11: the same problem as train.jsonl:4, but splits must be disjoint; 3 of test are in train, "
        "remove them from one, or set drop_repeated=true to keep the first of them"
    ]
    task = DatasetTask("train.jsonl", "number", test_path="test.jsonl", drop_repeated=True)
    assert len(prompts(task)) == 13 and len(prompts(task, Split.TRAIN)) + len(prompts(task, Split.DEV)) == 17
    assert origin_of(task) == {"repeated_dropped": {"train": 3}}
    texts = {normalise(prompt) for prompt in prompts(task, Split.TRAIN)}
    assert not texts & {normalise(prompt) for prompt in prompts(task)}


def test_repeated_problems_are_one_line_with_the_option_that_keeps_one(here: Path) -> None:
    write(here / "twice.jsonl", [*SUMS[:6], *SUMS[:5]])
    with pytest.raises(DataError) as caught:
        DatasetTask(verifier="number", test_path="twice.jsonl")
    assert str(caught.value).splitlines()[1:] == [
        "  twice.jsonl:7: the same problem as twice.jsonl:1; 4 more occur before (twice.jsonl:8 = twice.jsonl:2, twice.jsonl:9 = "
        "twice.jsonl:3, twice.jsonl:10 = twice.jsonl:4, ...); remove them, or set drop_repeated=true to keep the first of them"
    ]
    assert len(prompts(DatasetTask(verifier="number", test_path="twice.jsonl", drop_repeated=True))) == 6


def test_one_cause_is_one_line(here: Path) -> None:
    write(here / "other.jsonl", [{"question": f"{n}?", "result": n} for n in range(300)])
    with pytest.raises(DataError) as caught:
        DatasetTask(verifier="number", test_path="other.jsonl", prompt_field="question")
    head, line = str(caught.value).splitlines()
    assert "300 error(s)" in head
    assert line.startswith("  other.jsonl:1: no field 'answer' among 'question', 'result'") and line.endswith(
        "(all 300 rows)"
    )


# --- what is refused --------------------------------------------------------------------------------


def test_all_mistakes_are_one_message_with_their_rows(here: Path) -> None:
    rows = [
        MC,
        {**MC, "question": "No column?", "options": None},
        {"question": "No key?", "options": ["a", "b"]},
        {**MC, "question": "Empty?", "answer": "  "},
        {**MC, "question": "Other key?", "answer": "C"},
        {**MC, "question": "Same options?", "options": ["a", "A"]},
        {**MC, "question": " "},
        MC,
    ]
    path = write(here / "mc.jsonl", rows)
    with path.open("a") as file:
        file.write("{\n")
    with pytest.raises(DataError) as caught:
        DatasetTask(
            test_path=path, verifier="choice", prompt_field="question", template="{question}", options_field="options"
        )
    lines = str(caught.value).splitlines()
    assert "8 error(s)" in lines[0]
    found = dict(re.match(r"  mc\.jsonl:(\d): (.*)", line).groups() for line in lines[1:])  # type: ignore[union-attr]
    words = {
        "2": "are no list of texts",
        "3": "no field 'answer'",
        "4": "the reference in column 'answer' is empty",
        "5": "the key 'C' is not among the options A, B",
        "6": "must differ",
        "7": "the problem is empty",
        "8": "the same problem as mc.jsonl:1",
        "9": "not JSON",
    }
    assert {number: words[number] in line for number, line in found.items()} == dict.fromkeys(words, True)


@pytest.mark.parametrize(
    ("verifier", "options", "reference", "message"),
    [
        ("number", {}, "a few", "the reference 'a few' is not a number"),
        ("regex", {"pattern": "#### (.+)"}, "7", "is rejected by its own verifier (the pattern does not match)"),
        ("regex", {"pattern": r"(\d)"}, "71", "is rejected by its own verifier (it reads '1')"),
        ("exact", {"reference_pattern": "#### (.+)"}, "so 7", "reference_pattern matches nothing in 'so 7'"),
        ("math", {}, "We see \\boxed{7}", "is a whole solution"),
        ("math", {}, "NaN", "is empty"),
    ],
)
def test_a_reference_that_no_answer_equals_is_refused(
    verifier: str, options: dict[str, Any], reference: str, message: str, here: Path
) -> None:
    path = write(here / "one.jsonl", [{"prompt": "?", "answer": reference}])
    with pytest.raises(DataError, match=rf"one.jsonl:1: .*{re.escape(message)}"):
        DatasetTask(test_path=path, verifier=verifier, **options)


NESTED = r"(?:a|a)*$"
"""Takes twice as long for each further letter of aaa...b: for 60 of them, longer than anybody lives."""
ENDLESS = "a" * 60 + "b"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "answer", "setting"),
    [
        ({"verifier": "exact", "reference_pattern": NESTED}, ENDLESS, "reference_pattern"),
        (
            {"verifier": "exact", "reference_pattern": r"#### (\w+\s?)*$"},
            "#### " + "word " * 40 + "!",
            "reference_pattern",
        ),
        ({"verifier": "regex", "pattern": NESTED, "form": "{answer}b"}, "a" * 60, "pattern"),
        ({"verifier": "regex", "pattern": r"^(([a-z])+.)+[A-Z]([a-z])+$"}, "a" * 60, "pattern"),
    ],
)
def test_a_pattern_that_takes_for_ever_ends_the_reading_of_rows(
    options: dict[str, Any], answer: str, setting: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfcorrect.tasks.dataset.patterns.TIME_LIMIT_S", 1.0)
    rows = [{"prompt": f"{n}?", "answer": answer} for n in range(1_000)]
    with pytest.raises(
        ConfigError, match=rf"{setting} = .* cannot be matched against .*one.jsonl:1.: no verdict within"
    ):
        DatasetTask(test_path=write(here / "one.jsonl", rows), **options)


@pytest.mark.slow
def test_an_answer_for_which_a_pattern_takes_for_ever_is_timed_out(here: Path) -> None:
    path = write(here / "one.jsonl", [{"prompt": "?", "answer": "aa"}])
    task = DatasetTask(test_path=path, verifier="regex", pattern=r"^((?:a|a)+)$")
    [problem] = task.problems(Split.TEST, seed=0)
    with Verifier(task, time_limit_s=1.0, workers=1) as verifier:
        verdicts = verifier.verify([(problem, text) for text in ("aa", ENDLESS, "aaa", "ab")])
        assert [v.outcome for v in verdicts] == [RIGHT, Outcome.TIMED_OUT, WRONG, NO_ANSWER]
        assert verifier.counts[Outcome.TIMED_OUT] == 1


def test_a_pattern_has_a_length(here: Path) -> None:
    path = write(here / "one.jsonl", [{"prompt": "?", "answer": "7"}])
    classes = r"[\U00000000-\U0010ffff]" * 50
    for options in ({"verifier": "regex", "pattern": classes}, {"verifier": "exact", "reference_pattern": classes}):
        with pytest.raises(ConfigError, match=r"has 1,150 characters; a pattern has at most 1,000"):
            DatasetTask(test_path=path, **options)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("column", ["answer", "prompt", "difficulty"])
def test_what_tables_write_for_a_missing_number_is_none(number: str, column: str, here: Path) -> None:
    row = {"prompt": '"?"', "answer": '"7"', "difficulty": '"easy"', column: number}
    (here / "one.jsonl").write_text("{" + ", ".join(f'"{key}": {value}' for key, value in row.items()) + "}\n")
    with pytest.raises(DataError, match=rf"one.jsonl:1: field '{column}' = -?(nan|inf) is no number"):
        DatasetTask(test_path="one.jsonl", verifier="exact", difficulty_field="difficulty")


def test_a_reference_is_taken_out_of_its_column(here: Path) -> None:
    path = write(here / "gsm.jsonl", [{"prompt": "?", "answer": "5 + 2 = 7\n#### 7"}])
    [problem] = DatasetTask(test_path=path, verifier="number", reference_pattern="#### (.+)").problems(
        Split.TEST, seed=0
    )
    assert problem.reference == "7"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"verifier": "chioce"}, "choose one of exact, .* 'module:function'. Did you mean 'choice'"),
        ({"verifier": ""}, "choose one of exact"),
        ({"pattern": "x"}, "'exact' has no option 'pattern'; .* 'regex' has it"),
        ({"promt_field": "x"}, "no option 'promt_field'; .* Did you mean 'prompt_field'"),
        ({"ignore_case": 1}, "ignore_case = 1: Input should be a valid boolean"),
        ({"verifier": "regex"}, "needs its option pattern"),
        ({"verifier": "regex", "pattern": "("}, "is not a regular expression: missing"),
        ({"reference_pattern": "["}, "is not a regular expression"),
        ({"verifier": "regex", "pattern": "x", "form": "y"}, "lacks {answer}"),
        ({"template": "no column"}, "shows no column"),
        ({"template": "{prompt} {answer}"}, "shows 'answer', the column of the answers"),
        ({"template": "{prompt"}, "expected '}' .*for braces that stay"),
        ({"template": "{prompt!r:>3}"}, "alone, without"),
        ({"split_seed": -1}, "split_seed = -1"),
        ({"test_path": None}, "has no data"),
        ({"test_path": "nowhere.csv"}, "no such file or directory, and it is not a hub id"),
        ({"test_path": "notes.txt"}, "the suffix is '.txt'"),
    ],
)
def test_a_wrong_option_is_refused(options: dict[str, Any], message: str, here: Path) -> None:
    write(here / "sums.jsonl", SUMS)
    (here / "notes.txt").touch()
    with pytest.raises(ConfigError, match=message):
        DatasetTask(**{"test_path": "sums.jsonl", "verifier": "exact", **options})


def test_a_template_shows_columns_and_keeps_other_braces(here: Path) -> None:
    path = write(here / "one.jsonl", [{"a": 1, "b c": "{x}", "answer": "2"}])
    task = DatasetTask(test_path=path, verifier="number", template="\\frac{{{a}}}{{2}} {b c}")
    assert prompts(task) == ["\\frac{1}{2} {x}"]
    with pytest.raises(DataError, match=r"no field 'd' among 'a', 'b c', 'answer'; set prompt_field or template"):
        DatasetTask(test_path=path, verifier="number", template="{d}")


# --- tasks check ------------------------------------------------------------------------------------


def check(*arguments: str) -> int:
    return main(["tasks", "check", *arguments])


def test_a_sound_task_passes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(here / "sums.jsonl", [{"prompt": f"{row['prompt']} {'long ' * 30}", "answer": row["answer"]} for row in SUMS])
    options = "task.options={path='sums.jsonl', verifier='exact'}"
    assert check("dataset", "--set", options, "--set", "task.system=Be brief.", "--show", "3") == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= WIDTH
    assert out.count("[system]\n  | Be brief.\n") == 3 and "Only output the final answer!" in out
    assert re.search(r"ok +correct answers pass +60 of 60", out) and "FAILED" not in out
    (here / "mine.toml").write_text(
        "[task]\nname = 'dataset'\n[task.options]\npath = 'sums.jsonl'\nverifier = 'exact'\n"
    )
    assert check("mine.toml", "--json", "--limit", "4") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] and len(found["shown"]) == 10 and found["splits"] == dict.fromkeys(Split, 4)


def tried(capsys: pytest.CaptureFixture[str], *arguments: str, options: tuple[str, ...]) -> tuple[str, Any]:
    """Return what trying an answer prints, and the same as JSON."""
    given = [part for option in options for part in ("--task-option", option)]
    assert check("dataset", *given, *arguments) == 0
    text = capsys.readouterr().out
    assert check("dataset", *given, *arguments, "--json") == 0
    return text, json.loads(capsys.readouterr().out)


def test_an_answer_of_ones_own_is_tried(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(here / "two.jsonl", [{"prompt": "2 + 8?", "answer": "10"}, {"prompt": "1 + 1?", "answer": "2"}])
    options = ("test_path=two.jsonl", "verifier=number")
    text, found = tried(capsys, "--problem", "two.jsonl:1", "--answer", "2 + 8 = 10.", options=options)
    assert text == (
        "test two.jsonl:1\n  | 2 + 8?\nanswer\n  | 2 + 8 = 10.\nextracted\n  | 10\nreference\n  | 10\ncorrect\n"
    )
    assert (found["verdict"]["outcome"], found["reason"], found["problem"]["prompt"]) == ("correct", "", "2 + 8?")
    text, found = tried(capsys, "--problem", "two.jsonl:2", "--answer", "2 + 10 = 10", options=options)
    assert "incorrect: it states no single number that is written out\n" in text
    assert text.endswith("an answer that is accepted\n  | The answer is 2.\n")
    _, found = tried(capsys, "--problem", "two.jsonl:2", "--answer", "I do not know.", options=options)
    assert (found["verdict"]["outcome"], found["verdict"]["extracted"]) == ("no_answer", None)
    _, found = tried(capsys, "--problem", "two.jsonl:2", "--answer", "3", options=options)
    assert found["reason"] == "the extracted answer does not equal the reference"


def test_the_first_problem_that_is_printed_is_that_of_an_answer(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(here / "sums.jsonl", SUMS)
    assert check("dataset", "--task-option", "path=sums.jsonl", "--task-option", "verifier=exact", "--json") == 0
    first = json.loads(capsys.readouterr().out)["shown"][0]
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{first['reference']}\n"))
    assert check("dataset", "--task-option", "path=sums.jsonl", "--task-option", "verifier=exact", "--answer", "-") == 0
    assert capsys.readouterr().out.startswith(f"test {first['id']}\n")


def test_every_problem_that_a_run_trains_on_can_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    made = get_task("addition", {})
    last = made.problems(Split.TRAIN, seed=0, limit=20_000)[-1]
    assert last.id not in {problem.id for problem in made.problems(Split.TRAIN, seed=0)}, "the task gives fewer unasked"
    assert check("addition", "--problem", last.id, "--answer", last.reference) == 0
    assert f"train {last.id}" in capsys.readouterr().out
    assert check("addition", "--set", "task.train_problems=10000", "--problem", last.id, "--answer", "1") == 2


def test_an_answer_to_no_problem_is_rejected(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(here / "sums.jsonl", SUMS)
    options = ["--task-option", "path=sums.jsonl", "--task-option", "verifier=exact"]
    assert check("dataset", *options, "--answer", "7", "--problem", "none") == 2
    assert "has no problem with the id 'none'" in capsys.readouterr().err
    assert check("dataset", *options, "--problem", "none") == 2
    assert "--problem names the problem of --answer" in capsys.readouterr().err


def test_a_verifier_that_accepts_everything_is_found(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "dataset_lenient.py").write_text("def check(text, reference, row):\n    return True\n")
    write(here / "sums.jsonl", SUMS)
    options = ["path=sums.jsonl", "verifier=dataset_lenient:check", "trusted=true"]
    assert check("dataset", *(part for option in options for part in ("--task-option", option))) == 1
    out = capsys.readouterr().out
    assert re.search(r"FAILED +corrupted answers fail +0 of 60\n +sums.jsonl:\d+: '\d+' is\n? +correct", out)
    assert "... and 55 more" in out and re.search(r"ok +correct answers pass", out)


def test_rejected_references_failures_and_overlaps_are_found() -> None:
    class Overlapping(RowsTask):
        def problems(self, split: Split, *, seed: int, limit: int | None = None) -> Any:
            return super().problems(Split.TEST, seed=seed, limit=limit)

        def corrupt(self, problem: Any) -> str:
            return "raise"

    def verify(text: str, reference: str, row: Any) -> bool:
        return text == "7" if text != "raise" else bool(1 / 0)

    task = Overlapping(None, verify, test_rows=SUMS[:10], trusted=True)
    found = check_task(task, task.script)
    assert {result.claim: (result.passed, result.detail) for result in found.checks} == {
        "there are problems": (True, "30 tried"),
        "correct answers pass": (False, "3 of 30"),
        "corrupted answers fail": (False, "0 of 30"),
        "splits share no problem": (False, "20 shared"),
        "no problem occurs twice": (True, "0 repeated"),
    }
    assert "ZeroDivisionError" in check_text(found)


def test_a_task_without_problems_does_not_pass() -> None:
    class Empty(RowsTask):
        def problems(self, split: Split, *, seed: int, limit: int | None = None) -> Any:
            raise DataError("there is none. At all.")

    task = Empty(SUMS, lambda *_: True, trusted=True)
    found = check_task(task, task.script)
    assert not found.passed and found.splits == dict.fromkeys(Split, "there is none")
    assert "there are problems        0 tried" in check_text(found)


def test_a_models_template_and_tokens_are_used(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_model(0).save(here / "model")
    assert check("addition", "--model", "model", "--limit", "3", "--show", "1") == 0
    out = capsys.readouterr().out
    assert "<|user|>" in out and re.search(r"first prompt +16 +16 +16", out) and "lengths in tokens" in out


def test_the_list_needs_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", "list", "addition"]) == 0
    listed = capsys.readouterr().out
    assert main(["tasks", "addition"]) == 0
    assert capsys.readouterr().out == listed


# --- the worked example -----------------------------------------------------------------------------


def commands() -> Iterator[list[str]]:
    section = (ROOT / "docs/tasks.md").read_text().partition("## Any data set")[2].partition("\n## ")[0]
    blocks = re.findall(r"```sh\n(.*?)```", section, flags=re.DOTALL)
    for line in "".join(blocks).replace("\\\n", " ").splitlines():
        if line.strip():
            yield shlex.split(line)[1:]


def test_the_documented_example_gets_from_files_to_an_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("httpx")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "selfcorrect.tasks.verifier.default_workers", lambda processes=1: 1
    )  # each takes a second to start

    def answer(body: dict[str, Any]) -> Answer:
        """Solve what is asked about sodium, and everything about chance."""
        asked = body["messages"][0]["content"]
        return says("The answer is (C) Na." if "sodium" in asked else "So the answer is $311.0$.")

    with serving(answer) as server:
        found = [*commands()]
        assert [arguments[0] for arguments in found] == ["tasks", "tasks", "eval", "tasks", "eval"]
        for arguments in found:
            served = ["m" if argument == "MODEL" else argument for argument in arguments]
            extra = ["--base-url", server.url, "--json"] if arguments[0] == "eval" else []
            assert main([*served, *extra]) == 0, capsys.readouterr().err
    for place in ("competition", "science"):
        summary = json.loads((tmp_path / "evals" / place / "summary.json").read_text())
        assert summary["results"]["model"]["acc_t1"] == 0.1
    for name in ("competition.jsonl", "science.csv"):
        assert len((tmp_path / "examples" / name).read_text().splitlines()) - name.endswith("csv") == 10


def test_example_data_never_replaces_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["tasks", "examples", "mine", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == ["mine/competition.jsonl", "mine/science.csv"]
    (tmp_path / "mine/science.csv").write_text("my own")
    assert main(["tasks", "examples", "mine"]) == 2
    assert "mine exists and is not an empty directory" in capsys.readouterr().err
    assert (tmp_path / "mine/science.csv").read_text() == "my own"


def test_the_registered_name_makes_the_task(here: Path) -> None:
    write(here / "sums.jsonl", SUMS)
    assert isinstance(get_task("dataset", {"test_path": "sums.jsonl", "verifier": "number"}), DatasetTask)


@pytest.mark.parametrize("name", [name for name in VERIFIERS if name != "regex"])
def test_the_module_that_holds_a_verifier_does_not_change_the_version_of_tasks(name: str) -> None:
    verifier = make_verifier(name, {})
    assert _source_code(verifier) == f"selfcorrect.tasks.dataset.verifiers:{type(verifier).__name__}\n"
