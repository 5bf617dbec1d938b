"""This package's evaluation as a task of inspect_ai: ``inspect eval selfcorrect/self_correction -T task=math --model ...``.

inspect_ai samples, with any of its providers, and keeps the log. What is said, what is correct and what is counted is this
package's: a sample is a problem, its solver holds the conversations of `inspect_conversations`, its scorer asks the task's
verifier, and the metrics are those of `Evaluation`, each with the ends of its 95% interval as ``_low`` and ``_high``.

inspect_ai imports this module by its entry point, so that the names begin with ``selfcorrect/``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from inspect_ai import Task, task
from inspect_ai._util.error import PrerequisiteError
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    GenerateConfig,
    Model,
    ModelOutput,
    get_model,
)
from inspect_ai.scorer import Metric, SampleScore, Score, Scorer, Target, metric, scorer
from inspect_ai.solver import Generate, Solver, TaskState, solver
from inspect_ai.util import LimitExceededError

from selfcorrect.config.evaluation import EvalSettings, make_eval_settings
from selfcorrect.engines import Message, Reply
from selfcorrect.errors import SelfCorrectError
from selfcorrect.evaluation.evaluate import plan_of
from selfcorrect.evaluation.flat_metrics import flat_metrics
from selfcorrect.evaluation.inspect_conversations import (
    Interview,
    Measurement,
    evaluation_of_problems,
    restored,
    stored,
)
from selfcorrect.evaluation.problem_set import ProblemSet
from selfcorrect.printable import printable
from selfcorrect.rollout.served_context import MessageContext
from selfcorrect.storage.episode_log import StoredEpisode
from selfcorrect.tasks.base import available_tasks
from selfcorrect.tasks.options import option_types, wrong_types
from selfcorrect.tasks.verifier import Verifier
from selfcorrect.types import Part, StopReason

CONVERSATIONS = "selfcorrect_conversations"
"""Where a sample's store has its conversations."""
SAID = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}


@task  # type: ignore[untyped-decorator]
def self_correction(
    task: str = "",
    split: str = "test",
    limit: int | None = None,
    data_seed: int | None = None,
    turns: int = 2,
    controls: bool = False,
    sampled: bool | None = None,
    samples: int = 1,
    temperature: float = 0.0,
    max_tokens: int | None = None,
    stop: str | list[str] | None = None,
    revise: str | list[str] | None = None,
    system: str | list[str] | None = None,
    seed: int = 0,
    task_options: dict[str, Any] | None = None,
    **options: Any,
) -> Task:
    """Measure whether a model corrects itself, with this package's tasks, controls and intervals.

    Args:
        task: a task of this package (`selfcorrect tasks`); it must be given.
        split, limit, data_seed, turns, controls, sampled, samples, temperature, max_tokens, stop, revise, system, seed: as in
            `selfcorrect eval`.
        task_options: options of the task whose names are also arguments here.
        options: options of the task.
    """
    if not task:
        raise PrerequisiteError("self_correction measures a task: name it, as in -T task=gsm_symbolic.")
    try:
        given = {**(task_options or {}), **options}
        settings = make_eval_settings(
            {
                **{"split": split, "limit": limit, "data_seed": data_seed, "turns": turns, "controls": controls},
                **{"sampled": sampled, "samples": samples, "temperature": temperature, "max_tokens": max_tokens},
                **{"stop": [stop] if isinstance(stop, str) else stop, "seed": seed},
                **{"revise": _joined(revise), "system": _joined(system)},
                "task_options": _with_commas(task, given),
            }
        )
        plain = settings.model_dump(mode="json", exclude_unset=True)
        what = _measurement(task, json.dumps(plain))
    except SelfCorrectError as error:
        raise PrerequisiteError(_text(str(error))) from error
    problem_set, plan = what.problem_set, what.plan
    return Task(
        dataset=MemoryDataset([_sample(what, place) for place in range(len(problem_set.problems))], name=task),
        solver=conversations(task, plain),
        scorer=verdicts(task, plain),
        metrics=[figures(plan.seed)],
        config=GenerateConfig(
            temperature=plan.temperature, max_tokens=plan.max_tokens, stop_seqs=list(plan.stop) or None
        ),
        version=problem_set.task.version,
        metadata={**problem_set.identity(split), "task_source": dict(problem_set.source)},
    )


@solver  # type: ignore[untyped-decorator]
def conversations(task: str, settings: dict[str, Any] | None = None) -> Solver:
    """Hold all conversations about a problem: its attempts, and those of the controls."""
    what = _measurement(task, json.dumps(settings or {}))
    interviews: dict[tuple[int, str], Interview] = {}

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        model = get_model()
        interview = interviews.setdefault((id(model), str(model)), Interview(what, (LimitExceededError,)))
        outputs: list[tuple[Reply, ModelOutput]] = []
        place, first = what.place(str(state.sample_id)), _first_sample(what, state.epoch)

        async def ask(messages: Sequence[Message], temperature: float | None, seed: int) -> Reply:
            output = await _answer(model, messages, temperature, seed)
            outputs.append((_reply(output), output))
            return outputs[-1][0]

        found = await interview.about(place, first, ask)
        state.store.set(CONVERSATIONS, stored(found))
        main = found[Part.ATTEMPTS][0]
        said = what.problem_set.script.user_turns(what.problem_set.problems[place].prompt)
        taken = [turn for turn in main if turn.reply.stop is not StopReason.SKIPPED]
        for k, turn in enumerate(taken):
            if k > 0:
                state.messages.append(ChatMessageUser(content=said[k].text))
            state.messages.append(ChatMessageAssistant(content=turn.reply.text, model=str(model)))
        last = taken[-1].reply
        own = [output for reply, output in outputs if reply is last]
        state.output = own[0] if own else ModelOutput.from_content(str(model), last.text)
        return state

    return solve


