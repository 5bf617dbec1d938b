"""Test what is recorded of where results come from."""

from __future__ import annotations

import json
import subprocess
from importlib import metadata
from pathlib import Path

import pytest

from selfcorrect import extras
from selfcorrect.storage import provenance


@pytest.mark.parametrize(
    ("recorded", "commit"),
    [
        ('{"url": "https://a.b/c", "vcs_info": {"vcs": "git", "commit_id": "0123abc"}}', "0123abc"),
        ('{"url": "file:///a", "dir_info": {"editable": true}}', None),
        ('{"vcs_info": {"commit_id": 7}}', None),
        ('{"vcs_info": []}', None),
        ("[]", None),
        ("no JSON", None),
        (None, None),
    ],
)
def test_the_commit_that_pip_installed_is_found(
    recorded: str | None, commit: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "selfcorrect-0.0.dist-info"
    folder.mkdir()
    if recorded is not None:
        (folder / "direct_url.json").write_text(recorded)
    monkeypatch.setattr(extras, "distribution", lambda _name: metadata.PathDistribution(folder))
    # As if the package lay in an environment instead of a checkout.
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "lib/site-packages/selfcorrect/storage/provenance.py"))
    assert provenance._git_commit.__wrapped__() == commit


def test_without_an_installation_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(extras, "distribution", absent)
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "lib/site-packages/selfcorrect/storage/provenance.py"))
    assert provenance._git_commit.__wrapped__() is None


def git(clone: Path, *words: str) -> str:
    who = ["-c", "user.name=A", "-c", "user.email=a@b.c"]
    return subprocess.run(
        ["git", "-C", str(clone), *who, *words], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone from whose path pip installed a package of one file."""
    clone, site = tmp_path / "a clone", tmp_path / "site-packages"
    for place in (clone / "src", site):
        (place / "selfcorrect/storage").mkdir(parents=True)
        (place / "selfcorrect/storage/provenance.py").write_text("x = 1\n")
    git(clone, "init", "-q")
    git(clone, "add", ".")
    git(clone, "commit", "-qm", "one")
    recorded = tmp_path / "selfcorrect-0.0.dist-info"
    recorded.mkdir()
    (recorded / "direct_url.json").write_text(json.dumps({"url": clone.as_uri(), "dir_info": {}}))
    monkeypatch.setattr(extras, "distribution", lambda _name: metadata.PathDistribution(recorded))
    monkeypatch.setattr(provenance, "__file__", str(site / "selfcorrect/storage/provenance.py"))
    return clone


def test_the_commit_of_the_clone_that_pip_installed_from_is_found(clone: Path) -> None:
    commit = git(clone, "rev-parse", "HEAD")
    assert provenance._git_commit.__wrapped__() == commit and len(commit) == 40


def test_a_clone_that_moved_on_has_not_the_installed_commit(clone: Path) -> None:
    (clone / "src/selfcorrect/storage/provenance.py").write_text("x = 2\n")
    git(clone, "commit", "-qam", "two")
    assert provenance._git_commit.__wrapped__() is None
