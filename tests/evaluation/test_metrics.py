"""Metrics against hand-worked numbers, published intervals, slow references and enumeration."""

from __future__ import annotations

import json
import math
import random
import sys
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from selfcorrect.errors import ConfigError, DataError
from selfcorrect.evaluation.intervals import tango_interval, wilson_interval
from selfcorrect.evaluation.metrics import Results, answer_changed, edit_distance_ratio, flip, summarize
from selfcorrect.types import Attempt, Outcome

Z2 = 1.959963984540054**2


def attempt(outcome=Outcome.CORRECT, text="", extracted="1", truncated=False):
    return Attempt(outcome=outcome, text=text, extracted=extracted, truncated=truncated)


RIGHT, WRONG = attempt(Outcome.CORRECT, "4", "4"), attempt(Outcome.INCORRECT, "5", "5")
EPISODES = {"cc": (RIGHT, RIGHT), "c2i": (RIGHT, WRONG), "i2c": (WRONG, RIGHT), "ii": (WRONG, WRONG)}


def summarize_flips(seed=0, **counts):
    """One sample per problem, so many problems of each flip."""
    episodes = [EPISODES[name] for name, count in counts.items() for _ in range(count)]
    return summarize([f"p{i}" for i in range(len(episodes))], episodes, seed=seed)


def clustered(problems, samples, seed):
    """Problems of very different difficulty: the samples of one problem are far from independent."""
    rng = random.Random(seed)
    ids, episodes = [], []
    for p in range(problems):
        p1, p2 = rng.random() ** 2, rng.random() ** 0.5
        for _ in range(samples):
            ids.append(f"p{p}")
            episodes.append((RIGHT if rng.random() < p1 else WRONG, RIGHT if rng.random() < p2 else WRONG))
    return ids, episodes


def width(interval):
    return interval[1] - interval[0]


# ---------------------------------------------------------------- one episode


@pytest.mark.parametrize("name", EPISODES)
def test_flip_names(name):
    assert flip(EPISODES[name]) == name
    assert flip((*EPISODES[name], RIGHT)) == flip((*EPISODES[name], WRONG)) == name  # a third attempt has no say


@pytest.mark.parametrize("outcome", [o for o in Outcome if o is not Outcome.CORRECT])
def test_only_right_is_right(outcome):
    assert flip((attempt(outcome), RIGHT)) == "i2c"
    assert flip((RIGHT, attempt(outcome))) == "c2i"


def test_flip_needs_two_attempts():
    with pytest.raises(DataError, match="1 attempt"):
        flip((RIGHT,))


@pytest.mark.parametrize(
    ("a", "b", "ratio"),
    [
        ("kitten", "sitting", 3 / 13),
        ("", "", 0.0),
        ("same", "same", 0.0),
        ("", "abc", 1.0),
        ("abc", "xyz", 0.5),
        ("naïve", "naive", 1 / 10),  # characters, not bytes
    ],
)
def test_edit_distance_ratio_by_hand(a, b, ratio):
    assert edit_distance_ratio(a, b) == pytest.approx(ratio, abs=1e-15)


