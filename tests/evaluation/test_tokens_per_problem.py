"""Test how many tokens a model samples for a problem: what counts, the interval, and every table that shows it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from support.stored_runs import comparison, record, write_evaluation, write_run

from selfcorrect.errors import DataError
from selfcorrect.evaluation.evaluation import evaluation_of
from selfcorrect.evaluation.flat_metrics import flat_metrics
from selfcorrect.evaluation.intervals import mean_interval
from selfcorrect.evaluation.tokens_per_problem import TokensPerProblem, tokens_per_problem
from selfcorrect.report.html import write_report
from selfcorrect.report.methods import group
from selfcorrect.report.rows import Row, all_rows
from selfcorrect.report.sources import read_evaluation, read_sources
from selfcorrect.report.tables import overview_table, result_tables
from selfcorrect.report.terminal import all_tables
from selfcorrect.storage.episode_log import StoredEpisode, StoredTurn
from selfcorrect.types import Outcome, Part, Role, StopReason, Verdict

RESULTS = Path(__file__).parents[2] / "results"
T_1 = 12.706204736
"""Student's quantile for 95% with one degree of freedom, from a table."""


def turn(tokens: int, role: Role = Role.ATTEMPT, **more: Any) -> StoredTurn:
    verdict = Verdict(Outcome.INCORRECT, "1") if role is Role.ATTEMPT else None
    return StoredTurn("1", (5,) * tokens, more.pop("stop", StopReason.END), verdict, role, **more)


def episode(problem: str, *turns: StoredTurn) -> StoredEpisode:
    return StoredEpisode("s", 0, problem, 0, "1+1=", "2", None, turns)


def skipped(role: Role = Role.ATTEMPT) -> StoredTurn:
    return turn(0, role, stop=StopReason.SKIPPED, online=False, counted=0)


# ---------------------------------------------------------------- what counts


def test_verifications_and_feedback_count_and_skipped_turns_do_not() -> None:
    revised = episode("a", turn(3), turn(2, Role.VERIFICATION), turn(4))
    stopped = episode("b", turn(3), turn(2, Role.VERIFICATION), skipped())
    found = tokens_per_problem([revised, stopped])
    # 9 and 5 tokens: mean 7, standard error (9 - 5) / 2 = 2; attempts have 7 and 3 of them
    assert found is not None and (found.mean, found.attempts, found.other) == (7.0, 5.0, 2.0)
    assert found.ci95 == pytest.approx((7 - 2 * T_1, 7 + 2 * T_1))
    told = tokens_per_problem([episode("a", turn(3), turn(6, Role.FEEDBACK), turn(1))])
    assert told == TokensPerProblem(10.0, None, 4.0, 6.0)
    ended = episode("a", turn(3), turn(1, Role.VERIFICATION), skipped(), skipped(Role.VERIFICATION), skipped())
    assert tokens_per_problem([ended]) == TokensPerProblem(4.0, None, 3.0, 1.0)


def test_a_draft_that_is_given_costs_nothing() -> None:
    found = tokens_per_problem(
        [episode("a", turn(30, online=False), turn(4)), episode("b", turn(9, online=False), turn(4))]
    )
    assert found == TokensPerProblem(4.0, None, 4.0, 0.0), "both problems take 4, so there is no spread"


def test_lengths_of_a_server_are_its_own_and_unknown_ones_leave_no_mean() -> None:
    told, silent = turn(0, counted=7), turn(0, counted=None)
    failed = turn(0, counted=None, stop=StopReason.FAILED)
    assert tokens_per_problem([episode("a", told, told)]) == TokensPerProblem(14.0, None, 14.0, 0.0)
    assert tokens_per_problem([episode("a", told, told), episode("b", told, silent)]) is None
    # A conversation in which the server did not answer is no conversation that costs little.
    assert tokens_per_problem([episode("a", told, told), episode("b", told, failed)]) == TokensPerProblem(
        14.0, None, 14.0, 0.0
    )
    assert tokens_per_problem([episode("b", failed, failed)]) is None and tokens_per_problem([]) is None


