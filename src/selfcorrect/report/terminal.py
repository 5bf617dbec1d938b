"""Results as plain-text tables, from the ``results`` of a summary alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from selfcorrect.config import aliases
from selfcorrect.evaluation.decomposition import DRAFTS, SHOWN, few_answers, stored_detection, stored_parts
from selfcorrect.evaluation.evaluation import conclusion_of
from selfcorrect.evaluation.metrics import with_later_attempts
from selfcorrect.evaluation.same_answers import same_answer_text
from selfcorrect.evaluation.tokens_per_problem import tokens_text
from selfcorrect.evaluation.truncated_drafts import NAME, conclusive, truncated_flips_text
from selfcorrect.evaluation.verification import VERDICTS
from selfcorrect.report.glosses import GLOSSES

ACCURACIES = {"Acc@t1": "acc_t1", "Acc@t2": "acc_t2"}
CHANGES = {"delta": "delta", "i->c": "i_to_c", "c->i": "c_to_i"}
TROUBLE = {
    "truncated": "truncated at the token limit",
    "no_answer": "without an answer",
    "out_of_memory": "out of memory",
    "refused": "rejected by the sandbox",
    "timed_out": "timed out in the verifier",
    "verifier_failed": "failed in the verifier",
}

EVALUATED = "model"
"""The name of the one model of `selfcorrect eval`, whose options bear other names than a run's settings."""
MANY = 0.25
"""The fraction of second attempts without an answer from which the table names the instruction as a probable cause."""
NEARLY_ALL = 0.9
"""The fraction of truncated turns from which the table names probable causes."""


def paper_table(results: Mapping[str, Mapping[str, Any]], title: str, *, hinted: Collection[str] = ()) -> str:
    """Return the paper's table: a row per model, each metric in % with its 95% interval below.

    >>> row = {"n": 4, "samples": 1, "acc_t1": 0.25, "acc_t1_ci95": [0.05, 0.7], "ci_method": "Wilson", "turns": []}
    >>> print(paper_table({"base": row}, "Greedy decoding"))
    Greedy decoding, n = 4. Values are % of problems, with 95% confidence intervals below.
                 Acc@t1
      base         25.0
            [5.0, 70.0]
    Intervals: Wilson
    """
    results = {name: with_later_attempts(model) for name, model in results.items()}
    turns = max(len(model["turns"]) for model in results.values())
    later = {f"Acc@t{k}": f"acc_t{k}" for k in range(3, turns + 1)}
    columns = ACCURACIES | later | CHANGES
    present = {head: key for head, key in columns.items() if any(r.get(key) is not None for r in results.values())}
    one = next(iter(results.values()))
    several = one["samples"] != 1
    counted = f"{one['n']:,}" + (f" problems x {one['samples']:g} samples" if several else "")
    rows: list[list[str]] = [["", *present]]
    for name, model in results.items():
        rows.append([name, *(_percent(model.get(key), signed=key == "delta") for key in present.values())])
        rows.append(["", *(_interval(model.get(f"{key}_ci95"), signed=key == "delta") for key in present.values())])
    whole = "samples" if several else "problems"
    return "\n".join(
        [
            f"{title}, n = {counted}. Values are % of {whole}, with 95% confidence intervals below.",
            _aligned(rows),
            *_trouble(results),
            *_truncated_flips(results),
            *_hints({name: model for name, model in results.items() if name not in hinted}),
            *_same_answers(results),
            *_failures(results),
            *_lengths(results),
            *_modes(results),
            *_pools(results),
            f"Intervals: {one['ci_method'].replace(' %', '%')}",
        ]
    )


def outcome(summary: Mapping[str, Any]) -> list[str]:
    """Return the sentences that say what went wrong with a run: that it ended below its base, and which stages were ended.

    >>> outcome({"stopped": {"stage1": "log.stop_if_worse ended stage1 at step 40 of 100, worse than the base"}, "results": {}})
    ['log.stop_if_worse ended stage1 at step 40 of 100, worse than the base.']
    """
    below = summary.get("below_base")
    return [*([below] if below else []), *(f"{text}." for text in summary.get("stopped", {}).values())]


