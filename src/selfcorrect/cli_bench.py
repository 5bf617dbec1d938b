"""The command that measures speed and memory."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from selfcorrect.bench.workloads import WORKLOADS, find_workload, resized
from selfcorrect.console import COMMON, Flags, Interrupts, say

app = typer.Typer()

DEFAULT_TRL = Path(".venv-trl/bin/python")


class Against(StrEnum):
    """With whom we are compared."""

    nobody = "nobody"
    trl = "trl"
    ours = "ours"


@app.command(epilog=COMMON)
def bench(
    context: typer.Context,
    *,
    workload: Annotated[str, typer.Option("--workload", help=f"What is measured: {', '.join(WORKLOADS)}.")] = "tiny",
    against: Annotated[
        Against, typer.Option(help="Another system on the same work, in turn; `ours` is ourselves, to see the noise.")
    ] = Against.nobody,
    slowdown: Annotated[
        float, typer.Option(min=0, help="With --against ours: slow the other one down by this share, a planted fault.")
    ] = 0.0,
    repeats: Annotated[int, typer.Option(min=1, help="Counted steps of each side.")] = 5,
    episodes: Annotated[int | None, typer.Option(min=1, help="Other than the workload's, for a quick look.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of each side; unset: all CPUs.")] = None,
    trl_python: Annotated[Path, typer.Option(help="The interpreter of TRL's environment.")] = DEFAULT_TRL,
    trl_set: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="A setting of TRL's side (docs/bench.md); repeatable.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Also write all numbers, as JSON.")] = None,
) -> None:
    """Measure a training step: seconds by phase, memory, the machine's limits, and the ratio to another system.

    `bench --workload tiny --against ours --slowdown 0.25` shows that a slow-down of a quarter is seen.
    """
    flags: Flags = context.obj
    chosen = resized(find_workload(workload), episodes)
    from selfcorrect.bench import comparison, table, trl_settings

    rival = None
    if against is Against.ours:
        rival = comparison.Rival(f"ours + {slowdown:.0%}" if slowdown else "ours again", slowdown=slowdown)
    elif against is Against.trl:
        rival = comparison.Rival("trl", trl_python, trl_settings.parse(trl_set or [], chosen))

    def on_step(side: str, step: int, seconds: float) -> None:
        if not flags.quiet:
            say(f"{side}: {'warm-up' if step == 0 else f'step {step}'}, {seconds:.2f} s")

    with Interrupts():
        found = comparison.run_bench(chosen, rival=rival, repeats=repeats, threads=threads, on_step=on_step)
    text = json.dumps(found.to_json(), indent=1)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n", encoding="utf-8")
    print(text if flags.json else table.bench_table(found))
