"""Test that every pitfall has a test marked with its number, and a defect in `mutants/` that this test must catch."""

from __future__ import annotations

import ast
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import selfcorrect

TESTS = Path(__file__).parents[1]
SOURCE = Path(selfcorrect.__file__).parent
TABLE = (TESTS / "mutants" / "mutants.toml").read_text(encoding="utf-8")
MUTANTS: list[dict[str, Any]] = tomllib.loads(TABLE)["mutant"]
PINNED = set(range(1, 24))


@cache
def marked_tests() -> dict[str, set[int]]:
    """Return the pitfall numbers of every test function by its id."""
    found: dict[str, set[int]] = {}
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                marks = [
                    d
                    for d in node.decorator_list
                    if isinstance(d, ast.Call) and ast.unparse(d.func).endswith("pitfall")
                ]
                found[f"{path.relative_to(TESTS.parent)}::{node.name}"] = {
                    ast.literal_eval(mark.args[0]) for mark in marks
                }
    return found


def test_every_pitfall_has_a_marked_test_and_a_mutant() -> None:
    assert set().union(*marked_tests().values()) == PINNED
    assert {mutant["pitfall"] for mutant in MUTANTS} == PINNED


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant['pitfall']}: {mutant['name']}")
def test_a_mutant_applies_and_names_a_test_of_its_pitfall(mutant: dict[str, Any]) -> None:
    assert (SOURCE / mutant["file"]).read_text(encoding="utf-8").count(mutant["old"]) == 1, "put its `old` right"
    assert mutant["pitfall"] in marked_tests().get(mutant["test"], set())
