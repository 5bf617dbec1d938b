"""The members of ``verifiers.v1`` that this package and the tests' taskset use."""

import importlib
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict

from verifiers.v1.graph import MessageNode
from verifiers.v1.taskset import Taskset


def _argument(cls, base):
    found = (kind for part in getattr(cls, "__orig_bases__", ()) for kind in get_args(part))
    return next((kind for kind in found if isinstance(kind, type) and issubclass(kind, base)), base)


class _Message(BaseModel):
    content: str
    role: str = ""


class SystemMessage(_Message):
    role: str = "system"


class UserMessage(_Message):
    role: str = "user"


class AssistantMessage(_Message):
    role: str = "assistant"


class TaskConfig(BaseModel):
    judges: list[Any] = []


class TasksetConfig(BaseModel):
    model_config = ConfigDict(extra="forbid")
    id: str = ""
    task: TaskConfig = TaskConfig()


class TaskData(BaseModel):
    prompt: str | list[Any] | None = None
    system_prompt: str | None = None


class Task:
    NEEDS_CONTAINER = False

    def __class_getitem__(cls, data):
        return type("Task", (cls,), {"_data": data})

    def __init__(self, data, config=None):
        self.data, self.config = data, config or TaskConfig()

    @classmethod
    def data_type(cls):
        return getattr(cls, "_data", TaskData)

    @classmethod
    def toolsets(cls, config):
        return []

    async def setup(self, trace, runtime): ...
    async def finalize(self, trace, runtime): ...

    def plugged_judges(self):
        return self.config.judges

    def hooks(self, kind):
        named = [getattr(self, name) for name in dir(type(self))]
        return [member for member in named if getattr(member, kind, False)]

    async def score(self, trace, runtime=None):
        for func in self.hooks("reward"):
            known = {"task": self.data, "trace": trace}
            taken = func.__code__.co_varnames[1 : func.__code__.co_argcount]
            value = await func(**{name: known[name] for name in taken})
            trace.rewards[func.__name__] = Reward(score=value, weight=func._vf_weight)


class Reward(BaseModel):
    score: float
    weight: float


class TraceTask(BaseModel):
    type: str
    data: Any


class AgentConfig(BaseModel):
    pass


class AgentInfo(BaseModel):
    config: AgentConfig


class Trace(BaseModel):
    task: TraceTask
    agent: AgentInfo
    nodes: list[Any]
    state: Any
    rewards: dict[str, Any] = {}
    metrics: dict[str, Any] = {}

    @property
    def reward(self):
        return sum(each.score * each.weight for each in self.rewards.values())

    @property
    def last_reply(self):
        return self.nodes[-1].message.content.strip()


class SingleAgentEnv:
    pass


def reward(func=None, weight=1.0):
    def marked(func):
        func.reward, func._vf_weight = True, weight
        return func

    return marked if func is None else marked(func)


def _taskset(name):
    module = importlib.import_module(name)
    return next(getattr(module, each) for each in module.__all__)


def taskset_config_type(name):
    return _argument(_taskset(name), TasksetConfig)


def load_taskset(config):
    return _taskset(config.id)(config)


def environment_class(name):
    return SingleAgentEnv


__all__ = ["MessageNode", "Taskset"]
