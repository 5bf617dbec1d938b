"""Finished evaluations: given new verdicts, compared, and exported."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from selfcorrect import evaluate, train
from selfcorrect.__main__ import main
from selfcorrect.errors import DataError, RunDirectoryError
from selfcorrect.evaluation.compare import Difference, compare_records
from selfcorrect.evaluation.evaluation import evaluation_of
from selfcorrect.evaluation.intervals import tango_interval
from selfcorrect.evaluation.rescore import rescore
from selfcorrect.storage.episode_log import StoredEpisode, read_episodes
from selfcorrect.storage.evaluation_dir import EvaluationDirectory, read_identity
from selfcorrect.storage.files import json_line
from selfcorrect.tasks.rows import RowsTask
from selfcorrect.types import Check, Outcome, Part, Role, Split, Verdict

ROWS = [{"prompt": f"{i}+{i}", "answer": str(2 * i)} for i in range(12)]
CHECK = "def check(text, reference, row):\n    return text == reference\n"


def record(problem: str, *rights: int, sample: int = 0) -> dict[str, Any]:
    """A stored episode whose attempts are right or not."""
    turn = {"text": "7", "tokens": [1, 2], "extracted": "7", "stop": "end", "detail": "", "online": True}
    turns = [{**turn, "verdict": "right" if right else "wrong"} for right in rights]
    episode = {"schema": 1, "stage": "eval", "step": 0, "problem_id": problem, "sample": sample, "prompt": problem}
    return {**episode, "reference": "8", "difficulty": None, "turns": turns}


def episode(problem: str, *rights: int, sample: int = 0) -> StoredEpisode:
    return StoredEpisode.from_json(record(problem, *rights, sample=sample))


def delta_of(a: list[StoredEpisode], b: list[StoredEpisode]) -> Difference:
    (delta,) = (d for d in compare_records(a, b, seed=0)[2] if d.figure == "delta")
    return delta


def table(cc: int, ic: int, ci: int, ii: int) -> list[tuple[int, int]]:
    return [(1, 1)] * cc + [(0, 1)] * ic + [(1, 0)] * ci + [(0, 0)] * ii


# --- evaluations of older versions ---------------------------------------------------------------------


OLDER = {
    "first": "{prompt}",
    "turns": 2,
    "system": None,
    "revise": [{"text": "Any error?", "attempt": False}, {"text": "Again.", "attempt": True}],
}
PLAN = {"seed": 0, "turns": 2, "max_tokens": 8, "temperature": 0.0, "samples": 1, "sampled_temperature": None}
IDENTITY = {
    "schema": 1,
    "task": {"name": "problems", "version": "old"},
    "problems": {"split": "test", "data_seed": 0, "count": 12, "digest": "d"},
    "model": {"digest": "m", "source": "some/model"},
    "plan": {**PLAN, "controls": False},
}
ROLES = [{"text": "Any error?", "role": "feedback"}, {"text": "Again.", "role": "attempt"}]


def test_an_evaluation_that_names_no_roles_is_the_same_evaluation(tmp_path: Path) -> None:
    base = {**IDENTITY, "context_mode": "tokens"}
    known = {"script": {**OLDER, "revise": ROLES}}
    for name, script in (("older", OLDER), ("newer", known["script"])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "eval.json").write_text(json.dumps({**base, "script": script}))
        assert read_identity(tmp_path / name)["script"] == known["script"]
        EvaluationDirectory(tmp_path / name).check(known)
    other = {"script": {**OLDER, "revise": ROLES[::-1]}}
    with pytest.raises(RunDirectoryError, match=r"script\.revise"):
        EvaluationDirectory(tmp_path / "older").check(other)


OTHERS = {**IDENTITY["problems"], "digest": "e"}  # type: ignore[dict-item]


# --- compare ----------------------------------------------------------------------------------------


def test_accuracies_of_one_sample_are_tested_by_mcnemar() -> None:
    # t1 of A and B: 20 right in both, 9 right in B only, 2 in A only, 9 in neither.
    pairs = table(20, 9, 2, 9)
    a, b = ([episode(f"p{i}", pair[side]) for i, pair in enumerate(pairs)] for side in (0, 1))
    n, samples, (t1,) = compare_records(a, reversed(b), seed=0)
    assert (n, samples, t1.figure) == (40, (1, 1), "Acc@t1")
    assert (t1.a, t1.b, t1.difference) == (22 / 40, 29 / 40, 7 / 40)
    assert t1.p == pytest.approx(binomtest(2, 11).pvalue, rel=1e-12)  # the exact test is a sign test on the 11
    assert t1.ci95 == tango_interval(9, 2, 40)


def test_delta_is_paired_by_problem() -> None:
    # d = delta_B - delta_A of every problem: +1 in 30, -1 in 10, 0 in 60.
    kinds = [((0, 0), (0, 1))] * 30 + [((0, 1), (0, 0))] * 10 + [((1, 1), (0, 0))] * 60
    a, b = ([episode(f"p{i}", *kind[side]) for i, kind in enumerate(kinds)] for side in (0, 1))
    delta = delta_of(a, b)
    assert (delta.figure, delta.a, delta.b, delta.difference) == ("delta", 0.1, 0.3, pytest.approx(0.2))
    # Normal theory: the deviation of d is sqrt(0.4 - 0.2^2) = 0.6, its mean's 0.06.
    assert delta.ci95 == (pytest.approx(0.2 - 1.96 * 0.06, abs=0.02), pytest.approx(0.2 + 1.96 * 0.06, abs=0.02))
    assert delta.p == pytest.approx(binomtest(10, 40).pvalue, abs=0.003)  # sign flips of 40 ones
    assert delta_of(a, b) == delta


def test_samples_of_one_problem_are_no_independent_evidence() -> None:
    rng = np.random.default_rng(0)
    rights = rng.integers(0, 2, (2, 20))
    one = [[episode(f"p{i}", int(rights[side][i])) for i in range(20)] for side in (0, 1)]
    many = [[replace(r, sample=s) for r in side for s in range(50)] for side in one]
    n, samples, (t1,) = compare_records(*many, seed=0)
    assert (n, samples) == (20, (50, 50))
    single = compare_records(*one, seed=0)[2][0]
    assert t1.difference == pytest.approx(single.difference)
    width = [d.ci95[1] - d.ci95[0] for d in (t1, single)]
    assert width[0] == pytest.approx(width[1], rel=0.25), "fifty copies must not narrow the interval"


def test_no_difference_at_all_is_not_a_point() -> None:
    same = [episode(f"p{i}", 0, 1) for i in range(50)]
    delta = delta_of(same, same)
    assert (delta.difference, delta.p) == (0, 1)
    assert delta.ci95[1] == -delta.ci95[0] == pytest.approx(2 * 1.96**2 / (50 + 1.96**2), rel=1e-3)


def test_other_problems_or_ragged_samples_are_refused() -> None:
    a, b = [episode("p", 1)], [episode("q", 1)]
    with pytest.raises(DataError, match=r"only A has \['p'\], only B \['q'\]"):
        compare_records(a, b, seed=0)
    with pytest.raises(DataError, match="B has 2 shapes of episodes"):
        compare_records(
            [episode("p", 1), episode("q", 1)], [episode("p", 1), episode("p", 1, sample=1), episode("q", 1)], seed=0
        )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the problems and the verifier of a `jsonl` task."""
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "exact.py").write_text(CHECK)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def stored(path: Path, texts: dict[int, tuple[str, ...]], *, finished: bool = True, **identity: Any) -> Path:
    """An evaluation as `selfcorrect eval` leaves it; ``texts`` are what was said to some of the problems."""
    options = {"test_path": "problems.jsonl", "verifier": "exact:check", "trusted": True}
    records = []
    for i in range(12):
        said = texts.get(i, (str(2 * i), str(2 * i)))
        made = record(f"problems.jsonl:{i + 1}", *(text == str(2 * i) for text in said))
        turns = [{**turn, "text": text, "extracted": text} for turn, text in zip(made["turns"], said, strict=True)]
        records.append({**made, "prompt": f"{i}+{i}", "reference": str(2 * i), "turns": turns})
    known = {
        **IDENTITY,
        "script": {"first": "{prompt}", "revise": "Again.", "system": "Be brief.", "turns": 2},
        "task_source": {"name": "jsonl", "options": options},
        **identity,
    }
    (path / "episodes").mkdir(parents=True)
    (path / "episodes" / "eval-attempts.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (path / "eval.json").write_text(json.dumps(known))
    if finished:
        results = evaluation_of({Part.ATTEMPTS: [*map(StoredEpisode.from_json, records)]}, seed=0).to_json()
        (path / "summary.json").write_text(json.dumps({"results": {"model": results}}))
    return path


def test_compare_prints_figures_and_settings_that_differ(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored(folder / "a", dict.fromkeys(range(6), ("9", "9")))
    stored(folder / "b", {0: ("9", "9")}, plan={**PLAN, "controls": False, "max_tokens": 64})
    assert main(["compare", "a", "b"]) == 0
    out = capsys.readouterr().out
    assert "12 problems, paired" in out
    assert out.splitlines()[4].split()[:4] == ["Acc@t1", "50.0", "91.7", "+41.7"]
    assert "differs: plan.max_tokens: 8 in A, 64 in B" in out
    assert "model" not in out
    assert main(["compare", "a", "b", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["differences"][0]["p"] == pytest.approx(2 * 0.5**5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"task": {"name": "other", "version": "1"}, "problems": OTHERS},
            "because more than the model differs:\n  - task.name: 'problems' in a, 'other' in b\nEvaluate",
        ),
        ({"task": {"name": "problems", "version": "new"}}, "task.version: 'old' in a, 'new' in b"),
        ({"problems": OTHERS}, "problems.digest: 'd' in a, 'e' in b"),
        (
            {"problems": {"split": "test", "data_seed": 5, "count": 12, "digest": "e"}},
            "problems.digest: 'd' in a, 'e' in b\n  - problems.data_seed: 0 in a, 5 in b\nEvaluate",
        ),
        ({"context_mode": "messages"}, "context_mode: 'tokens' in a, 'messages' in b"),
        ({"finished": False}, "the evaluation in b is not finished"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    changes: dict[str, Any], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored(folder / "a", {})
    stored(folder / "b", {}, **changes)
    assert main(["compare", "a", "b"]) == 2
    assert message in capsys.readouterr().err


def test_compare_needs_evaluations(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "a", "b"]) == 2
    assert "a holds no evaluation" in capsys.readouterr().err
    stored(folder / "a", {})
    assert main(["compare", "a", "a", "--part", "sampled"]) == 2
    assert "a has no episodes of part 'sampled'; so far it has eval-attempts." in capsys.readouterr().err


def test_the_final_evaluations_of_runs_are_compared(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = {"steps": 1, "reward_weights": [1, 1], "kl_coefs": [{}, {}]}
    settings = {
        "task": {"name": "addition", "train_problems": 8, "dev_problems": 2},
        "model": {"source": str(model_folder), "device": "cpu"},
        "rollout": {"batch_size": 4, "group_size": 2, "max_tokens": 4},
        "eval": {"problems": 6, "controls": False, "dev_every": 0},
        "log": {"trackers": []},
    }
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1):
        train({**settings, "seed": seed, "stages": {"s": stage}}, f"run-{seed}")
    evaluate("run-1", "addition", limit=6, out="again", device="cpu")
    assert main(["compare", "run-0", "run-1:base"]) == 0
    out = capsys.readouterr().out
    assert "A = run-0\nB = run-1:base\n6 problems, paired." in out
    assert "differs: plan.seed: 0 in A, 1 in B" in out and "None" not in out
    assert main(["compare", "run-1", "again", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert all(d["difference"] == 0 for d in found["differences"]), "the same model, greedily, on the same problems"
    assert main(["compare", "run-0", "run-1", "--part", "sampled"]) == 0
    assert main(["compare", "run-0:z", "run-1"]) == 2
    assert "run-0 has no stage 'z'; there are base, s." in capsys.readouterr().err
    train({**settings, "task": {**settings["task"], "data_seed": 9}, "stages": {}}, "other")
    capsys.readouterr()
    assert main(["compare", "run-0", "other"]) == 2
    assert "problems.digest" in capsys.readouterr().err
    (tmp_path / "run-0/summary.json").unlink()
    assert main(["compare", "run-0", "run-1"]) == 2
    assert "not finished: selfcorrect train --resume run-0" in capsys.readouterr().err


def test_h_and_m1_are_those_of_single_turn_training_bounds_against_the_base_and_else_left_out(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "task": {"name": "addition", "train_problems": 8, "dev_problems": 2},
        "model": {"source": str(model_folder), "device": "cpu"},
        "rollout": {"batch_size": 4, "group_size": 2, "max_tokens": 4},
        "eval": {"problems": 6, "controls": False, "dev_every": 0, "sampled": False, "turns": 2},
        "log": {"trackers": []},
    }
    monkeypatch.chdir(tmp_path)
    for name, weights in (("single", [1, 0]), ("both", [1, 1])):
        stage = {"steps": 1, "reward_weights": weights, "kl_coefs": [{}, {}]}
        train({**settings, "stages": {"s": stage}}, name)
    drafts = {"steps": 1, "method": "self_verification", "reward_weights": [1], "kl_coefs": [{}]}
    train({**settings, "stages": {"s": drafts}}, "verifying")
    for name, model in (("base", str(model_folder)), ("of-single", "single"), ("of-both", "both")):
        evaluate(model, "addition", limit=6, max_tokens=4, out=name, device="cpu")
    evaluate("both", "addition", limit=6, max_tokens=4, turns=1, out="one", device="cpu")
    evaluate("both", "addition", limit=6, max_tokens=4, drafts="base", out="pool", device="cpu")
    capsys.readouterr()

    def compared(a: str, b: str) -> tuple[str, dict[str, Any]]:
        assert main(["compare", a, b]) == 0
        text = capsys.readouterr().out
        assert main(["compare", a, b, "--json"]) == 0
        return text, json.loads(capsys.readouterr().out)

    for a, b in (("single", "both"), ("of-single", "of-both"), ("of-single", "both")):
        text, found = compared(a, b)
        assert "A is single-turn training: H is A's first" in text and "If A" not in text
        difference = {d["figure"]: d["difference"] for d in found["differences"]}
        delta = next(d["b"] for d in found["differences"] if d["figure"] == "delta")
        assert difference["H"] + difference["M1"] == pytest.approx(delta)
    for a, b in (("both:base", "both"), ("base", "both"), ("base", "of-both"), ("base", "of-single")):
        text, found = compared(a, b)
        assert found["merit"]["reference"] == "the base"
        rows = [line.split()[:2] for line in text.splitlines()]
        assert ["H", ">="] in rows and ["M1", "<="] in rows and "so H is at least, and M1 at most" in text
    for a, b, why in (
        ("both", "single", "No H and M1: A was trained on more than its first attempts"),
        ("verifying", "both", "No H and M1: A was trained on more than its first attempts"),
        ("both", "base", "Swap A and B for the base as a reference."),
        ("single", "one", "No H and M1: B has no second attempts."),
        ("pool", "pool", "No H and M1: the first attempts are drafts of a shared pool"),
    ):
        text, found = compared(a, b)
        assert why in text and not {"H", "M1"} & {d["figure"] for d in found["differences"]}
    text, found = compared("base", "base")
    assert found["merit"]["reference"] == "unknown" and "If A is single-turn training: H" in text


# --- rescore ----------------------------------------------------------------------------------------


def test_rescore_takes_the_verifier_as_it_is_now(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = stored(folder / "a", {0: ("0.0", "0"), 1: ("3", "2.0"), 2: ("5", "5")})
    before = {file: file.read_bytes() for file in path.rglob("*.json*")}
    (folder / "exact.py").write_text(CHECK.replace("text == reference", "float(text) == float(reference)"))
    assert main(["rescore", "a", "--dry-run", "--allow-code", "exact:check"]) == 0
    out = capsys.readouterr().out
    assert "24 verdicts recomputed; 2 changed: 2 incorrect -> correct (nothing was written)" in out
    assert {file: file.read_bytes() for file in path.rglob("*.json*")} == before
    assert main(["rescore", "a", "--json", "--allow-code", "exact:check"]) == 0
    printed = json.loads(capsys.readouterr().out)
    summary = json.loads((path / "summary.json").read_text())
    assert summary["results"] == printed["results"]
    # Of 12 problems 2 and 1 are wrong at t1 and t2 now.
    assert (summary["results"]["model"]["acc_t1"], summary["results"]["model"]["acc_t2"]) == (10 / 12, 11 / 12)
    identity = json.loads((path / "eval.json").read_text())
    assert identity["task"]["version"] != "old"
    assert summary["provenance"]["task"] == identity["task"]
    assert main(["rescore", "a", "--allow-code", "exact:check"]) == 0
    assert "; 0 changed." in capsys.readouterr().out


def test_rescore_leaves_feedback_and_a_log_that_does_not_change_as_they_are(folder: Path) -> None:
    path = stored(folder / "a", {1: ("3", "2")})
    log = path / "episodes/eval-attempts.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    for line in lines:
        line["turns"][1]["asides"] = [{"text": "Look again.", "tokens": [1], "stop": "end"}]
    log.write_text("".join(json_line(StoredEpisode.from_json(line).to_json()) for line in lines))
    before = log.read_bytes()
    assert rescore(path, allow_code=["exact:check"]).verdicts == 24, "attempts alone are verified"
    assert log.read_bytes() == before
    assert [turn.role for turn in next(read_episodes(log)).turns] == [Role.ATTEMPT, Role.FEEDBACK, Role.ATTEMPT]


def test_rescore_refuses_other_problems_and_what_it_cannot_make(folder: Path) -> None:
    stored(folder / "a", {})
    rows = json.dumps({"prompt": "another", "answer": "1"}) + "\n"
    (folder / "problems.jsonl").write_text(rows + (folder / "problems.jsonl").read_text().partition("\n")[2])
    with pytest.raises(DataError, match=r"'problems.jsonl:1' is another one"):
        rescore("a", allow_code=["exact:check"])
    stored(folder / "live", {}, task_source={"name": "(live object)", "options": {}})
    with pytest.raises(DataError, match="does not say how its task was made"):
        rescore("live")
    stored(folder / "half", {}, finished=False)
    with pytest.raises(DataError, match="half is not finished"):
        rescore("half")


def test_rescore_takes_a_live_task_and_keeps_readings_and_checks(folder: Path) -> None:
    def verdict(text: str, reference: str, row: Any) -> Verdict:
        by_rule = {"strict": Outcome.NO_ANSWER, "flexible": Outcome.CORRECT}
        return Verdict(Outcome.CORRECT, text, "", by_rule, (Check("f(1) == 1", "passed"),))

    path = stored(folder / "a", {1: ("3", "3")})
    rows = [{**row, "id": f"problems.jsonl:{i + 1}"} for i, row in enumerate(ROWS)]
    from selfcorrect.tasks.rows import Fields

    task = RowsTask(None, verdict, test_rows=rows, fields=Fields(id="id"), trusted=True)
    found = rescore(path, task=task).evaluation
    turns = [turn for e in read_episodes(path / "episodes/eval-attempts.jsonl") for turn in e.attempts]
    assert all(turn.judged.checks == (Check("f(1) == 1", "passed"),) for turn in turns)
    assert len(task.problems(Split.TEST, seed=0)) == 12
    assert {name: results.acc_t1 for name, results in found.by_rule.items()} == {"strict": 0.0, "flexible": 1.0}
    assert found.by_rule["strict"].turns[1].no_answer == 1.0
    from selfcorrect.report.terminal import all_tables

    lines = [line.split() for line in all_tables({"model": found.to_json()}).splitlines()]
    assert ["model,", "strict", "0.0", "0.0", "+0.0", "100.0,", "100.0"] in lines


# --- export -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["eval", "json"])
def test_inspect_ais_own_reader_opens_the_log(folder: Path, ending: str, capsys: pytest.CaptureFixture[str]) -> None:
    inspect_log = pytest.importorskip("inspect_ai.log")
    stored(folder / "a", {3: ("5", "6")})
    assert main(["export", "a", "--out", f"log.{ending}"]) == 0
    assert "12 episodes" in capsys.readouterr().out
    log = inspect_log.read_eval_log(str(folder / f"log.{ending}"))
    assert (log.status, log.eval.model, len(log.samples)) == ("success", "selfcorrect/some/model", 12)
    sample = next(s for s in log.samples if s.id == "problems.jsonl:4")
    assert [m.role for m in sample.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert [m.text for m in sample.messages[1:]] == ["3+3", "5", "Again.", "6"]
    assert {name: (s.value, s.answer) for name, s in sample.scores.items()} == {"t1": ("I", "5"), "t2": ("C", "6")}
    metrics = log.results.scores[0].metrics
    assert (metrics["acc_t1"].value, metrics["delta"].value) == (pytest.approx(11 / 12), pytest.approx(1 / 12))


def test_a_log_is_not_written_over_another_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored(folder / "a", {})
    assert main(["export", "a", "--out", "problems.jsonl"]) == 2
    assert "ends in .eval or .json" in capsys.readouterr().err
    (folder / "there.eval").write_text("")
    assert main(["export", "a", "--out", "there.eval"]) == 2
    assert "exists already" in capsys.readouterr().err
    os.mkfifo(folder / "pipe.eval")
    assert main(["export", "a", "--out", "pipe.eval"]) == 2
    assert "exists already" in capsys.readouterr().err and (folder / "pipe.eval").is_fifo()
