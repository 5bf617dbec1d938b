"""The settings of one evaluation, as `selfcorrect.evaluate` and the command `selfcorrect eval` take them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from selfcorrect.config.schema import EngineName, Settings, VLLMConfig
from selfcorrect.config.toml import apply_override, validated
from selfcorrect.errors import ConfigError
from selfcorrect.script import UserTurn


class EvalSettings(Settings):
    """How a model is evaluated on a task; greedy unless `temperature` says otherwise.

    Where the model is a run and the task the one it was trained on, settings that are unset are as in that run: the
    task's options and instructions, its problems, the token limit, the stop texts and the sampling temperature.
    """

    split: Literal["train", "dev", "test"] = "test"
    """Which problems."""
    limit: int | None = Field(None, ge=1)
    """At most N problems; unset = as many as the task has, or its own default."""
    data_seed: int | None = None
    """Seed of the problems; unset = the run's, else 0."""
    task_options: dict[str, Any] = Field(default_factory=dict)
    """The task's own settings, on top of the run's."""
    turns: int = Field(2, ge=1, le=10)
    """Attempts per problem."""
    revise: str | tuple[str | UserTurn, ...] | None = None
    """The instruction before every later attempt, or several that take turns; unset = the run's, else the task's."""
    system: str | None = None
    """A system message; unset = the run's, else the task's."""
    seed: int = Field(0, ge=0)
    """Seed of everything but the problems."""
    temperature: float = Field(0.0, ge=0, allow_inf_nan=False)
    """0 is greedy."""
    samples: int = Field(1, ge=1)
    """Episodes per problem where they are sampled: avg@k is `temperature` above 0 and `samples = k`."""
    sampled: bool | None = None
    """Also evaluate samples at the run's training temperature (1 where the model is no run); unset = `controls`."""
    controls: bool = False
    """Also evaluate the draft swap and, if `sampled`, the independent resample."""
    max_tokens: int | None = Field(None, ge=1)
    """Token limit of a turn; unset = the run's, else 512 or what the model's context holds."""
    stop: tuple[str, ...] | None = None
    """Texts that end a turn as soon as they stand in it; unset = the run's, else none."""
    max_num_seqs: int | None = Field(None, ge=1)
    """Episodes in one batch (unset = the run's, else 64); with a server, requests at a time (16). Memory and speed only."""
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Data type of weights and computation."""
    device: str = "auto"
    """`cpu`, `cuda`, or `auto`: a GPU if there is one."""
    trust_remote_code: bool = False
    """Run Python code that comes with a model from the hub."""
    engine: EngineName = "hf"
    """What samples: see `rollout.engine`. A run's engine is not taken over."""
    engine_options: dict[str, Any] = Field(default_factory=dict)
    """Settings of an engine from outside the package."""
    vllm: VLLMConfig = VLLMConfig()
    """What the engine `vllm` is built with."""
    base_url: str | None = None
    """Address of an OpenAI-compatible chat server, as http://localhost:8000/v1."""
    key_env: str | None = None
    """Environment variable that holds the server's key; unset = OPENAI_API_KEY, if it is set."""
    request_timeout: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Seconds for one request to the server; unset = 300."""
    retries: int | None = Field(None, ge=0)
    """Times a request that failed in passing is made again; unset = 6."""

    @property
    def also_sampled(self) -> bool:
        """Whether samples are evaluated in addition to the main attempts."""
        return self.controls if self.sampled is None else self.sampled

    @model_validator(mode="after")
    def _consistent(self) -> EvalSettings:
        problems = []
        if self.samples > 1 and self.temperature == 0 and not self.also_sampled:
            problems.append(
                f"samples = {self.samples}, but greedy attempts are all the same: set temperature above 0 "
                f"(avg@{self.samples}), or sampled for samples in addition to the greedy attempt"
            )
        if self.controls and self.turns < 2:
            problems.append("the controls compare second attempts: they need turns >= 2")
        if problems:
            raise ValueError("; ".join(problems))
        return self


WHAT = "the evaluation"
SERVER_ONLY = ("key_env", "request_timeout", "retries")
LOCAL_ONLY = ("dtype", "device", "trust_remote_code", "engine", "engine_options", "vllm")


def make_eval_settings(
    given: Mapping[str, Any], overrides: Sequence[str] = (), *, base: EvalSettings | None = None
) -> EvalSettings:
    """Return settings from single values, where None stands for the default, then from ``key.path=value``.

    Args:
        base: settings that these change; unset = the defaults.

    Raises:
        ConfigError: a list of everything that is wrong.
    """
    table = {} if base is None else base.model_dump(exclude_unset=True)
    for name, value in given.items():
        if value is None:
            table.pop(name, None)
        else:
            table[name] = dict(value) if isinstance(value, Mapping) else value
    for override in overrides:
        apply_override(table, override)
    return validated(EvalSettings, table, WHAT)


def check_place(settings: EvalSettings, *, served: bool, live_tokenizer: bool = False) -> None:
    """Reject settings that are about a server where the model is in this process, and the reverse.

    Raises:
        ConfigError: there are some.
    """
    others = LOCAL_ONLY if served else SERVER_ONLY
    defaults = EvalSettings()
    given = [name for name in others if getattr(settings, name) != getattr(defaults, name)]
    if served and live_tokenizer:
        given.append("tokenizer")
    if given and served:
        raise ConfigError(f"{', '.join(given)}: this is about a model in this process, and the model is on a server.")
    if given:
        raise ConfigError(f"{', '.join(given)}: this is about a server; give base_url, or a URL as the model.")
