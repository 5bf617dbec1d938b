"""Draw first and second attempts into an SVG file, for a README; the page draws the same figure with JavaScript."""

from __future__ import annotations

import io
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from selfcorrect.errors import ConfigError, DataError
from selfcorrect.report.rows import Row
from selfcorrect.report.statistics import Estimate
from selfcorrect.storage.files import check_replaceable, refusals, write_atomically

FIRST, SECOND, LINE, GRID = "#6b7280", "#0b62a8", "#b6bcc6", "#e5e7eb"


def check_figure(out: Path) -> None:
    """Check, before any work, that a figure can be drawn into the file ``out``.

    Raises:
        ConfigError: the file's name does not end in .svg, or matplotlib is not installed.
        RunDirectoryError: ``out`` is not a regular file.
    """
    if out.suffix != ".svg":
        raise ConfigError(f"--figure {out}: the figure is an SVG file, so its name must end in .svg.")
    if find_spec("matplotlib") is None:
        raise ConfigError('--figure needs matplotlib, which is not installed: pip install "selfcorrect[figures]"')
    check_replaceable(out)


def write_attempts(rows: Sequence[Row], out: Path) -> None:
    """Draw both greedy attempts of every row with 95% intervals; the same rows give the same bytes.

    Raises:
        DataError: no row has two attempts.
        RunDirectoryError: ``out`` cannot be written.
    """
    shown = [row for row in rows if row.estimate("delta")]
    if not shown:
        raise DataError("--figure draws first and second attempts, but no model here has second ones: omit --figure.")
    with refusals(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, _svg(shown))


def _svg(rows: Sequence[Row]) -> str:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 0.36 * len(rows) + 1.1), layout="constrained")
    axes = figure.add_subplot()
    for place, row in enumerate(rows):
        _draw(axes, place, row)
    axes.scatter([], [], color=FIRST, facecolor="white", label="first attempt")
    axes.scatter([], [], color=SECOND, label="second attempt, with delta in points")
    axes.set_yticks(range(len(rows)), [row.label for row in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(right=109)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("accuracy, %; bars: 95% intervals")
    axes.grid(axis="x", color=GRID)
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper center", ncols=2, fontsize=8, frameon=False)
    text = io.StringIO()
    with rc_context({"svg.hashsalt": "selfcorrect"}):  # otherwise the ids inside the SVG are random
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def _draw(axes: Any, place: int, row: Row) -> None:
    """Draw one row: a line between the attempts, and each attempt with its interval."""
    one, two, delta = (row.estimate(name) for name in ("acc_t1", "acc_t2", "delta"))
    assert one is not None and two is not None and delta is not None
    axes.plot([100 * one.mean, 100 * two.mean], [place, place], color=LINE, linewidth=2, zorder=1)
    for estimate, colour, face in ((one, FIRST, "white"), (two, SECOND, SECOND)):
        axes.plot([100 * end for end in _ends(estimate)], [place, place], color=colour, linewidth=5, alpha=0.35)
        axes.scatter(100 * estimate.mean, place, color=colour, facecolor=face, zorder=3, s=30)
    right = 100 * min(1.0, max(_ends(one)[1], _ends(two)[1]))  # an interval over few seeds may exceed 100
    axes.annotate(f"{100 * delta.mean:+.1f}", (right + 1, place), va="center", fontsize=8)


def _ends(estimate: Estimate) -> tuple[float, float]:
    """Return the interval's ends, or the mean twice if there is no interval."""
    if estimate.low is None or estimate.high is None:
        return estimate.mean, estimate.mean
    return estimate.low, estimate.high
