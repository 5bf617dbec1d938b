"""Mathematics: whether an answer has the value of the reference."""

from __future__ import annotations

import csv
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("math_verify")

from selfcorrect.tasks.math.equality import equal

PAIRS = Path(__file__).parents[1] / "data" / "maths_pairs.tsv"


def pairs() -> list[dict[str, str]]:
    with PAIRS.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def test_the_corpus_of_pairs_gets_the_verdicts_written_by_hand() -> None:
    rows = pairs()
    wrong = [row for row in rows if equal(row["reference"], row["answer"]) != (row["verdict"] == "equal")]
    assert not wrong


def test_the_corpus_is_large_and_balanced() -> None:
    rows = pairs()
    assert len({(row["reference"], row["answer"]) for row in rows}) == len(rows) >= 1000
    assert min(Counter(row["verdict"] for row in rows).values()) >= 440
    assert {row["verdict"] for row in rows} == {"equal", "different"}


def test_whatever_is_equal_is_equal_the_other_way_round() -> None:
    rows = [row for row in pairs() if row["verdict"] == "equal" and not equal(row["answer"], row["reference"])]
    # As a reference, 5kg is a product of variables; ln of a square is defined where ln is not; a sum is no answer.
    one_way = {("5", "5kg"), (r"2\ln x", r"\ln x^2"), (r"\sum_{k=1}^{10} k", "55"), (r"\int_0^1 x\,dx", r"\frac12")}
    # A reference's I is a variable, and it names a choice by its letter alone.
    one_way |= {("4i", "4*I"), (r"1-\sqrt{2}i", "1 - sqrt(2)*I")}
    one_way |= {("C", "option C"), ("C", "Choice (C)"), ("C", "(C) 12"), ("C", "C) 3x + 1")}
    assert {(row["reference"], row["answer"]) for row in rows} == one_way


# --- numbers ----------------------------------------------------------------------------------------

numerators = st.integers(-200, 200)
denominators = st.integers(1, 60)


@given(st.integers(-(10**12), 10**12))
def test_every_way_to_write_an_integer_is_the_integer(n: int) -> None:
    ways = [f"{n}", f"{n:,}", f"{n:,}".replace(",", "{,}"), f"{n}.0", f"${n}$", f"\\boxed{{{n:,}}}.", f"{n} apples"]
    assert all(equal(str(n), way) for way in ways)
    assert not any(equal(str(n + 1), way) for way in ways)


@settings(max_examples=50)
@given(numerators, denominators, st.integers(2, 9))
def test_fractions_are_compared_by_value(a: int, b: int, k: int) -> None:
    assert equal(f"\\frac{{{a}}}{{{b}}}", f"\\frac{{{k * a}}}{{{k * b}}}")
    assert equal(f"\\frac{{{a}}}{{{b}}}", f"{a}/{b}")
    assert not equal(f"\\frac{{{a}}}{{{b}}}", f"\\frac{{{a * k + 1}}}{{{b * k}}}")


@settings(max_examples=50)
@given(st.integers(1, 400), st.integers(1, 400), st.sampled_from(["2", "3", "7", "10"]))
def test_small_numbers_are_as_different_as_large_ones(m: int, n: int, base: str) -> None:
    assert equal(f"{base}^{{-{m}}}", f"\\frac{{1}}{{{base}^{{{n}}}}}") == (m == n)
    assert equal(f"1-{base}^{{-{m}}}", f"1-{base}^{{-{n}}}") == (m == n)
    assert equal(f"x+{base}^{{-{m}}}", f"x+{base}^{{-{n}}}") == (m == n)
    assert equal(f"(0, {base}^{{-{m}}})", f"(0, {base}^{{-{n}}})") == (m == n)


@settings(max_examples=50)
@given(st.integers(2, 60), st.integers(2, 60), st.integers(1, 300))
def test_roots_are_compared_exactly(a: int, b: int, n: int) -> None:
    assert equal(f"(\\sqrt{{{a}}}+\\sqrt{{{b}}})^2", f"{a + b}+2\\sqrt{{{a * b}}}")
    assert not equal(f"10^{{{n}}}", f"\\sqrt{{10^{{{2 * n}}}+{a}}}")


@settings(max_examples=15)
@given(st.integers(-999, 999), st.integers(-999, 999))
def test_naming_two_answers_earns_nothing(a: int, b: int) -> None:
    for text in (f"{a} or {b}", f"{a}, {b}", f"{a} and {b}"):
        assert equal(str(a), text) is False or a == b


# --- words ------------------------------------------------------------------------------------------

