"""Flips that begin with a truncated draft: counted apart, and no part of the conclusion."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selfcorrect.errors import DataError
from selfcorrect.evaluation.conclusion import Behaviour, Reads
from selfcorrect.evaluation.decomposition import SHOWN, parts_of_delta
from selfcorrect.evaluation.evaluation import Evaluation, conclusion_of, evaluation_of
from selfcorrect.evaluation.flat_metrics import flat_metrics
from selfcorrect.evaluation.metrics import summarize
from selfcorrect.evaluation.truncated_drafts import broken_split, truncated_flips_text
from selfcorrect.report.delta_tables import delta_tables
from selfcorrect.report.figures import flips_figure, made_of_figure
from selfcorrect.report.rows import Measured, Row
from selfcorrect.report.sources import Run, check_identity
from selfcorrect.report.tables import result_tables
from selfcorrect.report.terminal import all_tables, decomposition_table
from selfcorrect.storage.episode_log import StoredEpisode, StoredTurn
from selfcorrect.storage.shapes import RESULTS_SHAPE, check_shape
from selfcorrect.types import Outcome, Part, StopReason, Verdict

Kind = tuple[bool, int, int, int]
"""Whether the first attempt is truncated, and whether the first, the second and a blind second attempt are correct."""
HELPLESS: dict[Kind, int] = {
    (True, 0, 1, 0): 30,  # the second attempt finishes
    (True, 0, 0, 0): 10,
    (False, 1, 1, 1): 60,
    (False, 1, 0, 1): 3,
    (False, 0, 1, 0): 3,
    (False, 0, 0, 0): 60,
}


def turn(correct: int, *, truncated: bool = False) -> StoredTurn:
    verdict = Verdict(Outcome.CORRECT if correct else Outcome.INCORRECT, "7" if correct else "8")
    return StoredTurn("7", tuple(range(24)), StopReason.LENGTH if truncated else StopReason.END, verdict)


def evaluated(kinds: dict[Kind, int], *, samples: int = 1) -> Evaluation:
    """Return the evaluation of that many episodes of each kind, with one blind draft."""
    every = [kind for kind, count in kinds.items() for _ in range(count)]

    def episodes(turns: Sequence[tuple[StoredTurn, ...]]) -> list[StoredEpisode]:
        return [
            StoredEpisode("eval", 0, str(i // samples), i % samples, "p", "7", None, each)
            for i, each in enumerate(turns)
        ]

    main = episodes([(turn(first, truncated=cut), turn(second)) for cut, first, second, _ in every])
    blind = episodes([(turn(0), turn(right)) for *_, right in every])
    return evaluation_of({Part.ATTEMPTS: main, Part.SWAP: blind, Part.SAMPLED: main}, seed=0)


@pytest.mark.parametrize("samples", [1, 2])
def test_both_halves_add_up_to_each_flip_and_each_term(samples: int) -> None:
    rng = np.random.default_rng(0)
    cut, first, second, blind = (rng.random(200) < chance for chance in (0.3, 0.5, 0.6, 0.4))
    kinds = [(bool(c), int(a), int(b), int(d)) for c, a, b, d in zip(cut, first, second, blind, strict=True)]
    ordered = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
    cut, first, second, blind = np.array([k for k, count in ordered.items() for _ in range(count)], dtype=bool).T
    found = evaluated(ordered, samples=samples)
    split, whole = found.truncated_drafts, found.results
    assert split is not None and split.complete is not None and found.decomposition is not None
    assert (split.count, split.of) == (cut.sum(), 200)
    assert (split.i_to_c, split.all_i_to_c) == ((cut & ~first & second).sum(), (~first & second).sum())
    assert (split.c_to_i, split.all_c_to_i) == ((cut & first & ~second).sum(), (first & ~second).sum())
    kept, complete = 200 - split.count, split.complete
    assert whole.i_to_c is not None and whole.delta is not None and whole.c_to_i is not None
    assert 200 * whole.i_to_c == pytest.approx(split.i_to_c + kept * complete.i_to_c)
    assert 200 * whole.c_to_i == pytest.approx(split.c_to_i + kept * complete.c_to_i)
    assert 200 * whole.delta == pytest.approx(split.i_to_c - split.c_to_i + kept * complete.delta)
    ids = [str(i // samples) for i in range(200)]
    parts, alone = found.decomposition.blind["draft_swap"], complete.blind["draft_swap"]
    after_cut = parts_of_delta(
        [each for each, truncated in zip(ids, cut, strict=True) if truncated],
        *(flags[cut] for flags in (first, second, blind)),
        seed=0,
    )
    for term in SHOWN:
        halves = split.count * getattr(after_cut, term) + kept * getattr(alone, term)
        assert 200 * getattr(parts, term) == pytest.approx(halves), term
    own = summarize(
        [each for each, truncated in zip(ids, cut, strict=True) if not truncated],
        [e.graded() for e, truncated in zip(found.episodes, cut, strict=True) if not truncated],
        seed=0,
    )
    assert (complete.n, complete.delta, complete.delta_ci95) == (own.n, own.delta, own.delta_ci95)
    assert broken_split(found.to_json()) is None


def test_finishing_a_truncated_draft_is_no_correction() -> None:
    """Over all episodes delta, reading and repair lie far above 0, which would read as self-correction."""
    found = evaluated(HELPLESS)
    assert found.decomposition is not None and found.conclusion is not None
    assert found.decomposition.blind["draft_swap"].repair_ci95[0] > 0.1
    assert (found.conclusion.reads, found.conclusion.behaviour) == (Reads.NO, Behaviour.UNKNOWN)
    assert found.conclusion.because.endswith("; only the 126 of 166 episodes with a complete first attempt count")
    untouched = {(False, *kind[1:]): count for kind, count in HELPLESS.items() if not kind[0]}
    assert evaluated(untouched).truncated_drafts is None
    uncut: dict[Kind, int] = {**untouched, (False, 0, 1, 0): 33, (False, 0, 0, 0): 70}  # type: ignore[dict-item]
    clean = evaluated(uncut).conclusion
    assert clean is not None and clean.behaviour is Behaviour.CORRECTS and "complete" not in clean.because


def test_repair_of_complete_drafts_still_counts() -> None:
    kinds: dict[Kind, int] = {(True, 0, 0, 0): 20, (False, 0, 1, 0): 30, (False, 0, 0, 0): 20, (False, 1, 1, 1): 50}
    found = evaluated(kinds).conclusion
    assert found is not None and (found.reads, found.behaviour) == (Reads.YES, Behaviour.CORRECTS)


def test_with_every_draft_truncated_nothing_is_concluded() -> None:
    found = evaluated({(True, 0, 1, 0): 30, (True, 0, 0, 0): 30})
    assert found.truncated_drafts is not None and found.truncated_drafts.complete is None
    assert found.conclusion is not None and found.conclusion.behaviour is Behaviour.UNKNOWN
    assert found.conclusion.because == (
        "no first attempt is complete: raise the token limit (--max-tokens, in a run rollout.max_tokens): 100.0% of the first "
        "answers are truncated at 24 tokens"
    )
    assert broken_split(found.to_json()) is None
    text = all_tables({"m": found.to_json()})
    assert "30 of 30 i->c begin with a truncated first attempt" in text and "no first attempt is complete" in text


def test_the_terminal_and_the_page_say_it_next_to_the_flips_and_to_repair() -> None:
    results = json.loads(json.dumps(evaluated(HELPLESS).to_json()))
    check_shape(results, RESULTS_SHAPE)
    said = (
        "30 of 33 i->c and 0 of 3 c->i begin with a truncated first attempt, which the second may only finish; on the other "
        "126 of 166 episodes delta is +0.0 [-4.7, +4.7]"
    )
    text = all_tables({"m": results})
    assert text.count(f"  m: {said}") == 2, "of the greedy attempts and of the samples"
    (line,) = [line for line in decomposition_table({"m": results}).splitlines() if "complete drafts" in line]
    assert line.split() == ["complete", "drafts,", "126", "of", "166", "+0.0", "+0.0", "+0.0", "-2.4", "+2.4"]
    run = Run(Path(), {}, "", [], {}, {})
    measured = [Measured(seed, results, "d", run, lambda part, limit: iter(())) for seed in (0, 1)]
    one, two = (Row("m", "m", "m", measured[:count]) for count in (1, 2))
    made_of = delta_tables([one])[0]
    assert made_of.rows[0].cells[made_of.columns.index("repair, complete drafts")].value == "+2.4"
    assert f"m: {said.replace('->', '→')}." in result_tables([one])[0].notes
    assert all(said.replace("->", "→") in figure.reading for figure in (flips_figure([one]), made_of_figure([one])))
    assert any("60 of 66 i→c and 0 of 6 c→i begin" in note for note in result_tables([two])[0].notes)
    conclusion = two.conclusion()
    assert conclusion is not None and "only the 252 of 332 episodes" in conclusion.because
    assert flat_metrics(results)["i_to_c_truncated_draft"].value == pytest.approx(30 / 166)
    plain = evaluated({(False, 1, 1, 1): 30, (False, 0, 1, 0): 30}).to_json()
    assert "truncated" not in all_tables({"m": plain})
    (clean,) = delta_tables([Row("m", "m", "m", [Measured(0, plain, "d", run, run.episodes)])])[:1]
    assert "repair, complete drafts" not in clean.columns


@pytest.mark.parametrize("change", ["i_to_c", "all_i_to_c", "c_to_i", "count"])
def test_an_edited_split_is_not_reported(change: str) -> None:
    results: dict[str, Any] = evaluated(HELPLESS).to_json()
    check_identity(Path(), {"m": results})
    results["truncated_drafts"][change] += 1
    with pytest.raises(DataError, match="evaluate again"):
        check_identity(Path(), {"m": results})


def test_an_edited_term_of_complete_drafts_is_not_reported() -> None:
    results = evaluated(HELPLESS).to_json()
    results["truncated_drafts"]["complete"]["blind"]["draft_swap"]["repair"] += 0.1
    assert "draft_swap, complete drafts makes" in str(broken_split(results))


def test_a_summary_of_an_earlier_version_is_read_with_a_caution() -> None:
    results = evaluated(HELPLESS).to_json()
    del results["truncated_drafts"]
    found = conclusion_of(results)
    assert found is not None and found.behaviour is Behaviour.CORRECTS
    assert "caution: 24.1% of the first attempts are truncated, and an earlier version did not store" in found.because


@pytest.mark.parametrize(("begun", "said"), [(0, False), (1, False), (9, False), (10, True)])
def test_tables_leave_out_the_few_flips_that_begin_with_a_truncated_draft(begun: int, said: bool) -> None:
    """One of 829 i->c in a model that nearly never reaches the limit is nothing to read about; the summary has it."""
    flips = {"i_to_c": begun, "all_i_to_c": 600, "c_to_i": 0, "all_c_to_i": 400}
    assert bool(truncated_flips_text({"count": begun, "of": 5000, **flips})) == said
