"""Every number among the settings has a range with two ends, and what lies outside is refused before any work.

The ranges are read from the schema, so a new setting is tested as soon as it exists. There is no number without an upper bound:
where one makes no sense, it is so large that nobody meets it.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel, Field, ValidationError
from support.trainers import STAGE

from selfcorrect.cli.app import main
from selfcorrect.config.evaluation import EvalSettings
from selfcorrect.config.schema import Config
from selfcorrect.config.settings import Settings
from selfcorrect.config.stages import STAGE_KINDS
from selfcorrect.config.toml import load_config, make_config
from selfcorrect.errors import ConfigError, DataError, SelfCorrectError
from selfcorrect.tasks import get_task
from selfcorrect.types import Split

NAN, INF = math.nan, math.inf
NEEDED: dict[str, dict[str, Any]] = {"ReinforcementStage": STAGE, "SupervisedStage": {"method": "star", "steps": 3}}
LOWER, UPPER = ("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")
Number = tuple[str, dict[str, Any], Callable[[Any], Any]]
"""A setting, its part of the JSON schema, and what makes the setting's value from the number."""


def groups(*roots: type[BaseModel]) -> list[type[BaseModel]]:
    """All groups of settings that the roots hold."""
    found: list[type[BaseModel]] = []

    def walk(kind: Any) -> None:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            if kind not in found:
                found.append(kind)
                for field in kind.model_fields.values():
                    walk(field.annotation)
        else:
            for part in get_args(kind):
                walk(part)

    for root in roots:
        walk(root)
    return found


def numbers(group: type[BaseModel]) -> Iterator[Number]:
    """Every number in a group's own settings, those in lists and tables included."""
    for name, schema in group.model_json_schema()["properties"].items():
        for part, wrap in _numbers(schema, lambda value: value):
            yield name, part, wrap


def _numbers(schema: dict[str, Any], wrap: Callable[[Any], Any]) -> Iterator[tuple[dict[str, Any], Any]]:
    if schema.get("type") in ("integer", "number"):
        yield schema, wrap
    for option in schema.get("anyOf", ()):
        yield from _numbers(option, wrap)
    for item in schema.get("prefixItems", ()):
        yield from _numbers(item, lambda value: wrap([value] * len(schema["prefixItems"])))
    if isinstance(schema.get("items"), dict):
        yield from _numbers(schema["items"], lambda value: wrap([value, value]))
    if isinstance(schema.get("additionalProperties"), dict):
        yield from _numbers(schema["additionalProperties"], lambda value: wrap({"base": value}))


def without_range(group: type[BaseModel]) -> list[str]:
    return [
        name for name, part, _ in numbers(group) if not all(any(e in part for e in ends) for ends in (LOWER, UPPER))
    ]


def outside(part: dict[str, Any]) -> list[Any]:
    step = _next_integer if part["type"] == "integer" else math.nextafter
    found = [NAN, INF, -INF, 10**400]
    found += [step(part["minimum"], -INF)] if "minimum" in part else [part["exclusiveMinimum"]]
    found += [step(part["maximum"], INF)] if "maximum" in part else [part["exclusiveMaximum"]]
    return found


def _next_integer(value: int, to: float) -> int:
    return value + (1 if to > 0 else -1)


GROUPS = groups(Config, EvalSettings)
NUMBERS = [
    pytest.param(group, *number, id=f"{group.__name__}.{number[0]}") for group in GROUPS for number in numbers(group)
]


def test_the_walk_finds_all_groups_and_many_numbers() -> None:
    assert {*STAGE_KINDS.values(), EvalSettings, Config} < set(GROUPS) and len(GROUPS) == 19
    assert len(NUMBERS) > 60
    assert {name for name, _, _ in numbers(STAGE_KINDS["reinforcement"])} >= {"reward_weights", "kl_coefs", "bonus"}


def test_every_number_has_a_range() -> None:
    assert {group.__name__: lacking for group in GROUPS if (lacking := without_range(group))} == {}


def test_a_new_number_without_a_range_would_be_found() -> None:
    class New(Settings):
        rate: float = 0.1
        sizes: tuple[int, ...] | None = None
        table: dict[str, float] = Field(default_factory=dict)
        name: str = ""

    assert without_range(New) == ["rate", "sizes", "table"]


