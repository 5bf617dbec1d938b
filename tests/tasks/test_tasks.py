"""Test splits, reasoning-gym, a user's own problems, and the worked example of docs/tasks.md."""

from __future__ import annotations

import json
import pickle
import random
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfcorrect.errors import ConfigError, DataError, VerifierError
from selfcorrect.tasks.base import Task, get_task
from selfcorrect.tasks.corruption import corrupt_text
from selfcorrect.tasks.jsonl import ImportedFunction, JsonlTask
from selfcorrect.tasks.reasoning_gym import QUIRKS, ReasoningGymTask, _stream, extract
from selfcorrect.tasks.rows import Fields, RowsTask, refuse
from selfcorrect.tasks.splits import SHARES, normalise, split_of, take_split
from selfcorrect.tasks.verifier import Verifier
from selfcorrect.types import Outcome, Problem, Split, Verdict

RIGHT, WRONG, NO_ANSWER = Outcome.CORRECT, Outcome.INCORRECT, Outcome.NO_ANSWER
TIMED_OUT, FAILED = Outcome.TIMED_OUT, Outcome.VERIFIER_FAILED
ROWS = [{"prompt": f"What is {n} squared?", "answer": n * n, "level": n % 3} for n in range(200)]


def same(text: str, reference: str, row: Any) -> bool:
    return text.strip() == reference


# --- splits -----------------------------------------------------------------------------------------


@given(st.text())
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


@given(st.text(max_size=20))
def test_case_width_and_white_space_do_not_change_the_split(text: str) -> None:
    wide = "\n " + "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text) + "\t"
    assert split_of(wide) is split_of(text) is split_of(normalise(text))


def test_normalise_by_hand() -> None:
    assert normalise(" ２\u00a0+\n２ =  Ａ ") == "2 + 2 = a"
    assert normalise("Straße ﬁx") == "strasse fix"


def test_the_splits_of_known_texts_never_change() -> None:
    texts = ["000123+004567", "What is 1 + 2?", "a", "b", "c", "d", "e", "f", "", "é", "\ud800"]
    # Recorded, and computed without `split_of`: hash / 2**64 below 0.8, below 0.9, or above.
    others = {"c": Split.TEST, "\u00e9": Split.DEV}
    assert {t: split_of(t) for t in texts} == dict.fromkeys(texts, Split.TRAIN) | others


def test_the_shares_come_out() -> None:
    counted = Counter(split_of(f"problem {n}") for n in range(20_000))
    assert sum(SHARES.values()) == 100
    for split, share in SHARES.items():  # 5 standard deviations
        expected = 200 * share
        assert abs(counted[split] - expected) < 5 * (expected * (1 - share / 100)) ** 0.5


def numbered() -> Iterator[Problem]:
    for n in range(1000):
        yield Problem(str(n), f"problem {n % 100}", "")


def test_a_split_is_taken_in_order_without_repetition() -> None:
    expected = [f"problem {n}" for n in range(100) if split_of(f"problem {n}") is Split.DEV]
    assert [p.prompt for p in take_split(numbered(), Split.DEV, len(expected), name="n")] == expected
    with pytest.raises(DataError, match=rf"gave {len(expected)} distinct dev problems in 1,000 draws, but 50 were"):
        take_split(numbered(), Split.DEV, 50, name="n")
    with pytest.raises(DataError, match=r"in 7 draws"):
        take_split(numbered(), Split.DEV, 50, name="n", max_attempts=7)


def disjoint(task: Task, seeds: tuple[int, ...], limits: dict[Split, int]) -> None:
    texts = {
        split: {normalise(p.prompt) for seed in seeds for p in task.problems(split, seed=seed, limit=limits[split])}
        for split in Split
    }
    for split in Split:
        assert len(texts[split]) >= limits[split]
        assert all(texts[split].isdisjoint(texts[other]) for other in Split if other is not split)


FEW = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}


def drawn(variant: str, options: dict[str, Any], split: Split, seed: int, limit: int) -> list[Problem]:
    """Do in this process what `ReasoningGymTask.problems` does in a separate one, since importing takes seconds."""
    state = random.getstate()
    try:
        return take_split(_stream(variant, options, seed), split, limit, name=f"reasoning_gym:{variant}")
    finally:
        random.setstate(state)


