"""Verify the stored answers of an evaluation again with the current task; nothing is generated."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from selfcorrect.config.schema import TaskConfig
from selfcorrect.errors import DataError
from selfcorrect.evaluation.evaluation import PARTS, Evaluation, evaluation_of
from selfcorrect.evaluation.supply import Supply
from selfcorrect.storage.consent import code_of_task, require_consent
from selfcorrect.storage.episode_log import StoredEpisode, StoredTurn, read_episodes
from selfcorrect.storage.evaluation_dir import EvaluationDirectory, plain, read_finished_identity
from selfcorrect.storage.provenance import data_digest
from selfcorrect.storage.seal import WAY_OUT
from selfcorrect.tasks import Task, get_task
from selfcorrect.tasks.base import origin_of
from selfcorrect.tasks.verifier import Verifier
from selfcorrect.types import Part, Problem, Split, StopReason, Verdict
from selfcorrect.zoo.resolve import LIVE


@dataclass(frozen=True, eq=False)
class Rescored:
    """The new evaluation, the number of verdicts, and counts of the changed ones by change ("wrong -> right")."""

    evaluation: Evaluation
    verdicts: int
    changed: Counter[str] = field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "verdicts": self.verdicts,
            "changed": dict(self.changed),
            "results": {"model": self.evaluation.to_json()},
        }


def rescore(
    path: str | Path,
    *,
    task: Task | None = None,
    task_options: Mapping[str, Any] | None = None,
    dry_run: bool = False,
    allow_code: Collection[str] = (),
) -> Rescored:
    """Verify the stored answers in an evaluation's directory again and rewrite its results.

    Args:
        task: the task, if the evaluation used a live one.
        task_options: changes to the task's recorded options (``{"extraction": "strict"}``).
        dry_run: only report the changes; the directory stays unchanged.
        allow_code: the names of code that the directory may have run: its verifier, for instance. What ``task_options``
            names is allowed.

    Raises:
        ConsentError: the directory names code that is not allowed; nothing was imported.
        DataError: there is no finished evaluation, it differs from its seal, its task cannot be rebuilt, or the task now
            makes other problems.
        VerifierError: too many verdicts failed; the directory stays unchanged.
    """
    path = Path(path)
    read_finished_identity(path)  # rejects unfinished evaluations before anything is opened
    with EvaluationDirectory.open(path) as directory:
        begin = time.perf_counter()
        parts = {part: list(read_episodes(_file(path, part))) for part in PARTS}  # damage is found before code runs
        parts = {part: _alike(episodes, _file(path, part)) for part, episodes in parts.items() if episodes}
        if Part.ATTEMPTS not in parts:
            raise DataError(f"{_file(path, Part.ATTEMPTS)} is missing or empty: restore it, or evaluate again.")
        identity = read_finished_identity(path)
        source = {**identity.get("task_source", {})}
        source["options"] = plain({**source.get("options", {}), **(task_options or {})})
        task = task or _task(path, source, task_options or {}, allow_code)
        problems = _problems(task, identity["problems"])
        settings = TaskConfig()
        changed: Counter[str] = Counter()
        with Verifier(task, time_limit_s=settings.time_limit_s, failure_limit=settings.failure_limit) as verifier:
            new = {part: _verified(episodes, problems, verifier, changed) for part, episodes in parts.items()}
        found = evaluation_of(
            new,
            seed=identity["plan"]["seed"],
            context_mode=identity["context_mode"],
            drafts=identity["plan"].get("drafts"),
            supply=Supply.of(task, Split(identity["problems"]["split"]), taken=len(problems), limit=None),
        )
        if not dry_run:
            rescored = {
                **identity,
                "task": {"name": task.name, "version": task.version},
                "problems": {**identity["problems"], "digest": data_digest(list(problems.values()))},
                "task_source": source,
            }
            directory.replace(rescored, new)
            directory.finish(found.to_json(), time.perf_counter() - begin, origin_of(task))
    verdicts = sum(not turn.skipped for episodes in new.values() for e in episodes for turn in e.attempts)
    return Rescored(found, verdicts, changed)


def rescored_text(found: Rescored) -> str:
    """Return a sentence on what changed."""
    changes = ", ".join(f"{count} {change}" for change, count in found.changed.most_common())
    return f"{found.verdicts} verdicts recomputed; {found.changed.total()} changed" + (
        f": {changes}" if changes else ""
    )


def _file(path: Path, part: Part) -> Path:
    return path / "episodes" / f"eval-{part}.jsonl"


def _alike(episodes: list[StoredEpisode], file: Path) -> list[StoredEpisode]:
    """Return the episodes if all have as many attempts as the first, as in every evaluation."""
    counts = {len(episode.attempts) for episode in episodes}
    if len(counts) > 1:
        raise DataError(
            f"{file} is damaged: its episodes have {' or '.join(map(str, sorted(counts)))} attempts. {WAY_OUT}"
        )
    return episodes


def _task(path: Path, source: Mapping[str, Any], given: Mapping[str, Any], allow_code: Collection[str]) -> Task:
    name = source.get("name")
    if name is None or name == LIVE:
        raise DataError(
            f"the evaluation in {path} does not say how its task was made (it was a live object, or an older version "
            "wrote it). Pass the task in Python: rescore(path, task=...)."
        )
    require_consent(path, code_of_task(name, source["options"], given), allow_code)
    return get_task(name, source["options"])


def _problems(task: Task, stored: Mapping[str, Any]) -> dict[str, Problem]:
    """Return the problems as the task makes them now, by id; references may have been corrected since."""
    if stored["split"] not in tuple(Split):
        raise DataError(f"the evaluation names the split {stored['split']!r}; there are {', '.join(Split)}. {WAY_OUT}")
    problems = task.problems(Split(stored["split"]), seed=stored["data_seed"], limit=stored["count"])
    return {problem.id: problem for problem in problems}


def _verified(
    episodes: Sequence[StoredEpisode], problems: Mapping[str, Problem], verifier: Verifier, changed: Counter[str]
) -> list[StoredEpisode]:
    items = [
        (_problem_of(episode, problems), turn.text)
        for episode in episodes
        for turn in episode.attempts
        if not turn.skipped
    ]
    verdicts = iter(verifier.verify(items))
    new = []
    for episode in episodes:
        turns: list[StoredTurn] = []
        for turn in episode.turns:
            turns.append(_repeated(turn, turns) if turn.skipped else _with_verdict(turn, verdicts, changed))
        new.append(replace(episode, reference=problems[episode.problem_id].reference, turns=tuple(turns)))
    return new


def _repeated(turn: StoredTurn, before: Sequence[StoredTurn]) -> StoredTurn:
    """Return a skipped turn; as an attempt it has the verdict of the one before it."""
    if turn.verdict is None:
        return turn
    return replace(turn, verdict=next(last.verdict for last in reversed(before) if last.verdict is not None))


def _problem_of(episode: StoredEpisode, problems: Mapping[str, Problem]) -> Problem:
    problem = problems.get(episode.problem_id)
    if problem is None or problem.prompt != episode.prompt:
        raise DataError(
            f"the task now makes other problems: {episode.problem_id!r} is {'gone' if problem is None else 'another one'}. "
            "Use the data and options of the evaluation, or evaluate again."
        )
    return problem


def _with_verdict(turn: StoredTurn, verdicts: Iterator[Verdict], changed: Counter[str]) -> StoredTurn:
    """Return the turn with the next verdict if it is an attempt; count what the verdict changed from and to."""
    if turn.verdict is None:
        return turn
    before, now = turn.verdict, next(verdicts)
    if turn.stop is StopReason.FAILED:  # its verdict says why there is no answer
        return turn
    if before.outcome is not now.outcome:
        changed[f"{before.outcome} -> {now.outcome}"] += 1
    return replace(turn, verdict=now)
