"""The rows that tables and figures share: the base, every method with its intermediate models, other evaluated models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import mean
from typing import Any

from selfcorrect.evaluation.conclusion import Conclusion, Evidence, conclude, evidence_of
from selfcorrect.evaluation.decomposition import StoredTerm, stored_detection, stored_parts
from selfcorrect.evaluation.metrics import with_later_attempts
from selfcorrect.evaluation.truncated_drafts import NAME as TRUNCATED_DRAFTS
from selfcorrect.evaluation.truncated_drafts import basis_of, conclusive, truncated_flips_text
from selfcorrect.report.methods import SEED_IN_NAME, Method, row_of_name
from selfcorrect.report.sources import Evaluated, Run
from selfcorrect.report.statistics import Estimate, over_seeds, t_estimate
from selfcorrect.storage.episode_log import StoredEpisode
from selfcorrect.types import TOKENS, Part

METRICS = {"acc_t1": "Acc@t1", "acc_t2": "Acc@t2", "delta": "delta", "i_to_c": "i→c", "c_to_i": "c→i"}
"""The columns of the paper's table, by their names in a summary."""


@dataclass(frozen=True, eq=False)
class Measured:
    """One evaluation of one model: its results, and its episodes through ``episodes(part, limit)``."""

    seed: int
    results: Mapping[str, Any]
    digest: str
    source: Run | Evaluated
    episodes: Callable[[Part, int | None], Iterator[StoredEpisode]]


