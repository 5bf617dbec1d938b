"""Check that the tests can fail: apply every defect of `mutants.toml` to a copy of the code and run its named test.

    python tests/mutants/run.py [--jobs N] [--pitfall NUMBER ...]

First every named test must pass on an unchanged copy. Then a defect is caught if its test fails; a test that still
passes, an entry that no longer applies, or a test that cannot even be collected makes the exit status 1.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FAILED = 1
"""pytest's exit status if tests ran and some failed; other values mean that they could not run."""
TIME_LIMIT_S = 900


@dataclass(frozen=True)
class Mutant:
    """A defect: ``old``, which stands once in ``file``, becomes ``new``; ``test`` must notice."""

    pitfall: int
    name: str
    file: str
    old: str
    new: str
    test: str

    def apply(self, copy: Path) -> str | None:
        """Apply the defect to a copy; return what is wrong with the entry if it does not apply."""
        path = copy / "src" / "selfcorrect" / self.file
        if not path.is_file():
            return f"there is no {self.file}"
        text = path.read_text(encoding="utf-8")
        if text.count(self.old) != 1:
            return f"`old` stands {text.count(self.old)} times in {self.file}, not once"
        path.write_text(text.replace(self.old, self.new), encoding="utf-8")
        return None


def copy_of_the_code(place: Path) -> Path:
    """Copy the code and its tests into a directory."""
    ignored = shutil.ignore_patterns("__pycache__")
    for folder in ("src", "tests"):
        shutil.copytree(ROOT / folder, place / folder, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", place)
    return place


def pytest(copy: Path, tests: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a copy's tests on the copy's code."""
    environment = {**os.environ, "PYTHONPATH": str(copy / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    options = ["-x", "-q", "-p", "no:cacheprovider", "--tb=line", "--rootdir", str(copy)]
    command = [sys.executable, "-m", "pytest", *options, *tests]
    try:
        return subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, check=False, timeout=TIME_LIMIT_S
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, -1, f"not done after {TIME_LIMIT_S} s", "")


def unchanged_code_passes(tests: Sequence[str]) -> bool:
    with tempfile.TemporaryDirectory() as place:
        copy = copy_of_the_code(Path(place))
        command = [sys.executable, "-c", "import selfcorrect; print(selfcorrect.__file__)"]
        environment = {**os.environ, "PYTHONPATH": str(copy / "src")}
        used = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()
        assert Path(used).is_relative_to(copy), f"the tests would run on {used}"
        done = pytest(copy, tests)
    if done.returncode:
        print(done.stdout[-3000:], done.stderr[-2000:], sep="\n")
    return done.returncode == 0


def finding(mutant: Mutant) -> tuple[bool, str]:
    """Return whether the defect was caught, and what happened in a few words."""
    with tempfile.TemporaryDirectory() as place:
        copy = copy_of_the_code(Path(place))
        wrong = mutant.apply(copy)
        if wrong:
            return False, f"does not apply: {wrong}"
        done = pytest(copy, [mutant.test])
    if done.returncode == 0:
        return False, "SURVIVED"
    if done.returncode != FAILED:
        return False, f"the test could not run (pytest status {done.returncode}): {done.stdout.strip()[-300:]}"
    return True, "caught"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=min(4, os.cpu_count() or 1), help="how many tests run at a time")
    parser.add_argument("--pitfall", type=int, nargs="*", help="only these lines of the pitfalls")
    chosen = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    table = tomllib.loads(Path(__file__).with_name("mutants.toml").read_text(encoding="utf-8"))["mutant"]
    mutants = [Mutant(**entry) for entry in table]
    mutants = [mutant for mutant in mutants if not chosen.pitfall or mutant.pitfall in chosen.pitfall]
    if not unchanged_code_passes(sorted({mutant.test for mutant in mutants})):
        print("the named tests do not pass on the unchanged code")
        return 1
    caught = 0
    with ThreadPoolExecutor(max(1, chosen.jobs)) as pool:
        for mutant, (good, words) in zip(mutants, pool.map(finding, mutants), strict=True):
            caught += good
            print(f"{mutant.pitfall:>3}  {words:<8}  {mutant.name}  [{mutant.test}]", flush=True)
    print(f"{caught} of {len(mutants)} defects caught")
    return int(caught < len(mutants))


if __name__ == "__main__":
    sys.exit(main())
