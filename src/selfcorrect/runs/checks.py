"""What a run checks before any work: its problems, its base, and that the longest episode fits the context."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from selfcorrect.config.engine_names import HF
from selfcorrect.config.schema import Config
from selfcorrect.config.stages import DemonstrationStage, ReinforcementStage
from selfcorrect.distributed.loading import in_shards, load_placed
from selfcorrect.distributed.world import World
from selfcorrect.engines import EngineSettings, check_engine
from selfcorrect.engines.hf import HFEngine, check_cache
from selfcorrect.errors import ConfigError, SelfCorrectError
from selfcorrect.evaluation.supply import Supply
from selfcorrect.method.base import find_method
from selfcorrect.models.card import ModelCard
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.models.lora import peft_package
from selfcorrect.rollout.chat_format import ChatFormat, draft_ids
from selfcorrect.rollout.draft_verification import check_draft_context
from selfcorrect.rollout.rollout import check_context
from selfcorrect.runs.trackers.factory import make_tracker
from selfcorrect.script import judgement
from selfcorrect.tasks import Task
from selfcorrect.tasks.base import draft_request_of, script_of
from selfcorrect.training.demonstrations import AnyDemonstration, check_demonstrations, check_unseen, demonstrations_of
from selfcorrect.training.trained_turns import check_script
from selfcorrect.types import Judgement, Problem, Role, Split
from selfcorrect.zoo.registry import Progress
from selfcorrect.zoo.resolve import card_of, files_of, find_model, foreseen, loading

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class RunProblems:
    """The problems that a run uses, by what it uses them for, and the demonstrations of each stage that trains on some.

    ``supply`` has all problems of the evaluated split of a task that cannot make more.
    """

    train: Sequence[Problem]
    dev: Sequence[Problem]
    evaluated: Sequence[Problem]
    demonstrations: Mapping[str, Sequence[AnyDemonstration]] = field(default_factory=dict)
    supply: Supply | None = None

    @classmethod
    def of(cls, config: Config, task: Task) -> RunProblems:
        """Read the problems that the settings ask for."""
        wanted = (
            (Split.TRAIN, config.task.train_problems),
            (Split.DEV, config.task.dev_problems),
            (Split(config.eval.split), config.eval.problems),
        )
        train, dev, evaluated = (
            task.problems(split, seed=config.task.data_seed, limit=limit) for split, limit in wanted
        )
        stages = {name: stage for name, stage in config.stages.items() if isinstance(stage, DemonstrationStage)}
        shown = {name: demonstrations_of(name, stage, task, train) for name, stage in stages.items()}
        supply = Supply.of(task, Split(config.eval.split), taken=len(evaluated), limit=config.eval.problems)
        return cls(train, dev, evaluated, shown, supply)


def checked_base(
    config: Config, task: Task, problems: RunProblems, progress: Progress | None, world: World
) -> tuple[LanguageModel, int]:
    """Return the base that the configuration names, as shards if the run is configured so, and what `check_run` returns.

    Where the base has to be trained first, everything is checked before.
    """
    if not in_shards(config, world):
        return world.leaders_first(lambda: _whole_base(config, task, problems, progress))
    place, longest = world.leaders_first(lambda: _place_of_base(config, task, problems, progress))
    return load_placed(place, world, shards=True, **loading(config.model)), longest


def _whole_base(
    config: Config, task: Task, problems: RunProblems, progress: Progress | None
) -> tuple[LanguageModel, int]:
    card, base = foreseen(config.model, seed=config.seed), None
    if card is None:
        base = find_model(config.model, seed=config.seed, progress=progress)
        card = ModelCard.of(base)
    longest = check_run(config, task, card, problems)
    return (base or find_model(config.model, seed=config.seed, progress=progress)).merged(), longest


def _place_of_base(config: Config, task: Task, problems: RunProblems, progress: Progress | None) -> tuple[str, int]:
    card, place = foreseen(config.model, seed=config.seed), None
    if card is None:
        place = files_of(config.model, seed=config.seed, progress=progress)
        card = card_of(place, config.model)
    longest = check_run(config, task, card, problems)
    return place or files_of(config.model, seed=config.seed, progress=progress), longest


def check_run(config: Config, task: Task, base: ModelCard, problems: RunProblems) -> int:
    """Reject, before any work, what could only fail later.

    Returns the tokens of the longest possible episode.
    """
    for check in _code_checks(config):
        check()
    for name, stage in config.stages.items():
        check_script(name, stage, script_of(config, task))
    turns = max([config.turns, *(stage.turns for stage in config.stages.values())])
    script = script_of(config, task).with_turns(turns)
    chat = ChatFormat(base.tokenizer, script, config.model.chat_template_kwargs, draft_request_of(config, task))
    everything = [*problems.train, *problems.dev, *problems.evaluated]
    longest = check_context(everything, chat, config.rollout.max_tokens, base.context_limit)
    if any(stage.verifies_drafts for stage in config.stages.values()):
        drafts = check_draft_context(problems.train, chat, config.rollout.max_tokens, base.context_limit)
        longest = max(longest, drafts)
    for name, stage in config.stages.items():
        if stage.told:
            _warn_of_phrases(name, chat, config.rollout.max_tokens)
    for name, demonstrations in problems.demonstrations.items():
        check_demonstrations(name, demonstrations, chat, config.rollout, base.context_limit)
        measured = {"development": problems.dev, "evaluated": problems.evaluated}
        check_unseen(name, demonstrations, measured, script)
    sampling = [stage for stage in config.stages.values() if not isinstance(stage, DemonstrationStage)]
    sizes = [config.batch_size(stage) for stage in sampling] or [config.rollout.batch_size]
    count = max(sizes) // config.rollout.group_size
    if len(problems.train) < count:
        raise ConfigError(
            f"task {task.name!r} has {len(problems.train)} training problems, but a step needs {count}: lower rollout.batch_size."
        )
    return longest


def _warn_of_phrases(name: str, chat: ChatFormat, max_tokens: int) -> None:
    """Warn of a verification that the model cannot write: a stage that teaches its phrases would teach nothing."""
    (asked,) = {turn.phrases for turn in chat.script.later if turn.role is Role.VERIFICATION}
    for phrase, judged in zip(asked, (Judgement.CORRECT, Judgement.WRONG), strict=True):
        ids, _ = draft_ids(chat, phrase, max_tokens)
        if judgement(chat.text(ids), *asked) is not judged:
            log.warning(
                "stages.%s teaches the model to write %r, which reads as %r in its tokens and rollout.max_tokens = %d: it will "
                "never say so. Set says_correct and says_wrong in task.revise to words that it can write, or raise max_tokens.",
                name, phrase, chat.text(ids), max_tokens,
            )  # fmt: skip


def _code_checks(config: Config) -> list[Callable[[], Any]]:
    """Return the checks, each raising a ConfigError, of the packages and code that a run needs next to its task and engine."""
    methods = [stage.method for stage in config.stages.values() if isinstance(stage, ReinforcementStage)]
    return [
        *([peft_package] if config.model.lora is not None else []),
        *(partial(make_tracker, name) for name in config.log.trackers),
        *(partial(find_method, method) for method in methods),
    ]


def missing_here(config: Config) -> list[str]:
    """Return why a run would be rejected in this environment, whatever its task and model: packages and code that it lacks."""
    checks: list[Callable[[], Any]] = [partial(check_engine, EngineSettings.of(config)), *_code_checks(config)]
    found = []
    for check in checks:
        try:
            check()
        except SelfCorrectError as error:
            found.append(str(error))
    return list(dict.fromkeys(found))


def check_sampling(config: Config, base: LanguageModel) -> None:
    """Reject a base that the built-in engine cannot sample from, before any work.

    Raises:
        ModelError: it keeps no keys and values that a later turn can extend.
    """
    if config.rollout.engine == HF:
        with base.placement.whole():
            check_cache(HFEngine(base))
