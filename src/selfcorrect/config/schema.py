"""The schema of all settings: frozen models with a docstring per field. `selfcorrect.config.toml` reads and writes them.

A run uses the resolved configuration and records it in its directory. Unknown settings are errors.
A stage is data (docs/method.md, section 4): Stage I, Stage II, every ablation and every recipe with more turns are values
of `StageConfig`, never another trainer.
"""

from __future__ import annotations

import math
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
    field_validator,
    model_validator,
)

from selfcorrect.config.engine_names import ENGINES, HF, VLLM
from selfcorrect.config.tracker_names import TENSORBOARD, TRACKERS
from selfcorrect.documents import MAX_DEPTH, MAX_INTEGER
from selfcorrect.script import MAX_TURNS, UserTurn, current_user_turn

# Every number has a range; a test walks the schema. Upper bounds are far above what is useful, and below what would fill the
# memory or run for years before anything fails.
MAX_SEED = 2**63 - 1
MAX_PROBLEMS = 10_000_000
MAX_EPISODES = 10_000_000
"""Maximum episodes of one evaluation, problems times samples: their requests alone take gigabytes."""
MAX_TOKENS = 1_000_000
MAX_BATCH = 1_000_000
MAX_STEPS = 999_999
"""Maximum steps of a stage: checkpoints have six digits for them."""
MAX_RATE = 100.0
LARGE = 1e9
"""An upper bound of what is only compared with, or scales something."""
MAX_NAME = 50
"""Maximum characters of a stage's name, which is part of file names."""


def checked_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return free-form options unchanged, if every number in them is finite and has at most 64 bits.

    Raises:
        ValueError: a number is out of range; the message names it.
    """
    level: list[tuple[str, Any]] = list(options.items())
    for _ in range(MAX_DEPTH):
        below: list[tuple[str, Any]] = []
        for name, value in level:
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} = {value} is not a finite number")
            if isinstance(value, int) and abs(value) > MAX_INTEGER:
                raise ValueError(f"{name} is an integer of {value.bit_length()} bits, which is out of range")
            if isinstance(value, Mapping):
                below += [(f"{name}.{key}", item) for key, item in value.items()]
            elif isinstance(value, (list, tuple)):
                below += [(name, item) for item in value]
        if not below:
            return options
        level = below
    raise ValueError(f"values are nested more than {MAX_DEPTH} levels deep")


def checked_stage_name(name: str) -> str:
    """Return a stage's name unchanged, if files and checkpoints can bear it.

    Raises:
        ValueError: they cannot; the message has the rule.
    """
    plain = name.replace("_", "").replace("-", "").isalnum() and name[0].isalnum() and len(name) <= MAX_NAME
    if name in ("base", "previous") or not plain or "-0" in name or re.search(r"-\d{6}$", name):
        raise ValueError(
            f"a stage's name consists of at most {MAX_NAME} letters, digits, _ and -, and begins with a letter or digit. It is "
            "not 'base' or 'previous', contains no -0 and does not end in - and six digits, which would look like a checkpoint"
        )
    return name


class Settings(BaseModel):
    """The base of all settings: frozen, with unknown names as errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )


EngineName = Annotated[str, AfterValidator(ENGINES.checked)]
TrackerName = Annotated[str, AfterValidator(TRACKERS.checked)]

Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
StopTexts = tuple[Annotated[str, Field(min_length=1, max_length=1000)], ...]
Options = Annotated[dict[str, Any], AfterValidator(checked_options)]
Weight = Annotated[float, Field(ge=-LARGE, le=LARGE)]
Coefficient = Annotated[float, Field(ge=0, le=LARGE)]
Decay = Annotated[float, Field(ge=0, lt=1)]
StageName = Annotated[str, AfterValidator(checked_stage_name)]


