"""The table of the settings that were tried for a comparison (`selfcorrect paper --tune`)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from selfcorrect.report.statistics import over_seeds
from selfcorrect.report.tables import Cell, Table, TableRow, cell_of

FIGURES = {"acc_t1": "Acc@t1", "acc_t2": "Acc@t2", "delta": "delta"}


def trial_table(told: Mapping[str, Any], bases: Collection[str] = ()) -> Table:
    """A row for every trial, with the chosen ones marked; a trial that failed has no figures.

    ``bases`` are the digests of the base models that the rows of the page began with.
    """
    rows = [
        TableRow(f"{told['titles'][key]}: {' '.join(trial['settings'])}", f"seed {told['seed']}", _cells(trial))
        for key, tried in told["rows"].items()
        for trial in tried
    ]
    notes = [
        f"In % of {told['problems']:,} development problems, greedy, one run each; the seed is not one of the comparison's. "
        "Each row is trained with the settings of its highest Acc@t2. Intervals: 95 %, Wilson for accuracies, Tango for delta."
    ]
    tried_on = {trial["base"] for tried in told["rows"].values() for trial in tried if trial.get("base")}
    if tried_on and bases and not tried_on <= set(bases):
        notes.append(
            f"These trials began with another base model ({_short(tried_on)}) than the rows ({_short(bases)}): what was best "
            "there need not be best here."
        )
    return Table("trials", "Settings that were tried", [*FIGURES.values(), "chosen"], rows, notes)


def _short(digests: Iterable[str]) -> str:
    return ", ".join(sorted(digest[:12] for digest in digests))


def _cells(trial: Mapping[str, Any]) -> list[Cell]:
    if "acc_t2" not in trial:
        return [*[Cell("–")] * len(FIGURES), Cell("failed")]
    figures = [cell_of(over_seeds([trial[f]], trial[f"{f}_ci95"]), signed=f == "delta") for f in FIGURES]
    return [*figures, Cell("yes" if trial["chosen"] else "")]
