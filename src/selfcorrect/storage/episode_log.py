"""Stored episodes: one JSON line each, read back for statistics, for display, and for another verification.

A line lists the attempts of an episode as its ``turns``. What the model wrote just before an attempt, feedback or a
verification, lies inside that attempt as its ``asides``. `StoredEpisode` has all turns in order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

from selfcorrect.config import aliases
from selfcorrect.config.toml import load_config
from selfcorrect.errors import DataError
from selfcorrect.storage.files import json_lines, opened_log
from selfcorrect.storage.seal import check_sealed_file
from selfcorrect.types import (
    TRAINED_ROLES,
    Attempt,
    Check,
    Episode,
    Judgement,
    Outcome,
    Part,
    Role,
    StopReason,
    Turn,
    Verdict,
)

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class StoredTurn:
    """One turn of the model as stored; only an attempt has a ``verdict``.

    ``tokens`` are the sampled ids, including the end token. A turn from a server has none; ``counted`` is then the number
    of tokens that the server reported, if any, ``other_model`` the name under which it answered, if that was not the
    requested one, and ``reasoning`` what it reported apart from the text. ``said`` is the judgement of a verification.
    """

    text: str
    tokens: tuple[int, ...]
    stop: StopReason
    verdict: Verdict | None
    role: Role = Role.ATTEMPT
    online: bool = True
    counted: int | None = None
    other_model: str | None = None
    reasoning: str | None = None
    said: Judgement | None = None

    @classmethod
    def of(cls, turn: Turn) -> StoredTurn:
        """Return a turn in its stored form."""
        served = (turn.counted, turn.other_model, turn.reasoning)
        return cls(turn.text, turn.ids, turn.stop, turn.verdict, turn.role, turn.online, *served, turn.said)

    @property
    def skipped(self) -> bool:
        """Return whether the script did not ask for this turn; an attempt then repeats the one before it."""
        return self.stop is StopReason.SKIPPED

    @property
    def length(self) -> int | None:
        """Return the number of sampled tokens; None where a server did not report it.

        >>> StoredTurn("", (), StopReason.END, None, Role.FEEDBACK, counted=7).length
        7
        """
        return len(self.tokens) or self.counted

    @property
    def sampled(self) -> int | None:
        """Return the number of tokens that the evaluated model sampled: `length`, but 0 for a skipped turn and a given draft."""
        return self.length if self.online else 0

    @property
    def judged(self) -> Verdict:
        """Return the verdict of an attempt."""
        assert self.verdict is not None, f"a turn of role {self.role} has no verdict"
        return self.verdict

    def graded(self, rule: str | None = None) -> Attempt:
        """Return what the metrics need to know about an attempt, under one rule of its verdict if it is named.

        A blank text, or an attempt whose verifier was killed, has the same outcome under every rule.
        """
        verdict = self.judged
        outcome = verdict.outcome if rule is None else verdict.by_rule.get(rule, verdict.outcome)
        return Attempt(outcome, self.text, verdict.extracted, self.stop is StopReason.LENGTH)

    def to_json(self) -> dict[str, Any]:
        """Return the turn's JSON object within a line."""
        return {
            "text": self.text,
            "tokens": list(self.tokens),
            **({} if self.tokens else {"token_count": self.counted}),
            **({} if self.other_model is None else {"other_model": self.other_model}),
            **({} if self.reasoning is None else {"reasoning": self.reasoning}),
            **(verdict_to_json(self.verdict) if self.verdict else {}),
            "stop": self.stop.value,
            **({"online": self.online} if self.role in TRAINED_ROLES else {}),
            **(
                {"role": self.role.value, "said": None if self.said is None else self.said.value}
                if self.role is Role.VERIFICATION
                else {}
            ),
        }


