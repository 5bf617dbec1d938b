"""Training by alternating updates: first attempts in one step, revisions of them in the next (docs/method.md, section 13).

With W_t the weights before step t, counted from 0:

    step 2s      samples G first attempts of each problem with W_2s, learns them
    step 2s + 1  samples G revisions of one of them, the draft, with W_2s+1, learns the revisions

Both have the problems and the random numbers of step s of a stage that does not alternate. The samples of a problem are
exchangeable, so its first one is a draft chosen at random. Drafts that wait for their revisions are part of every checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from selfcorrect.rollout.chat_format import ChatFormat
from selfcorrect.training.episode_sampler import StepSample
from selfcorrect.training.pending import PendingSample
from selfcorrect.training.stage_trainer import StepRecord
from selfcorrect.training.step_control import StepUpdates
from selfcorrect.training.stored_episodes import episodes_of_state, episodes_to_state
from selfcorrect.training.trainer import Trainer
from selfcorrect.types import Episode

UNTRAINED = ("entropy_", "kl_", "gradient_norm_", "informative_groups_")
"""The metrics of a turn that say nothing where it is context."""


class AlternatingTrainer(Trainer):
    """A trainer whose steps train the first attempt and the second attempt in turn (`ReinforcementStage.alternates`)."""

    drafts: Sequence[Episode] = ()
    """The first attempts that the next step revises, one for each group; empty before the first step of a pair."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        chat = self.sampler.chat
        self.both, self.first_alone = self.turns, ChatFormat(chat.tokenizer, chat.script.with_turns(1), chat.options)

    def begin(self, *, revising: bool) -> None:
        """Set the columns of a step: both attempts where it revises drafts, else the first one."""
        self.turns = self.both if revising else self.both[:1]

    def take_sample(self) -> StepSample:
        """Return first attempts and keep one of each group, or return the revisions of those that the step before kept."""
        pair, second = divmod(self.state.step, 2)
        self.begin(revising=bool(second))
        with self.clock("generate"):
            episodes = self.sampler.sample(pair, self.drafts, chat=None if second else self.first_alone)
        self.drafts = () if second else episodes[:: self.config.rollout.group_size]
        return StepSample(episodes, episodes, episodes)

    def record(self, sample: StepSample | PendingSample, updates: StepUpdates) -> StepRecord:
        """Count the step and return its record: its reward is that of the attempt that it trains."""
        before, trained = self.state.rewards, self.turns[-1]
        found = super().record(sample, updates)
        reward = trained.weight * found.metrics[f"r{len(self.turns)}"]
        self.state.rewards = [*before, reward][-max(2, self.config.log.keep_window) :]
        metrics = {name: value for name, value in found.metrics.items() if not self.says_nothing(name)}
        return replace(found, metrics={**metrics, "reward": reward})

    def says_nothing(self, metric: str) -> bool:
        """Return whether a metric is of the first attempt, how it is learnt, in a step in which it is context."""
        return len(self.turns) > 1 and metric.startswith(UNTRAINED) and metric.endswith(f"_{self.both[0].name}")

    def measures_turns(self) -> bool:
        every = self.config.log.turn_gradients_every
        return every > 0 and self.state.step // 2 % every == 0

    def selection_metric(self) -> float:
        """Return the mean reward of each kind of step over the last ``log.keep_window`` steps, at least two, added up."""
        kinds = self.state.rewards[::-2], self.state.rewards[-2::-2]
        return sum(fmean(rewards) for rewards in kinds if rewards)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "drafts": episodes_to_state(self.drafts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            LookupError, ValueError: the drafts are not those that the next step revises, or are malformed.
        """
        super().load_state_dict({name: value for name, value in state.items() if name != "drafts"})
        self.drafts = episodes_of_state(state["drafts"], self.sampler.problems)
        step = self.state.step
        wanted = [problem.id for problem in self.sampler.step_problems(step // 2)] if step % 2 else []
        if [draft.problem.id for draft in self.drafts] != wanted:
            raise ValueError(f"after step {step}, {len(self.drafts)} drafts wait, which are not those of its problems")
