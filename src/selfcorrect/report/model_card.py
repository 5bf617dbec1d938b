"""The card of a trained model, ``README.md``: what it was trained on and how, its metrics with intervals, and its licence."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from selfcorrect.config.schema import Config
from selfcorrect.config.stage_labels import labelled, stage_label
from selfcorrect.config.stages import DemonstrationStage, ReinforcementStage, StageConfig
from selfcorrect.config.toml import load_config
from selfcorrect.errors import SelfCorrectError
from selfcorrect.report.card_prompts import prompts
from selfcorrect.report.terminal import ACCURACIES, CHANGES, all_tables
from selfcorrect.storage.seal import SUMMARY, check_seal, read_results, read_summary
from selfcorrect.zoo.hub import TIMEOUT_S
from selfcorrect.zoo.registry import BUNDLED_LICENCE, HUB_ID_OF_SMOLLM2, MADE, SMOLLM2
from selfcorrect.zoo.resolve import LIVE, named_run

CARD = "README.md"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
LICENCE = re.compile(r"[\w.+-]{1,60}", re.ASCII)
DEPTH = 10
"""Runs that may have started from each other's models, in a chain to the first base."""


class Base(NamedTuple):
    """The model that a run began with."""

    name: str
    hub_id: str | None
    licence: str | None


def model_card(run: Path, stage: str) -> str:
    """Return the card of the model of ``stage`` in a run.

    Raises:
        DataError: the run's results are damaged.
    """
    config = load_config(run / "config.toml")
    check_seal(run)
    finished = (run / SUMMARY).is_file()
    results = read_results(run, ()) if finished else {}
    summary = read_summary(run) if finished else {}
    packages = summary.get("provenance", {}).get("packages", {})
    base = base_of_run(run)
    title = f"{base.name.rpartition('/')[2]}: {run.resolve().name}, {stage_label(config, stage)}"
    names = [*config.stages]
    stages = names[: names.index(stage) + 1] if stage in names else []
    return "\n".join(
        [
            f"---\n{_head(title, base, config, results.get(stage))}\n---\n\n# {title}\n",
            *_training(config, stages, base, packages, summary.get("train_problems")),
            "\n## Prompts\n",
            *prompts(config, max((config.stages[name].turns for name in stages), default=0), summary.get("script")),
            "\n## Figures\n",
            *_figures(config, stage, results, summary.get("below_base") if stage in names[-1:] else None),
            "\n## Licence\n",
            _licence(base),
            "",
        ]
    )


def _head(title: str, base: Base, config: Config, results: Mapping[str, Any] | None) -> str:
    """Return the metadata in YAML, as the model hub reads it."""
    from huggingface_hub import EvalResult, ModelCardData

    task = config.task.name
    measured = [
        EvalResult(
            task_type="text-generation",
            dataset_type=task,
            dataset_name=f"{task} ({config.eval.split}, {results['n']:,} problems)",
            metric_type=figure,
            metric_name=f"{words}, greedy",
            metric_value=round(results[figure], 4),
        )
        for words, figure in (ACCURACIES | CHANGES).items()
        if results and results.get(figure) is not None
    ]
    return str(
        ModelCardData(
            model_name=title,
            license=base.licence,
            base_model=base.hub_id,
            library_name="transformers",
            pipeline_tag="text-generation",
            tags=["selfcorrect", "self-correction", "reinforcement-learning"],
            eval_results=measured or None,
        ).to_yaml()
    ).strip()


def _training(
    config: Config, stages: list[str], base: Base, packages: Mapping[str, Any], problems: int | None
) -> Iterator[str]:
    """Yield sentences about the training; ``problems`` is the number of training problems, where the run recorded it."""
    version = packages.get("selfcorrect")
    with_what = f"`selfcorrect` {version}" if isinstance(version, str) else "`selfcorrect`"
    if not stages:
        yield f"The base `{base.name}` of a run with {with_what}, before any training."
        return
    task, turns = config.task, max(config.stages[name].turns for name in stages)
    options = "".join(f", {name} = `{value}`" for name, value in sorted(task.options.items()) if _tellable(value))
    yield (
        f"Trained from `{base.name}` with {with_what} on {_problems(config, stages, problems)} of the task `{task.name}`"
        f"{options}, with seed {config.seed}. In an episode the model answers"
        f"{', is asked to review its answer, and answers again' if turns > 1 else ''} ({turns} attempt{'s' * (turns > 1)})."
    )
    adapted = "all weights" if config.model.lora is None else f"LoRA adapters of rank {config.model.lora.rank}"
    yield f"Trained were {adapted}, in {len(stages)} stage{'s' * (len(stages) > 1)}:\n"
    for name in stages:
        yield f"- `{name}`: {_stage(config, config.stages[name])}"


