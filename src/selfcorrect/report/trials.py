"""The table of a comparison's sweep of settings (`selfcorrect paper --tune`)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from selfcorrect.report.cells import Cell, Table, TableRow, cell_of
from selfcorrect.report.statistics import over_seeds

METRICS = {"acc_t1": "Acc@t1", "acc_t2": "Acc@t2", "delta": "delta"}


def trial_table(sweep: Mapping[str, Any], bases: Collection[str] = ()) -> Table:
    """Return a row for every trial, with the chosen ones marked; a failed trial has no metrics.

    ``bases`` are the digests of the base models that the rows of the page started from.
    """
    rows = [
        TableRow(f"{sweep['titles'][key]}: {' '.join(trial['settings'])}", f"seed {sweep['seed']}", _cells(trial))
        for key, trials in sweep["rows"].items()
        for trial in trials
    ]
    usual = sweep.get("criterion", "acc_t2")
    others = [
        f"{sweep['titles'].get(key, key)}: {METRICS.get(judged, judged)}"
        for key, judged in sweep.get("criteria", {}).items()
        if judged != usual
    ]
    notes = [
        f"In % of {sweep['problems']:,} development problems, greedy, one run each, with a seed outside the comparison. "
        f"Each row is trained with the settings of its highest {METRICS.get(usual, usual)}"
        + (f" ({', '.join(others)})" if others else "")
        + ". Intervals: 95%, Wilson for accuracies, Tango for delta."
    ]
    swept = {trial["base"] for trials in sweep["rows"].values() for trial in trials if trial.get("base")}
    if swept and bases and not swept <= set(bases):
        notes.append(
            f"These trials started from another base model ({_short(swept)}) than the rows ({_short(bases)}): the best "
            "settings there need not be the best here."
        )
    return Table("trials", "Sweep of settings", [*METRICS.values(), "chosen"], rows, notes)


def _short(digests: Iterable[str]) -> str:
    return ", ".join(sorted(digest[:12] for digest in digests))


def _cells(trial: Mapping[str, Any]) -> list[Cell]:
    if "acc_t2" not in trial:
        return [*[Cell("–")] * len(METRICS), Cell("failed")]
    metrics = [cell_of(over_seeds([trial[f]], trial[f"{f}_ci95"]), signed=f == "delta") for f in METRICS]
    return [*metrics, Cell("yes" if trial["chosen"] else "")]
