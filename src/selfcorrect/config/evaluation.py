"""The settings of one evaluation, for `selfcorrect.evaluate` and the command `selfcorrect eval`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from selfcorrect.config.sampling import VLLMConfig
from selfcorrect.config.settings import (
    MAX_BATCH,
    MAX_EPISODES,
    MAX_PROBLEMS,
    MAX_RATE,
    MAX_TOKENS,
    EngineName,
    Options,
    Seed,
    Settings,
    StopTexts,
)
from selfcorrect.config.toml import apply_override, validated
from selfcorrect.errors import ConfigError
from selfcorrect.script import MAX_TURNS, UserTurn
from selfcorrect.types import ServerAPI


class EvalSettings(Settings):
    """How a model is evaluated on a task: with greedy decoding, unless `temperature` is above 0.

    If the model is a run and the task is the one it was trained on, unset settings come from that run: the task's options and
    instructions, its problems, the token limit, the stop texts and the sampling temperature.
    """

    split: Literal["train", "dev", "test"] = "test"
    """The split whose problems are used."""
    limit: int | None = Field(None, ge=1, le=MAX_PROBLEMS)
    """At most N problems; unset = the task's default, or all it has."""
    data_seed: Seed | None = None
    """Seed of the problems; unset = the run's, else 0."""
    task_options: Options = Field(default_factory=dict)
    """The task's options, added to the run's."""
    turns: int = Field(2, ge=1, le=MAX_TURNS)
    """Attempts per problem."""
    revise: str | tuple[str | UserTurn, ...] | None = None
    """The instruction before every later attempt, or several that alternate; unset = the run's, else the task's."""
    system: str | None = None
    """A system message; unset = the run's, else the task's."""
    seed: Seed = 0
    """Seed of everything except the problems."""
    temperature: float = Field(0.0, ge=0, le=MAX_RATE)
    """Sampling temperature; 0 = greedy decoding."""
    samples: int = Field(1, ge=1, le=MAX_EPISODES)
    """Sampled episodes per problem: for avg@k, set `samples = k` and `temperature` above 0."""
    sampled: bool | None = None
    """Also evaluate samples at the run's training temperature (1 if the model is not a run); unset = `controls`."""
    controls: bool = False
    """Also evaluate second attempts at blind drafts (another problem's, empty, own shuffled) and, if `sampled`, the resample."""
    drafts: str | None = None
    """Directory of a finished evaluation of these problems: its first attempts are revised in place of the model's own, one of
    each problem, half of them incorrect where it has both kinds."""
    max_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    """Token limit per turn; unset = the run's, else 512 or what fits the model's context."""
    stop: StopTexts | None = None
    """Texts that end a turn as soon as they appear in it; unset = the run's, else none."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Variables of the model's chat template, such as `{ enable_thinking = false }`; a server gets them with every request.
    Unset = the run's, else none."""
    max_num_seqs: int | None = Field(None, ge=1, le=MAX_BATCH)
    """Episodes in one batch (unset = the run's, else 64), or concurrent requests to a server (unset = 16). Affects memory and
    speed only."""
    dtype: Literal["auto", "float32", "bfloat16", "float64"] | None = None
    """Data type of weights and computation; `auto` as for `model.dtype`. Unset = what the evaluation in the directory has, else
    the run's if the model is a run, on whatever task, else float32."""
    device: str = "auto"
    """`cpu`, `cuda`, or `auto`: a GPU if there is one."""
    trust_remote_code: bool = False
    """Run Python code that comes with a model from the hub."""
    engine: EngineName = "hf"
    """The engine that samples, see `rollout.engine`. It is not taken from a run."""
    engine_options: Options = Field(default_factory=dict)
    """Settings of an external engine."""
    vllm: VLLMConfig = VLLMConfig()
    """In an evaluation: unless `engine = "vllm"`."""
    base_url: str | None = None
    """Address of an OpenAI-compatible server, such as http://localhost:8000/v1."""
    api: ServerAPI = ServerAPI.AUTO
    """The server's protocol. `chat`: messages, context mode `messages`. `completions`: token ids, context mode `tokens`, as for a
    model in this process; the server must return token ids (vLLM), and its tokenizer must be here. `auto`: that of an unfinished
    evaluation; else `completions` if `tokenizer` is set, or if the model's name is a directory with a tokenizer and the server
    turns out to work on its ids; else `chat`."""
    tokenizer: str | None = None
    """The served model's tokenizer, for `api = "completions"`: a directory, a run, a bundled model or a hub id."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Further fields of every request to the server, such as `{ top_k = -1, repetition_penalty = 1.0 }`."""
    extra_headers: dict[str, str] = Field(default_factory=dict, repr=False)
    """Further headers of every request; `env:NAME` stands for the value of an environment variable. Not recorded."""
    drop_fields: tuple[str, ...] = ()
    """Fields left out of every request, for servers that reject them: `top_p`, `seed`, and `temperature` where that is 1."""
    key_env: str | None = None
    """Environment variable with the server's key; unset = OPENAI_API_KEY, if that is set."""
    request_timeout: float | None = Field(None, gt=0, le=86_400)
    """Time limit of a request to the server, in seconds; unset = 300."""
    retries: int | None = Field(None, ge=0, le=1000)
    """Retries of a request after a transient failure; unset = 6."""
    failed_limit: float = Field(0.5, ge=0, le=1)
    """Fraction of the conversations that may be without an answer from the server (rejected requests, malformed answers) before
    the evaluation stops; up to it, their attempts count as attempts without an answer."""

    @property
    def also_sampled(self) -> bool:
        """Return whether samples are evaluated in addition to the main attempts."""
        return self.controls if self.sampled is None else self.sampled

    @model_validator(mode="after")
    def _consistent(self) -> EvalSettings:
        problems = []
        if self.samples > 1 and self.temperature == 0 and not self.also_sampled:
            problems.append(
                f"samples = {self.samples}, but greedy attempts are all the same: set temperature above 0 "
                f"(avg@{self.samples}), or sampled = true for samples in addition to the greedy attempt"
            )
        if self.limit is not None and self.limit * self.samples > MAX_EPISODES:
            problems.append(
                f"limit = {self.limit} times samples = {self.samples} is more than {MAX_EPISODES:,} episodes: lower one"
            )
        if self.controls and self.turns < 2:
            problems.append("the controls compare second attempts: they need turns >= 2")
        if self.drafts is not None and (self.controls or self.turns < 2):
            problems.append(
                f"drafts = {self.drafts!r} with controls = {self.controls} and turns = {self.turns}: a shared pool of drafts is "
                "revised, so it needs turns >= 2, and the controls are for a model's own drafts; measure them apart"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self


WHAT = "the evaluation"
SERVER_ONLY = (
    *("api", "tokenizer", "extra_body", "extra_headers", "drop_fields"),
    *("key_env", "request_timeout", "retries", "failed_limit"),
)
LOCAL_ONLY = ("dtype", "device", "trust_remote_code", "engine", "engine_options", "vllm")


def make_eval_settings(
    given: Mapping[str, Any], overrides: Sequence[str] = (), *, base: EvalSettings | None = None
) -> EvalSettings:
    """Return settings from single values, where None means the default, then from ``key.path=value``.

    Args:
        base: settings to start from; unset = the defaults.

    Raises:
        ConfigError: one message that lists every problem.
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


def check_place(settings: EvalSettings, *, served: bool) -> None:
    """Reject server settings for a model in this process, and local settings for a model on a server.

    Raises:
        ConfigError: some are set; the message names them.
    """
    others = LOCAL_ONLY if served else SERVER_ONLY
    defaults = EvalSettings()
    given = [name for name in others if getattr(settings, name) != getattr(defaults, name)]
    if given and served:
        raise ConfigError(f"{', '.join(given)}: only for a model in this process, but this model is on a server.")
    if given:
        raise ConfigError(
            f"{', '.join(given)}: only for a model on a server; set base_url, or give a URL as the model."
        )


def check_size(problems: int, samples: int) -> None:
    """Reject an evaluation that would fill the memory.

    Raises:
        ConfigError: it has more than `MAX_EPISODES` episodes.
    """
    if problems * samples > MAX_EPISODES:
        raise ConfigError(
            f"{problems:,} problems times samples = {samples} is more than {MAX_EPISODES:,} episodes: lower samples or set limit."
        )
