"""Episodes as stored: one JSON line each, read back for statistics, for `show` and for resuming."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from selfcorrect.errors import DataError
from selfcorrect.metrics import Attempt
from selfcorrect.types import Aside, Episode, Outcome, StopReason, Verdict

SCHEMA = 1


def to_record(episode: Episode, *, stage: str, step: int) -> dict[str, Any]:
    """The stored form. ``tokens`` are the sampled ids of a turn, the end token included.

    A turn is an attempt; what the model was asked for just before it, feedback for instance, are its ``asides``.
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
                **verdict_fields(turn.verdict),
                "stop": turn.stop.value,
                "online": turn.online,
                **({"asides": [_aside(aside) for aside in turn.asides]} if turn.asides else {}),
            }
            for turn in episode.turns
        ],
    }


def verdict_fields(verdict: Verdict) -> dict[str, Any]:
    """What a stored turn holds of its verdict; ``readings`` and ``checks``, a program's tests, only where it has some."""
    return {
        "verdict": verdict.outcome.value,
        "extracted": verdict.extracted,
        "detail": verdict.detail,
        **({"readings": dict(verdict.readings)} if verdict.readings else {}),
        **({"checks": [asdict(check) for check in verdict.checks]} if verdict.checks else {}),
    }


def _aside(aside: Aside) -> dict[str, Any]:
    return {"text": aside.text, "tokens": list(aside.ids), "stop": aside.stop.value}


def stored_attempts(record: Mapping[str, Any], reading: str | None = None) -> tuple[Attempt, ...]:
    """What the statistics need of a stored episode, under one of its verdicts' readings if one is named.

    Raises:
        DataError: the record is of another schema or lacks a field.
    """
    if record.get("schema") != SCHEMA:
        raise DataError(f"an episode has schema {record.get('schema')!r}; this version reads schema {SCHEMA}.")
    try:
        turns: Sequence[Mapping[str, Any]] = record["turns"]
        return tuple(
            Attempt(_outcome(turn, reading), turn["text"], turn["extracted"], turn["stop"] == StopReason.LENGTH)
            for turn in turns
        )
    except (KeyError, ValueError) as error:
        raise DataError(f"episode of problem {record.get('problem_id')!r} is malformed: {error!r}") from None


def stored_readings(records: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """The names of all readings in the verdicts of some episodes, in the order in which they are met."""
    return tuple(dict.fromkeys(name for r in records for turn in r["turns"] for name in turn.get("readings", ())))


def _outcome(turn: Mapping[str, Any], reading: str | None) -> Outcome:
    """A blank text, or a verifier that was killed, has one outcome, whatever the reading."""
    return Outcome(turn.get("readings", {}).get(reading, turn["verdict"]))