# ---------------------------------------------------------------- the interval


def test_samples_of_a_problem_are_one_observation() -> None:
    several = [episode("a", turn(1)), episode("b", turn(5)), episode("a", turn(3))]
    found = tokens_per_problem(several)
    # 9 tokens in 3 conversations. Residuals 4 - 2 * 3 and 5 - 3, times 2 / 3; so the standard error is 4 / 3.
    assert found is not None and found.mean == 3.0
    assert found.ci95 == pytest.approx((3 - 4 / 3 * T_1, 3 + 4 / 3 * T_1))
    assert found == tokens_per_problem(several[::-1]), "in any order"


def test_with_equally_many_samples_it_is_students_of_the_problems_means() -> None:
    counts_PS = np.random.default_rng(0).integers(1, 400, (17, 4))
    low, high = mean_interval(counts_PS.sum(1).tolist(), [4] * 17) or (math.nan, math.nan)
    means_P = counts_PS.mean(1)
    expected = stats.t.interval(0.95, 16, loc=means_P.mean(), scale=stats.sem(means_P))
    assert (low, high) == pytest.approx(expected, rel=1e-12)
    assert mean_interval([3, 6], [1, 2]) is None and mean_interval([8], [1]) is None


# ---------------------------------------------------------------- where it stands


def results(records: Sequence[dict[str, Any]], sampled: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    parts = {Part.ATTEMPTS: records, Part.SAMPLED: sampled}
    stored = {part: [StoredEpisode.from_json(r) for r in found] for part, found in parts.items() if found}
    return evaluation_of(stored, seed=0).to_json()


def verified(number: int, first: str, second: str | None, verdict: str = "no") -> dict[str, Any]:
    """Return a stored conversation with a verification; without a second text, the second attempt was skipped."""
    found = record(number, (first, first if second is None else second))
    if second is None:
        found["turns"][1] |= {"tokens": [], "token_count": 0, "stop": "skipped", "online": False}
    said = {"text": verdict, "tokens": [1] * len(verdict), "stop": "end", "online": True, "said": "wrong"}
    found["turns"][1]["asides"] = [{**said, "role": "verification"}]
    return found


def test_a_summary_has_the_tokens_of_the_attempts_and_of_the_samples() -> None:
    sampled = [record(i, ("777", "77")) for i in range(3)]
    found = results([verified(0, "6", "77"), verified(1, "7", None)], sampled)
    assert (found["tokens_per_problem"], found["tokens_per_problem_attempts"]) == (4.0, 2.0)
    assert found["tokens_per_problem_other"] == 2.0, "a verification of two tokens each"
    assert found["tokens_per_problem_ci95"] == pytest.approx([4 - T_1, 4 + T_1])
    assert (found["sampled"]["tokens_per_problem"], found["sampled"]["tokens_per_problem_ci95"]) == (5.0, None)
    flat = flat_metrics(found)
    assert (flat["tokens_per_problem"].value, flat["sampled_tokens_per_problem"].value) == (4.0, 5.0)
    assert flat["tokens_per_problem"].ci95 == tuple(found["tokens_per_problem_ci95"])


def test_the_terminal_has_them_next_to_the_lengths() -> None:
    found = results([verified(0, "6", "77"), verified(1, "7", None)])
    line = "  m, tokens: 4.0 per problem [-8.7, 16.7], of which 2.0 are not in attempts; t1 mean 1.0, max 1; t2 mean 1.0, max 2"
    assert line in all_tables({"m": found}).splitlines()
    older = {name: value for name, value in found.items() if not name.startswith("tokens_per_problem")}
    assert "  m, tokens: t1 mean 1.0, max 1; t2 mean 1.0, max 2" in all_tables({"m": older}).splitlines()
    assert "tokens: " not in all_tables({"m": older | {"lengths": []}})


def rows_of(folder: Path) -> Sequence[Row]:
    runs, evaluations = read_sources([folder])
    return all_rows(group(runs)[0], evaluations).rows


def add_tokens(run: Path, model: str) -> None:
    """Give the stored results of a model what this version counts."""
    summary = json.loads((run / "summary.json").read_text())
    episodes = [
        StoredEpisode.from_json(json.loads(line)) for line in (run / f"episodes/eval-{model}-attempts.jsonl").open()
    ]
    found = tokens_per_problem(episodes)
    assert found is not None
    summary["results"][model] |= found.to_json()
    (run / "summary.json").write_text(json.dumps(summary))


def test_the_tables_have_a_column_and_a_dash_for_results_of_earlier_versions(tmp_path: Path) -> None:
    comparison(tmp_path)
    assert "tokens per problem" not in result_tables(rows_of(tmp_path))[0].columns, "none of them has any"
    for seed in range(3):
        add_tokens(tmp_path / f"score/seed-{seed}", "score")
    for table in (overview_table(rows_of(tmp_path)), result_tables(rows_of(tmp_path))[0]):
        place = table.columns.index("tokens per problem")
        shown = {line.label: line.cells[place].text for line in table.rows}
        assert shown["score"] == "2.0 ± 0.0" and shown["base"] == shown["no-bonus"] == "–"
        assert any(note.startswith("Tokens per problem: ") and "In verifications" not in note for note in table.notes)
    assert dict(result_tables(rows_of(tmp_path))[0].groups)["here"] == 6
    write_report([tmp_path], tmp_path / "report.html")
    assert "tokens per problem</th>" in (tmp_path / "report.html").read_text()


def test_the_tables_say_how_many_are_not_in_attempts(tmp_path: Path) -> None:
    records = [verified(i, "6", "77" if i % 2 else None) for i in range(8)]
    write_run(tmp_path / "pag/seed-0", seed=0, models={"base": records, "score": records})
    add_tokens(tmp_path / "pag/seed-0", "score")
    (table,) = [table for table in result_tables(rows_of(tmp_path)) if "tokens per problem" in table.columns]
    # 1 + 2 tokens, and 2 more for half of the problems: mean 4, standard deviation sqrt(8 / 7)
    half = 2.364624251 * math.sqrt(8 / 7 / 8)
    shown = {line.label: line.cells[5].text for line in table.rows}
    assert shown["pag"] == f"4.0 [{4 - half:.1f}, {4 + half:.1f}]"
    assert any("In verifications and feedback: pag 2.0." in note for note in table.notes)


@pytest.mark.skipif(not RESULTS.is_dir(), reason="a source distribution has no results/")
def test_the_table_of_every_method_has_merit_and_what_delta_is_made_of() -> None:
    """These are stored results of an earlier version, which has no tokens."""
    runs, evaluations = read_sources([RESULTS / "tuned-addition" / name for name in ("score", "single-turn")])
    rows = all_rows(group(runs)[0], evaluations).rows
    whole, tables = overview_table(rows), {table.id: table for table in result_tables(rows)}
    columns = {name: [line.cells[i] for line in whole.rows] for i, name in enumerate(whole.columns)}
    labels = [line.label for line in whole.rows]
    for name, source in {
        "H": "made_of",
        "M1": "made_of",
        "keep": "made_of",
        "repair": "made_of",
        "J": "detection",
    }.items():
        table = tables[source]
        place = table.columns.index(name)
        expected = {line.label: line.cells[place] for line in table.rows}
        assert any(cell.value != "–" for cell in columns[name]), name
        assert columns[name] == [expected[label] for label in labels if label in expected], name
    assert "tokens per problem" not in columns


def test_damaged_tokens_are_named(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "e", [record(0, ("7", "7"))], digest="d")
    file = tmp_path / "e/summary.json"
    summary = json.loads(file.read_text())
    for name, value in (("tokens_per_problem", "many"), ("tokens_per_problem_ci95", [1])):
        file.write_text(json.dumps({"results": {"model": {**summary["results"]["model"], name: value}}}))
        with pytest.raises(DataError, match=rf"results\.model\.{name}"):
            read_evaluation(tmp_path / "e")