class TaskConfig(Settings):
    """The task to solve."""

    name: str = "addition"
    """Task family, or family:variant; `selfcorrect tasks` lists them."""
    options: Options = {}
    """Settings of the task family."""
    train_problems: int = Field(20_000, ge=1, le=MAX_PROBLEMS)
    """Training problems; every pass over them has a new order."""
    dev_problems: int = Field(200, ge=1, le=MAX_PROBLEMS)
    """Problems in the development split, evaluated during training."""
    data_seed: Seed = 0
    """Seed of the problems, separate from the run's seed, so that runs with different seeds share their test problems."""
    time_limit_s: float = Field(5.0, gt=0, le=86_400)
    """Time limit of the verifier per answer, in seconds."""
    failure_limit: float = Field(0.05, ge=0, le=1)
    """Fraction of answers on which the verifier may fail before the run stops."""
    shuffle_verdicts: bool = False
    """A control: shuffle the training verdicts among the samples of each problem, so that there is nothing to learn."""
    revise: str | tuple[str | Annotated[UserTurn, BeforeValidator(current_user_turn)], ...] | None = None
    """The instruction before every later attempt, or several that alternate; unset = the task's. An instruction written as
    `{ text = "...", role = "feedback" }` asks for feedback, which is context only. `{ text = "...", role = "verification" }` asks
    the model whether its last attempt is correct: it says so with `says_correct` or `says_wrong` (unset = "The answer is correct"
    and "The answer is wrong"). After it, `{ text = "...", when = "wrong" }` is asked only if it said wrong, or `"correct"`."""
    system: str | None = None
    """A system message; unset = the task's."""


class LoRAConfig(Settings):
    """Low-rank adapters (LoRA)."""

    rank: int = Field(16, ge=1, le=65_536)
    """Rank of every layer's update."""
    alpha: float = Field(32.0, gt=0, le=LARGE)
    """The update is scaled by alpha / rank."""
    target_modules: tuple[str, ...] = Field(("all-linear",), min_length=1)
    """Names of the layers with an adapter; `all-linear` = every linear layer except the output layer."""


class ModelConfig(Settings):
    """The model to train."""

    source: str = "addition-base"
    """A directory, a run (`RUN` or `RUN:stage`), a bundled model (`selfcorrect models list`), or a hub id."""
    seed: Seed | None = None
    """Seed of a bundled model; unset = the run's seed."""
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Data type of weights and computation."""
    device: str = "auto"
    """`cpu`, `cuda`, or `auto`: a GPU if there is one."""
    cpu_kernels: bool = True
    """On a CPU, compute Llama-shaped models with the package's fast forward pass, and float32 products with oneDNN. Results
    agree up to rounding; false = compute as `transformers` and torch do."""
    gradient_checkpointing: bool = False
    """Recompute every layer in the backward pass: less memory, about a third more learning time."""
    trust_remote_code: bool = False
    """Run Python code that comes with a model from the hub."""
    chat_template_kwargs: dict[str, Any] = {}
    """Variables of the model's chat template, such as `{ enable_thinking = false }`."""
    lora: LoRAConfig | None = None
    """Train only adapters; unset = all weights."""


class RolloutConfig(Settings):
    """How episodes are sampled."""

    engine: EngineName = "hf"
    """The engine that samples: `hf`, the policy itself; `vllm`, which reloads the policy's weights after every step (see
    `vllm`); or an external engine, by the name under which an installed package offers it or as `module:attribute`."""
    engine_options: Options = {}
    """Settings of an external engine."""
    batch_size: int = Field(512, ge=1, le=MAX_BATCH)
    """Episodes per step."""
    group_size: int = Field(8, ge=1, le=MAX_BATCH)
    """Episodes per problem; `batch_size` must be a multiple of it."""
    temperature: float = Field(1.0, gt=0, le=MAX_RATE)
    """Sampling temperature, which log-probabilities and KL use too."""
    max_tokens: int = Field(64, ge=1, le=MAX_TOKENS)
    """Token limit per turn."""
    stop: StopTexts = ()
    """Texts that end a turn as soon as they appear in it; they stay part of the turn."""
    max_num_seqs: int = Field(512, ge=1, le=MAX_BATCH)
    """Episodes sampled in one batch; affects memory and speed only."""
    gap_warning: float = Field(1e-2, gt=0, le=LARGE)
    """Warn if the engine's and the policy's log-probabilities of a token differ by more than this, in nats."""


