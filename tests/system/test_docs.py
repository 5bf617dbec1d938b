"""Test that the program does what README and docs say."""

from __future__ import annotations

import json
import pkgutil
import posixpath
import re
import runpy
import shlex
from pathlib import Path

import pytest
import torch
from support.models import tiny_model

import selfcorrect
from selfcorrect.__main__ import main
from selfcorrect.config.engine_names import ENGINES
from selfcorrect.config.reference import configuration_page
from selfcorrect.config.toml import as_stored, load_config, to_toml
from selfcorrect.config.tracker_names import TRACKERS
from selfcorrect.method.base import METHODS
from selfcorrect.paper.own_rows import OFFERED
from selfcorrect.paper.rows import ROWS
from selfcorrect.tasks import base as task_base
from selfcorrect.zoo import registry

ROOT = Path(__file__).parents[2]
WITHOUT_RESULTS = not (ROOT / "results").exists()
needs_results = pytest.mark.skipif(WITHOUT_RESULTS, reason="a source distribution has no results/")


def test_the_configuration_reference_is_that_of_the_settings() -> None:
    assert (ROOT / "docs/configuration.md").read_text() == configuration_page(), "run `make configuration`"


@pytest.mark.slow
def test_the_readmes_python_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 10
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SELFCORRECT_HOME", str(tmp_path / "home"))
    # The real base's code path without its minute of training.
    monkeypatch.setattr(
        registry, "make_addition_base", lambda seed, recipe, on_step=None: tiny_model(seed, dtype=torch.float32)
    )
    exec(compile(code, "README.md", "exec"), {})
    assert "acc_t1" in capsys.readouterr().out
    assert (tmp_path / "runs/small/summary.json").exists()


def test_every_public_name_has_its_place_on_the_page_of_python() -> None:
    shown = re.findall(r"^::: selfcorrect\.(\S+)$", (ROOT / "docs/api.md").read_text(), re.M)
    for name in shown:
        pkgutil.resolve_name(f"selfcorrect.{name}")
    assert sorted(name for name in shown if "." not in name) == sorted({*selfcorrect.__all__} - {"__version__"})


@needs_results
def test_the_benchmarks_tables_are_those_of_its_numbers() -> None:
    script = runpy.run_path(str(ROOT / "benchmarks/tables.py"))
    files = script["load"]([script["RESULTS"] / f"{name}.json" for name in (*script["AGAINST_TRL"], "small-search")])
    printed = set((ROOT / "docs/dev/bench.md").read_text().splitlines())
    wanted = [line for line in script["tables"](files) if "small-search` | " not in line]
    assert len(wanted) > 30
    assert [line for line in wanted if line not in printed] == [], "copy what `python -m benchmarks.tables` prints"


def test_the_comparisons_page_has_every_row_in_order() -> None:
    told = re.findall(
        r"^\| ((?:`[^`]+`(?:, )?)+) \|", (ROOT / "docs/paper.md").read_text().partition("## The rows")[2], re.M
    )
    assert re.findall(r"`([^`]+)`", " ".join(told)) == [row.key for row in ROWS]


PAGES = ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES)
def test_links_and_names_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        place = posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
        if not target.startswith("http") and not (WITHOUT_RESULTS and place.startswith("results/")):
            assert (ROOT / place).exists(), f"{page} links to {target}"
    for test in re.findall(r"`(test_\w+\.py)`", text):
        assert [*(ROOT / "tests").rglob(test)], f"{page} names {test}"


def test_sections_of_the_method_that_are_cited_exist() -> None:
    page = (ROOT / "docs/method.md").read_text()
    numbers = {int(number) for number in re.findall(r"^## (\d+)\. ", page, re.M)}
    cited = {
        int(number)
        for folder in ("src", "tests")
        for path in (ROOT / folder).rglob("*.py")
        for number in re.findall(r"method\.md,\s+section (\d+)", path.read_text())
    }
    assert cited and cited <= numbers
    assert not re.search(r"METHOD \d", "".join(p.read_text() for p in (ROOT / "src").rglob("*.py")))


def test_functions_that_the_method_names_exist() -> None:
    named = re.findall(r"`((?:\w+\.){1,3}\w+)`", (ROOT / "docs/method.md").read_text())
    found = [name for name in named if (ROOT / "src/selfcorrect" / name.split(".")[0]).exists() and ".toml" not in name]
    rooms = [name for name in found if not name.startswith("config.") or name.split(".")[1] == "schema"]
    assert len(rooms) > 20
    for name in rooms:
        pkgutil.resolve_name(f"selfcorrect.{name}")


