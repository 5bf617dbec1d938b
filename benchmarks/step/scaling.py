"""Measure how a step's cost grows with episodes, group size, tokens, vocabulary and model width, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from benchmarks.step.comparison import PHASES, BenchResult, run_bench
from benchmarks.step.workloads import Shape, Workload

SHAPE = Shape(layers=2, width=128, inner=512, heads=4, kv_heads=2, head_dim=32, vocabulary=1024)
BASE = Workload("growth", "a small model, for the curves", SHAPE, 64, turn=32, prompt=32)


@dataclass(frozen=True, slots=True)
class Curve:
    """A quantity and the workloads that differ in it.

    Attributes:
        powers: powers of the quantity in the fit of a step's seconds; 0 is a constant.
    """

    name: str
    unit: str
    values: tuple[int, ...]
    make: Callable[[int], Workload]
    powers: tuple[int, ...]


def _with_shape(**changes: Any) -> Workload:
    return replace(BASE, model=replace(SHAPE, **changes))


def _wide(width: int) -> Workload:
    return _with_shape(width=width, inner=4 * width, heads=width // 32, kv_heads=width // 64)


CURVES = {
    curve.name: curve
    for curve in (
        Curve("episodes", "episodes", (32, 64, 128, 256, 512), lambda x: replace(BASE, episodes=x), (0, 1)),
        Curve(
            "group",
            "episodes per problem",
            (4, 8, 16, 32, 64),
            lambda x: replace(BASE, episodes=8 * x, group=x),
            (0, 1),
        ),
        Curve(
            "tokens",
            "tokens per attempt",
            (64, 128, 256, 384, 512),
            lambda x: replace(BASE, episodes=16, turn=x),
            (1, 2),
        ),
        Curve("vocabulary", "tokens", (1024, 4096, 16_384, 65_536), lambda x: _with_shape(vocabulary=x), (0, 1)),
        Curve("width", "model width", (64, 128, 256, 512), _wide, (0, 1, 2)),
    )
}


@dataclass(frozen=True, slots=True)
class Fit:
    """Seconds as a sum of coefficient * x^power, fitted by least squares of the relative errors.

    Attributes:
        worst: the largest relative error of a point.
    """

    powers: tuple[int, ...]
    coefficients: tuple[float, ...]
    worst: float

    def at(self, x: float) -> float:
        return float(sum(c * x**p for c, p in zip(self.coefficients, self.powers, strict=True)))


def fit(xs: Sequence[float], seconds: Sequence[float], powers: Sequence[int]) -> Fit:
    """Fit coefficients of either sign.

    >>> [round(c, 6) for c in fit([1, 2, 3], [3, 5, 7], (0, 1)).coefficients]
    [1.0, 2.0]
    """
    x, y = np.array(xs, dtype=float), np.array(seconds, dtype=float)
    design = np.stack([x**p for p in powers], 1) / y[:, None]
    coefficients = np.linalg.lstsq(design, np.ones(len(y)), rcond=None)[0]
    worst = float(np.abs(design @ coefficients - 1).max())
    return Fit(tuple(powers), tuple(map(float, coefficients)), worst)


@dataclass(frozen=True, eq=False)
class Growth:
    """A measured curve."""

    curve: Curve
    results: Sequence[BenchResult]

    @property
    def seconds(self) -> list[float]:
        return [result.ours.seconds for result in self.results]

    def fit(self) -> Fit:
        return fit(self.curve.values, self.seconds, self.curve.powers)

    def attention_rate(self) -> float | None:
        """Return the GFLOP/s of attention if the quadratic part of the fit is its operations and nothing else.

        Attention explains the growth if this is below the machine's rate for matrix products, and not far below.
        """
        found = self.fit()
        if self.curve.name != "tokens" or found.coefficients[1] <= 0:
            return None
        return attention_operations(self.results[0]) / found.coefficients[1] / 1e9

    def to_json(self) -> dict[str, Any]:
        return {
            "curve": self.curve.name,
            "unit": self.curve.unit,
            "values": list(self.curve.values),
            "seconds": self.seconds,
            "phases": {phase: [result.ours.phase(phase) for result in self.results] for phase in PHASES},
            "peak_mib": [result.ours.peak_mib for result in self.results],
            "fit": asdict(self.fit()),
            "attention_gflops": self.attention_rate(),
            "load": [result.load for result in self.results],
        }


def attention_operations(result: BenchResult) -> float:
    """Return attention's operations in a step per squared token of an attempt, at the highest order.

    A row of 2 T tokens sees (2 T)^2 / 2 pairs, at 4 operations per query element: once in generation, once in the
    reference, three times in learning.
    """
    size = result.counts["model"]
    return float(5 * result.workload["episodes"] * 4 * size["query_width"] * size["layers"] * 2)


def measure(curve: Curve, *, repeats: int, threads: int, on_point: Callable[[str, int, float], None]) -> Growth:
    """Measure every point of a curve."""
    results = []
    for value in curve.values:
        results.append(run_bench(curve.make(value), repeats=repeats, threads=threads))
        on_point(curve.name, value, results[-1].ours.seconds)
    return Growth(curve, results)


def growth_table(curves: Sequence[Growth]) -> str:
    """Return the curves and their fits as Markdown."""
    lines = ["| grows with | seconds a step | fit | worst point |", "|---|---|---|---|"]
    for growth in curves:
        found = growth.fit()
        points = ", ".join(f"{x}: {y:.3f}" for x, y in zip(growth.curve.values, growth.seconds, strict=True))
        terms = " + ".join(
            f"{c:.3g}{'' if p == 0 else ' x' if p == 1 else f' x^{p}'}"
            for c, p in zip(found.coefficients, found.powers, strict=True)
        )
        lines.append(f"| {growth.curve.name} | {points} | {terms} | {found.worst:.0%} |")
    return "\n".join(lines)
