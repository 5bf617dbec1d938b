"""Test the message of a missing optional package, and that the extras it names exist."""

from __future__ import annotations

import ast
import sys
import tomllib
from pathlib import Path

import pytest

import selfcorrect
from selfcorrect.errors import ConfigError
from selfcorrect.extras import check_installed, require

SOURCE = Path(selfcorrect.__file__).parent
PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def test_a_package_that_is_there_is_returned() -> None:
    import json.decoder

    assert require("json.decoder", extra="none", why="this test") is json.decoder
    check_installed("json", extra="none", why="this test")


@pytest.mark.parametrize("ask", [require, check_installed])
def test_a_missing_package_is_reported_with_its_extra(ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r'^LoRA needs peft, .*Install it: pip install "selfcorrect\[lora\]"\.$'):
        ask("peft", extra="lora", why="LoRA")
    with pytest.raises(ConfigError, match=r"\[lora\]\"; or leave it\.$"):
        ask("peft", extra="lora", why="LoRA", instead="or leave it")


@pytest.mark.parametrize("error", ["OSError('libseccomp.so.2')", "RuntimeError('libseccomp.so.2')"])
def test_a_package_without_its_shared_library_counts_as_missing(
    error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half_there.py").write_text(f"raise {error}\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"needs half_there, which cannot be imported \(libseccomp\.so\.2\)"):
        require("half_there", extra="code", why="this test")


def extras_named() -> dict[str, str]:
    """Find every extra that a call in the package names, and where."""
    found = {}
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("require", "check_installed", "missing"):
                for keyword in node.keywords:
                    if keyword.arg == "extra" and isinstance(keyword.value, ast.Constant):
                        found[keyword.value.value] = str(path)
    return found


def test_every_extra_that_a_message_names_exists() -> None:
    extras = tomllib.loads(PROJECT.read_text())["project"]["optional-dependencies"]
    named = extras_named()
    assert len(named) >= 8
    assert named.keys() <= extras.keys()
