"""Format a measured workload as text."""

from __future__ import annotations

from statistics import median, quantiles

from benchmarks.step.comparison import PHASES, BenchResult

GIGA = 1e9


def bench_table(result: BenchResult) -> str:
    """Return seconds by phase, ratio, memory and the fractions of the machine's limits, as Markdown."""
    sides = [result.ours] + ([result.rival] if result.rival else [])
    lines = [
        f"workload {result.workload['name']}: {result.workload['episodes']} episodes, "
        f"{result.ours.steps[0]['tokens']:,} sampled tokens per step, {result.workload['dtype']}, {result.device}, "
        f"{result.threads} threads, "
        f"{len(result.ours.steps)} alternating steps each, load average {result.load:.1f}",
        "",
        "| seconds per step (median) | " + " | ".join(side.name for side in sides) + " |",
        "|---|" + "---|" * len(sides),
    ]
    for phase in PHASES:
        lines.append(f"| {phase} | " + " | ".join(f"{side.phase(phase):.3f}" for side in sides) + " |")
    lines.append("| **whole step** | " + " | ".join(f"**{side.seconds:.3f}**" for side in sides) + " |")
    lines.append("| CPU seconds, all threads | " + " | ".join(f"{side.cpu_seconds:.3f}" for side in sides) + " |")
    lines.append("| peak memory, MiB above the loaded model | " + " | ".join(f"{s.peak_mib:.0f}" for s in sides) + " |")
    lines += ["", *_ratio_lines(result), *_limit_lines(result)]
    return "\n".join(lines)


def _ratio_lines(result: BenchResult) -> list[str]:
    if result.rival is None:
        return []
    name, ratios = result.rival.name, result.ratios
    quartiles = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else [ratios[0]] * 3
    return [
        f"{name} / ours, pair by pair: median {median(ratios):.2f} (quartiles {quartiles[0]:.2f} to {quartiles[2]:.2f}, "
        f"all {min(ratios):.2f} to {max(ratios):.2f}, n = {len(ratios)}); of CPU seconds: {median(result.cpu_ratios):.2f}; "
        f"peak memory ours / {name}: {result.ours.peak_mib / result.rival.peak_mib:.2f}",
        "",
    ]


def _limit_lines(result: BenchResult) -> list[str]:
    lines = [
        f"this machine: {result.rate / GIGA:.0f} GFLOP/s in matrix products, {result.bandwidth / GIGA:.1f} GB/s of memory",
        "",
        "| | bytes to read | operations | minimum seconds | bottleneck | seconds | fraction reached |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, phase in (("decoding", "generate"), ("learning", "learn")):
        count = result.count(name)
        lines.append(
            f"| {name} | {count.bytes / GIGA:.3g} GB | {count.flop / GIGA:.4g} GFLOP "
            f"| {count.limit(result.bandwidth, result.rate):.3f} | {count.binds(result.bandwidth, result.rate)} "
            f"| {result.ours.phase(phase):.3f} | {result.reached(name):.0%} |"
        )
    return lines