def slow_levenshtein(a, b):
    """The textbook recursion, row by row."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (x != y)))
    return row[-1]


def test_edit_distance_reads_the_beginning_of_very_long_texts():
    """All of these 20 million characters would take hours."""
    a, b = "ab" * 10**7, "cd" * 10**7
    assert edit_distance_ratio(a, b) == edit_distance_ratio(a[:100_000], b[:100_000]) == 0.5
    assert edit_distance_ratio(a[:99_999], b[:3]) == 99_999 / 100_002
    assert edit_distance_ratio("x" * 300_000, "") == 1.0


@given(st.text("abc", max_size=12), st.text("abc", min_size=1, max_size=12))
def test_edit_distance_ratio_equals_the_textbook_recursion(a, b):
    assert edit_distance_ratio(a, b) == pytest.approx(slow_levenshtein(a, b) / (len(a) + len(b)), abs=1e-15)
    assert edit_distance_ratio(a, b) == edit_distance_ratio(b, a)


@pytest.mark.parametrize(
    ("first", "second", "changed"),
    [
        (attempt(text="so 4", extracted="4"), attempt(text="thus 4", extracted="4"), False),  # words do not count
        (attempt(text="4", extracted="4"), attempt(text="4", extracted="5"), True),
        (attempt(text="4", extracted=None), attempt(text="4", extracted="4"), True),
        (attempt(text="4", extracted="4"), attempt(text="4", extracted=None), True),
        (attempt(text=" hm\n", extracted=None), attempt(text="hm", extracted=None), False),
        (attempt(text="hm", extracted=None), attempt(text="ah", extracted=None), True),
        (attempt(text="x", extracted=""), attempt(text="x", extracted=None), True),  # empty is not missing
    ],
)
def test_answer_changed(first, second, changed):
    assert answer_changed(first, second) is changed


# ---------------------------------------------------------------- Wilson


@pytest.mark.parametrize(
    ("count", "n", "low", "high"),
    # Newcombe 1998, Statistics in Medicine 17, 857-872, table I, method 3 (score, no continuity correction).
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_published(count, n, low, high):
    assert wilson_interval(count, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_by_hand():
    # 5 of 10: |p - 1/2| = z sqrt(p (1 - p) / 10) at p = 1/2 -+ (z/2) / sqrt(10 + z^2).
    half = math.sqrt(Z2) / 2 / math.sqrt(10 + Z2)
    assert wilson_interval(5, 10) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-12)
    assert wilson_interval(1, 1) == pytest.approx((1 / (1 + Z2), 1.0), abs=1e-12)


# ---------------------------------------------------------------- Tango


def test_tango_published():
    # Cavo et al. 2012, pairs (59, 6, 16, 80), in Fagerland, Lydersen, Laake, "Statistical Analysis of
    # Contingency Tables" (2017), chapter 8: -0.0621 (-0.1240 to -0.0054), as the R package of the book prints it.
    assert tango_interval(6, 16, 161) == pytest.approx((-0.1240, -0.0054), abs=5e-5)


def slow_score(d, gained, lost, n):
    """Tango's statistic with the nuisance parameter found by maximising the restricted likelihood."""

    def minus_log_likelihood(q):
        return -sum(
            count * math.log(max(p, 1e-300)) if count else 0.0
            for count, p in ((gained, q + d), (lost, q), (n - gained - lost, 1 - 2 * q - d))
        )

    bounds = (max(0.0, -d), (1 - d) / 2)
    q = optimize.minimize_scalar(minus_log_likelihood, bounds=bounds, method="bounded", options={"xatol": 1e-13}).x
    return (gained - lost - n * d) / math.sqrt(n * (2 * q + d - d * d))


@pytest.mark.parametrize(
    ("gained", "lost", "n"), [(6, 16, 161), (29, 7, 500), (3, 1, 8), (4, 0, 20), (0, 4, 20), (5, 5, 10), (1, 2, 3)]
)
def test_tango_limits_solve_the_defining_equation(gained, lost, n):
    low, high = tango_interval(gained, lost, n)
    assert slow_score(low, gained, lost, n) == pytest.approx(math.sqrt(Z2), abs=1e-5)
    assert slow_score(high, gained, lost, n) == pytest.approx(-math.sqrt(Z2), abs=1e-5)


def test_tango_at_the_edges_by_hand():
    # Without flips q = max(0, -d), so T^2 = n |d| / (1 - |d|) = z^2 at |d| = z^2 / (n + z^2).
    for n in (1, 100, 10_000):
        assert tango_interval(0, 0, n) == pytest.approx((-Z2 / (n + Z2), Z2 / (n + Z2)), abs=1e-12)
    # All gained: q = (1 - d) / 2, so T^2 = n (1 - d) / (1 + d) = z^2 at d = (n - z^2) / (n + z^2).
    for n in (1, 5, 1000):
        assert tango_interval(n, 0, n) == pytest.approx(((n - Z2) / (n + Z2), 1.0), abs=1e-12)
        assert tango_interval(0, n, n) == pytest.approx((-1.0, -(n - Z2) / (n + Z2)), abs=1e-12)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 200))
def test_tango_is_ordered_bounded_and_symmetric(gained, lost, same):
    n = max(gained + lost + same, 1)
    low, high = tango_interval(gained, lost, n)
    assert -1 <= low <= (gained - lost) / n <= high <= 1
    assert high - low > 1e-3
    assert tango_interval(lost, gained, n) == pytest.approx((-high, -low), abs=1e-9)


