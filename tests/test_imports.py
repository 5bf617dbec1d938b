"""Lower layers never import higher ones, and importing the package is quick and silent."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import selfcorrect

SOURCE = Path(selfcorrect.__file__).parent

LAYERS = [
    ["errors", "types", "attention"],
    ["prompts", "layout"],
    ["randomness", "config", "objective", "batch", "metrics", "hub", "console"],
    ["adapters", "masters", "config_files"],
    ["linear"],
    ["llama"],
    ["chat", "modeling", "rundir", "provenance", "episodes", "tasks", "progress"],
    ["head"],
    ["engines", "policy", "telemetry", "evaluation_dir", "smollm2"],
    ["rollout", "step_metrics", "sft", "pairs"],
    ["players"],
    ["evaluation", "trainer", "tiny_models"],
    ["addition_base", "code_base", "sums_base", "supervised"],
    ["models"],
    ["checkpoints"],
    ["run"],
    ["evaluation_run", "extension"],
    ["show", "report", "reference", "page", "bench"],
    ["comparison", "rescore", "inspect_log", "paper"],
    ["cli_look"],
    ["cli_measure", "cli_paper", "cli_bench"],
    ["cli"],
    ["__main__", "__init__"],
]
"""From the bottom up; a module or package imports from lower layers, or from itself if it is a package."""

HEIGHT = {name: height for height, layer in enumerate(LAYERS) for name in layer}


def top(path: Path) -> str:
    """The module or sub-package that a file belongs to."""
    return path.relative_to(SOURCE).with_suffix("").parts[0]


FILES = sorted(SOURCE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Dotted names of everything a file imports, wherever in the file it does so."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
            if node.module == "selfcorrect":
                found |= {f"selfcorrect.{alias.name}" for alias in node.names if (SOURCE / f"{alias.name}.py").exists()}
    return found


def of_ours(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imported(path) if name.startswith("selfcorrect.")}


def height(name: str) -> int:
    assert name in HEIGHT, f"put {name!r} into LAYERS, above all that it imports"
    return HEIGHT[name]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_downwards(path: Path) -> None:
    here = top(path)
    upward = {name for name in of_ours(path) if name != here and height(name) >= height(here)}
    assert not upward, f"{here} (layer {height(here)}) imports {upward}"


@pytest.mark.parametrize("name", ["batch", "objective", "metrics"])
def test_the_mathematics_sees_no_model_no_tokenizer_and_no_file(name: str) -> None:
    path = SOURCE / f"{name}.py"
    roots = {module.split(".")[0] for module in imported(path)}
    assert not roots & {"transformers", "tokenizers", "safetensors", "pathlib", "io", "os", "shutil", "json"}
    calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert not any(isinstance(call, ast.Name) and call.id == "open" for call in calls)


def test_engines_and_policy_do_not_know_each_other() -> None:
    engines = set().union(*(of_ours(path) for path in FILES if top(path) == "engines"))
    assert "policy" not in engines
    assert not {"engines", "rollout"} & of_ours(SOURCE / "policy.py")


def test_the_table_would_catch_an_upward_import() -> None:
    assert HEIGHT["batch"] < HEIGHT["policy"] < HEIGHT["trainer"] < HEIGHT["cli"]
    assert "policy" in of_ours(SOURCE / "trainer.py")


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, check=False)


HEAVY = "sys.exit(str({'torch', 'transformers', 'pandas', 'scipy', 'datasets'} & set(sys.modules) or '') or 0)"


def test_importing_the_package_is_silent_and_light() -> None:
    done = run_python("-c", f"import sys, selfcorrect; {HEAVY}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.skipif(not (SOURCE / "cli.py").exists(), reason="no command line yet")
def test_help_is_light() -> None:
    done = run_python(
        "-c",
        "import sys; from selfcorrect.__main__ import main\n"
        "sys.argv = ['selfcorrect', 'train', '--help']\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n" + HEAVY,
    )
    assert done.returncode == 0, done.stderr
    assert "--resume" in done.stdout
