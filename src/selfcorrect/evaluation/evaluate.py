"""Measure any model on any task, in memory or in a directory from which a later call resumes."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from selfcorrect.config.engine_names import HF, VLLM
from selfcorrect.config.evaluation import EvalSettings, check_place, check_size, make_eval_settings
from selfcorrect.config.schema import Config, ModelConfig, RolloutConfig, TaskConfig, vllm_problems
from selfcorrect.config.toml import load_config
from selfcorrect.distributed.world import World, given_or_joined
from selfcorrect.documents import is_unicode
from selfcorrect.engines import EngineSettings, HFEngine, Sampling, check_engine, open_engine
from selfcorrect.engines.hf import check_cache
from selfcorrect.engines.openai_chat import EndpointEngine, Server, find_server, is_url
from selfcorrect.errors import ConfigError, EndpointError, InterruptedRun
from selfcorrect.evaluation.callbacks import Callbacks
from selfcorrect.evaluation.evaluation import BLIND, Evaluation
from selfcorrect.evaluation.evaluator import EvalPlan, Evaluator
from selfcorrect.evaluation.shared_directory import SharedEvaluationDirectory
from selfcorrect.models.card import ModelCard
from selfcorrect.models.language_model import LanguageModel, modes_kept
from selfcorrect.rollout.chat_format import ChatFormat
from selfcorrect.rollout.chat_rollout import ChatRollouter
from selfcorrect.rollout.rollout import check_context
from selfcorrect.rollout.rollouter import Rollouter, TokenRollouter
from selfcorrect.script import Instructions, Script
from selfcorrect.storage.consent import code_of_task, require_consent
from selfcorrect.storage.evaluation_dir import SCHEMA, flat, plain
from selfcorrect.storage.provenance import data_digest
from selfcorrect.tasks import Task, get_task
from selfcorrect.tasks.rows import RowsTask, VerifierFunction
from selfcorrect.tasks.verifier import Verifier, default_workers
from selfcorrect.types import MESSAGES, TOKENS, Part, Problem, Split
from selfcorrect.zoo.registry import Progress
from selfcorrect.zoo.resolve import LIVE, device_of, find_model, foreseen, model_path, named_run

NAME = "eval"
MAX_TOKENS = 512
"""Default token limit of a turn, if the context has room for it."""
MAX_ROWS = 64
"""Default number of episodes in one batch."""
REQUESTS = 16
"""Default number of concurrent requests to a server."""


def evaluate(
    model: Any,
    task: Task | str | Iterable[Mapping[str, Any]],
    *,
    tokenizer: Any = None,
    verifier: VerifierFunction | None = None,
    settings: EvalSettings | None = None,
    out: str | Path | None = None,
    callbacks: Callbacks | None = None,
    allow_code: Collection[str] = (),
    world: World | None = None,
    **keywords: Any,
) -> Evaluation:
    """Measure a model on a task, greedily unless ``temperature`` is set. The arguments are not modified.

    If ``model`` is a run and ``task`` names the task it was trained on, unset values come from that run: the task's
    options and instructions, its problems, the token limit, the stop texts and the sampling temperature.

    A model on a server is queried over HTTP; its context mode is ``messages`` (see `rollouters`).

    Processes that a launcher such as torchrun started all call it. They share every batch of episodes, the first one writes,
    and all return the same evaluation.

    Args:
        model: a directory, a run (``RUN`` or ``RUN:stage``), a bundled model, a hub id, or a live Hugging Face model,
            which stays on its device. With ``base_url``: the name of a model on that server. Also the URL of a server
            with one model.
        task: a name, a task, or rows (dicts, a `datasets.Dataset`) with their ``verifier``; all rows are evaluated.
        tokenizer: a live model's tokenizer.
        settings: how to evaluate; the defaults if None.
        out: a directory for episodes and results; an unfinished evaluation with the same settings resumes there.
        allow_code: names of code in the run's settings that may run, such as a verifier; what ``settings`` name may.
        world: the processes that share the work; unset = those that a launcher started, else this one alone.
        keywords: single fields of `EvalSettings`, such as ``limit=100`` or ``engine="vllm"``, on top of ``settings``.

    Raises:
        SelfCorrectError: an input is invalid. Inputs are checked before any work, and one ConfigError lists all invalid settings.
    """
    settings, callbacks = make_eval_settings(keywords, base=settings), callbacks or Callbacks()
    with ExitStack() as stack:
        world = stack.enter_context(given_or_joined(world))
        callbacks = callbacks if world.first else Callbacks(should_stop=callbacks.should_stop)
        with world.together():
            server = _server(model, settings, tokenizer, world)
            run = None if server else _same_task_run(model, task, settings, allow_code)
            plan = _plan(settings, run)
            source: _Source = (
                _ServedModel(server, settings)
                if server
                else _LocalModel(model, tokenizer, settings, run, callbacks.on_progress, world)
            )
        directory = None if out is None else stack.enter_context(SharedEvaluationDirectory.open(Path(out), world))
        finished = directory is not None and directory.finished
        asked = world.leaders_first(lambda: _Asked.of(task, verifier, settings, run))  # the task may fetch its problems
        with world.together():
            check_size(len(asked.problems), plan.samples)
        known = {**asked.identity(settings.split), **source.known}
        if directory:
            directory.check(known)  # before a large model is loaded in vain
        with world.together():
            plan = source.foresee(asked, plan)
        world.leaders_first(lambda: source.prepare(stack, asked, plan, finished=finished))
        with world.together():
            plan = source.fit(asked, plan)
        identity = {
            **{**known, **source.identity},
            **{"plan": {**asdict(plan), **source.sampler}, "task_source": asked.source},
        }
        _refuse_different(world, identity)
        if directory:
            directory.claim(identity)
        with world.together():
            rollouter = source.rollouter(stack, finished=finished)
        evaluation = _measured(asked, plan, settings, source, rollouter, stack, directory, callbacks, world)
    if callbacks.on_eval:
        callbacks.on_eval("model", evaluation)
    return evaluation


# -- checks and plans before any work -----------------------------------------------------------------------------------


def _server(model: Any, settings: EvalSettings, tokenizer: Any, world: World) -> Server | None:
    """Return the server named by ``base_url`` or by a model that is a URL; None for a model in this process."""
    served = settings.base_url is not None or is_url(model)
    check_place(settings, served=served, live_tokenizer=tokenizer is not None)
    if not served:
        return None
    if world.size > 1:
        raise ConfigError(
            f"the model is on a server, but a launcher started {world.size} processes: start the command without torchrun. "
            f"One process is enough, with max_num_seqs = {settings.max_num_seqs or REQUESTS} requests at a time."
        )
    if settings.base_url is not None and (is_url(model) or not isinstance(model, str) or not model):
        raise ConfigError("with base_url, model must be the name of a model on that server.")
    if not is_unicode(str(model)):
        raise ConfigError(f"model {model!r} is not Unicode text, so no request can hold it: write it in UTF-8.")
    name = None if settings.base_url is None else model
    return find_server(
        settings.base_url or model,
        name,
        key_env=settings.key_env,
        timeout_s=settings.request_timeout,
        retries=settings.retries,
        chat_template_kwargs=settings.chat_template_kwargs,
    )


def _same_task_run(model: Any, task: Any, settings: EvalSettings, allow_code: Collection[str]) -> Config | None:
    """Return the settings of the run that ``model`` names, if it was trained on the task that ``task`` names.

    Its digests are compared, and the code that its settings name is allowed, before any of it is imported.
    """
    if not isinstance(model, (str, Path)) or not isinstance(task, str):
        return None
    run, _ = named_run(model)
    if run is None:
        return None
    config = load_config(run / "config.toml")
    if config.task.name != task:
        return None
    model_path(str(model))
    require_consent(run, code_of_task(task, config.task.options, settings.task_options), allow_code)
    return config


def _plan(settings: EvalSettings, run: Config | None) -> EvalPlan:
    """Return the plan of the measurement; the run fills in what the settings leave out."""
    rollout = run.rollout if run else RolloutConfig()
    return EvalPlan(
        turns=settings.turns,
        seed=settings.seed,
        max_tokens=settings.max_tokens or (rollout.max_tokens if run else MAX_TOKENS),
        temperature=settings.temperature,
        samples=settings.samples,
        sampled_temperature=rollout.temperature if settings.also_sampled else None,
        controls=settings.controls,
        stop=tuple(rollout.stop if settings.stop is None else settings.stop),
    )


@dataclass(frozen=True, eq=False)
class _Asked:
    """The problems, the script that presents them, and their origin."""

    task: Task
    script: Script
    problems: Sequence[Problem]
    data_seed: int
    defaults: TaskConfig
    source: Mapping[str, Any]

    @classmethod
    def of(cls, task: Any, verifier: VerifierFunction | None, settings: EvalSettings, run: Config | None) -> _Asked:
        defaults = run.task if run else TaskConfig()
        options = {**defaults.options, **settings.task_options}
        source = {"name": task if isinstance(task, str) else LIVE, "options": plain(options)}
        task = _task(task, verifier, options)
        script = _script(
            task.script, settings.turns, settings.revise or defaults.revise, settings.system or defaults.system
        )
        data_seed = defaults.data_seed if settings.data_seed is None else settings.data_seed
        problems = task.problems(Split(settings.split), seed=data_seed, limit=settings.limit)
        return cls(task, script, problems, data_seed, defaults, source)

    def identity(self, split: str) -> dict[str, Any]:
        """Return the record of the task, the problems and the script."""
        problems = {
            "split": split,
            "data_seed": self.data_seed,
            "count": len(self.problems),
            "digest": data_digest(self.problems),
        }
        task = {"name": self.task.name, "version": self.task.version}
        return {"schema": SCHEMA, "task": task, "problems": problems, "script": asdict(self.script)}


def _refuse_different(world: World, identity: Mapping[str, Any]) -> None:
    """Make sure that all processes measure the same.

    Raises:
        ConfigError: their models, problems or devices differ, for instance because a machine has another file.
    """
    every = world.gather(flat(identity))
    for rank, other in enumerate(every):
        differing = sorted(key for key in {**other, **every[0]} if other.get(key) != every[0].get(key))
        if differing:
            with world.together():
                raise ConfigError(
                    f"process {rank} of {world.size} measures something else than the first one; these differ: "
                    f"{', '.join(differing)}. All machines need the same model, problems and settings."
                )


def _task(task: Any, verifier: VerifierFunction | None, options: Mapping[str, Any]) -> Task:
    if isinstance(task, str):
        return get_task(task, options)
    if isinstance(task, Task):
        return task
    if verifier is None:
        raise ConfigError("rows need a verifier: pass verifier=function(text, reference, row).")
    return RowsTask(None, verifier, test_rows=task)


def _script(own: Script, turns: int, revise: Instructions | None, system: str | None) -> Script:
    return replace(own, turns=turns, revise=revise or own.revise, system=system or own.system)


# -- model sources ---------------------------------------------------------------------------------------------------


class _Source(Protocol):
    """The model to measure: on a server, or in this process."""

    @property
    def known(self) -> Mapping[str, Any]:
        """Return what can be recorded before the model is loaded."""
        ...

    def foresee(self, asked: _Asked, plan: EvalPlan) -> EvalPlan:
        """Reject what is known to be impossible before the model is loaded; return the plan as far as it is known."""
        ...

    def prepare(self, stack: ExitStack, asked: _Asked, plan: EvalPlan, *, finished: bool) -> None:
        """Connect to the model or load it."""
        ...

    def fit(self, asked: _Asked, plan: EvalPlan) -> EvalPlan:
        """Return the plan with a token limit that fits the model's context."""
        ...

    @property
    def identity(self) -> Mapping[str, Any]:
        """Return what is recorded about the loaded model."""
        ...

    @property
    def sampler(self) -> Mapping[str, Any]:
        """Return what is recorded about the engine (nothing for `hf`) and the chat template's options."""
        ...

    def rollouter(self, stack: ExitStack, *, finished: bool) -> Rollouter:
        """Return the object that runs the conversations; if the evaluation is ``finished``, none remain to run."""
        ...


