"""The rows that tables and figures share: the base, every method with the models on the way, evaluations of others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from selfcorrect.evaluation.metrics import with_later_attempts
from selfcorrect.report.methods import SEED_IN_NAME, Method, row_of_name
from selfcorrect.report.sources import Evaluated, Run
from selfcorrect.report.statistics import Estimate, over_seeds
from selfcorrect.storage.episode_log import StoredEpisode
from selfcorrect.types import TOKENS, Part

FIGURES = {"acc_t1": "Acc@t1", "acc_t2": "Acc@t2", "delta": "delta", "i_to_c": "i→c", "c_to_i": "c→i"}
"""What a row of the paper's table holds, by the name in a summary."""


@dataclass(frozen=True, eq=False)
class Measured:
    """One model measured once: its results and where its episodes lie (``episodes(part, limit)``)."""

    seed: int
    results: Mapping[str, Any]
    digest: str
    source: Run | Evaluated
    episodes: Callable[[Part, int | None], Iterator[StoredEpisode]]


@dataclass(frozen=True, eq=False)
class Row:
    """One model of one method over its seeds. ``series`` is the method's name, or "base"; it decides the colour.

    ``final`` is False for the models of stages on the way to the method's last one. ``paper`` is the paper's row,
    ``card`` what the method's directory says of it (see `sources.Run`). An untrained model that every run measured with the
    same outcome is one measurement, and its own interval the honest one: ``again`` are the runs that repeat it.
    """

    label: str
    series: str
    model: str
    measured: Sequence[Measured]
    final: bool = True
    paper: str | None = None
    card: Mapping[str, Any] = field(default_factory=dict)
    again: Sequence[Measured] = ()

    def spent(self, what: str) -> set[int]:
        """What training took in each run that says so: ``completions`` or ``updates``."""
        runs = [m.source for m in self.measured if isinstance(m.source, Run)]
        found = {run.spent(what) for run in runs} if self.model != "base" else {0}
        return {value for value in found if value is not None}

    @property
    def seeds(self) -> list[int]:
        return [m.seed for m in self.measured]

    @property
    def problems(self) -> int:
        """How many problems each run answered; the most, where runs differ."""
        return max(int(results["n"]) for results in self.results())

    def results(self, part: Part = Part.ATTEMPTS) -> list[Mapping[str, Any]]:
        """The results of every run: of the main attempts, or of those `Part.SAMPLED` names, drawn at T = 1.

        What repeats one greedy measurement has drawn samples of its own: those count, unless they are the same too.
        """
        if part is Part.ATTEMPTS:
            return [m.results for m in self.measured]
        found = [m.results[part] for m in [*self.measured, *self.again] if part in m.results]
        return self._once(found, "acc_t1", "acc_t2")

    def estimate(self, figure: str, part: Part = Part.ATTEMPTS) -> Estimate | None:
        """A figure over the seeds, of one seed with the interval that its summary has; None where no run has it."""
        found = map(with_later_attempts, self.results(part))
        return _estimate([(r.get(figure), r.get(f"{figure}_ci95")) for r in found])

    def control(self, kind: str) -> Estimate | None:
        """The difference that a control makes, over the seeds; None where it was not measured.

        Of a greedy measurement that was repeated, controls that drew samples count each, as in `results`.
        """
        every = [m.results.get("controls", {}) for m in [*self.measured, *self.again]]
        found = self._once([controls[kind] for controls in every if kind in controls], "difference")
        return _estimate([(c["difference"], c["difference_ci95"]) for c in found])

    def _once(self, found: list[Mapping[str, Any]], *figures: str) -> list[Mapping[str, Any]]:
        """The first alone of what repeats one measurement with the same figures."""
        alike = self.again and len({tuple(each[figure] for figure in figures) for each in found}) == 1
        return found[:1] if alike else found

    def by_seed(self, figure: str) -> dict[int, float]:
        """A figure of every run that has it, the repeating ones too: what pairs this row with another."""
        values = {m.seed: m.results.get(figure) for m in [*self.measured, *self.again]}
        return {seed: value for seed, value in values.items() if value is not None}


def _estimate(pairs: Sequence[tuple[float | None, Sequence[float] | None]]) -> Estimate | None:
    there = [(value, interval) for value, interval in pairs if value is not None]
    return over_seeds([value for value, _ in there], there[0][1]) if there else None


@dataclass(frozen=True, eq=False)
class Rows:
    """All rows of a report. ``extra`` are further evaluations of models that ``rows`` has already."""

    rows: Sequence[Row]
    extra: Sequence[Row] = field(default=())

    @property
    def finals(self) -> list[Row]:
        """The base and every method's last model, without the models on the way."""
        return [row for row in self.rows if row.final]

    @property
    def series(self) -> list[str]:
        """Every series once; the base first where there is one."""
        return list(dict.fromkeys(row.series for row in [*self.rows, *self.extra]))


def all_rows(methods: Sequence[Method], evaluations: Sequence[Evaluated]) -> Rows:
    """The base (once, if it is one model in all runs), then each method's models, then other evaluated models."""
    rows = _base_rows(methods)
    known = {_identity(m) for row in rows for m in row.measured}
    for method in methods:
        for model in method.models:
            measured = _of(method, model)
            final = model == method.final
            alike = {_identity(m) for m in measured}
            if model == "base" and not final:
                continue  # in the rows of the base already
            if alike <= known and (model == "base" or not final):
                continue  # the base itself as a method, or a stage that another method has gone through too
            known |= alike
            label = method.name if final else f"{method.name}, after {model}"
            told = (method.paper, method.card) if final else (None, {})
            once, again = _once(measured) if model == "base" else (measured, [])
            rows.append(Row(label, method.name, model, once, final, *told, again))
    return _with_evaluations(rows, evaluations)


