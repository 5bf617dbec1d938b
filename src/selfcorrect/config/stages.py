"""The settings of stages. A stage is data (docs/method.md, section 4): Stage I, Stage II, every ablation and every recipe with
more turns are values of `StageConfig`, never another trainer.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from selfcorrect.config.settings import MAX_BATCH, MAX_RATE, MAX_STEPS, Coefficient, Settings, Weight
from selfcorrect.config.stage_parts import AdaptiveConfig, ReplayConfig, VerificationConfig
from selfcorrect.script import MAX_TURNS

OWN_BASELINE = ("s2r", "self_rewarding", "thinktwice", "distilled")
"""The methods that do not read a stage's `baseline`."""
DRAFTS = "self_verification"
"""The method that also verifies drafts on prompts of their own."""
VERIFYING = ("pag", "s2r", "self_rewarding")
"""The methods that are for scripts with verifications."""
ALTERNATING = ("thinktwice",)
"""The methods whose steps train the first attempt alone and the second attempt alone, in turn."""
DISTILLING = ("distilled",)
"""The methods that also train second attempts as first attempts."""
WITHOUT_REPLAY = (*ALTERNATING, *DISTILLING, DRAFTS)
"""The methods whose steps cannot replay stored first attempts."""
ONE_DRAFT_EACH = ("revisions", "max_gen_batches", "offline_share", "replay", "adaptive")
"""The settings that keep their defaults where first and second attempts are those of the policy, one by one."""


class Stage(Settings):
    """The settings that all stages share."""

    method: str
    """The method: `score` or your own (reinforcement), `star`, `pair_sft`, `self_rewarding_ift` or `sft` (supervised)."""
    steps: int = Field(ge=1, le=MAX_STEPS)
    """Optimizer steps, and also batches of episodes sampled (`sft` samples none)."""
    batch_size: int | None = Field(None, ge=1, le=MAX_BATCH)
    """Episodes per step of this stage; unset = the rollout's."""
    init: str = "previous"
    """The initial model: `previous` (the previous stage's kept model, at first the base), `base`, or a stage's name."""
    learning_rate: float | None = Field(None, gt=0, le=MAX_RATE)
    """Learning rate of this stage; unset = the optimizer's."""

    @property
    def references(self) -> list[str]:
        """Return the names of the frozen models that anchor some turn: none, unless it is reinforcement learning."""
        return []

    @property
    def needs_group(self) -> bool:
        """Return whether the baseline needs at least two episodes per problem."""
        return False

    @property
    def told(self) -> bool:
        """Return whether the stage writes verifications, which say what the verifier says, instead of sampling them."""
        return False

    @property
    def verifies_drafts(self) -> bool:
        """Return whether a step also samples, for every episode, one verification of a draft on a prompt of its own."""
        return False


