"""The signs that a stage goes wrong, each read from the metrics of its last steps. docs/runs.md lists them.

The limits are set so that none of the stored runs that went well shows a sign (docs/dev/log.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any, TypeAlias

from selfcorrect.config.schema import Config
from selfcorrect.config.stages import ReinforcementStage
from selfcorrect.evaluation.against_base import AgainstBase
from selfcorrect.evaluation.same_answers import same_answer_text

Metrics: TypeAlias = Mapping[str, Any]

WINDOW = 10
"""Steps over which signal, copies and truncation are averaged: a single step of few episodes says little."""
SIGNAL_LIMIT = 0.05
"""Below this mean fraction of groups whose rewards differ, in every rewarded turn, there is nothing to learn from."""
COPY_LIMIT, SAMPLED_COPY_LIMIT = 0.02, 0.05
"""Below this fraction of changed answers, greedy and sampled, the second attempt copies the first."""
TRUNCATION_LIMIT = 0.5
"""Above this fraction of truncated answers, the token limit decides what is correct."""
TRUNCATION_CAUSE = 0.25
"""Where most groups are all wrong, this fraction of truncated answers makes the token limit the first thing to change."""
NEARLY_ALL = 0.9
"""This fraction of truncated answers says so in a single step."""
FALL_LIMIT = 0.05
"""Greedy Acc@t1 on the development problems may fall by this much after its first measurement."""
RECENT, EARLIER = 5, 50
"""The median of the last ``RECENT`` steps is compared with that of the ``EARLIER`` steps before them, the usual value."""
LEAST_EARLIER = 10
"""Earlier steps from which there is a usual value."""
FACTOR = 10.0
"""A value leaves its usual range when it is this many times as large."""
USUAL_KL = 1.0
"""A usual KL, in nats, below which factors mean little."""
GRADIENT_LIMIT = 350.0
"""A gradient norm of this many times ``optimizer.max_grad_norm`` is a burst, unless it is usual in the stage."""
HISTORY = RECENT + EARLIER
"""Steps of a stage that the signs look at."""


@dataclass(frozen=True, slots=True)
class Sign:
    """A sign that a stage goes wrong: its kind, which is warned of once a stage, what was found, and what to change."""

    kind: str
    found: str
    change: str


def signs(config: Config, steps: Sequence[Metrics], first_t1: float | None) -> Iterator[Sign]:
    """Yield the signs at the last of a stage's steps; ``first_t1`` is the first Acc@t1 on the development problems."""
    now, steps = steps[-1], _alike(config, steps)
    for check in (_gap, _kl_limit, _kl_range, _truncated, _gradients, _no_signal, _copies):
        yield from check(config, steps)
    dev = now.get("dev")
    if dev is not None:
        yield from _look(dev, first_t1)


def _alike(config: Config, steps: Sequence[Metrics]) -> Sequence[Metrics]:
    """Return the steps of the last one's kind: every other one, if the stage alternates."""
    stage = config.stages.get(steps[-1]["stage"])
    alternates = isinstance(stage, ReinforcementStage) and stage.alternates
    return steps[::-2][::-1] if alternates else steps


def fell(dev: Metrics) -> AgainstBase | None:
    """Return the comparison with the base if a look finds the stage worse by more than chance allows."""
    found = AgainstBase.of_look(dev)
    return found if found is not None and found.worse else None


# ---------------------------------------------------------------- every step


def _gap(config: Config, steps: Sequence[Metrics]) -> Iterator[Sign]:
    gap = steps[-1].get("max_logprob_diff") or 0.0
    if gap > config.rollout.gap_warning:
        yield Sign(
            "engine and policy differ",
            f"engine and policy differ by up to {gap:.2g} nats in a token's log-probability, above rollout.gap_warning = "
            f"{config.rollout.gap_warning}",
            "compute in float32 (model.dtype, vllm.dtype), weight the tokens (optimizer.tis_cap = 2), or raise "
            "rollout.gap_warning if bfloat16 is meant to",
        )


