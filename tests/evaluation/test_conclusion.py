"""What the controls conclude, and that nothing is concluded from too few answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selfcorrect.evaluation.advice import OF_EVAL, Truncation, advice
from selfcorrect.evaluation.conclusion import Behaviour, Conclusion, Evidence, Reads, conclude
from selfcorrect.evaluation.decomposition import (
    StoredTerm,
    detection,
    few_answers,
    parts_of_delta,
    stored_detection,
)
from selfcorrect.evaluation.evaluation import conclusion_of
from selfcorrect.evaluation.intervals import tango_interval
from selfcorrect.evaluation.supply import NAME as SUPPLY
from selfcorrect.evaluation.supply import Supply
from selfcorrect.report.delta_tables import delta_tables
from selfcorrect.report.rows import Measured, Row
from selfcorrect.report.sources import Run
from selfcorrect.report.terminal import all_tables, decomposition_table, detection_table
from selfcorrect.storage.shapes import RESULTS_SHAPE, check_shape

NAMES = ("re_answering", "keep", "repair", "reading")


def evidence(counts: dict[tuple[int, int, int], int], *more: dict[tuple[int, int, int], int]) -> Evidence:
    """Return the evidence in the number of problems with each (r1, r2, b), for one blind draft or several."""
    drafts = ("draft_swap", "empty_draft", "shuffled_draft")
    parts = {}
    for draft, each in zip(drafts, (counts, *more), strict=False):
        first, second, blind = np.array([p for p, count in each.items() for _ in range(count)], dtype=bool).T
        found = parts_of_delta([str(i) for i in range(len(first))], first, second, blind, seed=0)
        parts[draft] = {name: StoredTerm(getattr(found, name), getattr(found, f"{name}_ci95")) for name in NAMES}
    first, second, _ = np.array([p for p, count in counts.items() for _ in range(count)], dtype=bool).T
    n = len(first)
    interval = tango_interval(int((~first & second).sum()), int((first & ~second).sum()), n)
    delta = StoredTerm(float(second.mean() - first.mean()), interval)
    flips = float((~first & second).mean())
    return Evidence(n, float(first.mean()), float(second.mean()), delta, parts, i_to_c=flips)


def concluded(counts: dict[tuple[int, int, int], int], *more: dict[tuple[int, int, int], int]) -> Conclusion:
    """Return the conclusion from the number of problems with each (r1, r2, b), for one blind draft or several."""
    return conclude(evidence(counts, *more))


CORRECTS = {(0, 1, 0): 30, (0, 0, 0): 20, (1, 1, 1): 48, (1, 0, 0): 2}
AGAIN = {(0, 1, 1): 100, (0, 0, 0): 100, (1, 1, 1): 200}
COPIES = {(1, 1, 0): 30, (1, 1, 1): 20, (0, 0, 1): 30, (0, 0, 0): 20}
HARMS = {(1, 0, 1): 30, (1, 1, 1): 20, (0, 0, 0): 50}


@pytest.mark.parametrize(
    ("counts", "reads", "behaviour"),
    [
        (CORRECTS, Reads.YES, Behaviour.CORRECTS),
        (AGAIN, Reads.NO, Behaviour.ANSWERS_AGAIN),
        (COPIES, Reads.YES, Behaviour.COPIES),
        (HARMS, Reads.YES, Behaviour.DOES_NOT),
        ({(0, 0, 0): 200, (1, 1, 1): 200}, Reads.NO, Behaviour.DOES_NOT),
        # ten problems tell nothing of what 400 like them would
        ({(0, 0, 0): 10, (1, 1, 1): 10}, Reads.UNKNOWN, Behaviour.UNKNOWN),
    ],
)
def test_each_row_of_the_guides_table(counts: Any, reads: Reads, behaviour: Behaviour) -> None:
    found = concluded(counts)
    assert (found.reads, found.behaviour) == (reads, behaviour), found


def test_every_blind_draft_must_agree_and_the_one_that_does_not_is_named() -> None:
    """The case of a user: reading is above 0 with another's draft, and not with an empty one, so it is not *no*."""
    swap = {(1, 1, 0): 5, (1, 0, 0): 2, (0, 0, 0): 53}
    empty = {(1, 1, 0): 5, (1, 0, 0): 2, (0, 0, 1): 3, (0, 0, 0): 50}
    assert concluded(swap).reads is Reads.YES
    found = concluded(swap, empty)
    assert found.reads is Reads.UNKNOWN and found.behaviour is Behaviour.UNKNOWN
    assert found.reads_because == "reading with the draft 'empty' is +3.3 [-6.9, +14.1]"


