"""The commands of a whole comparison: paper and pack."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from selfcorrect.cli.console import COMMON, Flags, Interrupts, say
from selfcorrect.cli.options import USAGE_ERROR, Set

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
        str | None, typer.Argument(help="SCoRe's: a TOML file or a shipped configuration's name.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Directory of all runs.")] = None,
    seeds: Annotated[
        str, typer.Option(metavar="N", help="Seeds 0 to N - 1 of every row; or which ones: 3-4, or 0,2.")
    ] = "5",
    only: Annotated[str | None, typer.Option(metavar="ROWS", help="Only these rows: keys with commas between.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Runs at a time; unset: as many as cores.")] = None,
    listed: Annotated[bool, typer.Option("--list", help="List the rows and stop.")] = False,
    printed: Annotated[str | None, typer.Option("--print", metavar="ROW", help="Print a row's TOML and stop.")] = None,
    tune: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUES", help="First try these values, with commas between, for every row; repeatable."
        ),
    ] = None,
    tune_seed: Annotated[int, typer.Option(min=0, help="Seed of those trials.")] = 100,
    tune_problems: Annotated[int, typer.Option(min=1, help="Development problems that judge them.")] = 1000,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done and how long it would take, and stop.")
    ] = False,
    changes: Set = None,
) -> None:
    """Train, evaluate and report the paper's whole comparison.

    Every trained row samples as many texts and takes as many optimizer steps. Stages that rows share are trained once.
    The same command goes on where it was stopped or killed; finished runs are kept. With --tune every trained row is
    first tried with the same values on development problems, and trained with those of the highest Acc@t2.
    """
    flags: Flags = context.obj
    from selfcorrect.config.toml import load_config, to_toml
    from selfcorrect.paper.rows import chosen_rows, chosen_seeds

    rows = chosen_rows([key.strip() for key in only.split(",")] if only else [])
    if listed:
        _list(rows, as_json=flags.json)
        return
    if config is None:
        raise USAGE_ERROR("give CONFIG, for instance `demo`", ctx=context)
    settings = load_config(config, changes or [])
    if printed is not None:
        from selfcorrect.paper.recipe import Recipe

        (row,) = chosen_rows([printed])
        print(to_toml(row.make(Recipe.of(settings))), end="")
        return
    if out is None:
        raise USAGE_ERROR("give --out DIR", ctx=context)
    from selfcorrect.paper.sweep import Grid

    numbers = chosen_seeds(seeds)
    if tune and tune_seed <= max(numbers):
        raise USAGE_ERROR(
            f"--tune-seed {tune_seed} is not above all seeds of the comparison, --seeds {seeds}", ctx=context
        )
    grid = Grid.of(tune, seed=tune_seed, problems=tune_problems) if tune else None
    comparison = _Comparison(settings, rows, out, numbers, workers or os.cpu_count() or 1, grid, flags)
    if dry_run:
        comparison.tell()
    else:
        comparison.work()


def _list(rows: list[MethodRow], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps([{"row": r.key, "title": r.title, "table": r.table, "what": r.what} for r in rows]))
        return
    width = max(len(row.key) for row in rows)
    for row in rows:
        print(f"{row.key:{width}}  {row.title}: {row.what}")


class _Comparison:
    """What the options ask for: trials, if any, then the rows."""

    def __init__(
        self,
        config: Config,
        rows: list[MethodRow],
        out: Path,
        seeds: Sequence[int],
        workers: int,
        grid: Grid | None,
        flags: Flags,
    ) -> None:
        self.config, self.rows, self.out, self.seeds = config, rows, out, seeds
        self.workers, self.grid, self.flags = workers, grid, flags
        self.failed: list[Done] = []

    def cells(self, settled: Mapping[str, Sequence[str]]) -> list[RunSpec]:
        """The rows' cells; nothing in their places may be of other settings."""
        from selfcorrect.paper.plan import check_cells, plan

        cells = plan(self.config, self.rows, self.seeds, self.out, settled)
        check_cells(cells)
        return cells

    def work(self) -> None:
        from selfcorrect.errors import TrainingError
        from selfcorrect.paper.extra_evaluations import further
        from selfcorrect.paper.plan import check_cells, write_cards
        from selfcorrect.paper.sweep import already_tried, check_trials, settle, settled_before, trial_cells, trials

        settled: Mapping[str, Sequence[str]] = {}
        if self.grid:
            check_trials(self.grid, self.out)
            tried = trials(self.config, self.rows, self.grid, self.out)
            cells = trial_cells(tried, self.out)
            check_cells(cells)
            if already_tried(tried, self.out):
                settled = settled_before(self.out)
            else:
                self.finish(cells)
                settled = settle(tried, self.grid, self.out)
        cells = self.cells(settled)
        write_cards(self.rows, self.out)
        self.finish(cells)
        self.finish(further(cells, self.out))
        if any(cell.finished for cell in cells):
            _report(self.out, self.flags)
        if self.failed:
            first = self.failed[0]
            raise TrainingError(
                f"runs that failed or could not begin: {len(self.failed)}; all others are finished. "
                f"The first, {first.job.name}: {first.error}"
            )

    def finish(self, jobs: Sequence[Job]) -> None:
        """Work through what is left of some jobs, telling of each."""
        from selfcorrect.paper.worker_pool import work_through

        left = sum(not job.finished for job in jobs)
        number = itertools.count(1)

        def on_done(done: Done) -> None:
            if not self.flags.quiet or done.error:
                how = done.error or f"finished, {minutes(done.seconds)}"
                say(f"{next(number)}/{left} {done.job.name}: {how}")

        with Interrupts() as interrupts:
            ended = work_through(jobs, workers=self.workers, on_done=on_done, should_stop=interrupts.should_stop)
        self.failed += [done for done in ended if done.error]

    def tell(self) -> None:
        """What would be done, and how long it would take."""
        from selfcorrect.paper.extra_evaluations import further
        from selfcorrect.paper.sweep import already_tried, check_trials, settled_before, trial_cells, trials
        from selfcorrect.paper.time_estimate import Throughput, measured, probed, seconds_left

        if self.grid:
            check_trials(self.grid, self.out)
        tried = trials(self.config, self.rows, self.grid, self.out) if self.grid else []
        settled = settled_before(self.out) if self.grid else {}
        trying = [] if already_tried(tried, self.out) else trial_cells(tried, self.out)
        rows = self.cells(settled)
        cells: list[Planned] = [*trying, *rows, *further(rows, self.out, planned=True)]
        prices = measured(cell.path for cell in (*trying, *rows))
        if prices is None and all(cell.finished for cell in cells):
            prices = Throughput(0.0, 0.0, 0.0, 0.0)
        if prices is None:
            if not self.flags.quiet:
                say("nothing is finished yet: measuring a few steps")
            prices = probed(self.config)
        _tell_plan(cells, prices, seconds_left(cells, prices, self.workers), self.workers, self.flags)


