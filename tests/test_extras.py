"""Test the message of a missing optional package, and that the extras it names exist."""

from __future__ import annotations

import ast
import json
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import selfcorrect
from selfcorrect import extras
from selfcorrect.errors import ConfigError
from selfcorrect.extras import check_installed, require, requirement

ASKING = ("require", "check_installed", "missing", "missing_apart")
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
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in (
                "require",
                "check_installed",
                "missing",
                "missing_apart",
            ):
                for keyword in node.keywords:
                    if keyword.arg == "extra" and isinstance(keyword.value, ast.Constant):
                        found[keyword.value.value] = str(path)
    return found


def test_every_extra_that_a_message_names_exists() -> None:
    extras = tomllib.loads(PROJECT.read_text())["project"]["optional-dependencies"]
    named = extras_named()
    assert len(named) >= 8
    assert named.keys() <= extras.keys()


def test_another_environment_gets_the_package_from_where_it_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = tmp_path / "a clone"
    clone.mkdir()
    (clone / "pyproject.toml").write_text("")
    wheel = "file:///w/selfcorrect-1-py3-none-any.whl"
    git = {"url": "https://a.b/c", "vcs_info": {"vcs": "git", "commit_id": "01ab"}}
    cases = [
        ({"url": clone.as_uri(), "dir_info": {}}, f"{clone}[x,y]"),
        (git, "selfcorrect[x,y] @ git+https://a.b/c@01ab"),
        ({"url": wheel, "archive_info": {}}, f"selfcorrect[x,y] @ {wheel}"),
        ({}, "selfcorrect[x,y]"),
    ]
    monkeypatch.setattr(extras, "__file__", str(tmp_path / "site-packages/selfcorrect/extras.py"))
    monkeypatch.setattr(extras, "distribution", lambda _name: metadata.PathDistribution(tmp_path))
    for recorded, wanted in cases:
        (tmp_path / "direct_url.json").write_text(json.dumps(recorded))
        assert requirement("x,y") == wanted


def test_a_checkout_that_is_not_installed_is_its_own_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "installed_from", lambda: ("", "", ""))
    assert requirement("x") == f"{Path(extras.__file__).resolve().parents[2]}[x]"