class _ServedModel:
    """A model on a server. Its weights are not accessible, so the address and the name identify it."""

    def __init__(self, server: Server, settings: EvalSettings) -> None:
        self.server, self.settings, self.engine = server, settings, EndpointEngine(server)
        self.known: Mapping[str, Any] = {
            "context_mode": MESSAGES,
            "model": {"digest": None, "source": f"{server.model} at {server.base_url}"},
            "endpoint": {"base_url": server.base_url, "model": server.model},
        }
        self.identity: Mapping[str, Any] = {}
        self.sampler: Mapping[str, Any] = _recorded(server.chat_template_kwargs)

    def foresee(self, asked: _Asked, plan: EvalPlan) -> EvalPlan:
        return plan

    def prepare(self, stack: ExitStack, asked: _Asked, plan: EvalPlan, *, finished: bool) -> None:
        requests = self.settings.max_num_seqs or REQUESTS
        connected = ChatRollouter.connected(self.engine, concurrency=requests)
        self._connected = stack.enter_context(connected)
        if not finished:
            self._connected.check(asked.problems, asked.script, Sampling(plan.temperature, 1, plan.stop))

    def fit(self, asked: _Asked, plan: EvalPlan) -> EvalPlan:
        return plan

    def rollouter(self, stack: ExitStack, *, finished: bool) -> Rollouter:
        return self._connected