def test_nothing_is_concluded_where_nearly_nothing_or_nearly_everything_is_correct() -> None:
    low = concluded({(1, 0, 0): 1, (0, 0, 0): 399})
    high = concluded({(0, 1, 1): 1, (1, 1, 1): 399})
    for found, words in ((low, "take easier problems"), (high, "take harder problems")):
        assert (found.reads, found.behaviour) == (Reads.UNKNOWN, Behaviour.UNKNOWN)
        assert words in found.because and "of 400 first answers are correct" in found.because
    assert "1 of 400" in low.because and "399 of 400" in high.because
    few = concluded({(0, 1, 0): 5, (1, 1, 1): 200, (1, 1, 0): 195})
    assert few.reads is Reads.YES, "it keeps what it reads"
    assert few.behaviour is Behaviour.UNKNOWN and "5 of 400 first answers are incorrect" in few.because


def test_a_model_that_answers_correctly_only_after_reading_its_draft_corrects_itself() -> None:
    """Its first attempts are all incorrect, and the floor is that of what is measured: repair."""
    assert concluded({(0, 1, 0): 40, (0, 0, 0): 60}).behaviour is Behaviour.CORRECTS
    held = concluded({(0, 1, 0): 40, (0, 0, 0): 10, (1, 1, 0): 50})
    assert held.behaviour is Behaviour.CORRECTS and "held back (H)" in held.because


def test_about_zero_is_measured_by_what_there_is() -> None:
    """At 2% nothing is about 0 by being below 5 points: reading could not be larger."""
    assert concluded({(1, 1, 1): 40, (0, 0, 0): 1960}).reads is Reads.NO
    assert concluded({(1, 1, 1): 8, (1, 1, 0): 2, (1, 0, 1): 2, (0, 0, 0): 488}).reads is Reads.UNKNOWN


