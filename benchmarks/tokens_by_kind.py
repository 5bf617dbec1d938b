"""Test whether attention causes the quadratic growth of a step's cost with its tokens: `python -m benchmarks.tokens_by_kind`.

Profiles the points of `scaling`'s curve over tokens: the seconds of attention (the fused kernel for many tokens, two products
and a softmax for one) and of everything else, each with its fit a T + b T^2. If attention explains the quadratic growth, the
other b is negligible next to attention's.
"""

from __future__ import annotations

from benchmarks.profile_step import profiled
from benchmarks.step.scaling import CURVES, fit

# This includes the softmax that draws tokens, which grows with T, not with its square.
ATTENTION = ("aten::_scaled_dot_product", "aten::bmm", "aten::baddbmm", "aten::_softmax")


def main() -> None:
    """Print a line per number of tokens, then both fits."""
    curve = CURVES["tokens"]
    print("| tokens per attempt | attention, s | everything else, s |\n|---|---|---|")
    attention, rest = [], []
    for tokens in curve.values:
        _, operations = profiled(curve.make(tokens))
        seconds = {str(operation.key): operation.self_cpu_time_total / 1e6 for operation in operations}
        attention.append(sum(took for name, took in seconds.items() if name.startswith(ATTENTION)))
        rest.append(sum(seconds.values()) - attention[-1])
        print(f"| {tokens} | {attention[-1]:.3f} | {rest[-1]:.3f} |", flush=True)
    longest = curve.values[-1]
    for name, points in (("attention", attention), ("everything else", rest)):
        found = fit(curve.values, points, curve.powers)
        a, b = found.coefficients
        print(
            f"{name}: {a:.3g} T + {b:.3g} T^2, worst point {found.worst:.0%}; "
            f"at {longest} tokens the quadratic term is {b * longest**2:.2f} s"
        )


if __name__ == "__main__":
    main()
