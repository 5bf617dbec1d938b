"""A shared pool of drafts: the first attempts of a stored evaluation, which any model revises in place of its own.

How well models revise is then comparable although their own first attempts differ: m_w = P(r2 = 1) after an incorrect draft,
m_r = P(r2 = 1) after a correct one (`Detection.correct_if_incorrect`, `Detection.correct_if_correct`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from selfcorrect.errors import ConfigError
from selfcorrect.storage.episode_log import StoredTurn, read_episodes
from selfcorrect.storage.evaluation_dir import read_finished_identity
from selfcorrect.types import Part, Problem, StopReason


@dataclass(frozen=True, slots=True)
class DraftPool:
    """One draft for each problem, by the problem's id; ``truncated`` of them were cut off by the pool's own token limit."""

    texts: Mapping[str, str]
    truncated: int = 0

    @classmethod
    def of(cls, path: Path, task: str, problems: Sequence[Problem]) -> DraftPool:
        """Choose a draft for each problem from a finished evaluation: a sampled one if it has any, else the greedy one.

        Half of the drafts are incorrect, as far as the problems have both kinds.

        Raises:
            ConfigError: the evaluation is of another task, or has no first attempt at some problem.
            DataError: it is not finished, or damaged.
        """
        identity = read_finished_identity(path)
        if identity["task"]["name"] != task:
            raise ConfigError(
                f"drafts = {str(path)!r} is an evaluation of {identity['task']['name']!r}, not of {task!r}."
            )
        by_verdict, cut = _first_attempts(path)
        missing = [problem.id for problem in problems if not any(by_verdict.get(problem.id, ()))]
        if missing:
            raise ConfigError(
                f"drafts = {str(path)!r} has no first attempt at {len(missing)} of {len(problems)} problems, such as "
                f"{missing[0]!r}: evaluate the pool with this split, data_seed and limit, or a larger limit."
            )
        texts = _balanced({problem.id: by_verdict[problem.id] for problem in problems})
        return cls(texts, sum(draft in cut for draft in texts.items()))

    def first_attempt(self, problem: Problem) -> str:
        """Return the draft of a problem."""
        return self.texts[problem.id]

    @property
    def digest(self) -> str:
        """Return a digest of the drafts, which is part of an evaluation's identity."""
        return hashlib.sha256(json.dumps(self.texts, sort_keys=True).encode()).hexdigest()


def _first_attempts(path: Path) -> tuple[dict[str, tuple[list[str], list[str]]], set[tuple[str, str]]]:
    """Return the incorrect and the correct first attempts at each problem, in stored order, and the truncated ones.

    The latter are pairs of a problem's id and a text.
    """
    cut: set[tuple[str, str]] = set()
    for part in (Part.SAMPLED, Part.ATTEMPTS):
        file = path / "episodes" / f"eval-{part}.jsonl"
        found: dict[str, tuple[list[str], list[str]]] = {}
        for episode in read_episodes(file) if file.exists() else ():
            first: StoredTurn = episode.attempts[0]
            if first.stop is not StopReason.FAILED:
                found.setdefault(episode.problem_id, ([], []))[first.judged.correct].append(first.text)
            if first.stop is StopReason.LENGTH:
                cut.add((episode.problem_id, first.text))
        if found:
            return found, cut
    return {}, cut


def _balanced(by_verdict: Mapping[str, tuple[Sequence[str], Sequence[str]]]) -> dict[str, str]:
    """Choose a text for each problem so that as many are incorrect as correct, as far as that goes.

    >>> _balanced({"a": ([], ["1"]), "b": (["2"], ["3"]), "c": (["4"], ["5"])})
    {'a': '1', 'b': '2', 'c': '4'}
    """
    counts = [0, 0]
    for incorrect, correct in by_verdict.values():
        if not (incorrect and correct):
            counts[bool(correct)] += 1
    chosen = {}
    for problem_id, (incorrect, correct) in by_verdict.items():
        if incorrect and correct:
            kind = counts[1] < counts[0]
            counts[kind] += 1
        else:
            kind = bool(correct)
        chosen[problem_id] = (incorrect, correct)[kind][0]
    return chosen
