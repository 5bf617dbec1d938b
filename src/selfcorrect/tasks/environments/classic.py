"""Environments with ``load_environment()``: a dataset and a rubric of reward functions (`verifiers` below 0.4)."""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import math
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from typing import Any

from selfcorrect.errors import ConfigError
from selfcorrect.tasks.environments.example import Example, Scores, chat_of, reference_text
from selfcorrect.tasks.verifier_pool import describe

FORMS = ("{answer}", "<answer>{answer}</answer>", "\\boxed{{answer}}")
"""How a correct answer may be written; the first that the parser reads is taken."""
_PROBE = "7"
_SEVERAL = "So <answer>7</answer>, that is \\boxed{8}."
"""A text of which every parser reads only a part, except the one that reads everything."""


class ClassicEnvironment:
    """An environment that its module's ``load_environment`` made.

    A rubric turns an exception of a reward function into a score of 0. Here it is raised, because a score that is unknown says
    nothing about the answer.
    """

    def __init__(self, name: str, module: Any, arguments: Mapping[str, Any]) -> None:
        import verifiers

        if not hasattr(verifiers, "load_environment"):
            raise ConfigError(
                f"environment {name!r} is made by load_environment(), which verifiers {verifiers.__version__} no longer has. "
                'Install a version that has it: pip install "verifiers<0.4".'
            )
        taken = inspect.signature(module.load_environment).parameters
        unknown = [key for key in arguments if key not in taken]
        if unknown and not any(p.kind is p.VAR_KEYWORD for p in taken.values()):
            raise ConfigError(
                f"environment {name!r} has no argument {', '.join(map(repr, unknown))}; it takes {', '.join(taken) or 'none'}."
            )
        self._verifiers = verifiers
        self._env = verifiers.load_environment(name, **arguments)
        self._rubrics = list(_walk(self._env.rubric))
        self._raised: list[str] = []
        for rubric in self._rubrics:
            rubric.funcs[:] = [_raising(func, self._raised) for func in rubric.funcs]
        parsers = [self._env.parser, *(rubric.parser for rubric in self._rubrics)]
        self._parser = next((parser for parser in parsers if parser.parse(_SEVERAL) != _SEVERAL), parsers[0])
        self._loop: asyncio.AbstractEventLoop | None = None

    def refusal(self) -> str | None:
        kind = type(self._env).__name__
        if not isinstance(self._env, self._verifiers.SingleTurnEnv):
            return f"it is a {kind}, with several turns, tools or environments in it"
        if getattr(self._env, "tool_defs", None) or getattr(self._env, "oai_tools", None):
            return "its model calls tools"
        if any(_asks_a_model(rubric) for rubric in self._rubrics):
            return "its rubric asks another model, which a verifier cannot do within its time"
        if self._env.rubric.has_group_rewards:
            return "its rubric compares several answers to one problem, and a verdict is of one"
        if not any(rubric.weights[i] for rubric in self._rubrics for i in range(len(rubric.funcs))):
            return "its rubric has no reward function with a weight, so nothing says what is correct"
        return None

    def names(self) -> frozenset[str] | None:
        return frozenset(func.__name__ for rubric in self._rubrics for func in rubric.funcs)

    def form(self) -> str:
        parser = self._parser
        if hasattr(parser, "format") and hasattr(parser, "get_fields"):  # an XMLParser
            return str(parser.format(**{**dict.fromkeys(parser.get_fields(), "..."), parser.answer_field: "{answer}"}))
        for form in FORMS:
            if self.extracted(form.replace("{answer}", _PROBE)) == _PROBE:
                return form
        return FORMS[0]

    def training(self) -> Iterator[Any] | None:
        found = self._env.build_dataset()
        return None if found is None else iter(found)

    def evaluation(self) -> Iterator[Any] | None:
        found = self._env.build_eval_dataset()  # not `get_eval_dataset`, which falls back to the training rows
        return None if found is None else iter(found)

    def example(self, row: Any, reference_field: str) -> Example:
        return Example(chat_of(row["prompt"]), reference_text(row.get(reference_field)), dict(row))

    def scores(self, data: Mapping[str, Any], text: str) -> Scores:
        self._raised.clear()
        self._loop = self._loop or asyncio.new_event_loop()
        state = self._loop.run_until_complete(self._scored(data, text))
        if self._raised:
            raise ValueError(f"a reward function failed: {self._raised[0]}")
        return Scores(float(state["reward"]), dict(state["metrics"] or {}))

    def extracted(self, text: str) -> str | None:
        found = self._parser.parse_answer(self._messages([{"role": "assistant", "content": text}]))
        return found.strip() or None if isinstance(found, str) else None

    async def _scored(self, data: Mapping[str, Any], text: str) -> Any:
        state = self._state(deepcopy(dict(data)))
        changed = await self._env.setup_state(state)
        state = state if changed is None else changed
        completion = self._messages([{"role": "assistant", "content": text}])
        step: dict[str, Any] = {"prompt": state["prompt"], "completion": completion, "response": None, "tokens": None}
        nothing: dict[str, Any] = {
            "reward": None,
            "advantage": None,
            "is_truncated": False,
            "trajectory_id": "",
            "extras": {},
        }
        state["trajectory"] = [{**step, **nothing}]
        state["completion"] = completion
        await self._env.rubric.score_rollout(state)
        return state

    def _state(self, row: dict[str, Any]) -> Any:
        """Return the state of an answered conversation, as the library makes it from a row."""
        if isinstance(row.get("info"), str):
            row["info"] = json.loads(row["info"])
        state = self._verifiers.State(input=row)
        state["prompt"] = self._messages(row["prompt"])
        state.update({"task": row, "client": None, "model": "", "sampling_args": {}, "tool_defs": []})
        state.update({"is_completed": True, "is_truncated": False, "error": None, "stop_condition": None})
        state.update({"trajectory": [], "trajectory_id": "", "completion": None, "reward": None, "metrics": None})
        state["timing"] = self._verifiers.types.RolloutTiming()
        return state

    def _messages(self, messages: Any) -> Any:
        from verifiers.utils.message_utils import normalize_messages

        return normalize_messages(messages)


def _walk(rubric: Any) -> Iterator[Any]:
    yield rubric
    for inner in getattr(rubric, "rubrics", ()):
        yield from _walk(inner)


def _asks_a_model(rubric: Any) -> bool:
    judges = any(base.__name__ == "JudgeRubric" for base in type(rubric).__mro__)
    return judges or any(name in ("judge", "judge_client") for name in rubric.class_objects)


def _raising(func: Callable[..., Any], raised: list[str]) -> Callable[..., Any]:
    """Return a reward function that notes an exception, or a score that is no number, before the rubric drops it."""

    @functools.wraps(func)
    async def noting(*arguments: Any, **keywords: Any) -> float:
        try:
            found = func(*arguments, **keywords)
            score = float(await found if inspect.isawaitable(found) else found)
            if not math.isfinite(score):
                raise ValueError(f"the score is {score}")
        except Exception as error:
            raised.append(f"{getattr(func, '__name__', 'one')}: {describe(error)}")
            raise
        return score

    return noting
