"""Measure a model on a task: greedy attempts, samples, and the controls.

An evaluation is resumable and a pure function of the seed. The controls separate self-correction from a mere second
sample (docs/method.md, section 8). With a *blind draft* the second turn sees a draft that says nothing of the problem:
that of another problem (the draft swap), an empty one, or its own with the words shuffled. The *independent resample*
samples the first prompt again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from selfcorrect.distributed.world import ALONE, World
from selfcorrect.documents import read_regular
from selfcorrect.engines import Sampling
from selfcorrect.errors import FailedRequestsError, SelfCorrectError
from selfcorrect.evaluation.advice import ControlsWarning, Truncation
from selfcorrect.evaluation.blind_drafts import shuffled_draft
from selfcorrect.evaluation.conclusion import useless_controls
from selfcorrect.evaluation.draft_pool import DraftPool
from selfcorrect.evaluation.early_episodes import Key, in_order, read_early, write_early
from selfcorrect.evaluation.evaluation import (
    BLIND,
    PARTS,
    Evaluation,
    Failures,
    evaluation_of,
)
from selfcorrect.evaluation.flags import correct_at, truncated_at
from selfcorrect.evaluation.planned_parts import RUNS_BLIND, EvalPlan, PlannedPart, cost_text, planned_parts
from selfcorrect.evaluation.supply import Supply
from selfcorrect.evaluation.time_left import TimeLeft, replies_of
from selfcorrect.rollout.rollout import RolloutRequest, Verifies
from selfcorrect.rollout.rollouter import Draft, Rollouter
from selfcorrect.script import Script
from selfcorrect.storage.episode_log import StoredEpisode, read_episodes
from selfcorrect.storage.files import append_lines, json_line, refusals, truncate, write_atomically
from selfcorrect.types import MESSAGES, Episode, Part, Problem, StopReason
from selfcorrect.zoo.registry import Progress

log = logging.getLogger(__name__)


class Evaluator:
    """Runs the parts of an evaluation; each part has its own file, from which a later call resumes.

    Args:
        rollouter: runs the conversations.
        stage, step: the origin recorded in the stored episodes; ``stage`` is ``name`` by default.
        title: what the progress calls the evaluation; ``name`` by default.
        folder: the directory of the ``<name>-<part>.jsonl`` files; None keeps everything in memory.
        stop: called regularly; it may raise to stop, and everything up to that point stays saved.
        failed_limit: the fraction of a part's episodes that may be without an answer from the server. Beyond it the
            part stops, and a later call sends the failed requests again.
        first_attempt: returns the text of the first attempt at a problem if the task supplies it (repair); it is then
            not sampled.
        pool: the first attempts, if they are from a shared pool; truncated at the token limit.
        world: the processes that share the work; the first one writes the files.
        blind: the blind drafts of the controls; each costs one second attempt per episode.
        supply: all problems of a task that cannot make more.
        warns_as: how to say after the attempts that the controls will hardly tell anything; None says nothing.
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
        title: str | None = None,
        step: int = 0,
        progress: Progress | None = None,
        left: Callable[[float], None] | None = None,
        stop: Callable[[], None] = lambda: None,
        first_attempt: Callable[[Problem], str] | None = None,
        pool: DraftPool | None = None,
        world: World = ALONE,
        failed_limit: float = 1.0,
        blind: Sequence[Part] = RUNS_BLIND,
        warns_as: ControlsWarning | None = None,
        supply: Supply | None = None,
    ) -> None:
        self.rollouter, self.script, self.verifier = rollouter, script, verifier
        self.problems, self.plan, self.name, self.folder, self.step = problems, plan, name, folder, step
        self.stage, self.title = stage or name, title or name
        self.progress, self.left, self.stop = progress, left, stop
        self.first_attempt = pool.first_attempt if pool else first_attempt
        self.pool, self.world = pool, world
        self.failed_limit, self.blind, self.warns_as = failed_limit, blind, warns_as
        self.supply = supply
        self.parts: dict[Part, list[StoredEpisode]] = {}
        self._now = 0
        self._time_left = self._from_now()

    def run(self) -> Evaluation:
        """Run everything the plan asks for."""
        self._time_left = self._from_now()
        self.rollouter.sampled = self._sampled
        for number, planned in enumerate(self.planned):
            self._now = number
            self._time_left.begin(number, 0)
            drafts = self._drafts(planned)
            if planned.part in BLIND and not self._is_accepted(planned.part, self.parts[Part.ATTEMPTS], drafts or []):
                continue
            self.run_part(planned.part, planned.turns, planned.temperature, planned.samples, drafts)
            if number == 0:
                self._warn_of_useless_controls()
        return self._evaluation(self.parts)

    @property
    def planned(self) -> list[PlannedPart]:
        """Return the parts in the order in which they run."""
        return planned_parts(self.plan, self.blind, supplied=self.first_attempt is not None)

    @property
    def cost(self) -> str:
        """Return in words how many replies of the model each part needs."""
        replies = []
        for planned in self.planned:
            turns = len(self.script.with_turns(planned.turns).user_turns(self.problems[0].prompt))
            replies.append((turns - planned.given) * planned.samples)
        return cost_text(self.planned, replies, len(self.problems))

    @property
    def at(self) -> str:
        """Return in words how far the evaluation is: the part in progress, and what is complete."""
        parts = self.planned
        part, total = parts[self._now].part, self._total(parts[self._now])
        done = f"in part {self._now + 1} of {len(parts)} ({part}), which has {len(self.parts.get(part, []))} of {total}"
        complete = [str(planned.part) for planned in parts[: self._now] if self._is_complete(planned)]
        return f"{done}; complete: {', '.join(complete) or 'none'}"

    @property
    def sampling_temperature(self) -> float:
        """Return the temperature of the part in progress."""
        return self.planned[self._now].temperature

    def partial(self) -> Evaluation | None:
        """Return the evaluation of the episodes so far, with the controls that are complete; None if there are none."""
        own = (Part.ATTEMPTS, Part.SAMPLED)
        kept = [p.part for p in self.planned if p.part in self.parts and (p.part in own or self._is_complete(p))]
        parts = {part: self.parts[part] for part in kept if self.parts[part]}
        return self._evaluation(parts) if Part.ATTEMPTS in parts else None

    def _total(self, planned: PlannedPart) -> int:
        return len(self.problems) * planned.samples

    def _is_complete(self, planned: PlannedPart) -> bool:
        return len(self.parts.get(planned.part, [])) == self._total(planned)

    def _drafts(self, planned: PlannedPart) -> list[Draft] | None:
        """Return the first attempts that a part does not sample; None if it samples them."""
        if planned.part in BLIND:
            return self.blind_drafts(planned.part, self.parts[Part.ATTEMPTS], planned.samples)
        return self.given_drafts(planned.samples) if planned.part is not Part.RESAMPLE else None

    def _warn_of_useless_controls(self) -> None:
        """Say before the controls run that they will hardly tell anything, what to change, and that they run all the same."""
        after = self._file(self.planned[1].part) if self.plan.controls and len(self.planned) > 1 else None
        if self.warns_as is None or not self.plan.controls or (after is not None and after.exists()):
            return
        main = self.parts[Part.ATTEMPTS]
        cut = [Truncation(k + 1, float(truncated_at(main, k).mean()), self.plan.max_tokens) for k in (0, 1)]
        verdicts = [correct_at(main, k) for k in (0, 1)]
        said = useless_controls(verdicts, len(self.problems), cut, names=self.warns_as.names, supply=self.supply)
        if said is not None and self.world.first:
            log.warning("%s, attempts: %s. %s.", self.name, said, self.warns_as.meanwhile)

    def _evaluation(self, parts: Mapping[Part, Sequence[StoredEpisode]]) -> Evaluation:
        mode = self.rollouter.context_mode
        in_order = {part: parts[part] for part in PARTS if part in parts}
        drafts = self.pool.digest if self.pool else None
        return evaluation_of(in_order, seed=self.plan.seed, context_mode=mode, drafts=drafts, supply=self.supply)

    def run_part(
        self, part: Part, turns: int, temperature: float, samples: int, drafts: Sequence[Draft] | None = None
    ) -> list[StoredEpisode]:
        """Return the stored episodes of one part, in the order of the problems; only those not on disk yet are run."""
        places = [
            RolloutRequest(problem, s, self.plan.seed, f"eval/{part}", 0)
            for problem in self.problems
            for s in range(samples)
        ]
        path = self._file(part)
        stored = self.world.from_first(
            lambda: [] if path is None else whole_chunks(path, self.rollouter.chunk, len(places))
        )
        self.parts[part] = stored
        self._time_left.begin(self._now, len(stored))
        early = self.world.from_first(lambda: read_early(path))
        for again in (self._failed_before(stored, len(places)), range(len(stored), len(places))):
            keys = [(places[i].problem.id, places[i].sample) for i in again]
            waiting = [i for i, key in zip(again, keys, strict=True) if key not in early]
            given = None if drafts is None else [drafts[i] for i in waiting]
            played = self._stored_episodes(self._played([places[i] for i in waiting], turns, temperature, given))
            numbers = iter(again)
            try:
                for new in in_order(keys, early, played):
                    with self.world.together():
                        self._store(new, [next(numbers) for _ in new], stored, path if self.world.first else None)
                    self._refuse_too_many_failures(stored, len(places))
                    self._time_left.stored(len(stored))
                    self._tell(part, len(stored), len(places))
            except Exception:
                self._keep_early(path, early, stored)
                raise
        if path is not None and early and self.world.first:
            write_early(path, [])
        return stored

    def _from_now(self) -> TimeLeft:
        parts = replies_of(self.planned, self.script, len(self.problems))
        return TimeLeft(parts, getattr(self.rollouter, "concurrency", 0))

    def _sampled(self, replies: int) -> None:
        """Report progress within a batch of conversations, whose first turns may take minutes."""
        self._time_left.sampled(replies * self.world.size)
        planned = self.planned[self._now]
        self._tell(planned.part, len(self.parts.get(planned.part, ())), self._total(planned))

    def _tell(self, part: Part, done: int, total: int) -> None:
        seconds = self._time_left.seconds
        if self.left and seconds is not None:
            self.left(seconds)
        if self.progress:
            self.progress(self._label(part), done, total)

    def _stored_episodes(self, played: Iterator[list[Episode]]) -> Iterator[list[StoredEpisode]]:
        for episodes in played:
            yield [StoredEpisode.of(episode, stage=self.stage, step=self.step) for episode in episodes]

    def _keep_early(
        self, path: Path | None, early: Mapping[Key, StoredEpisode], stored: Sequence[StoredEpisode]
    ) -> None:
        """Keep the conversations that finished before an earlier one; what cannot be kept is asked again."""
        if path is None or not self.world.first:
            return
        with suppress(SelfCorrectError, OSError):
            (new,) = self._stored_episodes(iter([self.rollouter.finished_early(self.verifier)]))
            there = {(episode.problem_id, episode.sample) for episode in stored}
            kept = {**early, **{(episode.problem_id, episode.sample): episode for episode in new}}
            write_early(path, [episode for key, episode in kept.items() if key not in there])

    def _label(self, part: Part) -> str:
        parts = [planned.part for planned in self.planned]
        place = f" (part {parts.index(part) + 1} of {len(parts)})" if len(parts) > 1 and part in parts else ""
        return f"{self.title}, {part}{place}"

    def _played(
        self, places: Sequence[RolloutRequest], turns: int, temperature: float, drafts: Sequence[Draft] | None
    ) -> Iterator[list[Episode]]:
        return self.rollouter.run(
            places,
            script=self.script.with_turns(turns),
            verifier=self.verifier,
            sampling=Sampling(temperature, self.plan.max_tokens, self.plan.stop),
            drafts=drafts,
            stop=self.stop,
        )

    def _file(self, part: Part) -> Path | None:
        return None if self.folder is None else self.folder / f"{self.name}-{part}.jsonl"

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
        """Return the first attempts that are supplied; None if they are sampled."""
        if self.first_attempt is None:
            return None
        limit = self.plan.max_tokens if self.pool else None
        given = [self.rollouter.given_draft(self.first_attempt(problem), limit) for problem in self.problems]
        return [draft for draft in given for _ in range(samples)]

    def blind_drafts(self, part: Part, episodes: Sequence[StoredEpisode], samples: int) -> list[Draft]:
        """Return a draft for each episode that says nothing of its problem."""
        if part is Part.SWAP:
            return self.swapped_drafts(episodes, samples)
        if part is Part.EMPTY:
            return [self.rollouter.given_draft("")] * len(episodes)
        return [self._shuffled_draft(episode) for episode in episodes]

    def _shuffled_draft(self, episode: StoredEpisode) -> Draft:
        """Return an episode's own first attempt with its words in another order; no longer, so that it fits the context."""
        own = episode.attempts[0]
        if own.stop is StopReason.FAILED:
            return self.rollouter.stored_draft(own)
        text = shuffled_draft(own.text, seed=self.plan.seed, problem_id=episode.problem_id, sample=episode.sample)
        return self.rollouter.given_draft(text, max(1, len(own.tokens)))

    def _is_accepted(self, part: Part, main: Sequence[StoredEpisode], drafts: Sequence[Draft]) -> bool:
        """Return whether the conversations of a part can be held: some servers reject an empty attempt.

        One conversation that the server answered before tells. A part that has begun, or that needs no server, continues.
        """
        answered = [i for i, episode in enumerate(main) if episode.failure is None]
        path = self._file(part)
        if part is not Part.EMPTY or self.rollouter.context_mode != MESSAGES or not answered:
            return True
        if path is not None and path.exists():
            return True
        first = answered[0]
        problem = self.problems[first // (len(main) // len(self.problems))]
        place = RolloutRequest(problem, main[first].sample, self.plan.seed, f"eval/{part}", 0)
        ((episode,),) = self._played([place], 2, self.plan.temperature, [drafts[first]])
        accepted = all(turn.stop is not StopReason.FAILED for turn in episode.turns)
        if not accepted:
            log.warning(
                "the control with an empty draft is left out, because the server does not answer a conversation with an empty "
                "attempt: %s The completions protocol (--api completions) needs no such message.",
                episode.turns[-1].verdict.detail if episode.turns[-1].verdict else "",
            )
        return accepted

    def swapped_drafts(self, episodes: Sequence[StoredEpisode], samples: int) -> list[Draft]:
        """Return for each episode the first attempt of the next problem; the last problem gets the one of the first."""
        donors = [*episodes[samples:], *episodes[:samples]]
        return [self.rollouter.stored_draft(donor.attempts[0]) for donor in donors]


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
