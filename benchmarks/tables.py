"""Print the tables of docs/dev/bench.md from the numbers under results/bench: `python -m benchmarks.tables [FILE...]`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

RESULTS = Path(__file__).parents[1] / "results" / "bench"
AGAINST_TRL = ("tiny", "small", "vocab", "long", "smollm2", "smollm2-lora")
"""The files in the order of the tables."""


def tables(files: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of all tables."""
    yield "| workload | TRL's settings | pairs | ratio, clock | ratio, CPU seconds | memory | commit |"
    yield "|---|---|---|---|---|---|---|"
    yield from (_ratio(name, found) for name, found in files.items())
    yield ""
    yield "| workload | whole step | generate | reference | learn | decoding reaches | learning reaches | GFLOP/s, GB/s |"
    yield "|---|---|---|---|---|---|---|---|"
    yield from (_phases(name, found) for name, found in files.items())
    for name, found in files.items():
        if found.get("tried"):
            yield from (
                "",
                f"`{name}`, the search:",
                "",
                "| TRL's settings | first step, s | later steps, s |",
                "|---|---|---|",
            )
            yield from map(_trial, found["tried"])


def _ratio(name: str, found: dict[str, Any]) -> str:
    ratios, rival = found["ratios"], found["rival"]
    return (
        f"| `{name}` | {_settings(rival['settings'])}{', searched' if found.get('tried') else ''} | {len(ratios)} "
        f"| {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) | {found['cpu_ratio']:.2f} | {found['peak_ratio']:.2f} "
        f"| {found['provenance']['git_commit'][:7]} |"
    )


def _phases(name: str, found: dict[str, Any]) -> str:
    sides = found["ours"]["steps"], found["rival"]["steps"]

    def both(seconds: Any) -> str:
        return " / ".join(_short(median(seconds(step) for step in steps)) for steps in sides)

    phases = [both(lambda step, phase=phase: step["phases"][phase]) for phase in ("generate", "reference", "learn")]
    fractions = [f"{found['reached'][part]:.0%}" for part in ("decoding", "learning")]
    best = [max(machine[key] for machine in found["machine"]) / 1e9 for key in ("rate", "bandwidth")]
    cells = [both(lambda step: step["seconds"]), *phases, *fractions, f"{best[0]:.0f}, {best[1]:.0f}"]
    return f"| `{name}` | " + " | ".join(cells) + " |"


def _trial(trial: dict[str, Any]) -> str:
    first, seconds = ("" if trial[key] is None else _short(trial[key]) for key in ("first", "seconds"))
    later = seconds if trial["counted"] else "failed" if trial["seconds"] is None else "stopped"
    more = ", alternating with the other of the fastest two" if trial.get("final") else ""
    return f"| {_settings(trial['settings'])}{more} | {first} | {later} |"


def _settings(settings: dict[str, Any]) -> str:
    """Return the rows, the attention, and what differs from the other first choices."""
    words = [f"{settings['rows']} rows", settings["attention"]]
    words += [settings["dtype"]] if settings["dtype"] != "float32" else []
    words += ["memory kept"] if settings.get("kept_memory") else []
    words += ["turn 2 from the start"] if settings.get("continued") is False else []
    return ", ".join(words)


def _short(seconds: float) -> str:
    return f"{seconds:.2f}" if seconds < 10 else f"{seconds:.1f}" if seconds < 100 else f"{seconds:.0f}"


def load(paths: list[Path]) -> dict[str, dict[str, Any]]:
    """Return the files' numbers by file name."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}


if __name__ == "__main__":
    chosen = [Path(name) for name in sys.argv[1:]] or [RESULTS / f"{name}.json" for name in AGAINST_TRL]
    print("\n".join(tables(load(chosen))))
