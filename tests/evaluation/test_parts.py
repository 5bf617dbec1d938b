"""The parts of an evaluation: their order and cost, what is said before and at the end, and a resume in any order."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.chat_server import Answer, ChatServer, fails, says, serving
from support.models import tiny_model

from selfcorrect import train
from selfcorrect.__main__ import main
from selfcorrect.errors import EndpointError, InterruptedRun
from selfcorrect.evaluation import evaluator
from selfcorrect.evaluation.callbacks import Callbacks
from selfcorrect.evaluation.conclusion import useless_controls
from selfcorrect.evaluation.early_episodes import in_order
from selfcorrect.evaluation.evaluate import evaluate
from selfcorrect.evaluation.rescore import rescore
from selfcorrect.evaluation.supply import Supply
from selfcorrect.storage.episode_log import read_episodes
from selfcorrect.tasks import get_task
from selfcorrect.tasks.rows import RowsTask
from selfcorrect.types import Part, Split

BLIND_FIRST = ["attempts", "swap", "empty", "shuffled", "sampled", "resample"]


def right(body: dict[str, Any]) -> str:
    """Return the sum of the last problem in a conversation."""
    numbers = [
        int(word)
        for word in body["messages"][0]["content"].replace("+", " ").replace("=", " ").split()
        if word.isdigit()
    ]
    return str(sum(numbers[-2:]))


def episodes_of(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "episodes").iterdir())}


def test_the_blind_drafts_come_first_and_the_cost_is_said_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[str] = []
    caplog.set_level(logging.INFO, "selfcorrect")
    with serving(lambda body: says(right(body))) as server:
        evaluate(
            "m",
            "addition",
            base_url=server.url,
            limit=4,
            controls=True,
            callbacks=Callbacks(on_progress=lambda what, done, total: seen.append(what)),
        )
        assert len(server.asked) == 4 * 8 + 1, "one conversation asks whether empty messages are accepted"
    assert list(dict.fromkeys(seen)) == [f"eval, {part} (part {k} of 6)" for k, part in enumerate(BLIND_FIRST, 1)]
    assert (
        "eval: 4 problems, 32 replies of the model in 6 parts: attempts 8, swap 4, empty 4, shuffled 4, sampled 8, resample 4; "
        "4 times the attempts alone"
    ) in caplog.text


def test_an_evaluation_in_another_order_of_parts_resumes_with_the_same_episodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier versions took the samples before the blind drafts."""
    settings = {"limit": 4, "max_tokens": 5, "device": "cpu", "controls": True}
    whole = evaluate(tiny_model(3), "addition", out=tmp_path / "new", **settings)
    planned = evaluator.planned_parts
    with monkeypatch.context() as earlier:
        earlier.setattr(
            evaluator,
            "planned_parts",
            lambda *given, **more: sorted(planned(*given, **more), key=lambda each: [*Part].index(each.part)),
        )
        with pytest.raises(
            InterruptedRun, match=r"in part 4 of 6 \(swap\), which has 0 of 4; complete: attempts, sampled"
        ):
            evaluate(
                tiny_model(3),
                "addition",
                out=tmp_path / "old",
                callbacks=Callbacks(should_stop=(tmp_path / "old/episodes/eval-resample.jsonl").exists),
                **settings,
            )
    assert not (tmp_path / "old/episodes/eval-swap.jsonl").exists()
    again = evaluate(tiny_model(3), "addition", out=tmp_path / "old", **settings)
    assert episodes_of(tmp_path / "old") == episodes_of(tmp_path / "new")
    assert again.to_json() == whole.to_json() and [*again.to_json()["controls"]] == [*whole.to_json()["controls"]]


