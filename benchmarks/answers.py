r"""Print how often rules for mathematical answers err on the hand-judged corpora of tests/data.

Next to this package's strict and flexible rules stand math-verify's own `parse` and `verify` with their defaults, and a
re-implementation, from its description, of lm-evaluation-harness' extraction for GSM8K: a strict match of
``#### NUMBER`` and a flexible one of the last number, compared as text without commas, dollar signs and a final full stop.
Math-verify has a time limit of 5 s per text, which counts as incorrect.

    python -m benchmarks.answers
"""

from __future__ import annotations

import csv
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path

from selfcorrect.tasks.math.equality import equal
from selfcorrect.tasks.math.reading import flexible_answer, strict_answer

DATA = Path(__file__).parents[1] / "tests" / "data"
Rule = Callable[[str, str], bool]
Case = tuple[str, str, bool]
"""A text, the reference, and whether the text is correct."""


def _own(extract: Callable[[str], str | None]) -> Rule:
    def rule(text: str, reference: str) -> bool:
        answer = extract(text)
        return answer is not None and equal(reference, answer)

    return rule


def _math_verify(text: str, reference: str) -> bool:
    from math_verify import parse, verify

    try:
        return bool(verify(parse(f"${reference}$"), parse(text)))
    except Exception:  # its parser raises many kinds
        return False


def _last_number(pattern: str) -> Rule:
    def rule(text: str, reference: str) -> bool:
        found = re.findall(pattern, text)
        plain = [re.sub(r"[,$]|\.$", "", part).strip() for part in (found[-1] if found else "", reference)]
        return plain[0] == plain[1] != ""

    return rule


RULES: dict[str, Rule] = {
    "selfcorrect, flexible": _own(flexible_answer),
    "selfcorrect, strict": _own(strict_answer),
    "math-verify, parse and verify": _math_verify,
    "last number (flexible-extract of lm-eval)": _last_number(r"-?[$0-9.,]{2,}|-?[0-9]+"),
    "#### NUMBER (strict-match of lm-eval)": _last_number(r"#### (-?[0-9.,]+)"),
}


def _read_pairs() -> list[Case]:
    with (DATA / "maths_pairs.tsv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    form = "Final Answer: The final answer is {}. I hope it is correct."
    formulas = [row["answer"] if "$" in row["answer"] else f"${row['answer']}$" for row in rows]
    return [
        (form.format(f), row["reference"], row["verdict"] == "equal") for f, row in zip(formulas, rows, strict=True)
    ]


def _read_completions(verdict: str) -> list[Case]:
    lines = (DATA / "maths_completions.jsonl").read_text(encoding="utf-8").splitlines()
    return [(row["text"], row["reference"], row[verdict] == "correct") for row in map(json.loads, lines)]


def errors(rule: Rule, cases: list[Case]) -> str:
    """Return the incorrect texts that a rule accepts, and the correct ones that it does not, in %."""
    accepted = [rule(text, reference) for text, reference, _ in cases]
    bad = [got for got, (_, _, correct) in zip(accepted, cases, strict=True) if not correct]
    good = [got for got, (_, _, correct) in zip(accepted, cases, strict=True) if correct]
    return f"{100 * sum(bad) / len(bad):.1f} | {100 * (len(good) - sum(good)) / len(good):.1f}"


def _main() -> None:
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    pairs = _read_pairs()
    print("| rule | pairs: false + | false - | completions: false + | false - |\n|---|---|---|---|---|")
    for name, rule in RULES.items():
        completions = _read_completions("strict" if name == "selfcorrect, strict" else "flexible")
        print(f"| {name} | {errors(rule, pairs)} | {errors(rule, completions)} |", flush=True)


if __name__ == "__main__":
    _main()