@pytest.mark.parametrize(("group", "name", "part", "wrap"), NUMBERS)
def test_what_lies_outside_is_refused(
    group: type[BaseModel], name: str, part: dict[str, Any], wrap: Callable[[Any], Any]
) -> None:
    for value in outside(part):
        with pytest.raises(ValidationError) as caught:
            group.model_validate({**NEEDED.get(group.__name__, {}), name: wrap(value)})
        assert name in {str(item["loc"][0]) for item in caught.value.errors()}, (name, value)


def test_all_mistakes_are_told_in_one_message() -> None:
    wrong: dict[str, Any] = {}
    for name, field in Config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            wrong[name] = {number: wrap(NAN) for number, _, wrap in numbers(field.annotation)}
    wrong["stages"] = {"one": {**STAGE, "bonus": NAN, "discount": 2}}
    with pytest.raises(ConfigError) as caught:
        make_config(wrong)
    told = str(caught.value)
    for name, table in wrong.items():
        for number in table if name != "stages" else ():
            assert f"{name}.{number}" in told
    assert "stages.one.bonus = nan" in told and "stages.one.discount = 2" in told


CHANGES = [
    *(f"stages.score.bonus={value}" for value in ("nan", "inf", "-inf", "-1", "1e300")),
    *(f"stages.score.kl_coefs=[{{base={value}}}, {{}}]" for value in ("nan", "inf", "-0.1")),
    *(f"optimizer.learning_rate={value}" for value in ("inf", "1e308", "0", "-1e-5")),
    *(f"optimizer.betas={value}" for value in ("[1.0, 0.9]", "[0.9, 1.5]", "[-0.1, 0.9]", "[0.9]", "[nan, 0.9]")),
    "stages.score.adaptive={minimum=2, maximum=1}",
    *(f"rollout.stop={value}" for value in ("['']", "['a', '']", "['" + "x" * 1001 + "']")),
    *(f"task.options.digits={value}" for value in ("nan", "inf", "1" * 20)),
    *(f"eval.problems={value}" for value in ("100000000000", "0", str(2**63))),
    "eval={problems=1000000, samples=1000000}",
    *(f"{seed}={'9' * 20}" for seed in ("seed", "task.data_seed", "model.seed")),
    f"seed={'9' * 5000}",
    f"task.options.x={'[' * 3000}{']' * 3000}",
    *(f"stages.{name}={{steps=1, reward_weights=[1], kl_coefs=[{{}}]}}" for name in ("previous", "x" * 250, "é" * 60)),
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda text: text[:40])
def test_a_setting_out_of_range_is_refused_before_any_work(
    change: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError):
        load_config("demo", [change])
    assert main(["train", "demo", "--out", str(tmp_path / "run"), "--set", change]) == 2
    said = capsys.readouterr().err
    assert "error: " in said and "bug" not in said and len(said) < 1000
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "text",
    [
        f"seed = {'9' * 5000}",
        f"x = {'[' * 3000}{']' * 3000}",
        "[" * 3000,
        f"seed = {2**63}",
        f"seed = 0x{'f' * 40}",
        "optimizer.learning_rate = inf",
        "\x00",
    ],
    ids=["digits", "brackets", "open brackets", "64 bits", "hexadecimal", "infinite", "zero byte"],
)
def test_a_file_out_of_range_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(ConfigError):
        load_config(tmp_path / "mine.toml")