def test_a_server_that_dies_of_a_seed_has_a_way_around(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The attempts and the blind drafts are complete by then, so what they say is printed."""
    gone = threading.Event()

    def frail(body: dict[str, Any]) -> Answer:
        if "seed" in body:
            gone.set()
        return fails(500, "EngineDeadError") if gone.is_set() else says(right(body))

    with serving(frail) as server:
        arguments = ["eval", "--base-url", server.url, "--model", "m", "--task", "addition", "--limit", "4"]
        arguments += ["--controls", "--retries", "0", "--max-num-seqs", "1", "--out", str(tmp_path / "e")]
        assert main(arguments) == 1
        out, err = capsys.readouterr()
        assert "Stopped in part 5 of 6 (sampled), which has 0 of 4; complete: attempts, swap, empty, shuffled;" in err
        assert "--set 'drop_fields=[\"seed\"]'" in err and "a new directory" in err
        assert "PARTIAL: the attempts at all 4 problems are there" in out and "Blind drafts: another's; empty" in out
        gone.clear()
        more = ["--set", 'drop_fields=["seed"]', "--out", str(tmp_path / "f")]
        assert main([*arguments[:-2], *more]) == 0
        assert not any("seed" in body for body in server.asked[-12:])


def test_a_server_that_dies_without_seeds_has_no_such_hint(tmp_path: Path) -> None:
    with (
        serving(lambda body: fails(500) if len(server.asked) > 3 else says("1")) as server,
        pytest.raises(EndpointError, match=r"Stopped in part 1 of 1 \(attempts\)") as error,
    ):
        evaluate("m", "addition", base_url=server.url, limit=4, retries=0, max_num_seqs=1)
    assert "seed" not in str(error.value)


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (
            0,
            0,
            "0 of 100 first answers are correct and 0 of 100 second ones, so the controls can tell nothing: take easier",
        ),
        (4, 2, "can tell nothing: take easier problems"),
        (5, 2, "can tell nothing: take more problems, at least 120 (--limit): 100 are too few to tell"),
        (6, 50, None),
        (0, 50, None),
        (40, 40, None),
        (97, 100, "can tell nothing: take harder problems"),
    ],
)
def test_controls_that_cannot_tell_are_announced(first: int, second: int, words: str | None) -> None:
    found = useless_controls([np.arange(100) < first, np.arange(100) < second], 100)
    assert found is None if words is None else words in str(found)
    assert "truncated" not in str(found)
    low = useless_controls([np.arange(1000) < 30] * 2, 1000)
    assert low is not None and "can tell little: take easier problems" in low


def served(answer: str, out: Path, *, finish: str = "stop", limit: int = 8, **more: Any) -> ChatServer:
    with serving(lambda body: says(answer, finish=finish)) as server:
        evaluate("m", "addition", base_url=server.url, limit=limit, out=out, **more)
        return server


def test_the_warning_comes_after_the_attempts_and_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    served("nothing", tmp_path / "a", controls=True, sampled=False)
    assert caplog.text.count("eval, attempts: 0 of 8 first answers are correct and 0 of 8 second ones") == 1
    assert "take more problems, at least 60 (--limit): 8 are too few to tell" in caplog.text
    assert "The controls run now all the same; Ctrl-C ends the evaluation here and keeps the attempts." in caplog.text
    caplog.clear()
    served("nothing", tmp_path / "b")
    assert "first answers are correct" not in caplog.text, "without controls there is nothing to warn of"
    assert len(list(read_episodes(tmp_path / "a/episodes/eval-swap.jsonl"))) == 8


def test_a_task_with_few_rows_calls_for_rows_and_not_for_a_limit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The warning, the conclusion and what `rescore` makes of it: --limit cannot give more than the four rows."""
    file = tmp_path / "sums.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"{i} + 1?", "answer": i + 1}) + "\n" for i in range(4)))
    settings = {"task_options": {"test_path": str(file), "verifier": "number"}, "controls": True, "sampled": False}
    for limit in (None, 4, 500):
        caplog.clear()
        out = tmp_path / f"e{limit}"
        with serving(lambda body: says("nothing")) as server:
            evaluate("m", "dataset", base_url=server.url, limit=limit, out=out, **settings)
        wanted = "at least 60: 4 are too few to tell, and the task has only 4: add rows of data to the test split"
        assert wanted in caplog.text and "(--limit" not in caplog.text
        assert (
            wanted
            in json.loads((out / "summary.json").read_text())["results"]["model"]["decomposition"]["conclusion"][
                "because"
            ]
        )
    found = rescore(tmp_path / "e500").evaluation.conclusion
    assert found is not None and wanted in found.because


def test_a_supply_is_known_of_finite_tasks_only() -> None:
    addition = get_task("addition")
    assert Supply.of(addition, Split.TEST, taken=4, limit=4) is None, "it makes as many as are asked for"
    assert Supply.of(addition, Split.TEST, taken=5000, limit=None) is None
    assert Supply.of(addition, Split.TEST, taken=3, limit=4) == Supply(3, "choose a task that has more")
    rows = RowsTask([{"prompt": str(i), "answer": "1"} for i in range(40)], lambda text, reference, row: True)
    known = Supply.of(rows, Split.TEST, taken=1, limit=1)
    assert known == Supply(rows.sizes[Split.TEST], "add rows of data")


def test_truncated_answers_call_for_a_higher_limit_in_the_warning_and_in_the_conclusion(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    served("5", tmp_path / "a", finish="length", limit=40, max_tokens=9, controls=True, sampled=False)
    wanted = "raise the token limit (--max-tokens): 100.0% of the first answers are truncated at 9 tokens"
    assert wanted in caplog.text and "easier" not in caplog.text and "more problems" not in caplog.text
    results = json.loads((tmp_path / "a/summary.json").read_text())["results"]["model"]
    because = results["decomposition"]["conclusion"]["because"]
    assert "raise the token limit (--max-tokens, in a run rollout.max_tokens): 100.0% of the first" in because
    caplog.clear()
    served("nothing", tmp_path / "b", limit=40, controls=True, sampled=False)
    assert "take easier problems" in caplog.text and "truncated" not in caplog.text and "token" not in caplog.text


def test_the_results_of_a_run_know_that_its_file_has_no_more_problems(model_folder: Path, tmp_path: Path) -> None:
    """`eval.problems` is 500 by default, so a higher one is no advice for four rows."""
    for name, n in (("train", 12), ("dev", 2), ("test", 4)):
        rows = [json.dumps({"prompt": f"{i}{n} + 1?", "answer": i}) for i in range(n)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    places = {"path": "train", "dev_path": "dev", "test_path": "test"}
    options = {option: str(tmp_path / f"{name}.jsonl") for option, name in places.items()}
    settings = {
        "task": {"name": "dataset", "options": {**options, "verifier": "number"}, "train_problems": 12},
        "model": {"source": str(model_folder), "device": "cpu"},
        "rollout": {"batch_size": 4, "group_size": 2, "max_tokens": 4},
        "eval": {"sampled": False, "dev_every": 0},
        "log": {"trackers": []},
        "stages": {"s": {"steps": 1, "reward_weights": [1, 1], "kl_coefs": [{}, {}]}},
    }
    train(settings, tmp_path / "run")
    results = json.loads((tmp_path / "run/summary.json").read_text())["results"]
    assert {name: found["supply"]["available"] for name, found in results.items()} == {"base": 4, "s": 4}
    assert "--limit" not in results["s"]["decomposition"]["conclusion"]["because"]


@pytest.mark.parametrize(("problems", "warnings"), [(14, 1), (8, 0)])
def test_a_run_warns_once_for_its_base_and_not_when_it_is_tried_out(
    problems: int, warnings: int, model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stage = {"steps": 1, "reward_weights": [1, 1], "kl_coefs": [{}, {}]}
    settings = {
        "task": {"name": "addition", "train_problems": 8, "dev_problems": 2},
        "model": {"source": str(model_folder), "device": "cpu"},
        "rollout": {"batch_size": 4, "group_size": 2, "max_tokens": 4},
        "eval": {"problems": problems, "sampled": False, "dev_every": 0},
        "log": {"trackers": []},
        "stages": {"s": stage},
    }
    train(settings, tmp_path / "run")
    said = [record.getMessage() for record in caplog.records if "so the controls can tell" in record.getMessage()]
    assert len(said) == warnings
    assert all("eval-base, attempts: 0 of 14" in each and "(--" not in each for each in said), said
    assert all("nothing: raise the token limit (rollout.max_tokens): 9" in each for each in said), said
    assert all("answers are truncated at 4 tokens" in each for each in said), said
    assert all(
        each.endswith("The run continues; to change a setting, stop it (Ctrl-C) and start another.") for each in said
    )


def test_conversations_behind_a_slow_one_are_kept_when_the_evaluation_stops(tmp_path: Path) -> None:
    """Of two conversations at a time one waits for ever; the others, one after another, are not asked again.

    The file is the same as without a stop.
    """
    free, stop = threading.Event(), threading.Event()
    slow: list[str] = []

    def waits(body: dict[str, Any]) -> Answer:
        problem = body["messages"][0]["content"]
        if body["max_tokens"] > 1 and not slow:
            slow.append(problem)
        if slow == [problem] and body["max_tokens"] > 1:
            free.wait(60)
        elif len(server.asked) >= 15:  # seven conversations of two turns, and the slow one's first
            stop.set()
        return says(right(body))

    settings = {"limit": 8, "max_num_seqs": 2}
    with serving(waits) as server:
        where = {"base_url": server.url, **settings}
        with pytest.raises(InterruptedRun):
            evaluate("m", "addition", out=tmp_path / "e", callbacks=Callbacks(should_stop=stop.is_set), **where)
        free.set()
        early = tmp_path / "e/episodes/.eval-attempts.early"
        kept = {episode.problem_id for episode in read_episodes(early)}
        stored = {episode.problem_id for episode in read_episodes(tmp_path / "e/episodes/eval-attempts.jsonl")}
        assert len(kept) >= 4 and len(kept | stored) >= 5 and not kept & stored
        server.asked.clear()
        evaluate("m", "addition", out=tmp_path / "e", **where)
        assert len(server.asked) == 2 * (8 - len(kept | stored)), "nothing is asked twice"
        assert not early.exists()
        evaluate("m", "addition", out=tmp_path / "whole", **where)
    assert episodes_of(tmp_path / "e") == episodes_of(tmp_path / "whole")


def test_episodes_in_order_fill_the_gaps_with_early_ones() -> None:
    keys = [(name, 0) for name in "abcdefg"]
    early: Any = {("b", 0): "B", ("c", 0): "C", ("g", 0): "G"}
    played: Any = [["a"], ["d", "e"], ["f"]]
    assert [*in_order(keys, early, played)] == [["a"], ["B", "C", "d", "e"], ["f"], ["G"]]
    assert [*in_order(keys[1:3], early, iter([]))] == [["B", "C"]]
    assert [*in_order([], early, iter([]))] == []
