"""Pack episodes for the page's browser: compressed, and as many as a page can carry.

A source is one model's evaluation with one seed, or one stage's training. Every source contributes its first episodes,
the same number of each if there are enough. Evaluations share their problems, so every method shows the same problems.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from selfcorrect.report.rows import Measured, Row, Rows
from selfcorrect.report.sources import Run
from selfcorrect.storage.episode_log import StoredEpisode, StoredTurn
from selfcorrect.types import Outcome, Part, Role, StopReason

OUTCOMES = [outcome.value for outcome in Outcome]
MAX_BYTES = 4_000_000
"""Maximum characters of the packed episodes; longer completions mean fewer episodes."""


@dataclass(frozen=True, eq=False)
class Source:
    """A source of episodes, as the browser's filters name it; ``read(limit)`` yields its episodes."""

    key: str
    method: str
    model: str
    seed: int
    part: str
    read: Callable[[int], Iterator[StoredEpisode]]

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("key", "method", "model", "seed", "part")}


@dataclass(frozen=True, slots=True)
class Archive:
    """The packed episodes, their number, and whether more episodes exist (``more``)."""

    packed: str
    episodes: int
    more: bool


def sources_of(rows: Rows) -> list[Source]:
    """Return every model's greedy and sampled attempts, draft swaps and training episodes."""
    sources: list[Source] = []
    for row in rows.rows:
        for measured in row.measured:
            sources += [_source(row, measured, part) for part in (Part.ATTEMPTS, Part.SAMPLED, Part.SWAP)]
            if isinstance(measured.source, Run) and row.model != "base":
                sources.append(_source(row, measured, Part.TRAIN))
    sources += [_source(row, measured, Part.ATTEMPTS) for row in rows.extra for measured in row.measured]
    return sources


def _source(row: Row, measured: Measured, part: Part) -> Source:
    """Return a source; an evaluation's part is named after its directory, since a run may hold the same model's attempts."""
    name = part.value
    if not isinstance(measured.source, Run):
        name = str(measured.source.path) if part is Part.ATTEMPTS else f"{measured.source.path}, {part}"
    key = "/".join((row.series, str(measured.seed), row.model, name))
    model = measured.source.label(row.model) if isinstance(measured.source, Run) else row.model
    return Source(key, row.series, model, measured.seed, name, lambda limit: measured.episodes(part, limit))


def pack(sources: Sequence[Source], limit: int) -> Archive:
    """Pack at most ``limit`` episodes, fewer if they would take more than MAX_BYTES."""
    there = firsts(sources, limit)
    most = limit
    while True:
        shares = fair_shares([len(found) for _, found in there], most)
        parts = [(source, found[:share]) for (source, found), share in zip(there, shares, strict=True)]
        text = packed(to_columns(parts))
        if len(text) <= MAX_BYTES or sum(shares) <= len(shares):
            break
        most = min(sum(shares) - 1, int(sum(shares) * MAX_BYTES / len(text) * 0.97))
    more = any(len(found) > share for (_, found), share in zip(there, shares, strict=True))
    return Archive(text, sum(shares), more)


def firsts(sources: Sequence[Source], limit: int) -> list[tuple[Source, list[StoredEpisode]]]:
    """Return the first episodes of every nonempty source: together at least ``limit``, if there are that many.

    Each source is read to the same number, plus one episode that shows whether it has more, so a large comparison is never
    read whole. A source that was read to its end is not read again.
    """
    most = math.ceil(limit / max(1, len(sources)))
    found = [list(source.read(most + 1)) for source in sources]
    while True:
        cut = [i for i, records in enumerate(found) if len(records) > most]
        total = sum(min(len(records), most) for records in found)
        if not cut or total >= limit:
            return [(source, records) for source, records in zip(sources, found, strict=True) if records]
        most += max(1, (limit - total) // len(cut))
        for i in cut:
            found[i] = list(sources[i].read(most + 1))


def fair_shares(there: Sequence[int], most: int) -> list[int]:
    """Divide ``most`` among sources with ``there`` episodes each, as evenly as possible.

    >>> fair_shares([10, 2, 10], 12)
    [5, 2, 5]
    """
    shares, left = [0] * len(there), most
    order = sorted(range(len(there)), key=lambda i: there[i])
    for position, i in enumerate(order):
        shares[i] = min(there[i], left // (len(order) - position))
        left -= shares[i]
    return shares


def to_columns(parts: Sequence[tuple[Source, Sequence[StoredEpisode]]]) -> dict[str, Any]:
    """Return what the browser reads: every problem once, and an episode as ``[problem, sample, step, turn, turn, ...]``.

    A turn is ``[text, outcome, extracted, truncated, detail, checks, feedback]`` without trailing zeros. ``extracted`` is 0
    if it is the whole text. ``detail``, ``checks`` (each ``[label, outcome, detail]``) and ``feedback`` (the texts before
    the attempt; a verification as ``[text, what it says]``, with a third item if it comes after) are 0 if there are none.
    ``truncated`` is 2 if the attempt was skipped.
    """
    numbers: dict[tuple[str, ...], int] = {}
    problems: list[list[Any]] = []
    packed_sources = []
    for source, records in parts:
        episodes = []
        for record in records:
            problem = [record.problem_id, record.prompt, record.reference, record.difficulty]
            key = tuple(map(str, problem))
            if key not in numbers:
                numbers[key] = len(problems)
                problems.append(problem)
            episodes.append([numbers[key], record.sample, record.step, *_attempts(record)])
        packed_sources.append({**source.to_json(), "episodes": episodes})
    return {"outcomes": OUTCOMES, "problems": problems, "sources": packed_sources}


def _attempts(episode: StoredEpisode) -> Iterator[list[Any]]:
    """Yield every attempt with the texts of the turns before it that are none; the last one also with those after it."""
    attempts: list[tuple[StoredTurn, list[str | list[str]]]] = []
    before: list[str | list[str]] = []
    for turn in episode.turns:
        if turn.role is Role.ATTEMPT:
            attempts.append((turn, before))
            before = []
        elif turn.role is Role.VERIFICATION:
            if not turn.skipped:
                before.append([turn.text, turn.said.value if turn.said else "nothing"])
        else:
            before.append(turn.text)
    attempts[-1][1].extend([*each, "after"] for each in before if isinstance(each, list))
    for turn, said in attempts:
        yield _attempt(turn, said)


def _attempt(turn: StoredTurn, before: Sequence[str | list[str]]) -> list[Any]:
    verdict = turn.judged
    extracted = 0 if verdict.extracted == turn.text else verdict.extracted
    checks = [[check.label, check.outcome, check.detail] for check in verdict.checks]
    truncated = 2 if turn.skipped else int(turn.stop is StopReason.LENGTH)
    found = [turn.text, OUTCOMES.index(verdict.outcome), extracted, truncated, verdict.detail or 0, checks or 0]
    found.append(list(before) or 0)
    while found[-1] == 0 and len(found) > 2:
        found.pop()
    return found


def packed(value: Any) -> str:
    """Encode a value as JSON, gzip and base64; the same value gives the same text."""
    plain = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode(
        "utf-8", "backslashreplace"
    )
    return base64.b64encode(gzip.compress(plain, 9, mtime=0)).decode("ascii")
