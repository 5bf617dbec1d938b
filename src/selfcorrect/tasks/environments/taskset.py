"""Environments that are tasksets: a loader of tasks with reward methods (``verifiers.v1``, from 0.3.1)."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from selfcorrect.errors import ConfigError
from selfcorrect.tasks.environments.example import Example, Scores, chat_of, reference_text

MAX_ENDLESS = 10_000
"""The tasks that are taken of a taskset without an end, unless ``size`` says otherwise."""
PLUGGED = ("judges", "stops", "metrics", "rewards")
"""The settings of a taskset that name code; they are not options of a task."""


class TasksetEnvironment:
    """The tasks of an installed taskset, scored without a runtime, as the library scores stored traces again."""

    def __init__(self, name: str, arguments: Mapping[str, Any]) -> None:
        import verifiers.v1 as vf

        self._vf, self._name = vf, name
        named = [key for key in PLUGGED if key in (arguments.get("task") or {})]
        if named or "id" in arguments:
            raise ConfigError(
                f"environment {name!r}: {', '.join(named) or 'id'} cannot be an option, because it names code. Put reward "
                "functions into the environment itself."
            )
        try:
            config = vf.taskset_config_type(name).model_validate({**arguments, "id": name})
        except ValueError as error:
            raise ConfigError(f"environment {name!r} rejects its options {dict(arguments)!r:.300}: {error}") from error
        self._taskset = vf.load_taskset(config)
        self._kind = type(self._taskset).task_type()
        self._task = self._kind(self._kind.data_type().model_construct(), config.task)
        self._loop: asyncio.AbstractEventLoop | None = None

    def refusal(self) -> str | None:
        env, config = self._vf.environment_class(self._name), self._taskset.config
        if env is not self._vf.SingleAgentEnv:
            return f"it is played by {env.__name__}, not by one answer of one model"
        if type(self._taskset).toolsets(config) or self._kind.toolsets(config.task):
            return "its model calls tools"
        if self._kind.NEEDS_CONTAINER or self._overrides("setup", "finalize", "stage_verifier"):
            return "its tasks need a runtime that is set up for each of them"
        return self._unscored()

    def _unscored(self) -> str | None:
        """Return why an answer alone has no score; None if it has."""
        if self._task.plugged_judges():
            return "it asks another model, which a verifier cannot do within its time"
        rewards = self._task.hooks("reward")
        if not any(getattr(reward, "_vf_weight", 1.0) for reward in rewards):
            return "it has no reward with a weight, so nothing says what is correct"
        if any(_needs_runtime(reward) for reward in rewards):
            return "its rewards need a runtime"
        return None

    def _overrides(self, *methods: str) -> bool:
        return any(getattr(self._kind, name, None) is not getattr(self._vf.Task, name, None) for name in methods)

    def names(self) -> frozenset[str] | None:
        return None  # a reward may return several scores under their own names

    def form(self) -> str:
        return "{answer}"

    def training(self) -> Iterator[Any] | None:
        taskset: Any = self._taskset if hasattr(self._taskset, "__iter__") else self._taskset.load()  # as in 0.3
        return islice(taskset, MAX_ENDLESS if getattr(self._taskset, "INFINITE", False) else None)

    def evaluation(self) -> Iterator[Any] | None:
        return None

    def example(self, row: Any, reference_field: str) -> Example:
        data = row.data
        system = [{"role": "system", "content": data.system_prompt}] if data.system_prompt else []
        prompt = [{"role": "user", "content": data.prompt}] if isinstance(data.prompt, str) else list(data.prompt or ())
        stored = data.model_dump(mode="json")
        self._kind.data_type().model_validate(stored)  # a ValueError: what scoring needs is not stored
        return Example(chat_of([*system, *prompt]), reference_text(getattr(data, reference_field, None)), stored)

    def scores(self, data: Mapping[str, Any], text: str) -> Scores:
        task = self._kind(self._kind.data_type().model_validate(data), self._taskset.config.task)
        trace = self._answered(task, text)
        self._loop = self._loop or asyncio.new_event_loop()
        self._loop.run_until_complete(task.score(trace))
        named = {name: reward.score for name, reward in trace.rewards.items() if reward is not None}
        found = {name: value for name, value in trace.metrics.items() if value is not None}
        return Scores(float(trace.reward), {**found, **named})

    def extracted(self, text: str) -> str | None:
        return None

    def _answered(self, task: Any, text: str) -> Any:
        """Return the trace of a conversation with one answer."""
        from verifiers.v1.graph import MessageNode
        from verifiers.v1.state import state_cls

        vf = self._vf
        said = {"system": vf.SystemMessage, "user": vf.UserMessage, "assistant": vf.AssistantMessage}
        chat = self.example(task, "prompt").chat
        messages = [said[role](content=content) for role, content in chat]
        nodes = [MessageNode(parent=i - 1 if i else None, message=message) for i, message in enumerate(messages)]
        nodes.append(MessageNode(parent=len(nodes) - 1, message=vf.AssistantMessage(content=text), sampled=True))
        return vf.Trace(
            task=vf.TraceTask(type=type(task).__name__, data=task.data),
            agent=vf.AgentInfo(config=vf.AgentConfig()),
            nodes=nodes,
            state=state_cls(type(task))(),
        )


def _needs_runtime(reward: Any) -> bool:
    wanted = inspect.signature(reward).parameters.get("runtime")
    return wanted is not None and wanted.default is inspect.Parameter.empty