@dataclass(frozen=True, eq=False)
class Row:
    """One model of one method over its seeds. ``series`` is the method's name, or "base"; it decides the colour.

    ``final`` is False for the models of the stages before the method's last one. ``paper`` is the key of the paper's row,
    ``card`` the card in the method's directory (see `sources.Run`). If every run measured the same untrained model with the
    same outcome, that is one measurement, whose own interval is the honest one; ``again`` are the runs that repeat it.
    ``problem_set`` names the problems that it answers, if rows differ in them (`problem_sets`).
    """

    label: str
    series: str
    model: str
    measured: Sequence[Measured]
    final: bool = True
    paper: str | None = None
    card: Mapping[str, Any] = field(default_factory=dict)
    again: Sequence[Measured] = ()
    problem_set: str = ""

    def spent(self, what: str) -> set[int]:
        """Return the ``completions``, ``sampled_tokens`` or ``updates`` of training in each run that records them."""
        runs = [m.source for m in self.measured if isinstance(m.source, Run)]
        values = {run.spent(what) for run in runs} if self.model != "base" else {0}
        return {value for value in values if value is not None}

    @property
    def seeds(self) -> list[int]:
        return [m.seed for m in self.measured]

    @property
    def problems(self) -> int:
        """Return the number of problems that each run answered; the largest, if runs differ."""
        return max(int(results["n"]) for results in self.results())

    def results(self, part: Part = Part.ATTEMPTS) -> list[Mapping[str, Any]]:
        """Return the results of every run: of the main attempts, or of the sampled ones (`Part.SAMPLED`).

        Runs that repeat one greedy measurement drew different samples, which all count unless they are the same too.
        """
        if part is Part.ATTEMPTS:
            return [m.results for m in self.measured]
        found = [m.results[part] for m in [*self.measured, *self.again] if part in m.results]
        return self._once(found, "acc_t1", "acc_t2")

    def estimate(self, metric: str, part: Part = Part.ATTEMPTS) -> Estimate | None:
        """Return a metric over the seeds, or one seed's with the interval of its summary; None if no run has it."""
        found = map(with_later_attempts, self.results(part))
        return _estimate([(r.get(metric), r.get(f"{metric}_ci95")) for r in found])

    def control(self, kind: str) -> Estimate | None:
        """Return the difference that a control makes, over the seeds; None if it was not measured.

        If a greedy measurement was repeated, all its sampled controls count, as in `results`.
        """
        every = [m.results.get("controls", {}) for m in [*self.measured, *self.again]]
        found = self._once([controls[kind] for controls in every if kind in controls], "difference")
        return _estimate([(c["difference"], c["difference_ci95"]) for c in found])

    def term(self, name: str) -> Estimate | None:
        """Return a term of delta with another problem's draft, over the seeds; None if no run has it."""
        every = [stored_parts(r).get("draft_swap", {}).get(name) for r in self.results()]
        return _estimate([(term.value, term.ci95) for term in every if term is not None])

    def reading_range(self) -> tuple[float, float] | None:
        """Return the lowest and the highest mean of reading over the blind drafts; None with fewer than two drafts."""
        every = [stored_parts(results) for results in self.results()]
        drafts = dict.fromkeys(name for parts in every for name in parts)
        means = [mean(parts[name]["reading"].value for parts in every if name in parts) for name in drafts]
        return (min(means), max(means)) if len(means) > 1 else None

    def detected(self, name: str) -> Estimate | None:
        """Return a rate of `evaluation.decomposition.Detection` over the seeds; None if no run has it."""
        return _estimate_of([stored_detection(results) or {} for results in self.results()], name)

    def conclusion(self) -> Conclusion | None:
        """Return what the controls conclude over the seeds, or those of one run; None without a blind draft."""
        every = [evidence_of(results) for results in self.results()]
        evidence = [found for found in every if found is not None]
        if len(evidence) < len(every):
            return None
        for found in evidence:
            if not found.problems:  # of this run no first attempt is complete
                return conclude(found)
        drafts = [draft for draft in evidence[0].parts if all(draft in found.parts for found in evidence)]
        if not drafts:
            return None
        parts = {draft: _stored_terms([found.parts[draft] for found in evidence]) for draft in drafts}
        t1, t2 = (mean(getattr(found, name) for found in evidence) for name in ("acc_t1", "acc_t2"))
        delta = _estimate([(found.delta.value, found.delta.ci95) for found in evidence])
        assert delta is not None  # every run has one
        worst = max((found.truncated for found in evidence), key=lambda both: [each.share for each in both])
        problems = max(found.problems for found in evidence)
        flips = [found.i_to_c for found in evidence if found.i_to_c is not None]
        return conclude(
            Evidence(
                problems,
                t1,
                t2,
                _stored(delta),
                parts,
                basis=basis_of(self.results()),
                truncated=worst,
                supply=evidence[0].supply,
                i_to_c=mean(flips) if flips else None,
                seeds=len(evidence),
            )
        )

    def complete_repair(self) -> Estimate | None:
        """Return repair with another's draft in the episodes with a complete first attempt, over the seeds.

        None if no run has truncated first attempts, or one has no others.
        """
        found = [conclusive(results) for results in self.results()]
        if not any(results.get(TRUNCATED_DRAFTS) for results in self.results()) or None in found:
            return None
        every = [stored_parts(results or {}).get("draft_swap", {}).get("repair") for results in found]
        return _estimate([(term.value, term.ci95) for term in every if term is not None])

    def truncated_flips(self, part: Part = Part.ATTEMPTS) -> str:
        """Return in words which flips begin with a truncated first attempt, over the seeds; empty if none does."""
        found = [results[TRUNCATED_DRAFTS] for results in self.results(part) if results.get(TRUNCATED_DRAFTS)]
        if not found:
            return ""
        counts = ("count", "of", "i_to_c", "all_i_to_c", "c_to_i", "all_c_to_i")
        summed = found[0] if len(found) == 1 else {name: sum(each[name] for each in found) for name in counts}
        return truncated_flips_text(summed).replace("->", "→")

    def judged(self, name: str) -> Estimate | None:
        """Return a rate of `evaluation.verification.VERDICTS` of the first verification over the seeds; None if no run has it."""
        found: list[Mapping[str, Any]] = [
            ([*results.get("verifications", ())] or [{}])[0] for results in self.results()
        ]
        return _estimate([(each.get(name), each.get(f"{name}_ci95")) for each in found])

    def lifted(self, name: str) -> Estimate | None:
        """Return a metric of `evaluation.decomposition.Samples` over the seeds; None if no run has it."""
        return _estimate_of([r.get("decomposition", {}).get("samples") or {} for r in self.results()], name)

    def against(self, reference: Row) -> tuple[Estimate | None, Estimate | None]:
        """Return H and M1, paired by seed with the first attempts of a single-turn model.

        None without two shared seeds, or if it answers other problems.
        """
        if reference.problem_set != self.problem_set:
            return None, None
        b1, t1, t2 = reference.by_seed("acc_t1"), self.by_seed("acc_t1"), self.by_seed("acc_t2")
        seeds = sorted(b1.keys() & t1.keys() & t2.keys())
        if len(seeds) < 2:
            return None, None
        return t_estimate([b1[s] - t1[s] for s in seeds]), t_estimate([t2[s] - b1[s] for s in seeds])

    def _once(self, found: list[Mapping[str, Any]], *metrics: str) -> list[Mapping[str, Any]]:
        """Return only the first of repeated measurements with the same metrics, else all."""
        alike = self.again and len({tuple(each[metric] for metric in metrics) for each in found}) == 1
        return found[:1] if alike else found

    def by_seed(self, metric: str) -> dict[int, float]:
        """Return a metric of every run that has it, repeated ones too, by seed: the pairs of a comparison."""
        values = {m.seed: m.results.get(metric) for m in [*self.measured, *self.again]}
        return {seed: value for seed, value in values.items() if value is not None}


def _estimate(pairs: Sequence[tuple[float | None, Sequence[float] | None]]) -> Estimate | None:
    there = [(value, interval) for value, interval in pairs if value is not None]
    return over_seeds([value for value, _ in there], there[0][1]) if there else None


def _estimate_of(found: Sequence[Mapping[str, Any]], name: str) -> Estimate | None:
    return _estimate([(each.get(name), each.get(f"{name}_ci95")) for each in found])


def _stored(found: Estimate) -> StoredTerm:
    return StoredTerm(found.mean, None if found.low is None or found.high is None else (found.low, found.high))


