"""Results as plain text, from the ``results`` of a summary alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from selfcorrect.config import aliases
from selfcorrect.evaluation.metrics import with_later_attempts

ACCURACIES = {"Acc@t1": "acc_t1", "Acc@t2": "acc_t2"}
CHANGES = {"delta": "delta", "i->c": "i_to_c", "c->i": "c_to_i"}
TROUBLE = {
    "truncated": "cut off at the token limit",
    "no_answer": "without an answer",
    "out_of_memory": "out of memory",
    "refused": "refused by the sandbox",
    "timed_out": "timed out in the verifier",
    "verifier_failed": "failed in the verifier",
}


def paper_table(results: Mapping[str, Mapping[str, Any]], title: str) -> str:
    """The paper's table: a row per model, each figure in per cent over its 95 % interval.

    >>> row = {"n": 4, "samples": 1, "acc_t1": 0.25, "acc_t1_ci95": [0.05, 0.7], "ci_method": "95 %", "turns": []}
    >>> print(paper_table({"base": row}, "greedy"))
    greedy; n = 4 problems; in % of all, below each figure its 95 % interval
                 Acc@t1
      base         25.0
            [5.0, 70.0]
    Intervals: 95 %
    """
    results = {name: with_later_attempts(found) for name, found in results.items()}
    turns = max(len(found["turns"]) for found in results.values())
    later = {f"Acc@t{k}": f"acc_t{k}" for k in range(3, turns + 1)}
    columns = ACCURACIES | later | CHANGES
    present = {head: key for head, key in columns.items() if any(r.get(key) is not None for r in results.values())}
    one = next(iter(results.values()))
    counted = f"{one['n']} problems" + (f" x {one['samples']:g} samples" if one["samples"] != 1 else "")
    rows: list[list[str]] = [["", *present]]
    for name, found in results.items():
        rows.append([name, *(_percent(found.get(key), signed=key == "delta") for key in present.values())])
        rows.append(["", *(_interval(found.get(f"{key}_ci95"), signed=key == "delta") for key in present.values())])
    return "\n".join(
        [
            f"{title}; n = {counted}; in % of all, below each figure its 95 % interval",
            _aligned(rows),
            *_trouble(results),
            *_lengths(results),
            *_modes(results),
            f"Intervals: {one['ci_method']}",
        ]
    )


def all_tables(results: Mapping[str, Mapping[str, Any]], *, temperature: float = 0.0) -> str:
    """The table of the main attempts; that of the samples and the controls, where there are any."""
    parts = [paper_table(results, f"Sampled at T = {temperature:g}" if temperature else "Greedy")]
    sampled = {name: found["sampled"] for name, found in results.items() if "sampled" in found}
    if sampled:
        parts.append(paper_table(sampled, "Sampled at the training temperature"))
    return "\n\n".join([*parts, *filter(None, (rules_table(results), controls_table(results)))])


def rules_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The main figures under each rule of finding the answer in the text, and how often it found none."""
    rows = []
    for name, found in results.items():
        for rule, r in aliases.by_rule(found).items():
            figures = [_percent(r[key], signed=key == "delta") for key in ("acc_t1", "acc_t2", "delta")]
            missing = ", ".join(_percent(turn["no_answer"]) for turn in r["turns"])
            rows.append([f"{name}, {rule}", *figures, missing])
    head = ["", "Acc@t1", "Acc@t2", "delta", "no answer (t1, t2, ..)"]
    return f"By the rule that finds the answer; in %\n{_aligned([head, *rows])}" if rows else ""


def controls_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """What becomes of the second attempt with another problem's draft, and of a mere second first attempt."""
    kinds = {
        "draft_swap": ("Acc@t2", "acc_t2", "another's draft", "acc_t2_swapped"),
        "independent_resample": ("Acc@t1", "acc_t1", "asked afresh", "acc_resampled"),
    }
    blocks = []
    for kind, (before, before_key, after, after_key) in kinds.items():
        found = {name: r["controls"][kind] for name, r in results.items() if kind in r.get("controls", {})}
        if found:
            rows = [["", before, after, "difference", "95 % interval"]]
            for name, c in found.items():
                difference = _percent(c["difference"], signed=True)
                interval = _interval(c["difference_ci95"], signed=True)
                rows.append([name, _percent(c[before_key]), _percent(c[after_key]), difference, interval])
            blocks.append(f"Control, {kind.replace('_', ' ')}; in %\n{_aligned(rows)}")
    return "\n\n".join(blocks)


def _trouble(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for every kind of attempt that says little about the answer, where there were any."""
    lines = []
    for name, found in results.items():
        parts = [
            f"{_rate(turn[key])} % of t{k} {words}"
            for k, turn in enumerate(found["turns"], 1)
            for key, words in TROUBLE.items()
            if turn.get(key)
        ]
        if parts:
            lines.append(f"  {name}: {', '.join(parts)}")
    return lines


def _lengths(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for every model whose attempts' lengths are known."""
    return [
        f"  {name}, tokens: "
        + ", ".join(
            f"t{k} {turn['mean']:.1f} on average, {turn['max']} at most" for k, turn in enumerate(found["lengths"], 1)
        )
        for name, found in results.items()
        if found.get("lengths")
    ]


def _modes(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for every model whose later turns did not extend the sampled ids."""
    return [
        f"  {name}, context mode messages: the server renders earlier turns anew; not comparable with mode tokens"
        for name, found in results.items()
        if found.get("context_mode") == "messages"
    ]


def _percent(value: float | None, *, signed: bool = False) -> str:
    if value is None:
        return "-"
    return f"{100 * value:+.1f}" if signed else f"{100 * value:.1f}"


def _rate(value: float) -> str:
    """A share that is not 0, so that it does not read as if it were."""
    return _percent(value) if value >= 0.0005 else "<0.1"


def _interval(value: Sequence[float] | None, *, signed: bool = False) -> str:
    return "" if value is None else f"[{_percent(value[0], signed=signed)}, {_percent(value[1], signed=signed)}]"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns on their right edge, the first on its left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        (
            "  "
            + row[0].ljust(widths[0])
            + "".join(f"  {cell:>{w}}" for cell, w in zip(row[1:], widths[1:], strict=True))
        )
        for row in rows
    )