@pytest.mark.parametrize(("p_gained", "p_lost"), [(0.06, 0.02), (0.15, 0.03), (0.05, 0.2), (0.1, 0.1), (0.3, 0.3)])
def test_tango_covers_the_truth(p_gained, p_lost):
    """Exact coverage: every table of 40 pairs, weighted by its multinomial probability."""
    n, covered = 40, 0.0
    for gained, lost in product(range(n + 1), repeat=2):
        chance = stats.multinomial.pmf([gained, lost, n - gained - lost], n, [p_gained, p_lost, 1 - p_gained - p_lost])
        if gained + lost <= n and chance > 1e-7:
            low, high = tango_interval(gained, lost, n)
            covered += chance * (low <= p_gained - p_lost <= high)
    assert 0.935 < covered < 0.985


@pytest.mark.parametrize(("gained", "lost", "n"), [(0, 0, 0), (-1, 0, 5), (0, -1, 5), (3, 3, 5)])
def test_tango_refuses_counts_that_are_none(gained, lost, n):
    with pytest.raises(DataError, match="gained"):
        tango_interval(gained, lost, n)


@pytest.mark.parametrize(
    ("counts", "t1", "delta", "half_width"),
    # docs/method.md, section 8: counts from the paper's percentages; expected half widths are the plain paired (Wald) ones,
    # 1.96 sqrt((p_gained + p_lost - delta^2) / n), which the score interval follows within 0.2 points here.
    [
        ({"cc": 293, "c2i": 7, "i2c": 29, "ii": 171}, 60.0, 4.4, 2.3),
        ({"cc": 184, "c2i": 79, "i2c": 23, "ii": 214}, 52.6, -11.2, 3.8),
        ({"cc": 81, "c2i": 5, "i2c": 25, "ii": 53}, 52.4, 12.2, 6.3),
    ],
    ids=["SCoRe MATH500", "base MATH500", "SCoRe HumanEval"],
)
def test_noise_of_the_papers_own_rows(counts, t1, delta, half_width):
    results = summarize_flips(**counts)
    assert 100 * results.acc_t1 == pytest.approx(t1, abs=0.05)
    assert 100 * results.delta == pytest.approx(delta, abs=0.05)
    assert 50 * width(results.delta_ci95) == pytest.approx(half_width, abs=0.2)


# ---------------------------------------------------------------- one sample per problem


def test_summary_by_hand():
    """Ten problems: 3 cc, 2 ii, 4 i->c, 1 c->i; so t1 = 4/10, t2 = 7/10, delta = 3/10."""
    results = summarize_flips(cc=3, ii=2, i2c=4, c2i=1)
    assert (results.n, results.samples) == (10, 1)
    assert (results.acc_t1, results.acc_t2) == (0.4, 0.7)
    assert (results.delta, results.i_to_c, results.c_to_i) == (0.3, 0.4, 0.1)
    assert results.answer_change_rate == 0.5
    assert results.edit_distance_ratio_mean == 0.25  # "4" -> "5" is 1 edit over 2 characters, in half the episodes
    assert results.acc_t1_ci95 == wilson_interval(4, 10)
    assert results.acc_t2_ci95 == wilson_interval(7, 10)
    assert results.i_to_c_ci95 == wilson_interval(4, 10)
    assert results.c_to_i_ci95 == wilson_interval(1, 10)
    assert results.delta_ci95 == tango_interval(4, 1, 10)
    assert "Wilson" in results.ci_method and "Tango" in results.ci_method and "bootstrap" not in results.ci_method


def test_turns_count_what_went_wrong_and_hold_every_turn():
    lost, cut = attempt(Outcome.NO_ANSWER, truncated=True), attempt(Outcome.CORRECT, truncated=True)
    slow, broken = attempt(Outcome.TIMED_OUT), attempt(Outcome.VERIFIER_FAILED)
    results = summarize(
        list("abcd"),
        [(lost, slow, RIGHT), (cut, slow, RIGHT), (WRONG, broken, RIGHT), (WRONG, RIGHT, RIGHT)],
        seed=0,
    )
    t1, t2, t3 = (turn for turn in results.to_json()["turns"])
    found = [turn.pop("accuracy_ci95") for turn in (t1, t2, t3)]
    assert found == [list(wilson_interval(count, 4)) for count in (1, 1, 4)]
    none = dict.fromkeys(("truncated", "no_answer", "timed_out", "verifier_failed", "out_of_memory", "refused"), 0)
    assert t1 == {**none, "accuracy": 0.25, "truncated": 0.5, "no_answer": 0.25}
    assert t2 == {**none, "accuracy": 0.25, "timed_out": 0.5, "verifier_failed": 0.25}
    assert t3 == {**none, "accuracy": 1}
    assert (results.acc_t2, results.delta, results.i_to_c, results.c_to_i) == (0.25, 0, 0.25, 0.25)  # t2, not t3