class _LocalModel:
    """A model in this process, and the engine that samples from it."""

    lm: LanguageModel

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        settings: EvalSettings,
        run: Config | None,
        progress: Progress | None,
        world: World,
    ) -> None:
        self.model, self.tokenizer, self.settings, self.run, self.progress = model, tokenizer, settings, run, progress
        self.world = world
        self.loading = ModelConfig(
            source=str(model),
            dtype=settings.dtype,
            device=settings.device,
            trust_remote_code=settings.trust_remote_code,
        )
        own = run.model.chat_template_kwargs if run else {}
        self.template_options = own if settings.chat_template_kwargs is None else settings.chat_template_kwargs
        rows = settings.max_num_seqs or (run.rollout.max_num_seqs if run else MAX_ROWS)
        self.engine = EngineSettings(settings.engine, rows, None, settings.engine_options, settings.vllm)
        check_engine(self.engine, processes=world.size)
        self.known: Mapping[str, Any] = {"context_mode": TOKENS, "dtype": settings.dtype}

    def foresee(self, asked: _Asked, plan: EvalPlan) -> EvalPlan:
        self._check_vllm(plan)
        card = foreseen(self.loading, seed=plan.seed)  # reject what cannot fit before a model is trained in vain
        return plan if card is None else self._fitted(asked, plan, card)

    def prepare(self, stack: ExitStack, asked: _Asked, plan: EvalPlan, *, finished: bool) -> None:
        loaded = _loaded(self.model, self.tokenizer, self.loading, plan.seed, self.progress)
        self.lm = stack.enter_context(loaded)
        if self.settings.engine == HF:
            check_cache(HFEngine(self.lm))  # before the directory is claimed

    def fit(self, asked: _Asked, plan: EvalPlan) -> EvalPlan:
        return self._fitted(asked, plan, ModelCard.of(self.lm))

    @property
    def identity(self) -> Mapping[str, Any]:
        source = str(self.model) if isinstance(self.model, str | Path) else LIVE
        return {"model": {"digest": self.lm.digest(), "source": source}, "device": self.lm.device.type}

    @property
    def sampler(self) -> Mapping[str, Any]:
        name, vllm, options = self.settings.engine, self.settings.vllm, _recorded(self.template_options)
        if name == HF:
            return options
        own = {"dtype": vllm.dtype, **vllm.options} if name == VLLM else self.settings.engine_options
        return {"engine": {"name": name, "options": plain(own)}, **options}

    def rollouter(self, stack: ExitStack, *, finished: bool) -> Rollouter:
        # A finished evaluation samples nothing, so do not open an engine that takes a minute to start.
        engine = open_engine(EngineSettings(HF, self.engine.max_num_seqs) if finished else self.engine, self.lm)
        stack.callback(engine.close)
        chunk = self.engine.max_num_seqs * self.world.size
        return TokenRollouter(engine, self.lm.tokenizer, chunk=chunk, options=self.template_options, world=self.world)

    def _check_vllm(self, plan: EvalPlan) -> None:
        if self.settings.engine != VLLM:
            return
        sampled = {} if plan.sampled_temperature is None else {"sampled temperature": plan.sampled_temperature}
        temperatures = {"temperature": plan.temperature, **sampled}
        problems = vllm_problems(
            "dtype", self.settings.dtype, self.settings.vllm, {k: t for k, t in temperatures.items() if t > 0}
        )
        if problems:
            raise ConfigError("; ".join(problems) + ".")

    def _fitted(self, asked: _Asked, plan: EvalPlan, card: ModelCard) -> EvalPlan:
        """Return the plan with a token limit that fits the model's context, unless the limit was set explicitly.

        Raises:
            ConfigError: the prompts and the limits do not fit.
        """
        chat = ChatFormat(card.tokenizer, asked.script, self.template_options)
        if not (self.settings.max_tokens or self.run):
            shortest = check_context(asked.problems, chat, 1, card.context_limit)
            room = 1 + (card.context_limit - shortest) // plan.turns
            plan = replace(plan, max_tokens=min(plan.max_tokens, room))
        longest = check_context(asked.problems, chat, plan.max_tokens, card.context_limit)
        self.engine = replace(self.engine, max_length=longest)
        return plan