ARCHITECTURE = ROOT / "docs/dev/architecture.md"


def test_files_that_the_architecture_names_exist() -> None:
    named = re.findall(r"`([\w/]+(?:\.py|\.toml|/))`", ARCHITECTURE.read_text())
    assert len(named) > 40
    lost = [name for name in named if not (ROOT / name).exists() and not (ROOT / "src/selfcorrect" / name).exists()]
    assert [name for name in lost if name != "config.toml"] == []  # a run's own


def test_the_architectures_picture_has_every_room_on_its_floor() -> None:
    (picture,) = re.findall(r"```text\n(.*?)```", ARCHITECTURE.read_text(), re.DOTALL)
    (floors,) = re.findall(r'FLOORS = """\n(.*?)"""', (ROOT / "tests/system/test_imports.py").read_text(), re.DOTALL)
    there = {path.name.removesuffix(".py") for path in (ROOT / "src/selfcorrect").iterdir()} - {"__main__"}
    drawn = [set(line[:34].split()) for line in picture.splitlines()[1:]]
    assert drawn == [rooms for row in reversed(floors.splitlines()) if (rooms := set(row.split()) & there)]


def test_entry_point_groups_that_the_pages_name_are_those_of_the_code() -> None:
    page = (ROOT / "docs/dev/contributing.md").read_text()
    named = set(re.findall(r'entry-points\."([\w.]+)"', page))
    assert named == {task_base.GROUP, ENGINES.group, METHODS.group, TRACKERS.group, OFFERED.group}


def test_the_readmes_recipe_is_the_built_in_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    section = (ROOT / "README.md").read_text().partition("## Train your own")[2].partition("## ")[0]
    assert "selfcorrect config qwen_math > mine.toml" in section and "selfcorrect plan mine.toml" in section
    assert main(["config", "qwen_math"]) == 0
    (tmp_path / "mine.toml").write_text(capsys.readouterr().out)
    config = load_config(str(tmp_path / "mine.toml"))
    assert config == as_stored(load_config("qwen_math")) and config.model.lora is not None


def test_the_rehearsal_on_a_cpu_runs_as_written(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = (ROOT / "docs/models.md").read_text().partition("### Rehearse on a CPU")[2].partition("### ")[0]
    (script,), (shell,) = (re.findall(rf"```{kind}\n(.*?)```", section, re.DOTALL) for kind in ("python", "sh"))
    make, train = shell.replace("\\\n", " ").splitlines()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("rehearsal.py").write_text(script)
    rows = [{"problem": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(60)]
    Path("problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr("sys.argv", [shlex.split(make)[1], str(model_folder)])  # in place of the hub's model
    runpy.run_path("rehearsal.py", run_name="__main__")
    Path("mine.toml").write_text(to_toml(load_config("qwen_math")))
    assert main([*shlex.split(train)[1:], "-q", "--no-report"]) == 0
    metrics = [json.loads(line) for line in Path("runs/rehearsal/metrics.jsonl").read_text().splitlines()]
    assert len(metrics) == 5 and any(0 < line["r1"] < 1 for line in metrics), "there is something to learn from"


@pytest.mark.parametrize("page", PAGES)
def test_a_new_environment_gets_the_package_from_a_clone_or_an_address(page: str) -> None:
    for block in re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(), re.DOTALL):
        if "venv" in block:
            assert not re.search(r"pip install [\"']?selfcorrect(\[[^]]*\])?[\"']?\s*(#|$)", block, re.MULTILINE), block


def readme_cells() -> dict[str, list[str]]:
    """Return the README's results by row: t1, t2 and delta on the first task, then on the second."""
    section = (ROOT / "README.md").read_text().partition("## Results")[2].partition("## ")[0]
    rows = [[cell.strip() for cell in line.strip("| \n").split(" | ")] for line in section.splitlines() if "|" in line]
    return {row[0]: row[1:] for row in rows[2:]}


@needs_results
@pytest.mark.parametrize(("place", "page"), [(0, "results/paper"), (3, "results/paper-worked_sums")])
def test_the_readmes_results_are_those_that_are_kept(place: int, page: str) -> None:
    kept = {}
    for line in (ROOT / page / "README.md").read_text().splitlines():
        name, *cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        kept.setdefault(name, cells)
    shown = readme_cells()
    assert len(shown) == 6
    for name, cells in shown.items():
        # A model that all seeds measured equally has the interval of one run, which the README omits.
        assert cells[place : place + 3] == [cell.partition(" [")[0] for cell in kept[name][:3]], name
