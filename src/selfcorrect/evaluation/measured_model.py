"""The model that an evaluation measures: the protocol of such models, and a model in this process."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol

from selfcorrect.config.engine_names import HF, VLLM
from selfcorrect.config.evaluation import EvalSettings, make_eval_settings
from selfcorrect.config.sampling import vllm_problems
from selfcorrect.config.schema import Config, ModelConfig
from selfcorrect.config.toml import load_config
from selfcorrect.distributed.world import World
from selfcorrect.engines import EngineSettings, HFEngine, check_engine, open_engine
from selfcorrect.engines.hf import check_cache
from selfcorrect.errors import ConfigError
from selfcorrect.evaluation.planned_parts import EvalPlan
from selfcorrect.evaluation.problem_set import ProblemSet
from selfcorrect.models.card import ModelCard
from selfcorrect.models.language_model import LanguageModel, modes_kept
from selfcorrect.rollout.chat_format import ChatFormat
from selfcorrect.rollout.rollout import check_context
from selfcorrect.rollout.rollouter import Rollouter, TokenRollouter
from selfcorrect.storage.evaluation_dir import IDENTITY, plain, read_identity
from selfcorrect.types import TOKENS
from selfcorrect.zoo.registry import Progress
from selfcorrect.zoo.resolve import LIVE, device_of, dtype_of, find_model, foreseen, named_run

MAX_ROWS = 64
"""Default number of episodes in one batch."""
DTYPE: Literal["float32"] = "float32"
"""The dtype of a model that is no run, unless it is set."""
log = logging.getLogger("selfcorrect")


class MeasuredModel(Protocol):
    """A model to measure; the methods are called in this order."""

    @property
    def known(self) -> Mapping[str, Any]:
        """Return what can be recorded before the model is loaded."""
        ...

    def foresee(self, problem_set: ProblemSet, plan: EvalPlan) -> EvalPlan:
        """Reject what is known to be impossible before the model is loaded; return the plan as far as it is known."""
        ...

    def prepare(self, stack: ExitStack, problem_set: ProblemSet, plan: EvalPlan, *, finished: bool) -> None:
        """Connect to the model or load it."""
        ...

    def fit(self, problem_set: ProblemSet, plan: EvalPlan) -> EvalPlan:
        """Return the plan with a token limit that fits the model's context."""
        ...

    @property
    def identity(self) -> Mapping[str, Any]:
        """Return what is recorded about the model once it is prepared."""
        ...

    @property
    def sampler(self) -> Mapping[str, Any]:
        """Return what is recorded about the engine (nothing for `hf`) and the chat template's options."""
        ...

    def rollouter(self, stack: ExitStack, *, finished: bool) -> Rollouter:
        """Return the object that runs the conversations; if the evaluation is ``finished``, none remain to run."""
        ...


class LocalModel:
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
        self.dtype = settings.dtype or DTYPE
        self.loading = ModelConfig(
            source=str(model),
            dtype=self.dtype,
            device=settings.device,
            trust_remote_code=settings.trust_remote_code,
        )
        own = run.model.chat_template_kwargs if run else {}
        self.template_options = own if settings.chat_template_kwargs is None else settings.chat_template_kwargs
        rows = settings.max_num_seqs or (run.rollout.max_num_seqs if run else MAX_ROWS)
        self.engine = EngineSettings(settings.engine, rows, None, settings.engine_options, settings.vllm)
        check_engine(self.engine, processes=world.size)
        self.known: Mapping[str, Any] = {"context_mode": TOKENS, "dtype": self.dtype}

    def foresee(self, problem_set: ProblemSet, plan: EvalPlan) -> EvalPlan:
        self._check_vllm(plan)
        card = foreseen(self.loading, seed=plan.seed)  # reject what cannot fit before a model is trained in vain
        return plan if card is None else self._fitted(problem_set, plan, card)

    def prepare(self, stack: ExitStack, problem_set: ProblemSet, plan: EvalPlan, *, finished: bool) -> None:
        loaded = _loaded(self.model, self.tokenizer, self.loading, plan.seed, self.progress)
        self.lm = stack.enter_context(loaded)
        if self.settings.engine == HF:
            check_cache(HFEngine(self.lm))  # before the directory is claimed

    def fit(self, problem_set: ProblemSet, plan: EvalPlan) -> EvalPlan:
        return self._fitted(problem_set, plan, ModelCard.of(self.lm))

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
            "dtype", self.dtype, self.settings.vllm, {k: t for k, t in temperatures.items() if t > 0}
        )
        if problems:
            raise ConfigError("; ".join(problems) + ".")

    def _fitted(self, problem_set: ProblemSet, plan: EvalPlan, card: ModelCard) -> EvalPlan:
        """Return the plan with a token limit that fits the model's context, unless the limit was set explicitly.

        Raises:
            ConfigError: the prompts and the limits do not fit.
        """
        chat = ChatFormat(card.tokenizer, problem_set.script, self.template_options)
        if not (self.settings.max_tokens or self.run):
            shortest = check_context(problem_set.problems, chat, 1, card.context_limit)
            room = 1 + (card.context_limit - shortest) // plan.turns
            plan = replace(plan, max_tokens=min(plan.max_tokens, room))
        longest = check_context(problem_set.problems, chat, plan.max_tokens, card.context_limit)
        self.engine = replace(self.engine, max_length=longest)
        return plan


def with_dtype(settings: EvalSettings, model: Any, out: Path | None) -> EvalSettings:
    """Return the settings with a dtype: that of the evaluation in ``out``, else of the run that ``model`` names.

    Evaluations of earlier versions are in float32 where none was set, and so remain. `auto` is what suits the device, or what it
    was for the evaluation in ``out``.
    """
    if settings.dtype not in (None, "auto"):
        return settings
    if out is not None and (out / IDENTITY).is_file():
        dtype = read_identity(out).get("dtype", DTYPE)
        return make_eval_settings({"dtype": dtype}, base=settings)
    if settings.dtype is not None:
        dtype = dtype_of(ModelConfig(dtype="auto", device=settings.device))
        log.info("dtype = 'auto': %s", dtype)
        return make_eval_settings({"dtype": dtype}, base=settings)
    run = named_run(model)[0] if isinstance(model, (str, Path)) else None
    if run is None:
        return settings
    dtype = load_config(run / "config.toml").model.dtype
    if dtype != DTYPE:
        log.info("the model is computed in %s, as in its run; --dtype %s changes that", dtype, DTYPE)
    return make_eval_settings({"dtype": dtype}, base=settings)


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
