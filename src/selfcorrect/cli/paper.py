"""The commands on a whole comparison: paper and pack."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from selfcorrect.cli.console import COMMON, Flags, Interrupts, counted, echo, echo_json, say
from selfcorrect.cli.options import MAX_COUNT, MAX_SEED, USAGE_ERROR, Set
from selfcorrect.printable import printable_toml
from selfcorrect.runtime import usable_cores

if TYPE_CHECKING:
    from selfcorrect.config.schema import Config
    from selfcorrect.paper.plan import RunSpec
    from selfcorrect.paper.rows import MethodRow
    from selfcorrect.paper.sweep import Grid
    from selfcorrect.paper.time_estimate import Planned, Throughput
    from selfcorrect.paper.worker_pool import Done, Job

app = typer.Typer()


@app.command(epilog=COMMON)
def paper(
    context: typer.Context,
    *,
    config: Annotated[
        str | None, typer.Argument(help="SCoRe's config: a TOML file or the name of a built-in config.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Directory for all runs.")] = None,
    seeds: Annotated[
        str, typer.Option(metavar="N", help="Train every row with seeds 0 to N - 1, or with those listed: 3-4, or 0,2.")
    ] = "5",
    only: Annotated[str | None, typer.Option(metavar="ROWS", help="Only these rows: comma-separated keys.")] = None,
    row: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ROW", help="A row of your own: a TOML file, module:function or an installed name; repeatable."
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, max=1024, help="Parallel runs. Unset: 1 on a GPU, as many as cores allow on a CPU."),
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, max=1024, help="Processes of this machine that share each run; see docs/scale.md.")
    ] = 1,
    listed: Annotated[bool, typer.Option("--list", help="List the rows and stop.")] = False,
    printed: Annotated[str | None, typer.Option("--print", metavar="ROW", help="Print a row's TOML and stop.")] = None,
    tune: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUES", help="First sweep these comma-separated values for every row; repeatable."),
    ] = None,
    tune_seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of the sweep's trials.")] = 100,
    tune_problems: Annotated[
        int, typer.Option(min=1, max=MAX_COUNT, help="Development problems that each trial is evaluated on.")
    ] = 1000,
    further: Annotated[
        bool,
        typer.Option(
            "--further/--no-further",
            help="Also the evaluations for figures: ten attempts, and 32 samples, of a few rows' first seed.",
        ),
    ] = True,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print what would run and for how long, and stop. Times a few trial steps if no run has finished yet.",
        ),
    ] = False,
    changes: Set = None,
) -> None:
    """Train, evaluate and report the paper's whole comparison.

    All trained rows sample the same number of completions and take the same number of optimizer steps. Stages that
    rows share are trained once. After a stop or a kill, the same command resumes; finished runs are kept. With --tune,
    every trained row first sweeps the same values on development problems and then trains with the values that reach
    the highest Acc@t2.

    With --processes N, each run is shared by N processes, which it starts itself: no torchrun here.
    """
    flags: Flags = context.obj
    from selfcorrect.config.toml import load_config, to_toml
    from selfcorrect.paper.own_rows import own_rows
    from selfcorrect.paper.rows import chosen_rows, chosen_seeds

    keys = [key.strip() for key in only.split(",")] if only else []
    own = own_rows(row or [], [*keys, *([printed] if printed else [])])
    rows = chosen_rows(keys, own)
    if listed:
        _list(rows, offered=not keys, as_json=flags.json)
        return
    if config is None:
        raise USAGE_ERROR("give CONFIG, for instance `demo`", ctx=context)
    from selfcorrect.zoo.resolve import settled

    settings = settled(load_config(config, changes or []))
    if printed is not None:
        from selfcorrect.paper.comparable import row_config

        (chosen,) = chosen_rows([printed], own)
        print(printable_toml(to_toml(row_config(chosen, settings))), end="")
        return
    if out is None:
        raise USAGE_ERROR("give --out DIR", ctx=context)
    if out.is_dir():
        from selfcorrect.storage.files import refuse_links

        refuse_links(out)
    from selfcorrect.paper.sweep import Grid

    numbers = chosen_seeds(seeds)
    if tune and tune_seed <= max(numbers):
        raise USAGE_ERROR(
            f"--tune-seed {tune_seed} must be above all seeds of the comparison, --seeds {seeds}", ctx=context
        )
    grid = Grid.of(tune, seed=tune_seed, problems=tune_problems) if tune else None
    if processes > 1:
        from selfcorrect.engines import EngineSettings, check_engine

        check_engine(EngineSettings.of(settings), processes=processes)
    at_a_time = workers or _workers(settings, processes)
    comparison = _Comparison(settings, rows, out, numbers, at_a_time, processes, grid, flags, further=further)
    if dry_run:
        comparison.print_plan()
    else:
        comparison.work()


def _workers(config: Config, processes: int) -> int:
    """Return how many runs go at once where it is not set: as many as cores allow, but one where they share a GPU's memory."""
    from selfcorrect.zoo.resolve import device_of

    return 1 if device_of(config.model) != "cpu" else max(1, usable_cores() // processes)


def _list(rows: list[MethodRow], *, offered: bool, as_json: bool) -> None:
    """List the rows, with ``offered`` also those of installed packages, which --only or --row adds to a comparison."""
    from selfcorrect.paper.own_rows import offered_rows

    keys = {row.key for row in rows}
    others = (
        [(key, found) for key, found in offered_rows() if key not in keys or isinstance(found, str)] if offered else []
    )
    rows = [*rows, *(found for _, found in others if not isinstance(found, str))]
    broken = [(key, found) for key, found in others if isinstance(found, str)]
    if as_json:
        found = [{"row": r.key, "title": r.title, "table": r.table, "what": r.description} for r in rows]
        echo_json([*found, *({"row": key, "note": why} for key, why in broken)])
        return
    width = max(len(row.key) for row in rows)
    for row in rows:
        echo(f"{row.key:{width}}  {row.title}{f': {row.description}' if row.description else ''}")
    for key, why in broken:
        echo(f"{key:{width}}  cannot be used: {why}")


class _Comparison:
    """The comparison that the options ask for: the sweep, if any, then the rows."""

    def __init__(
        self,
        config: Config,
        rows: list[MethodRow],
        out: Path,
        seeds: Sequence[int],
        workers: int,
        processes: int,
        grid: Grid | None,
        flags: Flags,
        *,
        further: bool = True,
    ) -> None:
        self.config, self.rows, self.out, self.seeds = config, rows, out, seeds
        self.workers, self.processes, self.grid, self.flags = workers, processes, grid, flags
        self.further = further
        self.failed: list[Done] = []

    def specs(self, settled: Mapping[str, Sequence[str]]) -> list[RunSpec]:
        """Return the rows' run specs; check that no directory of theirs holds a run with other settings."""
        from selfcorrect.paper.plan import check_specs, plan

        specs = plan(self.config, self.rows, self.seeds, self.out, settled)
        check_specs(specs)
        return specs

    def check_rows(self) -> None:
        """Check that every row can be built, and that it is what the directory says that it was."""
        from selfcorrect.paper.cards import check_cards
        from selfcorrect.paper.comparable import row_config

        for row in self.rows:
            row_config(row, self.config)
        check_cards(self.rows, self.config, self.out)

    def work(self) -> None:
        from selfcorrect.errors import TrainingError
        from selfcorrect.paper.cards import write_cards
        from selfcorrect.paper.extra_evaluations import extra_evaluations
        from selfcorrect.paper.plan import check_specs
        from selfcorrect.paper.sweep import already_tried, check_trials, settle, settled_before, trial_specs, trials

        self.check_rows()
        settled: Mapping[str, Sequence[str]] = {}
        if self.grid:
            check_trials(self.grid, self.out)
            tried = trials(self.config, self.rows, self.grid, self.out)
            specs = trial_specs(tried, self.out)
            check_specs(specs)
            write_cards(self.rows, self.config, self.out)
            if already_tried(tried, self.out):
                settled = settled_before(self.out)
            else:
                self.finish(specs)
                settled = settle(tried, self.grid, self.out)
        specs = self.specs(settled)
        write_cards(self.rows, self.config, self.out)
        self.finish(specs)
        self.finish(extra_evaluations(specs, self.out) if self.further else [])
        if any(spec.finished for spec in specs):
            _report(self.out, self.flags)
        if self.failed:
            first = self.failed[0]
            raise TrainingError(
                f"runs that failed or could not begin: {len(self.failed)}; all others are finished. "
                f"The first, {first.job.name}: {first.error}"
            )

    def finish(self, jobs: Sequence[Job]) -> None:
        """Finish the unfinished jobs and report each."""
        from selfcorrect.paper.worker_pool import work_through
        from selfcorrect.tasks import get_task

        left = sum(not job.finished for job in jobs)
        if left:  # one message about data that cannot be read, instead of one for each run
            get_task(self.config.task.name, self.config.task.options)
        number = itertools.count(1)

        def on_done(done: Done) -> None:
            if not self.flags.quiet or done.error:
                how = done.error or f"finished, {minutes(done.seconds)}"
                say(f"{next(number)}/{left} {done.job.name}: {how}")

        with Interrupts() as interrupts:
            ended = work_through(
                jobs,
                workers=self.workers,
                processes=self.processes,
                on_done=on_done,
                should_stop=interrupts.should_stop,
            )
        self.failed += [done for done in ended if done.error]

    def print_plan(self) -> None:
        """Print what would run, and for how long."""
        from selfcorrect.paper.extra_evaluations import extra_evaluations
        from selfcorrect.paper.sweep import already_tried, check_trials, settled_before, trial_specs, trials
        from selfcorrect.paper.time_estimate import PROBE_STEPS, Throughput, measured, probed, seconds_left

        self.check_rows()
        if self.grid:
            check_trials(self.grid, self.out)
        tried = trials(self.config, self.rows, self.grid, self.out) if self.grid else []
        settled = settled_before(self.out) if self.grid else {}
        trying = [] if already_tried(tried, self.out) else trial_specs(tried, self.out)
        rows = self.specs(settled)
        further = extra_evaluations(rows, self.out, planned=True) if self.further else []
        specs: list[Planned] = [*trying, *rows, *further]
        throughput = measured(spec.path for spec in (*trying, *rows))
        if throughput is None and all(spec.finished for spec in specs):
            throughput = Throughput(0.0, 0.0, 0.0, 0.0)
        if throughput is None:
            if not self.flags.quiet:
                say(
                    f"no run has finished yet: timing {PROBE_STEPS} trial steps of each stage at full size and an evaluation, "
                    "which are thrown away"
                )
            throughput = probed(self.config, self.processes)
        _print_plan(specs, throughput, seconds_left(specs, throughput, self.workers), self.workers, self.flags)


def _print_plan(specs: Sequence[Planned], throughput: Throughput, total: float, workers: int, flags: Flags) -> None:
    if flags.json:
        echo_json({"cells": [_spec_json(spec, throughput.of(spec)) for spec in specs], "seconds": round(total, 1)})
        return
    for spec in specs:
        echo(f"{spec.name}: {_state(spec, minutes(throughput.of(spec)))}")
    echo(f"{counted(len(specs), 'run')}, {workers} at a time: about {minutes(total)} left")


def _state(spec: Planned, left: str) -> str:
    if spec.finished:
        return "finished"
    return f"{spec.done} of {spec.steps} steps done, {left} left" if spec.steps else f"to evaluate, {left} left"


def _spec_json(spec: Planned, seconds: float) -> dict[str, Any]:
    return {"name": spec.name, "path": str(spec.path), "finished": spec.finished, "steps": spec.steps,
            "done": spec.done, "seconds": round(seconds, 1)}  # fmt: skip


def _report(out: Path, flags: Flags) -> None:
    from selfcorrect.report import write_report
    from selfcorrect.report.table_text import table_json, table_text
    from selfcorrect.report.tables import result_tables

    written = write_report([out], out / "report.html")
    tables = result_tables(written.rows.rows)
    if flags.json:
        found = {"report": str(written.path), "tables": [*map(table_json, tables)]}
        echo_json(found)
        return
    echo("\n\n".join(map(table_text, tables)))
    echo(f"\nThe report is in {written.path}.")


def minutes(seconds: float) -> str:
    """Return a duration as ``2 min 5 s`` or ``1 h 3 min``.

    >>> minutes(125), minutes(3780), minutes(7)
    ('2 min 5 s', '1 h 3 min', '7 s')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


@app.command(epilog=COMMON)
def pack(
    context: typer.Context,
    *,
    source: Annotated[Path, typer.Argument(metavar="DIR", help="Directory of runs and evaluations.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Directory for the small copies.")],
    episodes: Annotated[int, typer.Option(min=0, max=MAX_COUNT, help="Maximum episodes per run.")] = 200,
) -> None:
    """Make small copies of runs, enough for the report.

    The copies hold settings, summaries, metrics and the last model's first greedy episodes, compressed, but no models.
    """
    flags: Flags = context.obj
    from selfcorrect.paper.archive import pack as pack_runs

    done = pack_runs(source, out, episodes=episodes)
    if flags.json:
        echo_json({"directories": done.directories, "bytes": done.size})
        return
    echo(f"{done.directories} runs and evaluations, {done.size / 1e6:.1f} MB, are in {out}.")
