"""Test the HTML report: what it reads, how it groups runs, its metrics by hand, and that the page is self-contained."""

from __future__ import annotations

import base64
import gzip
import json
import math
import os
import re
import resource
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from support.crash import SETTINGS
from support.models import tiny_model
from support.stored_runs import comparison, episode, record, write_evaluation, write_lines, write_run
from support.verifiers import lenient_additions

from selfcorrect import Callbacks, evaluate, load_config, train
from selfcorrect.__main__ import main
from selfcorrect.errors import DataError, RunDirectoryError
from selfcorrect.report import write_report
from selfcorrect.report.cells import Table, seeds_in_words
from selfcorrect.report.commands import Commands
from selfcorrect.report.episode_archive import MAX_BYTES, Source, fair_shares, pack, packed, sources_of, to_columns
from selfcorrect.report.episode_figures import difficulty_levels, episode_figures, majority_right, voted
from selfcorrect.report.figures import MAX_POINTS, Figure, attempts_figure, curve_points, curves_figure, flips_figure
from selfcorrect.report.html import rendered, series_styles
from selfcorrect.report.methods import group, paper_row
from selfcorrect.report.published import CODE, MATH
from selfcorrect.report.rows import METRICS, Measured, Row, Rows, all_rows
from selfcorrect.report.sources import Run, read_sources
from selfcorrect.report.statistics import compared, over_seeds
from selfcorrect.report.table_text import table_markdown
from selfcorrect.report.tables import overview_table, result_tables, seed_table
from selfcorrect.report.trials import trial_table
from selfcorrect.storage.episode_log import StoredEpisode, stored_lines


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("paper")
    comparison(made)
    return made


@pytest.fixture(scope="module")
def rows(folder: Path) -> Rows:
    runs, evaluations = read_sources([folder])
    return all_rows(group(runs)[0], evaluations)


def unpacked(text: str) -> Any:
    return json.loads(gzip.decompress(base64.b64decode(text)))


# ---------------------------------------------------------------- reading


def test_a_real_run_and_a_real_evaluation_become_a_page(tmp_path: Path) -> None:
    tiny_model(3, dtype=torch.float32).save(tmp_path / "model")
    config = load_config("demo", [*SETTINGS, f"model.source={tmp_path / 'model'}"])
    with lenient_additions():
        train(config, tmp_path / "runs/mine", callbacks=Callbacks())
    evaluate(tmp_path / "runs/mine", "addition", turns=3, limit=4, out=tmp_path / "runs/three")
    done = write_report([tmp_path / "runs"], tmp_path / "report.html")
    assert (done.runs, done.evaluations, done.methods) == (1, 1, ["mine"])
    page = Page((tmp_path / "report.html").read_text())
    assert {"attempts", "flips", "edits", "difficulty", "more_attempts", "curves"} <= set(page.data["figures"])
    parts = {(s["model"], s["part"]): len(s["episodes"]) for s in page.packed["sources"]}
    # 6 test problems; every step writes 4 training episodes, and Stage II has 4 steps
    assert parts[("score", "attempts")] == parts[("base", "sampled")] == parts[("stage1", "swap")] == 6
    assert parts[("score", "train")] == 16 and parts[("stage1", "train")] == 12
    assert len(page.data["figures"]["curves"]["rows"]) == 3 + 4


