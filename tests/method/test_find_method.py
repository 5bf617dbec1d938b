"""Test how a method is found by the name that a stage gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfcorrect.errors import ConfigError
from selfcorrect.method.base import find_method


def test_an_unknown_method_is_told_from_one_that_cannot_be_imported() -> None:
    with pytest.raises(ConfigError, match=r"there is no method 'scor'.*Did you mean 'score'"):
        find_method("scor")
    with pytest.raises(ConfigError, match=r"method 'no_such_module:advantages' cannot be imported"):
        find_method("no_such_module:advantages")


def test_a_method_is_found_in_the_working_directory_as_engines_and_trackers_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "method_here.py").write_text("def advantages(outcome, stage): ...\n")
    monkeypatch.chdir(tmp_path)
    assert find_method("method_here:advantages").__module__ == "method_here"
