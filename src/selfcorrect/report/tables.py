"""The report's tables as text cells for the template; every number with its interval, seeds and n."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from selfcorrect.evaluation.decomposition import DETECTED, SHOWN
from selfcorrect.evaluation.tokens_per_problem import NAME as TOKENS
from selfcorrect.report.cells import (
    SAME_PROBLEMS,
    Cell,
    Table,
    TableRow,
    cell_of,
    count_cell,
    how_many,
    interval_note,
    kind_of_interval,
    table_rows,
)
from selfcorrect.report.delta_tables import delta_tables, merits
from selfcorrect.report.published import CODE, MATH, PaperRow
from selfcorrect.report.rows import METRICS, Measured, Row
from selfcorrect.report.sources import Run
from selfcorrect.report.statistics import PairedDifference, compared, over_seeds
from selfcorrect.types import Part

GREEDY = "First and second attempts, greedy"
PAPER_TABLES = {
    "methods": f"{GREEDY}: methods (the paper's Table 1; Table 2 on code)",
    "ablations": f"{GREEDY}: ablations (Table 4)",
    "variants": f"{GREEDY}: variants",
}
"""The tables of a whole comparison, by the ``table`` of its methods' cards."""
SHOWN_IN_ALL = ("base", "score")
TOKENS_COLUMN = "tokens per problem"
OWN_BUDGET = "own"
"""The ``budget`` of a card whose row need not spend as much as SCoRe."""
SPENT = {"completions": "completions", "updates": "updates", "sampled_tokens": "sampled tokens"}
"""What training spends, by its name in a step's metrics; runs of earlier versions have no `sampled_tokens`."""
CODE_TASKS = {"humaneval", "mbpp", "mbpp_r", "micro_code"}
CONTROLS = {
    "draft_swap": "Acc@t2, swapped draft",
    "empty_draft": "Acc@t2, empty draft",
    "shuffled_draft": "Acc@t2, own draft shuffled",
    "independent_resample": "Acc@t1, resampled",
}


def result_tables(rows: Sequence[Row]) -> list[Table]:
    """Return the paper's table, greedy and (if measured) sampled, then comparisons, what delta is made of, and controls."""
    tables = _paper_tables(rows)
    others = [row for row in rows if not row.card] if tables else list(rows)
    if not tables or any(row.final for row in others):
        title = f"{GREEDY}: others" if tables else GREEDY
        trained = [row for row in others if row.series != "base"]
        tables.append(_metrics_table(others, Part.ATTEMPTS, "greedy", title, trained=trained))
    sampled = [row for row in rows if row.results(Part.SAMPLED)]
    if sampled:
        title = "First and second attempts, sampled at the training temperature"
        tables.append(_metrics_table(sampled, Part.SAMPLED, "sampled", title))
    return [*tables, *_comparison_table(rows), *delta_tables(rows), *_control_table(rows)]


def overview_table(rows: Sequence[Row]) -> Table:
    """Return one line per method's last model, with columns that `result_tables` spreads over several tables.

    The columns are both greedy attempts, delta and c→i; then, as far as they are measured, the controls' changes, H and M1, keep
    and repair, Youden's J, the tokens per problem, and the difference of Acc@t2 from SCoRe's (or else the first method's).
    """
    finals = [row for row in rows if row.final]
    metrics = ("acc_t1", "acc_t2", "delta", "c_to_i")
    columns = {METRICS[f]: [cell_of(row.estimate(f), signed=f == "delta") for row in finals] for f in metrics}
    kinds = [kind for kind in CONTROLS if any(row.control(kind) for row in finals)]
    columns |= {CONTROLS[kind]: [cell_of(row.control(kind), signed=True) for row in finals] for kind in kinds}
    notes = [f"In % of all episodes; {interval_note(finals)}"] + (
        ["The controls' columns are changes in percentage points."] if kinds else []
    )
    made_of = _columns_of_delta(rows, finals)
    columns |= made_of
    if made_of:
        notes.append(
            f"{', '.join(made_of)}: in percentage points, from the tables of what delta is made of and of changed answers."
        )
    if any(row.estimate(TOKENS) for row in finals):
        columns[TOKENS_COLUMN] = [count_cell(row.estimate(TOKENS)) for row in finals]
        notes += _token_notes(finals)
    for table in _comparison_table(rows):
        changes = {line.label: line.cells[table.columns.index(METRICS["acc_t2"])] for line in table.rows}
        name = f"{METRICS['acc_t2']} difference"
        columns[name] = [changes.get(row.label, Cell("–")) for row in finals]
        notes.append(f"{name}: {table.title[0].lower()}{table.title[1:]}. {table.notes[0]}")
    lines = [[*line] for line in zip(*columns.values(), strict=True)]
    return Table("overview", f"{GREEDY}: every method", [*columns], table_rows(finals, lines), notes)