def all_tables(results: Mapping[str, Mapping[str, Any]], *, temperature: float = 0.0) -> str:
    """Return the table of the main attempts, followed by those of samples, rules, controls and parts of delta, if any."""
    parts = [paper_table(results, f"Sampled at T = {temperature:g}" if temperature else "Greedy decoding")]
    if any(model.get("delta") is not None for model in results.values()):
        parts[0] = "\n".join([parts[0], *GLOSSES["attempts"]])
    sampled = {name: model["sampled"] for name, model in results.items() if "sampled" in model}
    if sampled:
        title = "Sampled at the training temperature, T = 1 for a model that is not a run"
        parts.append(paper_table(sampled, title, hinted=_nearly_all_truncated(results)))
    first = [table(results) for table in (verification_table, rules_table, controls_table)]
    made_of = decomposition_table(results)
    if made_of and sampled:
        main = "the greedy attempts" if temperature == 0 else f"the attempts at T = {temperature:g}"
        made_of = f"{made_of}\n  This rests on {main}, not on the samples at the training temperature."
    last = [table(results) for table in (detection_table, dependence_table)]
    return "\n\n".join([*parts, *filter(None, [*first, made_of, *last])])


def partial_tables(results: Mapping[str, Mapping[str, Any]], *, problems: int, temperature: float = 0.0) -> str:
    """Return the tables of an evaluation that stopped half-way, under a line that says so."""
    n = next(iter(results.values()))["n"]
    head = f"PARTIAL: the evaluation stopped after {n:,} of {problems:,} problems. These are not its results."
    if n >= problems:
        head = f"PARTIAL: the attempts at all {n:,} problems are there, but the evaluation stopped. These are not its results."
    return f"{head}\n{all_tables(results, temperature=temperature)}"


def verification_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return how well each model judges its attempts, where the script has it say so."""
    rows = [["", "verdicts", "tokens", *VERDICTS.values()]]
    for name, model in results.items():
        turns = model.get("verifications", ())
        for k, turn in enumerate(turns, 1):
            tokens = "-" if turn["tokens"] is None else f"{turn['tokens']:.1f}"
            label = name if len(turns) == 1 else f"{name}, v{k}"
            rows.append([label, f"{turn['taken']:,}", tokens, *(_percent(turn[rate]) for rate in VERDICTS)])
            rows.append(["", "", "", *(_interval(turn[f"{rate}_ci95"]) for rate in VERDICTS)])
    return f"What the model says of its attempts, in %\n{_aligned(rows)}" if len(rows) > 1 else ""


def rules_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the main metrics under each extraction rule, and how often the rule finds no answer."""
    rows = []
    for name, model in results.items():
        for rule, r in aliases.by_rule(model).items():
            values = [_percent(r[key], signed=key == "delta") for key in ("acc_t1", "acc_t2", "delta")]
            missing = ", ".join(_percent(turn["no_answer"]) for turn in r["turns"])
            rows.append([f"{name}, {rule}", *values, missing])
    head = ["", "Acc@t1", "Acc@t2", "delta", "no answer (t1, t2, ...)"]
    return f"By answer extraction rule, in %\n{_aligned([head, *rows])}" if rows else ""


