"""Test wheel and sdist outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BASE = "selfcorrect/zoo/weights/addition-base-101/model.safetensors"
PAGE = [
    f"selfcorrect/report/{name}" for name in ("templates/report.html.j2", "assets/report.css", "vendor/plot.LICENSE")
]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist, and the wheel from it."""
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(out), str(ROOT)], check=True, capture_output=True)
    return out


@pytest.mark.slow
def test_the_wheel_works_outside_the_checkout(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for needed in ("selfcorrect/py.typed", "selfcorrect/config/builtin/demo.toml", BASE, *PAGE):
        assert needed in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any(name.startswith(("tests", "results")) for name in names)
    installed = tmp_path / "installed"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(installed)]
    subprocess.run([*command, str(wheel)], check=True, capture_output=True)
    environment = {**os.environ, "PYTHONPATH": str(installed), "PYTHONNOUSERSITE": "1"}
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
    } <= names
    assert not any(name.startswith("results/") for name in names)