def _columns_of_delta(rows: Sequence[Row], finals: Sequence[Row]) -> dict[str, list[Cell]]:
    """Return H and M1 where a row is single-turn RL, keep, repair and J: those that are measured."""
    _, merit = merits(rows, finals)
    found = {name: [pair[place] for pair in merit] for place, name in enumerate(("H", "M1")) if merit}
    found |= {SHOWN[name]: [row.term(name) for row in finals] for name in ("keep", "repair")}
    found |= {DETECTED["youden"]: [row.detected("youden") for row in finals]}
    return {name: [cell_of(x, signed=True) for x in each] for name, each in found.items() if any(each)}


def seed_table(rows: Sequence[Row]) -> Table:
    """Return one line per seed of every row, intermediate models included, with that run's own intervals."""
    lines = [
        TableRow(f"{row.label}, seed {measured.seed}", "", [_own_cell(measured, metric) for metric in METRICS])
        for row in rows
        for measured in row.measured
    ]
    methods = dict.fromkeys(str(m.results["ci_method"]) for row in rows for m in row.measured)
    note = f"In %. {'; '.join(map(kind_of_interval, methods))}."
    return Table("seeds", f"{GREEDY}: seed by seed", [*METRICS.values()], lines, [note])


def _own_cell(measured: Measured, metric: str) -> Cell:
    value, interval = measured.results[metric], measured.results.get(f"{metric}_ci95")
    return cell_of(None if value is None else over_seeds([value], interval), signed=metric == "delta")


def _paper_tables(rows: Sequence[Row]) -> list[Table]:
    """Return a whole comparison's tables in the paper's layout, with each row's training cost; none without cards."""
    carded = sorted((row for row in rows if row.card), key=lambda row: int(row.card["place"]))
    found = []
    for name, title in PAPER_TABLES.items():
        members = [row for row in carded if row.card["table"] == name or row.card["key"] in SHOWN_IN_ALL]
        own = [row for row in members if row.card["table"] == name and row.series != "base"]
        if own:
            found.append(_metrics_table(members, Part.ATTEMPTS, name, title, trained=own, spent=True))
    return found


def _metrics_table(
    rows: Sequence[Row], part: Part, name: str, title: str, *, trained: Sequence[Row] = (), spent: bool = False
) -> Table:
    """Return a table of metrics; the paper's numbers stand next to ours if the paper has any of the ``trained`` rows."""
    numbers, where = _papers_numbers(rows)
    compared_with = any(row.paper in numbers for row in trained if row.final)
    cells = [[cell_of(row.estimate(f, part), signed=f == "delta") for f in METRICS] for row in rows]
    columns = [*METRICS.values()]
    tokens = any(row.estimate(TOKENS, part) for row in rows)
    if tokens:
        cells = [[*line, count_cell(row.estimate(TOKENS, part))] for line, row in zip(cells, rows, strict=True)]
        columns.append(TOKENS_COLUMN)
    groups = [("here", len(columns))]
    own_budget = spent and any(row.card.get("budget") == OWN_BUDGET for row in rows)
    if spent:
        counts = [
            what for what in SPENT if what != "sampled_tokens" or any(max(row.spent(what), default=0) for row in rows)
        ]
        cells = [[*line, *_spent_cells(row, counts)] for line, row in zip(cells, rows, strict=True)]
        columns += [SPENT[what] for what in counts]
        groups.append(("training of one seed", len(counts)))
    if compared_with:
        papers = [numbers.get(row.paper or "") for row in rows]
        flips = any(
            paper and paper.i_to_c is not None and row in trained for row, paper in zip(rows, papers, strict=True)
        )
        cells = [[*line, *_paper_cells(paper, flips=flips)] for line, paper in zip(cells, papers, strict=True)]
        columns += ["t1", "t2", "delta", *(("i→c", "c→i") if flips else ())]
        groups.append((f"in the paper: {where}", 5 if flips else 3))
    notes = [f"In % of all episodes; {interval_note(rows, part)}"]
    notes += [f"{row.label}: {text}." for row in rows if (text := row.truncated_flips(part))]
    notes += _token_notes(rows, part) if tokens else []
    if own_budget:
        notes.append("Own budget: whoever added this row let it sample or update more or less often than SCoRe.")
    if compared_with:
        notes.append("Compare the paper's numbers for the shape of the result only: its models and task differ.")
    return Table(name, title, columns, table_rows(rows, cells, part), notes, groups if len(groups) > 1 else ())


