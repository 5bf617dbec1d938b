"""Episodes as stored: one JSON line each, read back for statistics, for `show` and for resuming."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from selfcorrect.errors import DataError
from selfcorrect.metrics import Attempt
from selfcorrect.types import Episode, Outcome, StopReason

SCHEMA = 1


def to_record(episode: Episode, *, stage: str, step: int) -> dict[str, Any]:
    """The stored form. ``tokens`` are the sampled ids of a turn, the end token included.

    ``checks`` are the tests of a program, where the verdict has some.
    """
    return {
        "schema": SCHEMA,
        "stage": stage,
        "step": step,
        "problem_id": episode.problem.id,
        "sample": episode.sample,
        "prompt": episode.problem.prompt,
        "reference": episode.problem.reference,
        "difficulty": episode.problem.difficulty,
        "turns": [
            {
                "text": turn.text,
                "tokens": list(turn.ids),
                "verdict": turn.verdict.outcome.value,
                "extracted": turn.verdict.extracted,
                "stop": turn.stop.value,
                "detail": turn.verdict.detail,
                "online": turn.online,
                **({"checks": [asdict(check) for check in turn.verdict.checks]} if turn.verdict.checks else {}),
            }
            for turn in episode.turns
        ],
    }


def stored_attempts(record: Mapping[str, Any]) -> tuple[Attempt, ...]:
    """What the statistics need of a stored episode.

    Raises:
        DataError: the record is of another schema or lacks a field.
    """
    if record.get("schema") != SCHEMA:
        raise DataError(f"an episode has schema {record.get('schema')!r}; this version reads schema {SCHEMA}.")
    try:
        turns: Sequence[Mapping[str, Any]] = record["turns"]
        return tuple(
            Attempt(Outcome(turn["verdict"]), turn["text"], turn["extracted"], turn["stop"] == StopReason.LENGTH)
            for turn in turns
        )
    except (KeyError, ValueError) as error:
        raise DataError(f"episode of problem {record.get('problem_id')!r} is malformed: {error!r}") from None
