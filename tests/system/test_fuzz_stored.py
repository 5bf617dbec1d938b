"""Whatever stands in a configuration or in a stored document, it is read or refused by an error of this package.

The changes are made inside well-formed documents, and no seal gives them away: keys are lost or renamed, and values become
others, often of another type. The seed is fixed.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from support.stored_runs import record, write_evaluation, write_run

from selfcorrect.cli.app import main
from selfcorrect.config.schema import Config
from selfcorrect.config.stages import STAGE_KINDS
from selfcorrect.config.toml import load_config, make_config
from selfcorrect.errors import ConfigError

SEED = 20
SOME = pytest.param(60, id="some")
MANY = pytest.param(10_000, id="many", marks=pytest.mark.nightly)
ODD: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 7, 10**6, 2**63 - 1, -(2**62), 0.0, -0.0, 0.5, 1.5, -1e300, 1e308, 1e-320),
    *(
        "",
        "x",
        "7",
        "score",
        "base",
        "correct",
        "right",
        "end",
        "previous",
        "\x1b[2J",
        "\u202e",
        "\ud7ff",
        "x" * 300,
        "../..",
        "/",
    ),
    *([], {}, [[]], [None], [1, "x"], {"": 1}, {"base": 0.1}, [0.1, 0.2], [{}], [{"base": -1}], [1, 1]),
]

# -- configurations ----------------------------------------------------------------------------------------------------

KEYS = sorted(
    {key for group in (Config, *STAGE_KINDS.values()) for key in group.model_fields}
    | {key for value in Config().model_dump().values() if isinstance(value, dict) for key in value}
    | {"base", "stage1", "score", "adaptive", "minimum", "rank", "text", "role", "attempt", "supervised", "anchors", ""}
)
VALUES = (
    st.sampled_from([value for value in ODD if value is not None]) | st.floats() | st.integers() | st.text(max_size=5)
)
NESTED = st.recursive(
    VALUES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize("number", [SOME, MANY])
def test_every_table_is_a_configuration_or_refused(number: int) -> None:
    """A table of known keys, laid over nothing or over a built-in configuration."""
    valid = load_config("demo").model_dump(mode="json", exclude_none=True)
    settings_of = [(group, key) for group, value in valid.items() if isinstance(value, dict) for key in value]
    counts = {"valid": 0, "refused": 0}

    def check(over: bool, setting: tuple[str, str], value: Any, table: Any) -> None:
        group, key = setting
        given_table = copy.deepcopy(valid) if over else {}
        before = given_table.get(group, {})
        given_table[group] = {**before, key: value} if isinstance(before, dict) and key else value
        given_table |= {k: v for k, v in table.items() if not over}
        try:
            assert isinstance(make_config(given_table), Config)
            counts["valid"] += 1
        except ConfigError as error:
            assert str(error)
            counts["refused"] += 1

    tables = st.dictionaries(st.sampled_from(KEYS), NESTED, max_size=3)
    places = st.sampled_from(settings_of) | st.tuples(st.sampled_from([*valid]), st.sampled_from(KEYS))
    drawn = given(st.booleans(), places, st.integers(0, 64) | NESTED, tables)
    settings(max_examples=number, phases=(Phase.generate,), deadline=None, derandomize=True)(drawn(check))()
    assert min(counts.values()) > 0, counts


@pytest.mark.parametrize("number", [SOME, MANY])
def test_every_override_is_taken_or_refused(number: int) -> None:
    def check(path: list[str], value: str) -> None:
        with contextlib.suppress(ConfigError):
            load_config("demo", [f"{'.'.join(path)}={value}"])

    texts = (
        st.sampled_from(["1", "[", "{", "nan", "[1,2]", "{base=1}", "'", "1_0", "0x1F", "1979-05-27", "\x00"])
        | st.text()
    )
    drawn = given(st.lists(st.sampled_from(KEYS), max_size=4), texts)
    settings(max_examples=number // 10, phases=(Phase.generate,), deadline=None, derandomize=True)(drawn(check))()


# -- stored documents --------------------------------------------------------------------------------------------------


def changed(value: Any, rng: random.Random) -> Any:
    """The value with one change at a random place inside it."""
    places = _places(value)
    if not places:  # an earlier change left nothing
        return {"x": rng.choice(ODD)}
    holder, key = rng.choice(places)
    how = rng.randrange(5)
    if how == 0:
        del holder[key]
    elif how == 1 and isinstance(holder, dict):
        holder[rng.choice(["", "x", "turns", "results", "seed"])] = holder.pop(key)
    elif how == 2:
        holder[key] = [holder[key], copy.deepcopy(holder[key])]
    elif how == 3:
        other, name = rng.choice(places)
        with contextlib.suppress(KeyError, IndexError):
            holder[key] = copy.deepcopy(other[name])
    else:
        holder[key] = copy.deepcopy(rng.choice(ODD))
    return value


def _places(value: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    level = [value]
    while level:
        holder = level.pop()
        items = holder.items() if isinstance(holder, dict) else enumerate(holder)
        for key, item in items:
            found.append((holder, key))
            if isinstance(item, (dict, list)) and item:
                level.append(item)
    return found


def change_file(file: Path, rng: random.Random) -> None:
    """Change a JSON document, one line of JSON Lines, or a TOML document, and leave it well-formed."""
    if file.suffix == ".jsonl":
        lines = file.read_text().splitlines()
        number = rng.randrange(len(lines))
        lines[number] = json.dumps(changed(json.loads(lines[number]), rng))
        file.write_text("\n".join([*lines, ""]))
    elif file.suffix == ".toml":
        table = changed(load_config(file).model_dump(mode="json", exclude_none=True), rng)
        with contextlib.suppress(TypeError):  # TOML has no null
            file.write_text(tomli_w.dumps(table))
    else:
        file.write_text(json.dumps(changed(json.loads(file.read_text()), rng)))


Commands = list[list[str]]


def stored(place: Path) -> dict[str, tuple[Path, Commands]]:
    """A run and an evaluation without seals, and the commands that read them."""
    run, evaluation, page = place / "m/run", place / "e", str(place / "page.html")
    lines = [record(i, ("6", "7") if i % 2 else ("7", "7"), model="score") for i in range(3)]
    write_run(run, seed=0, models={"base": lines, "score": lines}, steps=2)
    (place / "m/method.json").write_text(json.dumps({"key": "k", "title": "T", "table": "main", "place": 1}))
    write_evaluation(evaluation, [record(i, ("6", "7"), model="eval") for i in range(3)], digest="d")
    identity = json.loads((evaluation / "eval.json").read_text())
    identity["task_source"] = {"name": "addition", "options": {"digits": 2}}
    identity["script"] = {"first": "{prompt}", "revise": "Again.", "system": None, "turns": 2}
    (evaluation / "eval.json").write_text(json.dumps(identity))
    return {
        "run": (run, [["show", str(run)], ["report", str(run), "--out", page, "--tables", "text"]]),
        "evaluation": (
            evaluation,
            [
                ["show", str(evaluation), "--json"],
                ["report", str(evaluation), "--out", page, "--tables", "markdown"],
                ["compare", str(evaluation), str(evaluation)],
                ["rescore", str(evaluation), "--dry-run"],
            ],
        ),
    }


def said(command: list[str]) -> tuple[int, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(command)
    return status, err.getvalue()


@pytest.mark.parametrize("number", [SOME, MANY])
@pytest.mark.parametrize("kind", ["run", "evaluation"])
def test_every_stored_document_is_read_or_refused(kind: str, number: int, tmp_path: Path) -> None:
    """A change is tried with one command; over all changes every command meets every file."""
    place, commands = stored(tmp_path / "good")[kind]
    files = sorted(file.relative_to(tmp_path / "good") for file in place.parent.rglob("*.*") if file.suffix != ".html")
    files = [
        file for file in files if (tmp_path / "good" / file).is_file() and (kind == "run") == (file.parts[0] == "m")
    ]
    rng, damaged = random.Random(SEED), tmp_path / "damaged"
    counts = {0: 0, 2: 0}
    bugs: list[str] = []
    for number_of_change in range(number):
        shutil.rmtree(damaged, ignore_errors=True)
        shutil.copytree(tmp_path / "good", damaged)
        file = files[number_of_change % len(files)]
        for _ in range(rng.choice((1, 1, 2))):
            with contextlib.suppress(ConfigError):  # a second change of what is refused already
                change_file(damaged / file, rng)
        command = [word.replace(str(tmp_path / "good"), str(damaged)) for word in rng.choice(commands)]
        status, message = said(command)
        counts[status] = counts.get(status, 0) + 1
        if status not in (0, 1, 2) or "This is a bug" in message or "Traceback" in message:
            bugs.append(f"change {number_of_change} of {file}, {command[0]}: {message[-300:]}")
    print(kind, counts)
    assert not bugs, f"{len(bugs)}:\n" + "\n".join(bugs[:10])
    assert counts[0] > 0 and counts[2] > 0