@dataclass(frozen=True, slots=True)
class StoredEpisode:
    """One line of an episode log. ``turns`` holds all turns of the model in order; see `attempts`."""

    stage: str
    step: int
    problem_id: str
    sample: int
    prompt: str
    reference: str
    difficulty: str | None
    turns: tuple[StoredTurn, ...]

    @classmethod
    def of(cls, episode: Episode, *, stage: str, step: int) -> StoredEpisode:
        """Return an episode in its stored form."""
        problem, turns = episode.problem, tuple(map(StoredTurn.of, episode.turns))
        where = (stage, step, problem.id, episode.sample)
        return cls(*where, problem.prompt, problem.reference, problem.difficulty, turns)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> StoredEpisode:
        """Return the episode of a line.

        Raises:
            DataError: the line has another schema, lacks a field, or holds a malformed one.
        """
        if not isinstance(record, Mapping):
            raise DataError(f"an episode must be a JSON object, but this is a {type(record).__name__}.")
        if record.get("schema") != SCHEMA:
            raise DataError(f"an episode has schema {record.get('schema')!r}; this version reads schema {SCHEMA}.")
        try:
            turns = tuple(turn for attempt in _list(record, "turns", Mapping) for turn in _turns(attempt))
            if not turns:
                raise ValueError("turns is empty")
            return cls(
                _of(record, "stage", str),
                _whole(record, "step"),
                _of(record, "problem_id", str),
                _whole(record, "sample"),
                _of(record, "prompt", str),
                _of(record, "reference", str),
                _of(record, "difficulty", str, None),
                turns,
            )
        except KeyError as error:
            raise DataError(f"{_episode(record)} is malformed: it has no {error}.") from None
        except ValueError as error:
            raise DataError(f"{_episode(record)} is malformed: {error}.") from None

    @property
    def attempts(self) -> tuple[StoredTurn, ...]:
        """Return the verified turns, in order."""
        return tuple(turn for turn in self.turns if turn.role is Role.ATTEMPT)

    @property
    def failure(self) -> str | None:
        """Return why a server did not answer in this conversation; None if it did."""
        return next((turn.judged.detail for turn in self.attempts if turn.stop is StopReason.FAILED), None)

    def graded(self, rule: str | None = None) -> tuple[Attempt, ...]:
        """Return what the metrics need to know about every attempt; see `StoredTurn.graded`."""
        return tuple(turn.graded(rule) for turn in self.attempts)

    def to_json(self) -> dict[str, Any]:
        """Return the line's JSON object, with its keys in stored order."""
        return {
            "schema": SCHEMA,
            "stage": self.stage,
            "step": self.step,
            "problem_id": self.problem_id,
            "sample": self.sample,
            "prompt": self.prompt,
            "reference": self.reference,
            "difficulty": self.difficulty,
            "turns": self._attempts_json(),
        }

    def _attempts_json(self) -> list[dict[str, Any]]:
        attempts: list[dict[str, Any]] = []
        asides: list[dict[str, Any]] = []
        for turn in self.turns:
            if turn.role is not Role.ATTEMPT:
                asides.append(turn.to_json())
                continue
            attempts.append({**turn.to_json(), **({"asides": asides} if asides else {})})
            asides = []
        if asides:
            if not attempts or self.turns[-1].role is not Role.VERIFICATION:
                raise DataError(
                    f"episode of problem {self.problem_id!r} ends in {self.turns[-1].role}, but such a turn is stored with the "
                    "attempt after it: its last turn must be an attempt, or the verification of one."
                )
            attempts[-1]["after"] = asides
        return attempts


def _episode(record: Mapping[str, Any]) -> str:
    return f"the episode of problem {record.get('problem_id')!r:.100}"


def _turns(attempt: Mapping[str, Any]) -> Iterator[StoredTurn]:
    """Yield the turns of a stored attempt: what the model wrote before it, the attempt, and what it wrote after the last one."""
    yield from _asides(attempt, "asides")
    yield _turn(attempt, Role.ATTEMPT, verdict_of_json(attempt))
    yield from _asides(attempt, "after")


def _asides(attempt: Mapping[str, Any], key: str) -> Iterator[StoredTurn]:
    """Yield the stored turns that are no attempts."""
    for aside in _list(attempt, key, Mapping) if key in attempt else ():
        role = Role(aside.get("role", Role.FEEDBACK))
        if role is Role.ATTEMPT:
            raise ValueError(f"{key} holds an attempt")
        yield _turn(aside, role, None)


def _turn(stored: Mapping[str, Any], role: Role, verdict: Verdict | None) -> StoredTurn:
    tokens = tuple(_list(stored, "tokens", int))
    if any(token.__class__ is bool or token < 0 for token in tokens):
        raise ValueError("tokens holds something else than token ids")
    counted = None if stored.get("token_count") is None else _whole(stored, "token_count")
    online = _of(stored, "online", bool) if "online" in stored else True
    other_model, reasoning = (
        _of(stored, name, str, None) if name in stored else None for name in ("other_model", "reasoning")
    )
    stop = StopReason(stored["stop"])
    said = None if stored.get("said") is None else Judgement(stored["said"])
    return StoredTurn(
        _of(stored, "text", str), tokens, stop, verdict, role, online, counted, other_model, reasoning, said
    )


def verdict_of_json(stored: Mapping[str, Any]) -> Verdict:
    """Return the verdict of `verdict_to_json`.

    Raises:
        KeyError: a field is missing.
        ValueError: one is malformed.
    """
    rules = (
        aliases.by_rule(stored)
        if all(isinstance(stored.get(k, {}), Mapping) for k in ("by_rule", "readings"))
        else None
    )
    if rules is None:
        raise ValueError("by_rule is not an object")
    by_rule = {name: Outcome(outcome) for name, outcome in rules.items()}
    checks = tuple(_check(check) for check in _list(stored, "checks", Mapping)) if "checks" in stored else ()
    extracted, detail = _of(stored, "extracted", str, None), _of(stored, "detail", str)
    return Verdict(Outcome(stored["verdict"]), extracted, detail, by_rule, checks)


