"""Draw the curves of `scaling` (extra `bench`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.step.comparison import PHASES
from selfcorrect.extras import check_installed


def check_drawing() -> None:
    """Check, before anything is measured, that the drawing library is installed.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    check_installed("matplotlib", extra="bench", why="--picture")


def draw_growth(curves: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw a panel per curve: stacked seconds by phase, and the fit as a line. ``curves`` are `Growth.to_json`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * len(curves), 3.4), layout="constrained")
    for index, curve in enumerate(curves):
        axes = figure.add_subplot(1, len(curves), index + 1)
        xs, bottom = range(len(curve["values"])), [0.0] * len(curve["values"])
        for phase in PHASES:
            heights = curve["phases"][phase]
            axes.bar(xs, heights, bottom=bottom, label=phase)
            bottom = [b + h for b, h in zip(bottom, heights, strict=True)]
        terms = list(zip(curve["fit"]["coefficients"], curve["fit"]["powers"], strict=True))
        fitted = [sum(c * value**p for c, p in terms) for value in curve["values"]]
        axes.plot(xs, fitted, "k.--", linewidth=1, label=f"fit, worst point {curve['fit']['worst']:.0%}")
        axes.set_xticks(list(xs), [f"{value:,}" for value in curve["values"]])
        axes.set_xlabel(curve["unit"])
        axes.set_title(curve["curve"])
        axes.legend(fontsize=7)
        if index == 0:
            axes.set_ylabel("seconds per step")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