POWERS_OF_THOUSAND = re.findall(r"\w+", "m b tr quadr quint sext sept oct non dec undec cent")
PARTS = re.findall(r"\w+", "four fif six seven eigh nin ten eleven twelf thirteen twentie hundred thousand million")


@pytest.mark.parametrize(
    "word",
    [
        *(f"{stem}illion{s}" for stem in POWERS_OF_THOUSAND for s in ("", "s")),
        *(f"{stem}illiard" for stem in POWERS_OF_THOUSAND),
        *(f"{stem}th{s}" for stem in PARTS for s in ("", "s")),
        *(f"{stem}uple{end}" for stem in ("quadr", "quint", "sext", "sept", "oct") for end in ("", "d", "s")),
        *(f"{word}fold" for word in ("two", "three", "ten", "hundred")),
        *["bn", "mn", "k", "K", "M", "B", "G", "T", "mln", "mio", "bil", "tn", "cr", "lk", "dz", "doz", "bps"],
    ],
)
def test_a_word_that_changes_a_number_is_no_unit(word: str) -> None:
    for written in (f"5 {word}", f"5\\text{{ {word}}}", f"5\\,\\mathrm{{{word}}}", f"5 {word} dollars", f"5-{word}"):
        assert not equal("5", written), written


@pytest.mark.parametrize("unit", "cm km kg mL hours apples dollars months° mph".replace("°", "").split())
def test_a_unit_is_dropped_in_every_way_to_set_it(unit: str) -> None:
    for written in (
        f"5 {unit}",
        f"5\\text{{ {unit}}}",
        f"5\\,\\mathrm{{{unit}}}",
        f"5~\\text{{{unit}}}",
        f"$5$ {unit}.",
    ):
        assert equal("5", written), written


# --- bounded cost -----------------------------------------------------------------------------------

TOWERS = (
    "9^{9^{9^9}}",
    "10^{10^{10}}",
    "99999999!",
    "((99!)!)!",
    "\\binom{10^{10}}{10^9}",
    "2^{-9^{9^9}}",
    "e^{e^{e^{100}}}",
    "\\sin(10^{10^{10}})",
    "\\sqrt[10^{9}]{2}",
    "\\log_2(3^{10^{12}})",
    "x^{10^{10^{10}}}",
    "x^{999999999999}+1",
    "1e999999999999",
    "0.5^{10^{12}}",
    "\\pi^{10^{15}}",
    "(1+\\sqrt{2})^{10^9}",
    "\\cosh(10^{20})",
    "\\lfloor \\pi \\cdot 10^{10^9} \\rfloor",
    "x = 9^{9^{9^9}}",
    "(1, 9^{9^{9^9}})",
)


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("reference", ["5", "\\sqrt{2}", "x+1", "(1, 2)", "9^{9^{9^8}}"])
def test_numbers_that_nobody_can_write_out_are_never_computed(reference: str, tower: str) -> None:
    assert not equal(reference, tower)
    assert not equal(tower, reference)


@pytest.mark.parametrize("tower", TOWERS)
def test_they_equal_what_is_written_like_them(tower: str) -> None:
    assert equal(tower, tower.replace("9^9", "9^{9}").replace("10^", "{10}^"))


NESTED = (
    "(" * 390,
    "{" * 390,
    "((((((1))))))" * 30,
    "\\sqrt" * 78,
    "2^" * 199 + "2",
    "|" * 399,
    "\\frac{" * 66,
    "\\sin" * 99,
)
LONG = (
    "-" * 399 + "1",
    "1+" * 199 + "1",
    "!" * 399,
    "5" + "!" * 300,
    "\\text{" * 66,
    "_" * 399,
    "1," * 199 + "1",
    "x" * 399,
)


@pytest.mark.parametrize("text", [*NESTED, *LONG])
def test_nonsense_is_different(text: str) -> None:
    assert not equal("7", text)


def test_an_empty_reference_equals_nothing() -> None:
    assert not any(
        equal(reference, answer) for reference in ("", "\\boxed{}", " ", "$$") for answer in ("", "\\boxed{}", "0")
    )


def values_of(kind: str) -> list[Any]:
    return [row for row in pairs() if row["kind"] == kind]


def test_only_few_pairs_need_math_verify(monkeypatch: pytest.MonkeyPatch) -> None:
    def unexpected(reference: str, answer: str) -> bool:
        raise AssertionError((reference, answer))

    monkeypatch.setattr("selfcorrect.tasks.math.sympy_fallback.same_by_math_verify", unexpected)
    for kind in ("tiny exact differences", "huge numbers", "matrices", "intervals", "algebra", "roots and powers"):
        assert values_of(kind)
        for row in values_of(kind):
            assert equal(row["reference"], row["answer"]) == (row["verdict"] == "equal")
