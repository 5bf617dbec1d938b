"""The settings of the optimizer: how the weights are updated, and how far an update may lead."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from selfcorrect.config.settings import LARGE, MAX_RATE, MAX_STEPS, Decay, Settings


class KLControlConfig(Settings):
    """A learning rate that follows the KL of a step, between the policy before its first update and after its last."""

    target: float = Field(0.01, gt=0, le=LARGE)
    """The mean KL wanted, in nats per token. A step with more than twice as much divides the rate's factor by 1.5, one with less
    than half multiplies it by 1.5."""
    minimum: float = Field(0.01, gt=0, le=1)
    """Lower bound of the factor, which begins at 1 in every stage."""
    maximum: float = Field(1.0, ge=1, le=LARGE)
    """Upper bound of the factor; 1 = the learning rate of the schedule is never exceeded."""
    limit: float | None = Field(None, gt=0, le=LARGE)
    """A step with more KL than this, in nats per token, is undone: the weights and the optimizer become what they were before it.
    Unset = no step is. It takes 12 bytes more per trained weight while a step learns."""

    @model_validator(mode="after")
    def _limit(self) -> KLControlConfig:
        if self.limit is not None and self.limit < 2 * self.target:
            raise ValueError(
                f"limit = {self.limit} with target = {self.target}: up to twice the target, a KL is as wanted and must not be "
                f"undone; set limit to at least {2 * self.target}"
            )
        return self


class OptimizerConfig(Settings):
    """How weights are updated."""

    learning_rate: float = Field(1e-5, gt=0, le=MAX_RATE)
    """AdamW's step size after warm-up."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """AdamW's decay rates of the two moments."""
    epsilon: float = Field(1e-8, gt=0, le=1)
    """AdamW's term in the denominator."""
    weight_decay: float = Field(0.0, ge=0, le=MAX_RATE)
    """Decoupled weight decay; 0 = plain Adam."""
    warmup_steps: int = Field(0, ge=0, le=MAX_STEPS)
    """Steps of linear warm-up at the start of each stage."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After warm-up: constant, or falling to `min_lr_ratio` of the learning rate at the stage's end."""
    min_lr_ratio: float = Field(0.1, ge=0, le=1)
    """Final learning rate of a falling schedule, as a fraction of the peak."""
    max_grad_norm: float = Field(1.0, gt=0, le=LARGE)
    """Gradients with a larger norm are scaled down to it."""
    micro_batch_tokens: int | None = Field(None, ge=1, le=1_000_000_000)
    """Padded tokens per micro-batch in the learner; affects memory and speed only. Unset = 4,096 on a CPU, so that its caches
    hold what the backward pass needs, and 16,384 on a GPU."""
    share_prompts: bool | None = None
    """Read a prompt once for all episodes of a micro-batch that begin with it: fewer tokens to compute, the same result up to
    rounding. Unset = true, except with `model.gradient_checkpointing`, which excludes it."""
    num_iterations: int = Field(1, ge=1, le=10_000)
    """Updates per rollout; more than 1 uses clipped importance ratios."""
    kl_stop: float | None = Field(None, gt=0, le=LARGE)
    """With several updates per rollout: take no further one once the policy's mean KL from the policy before the first of them
    exceeds this, in nats per token. Unset = take all."""
    kl_control: KLControlConfig | None = None
    """Only stages of reinforcement learning use it (docs/method.md, "Control of the step"). Unset = the learning rate is the
    schedule's; `{}` = the defaults below."""
    clip_epsilon: float = Field(0.2, gt=0, lt=1)
    """With several updates per rollout, importance ratios are clipped to 1 +- this."""
    tis_cap: float | None = Field(None, ge=1, le=LARGE)
    """Truncated importance weights: weight every token by min(policy / engine, this), the ratio of its probabilities at
    rollout time, for an engine that computes differently from the policy. Unset = no weights."""

    @model_validator(mode="after")
    def _several(self) -> OptimizerConfig:
        if self.kl_stop is not None and self.num_iterations == 1:
            raise ValueError(
                f"kl_stop = {self.kl_stop} with num_iterations = 1: there is no further update of a rollout to leave out; set "
                "num_iterations above 1, or leave kl_stop unset"
            )
        return self