def _token_notes(rows: Sequence[Row], part: Part = Part.ATTEMPTS) -> list[str]:
    """Return what the column of tokens counts, and how many of them other turns than attempts take."""
    shares = [(row.label, row.estimate(f"{TOKENS}_other", part)) for row in rows]
    others = [f"{label} {found.mean:,.1f}" for label, found in shares if found is not None and found.mean]
    listed = f" In verifications and feedback: {', '.join(others)}." if others else ""
    return [
        "Tokens per problem: what the model samples at test in one conversation, its verifications and feedback included; a "
        f"skipped turn has none.{listed}"
    ]


def _comparison_table(rows: Sequence[Row]) -> list[Table]:
    """Return the differences from SCoRe (or else the first method), paired by seed; none if no two share two seeds."""
    finals = [row for row in rows if row.final]
    trained = [row for row in finals if row.model != "base"]
    reference = next((row for row in trained if row.paper == "score"), trained[0] if trained else None)
    if reference is None:
        return []
    metrics = ("acc_t1", "acc_t2", "delta")
    others = [row for row in finals if row is not reference and row.problem_set == reference.problem_set]
    by_metric = {
        metric: compared({row.label: row.by_seed(metric) for row in others}, reference.by_seed(metric))
        for metric in metrics
    }
    shown = [row for row in others if any(row.label in found for found in by_metric.values())]
    if not shown:
        return []
    cells = [[_comparison_cell(by_metric[f].get(row.label)) for f in metrics] for row in shown]
    sizes = sorted({len(found) for found in by_metric.values()})
    notes = [
        f"In percentage points: mean over the shared seeds ({how_many(shown)} each), 95% t-interval of the paired "
        "differences, and the "
        f"p-value of the paired t-test after Holm's correction over the {' or '.join(map(str, sizes))} models of a column. "
        f"{SAME_PROBLEMS} –: no test, as the difference is the same for every seed or fewer than two seeds are shared."
    ]
    title = f"Differences from {reference.label}, paired by seed"
    return [Table("differences", title, [METRICS[f] for f in metrics], table_rows(shown, cells), notes)]


def _control_table(rows: Sequence[Row]) -> list[Table]:
    kinds = [kind for kind in CONTROLS if any(row.control(kind) for row in rows)]
    if not kinds:
        return []
    shown = [row for row in rows if any(row.control(kind) for kind in kinds)]
    cells = [[cell_of(row.control(kind), signed=True) for kind in kinds] for row in shown]
    notes = [
        f"Change in percentage points; {how_many(shown)}. With another problem's draft, a second attempt that reads its "
        "draft gets worse; one that ignores it does not. Resampling the first attempt gains nothing by itself. "
        "Several seeds: mean and 95% t-interval. One measurement: 95%, Tango's interval of a paired difference, or the "
        "bootstrap over problems if each has several samples. The base is one model, but its resamples differ by seed, so "
        "every seed counts there."
    ]
    return [Table("controls", "Controls", [CONTROLS[k] for k in kinds], table_rows(shown, cells), notes)]


def _papers_numbers(rows: Sequence[Row]) -> tuple[Mapping[str, PaperRow], str]:
    """Return the paper's numbers for tasks of this kind, and their task and model."""
    runs = [m.source for row in rows for m in row.measured if isinstance(m.source, Run)]
    tasks = {str(run.settings.get("task", {}).get("name", "")).partition(":")[0] for run in runs}
    return (CODE, "HumanEval, Gemini 1.0 Pro") if tasks and tasks <= CODE_TASKS else (MATH, "MATH, Gemini 1.5 Flash")


def _spent_cells(row: Row, counts: Sequence[str]) -> list[Cell]:
    """Return these counts of `SPENT`; a range if the seeds differ. A budget of the row's own is marked."""
    spent = [sorted(row.spent(what)) for what in counts]
    below = "own budget" if row.card.get("budget") == OWN_BUDGET else ""
    return [
        Cell(" to ".join(f"{v:,}" for v in sorted({values[0], values[-1]})) if values else "–", below)
        for values in spent
    ]


def _paper_cells(paper: PaperRow | None, *, flips: bool) -> list[Cell]:
    if paper is None:
        return [Cell("–")] * (5 if flips else 3)
    shown = [f"{paper.t1:.1f}", f"{paper.t2:.1f}", f"{paper.delta:+.1f}".replace("-", "−")]
    if flips:
        shown += ["–" if rate is None else f"{rate:.1f}" for rate in (paper.i_to_c, paper.c_to_i)]
    return [Cell(text) for text in shown]


def _comparison_cell(found: PairedDifference | None) -> Cell:
    if found is None:
        return Cell("–")
    p = "p < 0.001" if found.p_holm < 0.001 else f"p = {found.p_holm:.3f}"
    cell = cell_of(found.difference, signed=True)
    return Cell(cell.value, f"{cell.below}, {p}")
