"""Settings: frozen models with a sentence per field; `config_files` reads and writes them.

The resolved configuration is what a run uses and what its directory records. Unknown settings are errors.
A stage is data (docs/method.md, section 4): Stage I, Stage II, every ablation and every recipe with more turns are values
of `StageConfig`, never another trainer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from selfcorrect.config.engine_names import VLLM, check_engine_name
from selfcorrect.script import UserTurn, current_user_turn


class Settings(BaseModel):
    """Base of all settings: frozen, and unknown names are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)


EngineName = Annotated[str, AfterValidator(check_engine_name)]


class TaskConfig(Settings):
    """What is to be solved."""

    name: str = "addition"
    """Task family, or family:variant; `selfcorrect tasks` lists them."""
    options: dict[str, Any] = {}
    """The family's own settings."""
    train_problems: int = Field(20_000, ge=1)
    """Problems drawn for training; they are gone through in a new order each time around."""
    dev_problems: int = Field(200, ge=1)
    """Problems of the development split, evaluated during training."""
    data_seed: int = 0
    """Seed of the problems, apart from the run's seed: runs with different seeds share their test problems."""
    time_limit_s: float = Field(5.0, gt=0)
    """Seconds a verifier may take for one answer."""
    failure_limit: float = Field(0.05, ge=0, le=1)
    """Share of answers whose verifier may fail before the run stops."""
    shuffle_verdicts: bool = False
    """A control: in training, verdicts are dealt out anew among the samples of each problem, so nothing can be learnt."""
    revise: str | tuple[str | Annotated[UserTurn, BeforeValidator(current_user_turn)], ...] | None = None
    """The instruction before every later attempt, or several that take turns; unset = the task's own. One written as
    `{ text = "...", role = "feedback" }` asks for feedback, which is context only."""
    system: str | None = None
    """A system message; unset = the task's own."""


class LoRAConfig(Settings):
    """Low-rank adapters (LoRA) instead of all weights; without this group every weight is trained."""

    rank: int = Field(16, ge=1)
    """Rank of each layer's update."""
    alpha: float = Field(32.0, gt=0)
    """The update is scaled by alpha / rank."""
    target_modules: tuple[str, ...] = Field(("all-linear",), min_length=1)
    """Names of the layers that get an adapter; `all-linear` is every linear layer but the output's."""


class ModelConfig(Settings):
    """What is trained."""

    source: str = "addition-base"
    """A directory, a run (`RUN` or `RUN:stage`), a model the package makes (`selfcorrect models list`), or a hub id."""
    seed: int | None = None
    """Seed of a made model; unset = the run's seed."""
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Number format of weights and computation."""
    device: str = "auto"
    """`cpu`, `cuda`, or `auto`: a GPU if there is one."""
    cpu_kernels: bool = True
    """On a CPU: compute models of Llama's shape by the package's own forward pass, and float32 products by oneDNN. The same
    up to rounding; false = as `transformers` and torch would."""
    gradient_checkpointing: bool = False
    """Gradient checkpointing: recompute each layer in the backward pass; less memory, about a third more time to learn."""
    trust_remote_code: bool = False
    """Run Python code that comes with a model from the hub."""
    lora: LoRAConfig | None = None
    """Train adapters only; unset = all weights."""


class RolloutConfig(Settings):
    """How episodes are sampled."""

    engine: EngineName = "hf"
    """What samples: `hf`, the policy itself; `vllm`, which takes its weights after every step (see `vllm`); or an engine
    from outside the package: the name under which an installed package offers it, or `module:attribute`."""
    engine_options: dict[str, Any] = {}
    """Settings of an engine from outside the package."""
    batch_size: int = Field(512, ge=1)
    """Episodes a step."""
    group_size: int = Field(8, ge=1)
    """Episodes per problem; batch_size is a multiple of it."""
    temperature: float = Field(1.0, gt=0)
    """Sampling temperature; log-probabilities and KL use the same."""
    max_tokens: int = Field(64, ge=1)
    """Token limit of every turn."""
    stop: tuple[str, ...] = ()
    """Texts that end a turn as soon as they stand in it; they stay part of it."""
    max_num_seqs: int = Field(512, ge=1)
    """Episodes that are sampled side by side; changes memory and speed only."""
    gap_warning: float = Field(1e-2, gt=0)
    """Warn when the engine's and the policy's log-probabilities of a token differ by more (nats)."""


class VLLMConfig(Settings):
    """What the `vllm` engine is built with; without `rollout.engine = "vllm"` nothing reads it."""

    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Number format of its weights and computation; unset = the model's."""
    cache_gib: float | None = Field(None, gt=0)
    """GiB for keys and values; unset = what `rollout.max_num_seqs` episodes of the greatest length take."""
    enforce_eager: bool = True
    """Run the model as it is; false compiles it first, which takes a minute or more and samples faster on a GPU."""
    options: dict[str, Any] = {}
    """Further arguments of `vllm.LLM`."""