def _kl_limit(config: Config, steps: Sequence[Metrics]) -> Iterator[Sign]:
    for name, value in _divergences(steps[-1]):
        if value > config.kl.warn_above:
            yield Sign(
                f"{name} above kl.warn_above",
                f"{name} = {value:.1f} nats, above kl.warn_above = {config.kl.warn_above}",
                "raise this turn's kl_coefs, or lower the learning rate",
            )


def _kl_range(config: Config, steps: Sequence[Metrics]) -> Iterator[Sign]:
    for name, _ in _divergences(steps[-1]):
        rise = _rise([step.get(name) for step in steps], at_least=USUAL_KL)
        if rise is not None:
            yield Sign(
                f"{name} out of its usual range",
                f"{name} = {rise[0]:.1f} nats (median of {RECENT} steps), usual were {rise[1] or 0.0:.2g}",
                "lower the learning rate, or raise this turn's kl_coefs",
            )


def _truncated(config: Config, steps: Sequence[Metrics]) -> Iterator[Sign]:
    for name in [name for name in steps[-1] if name.startswith("truncated_t")]:
        lasting, turn = _mean(steps, name), name.removeprefix("truncated_t")
        if lasting is not None and lasting > TRUNCATION_LIMIT:
            when, value = f"in the last {WINDOW} steps ", lasting
        elif (steps[-1][name] or 0.0) >= NEARLY_ALL:
            when, value = "", steps[-1][name]
        else:
            continue
        yield Sign(
            f"truncated answers of turn {turn}",
            f"{when}{value:.0%} of the sampled answers of turn {turn} are truncated at rollout.max_tokens = "
            f"{config.rollout.max_tokens}",
            "raise it",
        )


def _gradients(config: Config, steps: Sequence[Metrics]) -> Iterator[Sign]:
    norms = [step.get("gradient_norm") for step in steps]
    clip = config.optimizer.max_grad_norm
    out = _burst(norms, GRADIENT_LIMIT * clip) or _rise(norms, at_least=clip)
    if out is None:
        return
    norm, usual = out
    usually = "" if usual is None else f", usual were {usual:.2g}"
    yield Sign(
        "gradient norms out of their usual range",
        f"the gradient norm is {norm:.3g}{usually}, and optimizer.max_grad_norm = {clip:g}",
        "lower the learning rate or the stage's bonus, or raise rollout.batch_size",
    )


# ---------------------------------------------------------------- a window of steps


def _no_signal(config: Config, steps: Sequence[Metrics]) -> Iterator[Sign]:
    stage = config.stages.get(steps[-1]["stage"])
    if not isinstance(stage, ReinforcementStage):
        return
    rewarded = [k for k, weight in enumerate(stage.reward_weights, 1) if weight or (stage.bonus and stage.turns > 1)]
    if stage.alternates:
        rewarded = [k for k in rewarded if f"informative_groups_t{k}" in steps[-1]]
    signal = [_mean(steps, f"informative_groups_t{k}") for k in rewarded]
    if not signal or any(value is None or value >= SIGNAL_LIMIT for value in signal):
        return
    correct = _mean(steps, f"r{rewarded[-1]}") or 0.0
    which, change = ("correct", "take harder problems") if correct > 0.5 else ("wrong", _easier(config, steps))
    yield Sign(
        "groups without a signal",
        f"in the last {WINDOW} steps the rewards differed in fewer than {SIGNAL_LIMIT:.0%} of the groups, so there is nothing to "
        f"learn; {correct:.0%} of the sampled last attempts are correct, so most groups are all {which}",
        f"{change}, or raise rollout.temperature or rollout.group_size",
    )


def _easier(config: Config, steps: Sequence[Metrics]) -> str:
    """Return what makes more sampled answers correct: a higher token limit where many are truncated, else easier problems."""
    means = [(_mean(steps, name) or 0.0, name) for name in steps[-1] if name.startswith("truncated_t")]
    truncated, name = max(means, default=(0.0, ""))
    if truncated < TRUNCATION_CAUSE:
        return "take easier problems"
    turn, limit = name.removeprefix("truncated_t"), config.rollout.max_tokens
    return f"raise rollout.max_tokens ({truncated:.0%} of the answers of turn {turn} are truncated at {limit})"


