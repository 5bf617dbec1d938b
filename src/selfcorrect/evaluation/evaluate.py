"""`evaluate`: measure any model on any task, in memory or in a directory that a later call goes on with."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

from selfcorrect.config.schema import Config, ModelConfig, RolloutConfig, TaskConfig
from selfcorrect.config.toml import load_config
from selfcorrect.engines import HFEngine, Sampling
from selfcorrect.engines.openai_chat import EndpointEngine, Server, find_server, is_url
from selfcorrect.errors import ConfigError, EndpointError, InterruptedRun
from selfcorrect.evaluation.callbacks import Callbacks
from selfcorrect.evaluation.evaluator import EvalPlan, Evaluation, Evaluator
from selfcorrect.models.dtypes import DTYPES
from selfcorrect.models.language_model import LanguageModel, modes_kept
from selfcorrect.rollout.chat_format import ChatFormat
from selfcorrect.rollout.chat_rollout import ChatRollouter
from selfcorrect.rollout.rollout import check_context
from selfcorrect.rollout.rollouter import Rollouter, TokenRollouter
from selfcorrect.script import Instructions, Script
from selfcorrect.storage.evaluation_dir import SCHEMA, EvaluationDirectory, plain
from selfcorrect.storage.provenance import data_digest
from selfcorrect.tasks import Task, get_task
from selfcorrect.tasks.rows import RowsTask, VerifierFunction
from selfcorrect.tasks.verifier import Verifier
from selfcorrect.types import MESSAGES, TOKENS, Problem, Split
from selfcorrect.zoo.registry import Progress
from selfcorrect.zoo.resolve import LIVE, device_of, find_model, foreseen, named_run

NAME = "eval"
MAX_TOKENS = 512
"""Token limit of a turn where nothing else is said and the context holds it."""
MAX_ROWS = 64
"""Episodes side by side where nothing else is said."""
REQUESTS = 16
"""Requests to a server at a time where nothing else is said."""


def evaluate(
    model: Any,
    task: Task | str | Iterable[Mapping[str, Any]],
    *,
    tokenizer: Any = None,
    verifier: VerifierFunction | None = None,
    task_options: Mapping[str, Any] | None = None,
    split: str = "test",
    turns: int = 2,
    limit: int | None = None,
    seed: int = 0,
    data_seed: int | None = None,
    max_tokens: int | None = None,
    temperature: float = 0.0,
    samples: int = 1,
    sampled: bool | None = None,
    controls: bool = False,
    revise: Instructions | None = None,
    system: str | None = None,
    stop: Sequence[str] | None = None,
    dtype: str = "float32",
    device: str = "auto",
    max_rows: int | None = None,
    trust_remote_code: bool = False,
    base_url: str | None = None,
    key_env: str | None = None,
    request_timeout: float | None = None,
    retries: int | None = None,
    out: str | Path | None = None,
    callbacks: Callbacks | None = None,
) -> Evaluation:
    """Measure a model on a task; greedy unless ``temperature`` says otherwise. Nothing given is changed.

    Where ``model`` is a run and ``task`` names the task it was trained on, what is left unset is as in that run: the
    task's options and instructions, its problems, the token limit, the stop texts and the sampling temperature.

    A model on a server is asked over HTTP; its context mode is ``messages`` (see `rollouters`).

    Args:
        model: a directory, a run (``RUN`` or ``RUN:stage``), a model the package makes, a hub id, a live Hugging
            Face model, which stays on its device; with ``base_url`` a name that the server knows, or the URL of a
            server with one model.
        task: a name, a task, or rows (dicts, a `datasets.Dataset`) with their ``verifier``; all rows are evaluated.
        tokenizer: a live model's tokenizer.
        limit: at most so many problems; unset = as many as the task has, or its own default.
        max_tokens: token limit of a turn; unset = the run's, else 512 or what the model's context holds.
        revise: the instruction before every later attempt, or several (see `Script`).
        stop: texts that end a turn as soon as they stand in it; unset = the run's, else none.
        samples: episodes per problem where they are sampled.
        sampled: also evaluate samples at the training temperature (1 where the model is no run); unset = ``controls``.
        controls: also evaluate the draft swap and, if sampled, the independent resample.
        trust_remote_code: run Python code that comes with a model from the hub.
        max_rows: episodes side by side; with a server, requests at a time (16).
        base_url: an OpenAI-compatible chat server.
        key_env: environment variable that holds the server's key; unset = ``OPENAI_API_KEY``, if there is one.
        request_timeout: seconds for one request (300).
        retries: how often a request that failed in passing is made again (6).
        out: a directory for episodes and results; an unfinished evaluation with the same settings goes on there.

    Raises:
        SelfCorrectError: everything that can be refused is, before any work.
    """
    _check_arguments({"limit": limit, "max_tokens": max_tokens, "max_rows": max_rows}, temperature, dtype, seed)
    callbacks = callbacks or Callbacks()
    server = _server(model, base_url, key_env, request_timeout, retries)
    if server and (dtype, device, trust_remote_code, tokenizer) != ("float32", "auto", False, None):
        raise ConfigError(
            "dtype, device, trust_remote_code and tokenizer are about a model in this process: leave them."
        )
    run = None if server else _same_task_run(model, task)
    rollout, defaults = (run.rollout, run.task) if run else (RolloutConfig(max_rows=MAX_ROWS), TaskConfig())
    data_seed = defaults.data_seed if data_seed is None else data_seed
    plan = EvalPlan(
        turns=turns,
        seed=seed,
        max_tokens=max_tokens or (rollout.max_tokens if run else MAX_TOKENS),
        temperature=temperature,
        samples=samples,
        sampled_temperature=rollout.temperature if (controls if sampled is None else sampled) else None,
        controls=controls,
        stop=tuple(rollout.stop if stop is None else stop),
    )
    settings = ModelConfig.model_construct(
        source=str(model), seed=None, dtype=cast(Any, dtype), device=device, trust_remote_code=trust_remote_code
    )
    if samples > 1 and temperature == 0 and plan.sampled_temperature is None:
        raise ConfigError(
            f"samples = {samples}, but greedy attempts are all the same: set temperature above 0 (avg@{samples}), or "
            "sampled for samples beside the greedy attempt."
        )
    with ExitStack() as stack:
        directory = None if out is None else stack.enter_context(EvaluationDirectory.open(Path(out)))
        options = {**(defaults.options if run else {}), **(task_options or {})}
        source = {"name": task if isinstance(task, str) else LIVE, "options": plain(options)}
        task = _task(task, verifier, options)
        script = _script(task.script, turns, revise or defaults.revise, system or defaults.system)
        problems = task.problems(_split(split), seed=data_seed, limit=limit)
        known = {
            "schema": SCHEMA,
            "task": {"name": task.name, "version": task.version},
            "problems": {
                "split": split,
                "data_seed": data_seed,
                "count": len(problems),
                "digest": data_digest(problems),
            },
            "script": asdict(script),
            **(_served(server) if server else {"context_mode": TOKENS, "dtype": dtype}),
        }
        if directory:
            directory.check(known)  # before a large model is loaded for nothing
        rollouter: Rollouter
        if server:
            connected = ChatRollouter.connected(EndpointEngine(server), concurrency=max_rows or REQUESTS)
            rollouter = stack.enter_context(connected)
            if not (directory and directory.finished):
                rollouter.check(problems[0], script, Sampling(temperature, 1, plan.stop))
            loaded = {}
        else:
            explicit = bool(max_tokens or run)
            # twice: what can be refused already is, before a model is made for nothing
            plan = _fitted(plan, problems, script, foreseen(settings, seed=seed), explicit=explicit)
            lm = stack.enter_context(_loaded(model, tokenizer, settings, seed, callbacks.on_progress))
            plan = _fitted(plan, problems, script, lm, explicit=explicit)
            rollouter = _token_rollouter(lm, max_rows or rollout.max_rows)
            loaded = {"model": {"digest": lm.digest(), "source": _source(model)}, "device": lm.device.type}
        if directory:
            directory.claim({**known, **loaded, "plan": asdict(plan), "task_source": source})
        judge = stack.enter_context(
            Verifier(task, time_limit_s=defaults.time_limit_s, failure_limit=defaults.failure_limit)
        )
        begin = time.perf_counter()
        evaluator = Evaluator(
            rollouter,
            script,
            judge,
            problems,
            plan,
            name=NAME,
            folder=directory.episodes if directory else None,
            progress=callbacks.on_progress,
            stop=lambda: _check_stop(callbacks, directory),
            first_attempt=getattr(task, "first_attempt", None),
        )
        try:
            evaluation = evaluator.run()
        except EndpointError as error:
            raise EndpointError(f"{error} Stopped; {_kept(directory)}.") from None
        if directory:
            directory.finish(evaluation.to_json(), time.perf_counter() - begin)
    if callbacks.on_eval:
        callbacks.on_eval("model", evaluation)
    return evaluation


def _check_arguments(counts: Mapping[str, int | None], temperature: float, dtype: str, seed: int) -> None:
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ConfigError(f"{name} = {value}: it must be at least 1.")
    if seed < 0:
        raise ConfigError(f"seed = {seed}: it must be at least 0.")
    if not math.isfinite(temperature):
        raise ConfigError(f"temperature = {temperature}: it must be a finite number.")
    if dtype not in DTYPES:
        raise ConfigError(f"dtype = {dtype!r}: there are {', '.join(DTYPES)}.")


def _server(
    model: Any, base_url: str | None, key_env: str | None, request_timeout: float | None, retries: int | None
) -> Server | None:
    """The server that ``base_url``, or a model that is a URL, means; None for a model in this process."""
    options = {"key_env": key_env, "request_timeout": request_timeout, "retries": retries}
    if base_url is None and not is_url(model):
        given = [name for name, value in options.items() if value is not None]
        if given:
            raise ConfigError(f"{', '.join(given)}: this is about a server; give base_url, or a URL as the model.")
        return None
    if base_url is not None and (is_url(model) or not isinstance(model, str) or not model):
        raise ConfigError("with base_url, the model is the name under which that server knows it.")
    name = None if base_url is None else model
    return find_server(base_url or model, name, key_env=key_env, timeout_s=request_timeout, retries=retries)


def _served(server: Server) -> dict[str, Any]:
    """What is recorded of a model whose weights are out of sight: the address and the name stand for them."""
    return {
        "context_mode": MESSAGES,
        "model": {"digest": None, "source": f"{server.model} at {server.base_url}"},
        "endpoint": {"base_url": server.base_url, "model": server.model},
    }


def _same_task_run(model: Any, task: Any) -> Config | None:
    """The settings of the run that ``model`` names, if it was trained on the task that ``task`` names."""
    if not isinstance(model, (str, Path)) or not isinstance(task, str):
        return None
    run, _ = named_run(model)
    config = load_config(run / "config.toml") if run is not None else None
    return config if config is not None and config.task.name == task else None


def _task(task: Any, verifier: VerifierFunction | None, options: Mapping[str, Any]) -> Task:
    if isinstance(task, str):
        return get_task(task, options)
    if isinstance(task, Task):
        return task
    if verifier is None:
        raise ConfigError("rows come without a notion of right: give verifier=function(text, reference, row).")
    return RowsTask(None, verifier, test_rows=task)


def _split(name: str) -> Split:
    try:
        return Split(name)
    except ValueError:
        raise ConfigError(f"split = {name!r}: there are {', '.join(Split)}.") from None


def _script(own: Script, turns: int, revise: Instructions | None, system: str | None) -> Script:
    return replace(own, turns=turns, revise=revise or own.revise, system=system or own.system)


@contextmanager
def _loaded(
    model: Any, tokenizer: Any, settings: ModelConfig, seed: int, progress: Progress | None
) -> Iterator[LanguageModel]:
    """The model to measure; a live one gets its training modes back afterwards."""
    if isinstance(model, (str, Path)):
        device_of(settings)  # refuses a device that is not there before anything is loaded
        yield find_model(settings, seed=seed, progress=progress)
        return
    if isinstance(model, LanguageModel):
        model, tokenizer = model.model, tokenizer or model.tokenizer
    if tokenizer is None:
        raise ConfigError("a live model needs its tokenizer: evaluate(model, task, tokenizer=tokenizer).")
    with modes_kept(model):
        yield LanguageModel(model, tokenizer, cpu_kernels=False)  # which leaves somebody else's layers as they are


def _token_rollouter(lm: LanguageModel, rows: int) -> TokenRollouter:
    return TokenRollouter(HFEngine(lm, max_rows=rows), lm.tokenizer, chunk=rows)


def _source(model: object) -> str:
    return str(model) if isinstance(model, str | Path) else LIVE


def _fitted(
    plan: EvalPlan, problems: Sequence[Problem], script: Script, lm: LanguageModel | None, *, explicit: bool
) -> EvalPlan:
    """The plan with a token limit that the model's context holds, unless the limit was asked for.

    Unchanged for no model: nothing is known about it yet.

    Raises:
        ConfigError: the prompts and the limits do not fit.
    """
    if lm is None:
        return plan
    chat = ChatFormat(lm.tokenizer, script)
    if not explicit:
        shortest = check_context(problems, chat, 1, lm.context_limit)
        room = 1 + (lm.context_limit - shortest) // plan.turns
        plan = replace(plan, max_tokens=min(plan.max_tokens, room))
    check_context(problems, chat, plan.max_tokens, lm.context_limit)
    return plan


def _check_stop(callbacks: Callbacks, directory: EvaluationDirectory | None) -> None:
    number = callbacks.should_stop()
    if number:
        raise InterruptedRun(f"stopped; {_kept(directory)}.", signal=int(number))


def _kept(directory: EvaluationDirectory | None) -> str:
    return "the same command goes on from here" if directory else "nothing was to be saved"
