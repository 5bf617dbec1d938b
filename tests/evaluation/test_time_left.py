"""The estimate of an evaluation's time: exact at a steady pace, useful from the first replies on, and never from stored ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.chat_server import Answer, says, serving

from selfcorrect import evaluate
from selfcorrect.cli import progress
from selfcorrect.evaluation import time_left
from selfcorrect.evaluation.callbacks import Callbacks
from selfcorrect.evaluation.planned_parts import EvalPlan, planned_parts
from selfcorrect.evaluation.time_left import TimeLeft, replies_of
from selfcorrect.script import Script

PARTS = [(2, 100), (1, 100)]
"""Two attempts at 100 problems, then one reply to each."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(time_left, "monotonic", lambda: now[0])
    return now


def test_a_steady_pace_is_estimated_exactly_within_a_batch_and_after_it(clock: list[float]) -> None:
    left = TimeLeft(PARTS)
    left.begin(0, 0)
    assert left.seconds is None, "nothing is known before the first reply"
    clock[0] = 50.0
    left.sampled(50)  # the first turns of 50 conversations, a second each
    assert left.seconds == pytest.approx(250)
    clock[0] = 100.0
    left.sampled(50)
    left.stored(50)
    assert left.seconds == pytest.approx(200)
    clock[0] = 200.0
    left.stored(100)
    left.begin(1, 0)
    assert left.seconds == pytest.approx(100)
    clock[0] = 300.0
    left.stored(100)
    assert left.seconds == 0


def test_what_was_stored_before_took_no_time(clock: list[float]) -> None:
    left = TimeLeft(PARTS)
    left.begin(0, 90)
    assert left.seconds is None
    clock[0] = 10.0
    left.stored(95)
    assert left.seconds == pytest.approx(10 + 100)  # ten replies in ten seconds; ten and a hundred are left


def test_conversations_in_progress_on_a_server_are_half_done(clock: list[float]) -> None:
    left = TimeLeft([(2, 100)], at_once=10)
    left.begin(0, 0)
    clock[0] = 20.0
    left.stored(1)  # its nine neighbours, and one more, have begun
    assert left.seconds == pytest.approx(20 / (2 + 10) * (198 - 10))
    clock[0] = 200.0
    left.stored(100)
    assert left.seconds == 0


def test_feedback_and_given_drafts_are_counted() -> None:
    plan = EvalPlan(turns=2, sampled_temperature=1.0, controls=True)
    script = Script().with_verification()
    assert replies_of(planned_parts(plan), script, 5) == [(3, 5), (2, 5), (3, 5), (1, 5)]


def estimates(out: Path, **how: object) -> list[tuple[float, str, int]]:
    """Return what an evaluation of 12 problems reports: the seconds left, the part, and the episodes done."""
    told: list[float] = []
    found: list[tuple[float, str, int]] = []
    callbacks = Callbacks(
        on_left=told.append,
        on_progress=lambda what, done, total: found.append((told[-1] if told else -1.0, what, done)),
    )
    evaluate(task="addition", limit=12, max_tokens=4, controls=True, out=out, callbacks=callbacks, **how)  # type: ignore[arg-type]
    return found


def test_an_evaluation_says_before_its_first_batch_has_ended_how_long_it_takes(tmp_path: Path) -> None:
    found = estimates(tmp_path / "e", model="addition-base", max_num_seqs=4)
    seconds, _, done = next(item for item in found if item[1].startswith("eval, attempts"))
    assert done == 0 and seconds > 0, "after the first turns of the first batch"
    evaluated = [item for item in found if item[1].startswith("eval, ")]
    assert evaluated[-1][0] == 0 and all(seconds > 0 for seconds, _, _ in evaluated[:-4])


def test_an_evaluation_on_a_server_has_an_estimate_after_its_first_conversations(tmp_path: Path) -> None:
    pytest.importorskip("openai")

    def answer(*_: object) -> Answer:
        return says("7")

    with serving(answer) as server:
        found = estimates(tmp_path / "e", model="m", base_url=server.url, max_num_seqs=3)
    assert found[0][0] > 0 and found[-1][0] == 0


def test_lines_tell_the_time_left_and_only_of_what_was_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    lines = progress.Lines({})
    for seconds, left in ((12.0, 480.0), (24.0, None), (36.0, 0.0)):
        now[0] = seconds
        if left is not None:
            lines.on_left(left)
        lines.on_progress("model, attempts", 3, 9)
    assert capsys.readouterr().err == (
        "selfcorrect: model, attempts 3/9, about 8 min left\n"
        "selfcorrect: model, attempts 3/9\nselfcorrect: model, attempts 3/9\n"
    )
