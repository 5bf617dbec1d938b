"""The shapes of stored documents: which keys and types the readers rely on. Damage is then named, not stumbled over later.

A shape is a function that raises a ValueError, or a mapping from keys to shapes; a key that ends in ``?`` may be missing.
Other keys are allowed, because other versions may have written them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

Shape = Callable[[Any], None] | Mapping[str, Any]


def check_shape(value: Any, shape: Shape, where: str = "") -> None:
    """Check a value against a shape.

    Raises:
        ValueError: something is missing or has another type; the message names its path.
    """
    try:
        if not isinstance(shape, Mapping):
            shape(value)
            return
        if not isinstance(value, Mapping):
            raise ValueError(f"it is {_named(value)}, not an object")
    except _Inside as error:
        raise ValueError(f"{where}{error}") from None
    except ValueError as error:
        raise ValueError(f"{where.removesuffix('.') or 'the document'}: {error}") from None
    for name, inner in shape.items():
        key = name.removesuffix("?")
        if key in value:
            check_shape(value[key], inner, f"{where}{key}.")
        elif key == name:
            raise ValueError(f"{where}{key} is missing")


class _Inside(ValueError):
    """An error whose message begins with the path below the checked value."""


def text(value: Any) -> None:
    """Check for a text."""
    _expect(isinstance(value, str), value, "a text")


def flag(value: Any) -> None:
    """Check for true or false."""
    _expect(isinstance(value, bool), value, "true or false")


def integer(value: Any) -> None:
    """Check for an integer."""
    _expect(isinstance(value, int) and not isinstance(value, bool), value, "an integer")


def positive(value: Any) -> None:
    """Check for an integer above 0."""
    integer(value)
    _expect(0 < value < 2**53, value, "an integer above 0")


def number(value: Any) -> None:
    """Check for a finite number."""
    _expect(isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value), value, "a number")


def fraction(value: Any) -> None:
    """Check for a number in [-1, 1], for a difference of fractions may be negative."""
    number(value)
    _expect(-1 <= value <= 1, value, "a fraction")


def interval(value: Any) -> None:
    """Check for a list of two numbers."""
    _expect(isinstance(value, list) and len(value) == 2, value, "a list of two numbers")
    for end in value:
        number(end)


def anything(value: Any) -> None:
    """Accept any value."""


def table(value: Any) -> None:
    """Check for an object."""
    _expect(isinstance(value, Mapping), value, "an object")


def optional(shape: Shape) -> Callable[[Any], None]:
    """Return a shape that also allows null."""

    def check(value: Any) -> None:
        if value is not None:
            _inside(value, shape, "")

    return check


def list_of(shape: Shape, least: int = 0) -> Callable[[Any], None]:
    """Return the shape of a list with at least ``least`` items."""

    def check(value: Any) -> None:
        _expect(isinstance(value, list) and len(value) >= least, value, f"a list of at least {least}")
        for place, item in enumerate(value):
            _inside(item, shape, f"{place}.")

    return check


def map_of(shape: Shape) -> Callable[[Any], None]:
    """Return the shape of an object whose values all have one shape."""

    def check(value: Any) -> None:
        table(value)
        for name, item in value.items():
            _inside(item, shape, f"{name}.")

    return check


def numbers(value: Any) -> None:
    """Check for numbers, null or texts in nested objects."""
    if isinstance(value, Mapping):
        map_of(numbers)(value)
    elif value is not None and not isinstance(value, (bool, str)):
        number(value)


def same_answers(value: Any) -> None:
    """Check for the answers that nearly all attempts give, by attempt (``t1``)."""
    map_of({"answer": text, "count": positive, "n": positive, "right": integer})(value)
    _expect(all(re.fullmatch("t[1-9][0-9]?", name) for name in value), value, "t1, t2 and so on")


def metrics(value: Any) -> None:
    """Check for a line of ``metrics.jsonl``: numbers or null, apart from the stage and the results in ``dev``."""
    check_shape(value, {"stage": text, "step": integer, "dev?": table})
    numbers(value.get("dev"))
    check_shape(value.get("dev", {}), {"same_answers?": same_answers}, "dev.")
    # A log has many thousands of numbers, so the walk with a path for the message sees only what is none.
    map_of(optional(number))(
        {key: item for key, item in value.items() if key not in ("stage", "dev") and not _is_finite_float(item)}
    )


def _is_finite_float(value: Any) -> bool:
    return type(value) is float and math.isfinite(value)


def _inside(value: Any, shape: Shape, where: str) -> None:
    try:
        check_shape(value, shape, where)
    except ValueError as error:
        raise _Inside(str(error).removeprefix("the document: ") if not where else str(error)) from None


def _expect(holds: bool, value: Any, what: str) -> None:
    if not holds:
        raise ValueError(f"it is {_named(value)}, not {what}")


def _named(value: Any) -> str:
    return (
        "null"
        if value is None
        else f"{value!r:.40}"
        if isinstance(value, (str, int, float))
        else f"a {type(value).__name__}"
    )


IDENTITY_SHAPE: Shape = {
    "task": {"name": text, "version": text},
    "problems": {"split": text, "data_seed": integer, "count": positive, "digest": text},
    "model": {"digest": optional(text), "source": text},
    "plan": {
        "turns": positive,
        "seed": integer,
        "max_tokens": positive,
        "temperature": number,
        "samples": positive,
        "sampled_temperature": optional(number),
        "controls": flag,
        "drafts?": text,
    },
    "context_mode?": text,
    "dtype?": text,
    "endpoint?": {"base_url": text, "model": text, "api?": text, "tokenizer?": text},
    "script?": {"first": text, "revise": anything, "system": optional(text), "turns": positive},
    "task_source?": {"name": text, "options": table},
}
"""``eval.json``."""

_FRACTION_OR_NULL, _INTERVAL_OR_NULL = optional(fraction), optional(interval)
_FIGURES: dict[str, Any] = {
    "n": positive,
    "samples": number,
    "acc_t1": fraction,
    "acc_t1_ci95": interval,
    **{f"{name}": _FRACTION_OR_NULL for name in ("acc_t2", "delta", "i_to_c", "c_to_i")},
    "answer_change_rate?": _FRACTION_OR_NULL,
    **{f"{name}_ci95?": _INTERVAL_OR_NULL for name in ("acc_t2", "delta", "i_to_c", "c_to_i")},
    "edit_distance_ratio_mean?": _FRACTION_OR_NULL,
    "ci_method": text,
    "turns": list_of(
        {
            "accuracy": fraction,
            "accuracy_ci95?": _INTERVAL_OR_NULL,
            **{f"{name}?": fraction for name in ("truncated", "no_answer", "timed_out", "verifier_failed")},
            **{f"{name}?": fraction for name in ("out_of_memory", "refused")},
        },
        least=1,
    ),
}
_CONTROL: dict[str, Any] = {
    "n": positive,
    "difference": fraction,
    "difference_ci95": _INTERVAL_OR_NULL,
    "i_to_c": fraction,
    "c_to_i": fraction,
}
_BLIND: dict[str, Any] = {
    control: {**_CONTROL, "acc_t2": fraction, accuracy: fraction, f"{accuracy}_ci95": _INTERVAL_OR_NULL}
    for control, accuracy in (
        ("draft_swap?", "acc_t2_swapped"),
        ("empty_draft?", "acc_t2_empty"),
        ("shuffled_draft?", "acc_t2_shuffled"),
    )
}
_RESAMPLE = {**_CONTROL, "acc_t1": fraction, "acc_resampled": fraction, "acc_resampled_ci95": _INTERVAL_OR_NULL}
_RATES = ("changed_if_incorrect", "changed_if_correct", "fixed", "broken", "youden")
_LATER_RATES = ("correct_if_incorrect", "correct_if_correct")
_PARTS: dict[str, Any] = {
    "acc_blind": fraction,
    **dict.fromkeys(("re_answering", "keep", "repair", "reading"), fraction),
    **{f"{name}_ci95": interval for name in ("re_answering", "keep", "repair", "reading")},
}
_TRUNCATED_DRAFTS: dict[str, Any] = {
    **dict.fromkeys(("count", "of", "i_to_c", "all_i_to_c", "c_to_i", "all_c_to_i"), integer),
    "complete": optional(
        {
            "n": positive,
            **dict.fromkeys(("acc_t1", "acc_t2", "delta", "i_to_c", "c_to_i"), fraction),
            "delta_ci95": interval,
            "blind": map_of(_PARTS),
        }
    ),
}
_TOKENS: dict[str, Any] = {
    **dict.fromkeys(("tokens_per_problem?", "tokens_per_problem_attempts?", "tokens_per_problem_other?"), number),
    "tokens_per_problem_ci95?": _INTERVAL_OR_NULL,
}
_LIFTS = ("d", "lift_incorrect", "lift_correct")
_DECOMPOSITION: dict[str, Any] = {
    "detection": {
        **dict.fromkeys(_RATES, _FRACTION_OR_NULL),
        **{f"{name}_ci95": _INTERVAL_OR_NULL for name in _RATES},
        **{f"{name}?": _FRACTION_OR_NULL for name in _LATER_RATES},
        **{f"{name}_ci95?": _INTERVAL_OR_NULL for name in _LATER_RATES},
    },
    "blind?": map_of(_PARTS),
    "reads?": flag,
    "conclusion?": dict.fromkeys(("reads", "reads_because", "behaviour", "because"), text),
    "samples?": {
        "samples": number,
        "mixed": integer,
        **dict.fromkeys(_LIFTS, _FRACTION_OR_NULL),
        **{f"{name}_ci95": _INTERVAL_OR_NULL for name in _LIFTS},
    },
}
_VERDICTS = ("accuracy", "wrong_if_incorrect", "wrong_if_correct", "says_nothing")
_VERIFICATION: dict[str, Any] = {
    **dict.fromkeys(("taken", "skipped"), integer),
    **dict.fromkeys(_VERDICTS, _FRACTION_OR_NULL),
    **{f"{name}_ci95": _INTERVAL_OR_NULL for name in _VERDICTS},
    "tokens": optional(number),
}
RESULTS_SHAPE: Shape = {
    **_FIGURES,
    **_TOKENS,
    "context_mode?": text,
    "drafts?": text,
    "failed_requests?": {"episodes": positive, "of": positive, "problem_id": text, "reason": text},
    "other_models?": list_of(text),
    "lengths?": list_of({"mean": number, "median": number, "p90": number, "max": integer}),
    "same_answers?": same_answers,
    "supply?": {"available": positive, "more": text},
    "truncated_drafts?": _TRUNCATED_DRAFTS,
    "sampled?": {**_FIGURES, **_TOKENS, "truncated_drafts?": _TRUNCATED_DRAFTS},
    "by_rule?": map_of(_FIGURES),
    "readings?": map_of(_FIGURES),
    "controls?": {**_BLIND, "independent_resample?": _RESAMPLE},
    "decomposition?": _DECOMPOSITION,
    "verifications?": list_of(_VERIFICATION),
}
"""The results of one model in ``summary.json``."""

SUMMARY_SHAPE: Shape = {
    "results": map_of(RESULTS_SHAPE),
    "provenance?": {"model_digests?": map_of(optional(text))},
    "below_base?": text,
    "stopped?": map_of(text),
    "train_problems?": integer,
    "sampled_tokens?": integer,
}
"""``summary.json``."""

SETTINGS_SHAPE: Shape = {
    "seed?": integer,
    **{f"{group}?": table for group in ("model", "rollout", "vllm", "optimizer", "kl", "log")},
    "task?": {"name?": text, "options?": table},
    "eval?": {"samples?": integer},
    "stages?": map_of(
        {
            "reward_weights?": list_of(number),
            "bonus?": number,
            "discount?": number,
            "offline_share?": number,
            "adaptive?": table,
            "replay?": table,
        }
    ),
}
"""What a report relies on in a stored ``config.toml``, of this version or an earlier one."""

CARD_SHAPE: Shape = {
    "key": text,
    "title?": text,
    "table": text,
    "place": integer,
    "budget?": text,
    "definition?": table,
}
"""``method.json``."""

_TRIAL: dict[str, Any] = {
    "settings": list_of(text),
    "chosen?": flag,
    "base?": optional(text),
    **{f"{name}?": fraction for name in ("acc_t1", "acc_t2", "delta")},
    **{f"{name}_ci95?": interval for name in ("acc_t1", "acc_t2", "delta")},
}
TRIALS_SHAPE: Shape = {
    "seed?": integer,
    "problems?": positive,
    "criterion?": text,
    "criteria?": map_of(text),
    "titles?": map_of(text),
    "rows?": map_of(list_of(_TRIAL)),
}
"""``trials.json``."""