def _tell_plan(cells: Sequence[Planned], prices: Throughput, total: float, workers: int, flags: Flags) -> None:
    if flags.json:
        print(json.dumps({"cells": [_cell(cell, prices.of(cell)) for cell in cells], "seconds": round(total, 1)}))
        return
    for cell in cells:
        print(f"{cell.name}: {_state(cell, minutes(prices.of(cell)))}")
    print(f"{len(cells)} runs, {workers} at a time: about {minutes(total)} left")


def _state(cell: Planned, left: str) -> str:
    if cell.finished:
        return "finished"
    return f"{cell.done} of {cell.steps} steps done, {left} left" if cell.steps else f"to evaluate, {left} left"


def _cell(cell: Planned, seconds: float) -> dict[str, Any]:
    return {"name": cell.name, "path": str(cell.path), "finished": cell.finished, "steps": cell.steps,
            "done": cell.done, "seconds": round(seconds, 1)}  # fmt: skip


def _report(out: Path, flags: Flags) -> None:
    from selfcorrect.report import write_report
    from selfcorrect.report.table_text import table_json, table_text
    from selfcorrect.report.tables import result_tables

    written = write_report([out], out / "report.html")
    tables = result_tables(written.rows.rows)
    if flags.json:
        found = {"report": str(written.path), "tables": [*map(table_json, tables)]}
        print(json.dumps(found, ensure_ascii=False))
        return
    print("\n\n".join(map(table_text, tables)))
    print(f"\nThe report is in {written.path}.")


def minutes(seconds: float) -> str:
    """``2 min 5 s``, ``1 h 3 min``.

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
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the small copies go.")],
    episodes: Annotated[int, typer.Option(min=0, help="Episodes of each run at most.")] = 200,
) -> None:
    """Make small copies of runs, enough for the report.

    They have no models: settings, summaries, metrics and the last model's first greedy episodes, compressed.
    """
    flags: Flags = context.obj
    from selfcorrect.paper.archive import pack as pack_runs

    done = pack_runs(source, out, episodes=episodes)
    if flags.json:
        print(json.dumps({"directories": done.directories, "bytes": done.size}))
        return
    print(f"{done.directories} runs and evaluations, {done.size / 1e6:.1f} MB, are in {out}.")