def test_compressed_logs_read_the_same(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "runs"
    shutil.copytree(folder, copy)
    for log in copy.rglob("*.jsonl"):
        log.with_name(log.name + ".gz").write_bytes(gzip.compress(log.read_bytes()))
        log.unlink()
    write_report([copy / "score/seed-0"], tmp_path / "a.html")
    write_report([folder / "score/seed-0"], tmp_path / "b.html")
    one, other = (Page((tmp_path / name).read_text()) for name in ("a.html", "b.html"))
    assert one.data == other.data and one.packed == other.packed and one.packed["sources"]


def test_a_run_that_is_still_going_shows_what_there_is(folder: Path, tmp_path: Path) -> None:
    going = tmp_path / "going"
    shutil.copytree(folder / "score/seed-0", going)
    (going / "summary.json").unlink()
    with (going / "metrics.jsonl").open("a") as log:
        log.write('{"stage": "score", "st')
    done = write_report([going], tmp_path / "r.html")
    page = Page((tmp_path / "r.html").read_text())
    assert done.runs == 1 and list(page.data["figures"]) == ["curves"] and "not finished" in page.text


def test_what_cannot_be_reported_is_refused_in_one_message(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    for paths, words in (
        (["empty"], "contains no run (config.toml) and no evaluation (eval.json)"),
        (["nowhere"], "is not a directory"),
    ):
        out = tmp_path / "r.html"
        assert main(["report", *(str(tmp_path / p) for p in paths), "--out", str(out)]) == 2
        assert words in capsys.readouterr().err and not out.exists()
    assert main(["report", str(folder), "--out", str(tmp_path)]) == 2
    assert "is a directory: name a new file" in capsys.readouterr().err


def test_only_a_regular_file_is_replaced(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    link = tmp_path / "link"
    link.symlink_to(pipe)
    for out in (pipe, link):
        assert main(["report", "nowhere", "--out", str(out)]) == 2, "refused before anything is read"
        assert capsys.readouterr().err.endswith(
            f"error: {out} is a device, a pipe or a socket, not a regular file: name a new file, or one to replace.\n"
        )
    assert pipe.is_fifo() and link.is_symlink()


def test_a_page_that_does_not_fit_the_disk_leaves_the_old_one(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    out.write_text("old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(RunDirectoryError, match="cannot write to"):
            write_report([folder], out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"] and out.read_text() == "old"


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("summary.json", '"delta": 0.3', '"delta": 0.4', "delta = 0.4, but i->c - c->i = 0.3"),
        ("summary.json", '"acc_t2": 0.7', '"acc_t2": 0.8', "delta = 0.3, but Acc@t2 - Acc@t1 = 0.4"),
        ("metrics.jsonl", '"r1"', '"r1', "metrics.jsonl, line 1, is damaged: not JSON"),
        ("episodes/eval-score-attempts.jsonl", '"schema": 1', '"schema": 9', "line 1: an episode has schema 9"),
        ("config.toml", "seed = 0", "seed = ", "damaged, or not valid TOML"),
    ],
)
def test_a_damaged_file_is_named(folder: Path, tmp_path: Path, file: str, old: str, new: str, words: str) -> None:
    shutil.copytree(folder / "score/seed-0", tmp_path / "run")
    text = (tmp_path / "run" / file).read_text()
    assert old in text
    (tmp_path / "run" / file).write_text(text.replace(old, new, 1))
    with pytest.raises(DataError, match=re.escape(words)):
        write_report([tmp_path / "run"], tmp_path / "r.html")


# ---------------------------------------------------------------- grouping


def test_runs_that_differ_in_the_seed_alone_are_one_method(folder: Path, tmp_path: Path) -> None:
    runs, evaluations = read_sources([folder / "score", folder])  # the same ones twice
    methods, repeated = group(runs)
    assert [(m.name, m.seeds, m.paper) for m in methods] == [
        ("score", [0, 1, 2], "score"),
        ("no-bonus", [0, 1], "no-bonus"),
    ]
    bonus = load_config("demo").stages["score"].bonus
    assert methods[1].differences == [f"stages.score.bonus = 0.0 instead of {bonus}"]
    assert not repeated and len(evaluations) == 2
    # Memory and logging settings make no method; a repeated seed is left out.
    records = [record(0, ("7", "7"))]
    write_run(
        tmp_path / "again", seed=1, models={"score": records}, changes=["rollout.max_num_seqs=7", "log.episodes=3"]
    )
    again, left_out = group([*runs, *read_sources([tmp_path])[0]])
    assert [m.seeds for m in again] == [[0, 1, 2], [0, 1]] and [run.path.name for run in left_out] == ["again"]


def test_what_is_left_out_is_named_with_its_reason(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("begun", "also"):
        (tmp_path / name / "episodes").mkdir(parents=True)
        (tmp_path / name / "eval.json").write_text("{}")
    shutil.copytree(folder / "score/seed-0", tmp_path / "again")
    paths = [str(folder / "score"), str(tmp_path / "begun"), str(tmp_path)]
    assert main(["report", *paths, "--out", str(tmp_path / "r.html")]) == 0
    said = capsys.readouterr().err
    assert f"{tmp_path / 'begun'} is left out: the evaluation is not finished" in said
    assert said.count("is left out: the evaluation") == 2, "each once, although two paths hold it"
    assert f"{tmp_path / 'again'} is left out: another run has the same configuration and seed." in said
    page = (tmp_path / "r.html").read_text()
    assert f"Left out because the evaluation is not finished: {tmp_path / 'begun'}, {tmp_path / 'also'}." in page
    assert f"Left out because they repeat a configuration and a seed: {tmp_path / 'again'}." in page
    assert main(["report", *paths, "--out", str(tmp_path / "r.html"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["unfinished"] == [str(tmp_path / name) for name in ("begun", "also")]


def test_methods_never_share_a_name(tmp_path: Path) -> None:
    records = [record(0, ("7", "7"))]
    for seed, change in ((0, "kl.warn_above=1.0"), (1, "kl.warn_above=2.0"), (2, "kl.warn_above=2.0")):
        write_run(tmp_path / f"x-seed-{seed}", seed=seed, models={"score": records}, changes=[change])
    methods, _ = group(read_sources([tmp_path])[0])
    assert [m.name for m in methods] == ["x", "x (kl.warn_above = 2.0 instead of 1.0)"]
    assert list(series_styles(all_rows(methods, []), methods)) == [m.name for m in methods]


@pytest.mark.parametrize(
    ("changes", "without", "expected"),
    [
        ([], None, "score"),
        (["stages.score.bonus=0"], None, "no-bonus"),
        ([], "stage1", "no-stage1"),
        (["stages.score.bonus=0", "stages.score.reward_weights=[1,4]"], None, None),
        (["stages.score.discount=1.0"], None, None),
        (["stages.score.offline_share=0.25"], None, None),
        (["stages.score.reward_weights=[1,0]", "stages.score.bonus=0"], "stage1", "single-turn"),
    ],
)
def test_the_papers_row_is_told_by_the_stages(changes: list[str], without: str | None, expected: str | None) -> None:
    settings = load_config("demo", changes).model_dump()
    settings["stages"].pop(without, None)
    assert paper_row(settings, "any name") == expected
    assert paper_row(settings, "Self-Refine") == "self-refine"


def test_the_papers_numbers_are_consistent() -> None:
    """In all rows delta = t2 - t1, and = (i->c) - (c->i) up to the rounding to 0.1."""
    for row in [*MATH.values(), *CODE.values()]:
        assert math.isclose(row.delta, row.t2 - row.t1, abs_tol=1e-9), row
        if row.i_to_c is not None and row.c_to_i is not None:
            assert math.isclose(row.delta, row.i_to_c - row.c_to_i, abs_tol=0.1001), row


# ---------------------------------------------------------------- numbers


def test_over_seeds_is_the_t_interval_and_one_seed_keeps_its_own() -> None:
    found = over_seeds([0.1, 0.2, 0.3], [0.0, 1.0])
    # sd 0.1, sem 0.1 / sqrt 3, t(0.975; 2) = 4.302653
    assert (found.mean, found.runs) == (pytest.approx(0.2), 3)
    assert found.high == pytest.approx(0.2 + 4.302653 * 0.1 / math.sqrt(3), abs=1e-6)
    assert found.low == pytest.approx(0.2 - 4.302653 * 0.1 / math.sqrt(3), abs=1e-6)
    one = over_seeds([0.1], [0.05, 0.4])
    assert (one.mean, one.low, one.high) == (0.1, 0.05, 0.4)
    same = over_seeds([0.2, 0.2], None)
    assert (same.low, same.high) == (0.2, 0.2)


def test_comparisons_pair_the_seeds_and_correct_by_holm() -> None:
    reference = {0: 0.5, 1: 0.6, 2: 0.7}
    ours = {
        "a": {0: 0.4, 1: 0.45, 2: 0.5},  # -0.10, -0.15, -0.20: t = -0.15 / (0.05 / sqrt 3) = -5.196
        "b": {1: 0.7, 2: 0.9},  # +0.1, +0.2: t = 0.15 / 0.05 = 3 with 1 degree of freedom
        "alone": {7: 0.1, 8: 0.2},
        "constant": {0: 0.4, 1: 0.5, 2: 0.6},
    }
    found = compared(ours, reference)
    assert list(found) == ["a", "b"]
    # The t-distribution's tail has a closed form for 2 and for 1 degrees of freedom.
    p_a, p_b = 1 - 5.196152 / math.sqrt(2 + 5.196152**2), 1 - 2 * math.atan(3) / math.pi
    assert (found["a"].p, found["b"].p) == (pytest.approx(p_a, abs=1e-6), pytest.approx(p_b, abs=1e-6))
    assert found["a"].p_holm == pytest.approx(2 * p_a, abs=1e-6)  # the smallest of two is doubled
    assert found["b"].p_holm == pytest.approx(p_b, abs=1e-6)
    assert found["a"].difference.mean == pytest.approx(-0.15) and found["b"].difference.runs == 2


def test_what_one_model_drew_counts_for_every_seed_that_drew_it() -> None:
    """Runs that measure one base greedily repeat each other; their samples at T = 1 are separate measurements."""

    def measured(seed: int, sampled: float, afresh: float) -> Measured:
        figures = {"acc_t1": 0.5, "acc_t2": 0.4, "n": 10, "samples": 1, "turns": [], "acc_t2_ci95": [0.1, 0.7]}
        controls = {
            "draft_swap": {"difference": -0.25, "difference_ci95": [-0.5, 0.0]},
            "independent_resample": {"difference": afresh, "difference_ci95": [-1, 1]},
        }
        results = {**figures, "sampled": {**figures, "acc_t2": sampled}, "controls": controls}
        return Measured(seed, results, "same", Run(Path(), {}, "", [], {}, {}), lambda part, limit: iter(()))

    row = Row("base", "base", "base", [measured(0, 0.3, 0.1)], again=[measured(1, 0.5, 0.2), measured(4, 0.4, 0.3)])
    greedy, sampled = row.estimate("acc_t2"), row.estimate("acc_t2", "sampled")
    assert greedy is not None and (greedy.mean, greedy.low, greedy.runs) == (0.4, 0.1, 1)
    # 0.3, 0.5, 0.4: sem 0.1 / sqrt 3, t(0.975; 2) = 4.302653
    assert sampled is not None and (sampled.mean, sampled.runs) == (pytest.approx(0.4), 3)
    assert sampled.high == pytest.approx(0.4 + 4.302653 * 0.1 / math.sqrt(3), abs=1e-6)
    swap, afresh = row.control("draft_swap"), row.control("independent_resample")
    assert swap is not None and (swap.mean, swap.low, swap.runs) == (-0.25, -0.5, 1)
    assert afresh is not None and (afresh.mean, afresh.runs) == (pytest.approx(0.2), 3)
    assert (seeds_in_words(row), seeds_in_words(row, "sampled")) == ("one model", "3 seeds: 0, 1, 4")


def test_trials_of_another_base_are_reported() -> None:
    trial = {"settings": ["a=1"], "base": "b" * 64, "acc_t1": 0.5, "acc_t2": 0.5, "delta": 0.0, "chosen": True}
    trial |= {f"{name}_ci95": [0.4, 0.6] for name in ("acc_t1", "acc_t2", "delta")}
    told = {"titles": {"score": "SCoRe"}, "seed": 100, "problems": 10, "rows": {"score": [trial]}}
    assert "another base model (bbbbbbbbbbbb) than the rows (cccccccccccc)" in trial_table(told, ["c" * 64]).notes[-1]
    assert len(trial_table(told, ["b" * 64]).notes) == len(trial_table(told).notes) == 1


def cells(table: Table) -> dict[str, list[str]]:
    return {row.label: [f"{cell.value} {cell.below}".strip() for cell in row.cells] for row in table.rows}


def test_the_main_table_has_intervals_seeds_and_the_papers_numbers(rows: Rows) -> None:
    greedy, differences = result_tables(rows.rows)
    found = cells(greedy)
    assert list(found) == ["base", "score, after stage1", "score", "no-bonus"]
    # "score" fixes 30% and breaks 0, 10, 20%: c->i = 10 +- 4.302653 * 10 / sqrt 3
    assert found["score"][3:5] == ["30.0 ± 0.0", "10.0 ± 24.8"]
    assert found["score"][2] == "+20.0 ± 24.8"
    assert found["score"][5:] == ["60.0", "64.4", "+4.4", "5.8", "1.4"] and found["no-bonus"][5:] == [
        "60.0",
        "62.6",
        "+2.6",
        "–",
        "–",
    ]
    # One base in all runs: its own interval, Wilson's of 12 correct in 20
    assert found["base"][0].startswith("60.0 [38.7, 78.1]") and found["base"][5:] == [
        "52.6",
        "41.4",
        "−11.2",
        "4.6",
        "15.8",
    ]
    assert [row.seeds for row in greedy.rows] == ["one model", "3 seeds: 0, 1, 2", "3 seeds: 0, 1, 2", "2 seeds: 0, 1"]
    assert "n = 20 problems" in greedy.notes[0] and "t-interval" in greedy.notes[0] and "Wilson" in greedy.notes[0]
    # no-bonus against score, seeds 0 and 1: delta 10 - 30 and 20 - 20, so -10 +- 12.7062 * 10
    assert cells(differences)["no-bonus"][2] == "−10.0 ± 127.1, p = 0.500"
    assert differences.title == "Differences from score, paired by seed"


def test_an_evaluation_is_a_row_of_its_own_unless_it_looks_further_at_a_known_model(tmp_path: Path) -> None:
    two, three = [record(0, ("1", "7"))], [record(0, ("1", "7", "7"))]
    write_run(tmp_path / "mine/seed-0", seed=0, models={"base": two, "stage1": two, "score": two})
    for seed in range(2):
        write_evaluation(tmp_path / f"evals/self-refine/seed-{seed}", three, digest="same", seed=seed)
    write_evaluation(tmp_path / "evals/again", two, digest="same")
    write_evaluation(tmp_path / "evals/three", three, digest="same")
    write_evaluation(tmp_path / "evals/other", three, digest="unknown")
    runs, evaluations = read_sources([tmp_path])
    found = all_rows(group(runs)[0], evaluations)
    assert [(row.label, row.seeds, row.paper) for row in found.rows] == [
        ("base", [0], "base"),
        ("mine, after stage1", [0], None),
        ("mine", [0], "score"),
        ("again", [0], None),
        ("other", [0], None),
        ("self-refine", [0], "self-refine"),  # one model, measured twice with the same outcome
    ]
    assert [(row.label, row.series) for row in found.extra] == [("base", "base")]


def self_refine(folder: Path, base: Sequence[dict[str, Any]], seeds: Sequence[int]) -> None:
    """Write a base prompted as in Self-Refine: no stages, other instructions, other second attempts."""
    revise = 'task.revise=[{text="Feedback?", attempt=false}, "Again."]'
    asked = [record(i, (e["turns"][0]["text"], "0"), model="base") for i, e in enumerate(base)]
    for seed in seeds:
        write_run(folder / f"self-refine/seed-{seed}", seed=seed, models={"base": asked}, changes=["stages={}", revise])


def test_what_every_seed_measures_alike_is_one_measurement(tmp_path: Path) -> None:
    """The greedy base, prompted either way, is no sample of seeds: +- 0.0 over them would mislead."""
    comparison(tmp_path)
    shutil.rmtree(tmp_path / "evals")
    base = [json.loads(line) for line in (tmp_path / "score/seed-0/episodes/eval-base-attempts.jsonl").open()]
    self_refine(tmp_path, base, seeds=(0, 1, 2))
    for seed in range(2):
        models = {"base": base}
        write_run(tmp_path / f"base/seed-{seed}", seed=seed, models=models, changes=["stages={}"])
    found = all_rows(group(read_sources([tmp_path])[0])[0], [])
    greedy, differences, *_ = result_tables(found.rows)
    seeds = {row.label: row.seeds for row in greedy.rows}
    assert seeds["base"] == seeds["self-refine"] == "one model" and seeds["score"] == "3 seeds: 0, 1, 2"
    # 12 of 20 correct at first, none at second: Wilson's interval of 0 of 20 ends at 16.1
    assert cells(greedy)["self-refine"][1] == "0.0 [0.0, 16.1]" and "±" not in " ".join(cells(greedy)["base"])
    # Both are compared with SCoRe, whose seeds differ: delta of the base is -10, and SCoRe's 30, 20, 10.
    assert cells(differences)["base"][2].startswith("−30.0 ± 24.8")
    assert cells(differences)["self-refine"][2].startswith("−80.0 ± 24.8")
    assert all("after Holm's correction over the" in note for note in differences.notes)
    # Its episodes belong to the run that stored them and count once.
    (row,) = [row for row in found.rows if row.label == "base"]
    assert [str(m.source.path) for m in row.measured] == [str(tmp_path / "base/seed-0")]
    assert {d["n"] for d in as_dicts(figure(found, "edits")) if d["label"] == "self-refine"} == {20}


def test_the_base_asked_otherwise_never_passes_for_the_base(tmp_path: Path) -> None:
    base = [record(i, ("7", "7")) for i in range(4)]
    self_refine(tmp_path, base, seeds=(0,))
    assert [row.label for row in all_rows(group(read_sources([tmp_path])[0])[0], []).rows] == ["self-refine"]
    write_run(tmp_path / "base/seed-0", seed=0, models={"base": base}, changes=["stages={}"])
    found = all_rows(group(read_sources([tmp_path])[0])[0], []).rows
    assert [(row.label, row.paper) for row in found] == [("base", "base"), ("self-refine", "self-refine")]


def test_a_run_of_ones_own_beside_a_comparison_has_a_table(tmp_path: Path) -> None:
    carded(tmp_path)
    more = {"base": [record(0, ("7", "7"), model="base")], "score": [record(0, ("7", "7"))]}
    write_run(tmp_path / "mine/seed-0", seed=0, models=more, changes=["stages.score.bonus=7"], base_digest="other")
    tables = result_tables(all_rows(group(read_sources([tmp_path])[0])[0], []).rows)
    (others,) = [table for table in tables if table.title.endswith(": others")]
    assert "mine" in [row.label for row in others.rows]


def carded(folder: Path) -> None:
    """Write a comparison whose methods have cards, as `selfcorrect paper` writes them."""
    comparison(folder)
    shutil.rmtree(folder / "evals")
    for place, key in enumerate(("score", "no-bonus")):
        card = {"key": key, "title": key, "table": "methods" if key == "score" else "ablations", "place": place}
        (folder / key / "method.json").write_text(json.dumps(card))


def test_a_comparison_has_the_tokens_of_training_where_runs_record_them(tmp_path: Path) -> None:
    carded(tmp_path)
    assert "sampled tokens" not in result_tables(all_rows(group(read_sources([tmp_path])[0])[0], []).rows)[1].columns
    for seed in range(3):  # two stages of four steps
        file = tmp_path / f"score/seed-{seed}/metrics.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        write_lines(file, [{**line, "completions": 2, "updates": 1, "sampled_tokens": 10 * seed + 1} for line in lines])
    table = result_tables(all_rows(group(read_sources([tmp_path])[0])[0], []).rows)[1]
    assert table.title.endswith("ablations (Table 4)") and table.groups[1] == ("training of one seed", 3)
    place = table.columns.index("sampled tokens")
    shown = {row.label: [cell.text for cell in row.cells[place - 2 : place + 1]] for row in table.rows}
    assert shown["score"] == ["16", "8", "8 to 168"] and shown["no-bonus"] == ["–", "–", "–"], "earlier runs have none"


def figure(rows: Rows, name: str) -> Figure:
    (found,) = [f for f in episode_figures(rows) if f.id == name]
    return found


def as_dicts(found: Figure) -> list[dict[str, Any]]:
    return [dict(zip(found.columns, row, strict=True)) for row in found.rows]


def test_the_attempts_and_flips_say_the_same_in_numbers_and_in_words(rows: Rows) -> None:
    one, other = attempts_figure(rows.rows), flips_figure(rows.rows)
    score = next(d for d in as_dicts(one) if d["label"] == "score")
    assert (score["acc_t1"], score["acc_t2"], score["seeds"]) == (0.4, 0.6, "0 1 2")
    assert "score: 40.0 to 60.0 (+20.0)" in one.summary
    for d in as_dicts(other):
        assert d["delta"] == pytest.approx(d["i_to_c"] - d["c_to_i"])
    assert "score: 30.0 corrected, 10.0 regressed" in other.summary


def test_edits_are_binned_with_unchanged_texts_apart(rows: Rows) -> None:
    found = [d for d in as_dicts(figure(rows, "edits")) if d["label"] == "base"]
    # One edit over 1 + 1 characters is a ratio of 1/2; of 10 problems 3 change.
    assert found[0]["ratio_up_to"] == 0 and found[0]["share"] == 0.7 and found[0]["n"] == 20
    assert found[-1] == {**found[-1], "ratio_above": 0.45, "ratio_up_to": 0.5, "share": 0.3}
    assert sum(d["share"] for d in found) == pytest.approx(1)


def test_flips_by_difficulty(rows: Rows) -> None:
    found = {(d["label"], d["level"]): d for d in as_dicts(figure(rows, "difficulty"))}
    # In every 10 base episodes number 0 is corrected and 1, 2 regress; even numbers are level 0.
    assert (found["base", "level 0"]["i_to_c"], found["base", "level 0"]["c_to_i"]) == (0.2, 0.2)
    assert (found["base", "level 1"]["i_to_c"], found["base", "level 1"]["c_to_i"]) == (0.0, 0.2)
    assert found["base", "level 0"]["n"] == 10 and found["score", "level 1"]["n"] == 30


def test_difficulty_levels_are_sorted_as_numbers_and_joined_where_there_are_many() -> None:
    assert list(difficulty_levels(["10", "9", "2"])) == ["2", "9", "10"]
    levels = difficulty_levels([str(n) for n in range(24)])
    assert levels["0"] == levels["1"] == "0–1" and levels["23"] == "22–23" and len(set(levels.values())) == 12


def test_more_attempts_and_votes(rows: Rows) -> None:
    longer = as_dicts(figure(rows, "more_attempts"))
    assert [(d["label"], d["attempt"], d["accuracy"]) for d in longer] == [
        ("base", 1, 0.0),
        ("base", 2, 0.5),
        ("base", 3, 1.0),
    ]
    assert longer[0]["low"] == 0 and longer[0]["high"] == pytest.approx(0.1611, abs=1e-4)  # Wilson, 0 of 20
    votes = {(d["kind"], d["responses"]): d["accuracy"] for d in as_dicts(figure(rows, "votes"))}
    # First attempts are 1, 7, 1, 7: a tie goes to the first, incorrect one. All second attempts are correct.
    assert votes == {("parallel", 2): 0, ("sequential", 2): 1, ("parallel", 4): 0, ("sequential", 4): 1}


def test_every_interval_of_one_run_is_the_one_in_its_summary(tmp_path: Path) -> None:
    drawn = [
        record(i, ("7" if (i + s) % 3 else "1", "7", "7" if i % 4 else "0"), sample=s) for i in range(8) for s in (0, 1)
    ]
    write_evaluation(tmp_path / "alone", drawn, digest="d", temperature=0.7, samples=2)
    file = tmp_path / "alone/summary.json"
    summary = json.loads(file.read_text())
    for k, turn in enumerate(summary["results"]["model"]["turns"]):  # what no rule would compute from the accuracy
        turn["accuracy_ci95"] = [0.01 * k, 0.9 + 0.01 * k]
    summary["results"]["model"] |= {"acc_t1_ci95": [0.0, 0.9], "acc_t2_ci95": [0.01, 0.91]}
    file.write_text(json.dumps(summary))
    runs, evaluations = read_sources([tmp_path])
    longer = as_dicts(figure(all_rows(group(runs)[0], evaluations), "more_attempts"))
    assert [(d["low"], d["high"]) for d in longer] == [(0.0, 0.9), (0.01, 0.91), (0.02, 0.92)]


def test_votes_by_hand() -> None:
    samples = [episode(0, texts).graded() for texts in (("1", "7"), ("7", "2"), ("7", "7"), ("", ""))]
    firsts = [sample[0] for sample in samples]
    assert majority_right(firsts)  # 1, 7, 7: two of three votes, no answer has none
    assert not majority_right(firsts[:2]) and majority_right(firsts[1:2]) and not majority_right(firsts[3:])
    assert voted(samples, 2, "parallel") == 0.5  # (1, 7) -> 1, incorrect; (7, none) -> 7, correct
    assert voted(samples, 2, "sequential") == 0.5  # second attempts one by one: 7, 2, 7, none
    assert voted(samples, 4, "sequential") == 1.0  # (7, 2) -> 7; (7, none) -> 7


def test_curves_are_the_steps_and_long_runs_are_means_of_blocks(folder: Path) -> None:
    methods, _ = group(read_sources([folder / "score"])[0])
    (found,) = curves_figure(methods)
    points = as_dicts(found)
    assert len(points) == 3 * 8 and [d["step"] for d in points[:8]] == list(range(1, 9))
    assert [d["stage"] for d in points[:8]] == ["stage1"] * 4 + ["score"] * 4
    assert points[-1]["r2"] == pytest.approx(0.42) and points[-1]["kl_t2"] == pytest.approx(1.2)
    three = [{"stage": stage, "step": n, "r1": 0.5} for stage in "abc" for n in (1, 2)]
    assert [x[:2] for x in curve_points(Run(Path(), {}, "", three, {}, {}))][3:] == [["b", 4], ["c", 5], ["c", 6]]
    rounds = [
        {"stage": "star", "step": 2 * n - k, "round": n, **({"r1": 0.5} if k else {})} for n in (1, 2) for k in (1, 0)
    ]
    points = list(curve_points(Run(Path(), {}, "", [*rounds, {"stage": "b", "step": 1, "r1": 0.5}], {}, {})))
    assert [x[:2] for x in points] == [["star, round 1", 1], ["star, round 2", 2], ["b", 3]], "updates sample nothing"
    long = [{"stage": "a", "step": n, "r1": float(n)} for n in range(1, 3 * MAX_POINTS + 1)]
    binned = list(curve_points(Run(Path(), {}, "", long, {}, {})))
    assert len(binned) == MAX_POINTS and binned[0][1:3] == [2, 2.0] and binned[0][3] is None


# ---------------------------------------------------------------- the archive


def test_the_archive_holds_every_word_of_an_episode(rows: Rows) -> None:
    sources = sources_of(rows)
    archive = pack(sources, 10_000)
    page = unpacked(archive.packed)
    assert not archive.more and archive.episodes == sum(len(s["episodes"]) for s in page["sources"])
    stored = {source.key: list(source.read(10_000)) for source in sources}
    for source in page["sources"]:
        for packed_episode, original in zip(source["episodes"], stored[source["key"]], strict=True):
            number, sample, step, *turns = packed_episode
            problem = [getattr(original, name) for name in ("problem_id", "prompt", "reference", "difficulty")]
            assert (page["problems"][number], sample, step) == (problem, original.sample, original.step)
            for turn, before in zip(turns, original.to_json()["turns"], strict=True):
                text, outcome, extracted, truncated, _ = [*turn, 0, 0, 0][:5]
                assert (text, page["outcomes"][outcome]) == (before["text"], before["verdict"])
                assert (before["text"] if extracted == 0 else extracted) == before["extracted"]
                assert truncated == (before["stop"] == "length")


def test_no_more_is_read_of_a_large_comparison_than_is_shown() -> None:
    read = {"a": 0, "b": 0, "c": 0}
    opened: Counter[str] = Counter()

    def counted(name: str, size: int) -> Source:
        def episodes(limit: int) -> Iterator[StoredEpisode]:
            opened[name] += 1
            for i in range(min(limit, size)):
                read[name] = max(read[name], i + 1)
                yield episode(i, ("6", "7"))

        return Source(name, name, "score", 0, "attempts", episodes)

    archive = pack([counted("a", 1000), counted("b", 3), counted("c", 1000), counted("none", 0)], 43)
    shares = {s["key"]: len(s["episodes"]) for s in unpacked(archive.packed)["sources"]}
    assert shares == {"a": 20, "b": 3, "c": 20} and archive.more
    assert read["b"] == 3 and max(read.values()) <= 22
    assert opened["b"] == opened["none"] == 1, "what is known to be all is not read again"


def test_special_turns_survive() -> None:
    odd = record(0, ("7", ""))
    odd["turns"][0] |= {"stop": "length", "detail": "late", "extracted": "seven"}

    def column() -> list[Any]:
        stored = StoredEpisode.from_json(odd)
        source = Source("k", "m", "score", 0, "attempts", lambda limit: iter([stored]))
        (found,) = to_columns([(source, [stored])])["sources"][0]["episodes"]
        assert isinstance(found, list)
        return found

    assert column()[3:] == [["7", 0, "seven", 1, "late"], ["", 2, None]]
    odd["turns"][1]["checks"] = [{"label": "f(1) == 1", "outcome": "not run", "detail": ""}]
    assert column()[4] == ["", 2, None, 0, 0, [["f(1) == 1", "not run", ""]]]
    odd["turns"][0]["asides"] = [{"text": "The last digit is wrong.", "tokens": [1], "stop": "end"}]
    assert column()[3] == ["7", 0, "seven", 1, "late", 0, ["The last digit is wrong."]]


def test_shares_are_fair_and_long_texts_leave_fewer_episodes() -> None:
    assert fair_shares([10, 2, 10], 12) == [5, 2, 5] and fair_shares([3, 3], 100) == [3, 3]
    assert fair_shares([5, 5], 1) == [0, 1] and fair_shares([], 5) == []
    noise = [episode(i, (base64.b64encode(bytes(range(256)) * 4).decode() + str(i * 7919**5), "7")) for i in range(40)]
    source = Source("k", "m", "score", 0, "attempts", lambda limit: iter(noise[:limit]))
    whole = pack([source], 40)
    assert whole.episodes == 40 and not whole.more and len(whole.packed) < MAX_BYTES
    limited = pack([source], 7)
    assert limited.episodes == 7 and packed(1) == packed(1)


def test_a_page_stays_small_with_long_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfcorrect.report.episode_archive.MAX_BYTES", 3000)
    import random

    letters = random.Random(0)
    texts = ["".join(letters.choices("abcdefghijklmnop", k=300)) for _ in range(60)]
    records = [episode(i, (text, "7")) for i, text in enumerate(texts)]
    archive = pack([Source("k", "m", "score", 0, "attempts", lambda limit: iter(records[:limit]))], 60)
    assert 3 < archive.episodes < 60 and archive.more and len(archive.packed) <= 3000


# ---------------------------------------------------------------- the page


class Page(HTMLParser):
    """The contents of a page: tags with their attributes, ids, visible text, and the packed data."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._inside = ""
        self.feed(text)
        self.data, self.packed = (
            unpacked(re.search(rf'id="{name}">([^<]*)<', text)[1]) if f'id="{name}"></' not in text else None
            for name in ("data", "packed")
        )

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.text += data


def test_the_page_asks_nobody_for_anything(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.html"
    write_report([folder], out)
    text = out.read_text()
    page = Page(text)
    for tag, attributes in page.tags:
        assert "src" not in attributes and tag not in ("iframe", "img", "object", "embed", "base"), (tag, attributes)
        for name in ("href", "action", "data"):
            assert (attributes.get(name) or "#").startswith(("#", "data:,")), (tag, attributes)
    (styles,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    assert "@import" not in styles and "url(" not in styles
    policy = [a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy and policy[0].startswith("default-src 'none'")
    assert out.stat().st_size < 1_000_000  # with its libraries, without many episodes


def test_every_figure_has_words_commands_and_a_csv(folder: Path, tmp_path: Path) -> None:
    write_report([folder], tmp_path / "r.html")
    page = Page((tmp_path / "r.html").read_text())
    figures = [a["data-figure"] for _, a in page.tags if "data-figure" in a]
    assert sorted(figures) == sorted(page.data["figures"]) and len(figures) == 7
    drawn = [a for _, a in page.tags if a.get("role") == "img"]
    assert len(drawn) == 7 and all(len(a["aria-label"] or "") > 40 for a in drawn)
    assert [a["data-csv"] for _, a in page.tags if "data-csv" in a] == figures
    assert page.text.count("Commands") == 7
    assert f"selfcorrect train {folder}/no-bonus/seed-1/config.toml --out again/no-bonus/seed-1" in page.text
    assert "selfcorrect eval --model some/model --task addition" in page.text
    bonus = load_config("demo").stages["score"].bonus
    assert page.text.count(f"\nbonus = {bonus}") == 1 and "seeds 0, 1, 2" in page.text
    ids = [a["id"] for _, a in page.tags if a.get("id")]
    assert len(ids) == len(set(ids))


def test_the_same_directories_give_the_same_page(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.html"
    write_report([folder], out)
    first = out.read_bytes()
    write_report([folder], out)
    assert out.read_bytes() == first


def test_what_models_and_users_write_is_never_markup(tmp_path: Path) -> None:
    evil = "</script><img src=x onerror=alert(1)>"
    episodes = [record(0, (evil, "7"), prompt=evil)]
    write_run(tmp_path / "<img src=x>", seed=0, models={"base": episodes, "score": episodes})
    write_report([tmp_path], tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    assert "<img" not in text and "&lt;img src=x&gt;" in text
    assert unpacked(re.search(r'id="packed">([^<]*)<', text)[1])["problems"][0][1] == evil


def test_evaluations_alone_make_a_page_too(folder: Path, tmp_path: Path) -> None:
    done = write_report([folder / "evals"], tmp_path / "r.html", episodes=0)
    page = Page((tmp_path / "r.html").read_text())
    assert (done.runs, done.evaluations, done.episodes) == (0, 2, 0)
    assert "many, T = 0.7" in page.text and 'id="filters"' not in (tmp_path / "r.html").read_text()


def test_the_command_prints_what_it_made(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new/r.html"
    assert main(["report", str(folder / "score"), "--out", str(out), "--episodes", "50", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {"path": str(out), "runs": 3, "evaluations": 0, "methods": ["score"], "episodes": 50}
    assert main(["report", str(folder / "score/seed-0"), "--out", str(out)]) == 0
    assert f"The report is in {out}: 1 run, " in capsys.readouterr().out
    few = [str(folder / "score/seed-0"), str(folder / "no-bonus/seed-0"), "--out", str(out), "--episodes", "1"]
    assert main(["report", *few, "--tables", "markdown"]) == 0
    markdown = capsys.readouterr().out
    assert "| | Acc@t1 | Acc@t2 | delta | i→c | c→i |" in markdown and "\n| no-bonus | " in markdown
    assert main(["report", *few, "--tables", "text"]) == 0
    assert markdown.splitlines()[0].strip("*") in capsys.readouterr().out
    assert main(["report", *few, "--tables", "text", "--json"]) == 0
    tables = json.loads(capsys.readouterr().out)["tables"]
    assert {row["row"] for row in tables[0]["rows"]} >= {"base", "score", "no-bonus"}


def test_the_table_of_every_method_agrees_with_the_others(rows: Rows) -> None:
    whole, greedy, differences, *_ = [overview_table(rows.rows), *result_tables(rows.rows)]
    shown = {line.label: dict(zip(whole.columns, line.cells, strict=True)) for line in whole.rows}
    assert list(shown) == [row.label for row in rows.rows if row.final], "the last models alone, in order"
    for line in greedy.rows:
        if not line.minor:
            cells = dict(zip(METRICS.values(), line.cells, strict=False))  # the paper's own numbers follow ours
            assert all(shown[line.label][name] == cells[name] for name in ("Acc@t1", "Acc@t2", "delta", "c→i"))
    changes = {line.label: line.cells[differences.columns.index("Acc@t2")] for line in differences.rows}
    assert changes and all(shown[label]["Acc@t2 difference"] == cell for label, cell in changes.items())
    assert shown["score"]["Acc@t2 difference"].value == "–", "nothing differs from itself"
    assert not any("draft" in column for column in whole.columns), "no controls were measured here"


def test_seed_by_seed_every_run_has_its_own_interval(rows: Rows) -> None:
    table = seed_table(rows.rows)
    found = {line.label: [cell.text for cell in line.cells] for line in table.rows}
    assert {"score, seed 0", "score, seed 1", "score, seed 2", "score, after stage1, seed 1"} <= set(found)
    assert found["score, seed 1"][1].startswith("60.0 [") and found["score, seed 1"][2].startswith("+20.0 [")
    markdown = table_markdown(result_tables(rows.rows)[0], minor=True)
    assert "| score, after stage1 |" in markdown
    assert "| score, after stage1 |" not in table_markdown(result_tables(rows.rows)[0])


def test_older_and_newer_settings_of_one_method_are_one_method(tmp_path: Path) -> None:
    """A run that was recorded with ``attempt = false`` and one with ``role = "feedback"`` asked the same."""
    base = [record(i, ("7", "0"), model="base") for i in range(4)]
    self_refine(tmp_path, base, seeds=(0, 1))
    config = tmp_path / "self-refine/seed-0/config.toml"
    text = config.read_text("utf-8")
    assert text.count('role = "feedback"') == 1
    config.write_text(text.replace('role = "feedback"', "attempt = false"), "utf-8")
    methods, repeated = group(read_sources([tmp_path])[0])
    assert [(method.name, method.seeds) for method in methods] == [("self-refine", [0, 1])] and not repeated


def test_the_figure_draws_every_model_and_is_the_same_each_time(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    out, figure = tmp_path / "r.html", tmp_path / "new/attempts.svg"
    command = ["report", str(folder), "--out", str(out), "--episodes", "0", "--figure", str(figure)]
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["figure"] == str(figure)
    drawn = figure.read_text("utf-8")
    texts = set(re.findall(r"<!-- (.*?) -->", drawn))
    assert {"base", "score", "no-bonus", "first attempt", "-10.0", "+20.0", "+15.0"} <= texts
    assert "score, after stage1" not in texts
    assert main(command) == 0 and figure.read_text("utf-8") == drawn


def test_a_figure_that_cannot_be_drawn_is_refused_before_the_work(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "r.html"
    command = ["report", str(folder), "--out", str(out), "--figure"]
    assert main([*command, str(tmp_path / "x.png")]) == 2
    assert "must end in .svg" in capsys.readouterr().err
    monkeypatch.setattr("selfcorrect.report.attempts_svg.find_spec", lambda name: None)
    assert main([*command, str(tmp_path / "x.svg")]) == 2
    assert 'pip install "selfcorrect[figures]"' in capsys.readouterr().err and not out.exists()


def test_models_with_one_attempt_have_no_such_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    write_run(tmp_path / "runs/one", seed=0, models={"score": [record(0, ("7",))]})
    command = ["report", str(tmp_path / "runs"), "--out", str(tmp_path / "r.html"), "--figure", str(tmp_path / "x.svg")]
    assert main(command) == 2
    assert "no model here has second ones" in capsys.readouterr().err


def test_a_run_can_be_made_again_from_its_own_settings(folder: Path) -> None:
    runs, evaluations = read_sources([folder])
    methods, _ = group(runs)
    commands = Commands(methods, evaluations)
    (run,) = (run for run in runs if run.path == folder / "score/seed-1")
    command = commands.of_run(run).split()
    assert command[:2] == ["selfcorrect", "train"] and load_config(command[2]).seed == 1
    lines = [*map(commands.of_run, runs), *map(commands.of_evaluation, evaluations)]
    places = [line.split()[line.split().index("--out") + 1] for line in lines]
    assert "again/score/seed-1" in places and len(set(places)) == len(places), "each has a separate place"


def test_a_runs_model_is_evaluated_where_the_run_is_made_again(folder: Path) -> None:
    methods, _ = group(read_sources([folder / "score"])[0])
    (evaluation, *_) = read_sources([folder / "evals"])[1]
    run = methods[0].runs[1]
    digest = run.digests[run.final]
    of_run = replace(evaluation, identity={**evaluation.identity, "model": {"digest": digest, "source": "elsewhere"}})
    command = Commands(methods, [of_run]).of_evaluation(of_run)
    assert "--model again/score/seed-1 " in command and "elsewhere" not in command
    assert f"--model {evaluation.model} " in Commands(methods, [evaluation]).of_evaluation(evaluation)


def test_a_log_ends_at_its_last_whole_line(tmp_path: Path) -> None:
    write_lines(tmp_path / "log.jsonl", [{"a": 1}, {"a": 2}])
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"a": 3')
    assert list(stored_lines(tmp_path / "log.jsonl")) == [{"a": 1}, {"a": 2}]
    assert list(stored_lines(tmp_path / "missing.jsonl")) == []


def test_an_empty_page_still_renders() -> None:
    assert "Runs and configurations" in rendered([], [], Rows([]), pack([], 0))


def test_rows_of_different_problems_are_named_and_not_tested_against_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, limit in (("a", 6), ("b", 6), ("c", 8)):
        evaluate(tiny_model(3), "addition", limit=limit, max_tokens=5, device="cpu", out=tmp_path / name)
    same = write_report([tmp_path / "a", tmp_path / "b"], tmp_path / "same.html")
    assert same.problem_sets == {} and "different problems" not in (tmp_path / "same.html").read_text()
    found = write_report([tmp_path / name for name in "abc"], tmp_path / "r.html")
    assert found.problem_sets == {
        "A": "6 problems of addition, split test, data seed 0 (a, b)",
        "B": "8 problems of addition, split test, data seed 0 (c)",
    }
    page = (tmp_path / "r.html").read_text()
    assert "These rows answer different problems." in page and "<li>Problems B: 8 problems of addition" in page
    for table in result_tables(found.rows.rows):
        assert [row.seeds.rpartition("; ")[2] for row in table.rows] == ["problems A", "problems A", "problems B"]
        assert "they are not comparable (A: a, b; B: c)" in " ".join(table.notes)
    assert main(["report", *(str(tmp_path / name) for name in "abc"), "--out", str(tmp_path / "r.html")]) == 0
    assert "the rows answer different problems, so their differences say nothing about" in capsys.readouterr().err


def test_seeds_on_different_problems_are_not_paired(rows: Rows) -> None:
    def tested(every: Sequence[Row]) -> list[str]:
        return [row.label for table in result_tables(every) if table.id == "differences" for row in table.rows]

    there = tested(rows.rows)
    assert "no-bonus" in there
    elsewhere = [replace(row, problem_set="B" if row.label == "no-bonus" else "A") for row in rows.rows]
    assert tested(elsewhere) == [label for label in there if label != "no-bonus"]
    score, other = (next(row for row in elsewhere if row.label == label) for label in ("score", "no-bonus"))
    assert other.against(score) == (None, None) and score.against(score)[0] is not None
