"""Stand in for the library `verifiers` 0.3.1, which the development environment does not have: the members that this package
and the environments of the tests use, with the same signatures. `make test-verifiers` runs the same tests with the library."""

import importlib
import inspect
import re
from types import SimpleNamespace

from verifiers import types

__version__ = "0.3.1"


class State(dict):
    def __getitem__(self, key):
        own = super().__getitem__("input") if "input" in self else {}
        return (
            own[key] if key in ("prompt", "answer", "info", "example_id") and key in own else super().__getitem__(key)
        )

    def get(self, key, default=None):
        try:
            return self[key]
        except KeyError:
            return default


class Parser:
    def __init__(self, extract_fn=lambda text: text):
        self.extract_fn = extract_fn

    def parse(self, text):
        return self.extract_fn(text)

    def parse_answer(self, completion):
        return self.parse(completion[-1]["content"])


class XMLParser(Parser):
    def __init__(self, fields, answer_field="answer"):
        super().__init__()
        self._fields, self.answer_field = fields, answer_field

    def get_fields(self):
        return self._fields

    def format(self, **values):
        return "\n".join(f"<{name}>\n{values[name]}\n</{name}>" for name in self._fields)

    def parse(self, text):
        found = {name: re.search(rf"<{name}>\s*(.*?)\s*</{name}>", text, re.DOTALL) for name in self._fields}
        return SimpleNamespace(**{name: match and match[1] for name, match in found.items()})

    def parse_answer(self, completion):
        return getattr(self.parse(completion[-1]["content"]), self.answer_field)


class Rubric:
    def __init__(self, funcs=None, weights=None, parser=None):
        self.funcs, self.parser = list(funcs or ()), parser or Parser()
        self.weights = list(weights or [1.0] * len(self.funcs))
        self.class_objects = {"parser": self.parser}

    def add_reward_func(self, func, weight=1.0):
        self.funcs.append(func)
        self.weights.append(weight)

    @property
    def has_group_rewards(self):
        return any({"completions", "states"} & set(inspect.signature(func).parameters) for func in self.funcs)

    async def score_rollout(self, state):
        known = {name: state.get(name) for name in ("prompt", "completion", "answer", "info")}
        known |= {"state": state, **self.class_objects}
        metrics = {}
        for func in self.funcs:
            taken = inspect.signature(func).parameters
            try:
                found = func(**{name: value for name, value in known.items() if name in taken})
                metrics[func.__name__] = float(await found if inspect.isawaitable(found) else found)
            except Exception:
                metrics[func.__name__] = 0.0  # as the library does, after it logged the error
        state["metrics"] = metrics
        state["reward"] = sum(metrics[f.__name__] * weight for f, weight in zip(self.funcs, self.weights, strict=True))


class JudgeRubric(Rubric):
    pass


class RubricGroup(Rubric):
    def __init__(self, rubrics):
        super().__init__()
        self.rubrics = rubrics

    @property
    def has_group_rewards(self):
        return any(rubric.has_group_rewards for rubric in self.rubrics)

    async def score_rollout(self, state):
        reward, metrics = 0.0, {}
        for rubric in self.rubrics:
            await rubric.score_rollout(state)
            reward, metrics = reward + state["reward"], {**metrics, **state["metrics"]}
        state["reward"], state["metrics"] = reward, metrics


class MultiTurnEnv:
    def __init__(
        self, dataset=None, eval_dataset=None, system_prompt=None, few_shot=None, parser=None, rubric=None, max_turns=-1
    ):
        self.system_prompt, self.few_shot, self.tool_defs = system_prompt, few_shot, None
        self.parser, self.rubric = parser or Parser(), RubricGroup([rubric or Rubric()])
        self._dataset, self._eval_dataset = dataset, eval_dataset

    def build_dataset(self):
        return self._formatted(self._dataset)

    def build_eval_dataset(self):
        return self._formatted(self._eval_dataset)

    def _formatted(self, dataset):
        if dataset is None:
            return None
        head = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        head += self.few_shot or []
        return [{**row, "prompt": [*head, {"role": "user", "content": row["question"]}]} for row in dataset]

    async def setup_state(self, state):
        pass


class SingleTurnEnv(MultiTurnEnv):
    pass


def load_environment(env_id, **arguments):
    return importlib.import_module(env_id.replace("-", "_")).load_environment(**arguments)


__all__ = ["types"]