@contextmanager
def _loaded(
    model: Any, tokenizer: Any, settings: ModelConfig, seed: int, progress: Progress | None
) -> Iterator[LanguageModel]:
    """Yield the model to measure; a live one gets its training modes back afterwards."""
    if isinstance(model, (str, Path)):
        device_of(settings)  # rejects a missing device before anything is loaded
        yield find_model(settings, seed=seed, progress=progress)
        return
    if isinstance(model, LanguageModel):
        model, tokenizer = model.model, tokenizer or model.tokenizer
    if tokenizer is None:
        raise ConfigError("a live model needs its tokenizer: evaluate(model, task, tokenizer=tokenizer).")
    with modes_kept(model):
        yield LanguageModel(model, tokenizer, cpu_kernels=False)  # do not patch the caller's layers


def _recorded(template_options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record of the chat template's options; none leave no trace, so that older directories can be resumed."""
    return {"chat_template_kwargs": plain(template_options)} if template_options else {}


# -- running ---------------------------------------------------------------------------------------------------------


def _measured(
    asked: _Asked,
    plan: EvalPlan,
    settings: EvalSettings,
    source: _Source,
    rollouter: Rollouter,
    stack: ExitStack,
    directory: SharedEvaluationDirectory | None,
    callbacks: Callbacks,
    world: World,
) -> Evaluation:
    """Run the conversations that are not on disk yet, and finish the directory."""
    task, defaults = asked.task, asked.defaults
    with world.together():
        verifier = stack.enter_context(
            Verifier(
                task,
                time_limit_s=defaults.time_limit_s,
                failure_limit=defaults.failure_limit,
                workers=default_workers(world.local_size),
            )
        )
    begin = time.perf_counter()
    evaluator = Evaluator(
        rollouter,
        asked.script,
        verifier,
        asked.problems,
        plan,
        name=NAME,
        folder=directory.episodes if directory else None,
        progress=callbacks.on_progress,
        stop=lambda: _check_stop(callbacks, directory, world),
        world=world,
        first_attempt=getattr(task, "first_attempt", None),
        failed_limit=settings.failed_limit,
        blind=_blind_drafts(directory),
    )
    try:
        evaluation = evaluator.run()
    except Exception as error:
        partial = evaluator.partial() if callbacks.on_partial else None
        if partial is not None and callbacks.on_partial:
            callbacks.on_partial(partial, len(asked.problems))
        if isinstance(error, EndpointError):
            raise type(error)(f"{error} Stopped; {_kept(directory)}.") from None
        raise
    if directory:
        directory.finish(evaluation.to_json(), time.perf_counter() - begin)
    return evaluation


def _blind_drafts(directory: SharedEvaluationDirectory | None) -> list[Part]:
    """Return all blind drafts; of a finished evaluation those that it has, which are fewer in earlier versions."""
    if directory is None or not directory.finished:
        return [*BLIND]
    return [part for part in BLIND if (directory.episodes / f"{NAME}-{part}.jsonl").exists()]


def _check_stop(callbacks: Callbacks, directory: SharedEvaluationDirectory | None, world: World) -> None:
    number = world.any(callbacks.should_stop())
    if number:
        raise InterruptedRun(f"stopped; {_kept(directory)}.", signal=int(number))


def _kept(directory: SharedEvaluationDirectory | None) -> str:
    return "the same command resumes from here" if directory else "no output directory was given, so nothing was saved"