def _check(stored: Mapping[str, Any]) -> Check:
    names = [field.name for field in fields(Check) if field.name in stored or field.name != "detail"]
    return Check(**{name: _of(stored, name, str) for name in names})


def _of(stored: Mapping[str, Any], key: str, *kinds: type | None) -> Any:
    value = stored[key]
    if not any(value is None if kind is None else isinstance(value, kind) for kind in kinds):
        raise ValueError(f"{key} = {value!r:.60} is a {type(value).__name__}")
    return value


def _whole(stored: Mapping[str, Any], key: str) -> int:
    value = stored[key]
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**53:
        raise ValueError(f"{key} = {value!r:.60} is not a whole number from 0")
    return value


def _list(stored: Mapping[str, Any], key: str, kind: Any) -> list[Any]:
    value = stored[key]
    if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
        raise ValueError(f"{key} = {value!r:.60} is not a list of {kind.__name__}")
    return value


def verdict_to_json(verdict: Verdict) -> dict[str, Any]:
    """Return the JSON fields of a verdict, as plain values.

    ``by_rule`` and ``checks`` (a program's tests) are there only if they are not empty.
    """
    return {
        "verdict": verdict.outcome.value,
        "extracted": verdict.extracted,
        "detail": verdict.detail,
        **({"by_rule": {rule: str(outcome) for rule, outcome in verdict.by_rule.items()}} if verdict.by_rule else {}),
        **({"checks": [asdict(check) for check in verdict.checks]} if verdict.checks else {}),
    }


def length_text(turn: StoredTurn) -> str:
    """Return the length of a stored turn in words."""
    return "length unknown" if turn.length is None else f"{turn.length} tokens"


def stored_rules(episodes: Iterable[StoredEpisode]) -> tuple[str, ...]:
    """Return the names of all by_rule in the verdicts of ``episodes``, in order of first occurrence."""
    return tuple(dict.fromkeys(name for e in episodes for turn in e.attempts for name in turn.judged.by_rule))


def read_episodes(path: Path, limit: int | None = None) -> Iterator[StoredEpisode]:
    """Yield the episodes of a file in order, at most ``limit``; none where the file is missing.

    Raises:
        DataError: a line is not an episode; the message names the line.
    """
    for number, record in enumerate(islice(stored_lines(path), limit), 1):
        try:
            episode = StoredEpisode.from_json(record)
        except DataError as error:
            raise DataError(f"{path}, line {number}: {error}") from None
        yield episode


def stored_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the JSON lines of a log, compressed (``.jsonl.gz``) or not, without a last line that is still being written.

    Raises:
        DataError: a line is not a JSON object, or the file is damaged; the message names the line.
    """
    with opened_log(path) as file:
        if file is not None:
            yield from json_lines(file, path)


def episodes_file(path: Path, *, stage: str | None = None, part: Part = Part.ATTEMPTS) -> Path:
    """Return the episode file of a run or an evaluation; without ``stage``, that of the run's last stage with episodes.

    The file may be compressed; see `stored_lines`.

    Raises:
        DataError: the directory is neither, it has no such stage or part, there are no such episodes yet, or the file
            differs from the seal of a finished directory.
    """
    folder = path / "episodes"
    if (path / "config.toml").is_file():
        stages = list(load_config(path / "config.toml").stages)
        stages = stages if part is Part.TRAIN else ["base", *stages]
        if stage is not None and stage not in stages:
            raise DataError(f"{path} has no stage {stage!r} with such episodes: choose one of {', '.join(stages)}.")
        name = (lambda s: f"train-{s}.jsonl") if part is Part.TRAIN else (lambda s: f"eval-{s}-{part}.jsonl")
        wanted = [folder / name(s) for s in ([stage] if stage else reversed(stages))]
    elif (path / "eval.json").is_file():
        if stage is not None or part is Part.TRAIN:
            raise DataError(f"{path} is an evaluation, which has no stages: leave out --stage and --part train.")
        wanted = [folder / f"eval-{part}.jsonl"]
    else:
        raise DataError(
            f"{path} is neither a run (config.toml) nor an evaluation (eval.json): "
            "give the DIR of `selfcorrect train --out DIR` or `selfcorrect eval --out DIR`."
        )
    for file in wanted:
        check_sealed_file(path, f"episodes/{file.name}")
        packed = file.with_name(file.name + ".gz")  # `stored_lines` falls back to it
        if packed.exists() or (file.exists() and (not file.is_file() or file.stat().st_size)):
            return file
    there = sorted(file.name.partition(".jsonl")[0] for file in folder.glob("*.jsonl*"))
    of_stage = f" and stage {stage!r}" if stage else ""
    raise DataError(
        f"{path} has no episodes of part {part.value!r}{of_stage}; so far it has {', '.join(there) or 'none'}."
    )
