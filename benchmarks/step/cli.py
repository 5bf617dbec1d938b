"""Define the commands of the step benchmark: `python -m benchmarks.step`."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.step.workloads import WORKLOADS, find_workload, resized
from selfcorrect.cli.console import COMMON, Flags, Interrupts, say
from selfcorrect.cli.options import USAGE_ERROR, WholeSentences

app = typer.Typer(
    cls=WholeSentences,
    help="Measure the speed and memory of a training step.",
    epilog=COMMON,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

DEFAULT_TRL = Path(".venv-trl/bin/python")


class Against(StrEnum):
    """The system to compare with."""

    nobody = "nobody"
    trl = "trl"
    ours = "ours"


class Format(StrEnum):
    """The dtype of the weights."""

    float32 = "float32"
    bfloat16 = "bfloat16"


Threads = Annotated[int | None, typer.Option(min=1, help="Threads of each side. Unset: all CPUs.")]
Out = Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Also write all numbers as JSON.")]


@app.command(epilog=COMMON)
def ratio(
    context: typer.Context,
    *,
    workload: Annotated[str, typer.Option("--workload", help=f"One of {', '.join(WORKLOADS)}.")] = "tiny",
    against: Annotated[
        Against, typer.Option(help="System to alternate with on the same work; `ours` measures the noise.")
    ] = Against.nobody,
    slowdown: Annotated[
        float,
        typer.Option(min=0, help="With --against ours: slow the other side down by this fraction, as a planted fault."),
    ] = 0.0,
    repeats: Annotated[int, typer.Option(min=1, help="Counted steps of each side.")] = 5,
    episodes: Annotated[
        int | None, typer.Option(min=1, help="Replaces the workload's number, for a quick look.")
    ] = None,
    dtype: Annotated[
        Format | None, typer.Option(help="Replaces the workload's dtype on both sides; TRL's search tries others too.")
    ] = None,
    threads: Threads = None,
    trl_python: Annotated[Path, typer.Option(help="Python interpreter of TRL's environment.")] = DEFAULT_TRL,
    trl_set: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="A setting of TRL's side (docs/dev/bench.md); repeatable."),
    ] = None,
    search: Annotated[
        bool, typer.Option("--search", help="First search for TRL's fastest settings, then use them.")
    ] = False,
    out: Out = None,
) -> None:
    """Measure the time and memory of a training step.

    Prints seconds by phase, memory, the machine's limits, and the ratio to another system.

    `ratio --workload tiny --against ours --slowdown 0.25` shows that a 25% slowdown is detected.
    """
    flags: Flags = context.obj
    if slowdown and against is not Against.ours:
        raise USAGE_ERROR("--slowdown requires --against ours, whose other side it slows down", ctx=context)
    if (search or trl_set) and against is not Against.trl:
        raise USAGE_ERROR("--search and --trl-set require --against trl", ctx=context)
    if search and trl_set:
        raise USAGE_ERROR("--search tries all settings of TRL's side: give either it or --trl-set", ctx=context)
    chosen = resized(find_workload(workload), episodes)
    chosen = replace(chosen, dtype=dtype.value) if dtype else chosen
    threads = threads or len(os.sched_getaffinity(0))
    from benchmarks.step import comparison, process, table, trl_settings
    from benchmarks.step.search import best_trl
    from selfcorrect.errors import TrainingError
    from selfcorrect.storage.provenance import provenance

    origin = provenance()  # read now: the files may change during a long measurement

    def report(text: str) -> None:
        if not flags.quiet:
            say(text)

    def on_step(side: str, step: int, seconds: float) -> None:
        report(f"{side}: {'warm-up' if step == 0 else f'step {step}'}, {seconds:.2f} s")

    def on_trial(trial: dict[str, Any]) -> None:
        seconds, outcome = trial["seconds"], "failed"
        if seconds is not None:
            outcome = f"{seconds:.2f} s per step" if trial["counted"] else f"stopped after {seconds:.2f} s"
        report(f"trl with {trial['settings']}: {outcome}")

    tried: list[dict[str, Any]] = []
    rival = None
    with Interrupts():
        if against is Against.ours:
            rival = comparison.Rival(f"ours + {slowdown:.0%}" if slowdown else "ours again", slowdown=slowdown)
        elif against is Against.trl:
            settings = trl_settings.parse(trl_set or [], chosen)
            process.check_trl(trl_python)
            if search:
                settings, tried = best_trl(chosen, trl_python, threads=threads, on_trial=on_trial)
            rival = comparison.Rival("trl", trl_python, settings)
        try:
            found = comparison.run_bench(chosen, rival=rival, repeats=repeats, threads=threads, on_step=on_step)
        except TrainingError as error:
            if not tried:
                raise
            again = " ".join(f"--trl-set {key}={json.dumps(value).strip(chr(34))}" for key, value in settings.items())
            raise TrainingError(f"{error}\nThe search had found TRL's settings; repeat without it: {again}") from error
    more: dict[str, Any] = {"tried": tried} if tried else {}
    more |= {"trl": process.TRL_VERSION} if against is Against.trl else {}
    text = _write({"provenance": origin, **found.to_json(), **more}, out)
    print(text if flags.json else table.bench_table(found))


@app.command(epilog=COMMON)
def scaling(
    context: typer.Context,
    *,
    curve: Annotated[
        list[str] | None, typer.Option(help="episodes, group, tokens, vocabulary or width; repeatable. Unset: all.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Counted steps of each point.")] = 5,
    threads: Threads = None,
    out: Out = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also draw the curves; needs selfcorrect[bench].")
    ] = None,
) -> None:
    """Measure how the cost of a training step grows.

    Measures one curve each over episodes, group size, tokens, vocabulary and model width, and fits it.
    """
    flags: Flags = context.obj
    threads = threads or len(os.sched_getaffinity(0))
    from benchmarks.step import scaling as scaling_curves
    from benchmarks.step.picture import check_drawing, draw_growth
    from selfcorrect.errors import ConfigError
    from selfcorrect.storage.provenance import provenance

    unknown = sorted(set(curve or []) - set(scaling_curves.CURVES))
    if unknown:
        raise ConfigError(f"--curve {unknown[0]} is unknown: the curves are {', '.join(scaling_curves.CURVES)}.")
    if picture is not None:
        check_drawing()
    origin = provenance()

    def on_point(name: str, value: int, seconds: float) -> None:
        if not flags.quiet:
            say(f"{name} = {value}: {seconds:.3f} s")

    with Interrupts():
        curves = [
            scaling_curves.measure(scaling_curves.CURVES[name], repeats=repeats, threads=threads, on_point=on_point)
            for name in curve or scaling_curves.CURVES
        ]
    found = [measured.to_json() for measured in curves]
    text = _write({"provenance": origin, "threads": threads, "curves": found}, out)
    if picture is not None:
        draw_growth(found, picture)
    print(text if flags.json else scaling_curves.growth_table(curves))


def _write(found: dict[str, Any], out: Path | None) -> str:
    text = json.dumps(found, indent=1)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n", encoding="utf-8")
    return text