@pytest.mark.pitfall(10)
def test_splits_of_a_generator_are_disjoint_over_all_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    # Few digits, so that two seeds draw many of the same problems.
    task = ReasoningGymTask("chain_sum", **FEW)
    monkeypatch.setattr(task, "problems", lambda split, *, seed, limit: drawn("chain_sum", FEW, split, seed, limit))
    disjoint(task, (0, 1), {Split.TRAIN: 800, Split.DEV: 150, Split.TEST: 150})


@pytest.mark.pitfall(10)
def test_splits_of_rows_are_disjoint_and_keep_every_row() -> None:
    twins = [{"prompt": f"  WHAT is {n}\tsquared?", "answer": n * n} for n in range(200)]  # the same when normalised
    task = RowsTask(ROWS + twins, same)
    disjoint(task, (0, 1), {Split.TRAIN: 100, Split.DEV: 10, Split.TEST: 10})
    assert sum(len(task.problems(split, seed=0)) for split in Split) == 400


@pytest.mark.pitfall(10)
def test_one_problem_in_two_files_is_refused_with_both_lines(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ROWS[:20])
    write(tmp_path / "test.jsonl", [ROWS[30], {"prompt": "what  is 7 SQUARED?", "answer": 49}])
    with pytest.raises(DataError, match=r"test\.jsonl:2: the same problem as train\.jsonl:8, but splits must be"):
        JsonlTask(tmp_path / "train.jsonl", "json:loads", test_path=tmp_path / "test.jsonl")


# --- reasoning-gym ----------------------------------------------------------------------------------

SAMPLE = ["chain_sum", "prime_factorization", "spell_backward", "time_intervals", "game_of_life_halting", "n_queens"]
SAMPLE += ["propositional_logic", "graph_color", "rotate_matrix", "complex_arithmetic", "simple_equations", "rush_hour"]
WITHOUT_REFERENCE = {"boxnet", "rush_hour"}


def all_generators() -> list[str]:
    from reasoning_gym.factory import DATASETS

    return sorted(DATASETS.keys() - {"composite"})


def check_references(variant: str, count: int) -> None:
    """Each reference passes, while its corruption and irrelevant text fail; one process, for speed."""
    task = ReasoningGymTask(variant)
    for problem in drawn(variant, {}, Split.TRAIN, 5, count):
        pickle.dumps(problem)
        if variant in WITHOUT_REFERENCE:
            assert problem.reference == ""
            assert task.verify(problem, "").outcome is NO_ANSWER
        else:
            for text in (problem.reference, f"Well.\n<answer>\n{problem.reference}\n</answer> Done."):
                assert task.verify(problem, text).outcome is RIGHT, (variant, problem.reference)
        for text in (task.corrupt(problem), "I do not know", "{}"):
            assert task.verify(problem, text).outcome is WRONG, (variant, problem.reference, text)


@pytest.mark.parametrize("variant", SAMPLE)
def test_a_generators_own_answers_pass_and_corrupted_ones_fail(variant: str) -> None:
    check_references(variant, 4)


@pytest.mark.slow
def test_every_generators_own_answers_pass_and_corrupted_ones_fail() -> None:
    generators = all_generators()
    assert len(generators) >= 105
    assert QUIRKS.keys() <= set(generators)
    for variant in generators:
        check_references(variant, 2)


@pytest.mark.slow
def test_reasoning_problems_are_the_same_in_every_process_and_limit_takes_the_first() -> None:
    task = ReasoningGymTask("ransom_note")  # by default, it differs from process to process
    problems = task.problems(Split.TEST, seed=1, limit=12)
    assert task.problems(Split.TEST, seed=1, limit=4) == problems[:4]
    first = drawn("list_functions", {}, Split.TEST, 1, 4)  # this one from call to call
    random.random()
    assert drawn("list_functions", {}, Split.TEST, 1, 4) == first
    assert drawn("list_functions", {}, Split.TEST, 2, 4) != first


def test_reasoning_answers_in_worker_processes() -> None:
    task = ReasoningGymTask("chain_sum", max_terms=3)
    problems = drawn("chain_sum", {"max_terms": 3}, Split.TRAIN, 0, 20)
    with Verifier(task, workers=1) as verifier:
        verdicts = verifier.verify([(p, f"<answer>{p.reference}</answer>") for p in problems])
    assert verdicts == [Verdict(RIGHT, p.reference) for p in problems]


def test_a_generator_with_too_few_problems_says_so() -> None:
    few = {**FEW, "max_digits": 1}
    with pytest.raises(
        DataError, match=r"'reasoning_gym:chain_sum' gave \d+ distinct test problems .* 300 were requested"
    ):
        drawn("chain_sum", few, Split.TEST, 0, 300)


