"""The schema of all settings: frozen models with a docstring per field. `selfcorrect.config.toml` reads and writes them.

A run uses the resolved configuration and records it in its directory. Unknown settings are errors. The settings of stages
are in `selfcorrect.config.stages`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    field_validator,
    model_validator,
)

from selfcorrect.config.engine_names import HF, VLLM
from selfcorrect.config.optimizer import OptimizerConfig
from selfcorrect.config.sampling import RolloutConfig, VLLMConfig, vllm_problems
from selfcorrect.config.settings import (
    LARGE,
    MAX_BATCH,
    MAX_EPISODES,
    MAX_PROBLEMS,
    MAX_STEPS,
    Options,
    Seed,
    Settings,
    StageName,
    TrackerName,
)
from selfcorrect.config.stages import (
    DemonstrationStage,
    ReinforcementStage,
    StageConfig,
    SupervisedStage,
    score_stages,
)
from selfcorrect.config.tracker_names import TENSORBOARD
from selfcorrect.script import MAX_TURNS, UserTurn, checked_draft_request, current_user_turn, draft_request_table


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
    draft_request: (
        Annotated[UserTurn, BeforeValidator(draft_request_table), AfterValidator(checked_draft_request)] | None
    ) = None
    """The message that asks whether a draft is correct, on a prompt of its own (`method = "self_verification"`): a text with
    `{prompt}`, the problem, and `{attempt}`, the draft, or `{ text = "...", says_correct = "...", says_wrong = "..." }`; unset =
    the task's."""
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
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = "float32"
    """Data type of weights and computation; `auto` = bfloat16 if the device multiplies matrices in it (GPUs since Ampere, CPUs
    with AVX-512 BF16 or AMX), else float32. A run records which, and keeps it wherever it is resumed."""
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
            *self._replay_problems(),
            *self._reference_problems(),
            *self._engine_problems(),
            *self._distributed_problems(),
            *self._ahead_problems(),
            *self._distilling_problems(),
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

    def replayed_groups(self, stage: StageConfig) -> int:
        """Return how many of a step's groups revise stored first attempts, once there are any."""
        replay = stage.replay if isinstance(stage, ReinforcementStage) else None
        return 0 if replay is None else round(replay.share * (self.batch_size(stage) // self.rollout.group_size))

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

    def _replay_problems(self) -> list[str]:
        found = []
        for name, stage in self.stages.items():
            if isinstance(stage, ReinforcementStage) and stage.replay is not None:
                groups, replayed = self.batch_size(stage) // self.rollout.group_size, self.replayed_groups(stage)
                if not 0 < replayed < groups:
                    found.append(
                        f"stages.{name}.replay.share = {stage.replay.share} makes {replayed} of the {groups} groups of a step "
                        "replay: at least one must, and one must not; change share, batch_size or rollout.group_size"
                    )
        return found

    def _distributed_problems(self) -> list[str]:
        if self.distributed.async_save and not (self.distributed.shard and self.model.lora is None):
            return [
                "distributed.async_save = true works for full training with distributed.shard = true alone: unset it. Other "
                "checkpoints are written by one process, at once"
            ]
        return []

    def _ahead_problems(self) -> list[str]:
        if not self.rollout.ahead:
            return []
        found = []
        if self.optimizer.tis_cap is None:
            found.append(
                "rollout.ahead = 1 learns from episodes that earlier weights sampled, and without importance weights their "
                "gradient is not the current policy's: set optimizer.tis_cap, for example to 2, or rollout.ahead to 0"
            )
        for name, stage in self.stages.items():
            if isinstance(stage, SupervisedStage):
                why = "collects all pairs of a round with the same weights before it trains on them"
            elif isinstance(stage, ReinforcementStage) and stage.alternates:
                why = "revises the drafts of the step before with the weights that it left"
            elif isinstance(stage, ReinforcementStage) and stage.distills:
                why = "takes second attempts for the policy's own, without importance weights"
            else:
                continue
            found.append(
                f"rollout.ahead = 1, but stages.{name}.method = {stage.method!r} {why}, so nothing could be sampled ahead: set "
                "rollout.ahead = 0"
            )
        return found

    def _distilling_problems(self) -> list[str]:
        control = [name for name in ("kl_stop", "kl_control") if getattr(self.optimizer, name) is not None]
        return [
            f"optimizer.{setting} estimates a KL on tokens that the policy sampled, but stages.{name}.method = {stage.method!r} "
            f"also trains tokens that it sampled in another context: leave {setting} out"
            for name, stage in self.stages.items()
            if isinstance(stage, ReinforcementStage) and stage.distills
            for setting in control
        ]

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
