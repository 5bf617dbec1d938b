"""Test what is recorded of where results come from."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

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
    monkeypatch.setattr(provenance, "distribution", lambda _name: metadata.PathDistribution(folder))
    # As if the package lay in an environment instead of a checkout.
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "lib/site-packages/selfcorrect/storage/provenance.py"))
    assert provenance._git_commit.__wrapped__() == commit


def test_without_an_installation_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(provenance, "distribution", absent)
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "lib/site-packages/selfcorrect/storage/provenance.py"))
    assert provenance._git_commit.__wrapped__() is None
