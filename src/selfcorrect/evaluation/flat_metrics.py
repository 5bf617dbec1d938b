"""The metrics of an evaluation under flat names, for other tools' logs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from selfcorrect.evaluation.decomposition import BLIND_ACCURACY, DETECTED, LIFTS, SHOWN, stored_detection
from selfcorrect.evaluation.evaluation import COMPARED
from selfcorrect.evaluation.metrics import with_later_attempts
from selfcorrect.evaluation.tokens_per_problem import NAME as TOKENS_PER_PROBLEM
from selfcorrect.evaluation.truncated_drafts import NAME as TRUNCATED_DRAFTS
from selfcorrect.evaluation.verification import VERDICTS

MAIN = ("acc_t1", "acc_t2", "delta", "i_to_c", "c_to_i")


@dataclass(frozen=True, slots=True)
class Metric:
    """A fraction, a difference of fractions or a number of tokens, with its 95% interval where it has one."""

    value: float
    ci95: tuple[float, float] | None = None


def flat_metrics(results: Mapping[str, Any]) -> dict[str, Metric]:
    """Return the metrics of a summary's results (`Evaluation.to_json`), each under one name.

    Those of samples in addition to the main attempts begin with ``sampled_``; those of a blind draft end in ``_swapped``,
    ``_empty`` or ``_shuffled``. With truncated first attempts, ``i_to_c_truncated_draft`` and ``c_to_i_truncated_draft`` are
    the flips that begin with one, and ``delta_complete_drafts`` is delta in the other episodes. What is None, because it is
    a rate among no answers, is left out.
    """
    found = dict(_main(results))
    if "sampled" in results:
        found |= {f"sampled_{name}": metric for name, metric in _main(results["sampled"])}
    for control, values in results.get("controls", {}).items():
        after = COMPARED[control][1]
        found[after] = Metric(values[after], _interval(values.get(f"{after}_ci95")))
    found |= dict(_truncated(results.get(TRUNCATED_DRAFTS)))
    made_of = results.get("decomposition", {})
    for control, parts in made_of.get("blind", {}).items():
        ending = BLIND_ACCURACY[control].removeprefix("acc_t2")
        found |= {f"{name}{ending}": metric for name, metric in _named(parts, SHOWN)}
    if made_of.get("reads") is not None:
        found["reads"] = Metric(float(made_of["reads"]))
    found |= dict(_named(stored_detection(results) or {}, DETECTED))
    for k, turn in enumerate(results.get("verifications", ()), 1):
        found |= {f"verdict_{name}_v{k}": metric for name, metric in _named(turn, VERDICTS)}
    return found | dict(_named(made_of.get("samples", {}), LIFTS))


def _main(results: Mapping[str, Any]) -> Iterator[tuple[str, Metric]]:
    results = with_later_attempts(results)
    later = [f"acc_t{k}" for k in range(3, len(results["turns"]) + 1)]
    yield from _named(results, [*MAIN, *later, TOKENS_PER_PROBLEM])


def _truncated(found: Mapping[str, Any] | None) -> Iterator[tuple[str, Metric]]:
    if found is None:
        return
    for flip in ("i_to_c", "c_to_i"):
        yield f"{flip}_truncated_draft", Metric(found[flip] / found["of"])
    if found["complete"] is not None:
        complete = found["complete"]
        yield "delta_complete_drafts", Metric(complete["delta"], _interval(complete["delta_ci95"]))


def _named(values: Mapping[str, Any], names: Any) -> Iterator[tuple[str, Metric]]:
    for name in names:
        if values.get(name) is not None:
            yield name, Metric(values[name], _interval(values.get(f"{name}_ci95")))


def _interval(value: Any) -> tuple[float, float] | None:
    return None if value is None else (value[0], value[1])