def test_the_ends_of_programs_are_counted_apart():
    huge, forbidden = attempt(Outcome.OUT_OF_MEMORY), attempt(Outcome.REFUSED)
    (turn,) = summarize(list("abcd"), [(huge,), (forbidden,), (forbidden,), (RIGHT,)], seed=0).to_json()["turns"]
    assert (turn["accuracy"], turn["out_of_memory"], turn["refused"]) == (0.25, 0.25, 0.5)


def test_no_flips_is_no_proof_of_no_change():
    results = summarize_flips(cc=30, ii=20)
    assert results.delta == 0
    assert results.delta_ci95 == pytest.approx((-Z2 / (50 + Z2), Z2 / (50 + Z2)), abs=1e-12)
    assert results.c_to_i_ci95 == pytest.approx((0, Z2 / (50 + Z2)), abs=1e-12)


def test_one_attempt_has_no_two_turn_figures():
    results = summarize(["a", "b"], [(RIGHT,), (WRONG,)], seed=0)
    assert (results.acc_t1, results.acc_t1_ci95) == (0.5, wilson_interval(1, 2))
    stored = results.to_json()
    assert len(results.turns) == 1
    empty = {name for name, value in stored.items() if value is None}
    assert empty == {
        *("acc_t2", "delta", "i_to_c", "c_to_i", "acc_t2_ci95", "delta_ci95", "i_to_c_ci95", "c_to_i_ci95"),
        *("answer_change_rate", "edit_distance_ratio_mean"),
    }
    several = summarize(["a", "a", "b"], [(RIGHT,), (WRONG,), (WRONG,)], seed=0)
    assert several.acc_t1 == pytest.approx(1 / 3) and several.delta is None


def test_mean_edit_distance_does_not_depend_on_the_order():
    """Ratios 1/10, 2/10, 3/10: in floating point (0.1 + 0.2) + 0.3 differs from (0.3 + 0.2) + 0.1."""
    episodes = [(attempt(text="aaaaa"), attempt(text="b" * k + "a" * (5 - k))) for k in (1, 2, 3)]
    ratios = [summarize(list("abc"), rows, seed=0).edit_distance_ratio_mean for rows in (episodes, episodes[::-1])]
    assert ratios[0] == ratios[1] == pytest.approx(0.2, abs=1e-15)


# ---------------------------------------------------------------- properties

labelled_episodes = st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from(sorted(EPISODES))), min_size=1)


@settings(max_examples=40, deadline=None)
@given(labelled_episodes, st.randoms(use_true_random=False))
def test_identity_bounds_and_order(rows, rng):
    """The identity of docs/method.md, section 8, and intervals around their estimates; order and names do not matter."""
    results = summarize([p for p, _ in rows], [EPISODES[name] for _, name in rows], seed=5)
    assert abs(results.delta - (results.i_to_c - results.c_to_i)) < 1e-12
    assert abs(results.delta - (results.acc_t2 - results.acc_t1)) < 1e-12
    for name in ("acc_t1", "acc_t2", "i_to_c", "c_to_i", "delta"):
        low, high = getattr(results, f"{name}_ci95")
        assert (-1 if name == "delta" else 0) <= low < high <= 1
        assert low - 1e-9 <= getattr(results, name) <= high + 1e-9
    shuffled = rng.sample(rows, len(rows))
    renamed = dict(zip("abcdefgh", rng.sample("abcdefgh", 8), strict=True))
    assert results == summarize([renamed[p] for p, _ in shuffled], [EPISODES[name] for _, name in shuffled], seed=5)


@settings(max_examples=20, deadline=None)
@given(labelled_episodes)
def test_json_round_trip(rows):
    results = summarize([p for p, _ in rows], [EPISODES[name] for _, name in rows], seed=5)
    assert Results.from_json(json.loads(json.dumps(results.to_json(), allow_nan=False))) == results


# ---------------------------------------------------------------- several samples per problem


def test_clustered_figures_by_hand():
    """Problem a: cc, i->c; b: ii, c->i; c: i->c, i->c. Six episodes, three problems."""
    names = ["cc", "i2c", "ii", "c2i", "i2c", "i2c"]
    results = summarize(list("aabbcc"), [EPISODES[name] for name in names], seed=3)
    assert (results.n, results.samples) == (3, 2)
    assert (results.acc_t1, results.acc_t2, results.delta) == pytest.approx((2 / 6, 4 / 6, 2 / 6))
    assert (results.i_to_c, results.c_to_i) == pytest.approx((3 / 6, 1 / 6))
    # Net gains of a, b, c are 1, -1, 2 of 2. Of the 27 equally likely resamples one is bbb and one ccc, 3.7 % each,
    # so the 2.5 % limits are b's and c's own rates.
    assert results.delta_ci95 == (-0.5, 1.0)
    assert "bootstrap" in results.ci_method and "10000" in results.ci_method and "seed 3" in results.ci_method
    assert summarize(list("aab"), [EPISODES["cc"]] * 3, seed=0).samples == 1.5


