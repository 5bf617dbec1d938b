"""Test that lower layers never import higher ones, and that importing the package is quick and silent."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import selfcorrect

SOURCE = Path(selfcorrect.__file__).parent

FLOORS = """
reasoning printable
types errors rng runtime
script extras documents hub
config
tasks method storage models
distributed
engines
rollout
training
zoo
evaluation
runs report
paper __init__
cli
__main__
"""
"""The rooms (folders and lone modules of the package) from the bottom up. A room imports from lower floors and from itself."""

FLOOR = {room: floor for floor, row in enumerate(FLOORS.split("\n")) for room in row.split()}
FILES = sorted(SOURCE.rglob("*.py"))


def dotted(path: Path) -> str:
    """Return a file's module, without the package's own name; the package itself is ``__init__``."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts if parts == ("__init__",) or parts[-1] != "__init__" else parts[:-1])


MODULES = {dotted(path): path for path in FILES}


def imported(path: Path) -> set[str]:
    """Return the dotted names of all that a file imports, anywhere in it, including imports for the type checker."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {name for name in inside if name.removeprefix("selfcorrect.") in MODULES}
            found |= modules | ({node.module} if inside - modules else set())
    return found


def of_ours(path: Path) -> set[str]:
    """Return the package's own modules among the imports."""
    names = {name for name in imported(path) if name.split(".")[0] == "selfcorrect"}
    return {name.removeprefix("selfcorrect.") if "." in name else "__init__" for name in names}


def room(module: str) -> str:
    return module.split(".", maxsplit=1)[0]


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downwards(module: str) -> None:
    here = room(module)
    assert here in FLOOR, f"put {here!r} into FLOORS, above all that it imports"
    upward = {name for name in of_ours(MODULES[module]) if room(name) != here and FLOOR[room(name)] >= FLOOR[here]}
    assert not upward, f"{here} (floor {FLOOR[here]}) imports {upward}"


def test_no_module_imports_itself_by_a_detour() -> None:
    graph = {module: of_ours(path) & set(MODULES) - {module} for module, path in MODULES.items()}
    assert tuple(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_the_tests_of_the_floors_can_fail() -> None:
    assert FLOOR["method"] < FLOOR["training"] < FLOOR["cli"]
    assert "training.scoring" in of_ours(MODULES["training.trainer"])
    with pytest.raises(CycleError):
        tuple(TopologicalSorter({"a": {"b"}, "b": {"a"}}).static_order())


@pytest.mark.parametrize(
    "module", [*(m for m in MODULES if room(m) == "method"), "evaluation.metrics", "training.batch"]
)
def test_the_mathematics_sees_no_model_no_tokenizer_and_no_file(module: str) -> None:
    path = MODULES[module]
    roots = {name.split(".")[0] for name in imported(path)}
    assert not roots & {"transformers", "tokenizers", "safetensors", "pathlib", "io", "os", "shutil", "json"}
    calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert not any(isinstance(call, ast.Name) and call.id == "open" for call in calls)


def test_engines_and_scoring_do_not_know_each_other() -> None:
    engines = set().union(*(of_ours(path) for module, path in MODULES.items() if room(module) == "engines"))
    assert not any(name.startswith("training") for name in engines)
    assert not {"engines", "rollout"} & {room(name) for name in of_ours(MODULES["training.scoring"])}


def test_only_the_cpu_room_names_private_operators_of_torch() -> None:
    private = re.compile(r"torch\.(ops\.\w+\._|_C\b|_\w*onednn|_mkldnn)|\b_scaled_dot_product\w*|\bmkldnn\._")
    found = {module for module, path in MODULES.items() if private.search(path.read_text(encoding="utf-8"))}
    assert found, "the pattern finds nothing any more"
    assert all(module.startswith("models.cpu.") for module in found), found


@pytest.mark.parametrize(
    ("package", "place"), [("torch.distributed", "distributed."), ("ray", "distributed.ray_workers")]
)
def test_only_one_place_names_a_package_for_several_processes(package: str, place: str) -> None:
    inside = re.compile(rf"{re.escape(package)}(\.|$)")
    found = {module for module, path in MODULES.items() if any(inside.match(name) for name in imported(path))}
    assert found, "nothing imports it any more"
    assert all(module.startswith(place) for module in found), found


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, check=False)


HEAVY = "sys.exit(str({'torch', 'transformers', 'pandas', 'scipy', 'datasets'} & set(sys.modules) or '') or 0)"


def test_importing_the_package_is_silent_and_light() -> None:
    done = run_python("-c", f"import sys, selfcorrect; {HEAVY}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


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
