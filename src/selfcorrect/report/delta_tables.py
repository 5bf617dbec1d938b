"""The report's tables of what delta is made of: its terms, the detection of errors, the dependence on the first verdict."""

from __future__ import annotations

from collections.abc import Sequence

from selfcorrect.evaluation.decomposition import DETECTED, LIFTS, SHOWN
from selfcorrect.evaluation.verification import VERDICTS
from selfcorrect.report.cells import Cell, Table, cell_of, interval_note, percent, table_rows
from selfcorrect.report.rows import Row
from selfcorrect.report.statistics import Estimate
from selfcorrect.types import Part


def delta_tables(rows: Sequence[Row]) -> list[Table]:
    """Return the tables that some row has the measurements for."""
    return [*_made_of(rows), *_detection(rows), *_dependence(rows), *_verdicts(rows)]


def _verdicts(rows: Sequence[Row]) -> list[Table]:
    """Return how well models judge their attempts, where their scripts have them say so."""
    shown = [row for row in rows if row.judged("accuracy")]
    if not shown:
        return []
    cells = [[cell_of(row.judged(name)) for name in VERDICTS] for row in shown]
    notes = [
        f"In %; {interval_note(shown)} After its first attempt the model says whether that is correct. A second attempt follows "
        "only if it says wrong, or always, as the script has it; otherwise the first attempt stands."
    ]
    return [
        Table("verdicts", "What the model says of its attempts", [*VERDICTS.values()], table_rows(shown, cells), notes)
    ]


def _made_of(rows: Sequence[Row]) -> list[Table]:
    """Return what delta is made of, and H and M1 where a row is single-turn RL; nothing without a draft swap."""
    shown = [row for row in rows if row.estimate("delta") and row.term("re_answering")]
    if not shown:
        return []
    terms = [term for term in SHOWN if any(row.term(term) for row in shown)]
    columns = ["delta", *(SHOWN[term] for term in terms)]
    cells = [[cell_of(row.estimate("delta"), signed=True)] for row in shown]
    cells = [
        [*line, *(cell_of(row.term(t), signed=True) for t in terms)] for line, row in zip(cells, shown, strict=True)
    ]
    notes = [
        f"In percentage points; {interval_note(shown)} delta = re-answering + reading: what the second attempt gains when its "
        "draft is another problem's, and what it gains from its own draft."
        + (
            " Reading = keep + repair: on problems whose first attempt is correct, and on the others."
            if "keep" in terms
            else ""
        )
    ]
    ranges = [row.reading_range() for row in shown]
    if any(ranges):
        columns.append("reading, by draft")
        cells = [[*line, _range(found)] for line, found in zip(cells, ranges, strict=True)]
        notes.append(
            "Reading, by draft: its lowest and highest value over the blind drafts (another's, empty, own shuffled)."
        )
    if any(row.complete_repair() for row in shown):
        columns.append("repair, complete drafts")
        cells = [[*line, cell_of(row.complete_repair(), signed=True)] for line, row in zip(cells, shown, strict=True)]
        notes.append(
            "Repair, complete drafts: in the episodes whose first attempt the token limit did not cut off, in percentage points "
            "of them; the conclusion is theirs, too."
        )
    conclusions = [row.conclusion() for row in shown]
    columns += ["reads its draft", "conclusion"]
    cells = [
        [*line, *((Cell(found.reads), Cell(found.behaviour)) if found else (Cell("–"), Cell("–")))]
        for line, found in zip(cells, conclusions, strict=True)
    ]
    notes += [f"{'. '.join(found.lines(row.label))}." for row, found in zip(shown, conclusions, strict=True) if found]
    if any(row.results(Part.SAMPLED) for row in shown):
        notes.append("The conclusions rest on the main attempts, not on the samples at the training temperature.")
    reference, merit = merits(rows, shown)
    if reference is not None:
        columns += ["H", "M1"]
        cells = [[*line, *(cell_of(x, signed=True) for x in pair)] for line, pair in zip(cells, merit, strict=True)]
        notes.append(
            f"delta = H + M1, paired by seed with {reference.label}: H is its Acc@t1 less the row's (held back), M1 the row's "
            "Acc@t2 less its Acc@t1 (what two attempts give over training one)."
        )
    return [Table("made_of", "What delta is made of", columns, table_rows(shown, cells), notes)]


def merits(
    rows: Sequence[Row], shown: Sequence[Row]
) -> tuple[Row | None, list[tuple[Estimate | None, Estimate | None]]]:
    """Return the row of single-turn RL, and H and M1 of the ``shown`` rows against it; None and nothing where no row has them."""
    reference = next((row for row in rows if row.paper == "single-turn" and row.final), None)
    found = [] if reference is None else [row.against(reference) for row in shown]
    return (reference, found) if any(h for h, _ in found) else (None, [])


def _range(found: tuple[float, float] | None) -> Cell:
    if found is None:
        return Cell("–")
    return Cell(" to ".join(percent(value, signed=True) for value in found))


def _detection(rows: Sequence[Row]) -> list[Table]:
    """Return how often incorrect and correct answers are changed, and what they become."""
    shown = [row for row in rows if any(row.detected(name) for name in DETECTED)]
    if not shown:
        return []
    cells = [[cell_of(row.detected(name), signed=name == "youden") for name in DETECTED] for row in shown]
    notes = [
        f"In %; {interval_note(shown)} Of the incorrect and of the correct first answers, those that the second attempt changes; "
        "Youden's J is their difference; then the changed ones that end correct, and incorrect. J above 0: the model is likelier "
        "to change what is wrong. m_w and m_r: second attempts that are correct after an incorrect and after a correct first one."
    ]
    return [Table("detection", "Which answers are changed", [*DETECTED.values()], table_rows(shown, cells), notes)]


def _dependence(rows: Sequence[Row]) -> list[Table]:
    """Return how second attempts depend on the first verdict, where there are enough samples of every problem."""
    shown = [row for row in rows if any(row.lifted(name) for name in LIFTS)]
    if not shown:
        return []
    cells = [[cell_of(row.lifted(name), signed=True) for name in LIFTS] for row in shown]
    notes = [
        f"In percentage points; {interval_note(shown)} d: how much likelier a second attempt is correct after a correct first "
        "one, problem by problem. L_w and L_r: what a second attempt gains over another first attempt, after an incorrect and "
        "after a correct first one."
    ]
    title = "How the second attempt depends on the first verdict"
    return [Table("dependence", title, [*LIFTS.values()], table_rows(shown, cells), notes)]