def test_a_generator_that_fails_is_named() -> None:
    task = ReasoningGymTask("chain_sum")
    task._options = {"no_such": 1}
    with pytest.raises(
        DataError, match=r"generator reasoning_gym:chain_sum with options .*no_such.* failed: TypeError"
    ):
        task.problems(Split.TEST, seed=0)


@pytest.mark.parametrize(
    ("text", "reference", "found"),
    [
        ("4", "4", "4"),
        ("2 + 2 =\n 4 \n\n", "4", "4"),
        ("1 0\n0 1\n", "1 0\n0 1", "1 0\n0 1"),
        ("<answer> 4 </answer> no, <answer>5</answer>.", "4", "5"),
        ("The form is <answer> like <answer>4</answer>", "4", "4"),
        ("<answer>\n1 0\n0 1\n</answer>", "4", "1 0\n0 1"),
        ("<answer>4", "4", None),
        ("<answer> </answer>", "4", None),
        (" \n", "4", None),
        # as small models write them, without the tags
        ("8 * 5 = 40", "40", "40"),
        ("The letter l appears 1 time in the text.", "1", "1"),
        ("The answer is 40 legs.\n\nTo check: 80 / 2 = 41.", "40", "40"),
        ("**1,234**", "1234", "1234"),
        ("<answer>x = −31.</answer>", "-31", "-31"),
        ("The answer is No.", "No", "No"),
        ("So: **Answer:** No", "No", "No"),
        ("The board is\nThe answer is 7", "1 0\n0 1", "The board is\nThe answer is 7"),
        # not one number: as written
        ("52*c + 31 =", "31", "52*c + 31 ="),
        ("8 * 5 = 41", "41", "8 * 5 = 41"),
        ("x-5", "5", "x-5"),
        ("The total is 12 or 13.", "13", "The total is 12 or 13."),
        ("about 3.50 dollars", "3.50", "3.50"),
        ("<answer>8 * 5</answer>", "5", "8 * 5"),
        ("It is 10:30.", "30", "It is 10:30."),
        ("<answer>1/2</answer>", "2", "1/2"),
        ("x^2 or x-2", "2", "x^2 or x-2"),
        ("1 + 1 = 2", "2 legs", "1 + 1 = 2"),
    ],
)
def test_the_answer_is_found_by_the_documented_rule(text: str, reference: str, found: str | None) -> None:
    assert extract(text, reference) == found


def quirk(variant: str, reference: str, text: str, metadata: dict[str, Any]) -> Verdict:
    task = ReasoningGymTask(variant)
    return task.verify(Problem("p", "", reference, data={"answer": reference, "metadata": metadata}), text)


def test_upstream_verifiers_that_accept_or_raise_too_much_are_put_right() -> None:
    assert quirk("complex_arithmetic", "1.0 + 2.0i", "nan", {"result": (1.0, 2.0)}).outcome is WRONG
    assert quirk("complex_arithmetic", "1.0 + 2.0i", "1.0 + 2.0i", {"result": (1.0, 2.0)}).outcome is RIGHT
    assert quirk("game_of_life_halting", "True", "False", {}).outcome is WRONG
    assert quirk("game_of_life_halting", "True", "true", {}).outcome is RIGHT
    parsed = quirk("prime_factorization", "2 × 3", "two and three", {})
    assert (parsed.outcome, parsed.extracted) == (WRONG, "two and three")
    assert parsed.detail.startswith("not in the expected form (invalid literal")
    assert quirk("time_intervals", "29 days", "30 days", {"task_type": "date"}) == Verdict(
        WRONG, "30 days", "score 0.99"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variant": "chain_sun"}, "no generator 'chain_sun'.*Did you mean 'chain_sum'"),
        ({}, "no generator ''.*reasoning_gym:chain_sum"),
        ({"variant": "composite"}, "mixes other generators"),
        ({"variant": "chain_sum", "max_term": 3}, "rejects the options .*max_term.* It takes min_terms, max_terms"),
        ({"variant": "chain_sum", "min_terms": 9, "max_terms": 2}, "rejects the options"),
        ({"variant": "chain_sum", "seed": 3}, "this package sets them"),
        ({"variant": "chain_sum", "threshold": 0}, "threshold = 0"),
        ({"variant": "chain_sum", "size": 0}, "size = 0"),
    ],
)
def test_a_wrong_reasoning_setting_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ReasoningGymTask(**arguments)


