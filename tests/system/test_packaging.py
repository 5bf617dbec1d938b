"""Test wheel and sdist outside the checkout."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src"
LOCKS = {"requirements-lock.txt": "EXTRAS", "requirements-lock-dev.txt": None}
"""The lock files, each with the line of the Makefile that names its extras; the developers' has `dev`."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist, and the wheel from it."""
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(out), str(ROOT)], check=True, capture_output=True)
    return out


def install(wheel: Path, place: Path) -> dict[str, str]:
    """Install a wheel alone into a folder, and return the environment variables that find it there."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(place)]
    subprocess.run([*command, str(wheel)], check=True, capture_output=True)
    return {**os.environ, "PYTHONPATH": str(place), "PYTHONNOUSERSITE": "1"}


@pytest.mark.slow
def test_the_wheel_works_outside_the_checkout(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    files = [path.relative_to(SOURCE) for path in SOURCE.rglob("*") if path.is_file()]
    wanted = {path.as_posix() for path in files if "__pycache__" not in path.parts and "egg-info" not in str(path)}
    assert {"selfcorrect/py.typed", "selfcorrect/tasks/dataset/example_data/science.csv"} < wanted
    assert wanted <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any(name.startswith(("tests", "results")) for name in names)
    installed = tmp_path / "installed"
    environment = install(wheel, installed)
    code = "import selfcorrect; print(selfcorrect.__file__)"
    where = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    assert where.stdout.startswith(str(installed))
    shown = subprocess.run(
        [sys.executable, "-m", "selfcorrect", "config", "demo"],
        cwd=tmp_path, env=environment, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert "[stages.score]" in shown.stdout


@pytest.mark.slow
def test_the_sdist_holds_source_tests_and_docs_and_no_results(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "LICENSE",
        "README.md",
        "Makefile",
        "src/selfcorrect/training/trainer.py",
        "tests/method/test_oracle.py",
        "docs/method.md",
        "requirements-lock.txt",
        "Dockerfile",
        ".devcontainer/devcontainer.json",
    } <= names
    assert not any(name.startswith("results/") for name in names)


@pytest.mark.nightly
def test_the_demo_of_the_wheel_trains_in_an_empty_directory(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    environment = install(wheel, tmp_path / "installed")
    (tmp_path / "empty").mkdir()
    changes = ("stages.stage1.steps=1", "stages.score.steps=1", "eval.problems=20")
    command = [sys.executable, "-m", "selfcorrect", "demo", *(word for change in changes for word in ("--set", change))]
    done = subprocess.run(command, cwd=tmp_path / "empty", env=environment, check=True, capture_output=True, text=True)
    assert "Acc@t1" in done.stdout and "runs/demo/report.html" in done.stdout
    assert (tmp_path / "empty/runs/demo/report.html").stat().st_size > 100_000


# --- the container and the workflows ----------------------------------------------------------------


def locked(name: str) -> dict[str, str]:
    """Return the version of every package of a lock file."""
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+) \\$", (ROOT / name).read_text(), re.MULTILINE))


def wanted_by(project: Mapping[str, Any], extras: Iterable[str]) -> Iterator[Requirement]:
    """Yield what the package and these extras require here, with the extras that extras name."""
    waiting = [*project["dependencies"]]
    for extra in extras:
        waiting += project["optional-dependencies"][extra]
    for requirement in map(Requirement, waiting):
        if requirement.name == project["name"]:
            yield from wanted_by({**project, "dependencies": []}, requirement.extras)
        elif requirement.marker is None or requirement.marker.evaluate():
            yield requirement


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_file_has_all_that_the_package_requires_and_no_address(name: str) -> None:
    text = (ROOT / name).read_text()
    versions = locked(name)
    extras = ["dev"]
    if LOCKS[name]:
        (listed,) = re.findall(rf"^{LOCKS[name]} := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
        extras = listed.split()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*wanted_by(project, extras)]
    assert len(needed) > 25
    for requirement in needed:
        version = versions.get(canonicalize_name(requirement.name))
        assert version and requirement.specifier.contains(version), f"{requirement} is {version}: run `make lock`"
    assert text.count("--hash=sha256:") > len(versions) > 100
    assert not re.search(r"://|^--|^-e|@ ", text, re.MULTILINE)


def test_the_two_lock_files_agree() -> None:
    of_users, of_developers = (locked(name) for name in LOCKS)
    assert of_users.items() <= of_developers.items()


WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


@pytest.mark.skipif(not WORKFLOWS, reason="a source distribution has no workflows")
def test_workflows_name_actions_by_their_commit() -> None:
    used = [line for path in WORKFLOWS for line in path.read_text().splitlines() if "uses:" in line]
    assert len(used) > 5
    for line in used:
        assert re.fullmatch(r"\s*- uses: [\w./-]+@[0-9a-f]{40}  # v[\d.]+", line), line
