"""Measure any model on any task, in memory or in a directory from which a later call resumes."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from selfcorrect.config.evaluation import EvalSettings, check_place, check_size, make_eval_settings
from selfcorrect.config.sampling import RolloutConfig
from selfcorrect.config.schema import Config, TaskConfig
from selfcorrect.config.toml import load_config
from selfcorrect.distributed.world import World, given_or_joined
from selfcorrect.documents import is_unicode
from selfcorrect.engines.openai_chat import Server, find_server, is_url
from selfcorrect.errors import ConfigError, EndpointError, FailedRequestsError, InterruptedRun
from selfcorrect.evaluation.advice import IN_EVAL, IN_EVAL_KEPT
from selfcorrect.evaluation.callbacks import Callbacks
from selfcorrect.evaluation.draft_pool import DraftPool
from selfcorrect.evaluation.evaluation import BLIND, Evaluation
from selfcorrect.evaluation.evaluator import Evaluator
from selfcorrect.evaluation.measured_model import LocalModel, MeasuredModel, with_dtype
from selfcorrect.evaluation.planned_parts import EvalPlan
from selfcorrect.evaluation.problem_set import ProblemSet
from selfcorrect.evaluation.served_model import REQUESTS, ServedModel, recorded_mode
from selfcorrect.evaluation.shared_directory import SharedEvaluationDirectory
from selfcorrect.evaluation.supply import Supply
from selfcorrect.rollout.rollouter import Rollouter
from selfcorrect.runtime import CoreShare
from selfcorrect.storage.consent import code_of_task, require_consent
from selfcorrect.storage.evaluation_dir import flat
from selfcorrect.tasks import Task
from selfcorrect.tasks.base import origin_of
from selfcorrect.tasks.rows import VerifierFunction
from selfcorrect.tasks.verifier import Verifier, default_workers
from selfcorrect.types import Part, Split
from selfcorrect.zoo.resolve import model_path, named_run

log = logging.getLogger(__name__)

NAME = "eval"
MAX_TOKENS = 512
"""Default token limit of a turn, if the context has room for it."""


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
    options and instructions, its problems, the token limit, the stop texts and the sampling temperature; on any task, the dtype.

    A model on a server is queried over HTTP, in the protocol that ``api`` names (see `served_model`).

    Processes that a launcher such as torchrun started all call it. They share every batch of episodes, the first one writes,
    and all return the same evaluation.

    Args:
        model: a directory, a run (``RUN`` or ``RUN:stage``), a bundled model, a hub id, or a live Hugging Face model,
            which stays on its device. With ``base_url``: the name of a model on that server. Also the URL of a server
            with one model.
        task: a name, a task, a configuration's file (``CONFIG.toml``) for its task, or rows (dicts, a `datasets.Dataset`)
            with their ``verifier``; all rows are evaluated.
        tokenizer: a live model's tokenizer; for a model on a server, its tokenizer or the name of one.
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
            settings, tokenizer = _named_tokenizer(settings, tokenizer)
            server = _server(model, settings, world)
            settings = settings if server else with_dtype(settings, model, None if out is None else Path(out))
            task, configured = _configured(task)
            run = (
                None if server else _same_task_run(model, task, settings, allow_code, consented=configured is not None)
            )
            plan = plan_of(settings, run)
            measured: MeasuredModel = (
                ServedModel(server, settings, tokenizer, recorded_mode(None if out is None else Path(out)))
                if server
                else LocalModel(model, tokenizer, settings, run, callbacks.on_progress, world)
            )
        directory = None if out is None else stack.enter_context(SharedEvaluationDirectory.open(Path(out), world))
        finished = directory is not None and directory.finished
        # The task may fetch its problems.
        problem_set = world.leaders_first(
            lambda: ProblemSet.of(task, verifier, settings, configured or (run.task if run else None))
        )
        with world.together():
            check_size(len(problem_set.problems), plan.samples)
            pool = _pool(settings, problem_set, aloud=world.first)
        known = {**problem_set.identity(settings.split), **measured.known}
        if directory:
            directory.check(known)  # before a large model is loaded in vain
        with world.together():
            plan = measured.foresee(problem_set, plan)
        world.leaders_first(lambda: measured.prepare(stack, problem_set, plan, finished=finished))
        with world.together():
            plan = measured.fit(problem_set, plan)
        identity = {
            **{**known, **measured.identity},
            "plan": {**asdict(plan), **measured.sampler, **({"drafts": pool.digest} if pool else {})},
            "task_source": problem_set.source,
        }
        _refuse_different(world, identity)
        if directory:
            directory.claim(identity)
        with world.together():
            rollouter = measured.rollouter(stack, finished=finished)
        cores = CoreShare.of(str(measured.identity.get("device", "")) if world.first else "")
        evaluation = _run(problem_set, plan, settings, rollouter, stack, directory, callbacks, world, pool, cores)
    if callbacks.on_eval:
        callbacks.on_eval("model", evaluation)
    return evaluation


# -- checks and plans before any work -----------------------------------------------------------------------------------


def _named_tokenizer(settings: EvalSettings, tokenizer: Any) -> tuple[EvalSettings, Any]:
    """Return the settings with the tokenizer that was named, and one that was given as an object."""
    if isinstance(tokenizer, (str, Path)):
        return make_eval_settings({"tokenizer": str(tokenizer)}, base=settings), None
    return settings, tokenizer


def _server(model: Any, settings: EvalSettings, world: World) -> Server | None:
    """Return the server named by ``base_url`` or by a model that is a URL; None for a model in this process."""
    served = settings.base_url is not None or is_url(model)
    check_place(settings, served=served)
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
        extra_body=settings.extra_body,
        extra_headers=settings.extra_headers,
        drop_fields=settings.drop_fields,
    )


def _configured(task: Any) -> tuple[Any, TaskConfig | None]:
    """Return the task that a configuration names, and its settings; any other task as it is."""
    if not isinstance(task, (str, Path)) or not str(task).endswith(".toml"):
        return task, None
    found = load_config(task).task
    return found.name, found


def _same_task_run(
    model: Any, task: Any, settings: EvalSettings, allow_code: Collection[str], *, consented: bool = False
) -> Config | None:
    """Return the settings of the run that ``model`` names, if it was trained on the task that ``task`` names.

    Its digests are compared, and the code that its settings name is allowed, before any of it is imported;
    ``consented``: the task is from the caller's own configuration.
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
    if not consented:
        require_consent(run, code_of_task(task, config.task.options, settings.task_options), allow_code)
    return config