def test_bootstrap_equals_scipys_and_the_cluster_robust_error():
    ids, episodes = clustered(problems=300, samples=4, seed=1)
    results = summarize(ids, episodes, seed=2)
    net_P = np.array([[flip(e) for e in episodes[i : i + 4]] for i in range(0, 1200, 4)])
    gain_P = ((net_P == "i2c").sum(axis=1) - (net_P == "c2i").sum(axis=1)) / 4
    reference = stats.bootstrap((gain_P,), np.mean, n_resamples=10_000, method="percentile", rng=0).confidence_interval
    assert results.delta_ci95 == pytest.approx((reference.low, reference.high), abs=0.003)
    half = 1.959964 * gain_P.std() / math.sqrt(300)
    assert results.delta_ci95 == pytest.approx((gain_P.mean() - half, gain_P.mean() + half), abs=0.003)
    t1_P = np.array([e[0].correct for e in episodes]).reshape(300, 4).mean(axis=1)
    half = 1.959964 * t1_P.std() / math.sqrt(300)
    assert results.acc_t1_ci95 == pytest.approx((t1_P.mean() - half, t1_P.mean() + half), abs=0.003)


def test_unequal_samples_weigh_episodes_alike():
    """A ratio of sums: 1 of 1 and 0 of 3 right is 1/4, and resamples lie between 0 and 1."""
    results = summarize(list("abbb"), [EPISODES["cc"], *[EPISODES["ii"]] * 3], seed=0)
    assert (results.acc_t1, results.acc_t1_ci95, results.samples) == (0.25, (0.0, 1.0), 2)


def test_copies_of_a_sample_are_no_evidence():
    ids, episodes = clustered(problems=200, samples=1, seed=4)
    once, twice, often = (summarize(ids * k, episodes * k, seed=0) for k in (1, 2, 8))
    for name in ("acc_t1_ci95", "acc_t2_ci95", "delta_ci95", "i_to_c_ci95", "c_to_i_ci95"):
        assert getattr(twice, name) == pytest.approx(getattr(often, name), abs=1e-12)
        assert width(getattr(twice, name)) == pytest.approx(width(getattr(once, name)), rel=0.06)


def test_clustering_widens_the_interval():
    ids, episodes = clustered(problems=100, samples=16, seed=6)
    by_problem = summarize(ids, episodes, seed=0)
    as_if_independent = summarize([str(i) for i in range(len(ids))], episodes, seed=0)
    assert by_problem.acc_t1 == as_if_independent.acc_t1
    assert width(by_problem.acc_t1_ci95) > 1.5 * width(as_if_independent.acc_t1_ci95)


def test_agreement_of_all_problems_claims_no_point():
    """c->i is 0 everywhere: the bootstrap would say [0, 0]. Each problem then counts as one observation."""
    names = ["cc", "i2c", "ii", "ii", "i2c", "i2c"] * 5
    results = summarize([f"p{i // 2}" for i in range(30)], [EPISODES[name] for name in names], seed=0)
    assert results.c_to_i_ci95 == pytest.approx((0, Z2 / (15 + Z2)), abs=1e-12)
    assert results.ci_method.count("c_to_i") == 1 and "acc_t1" not in results.ci_method
    assert results.ci_method.endswith("each problem as one observation")


def test_agreement_on_a_fraction_or_on_no_net_change():
    # Every problem once c->i and once i->c: delta 0 throughout, each rate 1/2. One observation a problem: (2, 2, 4).
    results = summarize(list("aabbccdd"), [EPISODES["c2i"], EPISODES["i2c"]] * 4, seed=0)
    assert results.delta_ci95 == pytest.approx(tango_interval(2, 2, 4))
    assert results.acc_t1_ci95 == pytest.approx(wilson_interval(2, 4))
    # One problem alone says little, however many samples it has: 0.5 observations of 1.
    alone = summarize(["a"] * 1000, [EPISODES["cc"], EPISODES["ii"]] * 500, seed=0)
    assert alone.acc_t1_ci95 == pytest.approx((0.0546, 0.9454), abs=5e-5)  # 1/2 -+ (z/2) / sqrt(1 + z^2)
    assert alone.delta_ci95 == pytest.approx(tango_interval(0, 0, 1))


