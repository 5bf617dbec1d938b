"""Test that the examples in docstrings print what they show."""

from __future__ import annotations

import doctest
import re
from importlib import import_module
from pathlib import Path

import pytest

import selfcorrect

SOURCE = Path(selfcorrect.__file__).parent
WITH_EXAMPLES = sorted(path for path in SOURCE.rglob("*.py") if re.search(r"^ *>>> ", path.read_text("utf-8"), re.M))


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_examples_print_what_they_say(path: Path) -> None:
    name = ".".join(["selfcorrect", *path.relative_to(SOURCE).with_suffix("").parts])
    module = import_module(name)
    assert any(test.examples for test in doctest.DocTestFinder().find(module))
    assert not doctest.testmod(module).failed
