"""What a thinking model's completion answers: after its reasoning, whatever the marker, closed or not, paired or not."""

from __future__ import annotations

import pytest

from selfcorrect.reasoning import MARKERS, final_part, opened_by
from selfcorrect.tasks import get_task
from selfcorrect.tasks.verifier_pool import judge
from selfcorrect.types import Outcome, Split


@pytest.mark.parametrize(("opening", "closing"), MARKERS)
def test_every_marker_in_every_form(opening: str, closing: str) -> None:
    assert final_part(f"{opening}\n7? no\n{closing}\n\n8") == "\n\n8"
    assert final_part(f"7? no\n{closing} 8") == " 8"
    assert final_part(f"{opening} 7?") is None
    assert final_part(f"{opening}a{closing}7 {opening}b{closing}8") == "8"
    assert final_part(f"{opening.upper()}7{closing.upper()}8") == "8"
    assert opened_by(f"assistant\n{opening}\n") == opening
    assert opened_by(f"assistant\n{opening}\n{closing}\n") is None


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("8", "8"),
        ("", ""),
        ("<think>7</think>", ""),
        ("I split at '</think>' and get 8", "I split at '</think>' and get 8"),
        ("`<think>` opens it: 8", "`<think>` opens it: 8"),
        ("<answer>7</answer> no <answer>8</answer>.", "8"),
        ("<answer>8", "8"),
        ("8</answer>", "8</answer>"),
        ("<think><answer>7</answer></think><answer>8</answer>", "8"),
        ("<answer>7</answer><think>no", None),
    ],
)
def test_single_cases(text: str, part: str | None) -> None:
    assert final_part(text) == part


def test_the_final_part_is_its_own_final_part() -> None:
    for text in ("<think>7</think>8", "<answer>8</answer>", "7</reasoning><answer>8"):
        part = final_part(text)
        assert part is not None and final_part(part) == part


@pytest.mark.parametrize("piece", ["<think>", "</think>", "<answer>", "<think></think>", "<", "[THINK]"])
def test_long_repetitions_end(piece: str) -> None:
    final_part(piece * 200_000)  # 0.3 s, because the time is linear; hours if it were quadratic


def test_every_task_reads_the_part_after_the_reasoning() -> None:
    task = get_task("addition")
    problem = task.problems(Split.TRAIN, seed=0, limit=1)[0]
    good, bad = problem.reference, task.corrupt(problem)
    assert judge(task, problem, f"<think>{bad}</think>{good}").correct
    assert judge(task, problem, f"{good}</think>{bad}").outcome is not Outcome.CORRECT
    unfinished = judge(task, problem, f"<think>{good}")
    assert (unfinished.outcome, unfinished.detail) == (Outcome.NO_ANSWER, "the reasoning has no end")


def test_a_task_may_ask_for_the_whole_text() -> None:
    class Whole:
        reads_reasoning = True

        def verify(self, problem: object, text: str) -> object:
            seen.append(text)
            raise ValueError

    seen: list[str] = []
    judge(Whole(), None, "<think>7</think>8")  # type: ignore[arg-type]
    assert seen == ["<think>7</think>8"]
