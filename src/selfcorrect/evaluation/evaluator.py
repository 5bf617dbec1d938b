"""Measure a model on a task: greedy attempts, samples, and the two controls.

An evaluation is resumable and a pure function of the seed. The controls separate self-correction from a mere second
sample (docs/method.md, section 8): in the *draft swap* the second turn sees the draft of another problem; the
*independent resample* samples the first prompt again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from selfcorrect.distributed.world import ALONE, World
from selfcorrect.documents import read_regular
from selfcorrect.engines import Sampling
from selfcorrect.errors import ConfigError, FailedRequestsError
from selfcorrect.evaluation.metrics import Results, summarize
from selfcorrect.rollout.rollout import RolloutRequest, Verifies
from selfcorrect.rollout.rollouter import Draft, Rollouter
from selfcorrect.script import Script
from selfcorrect.storage.episode_log import StoredEpisode, read_episodes, stored_rules
from selfcorrect.storage.files import append_lines, json_line, refusals, truncate, write_atomically
from selfcorrect.types import TOKENS, Part, Problem, StopReason
from selfcorrect.zoo.registry import Progress

PARTS = (Part.ATTEMPTS, Part.SAMPLED, Part.RESAMPLE, Part.SWAP)
"""The possible parts of an evaluation, each in its own file."""

COMPARED = {"draft_swap": ("acc_t2", "acc_t2_swapped"), "independent_resample": ("acc_t1", "acc_resampled")}
"""The two accuracies that each control compares, by their names in a summary."""


@dataclass(frozen=True, slots=True)
class EvalPlan:
    """What to measure. ``temperature`` 0 is greedy: one sample per problem, whatever ``samples`` is."""

    turns: int = 2
    seed: int = 0
    max_tokens: int = 64
    temperature: float = 0.0
    samples: int = 1
    sampled_temperature: float | None = None
    controls: bool = False
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.turns <= 10:
            raise ConfigError(f"turns = {self.turns}: an evaluation has 1 to 10 attempts.")
        if self.samples < 1 or self.max_tokens < 1:
            raise ConfigError(f"samples = {self.samples}, max_tokens = {self.max_tokens}: both must be at least 1.")
        if self.temperature < 0 or (self.sampled_temperature is not None and self.sampled_temperature <= 0):
            raise ConfigError(
                f"temperature = {self.temperature}: it must be 0 (greedy) or more; for extra samples, above 0."
            )
        if self.controls and self.turns < 2:
            raise ConfigError("the controls compare second attempts: they need turns >= 2.")


@dataclass(frozen=True, slots=True)
class Failures:
    """Conversations in which a server did not answer a request; their attempts from there on have no answer."""

    episodes: int
    of: int
    problem_id: str
    reason: str

    @classmethod
    def among(cls, episodes: Iterable[StoredEpisode]) -> Failures | None:
        """Count the failures, and describe the first; None if there are none."""
        everything = list(episodes)
        failed = [episode for episode in everything if episode.failure is not None]
        if not failed:
            return None
        return cls(len(failed), len(everything), failed[0].problem_id, failed[0].failure or "")


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Results of the main attempts, of samples at the training temperature, and of the controls.

    ``by_rule`` holds the main results under each answer-extraction rule, if the task has several. ``failures`` are the
    conversations of all parts in which a server did not answer a request, ``other_models`` the names under which it
    answered in place of the requested one.
    """

    results: Results
    sampled: Results | None = None
    controls: Mapping[str, Results] = field(default_factory=dict)
    episodes: Sequence[StoredEpisode] = ()
    by_rule: Mapping[str, Results] = field(default_factory=dict)
    context_mode: str = TOKENS
    failures: Failures | None = None
    other_models: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the ``R`` of a summary: the main metrics with ``sampled``, ``controls`` and ``by_rule``.

        ``failed_requests`` and ``other_models`` are there only if there were any.
        """
        found = self.results.to_json()
        found["context_mode"] = self.context_mode
        if self.failures is not None:
            found["failed_requests"] = asdict(self.failures)
        if self.other_models:
            found["other_models"] = list(self.other_models)
        found["lengths"] = turn_lengths(self.episodes)
        if self.by_rule:
            found["by_rule"] = {name: results.to_json() for name, results in self.by_rule.items()}
        if self.sampled is not None:
            found["sampled"] = self.sampled.to_json()
        if self.controls:
            found["controls"] = {name: control_json(name, results) for name, results in self.controls.items()}
        return found

    def to_pandas(self) -> Any:
        """Return the main metrics as one row."""
        return self.results.to_pandas()


def turn_lengths(episodes: Sequence[StoredEpisode]) -> list[dict[str, float]]:
    """Return the mean, median, 90% quantile and maximum of each attempt's sampled tokens over the episodes.

    The list is empty if a server did not report the length of some turn. Failed requests have no length.
    """
    found = []
    for attempts in zip(*(episode.attempts for episode in episodes), strict=True):
        lengths = [turn.length for turn in attempts if turn.stop is not StopReason.FAILED]
        if None in lengths or not lengths:
            return []
        counts = np.array(lengths)
        quantiles = {"median": float(np.median(counts)), "p90": float(np.quantile(counts, 0.9))}
        found.append({"mean": float(counts.mean()), **quantiles, "max": int(counts.max())})
    return found


def control_json(name: str, results: Results) -> dict[str, Any]:
    """Return a control under its own names: the accuracies it compares, and the difference with its interval."""
    found = results.to_json()
    before, after = COMPARED[name]
    return {
        "n": found["n"],
        before: found["acc_t1"],
        after: found["acc_t2"],
        f"{after}_ci95": found["acc_t2_ci95"],
        "difference": found["delta"],
        "difference_ci95": found["delta_ci95"],
        "i_to_c": found["i_to_c"],
        "c_to_i": found["c_to_i"],
    }


class Evaluator:
    """Runs the parts of an evaluation; each part has its own file, from which a later call resumes.

    Args:
        rollouter: runs the conversations.
        stage, step: the origin recorded in the stored episodes; ``stage`` is ``name`` by default.
        folder: the directory of the ``<name>-<part>.jsonl`` files; None keeps everything in memory.
        stop: called regularly; it may raise to stop, and everything up to that point stays saved.
        failed_limit: the fraction of a part's episodes that may be without an answer from the server. Beyond it the
            part stops, and a later call sends the failed requests again.
        first_attempt: returns the text of the first attempt at a problem if the task supplies it (repair); it is then
            not sampled.
        world: the processes that share the work; the first one writes the files.
    """

    def __init__(
        self,
        rollouter: Rollouter,
        script: Script,
        verifier: Verifies,
        problems: Sequence[Problem],
        plan: EvalPlan,
        *,
        name: str,
        folder: Path | None = None,
        stage: str | None = None,
        step: int = 0,
        progress: Progress | None = None,
        stop: Callable[[], None] = lambda: None,
        first_attempt: Callable[[Problem], str] | None = None,
        world: World = ALONE,
        failed_limit: float = 1.0,
    ) -> None:
        self.rollouter, self.script, self.verifier = rollouter, script, verifier
        self.problems, self.plan, self.name, self.folder, self.step = problems, plan, name, folder, step
        self.stage = stage or name
        self.progress, self.stop = progress, stop
        self.first_attempt, self.world = first_attempt, world
        self.failed_limit = failed_limit
        self.parts: dict[Part, list[StoredEpisode]] = {}

    def run(self) -> Evaluation:
        """Run everything the plan asks for."""
        plan = self.plan
        samples = plan.samples if plan.temperature > 0 else 1  # greedy samples are all the same
        main = self.run_part(Part.ATTEMPTS, plan.turns, plan.temperature, samples, self.given_drafts(samples))
        if plan.sampled_temperature is not None:
            given = self.given_drafts(plan.samples)
            self.run_part(Part.SAMPLED, plan.turns, plan.sampled_temperature, plan.samples, given)
            if plan.controls:
                self.run_part(Part.RESAMPLE, 1, plan.sampled_temperature, plan.samples)
        if plan.controls:
            swapped = self.swapped_drafts(main, samples)
            self.run_part(Part.SWAP, 2, plan.temperature, samples, swapped)
        return self._evaluation(self.parts)

    def partial(self) -> Evaluation | None:
        """Return the evaluation of the episodes so far, without controls; None if there are none."""
        plain = {part: self.parts.get(part, []) for part in (Part.ATTEMPTS, Part.SAMPLED)}
        parts = {part: episodes for part, episodes in plain.items() if episodes}
        return self._evaluation(parts) if Part.ATTEMPTS in parts else None

    def _evaluation(self, parts: Mapping[Part, Sequence[StoredEpisode]]) -> Evaluation:
        return evaluation_of(parts, seed=self.plan.seed, context_mode=self.rollouter.context_mode)

    def run_part(
        self, part: Part, turns: int, temperature: float, samples: int, drafts: Sequence[Draft] | None = None
    ) -> list[StoredEpisode]:
        """Return the stored episodes of one part, in the order of the problems; only those not on disk yet are run."""
        places = [
            RolloutRequest(problem, s, self.plan.seed, f"eval/{part}", 0)
            for problem in self.problems
            for s in range(samples)
        ]
        path = None if self.folder is None else self.folder / f"{self.name}-{part}.jsonl"
        stored = self.world.from_first(
            lambda: [] if path is None else whole_chunks(path, self.rollouter.chunk, len(places))
        )
        self.parts[part] = stored
        for again in (self._failed_before(stored, len(places)), range(len(stored), len(places))):
            played = self.rollouter.run(
                [places[i] for i in again],
                script=self.script.with_turns(turns),
                verifier=self.verifier,
                sampling=Sampling(temperature, self.plan.max_tokens, self.plan.stop),
                drafts=None if drafts is None else [drafts[i] for i in again],
                stop=self.stop,
            )
            numbers = iter(again)
            for episodes in played:
                new = [StoredEpisode.of(episode, stage=self.stage, step=self.step) for episode in episodes]
                with self.world.together():
                    self._store(new, [next(numbers) for _ in new], stored, path if self.world.first else None)
                self._refuse_too_many_failures(stored, len(places))
                if self.progress:
                    self.progress(f"{self.name}, {part}", len(stored), len(places))
        return stored

    def _store(
        self, new: Sequence[StoredEpisode], numbers: Sequence[int], stored: list[StoredEpisode], path: Path | None
    ) -> None:
        """Add episodes to the stored ones, in memory and on disk, or put them in the place of failed ones."""
        added = numbers[0] == len(stored)
        if added:
            stored += new
        else:
            for i, episode in zip(numbers, new, strict=True):
                stored[i] = episode
        if path is None:
            return
        with refusals(path.parent):
            if added:
                append_lines(path, (episode.to_json() for episode in new))
            else:
                write_atomically(path, "".join(json_line(episode.to_json()) for episode in stored))

    def _failed_before(self, stored: Sequence[StoredEpisode], total: int) -> list[int]:
        """Return the stored episodes to run again: those that failed, if their part was stopped before its end."""
        failed = [i for i, episode in enumerate(stored) if episode.failure is not None]
        return failed if len(stored) < total or len(failed) > self.failed_limit * total else []

    def _refuse_too_many_failures(self, stored: Sequence[StoredEpisode], total: int) -> None:
        found = Failures.among(stored)
        if found is not None and found.episodes > self.failed_limit * total:
            raise FailedRequestsError(
                f"problem {found.problem_id!r}, {found.reason.removesuffix('.')}. "
                f"{found.episodes} of {total} conversations have no answer, "
                f"more than failed_limit = {self.failed_limit:g} allows; this was the first. The same command sends these "
                "requests again; with a higher failed_limit they count as attempts without an answer."
            )

    def given_drafts(self, samples: int) -> list[Draft] | None:
        """Return the first attempts that the task supplies; None if they are sampled."""
        if self.first_attempt is None:
            return None
        given = [self.rollouter.given_draft(self.first_attempt(problem)) for problem in self.problems]
        return [draft for draft in given for _ in range(samples)]

    def swapped_drafts(self, episodes: Sequence[StoredEpisode], samples: int) -> list[Draft]:
        """Return for each episode the first attempt of the next problem; the last problem gets the one of the first."""
        donors = [*episodes[samples:], *episodes[:samples]]
        return [self.rollouter.stored_draft(donor.attempts[0]) for donor in donors]


def evaluation_of(
    parts: Mapping[Part, Sequence[StoredEpisode]], *, seed: int, context_mode: str = TOKENS
) -> Evaluation:
    """Return the evaluation of stored episodes by part: ``attempts`` and, if they were run, the others of `PARTS`."""
    main, sampled, controls = parts[Part.ATTEMPTS], None, {}
    if Part.SAMPLED in parts:
        sampled = _summary(parts[Part.SAMPLED], seed)
        if Part.RESAMPLE in parts:
            controls["independent_resample"] = _paired(parts[Part.SAMPLED], 0, parts[Part.RESAMPLE], 0, seed)
    if Part.SWAP in parts:
        controls["draft_swap"] = _paired(main, 1, parts[Part.SWAP], 1, seed)
    by_rule = {name: _summary(main, seed, name) for name in stored_rules(main)}
    everything = list(chain.from_iterable(parts.values()))
    failures, names = Failures.among(everything), _other_models(everything)
    return Evaluation(_summary(main, seed), sampled, controls, main, by_rule, context_mode, failures, names)


def _other_models(episodes: Iterable[StoredEpisode]) -> list[str]:
    """Return the names under which a server answered in place of the requested one."""
    names = {turn.other_model for episode in episodes for turn in episode.turns}
    return sorted(name for name in names if name is not None)


def _summary(episodes: Sequence[StoredEpisode], seed: int, rule: str | None = None) -> Results:
    ids = [episode.problem_id for episode in episodes]
    return summarize(ids, [episode.graded(rule) for episode in episodes], seed=seed)


def _paired(
    one: Sequence[StoredEpisode], turn: int, other: Sequence[StoredEpisode], other_turn: int, seed: int
) -> Results:
    """Summarize two attempts of different conversations at the same problem as if they were t1 and t2."""
    pairs = [(a.attempts[turn].graded(), b.attempts[other_turn].graded()) for a, b in zip(one, other, strict=True)]
    return summarize([episode.problem_id for episode in one], pairs, seed=seed)


def whole_chunks(path: Path, chunk: int, total: int) -> list[StoredEpisode]:
    """Return the stored episodes of a file, truncated to whole chunks so that an interrupted chunk runs again.

    Raises:
        DataError: a line is not an episode; the message names it.
    """
    if not path.exists():
        return []
    data = read_regular(path)
    lines = data[: data.rfind(b"\n") + 1].splitlines(keepends=True)
    if len(lines) < total:
        lines = lines[: len(lines) // chunk * chunk]
    kept = sum(map(len, lines))
    if kept < len(data):
        truncate(path, kept)
    return list(read_episodes(path))
