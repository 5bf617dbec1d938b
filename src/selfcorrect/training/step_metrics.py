"""The metrics logged for every training step, from its episodes and from sums that the learner accumulates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from selfcorrect.distributed.shards import is_shard, norm
from selfcorrect.distributed.world import World
from selfcorrect.models.dtypes import ROUNDED
from selfcorrect.training.batch import MicroBatch
from selfcorrect.training.scoring import ReferenceLogprobs, TokenScores
from selfcorrect.types import Episode, Judgement, Outcome, Role, StopReason


def episode_metrics(episodes: Sequence[Episode], rewards_NK: Tensor, group: int, revisions: int = 1) -> dict[str, Any]:
    """Return accuracy per turn, changes from t1 to t2, truncation, verifier failures, and how much there is to learn from.

    ``r1``, ``r2``, ... are mean rewards. ``delta``, ``i_to_c`` and ``c_to_i`` compare the first two turns.
    ``informative_groups`` is, per turn, the fraction of groups whose rewards differ; with several ``revisions`` of a first
    attempt, the groups of later turns are those revisions. All rates are fractions of 1.
    """
    count, turns = rewards_NK.shape
    varied_K = [_varied(rewards_NK[:, k], revisions if k and revisions > 1 else group) for k in range(turns)]
    metrics: dict[str, Any] = {f"r{k + 1}": float(rewards_NK[:, k].mean()) for k in range(turns)}
    if turns > 1:
        first, second = rewards_NK[:, 0] > 0, rewards_NK[:, 1] > 0
        gained, lost = int((~first & second).sum()), int((first & ~second).sum())
        changed = sum(episode.attempts[0].text != episode.attempts[1].text for episode in episodes)
        metrics |= {
            "delta": (gained - lost) / count,
            "i_to_c": gained / count,
            "c_to_i": lost / count,
            "answer_change_rate": changed / count,
        }
    for k in range(turns):
        of_turn = [episode.attempts[k] for episode in episodes]
        metrics[f"truncated_t{k + 1}"] = sum(turn.stop is StopReason.LENGTH for turn in of_turn) / count
        lengths = [len(turn.ids) for turn in of_turn]
        metrics[f"tokens_t{k + 1}"] = sum(lengths) / count
        metrics[f"tokens_t{k + 1}_max"] = max(lengths)
        metrics[f"informative_groups_t{k + 1}"] = varied_K[k]
    outcomes = [verdict.outcome for episode in episodes for verdict in episode.verdicts]
    told_apart = [outcome for outcome in Outcome if outcome not in (Outcome.CORRECT, Outcome.INCORRECT)]
    metrics |= {outcome.value: outcomes.count(outcome) / len(outcomes) for outcome in told_apart}
    return metrics


def mean_reward(episodes: Sequence[Episode], weights: Sequence[float]) -> float:
    """Return the mean weighted reward of the trained turns; verifications of drafts are a mean of their own, added to it.

    ``weights`` are those of the turns' rewards, and then those of columns without a reward of their own, which are left out.
    """
    total = 0.0
    for of_draft in (False, True):
        found = [episode.trained_rewards for episode in episodes if episode.of_draft is of_draft]
        if found:
            rewards_NK = torch.tensor(found, dtype=torch.float64)
            solving = list(weights[: rewards_NK.shape[1]])
            own_K = rewards_NK.new_tensor([0.0] * (len(solving) - 1) + solving[-1:] if of_draft else solving)
            total += float((rewards_NK * own_K).sum(1).mean())
    return total


def conversation_metrics(episodes: Sequence[Episode], group: int, revisions: int = 1) -> dict[str, Any]:
    """Return the metrics of the attempts and, if there are any, of the verifications."""
    solved = [episode for episode in episodes if not episode.of_draft]
    rewards_NK = torch.tensor([episode.rewards for episode in solved], dtype=torch.float64)
    return episode_metrics(solved, rewards_NK, group, revisions) | verification_metrics(episodes)


def verification_metrics(episodes: Sequence[Episode]) -> dict[str, Any]:
    """Return, for each verification turn, metrics over the episodes that took it; empty for scripts without verifications.

    ``rv1``: it says what the verifier says; ``says_wrong_v1``, ``says_nothing_v1``, ``truncated_v1``, ``tokens_v1``: as they say.
    ``skipped_t2`` is the fraction of all episodes whose second attempt was skipped, ``correct_drafts`` that of the drafts, where
    verifications are of drafts, which the verifier accepts. All rates are fractions of 1.
    """
    turns = [list(zip(e.trained, e.trained_rewards, strict=True)) for e in episodes]
    columns = [k for k, (turn, _) in enumerate(turns[0]) if turn.role is Role.VERIFICATION]
    metrics: dict[str, Any] = {}
    for number, column in enumerate(columns, 1):
        taken = [turn[column] for turn in turns if not turn[column][0].skipped]
        count = max(1, len(taken))
        metrics[f"rv{number}"] = sum(reward for _, reward in taken) / count
        metrics[f"says_wrong_v{number}"] = sum(turn.said is Judgement.WRONG for turn, _ in taken) / count
        metrics[f"says_nothing_v{number}"] = sum(turn.said is None for turn, _ in taken) / count
        metrics[f"truncated_v{number}"] = sum(turn.stop is StopReason.LENGTH for turn, _ in taken) / count
        metrics[f"tokens_v{number}"] = sum(len(turn.ids) for turn, _ in taken) / count
    drafts = [e.rewards[0] for e in episodes if e.of_draft]
    if drafts:
        return {**metrics, "correct_drafts": sum(drafts) / len(drafts)}
    if columns:
        for k in range(1, len(episodes[0].attempts)):
            metrics[f"skipped_t{k + 1}"] = sum(e.attempts[k].skipped for e in episodes) / len(episodes)
    return metrics


def replay_metrics(replayed: Sequence[Episode]) -> dict[str, Any]:
    """Return the number of second attempts that revise stored first ones, and how often they are correct, of 1.

    ``replay_correct_if_incorrect`` and ``replay_correct_if_correct`` are rates after stored first attempts of one kind; None
    without any.
    """
    metrics: dict[str, Any] = {"replayed": len(replayed)}
    for kind, correct in (("incorrect", False), ("correct", True)):
        second = [e.verdicts[1].reward for e in replayed if e.verdicts[0].correct == correct]
        metrics[f"replay_correct_if_{kind}"] = sum(second) / len(second) if second else None
    return metrics


def _varied(rewards_N: Tensor, group: int) -> float:
    """Return the fraction of groups whose rewards differ."""
    grouped_PG = rewards_N.view(-1, group)
    return float((grouped_PG.amax(1) > grouped_PG.amin(1)).double().mean())


class StepTotals:
    """Sums over the scored tokens of a step, per turn, accumulated over micro-batches.

    They stay on the learner's device until `add_up`, because reading them would make the host wait for every micro-batch.
    ``names`` are those of the turns in metrics. ``attempts`` says how often the policy sampled each of them: what another model
    sampled, copied first attempts and skipped turns have no scored tokens.
    """

    def __init__(
        self,
        *,
        names: Sequence[str],
        attempts: Sequence[int],
        references: int,
    ) -> None:
        turns = len(names)
        self.names, self.turns, self.attempts = names, turns, attempts
        self.tokens_K = torch.zeros(turns, dtype=torch.float64)
        self.entropy_K = torch.zeros(turns, dtype=torch.float64)
        self.policy_size_K = torch.zeros(turns, dtype=torch.float64)
        self.log_ratio_RK = torch.zeros(references, turns, dtype=torch.float64)
        self.clipped = 0
        self.gap = 0.0
        self.weight_total: float | None = None
        self.capped = 0
        self.divergence_total = 0.0
        self._device: dict[str, Tensor] = {}
        self._turn_gradients: dict[int, list[Tensor | None]] = {}

    def add(
        self,
        rows: MicroBatch,
        scores: TokenScores,
        loss_S: Tensor,
        clipped_S: Tensor,
        references: Sequence[ReferenceLogprobs],
    ) -> None:
        """Add a micro-batch."""
        turn_S, logprobs_S = rows.turn_S, scores.logprobs_S.detach().double()

        def by_turn(values_S: Tensor) -> Tensor:
            return values_S.new_zeros(self.turns).index_add(0, turn_S, values_S)

        self._add("tokens_K", by_turn(torch.ones_like(logprobs_S)))
        self._add("entropy_K", by_turn(scores.entropy_S.double()))
        self._add("policy_size_K", by_turn(loss_S.detach().double().abs()))
        if references:
            ratios = [by_turn(logprobs_S - reference.logprobs_S.double()) for reference in references]
            self._add("log_ratio_RK", torch.stack(ratios))
        self._add("clipped", clipped_S.sum())
        if len(logprobs_S):
            gap = (logprobs_S - rows.logprobs_S).abs().max()
            self._device["gap"] = torch.maximum(self._device.get("gap", gap), gap)

    def add_weights(self, weights_S: Tensor, cap: float) -> None:
        """Add a micro-batch's importance weights, which are truncated at ``cap``."""
        self._add("weight_total", weights_S.double().sum())
        self._add("capped", (weights_S == cap).sum())

    def add_divergence(self, divergence_S: Tensor) -> None:
        """Add a micro-batch's estimates of the KL from the policy before the step's first update (`step_control.divergence`)."""
        self._add("divergence_total", divergence_S.double().sum())

    def _add(self, name: str, value: Tensor) -> None:
        before = self._device.get(name)
        self._device[name] = value if before is None else before + value

    def _settle(self) -> None:
        """Fetch the sums from the device."""
        found = {name: value.cpu() for name, value in self._device.items()}
        self._device.clear()
        for name in ("tokens_K", "entropy_K", "policy_size_K", "log_ratio_RK"):
            if name in found:
                setattr(self, name, getattr(self, name) + found[name])
        self.clipped += int(found.get("clipped", 0))
        self.capped += int(found.get("capped", 0))
        self.gap = max(self.gap, float(found.get("gap", 0.0)))
        self.divergence_total += float(found.get("divergence_total", 0.0))
        if "weight_total" in found:
            self.weight_total = (self.weight_total or 0.0) + float(found["weight_total"])

    def add_turn_gradient(self, turn: int, gradients: Sequence[Tensor | None]) -> None:
        """Add a turn's gradients from a micro-batch, one per parameter; the sum is in float32 or wider."""
        before = self._turn_gradients.setdefault(turn, [None] * len(gradients))
        for i, gradient in enumerate(gradients):
            if gradient is not None:
                wide, old = gradient.float() if gradient.dtype in ROUNDED else gradient, before[i]
                before[i] = wide if old is None else old + wide

    def add_up(self, world: World, parameters: Sequence[Tensor]) -> None:
        """Fetch the sums and add those of all processes; ``parameters`` give the shapes of the turns' gradients."""
        self._settle()
        if world.size == 1:
            return
        sums = [self.clipped, self.capped, self.weight_total or 0.0, self.divergence_total]
        counts = torch.tensor(sums, dtype=torch.float64)
        world.sum([self.tokens_K, self.entropy_K, self.policy_size_K, self.log_ratio_RK, counts])
        self.clipped, self.capped, self.divergence_total = int(counts[0]), int(counts[1]), float(counts[3])
        every = world.gather((self.gap, self.weight_total is not None, bool(self._turn_gradients)))
        self.gap = max(gap for gap, _, _ in every)
        self.weight_total = float(counts[2]) if any(weighted for _, weighted, _ in every) else None
        if any(measured for _, _, measured in every):
            self._add_up_turn_gradients(world, parameters)

    def _add_up_turn_gradients(self, world: World, parameters: Sequence[Tensor]) -> None:
        for k in range(self.turns):
            own = self._turn_gradients.setdefault(k, [None] * len(parameters))
            wide = [torch.float32 if parameter.dtype in ROUNDED else parameter.dtype for parameter in parameters]
            own[:] = [
                torch.zeros_like(parameter, dtype=dtype) if gradient is None else gradient
                for gradient, parameter, dtype in zip(own, parameters, wide, strict=True)
            ]
            world.sum([gradient for gradient in own if gradient is not None and not is_shard(gradient)])

    def clipped_share(self) -> float:
        return self.clipped / max(1.0, float(self.tokens_K.sum()))

    def divergence(self) -> float:
        """Return the mean KL from the policy before the step's first update, in nats per token, where it was added."""
        return self.divergence_total / max(1.0, float(self.tokens_K.sum()))

    def metrics(self, reference_names: Sequence[str]) -> dict[str, Any]:
        """Return KL in nats per turn and per token (log-ratio estimate), entropy per token, engine gap, gradient norms.

        If tokens have importance weights: also their mean, and the fraction of them that was capped.
        """
        found: dict[str, Any] = {}
        for k, turn in enumerate(self.names):
            tokens = max(1.0, float(self.tokens_K[k]))
            found[f"entropy_{turn}"] = float(self.entropy_K[k]) / tokens
            for r, name in enumerate(reference_names):
                total = float(self.log_ratio_RK[r, k])
                found[f"kl_{name}_{turn}"] = total / max(1, self.attempts[k])
                found[f"kl_{name}_token_{turn}"] = total / tokens
            gradients = [g for g in self._turn_gradients.get(k, []) if g is not None]
            found[f"gradient_norm_{turn}"] = norm(gradients) if gradients else None
        found["max_logprob_diff"] = self.gap
        if self.weight_total is not None:
            tokens = max(1.0, float(self.tokens_K.sum()))
            found["importance_weight"] = self.weight_total / tokens
            found["importance_capped"] = self.capped / tokens
        return found