OPTIONS = (
    [f"--limit={value}" for value in ("0", "-1", str(2**63), "9" * 30, "100000000000")]
    + [f"--seed={value}" for value in ("-1", "9" * 20)]
    + ["--samples=100000000000", "--temperature=nan", "--temperature=inf", "--turns=11", "--stop=", "--max-tokens=0"]
    + ["--task-option=digits=nan", "--task-option=digits=2.5", "--task-option=digits=true", "--set=vllm.cache_gib=inf"]
)


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_of_an_evaluation_out_of_range_is_refused(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["eval", "--model", "addition-base", "--task", "addition", "--out", str(tmp_path / "e")]
    assert main([*command, *option.split("=", maxsplit=1)]) == 2
    said = capsys.readouterr().err
    named = option.removeprefix("--").removeprefix("task-option=").removeprefix("set=").partition("=")[0]
    assert "bug" not in said and (named in said or named.replace("-", "_") in said), said
    assert not (tmp_path / "e").exists()


def test_a_device_or_a_pipe_is_no_configuration_and_no_file_of_problems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.jsonl")
    for path, what in (("/dev/zero", "a device"), ("pipe.jsonl", "a pipe"), ("socket.jsonl", "a socket")):
        with pytest.raises(ConfigError, match=what):
            load_config(path)
        for task, option in (("jsonl", "path"), ("math", "path"), ("gsm8k", "test_path"), ("mbpp", "source")):
            more = {"verifier": "json:loads"} if task == "jsonl" else {}
            with pytest.raises(DataError, match=f"is {what}"):
                get_task(task, {option: path, **more})
    for name in ("x" * 5000, "a\0b"):
        with pytest.raises(SelfCorrectError):
            get_task("jsonl", {"path": name, "verifier": "json:loads"})


WRONG: list[tuple[str, str, list[Any]]] = [
    ("addition", "digits", [NAN, INF, -1, 0, 19, 2.5, True, "six", None, [], 10**30]),
    ("worked_sums", "numbers", [NAN, -1, 1, 2.5, "5", 10**12]),
    ("worked_sums", "largest", [NAN, 1001, 2.5, None]),
    ("worked_steps", "level", [NAN, 0, 4, 2.5, True, "1"]),
    ("worked_steps", "family", ["", "x", 3, None]),
    ("worked_steps", "check_steps", [1, "x", None]),
    (
        "arithmetic",
        "ranges",
        [{}, [], {"+": 1}, {"+": [[NAN, 1], [1, 2]]}, {"+": [[0, 10**9], [0, 1]]}, {"/": [[1, 2]] * 2}],
    ),
    ("arithmetic", "turns", [0, -1, 11, 2.5, NAN, "2", True]),
    ("arithmetic", "first", [3, "", None, ["{prompt}"]]),
    ("arithmetic", "revise", [3, [], [3], [{"txt": "x"}], None]),
    ("gsm_symbolic", "size", [0, 2.5, True, 10**12, NAN, "x"]),
    ("gsm_symbolic", "extraction", ["loose", 3, None]),
    ("reasoning_gym:chain_sum", "size", [0, 2.5, True, 10**12]),
    ("reasoning_gym:chain_sum", "threshold", [0, NAN, INF, 1.5, "1", True]),
    ("math", "dev", [-1, 2.5, NAN, "x", True]),
    ("math", "path", [3, True, [], NAN]),
    ("humaneval", "source", [3, True, []]),
    ("humaneval", "seconds", [0, NAN, INF, -1, 601, "3", True]),
    ("humaneval", "memory_mb", [0, 2.5, NAN, 10**12, "x"]),
    ("humaneval", "turns", [0, 11, 2.5]),
    ("micro_code", "level", [-1, NAN, 99, 1.5, True]),
    ("micro_code", "kinds", [[], ["x"], "lists", 3]),
]


@pytest.mark.parametrize(("task", "option", "value"), [(t, o, v) for t, o, several in WRONG for v in several])
def test_an_option_of_a_task_out_of_range_is_refused(task: str, option: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        get_task(task, {option: value})
    told = str(caught.value)
    assert option in told or {"first": "script", "memory_mb": "memory", "seconds": "CPU time"}[option] in told
    assert "not supported between" not in told, "the comparison fell over"


def test_all_wrong_types_of_a_tasks_options_are_told_together() -> None:
    with pytest.raises(ConfigError) as caught:
        get_task("worked_sums", {"numbers": 2.5, "largest": "x"})
    assert "numbers = 2.5" in str(caught.value) and "largest = 'x'" in str(caught.value)


def test_types_that_toml_and_python_write_differently_are_accepted(tmp_path: Path) -> None:
    for ranges in ({"+": [[1, 9], [1, 9]]}, {"+": ((1, 9), (1, 9))}):
        assert get_task("arithmetic", {"ranges": ranges}).problems(Split.TRAIN, seed=0, limit=1)
    for turn in ({"text": "Any error?", "role": "feedback"}, {"text": "Any error?", "attempt": False}):
        get_task("arithmetic", {"revise": [turn, "Again."]})
    (tmp_path / "p.jsonl").write_text('{"prompt": "1+1?", "answer": "2"}\n')
    for path in (tmp_path / "p.jsonl", str(tmp_path / "p.jsonl")):
        get_task("jsonl", {"test_path": path, "verifier": "json:loads"})