# ---------------------------------------------------------------- pitfall 19 and other errors


@pytest.mark.pitfall(19)
def test_statistics_are_seeded_and_an_empty_set_is_an_error():
    ids, episodes = clustered(problems=40, samples=3, seed=8)
    random.seed(0)
    np.random.seed(0)
    once = summarize(ids, episodes, seed=11)
    random.seed(1)
    np.random.seed(1)
    order = random.Random(9).sample(range(len(ids)), len(ids))
    assert once == summarize([ids[i] for i in order], [episodes[i] for i in order], seed=11)
    others = [summarize(ids, episodes, seed=seed) for seed in range(5)]
    assert {other.acc_t2 for other in others} == {once.acc_t2}
    assert len({(other.acc_t1_ci95, other.acc_t2_ci95, other.delta_ci95) for other in others}) > 1  # the seed is used
    with pytest.raises(DataError, match="empty set"):
        summarize([], [], seed=0)


def test_malformed_episodes_are_errors():
    with pytest.raises(DataError, match=r"1, 2 attempts"):
        summarize(["a", "b"], [(RIGHT,), (RIGHT, RIGHT)], seed=0)
    with pytest.raises(DataError, match=r"0 attempts"):
        summarize(["a"], [()], seed=0)
    with pytest.raises(DataError, match="1 problem ids for 2 episodes"):
        summarize(["a"], [(RIGHT, RIGHT)] * 2, seed=0)


# ---------------------------------------------------------------- stored and tabular form


def test_json_form_is_the_documented_one():
    stored = summarize_flips(cc=1, i2c=2).to_json()
    assert set(stored) == {
        *("n", "samples", "acc_t1", "acc_t2", "delta", "delta_ci95", "i_to_c", "c_to_i", "acc_t1_ci95", "acc_t2_ci95"),
        *("i_to_c_ci95", "c_to_i_ci95", "ci_method", "answer_change_rate", "edit_distance_ratio_mean", "turns"),
    }
    assert type(stored["turns"]) is list and type(stored["delta_ci95"]) is list
    assert type(stored["n"]) is int and type(stored["samples"]) is int and type(stored["delta"]) is float


def test_results_stored_before_turns_had_all_their_figures_can_be_read():
    stored = summarize_flips(cc=1, i2c=2).to_json()
    for turn in stored["turns"]:
        del turn["accuracy_ci95"], turn["out_of_memory"], turn["refused"]
    read = [(turn.accuracy_ci95, turn.out_of_memory, turn.refused) for turn in Results.from_json(stored).turns]
    assert read == [(None, 0, 0)] * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"delta": ...}, r"missing \['delta'\]"),
        ({"accuracy": 1.0}, r"unknown \['accuracy'\]"),
        ({"turns": []}, "at least 1 turn"),
        ({"turns": [{"accuracy": 1.0}]}, r"results.turns: missing \['no_answer'"),
        ({"turns": [0.5]}, "results.turns is a float"),
        ({"delta_ci95": [0.1]}, "not an interval"),
        ({"delta_ci95": ["low", "high"]}, "not an interval"),
    ],
)
def test_malformed_stored_results_are_errors(change, message):
    stored = {k: v for k, v in (summarize_flips(cc=1, i2c=2).to_json() | change).items() if v is not ...}
    with pytest.raises(DataError, match=message):
        Results.from_json(stored)


def test_pandas_rows_concatenate():
    pd = pytest.importorskip("pandas")
    first, second = (
        summarize_flips(cc=3, ii=2, i2c=4, c2i=1),
        summarize(["a"], [(replace(WRONG, truncated=True),)], seed=0),
    )
    table = pd.concat([first.to_pandas(), second.to_pandas()], ignore_index=True)
    assert table.loc[0, ["n", "delta", "t2_accuracy"]].tolist() == [10, 0.3, 0.7]
    assert (table.loc[0, "delta_low"], table.loc[0, "delta_high"]) == first.delta_ci95
    assert table.loc[1, "t1_truncated"] == 1 and table.loc[1, ["delta", "delta_low", "t2_accuracy"]].isna().all()


def test_missing_pandas_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigError, match=r'pip install "selfcorrect\[data\]"'):
        summarize_flips(cc=1).to_pandas()