def _copies(config: Config, steps: Sequence[Metrics]) -> Iterator[Sign]:
    changed = _among_made(_mean(steps, "answer_change_rate"), _mean(steps, "skipped_t2"))
    if changed is not None and changed < SAMPLED_COPY_LIMIT:
        yield _copy(f"in the last {WINDOW} steps only {changed:.1%} of the sampled answers change")


def _among_made(changed: float | None, skipped: float | None) -> float | None:
    """Return the fraction of changed answers among the second attempts that were made; None if none was."""
    made = 1 - (skipped or 0.0)
    return changed if changed is None or made == 1 else changed / made if made > 0 else None


def _copy(found: str) -> Sign:
    return Sign(
        "second attempts copy the first",
        f"{found}; the second attempt copies the first",
        "reword task.revise, raise rollout.temperature, lower the KL coefficient of turn 2 in Stage I or train it longer, or "
        "take a model that changes its answers when asked",
    )


# ---------------------------------------------------------------- a look at the development problems


def _look(dev: Metrics, first_t1: float | None) -> Iterator[Sign]:
    worse = fell(dev)
    if worse is not None:
        yield Sign(
            "worse than the base",
            f"the model is worse than its base by more than chance allows: on the development problems {worse.numbers()}",
            "lower the learning rate, raise kl_coefs, or see the other warnings; log.stop_if_worse = true ends such a stage",
        )
    for attempt, same in dev.get("same_answers", {}).items():
        yield Sign(
            f"one answer to all problems at attempt {attempt.removeprefix('t')}",
            f"in the greedy look at the development problems {same_answer_text(attempt, same)}",
            "lower the learning rate, raise this turn's kl_coefs, or read the episodes: the policy ignores the problem; if its "
            "base does so too, take another model, or prompt it otherwise",
        )
    if dev.get("answer_change_rate") is None:
        return
    changed = _among_made(dev["answer_change_rate"], dev.get("skipped_t2"))
    if changed is not None and changed < COPY_LIMIT:
        yield _copy(f"in the greedy look at the development problems only {changed:.1%} of the answers change")
    if first_t1 is not None and dev["acc_t1"] < first_t1 - FALL_LIMIT:
        yield Sign(
            "falling first attempts",
            f"greedy Acc@t1 on the development problems fell from {first_t1:.1%} to {dev['acc_t1']:.1%}",
            "raise the KL coefficient of turn 1, if first attempts matter: a gain over held-back ones is smaller than it looks",
        )


# ---------------------------------------------------------------- series of values


def _divergences(now: Metrics) -> Iterator[tuple[str, float]]:
    for name, value in now.items():
        if name.startswith("kl_") and "_token_" not in name and value is not None:
            yield name, value


def _rise(values: Sequence[float | None], *, at_least: float) -> tuple[float, float | None] | None:
    """Return the recent and the usual value if the recent one is `FACTOR` times the usual, which counts ``at_least``."""
    known = [value for value in values if value is not None]
    if len(known) < RECENT + LEAST_EARLIER:
        return None
    recent, usual = median(known[-RECENT:]), median(known[:-RECENT])
    return (recent, usual) if recent > FACTOR * max(usual, at_least) else None


def _burst(values: Sequence[float | None], limit: float) -> tuple[float, float | None] | None:
    """Return the last value and the usual one, if there is one, if the last is above the limit and far above the usual."""
    now, known = values[-1], [value for value in values[:-1] if value is not None]
    usual = median(known) if len(known) >= LEAST_EARLIER else None
    return (now, usual) if now is not None and now > max(limit, FACTOR * (usual or 0.0)) else None


def _mean(steps: Sequence[Metrics], name: str) -> float | None:
    """Return the mean over the last `WINDOW` steps; None if there are fewer, or one lacks the value."""
    values = [step.get(name) for step in steps[-WINDOW:]]
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == WINDOW else None