@metric(scores="unreduced")  # type: ignore[untyped-decorator]
def figures(seed: int = 0) -> Metric:
    """Count all samples and epochs at once; ``seed`` feeds the bootstrap, where a problem has several samples."""

    def compute(scores: list[SampleScore]) -> dict[str, float]:
        found = [score.score.metadata or {} for score in scores]
        found.sort(key=lambda each: (each["place"], each["first"]))
        evaluation = evaluation_of_problems([each["episodes"] for each in found], seed=seed)
        results = evaluation.to_json()
        shown = {"n": float(results["n"])}
        for name, one in flat_metrics(results).items():
            shown[name] = one.value
            if one.ci95 is not None:
                shown[f"{name}_low"], shown[f"{name}_high"] = one.ci95
        return shown

    return compute


@scorer(metrics=[figures()])  # type: ignore[untyped-decorator]
def verdicts(task: str, settings: dict[str, Any] | None = None) -> Scorer:
    """Judge every attempt of a sample's conversations with the task's verifier, in its processes."""
    what = _measurement(task, json.dumps(settings or {}))

    async def score(state: TaskState, target: Target) -> Score | None:
        from anyio.to_thread import run_sync

        plain = state.store.get(CONVERSATIONS)
        if plain is None:  # the sample ended before its conversations did
            return None
        place, first = what.place(str(state.sample_id)), _first_sample(what, state.epoch)
        judged = await run_sync(what.judge, place, first, restored(plain))
        episodes = {
            part.value: [StoredEpisode.of(episode, stage="inspect", step=0) for episode in several]
            for part, several in judged.items()
        }
        main = [episode.attempts for episode in episodes[Part.ATTEMPTS]]
        right = {
            f"t{k + 1}": sum(attempts[k].judged.correct for attempts in main) / len(main) for k in range(len(main[0]))
        }
        shown = [f"t{k}: {attempt.judged.outcome.value}" for k, attempt in enumerate(main[0], 1)]
        return Score(
            value=right,
            answer=main[0][-1].judged.extracted,
            explanation=", ".join(shown),
            metadata={
                "place": place,
                "first": first,
                "episodes": {part: [episode.to_json() for episode in several] for part, several in episodes.items()},
            },
        )

    return score


# --- from arguments to a measurement ----------------------------------------------------------------


@lru_cache(maxsize=16)
def _measurement(task: str, settings: str) -> Measurement:
    """Return what task, solver and scorer share; all of them get the same arguments, also from a log."""
    chosen: EvalSettings = make_eval_settings(json.loads(settings))
    problem_set = ProblemSet.of(task, None, chosen, None)
    defaults = problem_set.defaults
    verifier = Verifier(problem_set.task, time_limit_s=defaults.time_limit_s, failure_limit=defaults.failure_limit)
    return Measurement(problem_set, plan_of(chosen, None), verifier)


def _joined(text: str | list[str] | None) -> str | None:
    """Return a text that inspect_ai's command line cut at its commas."""
    return ",".join(text) if isinstance(text, list) else text


def _with_commas(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return a task's options, with those joined again that are one text and were cut at their commas."""
    point = available_tasks().get(name.partition(":")[0])
    types = option_types(point.load()) if point is not None else {}
    found = dict(options)
    for key, value in options.items():
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            whole = ",".join(value)
            if wrong_types(types, {key: value}) and not wrong_types(types, {key: whole}):
                found[key] = whole
    return found


def _text(message: str) -> Any:
    """Return an error for inspect_ai's console, which would read brackets as commands."""
    from rich.text import Text

    return Text(printable(message))


def _sample(what: Measurement, place: int) -> Sample:
    problem = what.problem_set.problems[place]
    return Sample(
        id=problem.id,
        input=_chat(MessageContext().begin(what.problem_set.script, problem).prompt),
        target=problem.reference,
        metadata={"difficulty": problem.difficulty},
    )


def _first_sample(what: Measurement, epoch: int) -> int:
    return (epoch - 1) * what.plan.samples


# --- from inspect_ai's messages to this package's, and back -----------------------------------------


def _chat(messages: Sequence[Message]) -> list[ChatMessage]:
    return [SAID[message.role](content=message.content) for message in messages]


async def _answer(model: Model, messages: Sequence[Message], temperature: float | None, seed: int) -> ModelOutput:
    config = GenerateConfig(seed=seed) if temperature is None else GenerateConfig(seed=seed, temperature=temperature)
    return await model.generate(_chat(messages), config=config)


def _reply(output: ModelOutput) -> Reply:
    """Return a model's answer as a server's reply: without its reasoning and without surrounding white space."""
    text = output.completion.strip().encode("utf-8", "backslashreplace").decode()  # a lone surrogate becomes visible
    stop = (
        StopReason.LENGTH if output.choices and output.stop_reason in ("max_tokens", "model_length") else StopReason.END
    )
    return Reply(text, stop, output.usage.output_tokens if output.usage else None)