def plan_of(settings: EvalSettings, run: Config | None) -> EvalPlan:
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


def _pool(settings: EvalSettings, problem_set: ProblemSet, *, aloud: bool) -> DraftPool | None:
    """Return the drafts that are revised in place of the model's own; None if it revises its own.

    ``aloud``: warn of truncated ones.
    """
    if settings.drafts is None:
        return None
    if hasattr(problem_set.task, "first_attempt"):
        raise ConfigError(f"task {problem_set.task.name!r} supplies the first attempts itself: leave out drafts.")
    pool = DraftPool.of(Path(settings.drafts), problem_set.task.name, problem_set.problems)
    if pool.truncated and aloud:
        log.warning(
            "%d of the %d drafts in %s are truncated at that evaluation's token limit, and here count as complete: a second "
            "attempt that only finishes one counts as a correction. Make the pool with a higher --max-tokens.",
            pool.truncated,
            len(pool.texts),
            settings.drafts,
        )
    return pool


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


# -- running ---------------------------------------------------------------------------------------------------------


def _run(
    problem_set: ProblemSet,
    plan: EvalPlan,
    settings: EvalSettings,
    rollouter: Rollouter,
    stack: ExitStack,
    directory: SharedEvaluationDirectory | None,
    callbacks: Callbacks,
    world: World,
    pool: DraftPool | None,
    cores: CoreShare,
) -> Evaluation:
    """Run the conversations that are not on disk yet, and finish the directory."""
    task, defaults = problem_set.task, problem_set.defaults
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
        problem_set.script,
        verifier,
        problem_set.problems,
        plan,
        name=NAME,
        folder=directory.episodes if directory else None,
        progress=callbacks.on_progress,
        left=callbacks.on_left,
        stop=lambda: _check_stop(callbacks, directory, world, evaluator.at, cores),
        world=world,
        first_attempt=getattr(task, "first_attempt", None),
        pool=pool,
        failed_limit=settings.failed_limit,
        blind=_blind_drafts(directory),
        warns_as=IN_EVAL_KEPT if directory else IN_EVAL,
        supply=Supply.of(task, Split(settings.split), taken=len(problem_set.problems), limit=settings.limit),
    )
    finished = directory is not None and directory.finished  # asked in all processes
    if world.first and len(evaluator.planned) > 1 and not finished:
        log.info("%s: %s", NAME, evaluator.cost)
    evaluation = _evaluated(evaluator, settings, directory, callbacks)
    cores.warn()
    if directory:
        directory.finish(evaluation.to_json(), time.perf_counter() - begin, origin_of(task))
    return evaluation


def _evaluated(
    evaluator: Evaluator,
    settings: EvalSettings,
    directory: SharedEvaluationDirectory | None,
    callbacks: Callbacks,
) -> Evaluation:
    """Run the evaluator; if it fails, hand over what is complete, and say where it stopped and what is kept."""
    try:
        return evaluator.run()
    except Exception as error:
        if callbacks.on_partial and (partial := evaluator.partial()) is not None:
            callbacks.on_partial(partial, len(evaluator.problems))
        if isinstance(error, EndpointError):
            hint = _seed_hint(error, evaluator, settings)
            raise type(error)(f"{error} Stopped {evaluator.at}; {_kept(directory)}.{hint}") from None
        raise


def _blind_drafts(directory: SharedEvaluationDirectory | None) -> list[Part]:
    """Return all blind drafts; of a finished evaluation those that it has, which are fewer in earlier versions."""
    if directory is None or not directory.finished:
        return [*BLIND]
    return [part for part in BLIND if (directory.episodes / f"{NAME}-{part}.jsonl").exists()]


def _check_stop(
    callbacks: Callbacks, directory: SharedEvaluationDirectory | None, world: World, at: str, cores: CoreShare
) -> None:
    cores.warn()
    number = world.any(callbacks.should_stop())
    if number:
        raise InterruptedRun(f"stopped {at}; {_kept(directory)}.", signal=int(number))


def _seed_hint(error: EndpointError, evaluator: Evaluator, settings: EvalSettings) -> str:
    """Return the way around a server that dies of requests with a seed, if it is gone and was sent some."""
    rejected = isinstance(error, FailedRequestsError)  # then it still answers
    if rejected or not evaluator.sampling_temperature or "seed" in settings.drop_fields:
        return ""
    return (
        " The requests of this part have a seed, and some servers die of it (vLLM on a CPU: its log has 'CPU Generator does not "
        "use offset'). Restart the server. If it dies again, evaluate into a new directory without seeds: "
        "--set 'drop_fields=[\"seed\"]'."
    )


def _kept(directory: SharedEvaluationDirectory | None) -> str:
    return "the same command resumes from here" if directory else "no output directory was given, so nothing was saved"
