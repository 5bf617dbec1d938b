"""Every documented command of `benchmarks/` begins at the root of the repository."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem != "__init__")

pytestmark = pytest.mark.skipif(not SCRIPTS, reason="an installed package has no benchmarks/")


@pytest.mark.slow
def test_every_script_is_imported_from_the_root() -> None:
    code = "import importlib, sys; [importlib.import_module(f'benchmarks.{name}') for name in sys.argv[1:]]"
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    found = subprocess.run(
        [sys.executable, "-c", code, *SCRIPTS], cwd=ROOT, env=clean, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr


def test_the_documentation_names_scripts_that_are_there() -> None:
    texts = [*ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/**/*.py"), *ROOT.glob("results/**/README.md")]
    named = {name for path in texts for name in re.findall(r"python -m benchmarks\.([a-z_]+)", path.read_text())}
    assert len(named) > 10 and named - {"step"} <= set(SCRIPTS)
    assert not [path for path in texts if "python benchmarks/" in path.read_text()], "scripts import `benchmarks`"