def _with_evaluations(rows: list[Row], evaluations: Sequence[Evaluated]) -> Rows:
    """Evaluations as rows of their own, except where more attempts or samples of a row's model were looked at."""
    known = {m.digest: row for row in reversed(rows) for m in row.measured}
    groups: dict[tuple[str, str], list[Evaluated]] = {}
    for evaluation in evaluations:
        model = known[evaluation.digest].label if _is_extra(evaluation, known) else ""
        key = (model or evaluation_title(evaluation), repr(_conditions(evaluation)))
        groups.setdefault(key, []).append(evaluation)
    everything, extra = list(rows), list[Row]()
    for (name, _), group in groups.items():
        title, first = evaluation_title(group[0]), group[0]
        measured, again = _once([_measured_evaluation(evaluation) for evaluation in group])
        label = f"{name}{_suffix(first)}"
        if _is_extra(first, known):
            row = known[first.digest]
            taken = {r.label for r in extra} | {r.label for r in rows if _further(r)}
            choices = (label, f"{label}, {first.plan['turns']} attempts", f"{label} ({title})")
            label = next((choice for choice in choices if choice not in taken), choices[-1])
            extra.append(Row(label, row.series, row.model, measured, row.final, again=again))
        else:
            label = label if label not in {r.label for r in everything} else f"{label}, {first.path}"
            everything.append(Row(label, label, "model", measured, paper=row_of_name(title), again=again))
    return Rows(everything, extra)


def _is_extra(evaluation: Evaluated, known: Mapping[str, Row]) -> bool:
    further = evaluation.plan["turns"] > 2 or evaluation.plan["samples"] > 1
    return further and evaluation.digest in known and row_of_name(evaluation_title(evaluation)) is None


def _further(row: Row) -> bool:
    """Whether a row has more than two attempts or several samples, as further evaluations have."""
    return any(len(r["turns"]) > 2 or r["samples"] > 1 for r in row.results())


def _of(method: Method, model: str) -> list[Measured]:
    return [_measured_run(run, model) for run in method.runs if model in run.results]


def _measured_run(run: Run, model: str) -> Measured:
    digest = run.digests.get(model, f"{run.path}:{model}")
    return Measured(run.seed, run.results[model], digest, run, partial(run.episodes, model))


def _measured_evaluation(found: Evaluated) -> Measured:
    return Measured(int(found.plan["seed"]), found.results, found.digest, found, found.episodes)


def _base_rows(methods: Sequence[Method]) -> list[Row]:
    evaluated = {method.name: _of(method, "base") for method in _with_base(methods)}
    evaluated = {name: group for name, group in evaluated.items() if group}
    by_seed: dict[int, list[Measured]] = {}
    for m in (m for group in evaluated.values() for m in group):
        by_seed.setdefault(m.seed, []).append(m)
    if not by_seed:
        return []
    if any(len({_identity(m) for m in group}) > 1 for group in by_seed.values()):
        return [Row(f"base of {name}", "base", "base", group, paper="base") for name, group in evaluated.items()]
    measured, again = _once([by_seed[seed][0] for seed in sorted(by_seed)])
    return [Row("base", "base", "base", measured, paper="base", card=_card_of_base(methods), again=again)]


def _with_base(methods: Sequence[Method]) -> list[Method]:
    """The methods whose base is the base: all that train, after those that only measure it and found the same.

    The latter come first because their stored episodes are the base's. One that asks it otherwise is a method (Self-Refine).
    """
    trained = [method for method in methods if method.runs[0].stages]
    known = {_identity(m) for method in trained for m in _of(method, "base")}
    measuring = [method for method in methods if method not in trained and method.paper in (None, "base")]
    same = [method for method in measuring if not trained or known.issuperset(map(_identity, _of(method, "base")))]
    return [*same, *trained]


def _once(measured: Sequence[Measured]) -> tuple[Sequence[Measured], Sequence[Measured]]:
    """The first of runs that measured the same model with the same outcome, and those that repeat it; else all of them."""
    alike = len({_identity(m) for m in measured}) == 1
    return (measured[:1], measured[1:]) if alike else (measured, [])


def _identity(measured: Measured) -> tuple[Any, ...]:
    """What two evaluations of one model have in common: the model, how it was asked, and what came of it."""
    task = repr(measured.source.settings.get("task")) if isinstance(measured.source, Run) else ""
    return measured.digest, task, measured.results["acc_t1"], measured.results["acc_t2"]


def _card_of_base(methods: Sequence[Method]) -> Mapping[str, Any]:
    return next((method.card for method in methods if method.card.get("key") == "base"), {})


def evaluation_title(evaluation: Evaluated) -> str:
    """An evaluation's name: its directory's, without the seed."""
    return SEED_IN_NAME.sub("", evaluation.path.name).strip("-_. ") or evaluation.path.parent.name


def _conditions(evaluation: Evaluated) -> tuple[Any, ...]:
    """What two evaluations must share to be seeds of the same thing."""
    plan = {key: value for key, value in evaluation.plan.items() if key != "seed"}
    mode = evaluation.context_mode
    return (plan, evaluation.identity["task"], evaluation.identity["problems"], evaluation.identity.get("script"), mode)


def _suffix(evaluation: Evaluated) -> str:
    temperature = float(evaluation.plan["temperature"])
    mode = "" if evaluation.context_mode == TOKENS else f", context mode {evaluation.context_mode}"
    return f", T = {temperature:g}{mode}" if temperature else mode
