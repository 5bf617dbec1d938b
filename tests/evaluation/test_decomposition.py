"""What delta is made of: identities, the blind drafts that measure it, and stored results."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.chat_server import Answer, fails, says, serving
from support.models import tiny_model

from selfcorrect.errors import DataError
from selfcorrect.evaluation import evaluate as evaluation_run
from selfcorrect.evaluation.blind_drafts import shuffled_words
from selfcorrect.evaluation.compare import compare, compare_records, comparison_text
from selfcorrect.evaluation.decomposition import (
    DETECTED,
    SHOWN,
    broken_identity,
    changed_answers,
    detection,
    of_samples,
    parts_of_delta,
    stored_parts,
    terms,
)
from selfcorrect.evaluation.evaluate import evaluate
from selfcorrect.evaluation.evaluation import BLIND
from selfcorrect.evaluation.intervals import tango_interval
from selfcorrect.report.delta_tables import delta_tables
from selfcorrect.report.figures import made_of_figure
from selfcorrect.report.glosses import GLOSSES
from selfcorrect.report.methods import group
from selfcorrect.report.rows import Measured, Row, all_rows
from selfcorrect.report.sources import Run, read_evaluation, read_sources
from selfcorrect.report.tables import result_tables
from selfcorrect.report.terminal import all_tables, decomposition_table, dependence_table, detection_table
from selfcorrect.storage.episode_log import StoredEpisode, StoredTurn, read_episodes
from selfcorrect.types import Attempt, Outcome, Part, StopReason, Verdict

RESULTS = Path(__file__).parents[2] / "results"
ADDITION = {"limit": 6, "max_tokens": 5, "device": "cpu"}

# every pattern of (r1, r2, b, f), each a different number of times
PATTERNS = [p for count, p in enumerate(itertools.product([False, True], repeat=4), 1) for _ in range(count)]
FIRST, SECOND, BLIND_RIGHT, REFERENCE = np.array(PATTERNS, dtype=bool).T
IDS = [str(i) for i in range(len(PATTERNS))]


def random_flags(seed: int, n: int, *chances: float) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.random(n) < chance for chance in chances]


# ---------------------------------------------------------------- terms of delta


def test_the_terms_are_those_of_the_equation_and_add_up_to_delta() -> None:
    r1, r2, b, f = (x.astype(int) for x in (FIRST, SECOND, BLIND_RIGHT, REFERENCE))
    found = parts_of_delta(IDS, FIRST, SECOND, BLIND_RIGHT, seed=0)
    assert found.re_answering == pytest.approx(np.mean(b - r1))
    assert found.keep == pytest.approx(np.mean(r1 * (r2 - b)))
    assert found.repair == pytest.approx(np.mean((1 - r1) * (r2 - b)))
    assert found.reading == pytest.approx(found.keep + found.repair)
    assert found.re_answering + found.reading == pytest.approx(np.mean(r2 - r1))
    parts = {
        name: after.astype(int) - before
        for name, (before, after) in terms(FIRST, SECOND, BLIND_RIGHT, REFERENCE).items()
    }
    assert np.array_equal(parts["held_back"], f - r1) and np.array_equal(parts["re_answering"], b - f)
    assert np.array_equal(sum(parts.values()), r2 - r1)
    lost = int(((r1 == 1) & (r2 == 0) & (b == 1)).sum())
    gained = int(((r1 == 1) & (r2 == 1) & (b == 0)).sum())
    assert found.keep_ci95 == tango_interval(gained, lost, len(IDS))


def test_a_copier_pays_for_what_it_keeps_and_another_sample_reads_nothing() -> None:
    first, blind = random_flags(0, 400, 0.5, 0.3)
    copier = parts_of_delta(list(map(str, range(400))), first, first, blind, seed=0)
    assert copier.re_answering + copier.keep + copier.repair == pytest.approx(0)
    assert copier.keep > 0 > copier.repair and copier.repair_ci95[1] < 0
    again = parts_of_delta(list(map(str, range(400))), first, blind, blind, seed=0)
    assert (again.keep, again.repair, again.reading) == (0, 0, 0) and again.reading_ci95[0] < 0 < again.reading_ci95[1]


def test_several_samples_of_a_problem_are_resampled_together() -> None:
    """Ten copies of each episode tell no more than one."""
    first, second, blind = random_flags(1, 60, 0.4, 0.7, 0.5)
    ids = list(map(str, range(60)))
    one = parts_of_delta(ids, first, second, blind, seed=0)
    ten = parts_of_delta(ids * 10, *(np.tile(x, 10) for x in (first, second, blind)), seed=0)
    assert ten.repair == pytest.approx(one.repair)
    width = [x.repair_ci95[1] - x.repair_ci95[0] for x in (one, ten)]
    assert width[1] == pytest.approx(width[0], rel=0.15)


# ---------------------------------------------------------------- detection, several samples


def attempt(right: bool, answer: str) -> Attempt:
    return Attempt(Outcome.CORRECT if right else Outcome.INCORRECT, answer, answer, False)


def test_flips_are_detection_times_correction() -> None:
    first, second, changed = random_flags(2, 300, 0.6, 0.7, 0.4)
    changed |= first != second
    found = detection(list(map(str, range(300))), first, second, changed, seed=0)
    assert (1 - first.mean()) * found.changed_if_incorrect * found.fixed == pytest.approx(np.mean(~first & second))
    assert first.mean() * found.changed_if_correct * found.broken == pytest.approx(np.mean(first & ~second))
    assert found.youden == found.changed_if_incorrect - found.changed_if_correct
    assert found.youden_ci95[0] < found.youden < found.youden_ci95[1]
    all_right = detection(["a", "b"], *([np.array([True, True])] * 2), np.array([False, False]), seed=0)
    assert (all_right.changed_if_incorrect, all_right.youden, all_right.broken) == (None, None, None)
    twice = detection([str(i // 2) for i in range(300)], first, second, changed, seed=0)
    assert twice.youden == pytest.approx(found.youden) and twice.fixed_ci95 is not None


def test_a_verdict_that_changes_is_a_changed_answer() -> None:
    """The verifier may time out on one of two equal answers; without this the identity would break."""
    pairs = [(attempt(False, "7"), attempt(True, "7")), (attempt(True, "7"), attempt(True, "7"))]
    assert changed_answers([*pairs, (attempt(False, "7"), attempt(False, "8"))]).tolist() == [True, False, True]


def test_lifts_add_up_to_delta_and_d_is_the_within_problem_difference() -> None:
    first, second = random_flags(3, 80, 0.5, 0.6)
    ids = [str(i // 8) for i in range(80)]
    found = of_samples(ids, first, second, seed=0)
    assert found is not None and found.samples == 8
    wrong = 1 - first.mean()
    assert wrong * found.lift_incorrect + (1 - wrong) * found.lift_correct == pytest.approx(
        second.mean() - first.mean()
    )
    by_hand = [
        second[i : i + 8][first[i : i + 8]].mean() - second[i : i + 8][~first[i : i + 8]].mean()
        for i in range(0, 80, 8)
        if 0 < first[i : i + 8].sum() < 8
    ]
    assert found.mixed == len(by_hand) and found.d == pytest.approx(np.mean(by_hand))
    assert found.d_ci95 is not None and found.d_ci95[0] < found.d < found.d_ci95[1]
    copier = of_samples(ids, first, first, seed=0)
    assert copier is not None and copier.d == 1 and copier.d_ci95 is None, "no spread, no interval"
    assert of_samples([str(i // 3) for i in range(80)], first, second, seed=0) is None, "fewer than 4 samples"


# ---------------------------------------------------------------- drafts


def test_shuffled_words_are_the_same_words_and_leave_the_reasoning_out() -> None:
    rng = np.random.default_rng
    text = "<think>12? No, 15.</think>The sum of both is 15"
    assert sorted(shuffled_words(text, rng(0)).split()) == ["15", "The", "both", "is", "of", "sum"]
    assert shuffled_words(text, rng(0)) != shuffled_words(text, rng(1))
    assert (
        sorted(shuffled_words("0076901", rng(0))) == sorted("0076901")
        and shuffled_words("0076901", rng(0)) != "0076901"
    )
    assert sorted(shuffled_words("7 7 8 8", rng(0)).split()) == [*"7788"] and "7 7" in shuffled_words("77 77", rng(1))
    assert shuffled_words("", rng(0)) == shuffled_words("<think>endless", rng(0)) == ""


def test_three_blind_drafts_of_a_local_model(tmp_path: Path) -> None:
    found = evaluate(
        tiny_model(3),
        "addition",
        controls=True,
        temperature=1.0,
        samples=4,
        sampled=False,
        out=tmp_path / "e",
        **ADDITION,
    )
    stored = {part: list(read_episodes(tmp_path / f"e/episodes/eval-{part}.jsonl")) for part in BLIND}
    assert [episode.attempts[0].text for episode in stored[Part.EMPTY]] == [""] * 24
    for own, shuffled in zip(found.episodes, stored[Part.SHUFFLED], strict=True):
        draft = shuffled.attempts[0]
        assert (own.problem_id, own.sample) == (shuffled.problem_id, shuffled.sample)
        assert Counter(draft.text.replace(" ", "")) <= Counter(own.attempts[0].text.replace(" ", ""))
        assert len(draft.tokens) <= max(1, len(own.attempts[0].tokens)) and not draft.online
    made_of = found.decomposition
    assert made_of is not None and [*made_of.blind] == [*BLIND.values()] and made_of.samples is not None
    parts = found.to_json()["decomposition"]["blind"]
    for name, part in BLIND.items():
        control = found.to_json()["controls"][part]
        assert control["difference"] == pytest.approx(-parts[part]["reading"]), name
        assert parts[part]["re_answering"] + parts[part]["reading"] == pytest.approx(found.results.delta)
    conclusion = found.to_json()["decomposition"]["conclusion"]
    assert conclusion["reads"] == conclusion["behaviour"] == "cannot be told", "a random model on six problems"
    assert "reads" not in found.to_json()["decomposition"] and found.conclusion is not None
    read_evaluation(tmp_path / "e")
    compared = compare(tmp_path / "e", tmp_path / "e")
    assert compared.conclusions == (found.conclusion, found.conclusion)
    lines = comparison_text(compared, "a", "b").splitlines()
    assert set(found.conclusion.lines("A") + found.conclusion.lines("B")) <= set(lines)
    assert compared.to_json()["conclusions"] == [conclusion, conclusion]
    same = evaluate(tiny_model(3), "addition", controls=True, temperature=1.0, samples=4, sampled=False, **ADDITION)
    assert same.to_json() == found.to_json(), "shuffled by place, not by chance"


def test_a_finished_evaluation_of_an_earlier_version_keeps_its_one_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**ADDITION, "controls": True, "sampled": False, "out": tmp_path / "e"}
    with monkeypatch.context() as earlier:
        earlier.setattr(evaluation_run, "_blind_drafts", lambda directory: [Part.SWAP])
        evaluate(tiny_model(3), "addition", **settings)
    before = {path: path.read_bytes() for path in (tmp_path / "e").rglob("*") if path.is_file()}
    again = evaluate(tiny_model(3), "addition", **settings)
    assert again.decomposition is not None and [*again.decomposition.blind] == ["draft_swap"]
    assert {path: path.read_bytes() for path in (tmp_path / "e").rglob("*") if path.is_file()} == before


def test_a_server_that_takes_no_empty_message_has_two_blind_drafts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def picky(body: dict[str, Any]) -> Answer:
        empty = any(not message["content"] for message in body["messages"])
        return fails(400, "content must not be empty") if empty else says("0 1")

    with serving(picky) as server:
        found = evaluate("m", "addition", base_url=server.url, limit=4, controls=True, out=tmp_path / "e")
        asked = len(server.asked)
        refused = [body for body in server.asked if any(not m["content"] for m in body["messages"])]
        again = evaluate("m", "addition", base_url=server.url, limit=4, controls=True, out=tmp_path / "e")
        assert len(server.asked) == asked, "a finished evaluation asks nothing more"
    assert [*found.controls] == ["independent_resample", "draft_swap", "shuffled_draft"] and found.failures is None
    assert len(refused) == 1, "one conversation tells"
    assert caplog.text.count("the control with an empty draft is left out") == 1 and "must not be empty" in caplog.text
    assert again.to_json() == found.to_json()
    assert not (tmp_path / "e/episodes/eval-empty.jsonl").exists()


# ---------------------------------------------------------------- stored results


@pytest.mark.skipif(not RESULTS.is_dir(), reason="a source distribution has no results/")
def test_results_of_earlier_versions_have_the_terms_of_their_one_draft() -> None:
    expected = {
        "paper/score": (26.9, -19.7, 46.6),
        "paper/pair-sft": (92.2, 51.2, 41.1),
        "paper-worked_sums/pair-sft": (6.2, 5.0, 1.2),
    }
    for folder, figures in expected.items():
        found = []
        for seed in range(5):
            results = json.loads((RESULTS / folder / f"seed-{seed}/summary.json").read_text())["results"]
            for result in results.values():
                for parts in stored_parts(result).values():
                    assert sum(term.value for term in parts.values()) == pytest.approx(result["delta"], abs=1e-9)
            final = results[[*results][-1]]
            parts = stored_parts(final)["draft_swap"]
            found.append((final["delta"], parts["re_answering"].value, parts["reading"].value))
        assert [round(100 * float(x), 1) for x in np.mean(found, axis=0)] == pytest.approx(figures, abs=0.11), folder


RATES: dict[str, Any] = {
    "changed_if_incorrect": 0.6,
    "changed_if_correct": 0.1,
    "fixed": 0.75,
    "broken": 0.5,
    "youden": 0.5,
    "youden_ci95": [0.4, 0.6],
}


def made(**changes: Any) -> dict[str, Any]:
    parts = {"acc_blind": 0.4, "re_answering": -0.1, "keep": 0.25, "repair": 0.1, "reading": 0.35}
    parts |= {f"{name}_ci95": [value - 0.05, value + 0.05] for name, value in parts.items() if name != "acc_blind"}
    other = {**parts, "re_answering": 0.3, "reading": -0.05, "repair": -0.3, "reading_ci95": [-0.1, 0.0]}
    samples = {"samples": 8, "d": 0.039, "d_ci95": None, "lift_incorrect": 0.2, "lift_incorrect_ci95": [0.1, 0.3]}
    samples |= {"lift_correct": 0.15, "lift_correct_ci95": [0.1, 0.2]}
    blind = {"draft_swap": parts, "empty_draft": other}
    whole = {"detection": RATES, "blind": blind, "reads": False, "samples": samples}
    return {
        "n": 100,
        "acc_t1": 0.5,
        "delta": 0.25,
        "delta_ci95": [0.2, 0.3],
        "i_to_c": 0.225,
        "c_to_i": 0.025,
        "decomposition": whole,
        **changes,
    }


def test_a_summary_whose_terms_do_not_add_up_was_edited() -> None:
    good = made()
    assert broken_identity(good) is None and broken_identity({"acc_t1": 0.5, "delta": None}) is None
    assert "add up" in str(broken_identity(made(delta=0.3)))
    assert "i_to_c" in str(broken_identity(made(i_to_c=0.3)))
    good["decomposition"]["blind"]["empty_draft"]["reading"] = 0.2
    assert "empty_draft" in str(broken_identity(good))


def test_an_edited_decomposition_is_not_reported(tmp_path: Path) -> None:
    evaluate(tiny_model(3), "addition", controls=True, sampled=False, out=tmp_path / "e", **ADDITION)
    summary = json.loads((tmp_path / "e/summary.json").read_text())
    del summary["seal"]
    summary["results"]["model"]["decomposition"]["blind"]["draft_swap"]["keep"] = 0.5
    (tmp_path / "e/summary.json").write_text(json.dumps(summary))
    with pytest.raises(DataError, match="its terms with the control draft_swap add up to another value"):
        read_evaluation(tmp_path / "e")


def test_the_terminal_shows_what_delta_is_made_of() -> None:
    found = decomposition_table({"m": made()})
    _, head, figures, intervals, ranges, *glosses, drafts, behaviour = found.splitlines()
    assert glosses == [*GLOSSES["made_of"]]
    assert head.split() == ["delta", "re-answering", "reading", "keep", "repair"]
    assert figures.split() == ["m", "+25.0", "-10.0", "+35.0", "+25.0", "+10.0"] and "[-15.0, -5.0]" in intervals
    assert " ".join(ranges.split()) == "2 drafts -10.0 to +30.0 -5.0 to +35.0 +25.0 to +25.0 -30.0 to +10.0"
    assert "another's; empty" in drafts
    assert behaviour == (
        "  m: cannot be told whether it reads its draft or corrects itself (reading with the draft 'empty' is -5.0 "
        "[-10.0, +0.0]; the intervals are wide: take more problems, roughly 400 (--limit, in a run eval.problems))"
    )
    swap = {"acc_t2": 0.75, "acc_t2_swapped": 0.4, "difference": -0.35, "difference_ci95": [-0.4, -0.3]}
    older = {"n": 100, "acc_t1": 0.5, "delta": 0.25, "delta_ci95": [0.2, 0.3], "controls": {"draft_swap": swap}}
    lines = decomposition_table({"old": older, "bare": {"delta": 0.1}}).splitlines()
    assert lines[2].split() == ["old", "+25.0", "-10.0", "+35.0", "-", "-"] and "draft: yes (reading" in lines[-2]
    assert "an earlier version stored no interval of repair" in lines[-1]
    for table, kind, cells in (
        (detection_table({"m": made()}), "detection", ["60.0", "10.0", "+50.0"]),
        (dependence_table({"m": made()}), "dependence", ["8", "+3.9"]),
    ):
        _, _, line, *glosses = table.splitlines()
        assert line.split()[1 : 1 + len(cells)] == cells and glosses == [*GLOSSES[kind]]
    assert decomposition_table({"bare": older | {"controls": {}}}) == detection_table({"old": older}) == ""


def test_every_column_that_is_no_plain_word_has_a_gloss() -> None:
    found = evaluate(
        tiny_model(3), "addition", controls=True, temperature=1.0, samples=4, limit=3, max_tokens=5, device="cpu"
    )
    lines = all_tables({"model": found.to_json()}).splitlines()
    explained = {term for line in lines if ": " in line for term in line.partition(": ")[0].strip().split(", ")}
    explained |= {"delta", "reading"}  # in the line of the accuracies, and in the title of its table
    assert "delta: their difference" in "".join(lines) and "reading is keep + repair" in "".join(lines)
    columns = {"Acc@t1", "Acc@t2", "delta", "i->c", "c->i", *SHOWN.values(), *DETECTED.values(), "d", "L_w", "L_r"}
    assert columns - explained == {"of incorrect", "of correct"}, "the table's title has these"


@pytest.mark.skipif(not RESULTS.is_dir(), reason="a source distribution has no results/")
def test_the_report_has_the_parts_of_delta_and_the_merit_over_single_turn() -> None:
    runs, evaluations = read_sources([RESULTS / "paper" / name for name in ("score", "single-turn")])
    rows = all_rows(group(runs)[0], evaluations).rows
    table = next(table for table in result_tables(rows) if table.id == "made_of")
    assert table.columns == ["delta", "re-answering", "reading", "reads its draft", "conclusion", "H", "M1"]
    found = {row.label: [cell.value for cell in row.cells] for row in table.rows}
    assert found["SCoRe"] == ["+26.9", "−19.6", "+46.6", "yes", "cannot be told", "−0.7", "+27.6"]
    assert found["Single-turn RL"][5] == "+0.0"


def row(label: str, *results: dict[str, Any]) -> Row:
    whole = [{"n": 100, "samples": 1, "turns": [], "ci_method": "one", "acc_t2": 0.75, **each} for each in results]
    run = Run(Path(), {}, "", [], {}, {})
    measured = [Measured(seed, each, "d", run, lambda part, limit: iter(())) for seed, each in enumerate(whole)]
    return Row(label, label, label, measured)


def test_the_report_has_detection_dependence_and_the_range_over_drafts() -> None:
    older = {"acc_t1": 0.5, "delta": 0.25, "delta_ci95": [0.2, 0.3], "controls": {}}
    parts, detected, dependent = delta_tables([row("new", made()), row("old", older)])
    assert parts.columns == [
        *("delta", "re-answering", "reading", "keep", "repair", "reading, by draft", "reads its draft", "conclusion"),
    ]
    assert [line.label for line in parts.rows] == ["new"]
    assert [cell.text for cell in parts.rows[0].cells[-3:]] == ["−5.0 to +35.0", "cannot be told", "cannot be told"]
    assert (
        "new: cannot be told whether it reads its draft or corrects itself (reading with the draft 'empty'"
        in parts.notes[-1]
    )
    assert detected.columns == ["of incorrect", "of correct", "J", "then correct", "then incorrect", "m_w", "m_r"]
    shown = ["60.0", "10.0", "+50.0 [+40.0, +60.0]", "75.0", "50.0", "–", "–"]  # results of before m_w and m_r
    assert [cell.text for cell in detected.rows[0].cells] == shown
    assert [cell.text for cell in dependent.rows[0].cells] == ["+3.9", "+20.0 [+10.0, +30.0]", "+15.0 [+10.0, +20.0]"]
    assert delta_tables([row("old", older)]) == []


def test_detection_over_seeds_has_a_mean_and_an_interval() -> None:
    other = made()
    other["decomposition"] = {**other["decomposition"], "detection": {**RATES, "youden": 0.3}}
    _, detected, _ = delta_tables([row("two", made(), other)])
    # 0.5 and 0.3: sem 0.1, t(0.975; 1) = 12.706205
    assert detected.rows[0].cells[2].text == "+40.0 ± 127.1"
    assert detected.rows[0].cells[0].text == "60.0 ± 0.0"


def test_the_figure_of_delta_has_the_terms_that_each_row_has() -> None:
    swap = {"acc_t2": 0.75, "acc_t2_swapped": 0.4, "difference": -0.35, "difference_ci95": [-0.4, -0.3]}
    older = {"acc_t1": 0.5, "delta": 0.25, "delta_ci95": [0.2, 0.3], "controls": {"draft_swap": swap}}
    figure = made_of_figure([row("new", made()), row("old", older)])
    new, old = (dict(zip(figure.columns, line, strict=True)) for line in figure.rows)
    assert [new[name] for name in ("re_answering", "reading", "keep", "repair", "delta")] == [
        -0.1,
        0.35,
        0.25,
        0.1,
        0.25,
    ]
    assert (new["keep_low"], new["keep_high"]) == (0.2, 0.3)
    assert (old["re_answering"], old["reading"], old["keep"], old["repair_low"]) == (-0.1, 0.35, None, None)
    assert "new: delta +25.0 (re-answering −10.0, reading +35.0, keep +25.0, repair +10.0)" in figure.summary
    assert "old: delta +25.0 (re-answering −10.0, reading +35.0)." in figure.summary


def test_compare_has_held_back_and_merit() -> None:
    def stored(k: int, *rights: bool) -> StoredEpisode:
        turns = [
            StoredTurn("7", (1,), StopReason.END, Verdict(Outcome.CORRECT if r else Outcome.INCORRECT, "7", ""))
            for r in rights
        ]
        return StoredEpisode("eval", 0, str(k), 0, str(k), "7", None, tuple(turns))

    single = [stored(k, bool(f)) for k, f in enumerate(REFERENCE)]
    two = [stored(k, bool(a), bool(b)) for k, (a, b) in enumerate(zip(FIRST, SECOND, strict=True))]
    _, _, differences = compare_records(single, two, seed=0)
    found = {d.figure: d.difference for d in differences}
    assert found["H"] == pytest.approx(REFERENCE.mean() - FIRST.mean())
    assert found["M1"] == pytest.approx(SECOND.mean() - REFERENCE.mean())
    assert found["H"] + found["M1"] == pytest.approx(SECOND.mean() - FIRST.mean())