def vllm_problems(name: str, dtype: str, vllm: VLLMConfig, temperatures: Mapping[str, float]) -> list[str]:
    """Return what the engine `vllm` cannot do of a model's dtype (the setting ``name``) and of sampling temperatures by name."""
    found = []
    if dtype == "float64" and vllm.dtype is None:
        found.append(f"{name} = 'float64', which vLLM does not know: set vllm.dtype = 'float32'")
    found += [
        f"{where} = {temperature}: vLLM samples at 0.01 to 2; choose one there, or engine = 'hf'"
        for where, temperature in temperatures.items()
        if not 0.01 <= temperature <= 2
    ]
    return found


class OptimizerConfig(Settings):
    """How weights are updated."""

    learning_rate: float = Field(1e-5, gt=0)
    """AdamW's step size after warm-up."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the two moments."""
    epsilon: float = Field(1e-8, gt=0)
    """AdamW's term in the denominator."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay; 0 makes it Adam."""
    warmup_steps: int = Field(0, ge=0)
    """Steps of linear warm-up at the start of each stage."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After warm-up: constant, or down to `min_lr_ratio` of the learning rate at the stage's end."""
    min_lr_ratio: float = Field(0.1, ge=0, le=1)
    """Where a falling schedule ends."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this norm."""
    micro_batch_tokens: int | None = Field(None, ge=1)
    """Padded tokens of a micro-batch in the learner; changes memory and speed only. Unset = 4,096 on a CPU, whose caches hold
    what so many tokens leave behind, and 16,384 on a GPU."""
    share_prompts: bool | None = None
    """Read a prompt once for all episodes of a micro-batch that begin with it: fewer tokens to learn from, the same result
    up to rounding. Unset = yes, except with `model.gradient_checkpointing`, with which it cannot be."""
    num_iterations: int = Field(1, ge=1)
    """Updates on the same episodes; more than 1 uses importance ratios, clipped."""
    clip_epsilon: float = Field(0.2, gt=0, lt=1)
    """Importance ratios are clipped to 1 +- this where there are several updates a rollout."""
    tis_cap: float | None = Field(None, ge=1)
    """Weigh every token by min(policy / engine, this), its probabilities when the rollout was made: truncated importance
    weights, for an engine whose arithmetic differs from the policy's. Unset = no weights."""


class KLConfig(Settings):
    """How the KL to the references enters. The default's gradient is unbiased for the sequence KL."""

    placement: Literal["reward", "loss"] = "reward"
    """`reward`: the turn's summed log-ratio is subtracted from its reward; `loss`: a term of the loss."""
    estimator: Literal["k1", "k2", "k3", "full"] = "k1"
    """`k1` with placement reward; `k2`, `k3` or `full` (exact, over the vocabulary) with placement loss."""
    warn_above: float = Field(50.0, gt=0)
    """Warn when a turn's KL to a reference, in nats per turn, exceeds this."""

    @model_validator(mode="after")
    def _combination(self) -> KLConfig:
        if self.placement == "reward" and self.estimator != "k1":
            raise ValueError(
                f"estimator = {self.estimator!r} with placement = 'reward': only the summed log-ratio 'k1' is unbiased there; "
                "set estimator = 'k1' or placement = 'loss'"
            )
        if self.placement == "loss" and self.estimator == "k1":
            raise ValueError(
                "estimator = 'k1' with placement = 'loss' has zero expected gradient, so nothing would be anchored; "
                "set placement = 'reward' or estimator = 'k2', 'k3' or 'full'"
            )
        return self


