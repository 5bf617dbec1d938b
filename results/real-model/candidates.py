"""The candidates for the real model's task, and the settings under which all of them are measured."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from skills import (
    ASKED_FOR,
    CHECKED,
    EITHER,
    IF_OTHER,
    SAID,
    VERDICT,
    Lines,
    checked,
    kept,
    named_verdicts,
    orders,
    phrased_orders,
    verdicts,
)

from selfcorrect import Problem
from selfcorrect.tasks.worked_steps import REVISE

MODEL, DTYPE = "smollm2-135m", "bfloat16"
LORA = {"rank": 16, "alpha": 32}
RATE, BATCH = 1e-3, 8
TRAIN, LOOKED_AT = 800, 64
"""Training problems of the cold start, and development problems of a look."""


@dataclass(frozen=True)
class Candidate:
    """A task with its options, the token limit of a turn, and how a demonstration is written if the task has no solutions.

    ``taught`` are a problem's transcripts of a second skill, by kind. The cold start then consists of these, ``batch`` a step.
    ``revised`` gives the probe's second attempt at a problem after a draft; unset: the solution.
    """

    task: str
    options: Mapping[str, Any] = field(default_factory=dict)
    max_tokens: int = 60
    stop: tuple[str, ...] = ()
    written: Callable[[Problem], str] | None = None
    taught: Mapping[str, Callable[[Problem], list[Lines]]] = field(default_factory=dict)
    batch: int = BATCH
    revised: Callable[[Problem, str], str] | None = None


def added_up(problem: Problem) -> str:
    """Return the steps of a sum or difference of several terms, from left to right."""
    terms = re.findall(r"([+-]?) ?(\d+)", problem.prompt)
    total, lines = int(terms[0][1]), []
    for sign, number in terms[1:]:
        after = total + int(number) * (-1 if sign == "-" else 1)
        lines.append(f"{total} {sign} {number} = {after}")
        total = after
    return "\n".join(lines)


def worked(family: str, level: int, **options: Any) -> Candidate:
    longer = level == 3 or (family, level) == ("sum", 2)  # solutions of up to 102 tokens
    return Candidate("worked_steps", {"family": family, "level": level, **options}, max_tokens=120 if longer else 60)


FAMILIES = (
    *("sum", "product", "chain", "order", "equation", "remainder", "units"),
    *("clock", "weekday", "sort", "filter", "count", "reverse"),
)
EQUATIONS = ("sum", "product", "chain", "equation", "remainder", "units")
CHAIN_SUM = {
    **{"min_terms": 3, "max_terms": 3, "min_digits": 2, "max_digits": 2, "last_number": True},
    **{"first": "{prompt}", "system": "You solve problems step by step."},
    "revise": "Check each step and correct any error. Write the whole solution again.",
}
CANDIDATES: Mapping[str, Candidate] = {
    **{f"{family}-{level}": worked(family, level) for level in (1, 2, 3) for family in FAMILIES},
    **{
        f"{family}-{level} checked": worked(family, level, check_steps=True)
        for level in (1, 2, 3)
        for family in EQUATIONS
    },
    "order-1 repeated": worked("order", 1, revise=f"{REVISE} {{prompt}}"),
    "order-1 skills": replace(worked("order", 1), taught={"verdicts": verdicts, "orders": orders}, batch=16),
    "order-1 named": replace(worked("order", 1), taught={"verdicts": named_verdicts, "orders": orders}, batch=16),
    "order-1 verdict": replace(worked("order", 1), taught={"verdicts": verdicts}, batch=16),
    "order-1 feedback": replace(
        worked("order", 1, revise=[{"text": VERDICT, "role": "feedback"}, REVISE]),
        taught={"verdicts": named_verdicts, "orders": orders},
        batch=16,
    ),
    "order-1 asked": replace(
        worked("order", 1, revise=[{"text": VERDICT, "role": "feedback"}, ASKED_FOR]),
        taught={"verdicts": named_verdicts, "orders": orders},
        batch=16,
    ),
    **{
        f"order-1 {name}": replace(
            worked("order", 1, revise=[{"text": VERDICT, "role": "feedback"}, instruction]),
            taught={"verdicts": named_verdicts, "orders": orders},
            batch=16,
        )
        for name, instruction in (("either", EITHER), ("said", SAID), ("if", IF_OTHER))
    },
    "order-1 checks": replace(
        worked("order", 1, revise=CHECKED),
        taught={"verdicts": named_verdicts, "orders": orders, "kept": kept},
        batch=16,
        revised=checked,
    ),
    "order-1 phrased": replace(
        worked("order", 1, revise=CHECKED),
        taught={"verdicts": named_verdicts, "orders": phrased_orders, "kept": kept},
        batch=16,
        revised=checked,
    ),
    "order-1 kept": replace(
        worked("order", 1, revise=CHECKED),
        taught={"verdicts": named_verdicts, "kept": kept},
        batch=16,
        revised=checked,
    ),
    "worked_sums": Candidate("worked_sums", {"numbers": 4, "largest": 60}),
    "chain_sum": Candidate("reasoning_gym:chain_sum", CHAIN_SUM, written=added_up),
}
"""By name: every family of `worked_steps` at its levels, also with `check_steps` where solutions are equations, and others."""