@pytest.mark.parametrize("right", [5, 6])
def test_there_is_no_j_from_fewer_than_six_answers(right: int) -> None:
    first = np.array([True] * right + [False] * 40)
    ids = [str(i) for i in range(len(first))]
    for right_ones in (first, ~first):
        found = detection(ids, right_ones, right_ones, ~right_ones, seed=0)
        assert (found.youden is None) == (right < 6) == (found.youden_ci95 is None)
        assert found.changed_if_correct is not None
    many = detection(
        [str(i // 8) for i in range(8 * len(first))],
        np.repeat(first, 8),
        np.repeat(first, 8),
        ~np.repeat(first, 8),
        seed=0,
    )
    assert (many.youden is None) == (right < 6), "samples of a problem are not more problems"


def test_stored_results_with_a_j_of_one_answer_are_shown_without_it() -> None:
    rates = {"changed_if_incorrect": 0.15, "changed_if_correct": 1.0, "fixed": 0.0, "broken": 1.0}
    rates |= {"youden": -0.847, "youden_ci95": [-0.918, -0.046], "correct_if_incorrect": 0.0, "correct_if_correct": 0.0}
    swap = {"acc_t2": 0.0, "acc_t2_swapped": 0.0, "difference": 0.0, "difference_ci95": [-0.06, 0.06]}
    stored = {"n": 60, "acc_t1": 1 / 60, "delta": -1 / 60, "delta_ci95": [-0.089, 0.045]}
    stored |= {"controls": {"draft_swap": swap}, "decomposition": {"detection": rates, "reads": False}}
    assert few_answers(stored) == "1 of 60 first answers are correct"
    assert stored_detection(stored) == rates | {"youden": None, "youden_ci95": None}
    table = detection_table({"m": stored})
    assert "-84.7" not in table and "m: 1 of 60 first answers are correct, too few for J" in table
    assert decomposition_table({"m": stored}).endswith(
        "  m: cannot be told whether it reads its draft or corrects itself (1 of 60 first answers are correct, and second ones "
        "hardly differ: take easier problems)"
    )
    assert conclusion_of({**stored, "controls": {}}) is None


def test_the_advice_names_the_cause() -> None:
    """The token limit before everything, then too few problems; other problems only where the rate is known to be small."""
    cut, whole = Truncation(1, 0.1, 24), Truncation(1, 0.09, 24)
    limit = "raise the token limit (--max-tokens): 10.0% of the first answers are truncated at 24 tokens"
    for rate, problems in ((0.0, 8), (0.02, 100), (0.04, 1000)):
        assert advice(rate, problems, [cut], others="easier", names=OF_EVAL) == limit
    later = Truncation(2, 0.5)
    assert advice(0.0, 100, [cut, later], others="easier").endswith("50.0% of the second answers are truncated")
    more = {(0.0, 8): 60, (0.0, 34): 60, (0.2, 20): 60, (0.05, 100): 120, (1.0, 4): 60}
    for (rate, problems), least in more.items():
        found = advice(rate, problems, [whole], others="harder", names=OF_EVAL)
        assert found == f"take more problems, at least {least} (--limit): {problems} are too few to tell"
    for rate, problems in ((0.0, 35), (0.01, 100), (0.04, 1000)):
        assert advice(rate, problems, [whole], others="harder") == "take harder problems"


def test_a_conclusion_from_few_problems_asks_for_more_and_never_names_truncation_without_any() -> None:
    few = concluded({(0, 0, 0): 6, (1, 1, 1): 4})
    assert "take more problems, at least 60 (--limit, in a run eval.problems)" in few.because
    assert "4 of 10 first answers are correct" in few.because
    for counts in ({(1, 1, 1): 8}, {(0, 0, 0): 8}, {(0, 1, 0): 4, (1, 1, 1): 4}):
        found = concluded(counts)
        assert "take more problems" in found.because and "token" not in found.because + found.reads_because


WIDE = {(1, 1, 1): 20, (1, 0, 1): 2, (0, 1, 0): 1, (0, 0, 0): 13}


def test_a_conclusion_from_wide_intervals_says_how_many_problems_narrow_them() -> None:
    """The half-width falls with the square root of the number, so as many problems bring it to the 5 points of *about 0*."""
    found = evidence(WIDE)
    because = conclude(found).because
    (low, high), value = found.delta.ci95 or (0.0, 0.0), found.delta.value
    halves = [max(value - low, high - value)]
    repair = found.parts["draft_swap"]["repair"]
    halves += [max(repair.value - repair.ci95[0], repair.ci95[1] - repair.value)] if repair.ci95 else []
    exact = 36 * (max(halves) / 0.05) ** 2
    named = int(because.split("roughly ")[1].split(" ")[0].replace(",", ""))
    assert exact <= named <= 1.1 * exact
    assert because.startswith("delta is -2.8 [") and because.endswith(f"{named:,} (--limit, in a run eval.problems)")
    assert "no i->c" not in because
    assert (
        "; no i->c was seen; the intervals are wide" in concluded({(1, 1, 1): 20, (1, 0, 1): 2, (0, 0, 0): 13}).because
    )
    doubled = conclude(evidence({key: 100 * count for key, count in WIDE.items()}))
    assert "wide" not in doubled.because, "what is told needs no more problems"


def test_wide_intervals_call_for_rows_for_seeds_or_for_the_token_limit_where_these_are_what_lacks() -> None:
    found = evidence(WIDE)
    rows = conclude(replace(found, supply=Supply(36, "add rows of data"))).because
    assert rows.endswith("; the task has only 36: add rows of data") and "--limit" not in rows
    plenty = conclude(replace(found, supply=Supply(10_000, "add rows of data"))).because
    assert plenty == conclude(found).because
    assert "over 3 seeds are wide: run more seeds, roughly" in conclude(replace(found, seeds=3)).because
    cut = conclude(replace(found, truncated=(Truncation(1, 0.6, 24),))).because
    assert cut.endswith("60.0% of the first answers are truncated at 24 tokens") and "more problems" not in cut


def test_reading_that_cannot_be_told_has_the_advice_where_the_behaviour_is_told() -> None:
    found = concluded({(1, 0, 0): 20, (1, 1, 1): 40, (0, 0, 0): 20, (1, 1, 0): 2, (1, 0, 1): 1})
    assert found.behaviour is Behaviour.DOES_NOT and found.reads is Reads.UNKNOWN
    assert "the intervals are wide: take more problems, roughly" in found.reads_because and "wide" not in found.because


def test_a_model_that_never_answers_correctly_again_has_advice_in_numbers_that_exist() -> None:
    """Where no second attempt is correct, with or without a draft, no interval of reading counts as about 0."""
    found = concluded({(1, 0, 0): 30, (0, 0, 0): 30})
    assert found.behaviour is Behaviour.DOES_NOT and found.reads is Reads.UNKNOWN
    assert "roughly" in found.reads_because


def test_advice_names_no_limit_where_the_task_has_no_more_problems() -> None:
    few = replace(evidence({(0, 0, 0): 6, (1, 1, 1): 4}), supply=Supply(10, "add rows of data"))
    assert conclude(few).because.endswith(
        "take more problems, at least 60: 10 are too few to tell, and the task has only 10: add rows of data"
    )


def test_the_conclusion_says_once_that_it_rests_on_the_greedy_attempts_beside_samples() -> None:
    turns = [{"truncated": 0.0}] * 2
    results = {"n": 60, "samples": 1, "acc_t1": 0.7, "acc_t2": 0.7, "turns": turns, "ci_method": "Wilson"}
    results |= {"delta": 0.0, "delta_ci95": [-0.1, 0.1], "i_to_c": 0.05, "c_to_i": 0.05}
    swap = {"acc_t2": 0.7, "acc_t2_swapped": 0.6, "difference": -0.1, "difference_ci95": [-0.2, 0.0]}
    results |= {"controls": {"draft_swap": swap}, SUPPLY: {"available": 60, "more": "add rows of data"}}
    said = "This rests on the greedy attempts, not on the samples at the training temperature."
    assert said not in all_tables({"m": results})
    both = {"m": {**results, "sampled": results}}
    assert all_tables(both).count(said) == 1
    assert said.replace("the greedy attempts", "the attempts at T = 0.5") in all_tables(both, temperature=0.5)

    def notes(*seeds: int, found: dict[str, Any]) -> str:
        run = Run(Path(), {}, "", [], {}, {})
        row = Row(
            "m", "m", "m", [Measured(seed, found, str(seed), run, lambda part, limit: iter(())) for seed in seeds]
        )
        return " ".join(delta_tables([row])[0].notes)

    assert "rest on the main attempts" in notes(0, found=both["m"])
    assert "rest on the main attempts" not in notes(0, found=results)
    assert "the task has only 60: add rows of data" in notes(0, found=results)


@pytest.mark.parametrize("damaged", [{"available": 0, "more": ""}, {"available": 4}, []])
def test_a_damaged_supply_is_named(damaged: Any) -> None:
    assert isinstance(RESULTS_SHAPE, dict)
    with pytest.raises(ValueError, match="supply"):
        check_shape({SUPPLY: damaged}, {"supply?": RESULTS_SHAPE["supply?"]})