def _stored_terms(found: Sequence[Mapping[str, StoredTerm]]) -> dict[str, StoredTerm]:
    """Return the terms of delta with one blind draft over the seeds, as far as all runs have them."""
    shared = [name for name in found[0] if all(name in terms for terms in found)]
    pairs = {name: _estimate([(terms[name].value, terms[name].ci95) for terms in found]) for name in shared}
    return {name: _stored(estimate) for name, estimate in pairs.items() if estimate is not None}


@dataclass(frozen=True, eq=False)
class Rows:
    """All rows of a report. ``extra`` are extra evaluations of models that ``rows`` already has."""

    rows: Sequence[Row]
    extra: Sequence[Row] = field(default=())

    @property
    def finals(self) -> list[Row]:
        """Return the base and every method's last model, without the intermediate models."""
        return [row for row in self.rows if row.final]

    @property
    def series(self) -> list[str]:
        """Return every series once; the base, if there is one, comes first."""
        return list(dict.fromkeys(row.series for row in [*self.rows, *self.extra]))


def all_rows(methods: Sequence[Method], evaluations: Sequence[Evaluated]) -> Rows:
    """Return the base (once, if all runs share it), then each method's models, then other evaluated models."""
    apart = _asked_otherwise(methods)
    rows = _base_rows([method for method in methods if method not in apart])
    known = {_identity(m) for row in rows for m in row.measured}
    for method in methods:
        for model in method.models:
            measured = _of(method, model)
            final = model == method.final
            alike = {_identity(m) for m in measured}
            if model == "base" and not final and method not in apart:
                continue  # the base's rows have it
            if alike <= known and (model == "base" or not final):
                continue  # the base itself as a method, or a stage shared with another method
            known |= alike
            label = method.name if final else f"{method.name}, {_when(method, model)}"
            paper, card = (method.paper, method.card) if final else (None, {})
            once, again = _once(measured) if model == "base" else (measured, [])
            rows.append(Row(label, method.name, model, once, final, paper, card, again))
    return _with_evaluations(rows, evaluations)


def _when(method: Method, model: str) -> str:
    """Return when in its runs a method had this model."""
    return "before" if model == "base" else f"after {method.runs[0].label(model)}"


def _asked_otherwise(methods: Sequence[Method]) -> list[Method]:
    """Return the trained methods whose conversations have verifications, if others have none; their base is a row of theirs."""
    verifying = [method for method in methods if method.verifies and method.runs[0].stages]
    others = any(method.runs[0].stages and not method.verifies for method in methods)
    return verifying if others else []


def _with_evaluations(rows: list[Row], evaluations: Sequence[Evaluated]) -> Rows:
    """Add evaluations as separate rows, or as ``extra`` if they take more attempts or samples of a row's model."""
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
    """Return whether a row has more than two attempts or several samples, like an extra evaluation."""
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
    """Return the methods that measured the base: first those that only evaluate it with the same outcome, then all that train.

    The former come first because their stored episodes are the base's. A run that prompts the base differently is a method
    (Self-Refine).
    """
    trained = [method for method in methods if method.runs[0].stages]
    known = {_identity(m) for method in trained for m in _of(method, "base")}
    measuring = [method for method in methods if method not in trained and method.paper in (None, "base")]
    same = [method for method in measuring if not trained or known.issuperset(map(_identity, _of(method, "base")))]
    return [*same, *trained]


def _once(measured: Sequence[Measured]) -> tuple[Sequence[Measured], Sequence[Measured]]:
    """Split runs that measured the same model with the same outcome into the first and its repeats; else return all."""
    alike = len({_identity(m) for m in measured}) == 1
    return (measured[:1], measured[1:]) if alike else (measured, [])


def _identity(measured: Measured) -> tuple[Any, ...]:
    """Return what two evaluations of one model have in common: the model, the task and the accuracies."""
    task = repr(measured.source.settings.get("task")) if isinstance(measured.source, Run) else ""
    return measured.digest, task, measured.results["acc_t1"], measured.results["acc_t2"]


def _card_of_base(methods: Sequence[Method]) -> Mapping[str, Any]:
    return next((method.card for method in methods if method.card.get("key") == "base"), {})


def evaluation_title(evaluation: Evaluated) -> str:
    """Return an evaluation's name: its directory's name without the seed."""
    return SEED_IN_NAME.sub("", evaluation.path.name).strip("-_. ") or evaluation.path.parent.name


def _conditions(evaluation: Evaluated) -> tuple[Any, ...]:
    """Return what evaluations must share to count as seeds of one row."""
    plan = {key: value for key, value in evaluation.plan.items() if key != "seed"}
    served = (evaluation.context_mode, tuple(evaluation.other_models))
    return (
        plan,
        evaluation.identity["task"],
        evaluation.identity["problems"],
        evaluation.identity.get("script"),
        served,
    )


def _suffix(evaluation: Evaluated) -> str:
    temperature = float(evaluation.plan["temperature"])
    mode = "" if evaluation.context_mode == TOKENS else f", context mode {evaluation.context_mode}"
    names = f", answered as {', '.join(evaluation.other_models)}" if evaluation.other_models else ""
    drafts = ", drafts of a shared pool" if evaluation.plan.get("drafts") else ""
    return (f", T = {temperature:g}" if temperature else "") + mode + names + drafts