def controls_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the accuracies of the controls: a second attempt at a swapped draft, and a resampled first attempt."""
    kinds = {
        "draft_swap": ("Acc@t2", "acc_t2", "swapped draft", "acc_t2_swapped"),
        "independent_resample": ("Acc@t1", "acc_t1", "resampled", "acc_resampled"),
    }
    blocks = []
    for kind, (before, before_key, after, after_key) in kinds.items():
        controls = {name: r["controls"][kind] for name, r in results.items() if kind in r.get("controls", {})}
        if controls:
            rows = [["", before, after, "difference", "95% interval"]]
            for name, c in controls.items():
                difference = _percent(c["difference"], signed=True)
                interval = _interval(c["difference_ci95"], signed=True)
                rows.append([name, _percent(c[before_key]), _percent(c[after_key]), difference, interval])
            blocks.append("\n".join([f"Control: {kind.replace('_', ' ')}, in %", _aligned(rows), *GLOSSES[kind]]))
    return "\n\n".join(blocks)


def decomposition_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return what delta is made of: with another problem's draft (or else the first blind one), and the range over all."""
    rows, reads = [["", "delta", *SHOWN.values()]], []
    several: Sequence[str] = ()
    for name, model in results.items():
        drafts = stored_parts(model)
        if model.get("delta") is None or not drafts:
            continue
        terms = next(iter(drafts.values()))
        values = [terms[term].value if term in terms else None for term in SHOWN]
        rows.append([name, *(_percent(value, signed=True) for value in (model["delta"], *values))])
        ends = [terms[term].ci95 if term in terms else None for term in SHOWN]
        rows.append(["", *(_interval(end, signed=True) for end in (model.get("delta_ci95"), *ends))])
        if len(drafts) > 1:
            several = [DRAFTS[draft] for draft in drafts]
            ranges = [[found[term].value for found in drafts.values()] for term in SHOWN]
            rows.append([f"  {len(drafts)} drafts", "", *(_range(values) for values in ranges)])
        if model.get(NAME):
            rows.append(_complete_row(model))
        conclusion = conclusion_of(model)
        assert conclusion is not None  # there are blind drafts
        reads += [f"  {line}" for line in conclusion.lines(name)]
    if not reads:
        return ""
    title = "What delta is made of, in percentage points: re-answering + reading, and reading is keep + repair"
    note = [f"  Blind drafts: {'; '.join(several)}. Intervals are with the first one."] if several else []
    return "\n".join([title, _aligned(rows), *GLOSSES["made_of"], *note, *reads])


def _complete_row(model: Mapping[str, Any]) -> list[str]:
    """Return the terms of delta in the episodes whose first attempt is complete."""
    found, split = conclusive(model), model[NAME]
    label = f"  complete drafts, {split['of'] - split['count']:,} of {split['of']:,}"
    parts = stored_parts(found) if found else {}
    if found is None or not parts:
        return [label, *["-"] * (1 + len(SHOWN))]
    terms = next(iter(parts.values()))
    values = (found["delta"], *(terms[term].value for term in SHOWN))
    return [label, *(_percent(value, signed=True) for value in values)]


def detection_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return how often incorrect and correct answers are changed, Youden's J, and what becomes of the changed ones."""
    rows = [["", "of incorrect", "of correct", "J", "95% interval", "then correct", "then incorrect", "m_w", "m_r"]]
    notes = []
    for name, model in results.items():
        found = stored_detection(model)
        if found is not None:
            few = few_answers(model)
            notes += [f"  {name}: {few}, too few for J and for rates among them"] if few else []
            shown = [_percent(found["changed_if_incorrect"]), _percent(found["changed_if_correct"])]
            shown += [_percent(found["youden"], signed=True), _interval(found["youden_ci95"], signed=True)]
            later = ("fixed", "broken", "correct_if_incorrect", "correct_if_correct")
            rows.append([name, *shown, *(_percent(found.get(key)) for key in later)])
    title = "Changed answers, in % of incorrect and of correct first ones, and what they become"
    return "\n".join([title, _aligned(rows), *GLOSSES["detection"], *notes]) if len(rows) > 1 else ""


def dependence_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return how the second attempt depends on the first, from several samples per problem."""
    rows = [["", "samples", "d", "after incorrect, L_w", "after correct, L_r"]]
    for name, model in results.items():
        found = model.get("decomposition", {}).get("samples")
        if found is not None:
            cells = [
                f"{_percent(found[key], signed=True)} {_interval(found[f'{key}_ci95'], signed=True)}".rstrip()
                for key in ("d", "lift_incorrect", "lift_correct")
            ]
            rows.append([name, f"{found['samples']:g}", *cells])
    title = "How second attempts depend on the first, from several samples of each problem, in percentage points"
    return "\n".join([title, _aligned(rows), *GLOSSES["dependence"]]) if len(rows) > 1 else ""


def _range(values: Sequence[float]) -> str:
    return f"{_percent(min(values), signed=True)} to {_percent(max(values), signed=True)}"


def _trouble(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a line for each model with truncated, unparsed or failed attempts."""
    lines = []
    for name, model in results.items():
        parts = [
            f"{_rate(turn[key])}% of t{k} {words}"
            for k, turn in enumerate(model["turns"], 1)
            for key, words in TROUBLE.items()
            if turn.get(key)
        ]
        if parts:
            lines.append(f"  {name}: {', '.join(parts)}")
    return lines