class AdaptiveConfig(Settings):
    """Bounded control of the extra turn-1 coefficient (beta2), see `selfcorrect.method.kl_controller.adapted`."""

    reference: str = "base"
    """Whose coefficient is controlled."""
    turn: int = Field(1, ge=1)
    """Which turn's (1 = first)."""
    target: float = Field(1.0, gt=0)
    """Wanted size of the KL term over the size of the last turn's policy term."""
    rate: float = Field(0.1, gt=0, le=1)
    """How fast the coefficient follows."""
    minimum: float = Field(0.01, gt=0)
    """Lower bound of the coefficient."""
    maximum: float = Field(10.0, gt=0)
    """Upper bound of the coefficient."""


class Stage(Settings):
    """What every stage has, whatever its method."""

    method: str
    """What is learnt: `score` or a method of your own (reinforcement learning), or `star` or `pair_sft` (supervised)."""
    steps: int = Field(ge=1)
    """Optimizer steps; as many batches of episodes are sampled."""
    batch_size: int | None = Field(None, ge=1)
    """This stage's own number of episodes a step; unset = the rollout's."""
    init: str = "previous"
    """Where the stage starts: `previous` stage's kept model (the base, for the first), `base`, or a stage's name."""
    learning_rate: float | None = Field(None, gt=0)
    """This stage's own learning rate; unset = the optimizer's."""