class ReinforcementStage(Stage):
    """A stage of reinforcement learning. The number of turns is the length of `reward_weights` and of `kl_coefs`. Turns are
    attempts: feedback (`task.revise`) has no reward, anchor or gradient, and needs no settings; verifications have their own."""

    method: str = "score"
    """The method that computes advantages: `score`, `pag`, `s2r`, `self_rewarding`, `self_verification`, `thinktwice`,
    `distilled`, one that a package registers, or `module:attribute` (see `selfcorrect.method.base`)."""
    reward_weights: tuple[Weight, ...] = Field(min_length=1, max_length=MAX_TURNS)
    """Weight of each turn's binary reward: (0, 1) in Stage I, (1, 1) in Stage II."""
    bonus: Coefficient = 0.0
    """alpha: turns k >= 2 earn alpha (r_k - r_{k-1}) in addition."""
    discount: float = Field(0.0, ge=0, le=1)
    """gamma between turns; with 0, every turn earns only its own reward."""
    kl_coefs: tuple[dict[str, Coefficient], ...]
    """For each turn, the KL coefficient of each reference: `base` or an earlier stage."""
    baseline: Literal["rloo", "fitted", "none"] = "rloo"
    """`rloo`: leave-one-out over the group; `fitted`: the same, less what the previous attempt's verdict predicts, a slope fitted
    on the step's other problems; `none`: no baseline."""
    revisions: int = Field(1, ge=1, le=MAX_BATCH)
    """Second attempts of each first attempt: a group of `rollout.group_size` episodes has group_size / revisions first attempts.
    Above 1, the baseline of a second attempt is the others that revise the same first attempt (trees)."""
    max_gen_batches: int = Field(1, ge=1, le=100)
    """Dynamic sampling (DAPO, arXiv 2503.14476): while fewer groups than a batch holds have attempts with different returns, a
    step samples another batch of problems, at most this many in all. It then learns from groups with such a signal first.
    1 = off."""
    offline_share: float = Field(0.0, ge=0, le=1)
    """Fraction of each group whose first attempt the base model samples, as context only."""
    offline_apart: bool = False
    """Train second attempts only on the episodes of `offline_share`, and first attempts only on the others."""
    replay: ReplayConfig | None = None
    """Unset = no group revises stored first attempts; `{}` = with the defaults below."""
    distill_weight: Weight = 1.0
    """With `distilled`: the weight of the term that trains second attempts as first attempts."""
    adaptive: AdaptiveConfig | None = None
    """Adaptive beta2; unset = off."""
    verification: VerificationConfig | None = None
    """How verification turns are rewarded, if `task.revise` asks for any, or the verifications of `self_verification`; unset =
    weight 1 and no anchors."""

    @property
    def turns(self) -> int:
        return len(self.reward_weights)

    @property
    def alternates(self) -> bool:
        """Return whether a step trains first attempts alone, and the next one revisions of them alone."""
        return self.method in ALTERNATING

    @property
    def distills(self) -> bool:
        """Return whether second attempts are also trained as first attempts."""
        return self.method in DISTILLING

    @property
    def verified(self) -> VerificationConfig:
        """Return how verification turns are rewarded."""
        return self.verification or VerificationConfig()

    @property
    def verifies_drafts(self) -> bool:
        return self.method == DRAFTS

    @property
    def length(self) -> int:
        """Return the trainer's steps."""
        return self.steps

    @property
    def samples_base(self) -> bool:
        """Return whether the base model makes first attempts for the stage."""
        return self.offline_share > 0 or (self.replay is not None and self.replay.pool == "base")

    @property
    def references(self) -> list[str]:
        """Return the names of the frozen models that anchor some turn, sorted."""
        return sorted({name for turn in (*self.kl_coefs, self.verified.kl_coefs) for name in turn})

    @property
    def needs_group(self) -> bool:
        """Return whether the baseline needs at least two episodes per problem."""
        return self.baseline != "none"

    @model_validator(mode="after")
    def _offline(self) -> ReinforcementStage:
        if self.offline_apart and not 0 < self.offline_share < 1:
            raise ValueError(
                f"offline_apart with offline_share = {self.offline_share}: each turn needs episodes to learn from; "
                "set offline_share between 0 and 1, for example 0.5"
            )
        if self.offline_share and self.turns < 2:
            raise ValueError(
                f"offline_share = {self.offline_share} with one turn: the base's first attempts train the second attempt, which "
                "does not exist; set it to 0 or add a turn"
            )
        return self

    @model_validator(mode="after")
    def _replay(self) -> ReinforcementStage:
        if self.replay is None:
            return self
        if self.turns < 2:
            raise ValueError(
                "replay with one turn: stored first attempts are for second ones; leave it out or add a turn"
            )
        if self.offline_share:
            raise ValueError(
                f"replay with offline_share = {self.offline_share}: both say which first attempts are not the policy's; leave "
                "one of them out"
            )
        if self.max_gen_batches > 1:
            raise ValueError(
                f"replay with max_gen_batches = {self.max_gen_batches}: keeping the groups with a signal would change the "
                "fractions of replayed ones and of their kinds; leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _dynamic_sampling(self) -> ReinforcementStage:
        if self.max_gen_batches > 1 and not self.needs_group:
            raise ValueError(
                f"max_gen_batches = {self.max_gen_batches} with baseline = 'none': without a baseline, groups whose returns "
                "agree teach something too, so leaving them out would change what is learnt; set one of them to its default"
            )
        return self

    @model_validator(mode="after")
    def _own_baseline(self) -> ReinforcementStage:
        if self.method in OWN_BASELINE and self.baseline != "rloo":
            raise ValueError(
                f"baseline = {self.baseline!r} with method = {self.method!r}: this method has a baseline of its own; leave "
                "baseline out"
            )
        return self

    @model_validator(mode="after")
    def _whole_trajectory(self) -> ReinforcementStage:
        if self.method == "self_rewarding" and self.discount:
            raise ValueError(
                f"discount = {self.discount} with method = 'self_rewarding', which pays every turn for the whole trajectory: "
                "leave discount out"
            )
        return self

    @model_validator(mode="after")
    def _distilling(self) -> ReinforcementStage:
        if self.distill_weight != 1 and not self.distills:
            raise ValueError(
                f"distill_weight = {self.distill_weight} with method = {self.method!r}, which trains no second attempt as a "
                "first one: leave it out, or set method = 'distilled'"
            )
        return self

    @model_validator(mode="after")
    def _own_drafts(self) -> ReinforcementStage:
        two = self.alternates or self.distills
        if two and self.turns != 2:
            raise ValueError(
                f"reward_weights has {self.turns} turn{'s' * (self.turns > 1)} with method = {self.method!r}, which trains a "
                "first attempt and a second one: give two"
            )
        unused = ONE_DRAFT_EACH if two or self.verifies_drafts else ()
        for name in (*(("bonus", "discount") if self.alternates else ()), *unused):
            if (value := getattr(self, name)) != type(self).model_fields[name].default:
                given = name if isinstance(value, Settings) else f"{name} = {value}"
                raise ValueError(f"{given} with method = {self.method!r}, which does not use it: leave {name} out")
        if self.verifies_drafts and self.baseline == "fitted":
            raise ValueError(
                f"baseline = 'fitted' with method = {self.method!r}, whose steps also hold verifications: leave baseline out"
            )
        return self

    @model_validator(mode="after")
    def _trees(self) -> ReinforcementStage:
        if self.revisions > 1 and self.turns < 2:
            raise ValueError(f"revisions = {self.revisions} with one turn: there is no second attempt; set it to 1")
        if self.revisions > 1 and self.offline_share:
            raise ValueError(
                f"revisions = {self.revisions} with offline_share = {self.offline_share}: a first attempt of the base model has "
                "one second attempt; set one of them to its default"
            )
        return self

    @model_validator(mode="after")
    def _per_turn(self) -> ReinforcementStage:
        if len(self.kl_coefs) != self.turns:
            raise ValueError(
                f"reward_weights has {self.turns} turns and kl_coefs has {len(self.kl_coefs)}: both need one entry per turn"
            )
        adaptive = self.adaptive
        if adaptive and not any(
            adaptive.reference in turn for turn in self.kl_coefs[adaptive.turn - 1 : adaptive.turn]
        ):
            raise ValueError(
                f"adaptive controls {adaptive.reference!r} on turn {adaptive.turn}, which has no such anchor"
            )
        return self


class SupervisedStage(Stage):
    """A supervised stage, which trains on pairs of attempts that it collects: half of its steps sample, half update."""

    method: Literal["star", "pair_sft", "self_rewarding_ift"]
    """`star`: both attempts of one episode; `pair_sft`: a first attempt and any correct response to the same problem;
    `self_rewarding_ift`: conversations with a true verification of the first attempt, and a second one if it is incorrect."""
    rounds: int = Field(3, ge=1, le=MAX_STEPS)
    """Rounds of collecting and training. Each round collects with the previous round's model and trains the stage's initial
    weights from scratch."""
    correct_pairs: Literal["none", "equal", "all"] = "none"
    """Pairs whose first attempt is already correct: `none` (the paper's D), `all` (D+), or `equal`, at most as many as the
    other pairs (and of those, with `self_rewarding_ift`, at most as many as of these)."""
    learn: Literal["second", "both"] = "second"
    """The attempts whose tokens are trained; of `self_rewarding_ift`, the verification is trained with either, and of first
    attempts the correct ones alone."""

    @property
    def turns(self) -> int:
        return 2

    @property
    def told(self) -> bool:
        return self.method == "self_rewarding_ift"

    @property
    def length(self) -> int:
        """Return the trainer's steps, each of which either collects a batch of episodes or updates."""
        return 2 * self.steps

    @model_validator(mode="after")
    def _both_judgements(self) -> SupervisedStage:
        if self.told and self.correct_pairs == "none":
            raise ValueError(
                f"correct_pairs = 'none' with method = {self.method!r}: the model would only learn to say that an answer is "
                "wrong; set it to 'equal' or 'all'"
            )
        return self

    @model_validator(mode="after")
    def _rounds(self) -> SupervisedStage:
        if self.length > MAX_STEPS:
            raise ValueError(f"steps = {self.steps}: a supervised stage takes twice as many, at most {MAX_STEPS:,}")
        if self.rounds > self.steps:
            raise ValueError(f"rounds = {self.rounds}, but there are only {self.steps} steps: each round needs one")
        return self


class DemonstrationStage(Stage):
    """A supervised stage on demonstrations: a cold start. It samples nothing, so `batch_size` counts demonstrations. The task's
    own solutions are conversations of one attempt and contain no corrections; a file may hold whole conversations."""

    method: Literal["sft"]
    """`sft`: supervised fine-tuning on demonstrations."""
    demonstrations: str | None = Field(None, min_length=1)
    """A JSON Lines file of demonstrations (docs/recipes.md): in each line the `id` or `prompt` of a training problem, and the
    `response`, or a conversation's `messages`; unset = the task's own solutions, one for each training problem."""

    @property
    def turns(self) -> int:
        return 1

    @property
    def length(self) -> int:
        """Return the trainer's steps, each of which is an update."""
        return self.steps


SUPERVISED: dict[str, str] = {
    "star": "supervised",
    "pair_sft": "supervised",
    "self_rewarding_ift": "supervised",
    "sft": "demonstrations",
}
"""The kind of stage of each method that is not reinforcement learning."""


def _kind(stage: Any) -> str:
    method = stage.get("method") if isinstance(stage, dict) else getattr(stage, "method", None)
    return SUPERVISED.get(method, "reinforcement") if isinstance(method, str) else "reinforcement"


STAGE_KINDS: dict[str, type[Stage]] = {
    "reinforcement": ReinforcementStage,
    "supervised": SupervisedStage,
    "demonstrations": DemonstrationStage,
}

AnyStage = ReinforcementStage | SupervisedStage | DemonstrationStage
"""A stage of any kind."""

StageConfig = Annotated[
    Annotated[ReinforcementStage, Tag("reinforcement")]
    | Annotated[SupervisedStage, Tag("supervised")]
    | Annotated[DemonstrationStage, Tag("demonstrations")],
    Discriminator(_kind),
]
"""One stage; its `method` determines its kind."""


def score_stages() -> dict[str, AnyStage]:
    """Return SCoRe's two stages with the paper's coefficients for mathematics (docs/method.md, section 4)."""
    alpha, beta1, beta2 = 10.0, 0.01, 0.1
    return {
        "stage1": ReinforcementStage(
            steps=1500, reward_weights=(0, 1), kl_coefs=({"base": beta1 + beta2}, {"base": beta1})
        ),
        "score": ReinforcementStage(
            steps=1500, reward_weights=(1, 1), bonus=alpha, kl_coefs=({"base": beta1}, {"base": beta1})
        ),
    }