class VLLMConfig(Settings):
    """Settings of the engine `vllm`; unused unless `rollout.engine = "vllm"`."""

    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Data type of its weights and computation; unset = the model's."""
    cache_gib: float | None = Field(None, gt=0, le=65_536)
    """Memory for keys and values, in GiB; unset = enough for `rollout.max_num_seqs` episodes of maximal length, on a GPU at most
    half of what is free."""
    enforce_eager: bool | None = None
    """Run the model uncompiled; false = compile it first, which takes a minute or more and speeds up sampling. Unset = true on a
    CPU, false on a GPU."""
    options: Options = {}
    """Additional arguments of `vllm.LLM`."""


def vllm_problems(name: str, dtype: str, vllm: VLLMConfig, temperatures: Mapping[str, float]) -> list[str]:
    """Return why vLLM cannot run a dtype (that of the setting ``name``) or sample at ``temperatures`` (by setting)."""
    found = []
    if dtype == "float64" and vllm.dtype is None:
        found.append(f"{name} = 'float64', which vLLM does not support: set vllm.dtype = 'float32'")
    found += [
        f"{where} = {temperature}: vLLM samples at 0.01 to 2; choose a temperature in this range, or engine = 'hf'"
        for where, temperature in temperatures.items()
        if not 0.01 <= temperature <= 2
    ]
    return found


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
    clip_epsilon: float = Field(0.2, gt=0, lt=1)
    """With several updates per rollout, importance ratios are clipped to 1 +- this."""
    tis_cap: float | None = Field(None, ge=1, le=LARGE)
    """Truncated importance weights: weight every token by min(policy / engine, this), the ratio of its probabilities at
    rollout time, for an engine that computes differently from the policy. Unset = no weights."""


class KLConfig(Settings):
    """How the KL to the references is applied. The default has an unbiased gradient for the sequence KL."""

    placement: Literal["reward", "loss"] = "reward"
    """`reward`: subtract a turn's summed log-ratio from its reward; `loss`: add a term to the loss."""
    estimator: Literal["k1", "k2", "k3", "full"] = "k1"
    """`k1` with placement reward; `k2`, `k3` or `full` (exact, over the vocabulary) with placement loss."""
    warn_above: float = Field(50.0, gt=0, le=LARGE)
    """Warn if a turn's KL to a reference exceeds this, in nats per turn."""

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
    """Bounded control of turn 1's additional coefficient (beta2); see `selfcorrect.method.kl_controller.adapted`."""

    reference: str = "base"
    """The reference whose coefficient is controlled."""
    turn: int = Field(1, ge=1, le=MAX_TURNS)
    """The turn whose coefficient is controlled (1 = first)."""
    target: float = Field(1.0, gt=0, le=LARGE)
    """Target ratio of the KL term to the last turn's policy term."""
    rate: float = Field(0.1, gt=0, le=1)
    """Speed at which the coefficient adapts."""
    minimum: float = Field(0.01, gt=0, le=LARGE)
    """Lower bound of the coefficient."""
    maximum: float = Field(10.0, gt=0, le=LARGE)
    """Upper bound of the coefficient."""

    @model_validator(mode="after")
    def _ordered(self) -> AdaptiveConfig:
        if self.minimum > self.maximum:
            raise ValueError(f"minimum = {self.minimum} is above maximum = {self.maximum}: set minimum <= maximum")
        return self


class VerificationConfig(Settings):
    """What the model earns in its verification turns (`task.revise`), in which it says whether its last attempt is correct."""

    weight: Weight = 1.0
    """Weight of its reward: 1 if it says what the verifier says, else 0."""
    kl_coefs: dict[str, Coefficient] = {}
    """The KL coefficient of each reference on these turns: `base` or an earlier stage."""


class Stage(Settings):
    """The settings that all stages share."""

    method: str
    """The method: `score` or your own (reinforcement learning), `star`, `pair_sft` or `sft` (supervised)."""
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