def _hints(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a line with the probable causes for models whose turns are nearly all truncated, and one for those whose second
    attempts lack an answer."""
    lines, own = [], list(results) == [EVALUATED]
    truncated = _nearly_all_truncated(results)
    if truncated:
        limit, stop = ("--max-tokens", "--stop TEXT") if own else ("rollout.max_tokens", "rollout.stop")
        lines.append(
            f"  {', '.join(truncated)}: nearly all turns reached the token limit. Either it is too low for this model ({limit}), "
            f"or the model does not end its turns with an end token that its tokenizer or chat template names (then {stop})"
        )
    formless = [name for name, model in results.items() if name not in truncated and _loses_format(model["turns"])]
    if formless:
        setting = "--set revise='...'" if own else "task.revise"
        lines.append(
            f"  {', '.join(formless)}: many second attempts have no answer, which is no judgement of the first. Read some "
            f"(selfcorrect show DIR), and try another instruction: {setting}"
        )
    return lines


def _nearly_all_truncated(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the names of models of which some turn is truncated nearly always."""
    return [
        name
        for name, model in results.items()
        if any(turn.get("truncated", 0) >= NEARLY_ALL for turn in model["turns"])
    ]


def _loses_format(turns: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether many later attempts have no answer, more than first ones and than the token limit explains."""
    missing = [turn.get("no_answer", 0) for turn in turns]
    return any(
        lacking - turn.get("truncated", 0) >= MANY and lacking > 2 * missing[0]
        for lacking, turn in zip(missing[1:], turns[1:], strict=True)
    )


def _truncated_flips(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a line for each model of which flips begin with a truncated first attempt."""
    said = {name: truncated_flips_text(model[NAME]) for name, model in results.items() if model.get(NAME)}
    return [f"  {name}: {text}" for name, text in said.items() if text]


def _same_answers(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a line for each model and attempt with nearly always the same answer."""
    return [
        f"  {name}: {same_answer_text(attempt, found)}"
        for name, model in results.items()
        for attempt, found in model.get("same_answers", {}).items()
    ]


def _failures(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a line for each model whose server did not answer every request, and one for each that used other names."""
    lines = []
    for name, model in results.items():
        failed = model.get("failed_requests")
        if failed:
            lines.append(
                f"  {name}: the server did not answer in {failed['episodes']:,} of {failed['of']:,} conversations, which count "
                f"as without an answer; the first, problem {failed['problem_id']!r}, {failed['reason']}"
            )
        if model.get("other_models"):
            lines.append(f"  {name}: the server answered under another name: {', '.join(model['other_models'])}")
    return lines


def _lengths(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a line for each model with the tokens that it samples per problem and the lengths of its attempts, where known."""
    lines = []
    for name, model in results.items():
        attempts = enumerate(model.get("lengths", ()), 1)
        parts = [tokens_text(model), *(f"t{k} mean {turn['mean']:.1f}, max {turn['max']}" for k, turn in attempts)]
        if any(parts):
            lines.append(f"  {name}, tokens: {'; '.join(filter(None, parts))}")
    return lines


def _pools(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a line for each model whose first attempts are those of a shared pool."""
    return [
        f"  {name}: t1 are the drafts of a shared pool ({model['drafts'][:12]}), not this model's first attempts"
        for name, model in results.items()
        if model.get("drafts")
    ]


def _modes(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a line for each model whose later turns did not extend the sampled ids."""
    return [
        f"  {name}, context mode messages: the server renders earlier turns again; not comparable with mode tokens"
        for name, model in results.items()
        if model.get("context_mode") == "messages"
    ]


def _percent(value: float | None, *, signed: bool = False) -> str:
    if value is None:
        return "-"
    return f"{100 * value:+.1f}" if signed else f"{100 * value:.1f}"


def _rate(value: float) -> str:
    """Return a nonzero fraction in %, which must not read as 0."""
    return _percent(value) if value >= 0.0005 else "<0.1"


def _interval(value: Sequence[float] | None, *, signed: bool = False) -> str:
    return "" if value is None else f"[{_percent(value[0], signed=signed)}, {_percent(value[1], signed=signed)}]"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return the rows as lines, with right-aligned columns; the first is left-aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        (
            "  "
            + row[0].ljust(widths[0])
            + "".join(f"  {cell:>{w}}" for cell, w in zip(row[1:], widths[1:], strict=True))
        )
        for row in rows
    )