def test_without_reasoning_gym_the_fix_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    with pytest.raises(ConfigError, match=re.escape('pip install "selfcorrect[reasoning]"')):
        ReasoningGymTask("chain_sum")


def test_the_version_of_a_reasoning_task_follows_its_settings() -> None:
    versions = {ReasoningGymTask("chain_sum", **o).version for o in ({}, {"max_terms": 9}, {"threshold": 0.9})}
    assert len(versions) == 3
    assert all("reasoning-gym-0." in version for version in versions)


# --- rows and files ---------------------------------------------------------------------------------


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Change to a directory with problems and a verifier; forget its modules afterwards."""
    monkeypatch.chdir(tmp_path)
    before, path = set(sys.modules), list(sys.path)
    write(tmp_path / "problems.jsonl", ROWS)
    (tmp_path / "my_checks.py").write_text(
        "def check(text, reference, row):\n    import my_helper\n    return my_helper.same(text, reference)\n"
    )
    (tmp_path / "my_helper.py").write_text("def same(a, b):\n    return a == b\n")
    yield tmp_path
    assert sys.path == path
    for name in set(sys.modules) - before:
        if name.startswith("my_"):
            del sys.modules[name]


def test_a_jsonl_task_with_a_verifier_of_the_current_directory(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = JsonlTask("problems.jsonl", "my_checks:check", difficulty_field="level")
    assert isinstance(task, Task)
    assert task.name == "problems"
    monkeypatch.chdir("/")  # the workers look where the task was made
    problems = task.problems(Split.TEST, seed=0)
    items = [(p, p.reference) for p in problems] + [(p, task.corrupt(p)) for p in problems] + [(problems[0], " ")]
    with Verifier(task, workers=1) as verifier:
        verdicts = verifier.verify(items)
        assert verifier.counts == {RIGHT: len(problems), WRONG: len(problems), NO_ANSWER: 1}
    assert verdicts[0] == Verdict(RIGHT, problems[0].reference)
    assert problems[0].difficulty in {"0", "1", "2"}
    assert {p.id for p in problems} <= {f"problems.jsonl:{n}" for n in range(1, 201)}
    assert task.verify(problems[0], problems[0].reference).correct  # here, too, and the import path stays as it was


def test_lambdas_and_datasets_work_in_memory() -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list([{"question": "Say yes", "gold": "yes", "key": "k1"}])
    task = RowsTask(
        None,
        lambda text, reference, row: text == reference and row["key"] == "k1",
        test_rows=rows,
        fields=Fields("question", "gold", "key"),
    )
    [problem] = task.problems(Split.TEST, seed=0)
    assert (problem.id, problem.prompt, problem.reference) == ("k1", "Say yes", "yes")
    with Verifier(task, workers=1) as verifier:
        assert [v.outcome for v in verifier.verify([(problem, "yes"), (problem, "no")])] == [RIGHT, WRONG]


def test_splits_with_rows_of_their_own_leave_the_rest_to_be_shared() -> None:
    by_hash = {split: [r["prompt"] for r in ROWS[50:] if split_of(r["prompt"]) is split] for split in Split}

    def prompts(task: RowsTask, split: Split) -> set[str]:
        return {p.prompt for p in task.problems(split, seed=3)}

    task = RowsTask(ROWS[50:], same, test_rows=ROWS[:50])
    assert prompts(task, Split.TEST) == {r["prompt"] for r in ROWS[:50]}
    assert prompts(task, Split.DEV) == set(by_hash[Split.DEV])
    assert prompts(task, Split.TRAIN) == {*by_hash[Split.TRAIN], *by_hash[Split.TEST]}
    task = RowsTask(ROWS[50:], same, test_rows=ROWS[:25], dev_rows=ROWS[25:50])
    assert prompts(task, Split.TRAIN) == {r["prompt"] for r in ROWS[50:]}
    with pytest.raises(DataError, match=r"has no train problems \(0 train, 0 dev, 50 test\)"):
        RowsTask(None, same, test_rows=ROWS[:50]).problems(Split.TRAIN, seed=0)


def test_the_order_is_a_function_of_the_seed_and_limit_takes_the_first() -> None:
    task = RowsTask(ROWS, same)
    ordered = task.problems(Split.TRAIN, seed=0)
    assert task.problems(Split.TRAIN, seed=0, limit=5) == ordered[:5]
    assert task.problems(Split.TRAIN, seed=1) != ordered
    assert {p.id for p in task.problems(Split.TRAIN, seed=1)} == {p.id for p in ordered}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "x", "answer": 1', r":2: not JSON: Expecting ',' delimiter \(column 28\)"),
        ("[1, 2]", ":2: a line must be a JSON object, such as {...}, not list"),
        ('{"question": "x", "answer": 1}', ":2: no field 'prompt' among 'question', 'answer'; set prompt_field"),
        ('{"prompt": "x"}', ":2: no field 'answer' among 'prompt'; set reference_field"),
        ('{"prompt": 3, "answer": 1}', ":2: field 'prompt' = 3 is int, not text"),
        ('{"prompt": "x", "answer": true}', ":2: field 'answer' = True is bool, not text or a number"),
        ('{"prompt": "x", "answer": ["1"]}', r":2: field 'answer' = \['1'\] is list, not text or a number"),
        ('{"prompt": " \\n", "answer": 1}', ":2: field 'prompt' is empty"),
        ('{"prompt": "What is 0 squared?", "answer": 0}', r":2: the same problem as problems\.jsonl:1; remove one"),
        ("1" * 5000, ":2: not readable as JSON: Exceeds the limit"),
    ],
)
def test_a_malformed_line_is_refused_with_its_number(here: Path, line: str, message: str) -> None:
    write(here / "problems.jsonl", [ROWS[0], line, "", ROWS[1]])
    with pytest.raises(DataError, match=rf"task 'problems' have 1 error\(s\).*\n  problems\.jsonl{message}"):
        JsonlTask("problems.jsonl", "my_checks:check")


def test_bytes_that_are_no_text_are_refused_and_a_byte_order_mark_is_not(here: Path) -> None:
    (here / "problems.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "x", "answer": 1}\n{"prompt": "\xff"}')
    with pytest.raises(DataError, match=r"problems\.jsonl:2: not UTF-8 \(byte 13 of the line\)"):
        JsonlTask("problems.jsonl", "my_checks:check")


def test_errors_are_collected_up_to_a_limit(here: Path) -> None:
    write(here / "problems.jsonl", ["x" * n + "{" for n in range(30)])
    write(here / "alike.jsonl", ['{"prompt": 1, "answer": 1}'] * 30 + ['{"prompt": "?", "answer": 1}'])
    with pytest.raises(DataError) as caught:
        JsonlTask("alike.jsonl", "my_checks:check")
    assert str(caught.value).endswith("(also alike.jsonl:2, alike.jsonl:3, alike.jsonl:4 and 26 more)")
    with pytest.raises(DataError, match=r"30 error\(s\)"):
        JsonlTask("problems.jsonl", "my_checks:check")
    causes = [f"place:{n}: cause {n}" for n in range(30)]
    with pytest.raises(DataError) as caught:
        refuse("t", causes)
    lines = str(caught.value).splitlines()
    assert len(lines) == 22
    assert lines[20] == "  place:19: cause 19"
    assert lines[21] == "  ... and 10 more"


def test_repeated_ids_are_refused() -> None:
    with pytest.raises(DataError, match=r"rows\[3\]: id '0' is also the id of rows\[0\]"):
        RowsTask(ROWS[:4], same, fields=Fields(id="level"))


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_file_is_refused(here: Path, content: str) -> None:
    (here / "problems.jsonl").write_text(content)
    with pytest.raises(DataError, match=r"problems\.jsonl: there is no row"):
        JsonlTask("problems.jsonl", "my_checks:check")


def test_a_missing_file_and_no_file_at_all_are_refused(here: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read the problems in nowhere\.jsonl: No such file"):
        JsonlTask("nowhere.jsonl", "my_checks:check")
    with pytest.raises(ConfigError, match=r"has no file: set its option path"):
        JsonlTask(verifier="my_checks:check")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "name a function as 'module:function'"),
        ("my_checks", "name a function as 'module:function'"),
        ("my_chekcs:check", "cannot be imported .ModuleNotFoundError: No module named 'my_chekcs'"),
        ("my_checks:chekc", "cannot be imported .AttributeError: .*'chekc'"),
        ("my_checks:__name__", "is str, not a function"),
    ],
)
def test_a_wrong_verifier_is_refused(here: Path, spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        JsonlTask("problems.jsonl", spec)


def test_an_imported_function_is_imported_again_from_its_pickle(here: Path) -> None:
    function = ImportedFunction("my_checks:check", str(here))
    assert pickle.loads(pickle.dumps(function))("a", "a", {}) is True


@pytest.mark.pitfall(20)
def test_a_verifier_that_forgets_to_return_fails_openly() -> None:
    task = RowsTask(None, lambda text, reference, row: None, test_rows=ROWS[:20], trusted=True)
    items = [(p, "1") for p in task.problems(Split.TEST, seed=0)]
    with pytest.raises(VerifierError, match=r"20 of 20 .* TypeError: the verifier returned None; it must return True"):
        Verifier(task).verify(items)


def test_the_version_follows_the_rows_and_the_verifier(here: Path) -> None:
    versions = [JsonlTask("problems.jsonl", "my_checks:check").version for _ in range(2)]
    write(here / "problems.jsonl", [*ROWS, {"prompt": "What is 3 cubed?", "answer": 27}])
    versions.append(JsonlTask("problems.jsonl", "my_checks:check").version)
    versions.append(JsonlTask("problems.jsonl", "my_helper:same").version)
    assert versions[0] == versions[1]
    assert len(set(versions)) == 3


def test_corrupted_text_keeps_its_layout() -> None:
    assert corrupt_text("Zz 09\n-1.5") == "Aa 10\n-2.6"
    assert corrupt_text("") == "x"


# --- the worked example -----------------------------------------------------------------------------

PAGE = Path(__file__).parents[2] / "docs" / "tasks.md"


def test_the_worked_example_of_the_documentation_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = PAGE.read_text().partition("## Your own task: a complete example")[2].partition("\n### ")[0]
    blocks = re.findall(r"```(\w+)\n(.*?)```", section, flags=re.DOTALL)
    assert [kind for kind, _ in blocks] == ["python", "python", "toml", "sh"]
    assert sum(len(text.splitlines()) for _, text in blocks) <= 40
    make, verifier, config, commands = (text for _, text in blocks)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_verifier.py").write_text(verifier)
    subprocess.run([sys.executable, "-c", make], check=True)

    options = tomllib.loads(config)["task"]["options"]
    assert dict(pair.split("=") for pair in re.findall(r"--task-option (\S+)", commands)) == options
    task = get_task("jsonl", options)
    problems = task.problems(Split.TEST, seed=0)
    with Verifier(task, workers=1) as checked:
        verdicts = checked.verify([(p, f"It is {p.reference}.") for p in problems] + [(problems[0], "No idea.")])
        assert checked.counts == {RIGHT: len(problems), NO_ANSWER: 1}
        assert verdicts[0].extracted == problems[0].reference
        assert all(not v.correct for v in checked.verify([(p, task.corrupt(p)) for p in problems]))
    del sys.modules["my_verifier"]


@pytest.mark.filterwarnings("ignore:sandbox")
@pytest.mark.parametrize(
    ("name", "options", "version"),
    [
        ("addition", {}, "2"),
        ("arithmetic", {}, "2"),
        ("worked_sums", {}, "2"),
        ("worked_steps", {}, "1"),
        ("reasoning_gym:chain_sum", {}, "3+reasoning-gym-"),
        ("micro_code", {"sandbox": "process"}, "3+"),
        ("jsonl", {"test_path": "problems.jsonl", "verifier": "my_checks:check"}, "2+"),
        ("dataset", {"test_path": "problems.jsonl", "verifier": "exact"}, "exact-1-3-"),
        ("dataset", {"test_path": "problems.jsonl", "verifier": "number"}, "number-3-3-"),
        ("dataset", {"test_path": "problems.jsonl", "verifier": "math"}, "math-3.1+math-verify-"),
        ("dataset", {"test_path": "problems.jsonl", "verifier": "code", "sandbox": "process"}, "code-3+"),
    ],
)
def test_results_under_earlier_rules_have_another_version(
    name: str, options: dict[str, Any], version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers after reasoning, and programs, were read otherwise before: `compare` must not mix the two."""
    answer = "7" if options.get("verifier") in ("number", "math") else "def f(x):\n    return x"
    row = {"prompt": "?", "answer": answer, "tests": "assert f(1) == 1"}
    (tmp_path / "problems.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "my_checks.py").write_text("def check(text, reference, row):\n    return text == reference\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_checks", raising=False)
    assert get_task(name, options).version.startswith(version)