class ReinforcementStage(Stage):
    """A stage of reinforcement learning. The number of turns is the length of `reward_weights` and of `kl_coefs`. Turns are
    attempts: feedback (`task.revise`) has no reward, no anchor and no gradient, so nothing is set for it."""

    method: str = "score"
    """What the turns earn: `score`; a method that a package registers; or `module:attribute` (`selfcorrect.method.base`)."""
    reward_weights: tuple[float, ...] = Field(min_length=1)
    """Weight of each turn's binary reward: (0, 1) in Stage I, (1, 1) in Stage II."""
    bonus: float = 0.0
    """alpha: turn k >= 2 earns alpha (r_k - r_{k-1}) on top."""
    discount: float = Field(0.0, ge=0, le=1)
    """gamma between turns; 0 gives every turn its own reward only."""
    kl_coefs: tuple[dict[str, float], ...]
    """Per turn, the KL coefficient of each reference: `base` or an earlier stage."""
    baseline: Literal["rloo", "none"] = "rloo"
    """Leave-one-out over the group, or none."""
    offline_share: float = Field(0.0, ge=0, le=1)
    """Share of each group whose first attempt the base model samples (context only)."""
    offline_apart: bool = False
    """Second attempts learn from those episodes alone, and the policy's own first attempts from the others."""
    adaptive: AdaptiveConfig | None = None
    """Adaptive beta2; unset = off."""

    @property
    def turns(self) -> int:
        return len(self.reward_weights)

    @property
    def length(self) -> int:
        """Steps of the trainer."""
        return self.steps

    @property
    def references(self) -> list[str]:
        """The frozen models that anchor some turn, by name, sorted."""
        return sorted({name for turn in self.kl_coefs for name in turn})

    @property
    def needs_group(self) -> bool:
        """Whether the baseline takes at least two episodes per problem."""
        return self.baseline == "rloo"

    @model_validator(mode="after")
    def _offline(self) -> ReinforcementStage:
        if self.offline_apart and not 0 < self.offline_share < 1:
            raise ValueError(
                f"offline_apart with offline_share = {self.offline_share}: each turn needs episodes to learn from, "
                "so set offline_share between 0 and 1, such as 0.5"
            )
        if self.offline_share and self.turns < 2:
            raise ValueError(
                f"offline_share = {self.offline_share} with one turn: first attempts of the base teach the second attempt, and "
                "there is none"
            )
        return self

    @model_validator(mode="after")
    def _per_turn(self) -> ReinforcementStage:
        if len(self.kl_coefs) != self.turns:
            raise ValueError(
                f"reward_weights has {self.turns} turns and kl_coefs has {len(self.kl_coefs)}: give one entry per turn in both"
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
    """A stage of supervised training on pairs of attempts that it collects itself: half of its steps sample, half update."""

    method: Literal["star", "pair_sft"]
    """`star`: both attempts of one episode; `pair_sft`: a first attempt and any correct response to the same problem."""
    rounds: int = Field(3, ge=1)
    """Rounds of collecting and training; each collects with the model that the one before made, and trains the stage's
    first weights again."""
    correct_pairs: Literal["none", "equal", "all"] = "none"
    """Pairs whose first attempt is correct already: `none` (the paper's D), `all` of them (D+), or at most as many as there
    are others."""
    learn: Literal["second", "both"] = "second"
    """The attempts whose tokens are learnt."""

    @property
    def turns(self) -> int:
        return 2

    @property
    def length(self) -> int:
        """Steps of the trainer: each either collects a batch of episodes or updates."""
        return 2 * self.steps

    @property
    def references(self) -> list[str]:
        """None: nothing anchors a supervised stage."""
        return []

    @property
    def needs_group(self) -> bool:
        return False

    @model_validator(mode="after")
    def _rounds(self) -> SupervisedStage:
        if self.rounds > self.steps:
            raise ValueError(f"rounds = {self.rounds}, but there are only {self.steps} steps")
        return self


SUPERVISED = ("star", "pair_sft")
"""The methods of supervised stages."""


def _kind(stage: Any) -> str:
    method = stage.get("method") if isinstance(stage, dict) else getattr(stage, "method", None)
    return "supervised" if method in SUPERVISED else "reinforcement"


STAGE_KINDS: dict[str, type[Stage]] = {"reinforcement": ReinforcementStage, "supervised": SupervisedStage}

StageConfig = Annotated[
    Annotated[ReinforcementStage, Tag("reinforcement")] | Annotated[SupervisedStage, Tag("supervised")],
    Discriminator(_kind),
]
"""One stage; its `method` says of which kind."""


class EvalConfig(Settings):
    """What is measured, during training and at its end."""

    problems: int = Field(1000, ge=1)
    """Problems for the final evaluation of the base and every stage."""
    split: Literal["test", "dev"] = "test"
    """Which problems these are; `dev` where settings are tried out, so that the test problems are not looked at."""
    turns: int | None = Field(None, ge=1, le=10)
    """Attempts; unset = the stages' own."""
    sampled: bool = True
    """Also evaluate samples at the training temperature."""
    samples: int = Field(1, ge=1)
    """Samples per problem of that evaluation."""
    controls: bool = True
    """Also evaluate the two controls: draft swap and independent resample."""
    dev_every: int = Field(50, ge=0)
    """Evaluate the development problems every so many steps; 0 = never."""


class LogConfig(Settings):
    """What is written, and how often."""

    save_every: int = Field(20, ge=1)
    """Steps between checkpoints; a killed run goes on from the last one."""
    keep_window: int = Field(20, ge=1)
    """The checkpoint kept is the one with the highest mean training reward over so many steps."""
    episodes_every: int = Field(10, ge=0)
    """Steps between steps whose episodes are written; 0 = never."""
    episodes: int = Field(16, ge=1)
    """How many episodes of such a step are written."""
    turn_gradients_every: int = Field(1, ge=0)
    """Steps between measurements of each turn's gradient norm (one more backward pass per turn); 0 = never."""
    tensorboard: bool = True
    """Write TensorBoard files, if the package is installed."""
    wandb: str | None = None
    """Weights & Biases project to log to (extra `wandb`); unset = off."""


def score_stages() -> dict[str, ReinforcementStage | SupervisedStage]:
    """SCoRe's two stages with the paper's coefficients for mathematics (docs/method.md, section 4)."""
    alpha, beta1, beta2 = 10.0, 0.01, 0.1
    return {
        "stage1": ReinforcementStage(
            steps=1500, reward_weights=(0, 1), kl_coefs=({"base": beta1 + beta2}, {"base": beta1})
        ),
        "score": ReinforcementStage(
            steps=1500, reward_weights=(1, 1), bonus=alpha, kl_coefs=({"base": beta1}, {"base": beta1})
        ),
    }


class Config(Settings):
    """A whole run."""

    seed: int = Field(0, ge=0)
    """Seed of everything but the problems."""
    task: TaskConfig = TaskConfig()
    model: ModelConfig = ModelConfig()
    rollout: RolloutConfig = RolloutConfig()
    vllm: VLLMConfig = VLLMConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    kl: KLConfig = KLConfig()
    stages: dict[str, StageConfig] = Field(default_factory=score_stages)
    """The stages in their order, by name. Unset: SCoRe's two with the paper's coefficients, of 1,500 steps each; an empty
    group (`stages = {}`): the base is only evaluated."""
    eval: EvalConfig = EvalConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        problems = [*self._group_problems(), *self._reference_problems(), *self._engine_problems()]
        if self.optimizer.share_prompts and self.model.gradient_checkpointing:
            problems.append(
                "optimizer.share_prompts keeps the prompts' keys and values for the backward pass, and "
                "model.gradient_checkpointing keeps none: set one of them to false"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def shares_prompts(self) -> bool:
        """Whether the learner reads shared prompts once."""
        wanted = self.optimizer.share_prompts
        return not self.model.gradient_checkpointing if wanted is None else wanted

    def batch_size(self, stage: StageConfig) -> int:
        """Episodes of each of the stage's steps."""
        return stage.batch_size or self.rollout.batch_size

    def _group_problems(self) -> list[str]:
        found = []
        group = self.rollout.group_size
        sizes = {"rollout": self.rollout.batch_size}
        sizes |= {f"stages.{name}": stage.batch_size for name, stage in self.stages.items() if stage.batch_size}
        for where, size in sizes.items():
            if size % group:
                found.append(
                    f"{where}.batch_size = {size} episodes is not a multiple of rollout.group_size = {group}: "
                    f"set batch_size = {max(group, size - size % group)} or {size + group - size % group}"
                )
            if self.task.train_problems < size // group:
                found.append(
                    f"task.train_problems = {self.task.train_problems} is fewer than the {size // group} problems of a step: "
                    f"raise it or lower {where}.batch_size"
                )
        leaving_one_out = [name for name, stage in self.stages.items() if stage.needs_group]
        if leaving_one_out and group < 2:
            of_stages = f"stage{'s' * (len(leaving_one_out) > 1)} {', '.join(map(repr, leaving_one_out))}"
            found.append(
                f"rollout.group_size = {group}, but the leave-one-out baseline of {of_stages} needs at least 2 episodes "
                "per problem: set rollout.group_size >= 2"
            )
        for name, stage in self.stages.items():
            if not isinstance(stage, ReinforcementStage):
                continue
            online = group - round(stage.offline_share * group)
            if stage.offline_share and stage.baseline == "rloo" and online == 1:
                found.append(
                    f"stages.{name}.offline_share = {stage.offline_share} leaves 1 of {group} first attempts to the policy, "
                    "and leave-one-out needs 2: lower it, or raise rollout.group_size"
                )
        return found

    def _engine_problems(self) -> list[str]:
        if self.rollout.engine != VLLM:
            return []
        return vllm_problems(
            "model.dtype", self.model.dtype, self.vllm, {"rollout.temperature": self.rollout.temperature}
        )

    def _reference_problems(self) -> list[str]:
        found = []
        earlier = ["base"]
        for name, stage in self.stages.items():
            plain = name.replace("_", "").replace("-", "").isalnum()
            if name == "base" or not plain or "-0" in name or re.search(r"-\d{6}$", name):
                found.append(
                    f"stages.{name}: a stage's name is letters, digits, _ and -, not 'base', and has no -0 and no - with "
                    "six digits at its end, as the checkpoints of its steps do"
                )
            for turn, anchors in enumerate(stage.kl_coefs if isinstance(stage, ReinforcementStage) else (), 1):
                found += [
                    f"stages.{name}.kl_coefs: turn {turn} names the reference {reference!r}; there are {', '.join(earlier)}"
                    for reference in anchors
                    if reference not in earlier
                ]
            if stage.init not in ("previous", *earlier):
                found.append(f"stages.{name}.init = {stage.init!r}: there are previous, {', '.join(earlier)}")
            earlier.append(name)
        return found

    @property
    def turns(self) -> int:
        """Attempts of the final evaluation."""
        return self.eval.turns or max((stage.turns for stage in self.stages.values()), default=2)
