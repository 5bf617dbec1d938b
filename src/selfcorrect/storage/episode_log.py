"""Episodes as stored: one JSON line each, read back for statistics, for people, and to verify them again."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfcorrect.config.toml import load_config
from selfcorrect.errors import DataError
from selfcorrect.types import Aside, Attempt, Episode, Outcome, StopReason, Turn, Verdict

if TYPE_CHECKING:
    pass

SCHEMA = 1


def to_record(episode: Episode, *, stage: str, step: int) -> dict[str, Any]:
    """The stored form. ``tokens`` are the sampled ids of a turn, the end token included.

    A turn is an attempt; what the model was asked for just before it, feedback for instance, are its ``asides``.
    A turn that a server wrote has no ``tokens``; ``token_count`` is then their number, if the server told it.
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
                **_tokens(turn),
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
    return {"text": aside.text, **_tokens(aside), "stop": aside.stop.value}


def _tokens(turn: Turn | Aside) -> dict[str, Any]:
    return {"tokens": list(turn.ids), **({} if turn.ids else {"token_count": turn.counted})}


def stored_length(turn: Mapping[str, Any]) -> int | None:
    """How many tokens were sampled for a stored turn or aside; None where a server did not tell.

    >>> stored_length({"tokens": [5, 1]}), stored_length({"tokens": [], "token_count": 7})
    (2, 7)
    """
    return len(turn["tokens"]) or turn.get("token_count")


def length_text(turn: Mapping[str, Any]) -> str:
    """The length of a stored turn or aside, for people."""
    length = stored_length(turn)
    return "length unknown" if length is None else f"{length} tokens"


def read_episodes(path: Path, limit: int | None = None) -> Iterator[dict[str, Any]]:
    """The episodes of a file in order, at most ``limit`` of them; none where it is missing.

    Raises:
        DataError: a line is no episode; the message names it.
    """
    for number, record in enumerate(islice(stored_lines(path), limit), 1):
        try:
            stored_attempts(record)
        except (DataError, AttributeError) as error:
            raise DataError(f"{path}, line {number}: {error}") from None
        yield record


def stored_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON lines of a log, compressed (``.jsonl.gz``) or not; a last line that is still being written is left out.

    Raises:
        DataError: a line is not JSON; the message names it.
    """
    packed = path.with_name(path.name + ".gz")
    if not path.exists() and not packed.exists():
        return
    with path.open("rb") if path.exists() else gzip.open(packed, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):
                return
            try:
                yield json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}, line {number}: not JSON ({error}).") from None


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


def episodes_file(path: Path, *, stage: str | None = None, part: str = "attempts") -> Path:
    """Where the episodes of a run or of an evaluation lie; of a run's stages the last one that has any.

    Raises:
        DataError: it is neither, there is no such stage or part, or there are no such episodes yet.
    """
    folder = path / "episodes"
    if (path / "config.toml").is_file():
        stages = list(load_config(path / "config.toml").stages)
        stages = stages if part == "train" else ["base", *stages]
        if stage is not None and stage not in stages:
            raise DataError(f"{path} has no stage {stage!r} with such episodes; there are {', '.join(stages)}.")
        name = (lambda s: f"train-{s}.jsonl") if part == "train" else (lambda s: f"eval-{s}-{part}.jsonl")
        wanted = [folder / name(s) for s in ([stage] if stage else reversed(stages))]
    elif (path / "eval.json").is_file():
        if stage is not None or part == "train":
            raise DataError(f"{path} is an evaluation: it has no stages; leave out --stage, and --part train.")
        wanted = [folder / f"eval-{part}.jsonl"]
    else:
        raise DataError(
            f"{path} is neither a run (config.toml) nor an evaluation (eval.json): "
            "give the DIR of `selfcorrect train --out DIR` or `selfcorrect eval --out DIR`."
        )
    for file in wanted:
        if file.is_file() and file.stat().st_size:
            return file
    there = sorted(file.stem for file in folder.glob("*.jsonl"))
    of_stage = f" and stage {stage!r}" if stage else ""
    raise DataError(
        f"{path} has no episodes of part {part!r}{of_stage}; there are {', '.join(there) or 'none'} so far."
    )