class ReinforcementStage(Stage):
    """A stage of reinforcement learning. The number of turns is the length of `reward_weights` and of `kl_coefs`. Turns are
    attempts: feedback (`task.revise`) has no reward, anchor or gradient, and needs no settings; verifications have their own."""

    method: str = "score"
    """The method that computes advantages: `score`, `pag`, one that a package registers, or `module:attribute` (see
    `selfcorrect.method.base`)."""
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
    adaptive: AdaptiveConfig | None = None
    """Adaptive beta2; unset = off."""
    verification: VerificationConfig | None = None
    """How verification turns are rewarded, if `task.revise` asks for any; unset = weight 1 and no anchors."""

    @property
    def turns(self) -> int:
        return len(self.reward_weights)

    @property
    def verified(self) -> VerificationConfig:
        """Return how verification turns are rewarded."""
        return self.verification or VerificationConfig()

    @property
    def length(self) -> int:
        """Return the trainer's steps."""
        return self.steps

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
    def _dynamic_sampling(self) -> ReinforcementStage:
        if self.max_gen_batches > 1 and not self.needs_group:
            raise ValueError(
                f"max_gen_batches = {self.max_gen_batches} with baseline = 'none': without a baseline, groups whose returns "
                "agree teach something too, so leaving them out would change what is learnt; set one of them to its default"
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

    method: Literal["star", "pair_sft"]
    """`star`: both attempts of one episode; `pair_sft`: a first attempt and any correct response to the same problem."""
    rounds: int = Field(3, ge=1, le=MAX_STEPS)
    """Rounds of collecting and training. Each round collects with the previous round's model and trains the stage's initial
    weights from scratch."""
    correct_pairs: Literal["none", "equal", "all"] = "none"
    """Pairs whose first attempt is already correct: `none` (the paper's D), `all` (D+), or `equal`, at most as many as the
    other pairs."""
    learn: Literal["second", "both"] = "second"
    """The attempts whose tokens are trained."""

    @property
    def turns(self) -> int:
        return 2

    @property
    def length(self) -> int:
        """Return the trainer's steps, each of which either collects a batch of episodes or updates."""
        return 2 * self.steps

    @model_validator(mode="after")
    def _rounds(self) -> SupervisedStage:
        if self.length > MAX_STEPS:
            raise ValueError(f"steps = {self.steps}: a supervised stage takes twice as many, at most {MAX_STEPS:,}")
        if self.rounds > self.steps:
            raise ValueError(f"rounds = {self.rounds}, but there are only {self.steps} steps: each round needs one")
        return self


class DemonstrationStage(Stage):
    """A supervised stage on demonstrations, one correct response to a training problem each: a cold start. It samples nothing, so
    `batch_size` counts demonstrations. Its conversations have one attempt and contain no corrections."""

    method: Literal["sft"]
    """`sft`: supervised fine-tuning on demonstrations."""
    demonstrations: str | None = Field(None, min_length=1)
    """A JSON Lines file of demonstrations (docs/recipes.md): in each line the `id` or `prompt` of a training problem, and the
    `response`; unset = the task's own solutions, one for each training problem."""

    @property
    def turns(self) -> int:
        return 1

    @property
    def length(self) -> int:
        """Return the trainer's steps, each of which is an update."""
        return self.steps


SUPERVISED: dict[str, str] = {"star": "supervised", "pair_sft": "supervised", "sft": "demonstrations"}
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


class EvalConfig(Settings):
    """Evaluations during training and at its end."""

    problems: int = Field(1000, ge=1, le=MAX_PROBLEMS)
    """Problems in the final evaluation of the base and every stage."""
    split: Literal["test", "dev"] = "test"
    """The split of these problems; use `dev` to try out settings without looking at the test problems."""
    turns: int | None = Field(None, ge=1, le=MAX_TURNS)
    """Attempts per problem; unset = as many as the stages have."""
    sampled: bool = True
    """Also evaluate samples at the training temperature."""
    samples: int = Field(1, ge=1, le=MAX_EPISODES)
    """Samples per problem in that evaluation."""
    controls: bool = True
    """Also evaluate the two controls: draft swap and independent resample."""
    dev_every: int = Field(50, ge=0, le=MAX_STEPS)
    """Steps between looks, which evaluate the development problems; 0 = never. A run then also looks at the base, once."""
    dev_limit: int | None = Field(None, ge=1, le=MAX_PROBLEMS)
    """Development problems in a look; unset = all of them (`task.dev_problems`)."""
    dev_sampled: bool = True
    """Also look at samples at the training temperature, which doubles a look's costs."""

    @model_validator(mode="after")
    def _size(self) -> EvalConfig:
        if self.problems * self.samples > MAX_EPISODES:
            raise ValueError(
                f"problems = {self.problems} times samples = {self.samples} is more than {MAX_EPISODES:,} episodes: lower one"
            )
        return self


class LogConfig(Settings):
    """What a run writes, and how often."""

    save_every: int = Field(20, ge=1, le=MAX_STEPS)
    """Steps between checkpoints; an interrupted run resumes from the last one."""
    keep_window: int = Field(20, ge=1, le=MAX_STEPS)
    """The kept checkpoint has the highest mean training reward over this many last steps."""
    episodes_every: int = Field(10, ge=0, le=MAX_STEPS)
    """Steps between samples of episodes that are written; 0 = never."""
    episodes: int = Field(16, ge=1, le=MAX_BATCH)
    """Episodes written each time."""
    turn_gradients_every: int = Field(1, ge=0, le=MAX_STEPS)
    """Steps between measurements of each turn's gradient norm, which take one more backward pass per turn; 0 = never."""
    stop_if_worse: bool = False
    """End a stage at the first look (`eval.dev_every`) that finds it worse than the base by more than chance allows. The kept
    checkpoint is then, in every stage, the best one of the looks, or the model that the stage began with."""
    trackers: tuple[TrackerName, ...] = (TENSORBOARD,)
    """Where curves are drawn: any of `tensorboard`, `wandb`, `trackio` and `mlflow` (each but the first an extra), or your own as
    `module:attribute` (docs/runs.md); `[]` = nowhere."""
    project: str = Field("selfcorrect", min_length=1, max_length=100)
    """The project, or experiment, under which trackers file the run."""

    @field_validator("trackers")
    @classmethod
    def _once(cls, trackers: tuple[str, ...]) -> tuple[str, ...]:
        twice = sorted({name for name in trackers if trackers.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(map(repr, twice))} stands there twice: name each tracker once")
        return trackers


class DistributedConfig(Settings):
    """How the processes of a run work together; their number is no setting (docs/scale.md)."""

    shard: bool = False
    """Let every process hold only its part of the weights, gradients and optimizer, instead of all of them."""
    timeout_s: int = Field(600, ge=10, le=86_400)
    """Seconds that a process waits for the others before it fails."""
    async_save: bool = False
    """Write checkpoints of sharded models while the next steps run, from copies in the host's memory."""


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


class Config(Settings):
    """A whole run."""

    seed: Seed = 0
    """Seed of everything except the problems."""
    task: TaskConfig = TaskConfig()
    model: ModelConfig = ModelConfig()
    rollout: RolloutConfig = RolloutConfig()
    vllm: VLLMConfig = VLLMConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    kl: KLConfig = KLConfig()
    stages: dict[StageName, StageConfig] = Field(default_factory=score_stages)
    """The stages, by name and in order. Unset = SCoRe's two with the paper's coefficients and 1,500 steps each. An empty
    group (`stages = {}`) only evaluates the base."""
    eval: EvalConfig = EvalConfig()
    log: LogConfig = LogConfig()
    distributed: DistributedConfig = DistributedConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        problems = [
            *self._group_problems(),
            *self._reference_problems(),
            *self._engine_problems(),
            *self._distributed_problems(),
        ]
        if self.log.stop_if_worse and not self.eval.dev_every:
            problems.append(
                "log.stop_if_worse = true needs looks at the development problems, and eval.dev_every = 0 takes none: set "
                "eval.dev_every, for example to 20"
            )
        if self.optimizer.share_prompts and self.model.gradient_checkpointing:
            problems.append(
                "optimizer.share_prompts keeps the prompts' keys and values for the backward pass, but "
                "model.gradient_checkpointing keeps none: set one of them to false"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def shares_prompts(self) -> bool:
        """Return whether the learner reads shared prompts once."""
        wanted = self.optimizer.share_prompts
        return not self.model.gradient_checkpointing if wanted is None else wanted

    def looks_after(self, stage: StageConfig, step: int) -> bool:
        """Return whether a stage looks at the development problems after a step; the last one decides which model is kept."""
        every = self.eval.dev_every
        return bool(every) and (step % every == 0 or (self.log.stop_if_worse and step == stage.length))

    def looks_in(self, stage: StageConfig) -> bool:
        """Return whether a stage looks at the development problems at all."""
        every = self.eval.dev_every
        return bool(every) and (every <= stage.length or self.log.stop_if_worse)

    def batch_size(self, stage: StageConfig) -> int:
        """Return the stage's episodes per step."""
        return stage.batch_size or self.rollout.batch_size

    def _group_problems(self) -> list[str]:
        found = []
        group = self.rollout.group_size
        sizes = {"rollout": self.rollout.batch_size}
        sizes |= {
            f"stages.{name}": stage.batch_size
            for name, stage in self.stages.items()
            if stage.batch_size and not isinstance(stage, DemonstrationStage)
        }
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
            if group % stage.revisions or (stage.needs_group and stage.revisions > 1 and group < 2 * stage.revisions):
                found.append(
                    f"stages.{name}.revisions = {stage.revisions} with rollout.group_size = {group}: the group must be a "
                    f"multiple of it and hold at least two first attempts; set group_size = {2 * stage.revisions}, for example"
                )
            if stage.offline_share and stage.needs_group and online == 1:
                found.append(
                    f"stages.{name}.offline_share = {stage.offline_share} leaves 1 of {group} first attempts to the policy, "
                    "and leave-one-out needs 2: lower it, or raise rollout.group_size"
                )
        return found

    def _distributed_problems(self) -> list[str]:
        if self.distributed.async_save and not (self.distributed.shard and self.model.lora is None):
            return [
                "distributed.async_save = true works for full training with distributed.shard = true alone: unset it. Other "
                "checkpoints are written by one process, at once"
            ]
        return []

    def _engine_problems(self) -> list[str]:
        if self.distributed.shard and self.rollout.engine not in (HF, VLLM):
            return [
                f"distributed.shard = true works with rollout.engine = 'hf' and 'vllm', not with {self.rollout.engine!r}: "
                "set one of them to its default"
            ]
        if self.rollout.engine != VLLM:
            return []
        return vllm_problems(
            "model.dtype", self.model.dtype, self.vllm, {"rollout.temperature": self.rollout.temperature}
        )

    def _reference_problems(self) -> list[str]:
        found = []
        earlier = ["base"]
        for name, stage in self.stages.items():
            turns: dict[str, Mapping[str, float]] = {}
            if isinstance(stage, ReinforcementStage):
                turns = {f"kl_coefs: turn {k}": turn for k, turn in enumerate(stage.kl_coefs, 1)}
                turns["verification.kl_coefs: each turn"] = stage.verified.kl_coefs
            for turn, anchors in turns.items():
                found += [
                    f"stages.{name}.{turn} names the reference {reference!r}; there are {', '.join(earlier)}"
                    for reference in anchors
                    if reference not in earlier
                ]
            if stage.init not in ("previous", *earlier):
                found.append(f"stages.{name}.init = {stage.init!r}: there are previous, {', '.join(earlier)}")
            earlier.append(name)
        return found

    @property
    def turns(self) -> int:
        """Return the number of attempts in the final evaluation."""
        return self.eval.turns or self.turns_trained

    @property
    def turns_trained(self) -> int:
        """Return the largest number of attempts in a stage."""
        return max((stage.turns for stage in self.stages.values()), default=2)