def _problems(config: Config, stages: list[str], found: int | None) -> str:
    """Return how many problems were trained on, in words.

    A pass over the problems asks each once, so a single stage with as many draws as problems has asked all of them.
    """
    if found is None:
        return f"up to {config.task.train_problems:,} problems"
    trained = [config.stages[name] for name in stages]
    rewarded = [stage for stage in trained if isinstance(stage, ReinforcementStage)]
    batches = [-(-stage.steps // 2) if stage.alternates else stage.steps for stage in rewarded]
    drawn = [config.batch_size(s) // config.rollout.group_size * n for s, n in zip(rewarded, batches, strict=True)]
    if max(drawn, default=0) >= found:
        return f"{found:,} problems"
    most = sum(count * stage.max_gen_batches for count, stage in zip(drawn, rewarded, strict=True))
    if (
        len(rewarded) < len(trained) or most >= found
    ):  # a supervised stage may leave problems out, and a file of its own has others
        return f"up to {found:,} problems"
    return f"at most {most:,} of {found:,} problems"


def _tellable(value: Any) -> bool:
    """Return whether an option may stand in the card: no paths of this machine, and no long texts."""
    return isinstance(value, (bool, int, float)) or (
        isinstance(value, str) and re.fullmatch(r"[\w.+-]{1,40}", value) is not None
    )


def _stage(config: Config, stage: StageConfig) -> str:
    steps = f"{stage.steps:,} step{'s' * (stage.steps != 1)} of {config.batch_size(stage)} episodes"
    rate = stage.learning_rate or config.optimizer.learning_rate
    if isinstance(stage, DemonstrationStage):
        steps = f"{stage.steps:,} step{'s' * (stage.steps != 1)} of {config.batch_size(stage)}"
        source = "the task's solutions" if stage.demonstrations is None else "written responses"
        return f"supervised on demonstrations, {source} (`{stage.method}`), {steps}, learning rate {rate:g}."
    if not isinstance(stage, ReinforcementStage):
        how = f"(`{stage.method}`), {steps} in {stage.rounds} rounds"
        return f"supervised on the model's own corrections {how}, learning rate {rate:g}."
    rewarded = ", ".join(f"{weight:g}" for weight in stage.reward_weights)
    bonus = f", {stage.bonus:g} times the progress between attempts as a bonus" if stage.bonus else ""
    distilled = f", and {stage.distill_weight:g} for second attempts as first ones" if stage.distills else ""
    anchors = "; ".join(
        f"attempt {turn}: " + (", ".join(f"{value:g} to `{name}`" for name, value in kept.items()) or "none")
        for turn, kept in enumerate(stage.kl_coefs, 1)
    )
    return (
        f"reinforcement learning (`{stage.method}`), {steps}, learning rate {rate:g}, weights of the attempts' binary rewards "
        f"{rewarded}{bonus}{distilled}; KL coefficients: {anchors}."
    )


def _figures(
    config: Config, stage: str, results: Mapping[str, Mapping[str, Any]], below_base: str | None
) -> Iterator[str]:
    """Yield the metrics of a stage's model, after the sentence that the run ended below its base, if it did."""
    if stage not in results:
        yield "None yet: the run is not finished, or this model was not evaluated."
        return
    if below_base:
        yield f"**{below_base}**\n"
    shown = {name: results[name] for name in dict.fromkeys(("base", stage)) if name in results}
    yield (
        f"On problems of the split `{config.eval.split}` of `{config.task.name}`. Acc@t1 and Acc@t2 are the accuracies of the "
        "first and the second attempt; delta is their difference, i->c the problems that the second attempt corrects, and c->i "
        "those that it makes incorrect. The controls say whether the second attempt reads the first: a swapped draft is another "
        "problem's, and a resampled attempt has no draft at all.\n"
    )
    yield f"```text\n{all_tables(labelled(config, shown))}\n```"
    missing = [
        words
        for key, words in (("controls", "the controls"), ("decomposition", "what delta is made of"))
        if not results[stage].get(key)
    ]
    if missing:
        yield f"\nNot measured: {' and '.join(missing)}."


def _licence(base: Base) -> str:
    if base.licence is None:
        return (
            f"Unknown: the licence of the base `{base.name}` could not be read. This model is a derivative of it; look up its "
            "terms before you pass the model on."
        )
    return f"The card of the base `{base.name}` states `{base.licence}`; this model is a derivative of it."


def base_of_run(run: Path) -> Base:
    """Return the first base of a run, and its licence as far as it can be read."""
    source = str(run)
    for _ in range(DEPTH):
        before = named_run_of(source)
        if before is None:
            break
        source = load_config(before / "config.toml").model.source
    return Base(_name(source), _hub_id(source), licence_of(source))


def named_run_of(source: str) -> Path | None:
    """Return the run in ``RUN`` or ``RUN:stage``; None where there is none, or it cannot be read."""
    try:
        return named_run(source)[0]
    except SelfCorrectError:
        return None


def licence_of(source: str) -> str | None:
    """Return the licence that a base's own card states; None where there is none."""
    if source in MADE:
        return BUNDLED_LICENCE
    if source == LIVE:
        return None
    path = Path(source)
    try:
        if path.is_dir():
            return _stated_in(path / CARD)
        return _stated_on_the_hub(source) if _hub_id(source) else None
    except Exception:  # a card that others wrote, or their network: the licence is then unknown
        return None


def _stated_in(file: Path) -> str | None:
    from huggingface_hub import ModelCard

    return _clean(ModelCard(file.read_text(encoding="utf-8")).data.get("license")) if file.is_file() else None


def _stated_on_the_hub(source: str) -> str | None:
    from huggingface_hub import HfApi, try_to_load_from_cache

    kept = try_to_load_from_cache(source, CARD)
    if isinstance(kept, str):
        return _stated_in(Path(kept))
    data = HfApi().model_info(source, timeout=TIMEOUT_S).card_data
    return _clean(data.get("license")) if data else None


def _clean(licence: Any) -> str | None:
    """Return a licence's name if it is one; a card may hold anything."""
    return licence.lower() if isinstance(licence, str) and LICENCE.fullmatch(licence) else None


def _hub_id(source: str) -> str | None:
    if source == SMOLLM2:
        return HUB_ID_OF_SMOLLM2
    return source if HUB_ID.fullmatch(source) and not Path(source).exists() else None


def _name(source: str) -> str:
    """Return a base's name without the folders of this machine, and without what Markdown would read as markup."""
    name = source if _hub_id(source) or source == LIVE else Path(source).name or source
    return re.sub(r"[`\s]+", " ", name).strip() or "unnamed"
