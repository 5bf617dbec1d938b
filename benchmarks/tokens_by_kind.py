"""Whether attention is what makes a step's cost grow with the square of its tokens: `python benchmarks/tokens_by_kind.py`.

The points of `bench-growth`'s curve over tokens, profiled: seconds of attention (the fused kernel where many tokens are read,
two products and a softmax where one is) and of everything else, each with its fit a T + b T^2. If attention explains the
square, the other b is nothing beside its b.
"""

from __future__ import annotations

import as_the_command  # noqa: F401

# isort: split
from pathlib import Path
from tempfile import TemporaryDirectory

from torch.profiler import ProfilerActivity, profile

from selfcorrect.bench.growth import CURVES, fit
from selfcorrect.bench.ours import OurSide
from selfcorrect.bench.work import write_work
from selfcorrect.bench.workloads import Workload

# The softmax by which tokens are drawn is among them: that grows with T, not with its square.
ATTENTION = ("aten::_scaled_dot_product", "aten::bmm", "aten::baddbmm", "aten::_softmax")
STEPS = 1


def main() -> None:
    """Print a line for each number of tokens, then both fits."""
    curve = CURVES["tokens"]
    print("| tokens an attempt | attention, s | everything else, s |\n|---|---|---|")
    attention, rest = [], []
    for tokens in curve.values:
        of_attention, of_rest = measured(curve.make(tokens))
        attention.append(of_attention)
        rest.append(of_rest)
        print(f"| {tokens} | {of_attention:.3f} | {of_rest:.3f} |", flush=True)
    longest = curve.values[-1]
    for name, seconds in (("attention", attention), ("everything else", rest)):
        found = fit(curve.values, seconds, curve.powers)
        a, b = found.coefficients
        print(
            f"{name}: {a:.3g} T + {b:.3g} T^2, worst point {found.worst:.0%}; "
            f"at {longest} tokens the square is {b * longest**2:.2f} s"
        )


def measured(workload: Workload) -> tuple[float, float]:
    """Profiled seconds of a step's attention and of its other operations, the least of a few steps after a first one."""
    found = []
    with TemporaryDirectory() as folder:
        write_work(workload, Path(folder))
        side = OurSide(Path(folder))
        side.step()
        for _ in range(STEPS):
            with profile(activities=[ProfilerActivity.CPU]) as profiler:
                side.step()
            seconds = {operation.key: operation.self_cpu_time_total / 1e6 for operation in profiler.key_averages()}
            attention = sum(took for name, took in seconds.items() if str(name).startswith(ATTENTION))
            found.append((attention, sum(seconds.values()) - attention))
    return min(a for a, _ in found), min(r for _, r in found)


if __name__ == "__main__":
    main()
