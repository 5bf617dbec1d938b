"""The commands of a whole comparison: paper and pack."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from selfcorrect.cli_look import USAGE_ERROR, Set
from selfcorrect.console import COMMON, Flags, Interrupts, say

if TYPE_CHECKING:
    from selfcorrect.config import Config
    from selfcorrect.paper.plan import Cell
    from selfcorrect.paper.rows import Row
    from selfcorrect.paper.work import Done

app = typer.Typer()


@app.command(epilog=COMMON)
def paper(
    context: typer.Context,
    *,
    config: Annotated[
        str | None, typer.Argument(help="SCoRe's: a TOML file or a shipped configuration's name.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Directory of all runs.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0, 1, ... of every row.")] = 5,
    only: Annotated[str | None, typer.Option(metavar="ROWS", help="Only these rows: keys with commas between.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Runs at a time; unset: as many as cores.")] = None,
    listed: Annotated[bool, typer.Option("--list", help="List the rows and stop.")] = False,
    printed: Annotated[str | None, typer.Option("--print", metavar="ROW", help="Print a row's TOML and stop.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done and how long it would take, and stop.")
    ] = False,
    changes: Set = None,
) -> None:
    """Train and evaluate every row of the paper's comparison, and write the report.

    Every trained row samples as many texts and takes as many optimizer steps. Stages that rows share are trained once.
    The same command goes on where it was stopped or killed; finished runs are kept.
    """
    flags: Flags = context.obj
    from selfcorrect.config import load_config, to_toml
    from selfcorrect.paper.rows import chosen_rows

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
    _work(settings, rows, out, seeds, workers or os.cpu_count() or 1, flags, dry_run=dry_run)


def _list(rows: list[Row], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps([{"row": r.key, "title": r.title, "table": r.table, "what": r.what} for r in rows]))
        return
    width = max(len(row.key) for row in rows)
    for row in rows:
        print(f"{row.key:{width}}  {row.title}: {row.what}")


def _work(
    settings: Config, rows: list[Row], out: Path, seeds: int, workers: int, flags: Flags, *, dry_run: bool
) -> None:
    from selfcorrect.errors import TrainingError
    from selfcorrect.paper.plan import check_cells, plan, write_cards
    from selfcorrect.paper.work import work_through

    cells = plan(settings, rows, range(seeds), out)
    check_cells(cells)
    if dry_run:
        _tell_plan(settings, cells, workers, flags)
        return
    write_cards(rows, out)
    left = [cell for cell in cells if not cell.finished]
    count = 0

    def on_done(done: Done) -> None:
        nonlocal count
        count += 1
        if not flags.quiet or done.error:
            say(f"{count}/{len(left)} {done.cell.name}: {done.error or f'finished, {minutes(done.seconds)}'}")

    with Interrupts() as interrupts:
        ended = work_through(cells, workers=workers, on_done=on_done, should_stop=interrupts.should_stop)
    failed = [done for done in ended if done.error]
    if any(cell.finished for cell in cells):
        _report(out, flags)
    if failed:
        raise TrainingError(
            f"{len(failed)} of {len(cells)} runs failed; the others are finished. The first: {failed[0].error}"
        )


def _tell_plan(settings: Config, cells: list[Cell], workers: int, flags: Flags) -> None:
    from selfcorrect.paper.cost import measured, probed, seconds_left

    prices = measured(cell.path for cell in cells)
    if prices is None:
        if not flags.quiet:
            say("nothing is finished yet: measuring a few steps")
        prices = probed(settings)
    total = seconds_left(cells, prices, workers)
    if flags.json:
        print(json.dumps({"cells": [_cell(cell, prices.of(cell)) for cell in cells], "seconds": round(total, 1)}))
        return
    for cell in cells:
        state = "finished" if cell.finished else f"{cell.done} of {cell.steps} steps done" if cell.started else "to do"
        print(f"{cell.name}: {state}, {cell.steps} steps, {minutes(prices.of(cell))} left")
    print(f"{len(cells)} runs, {workers} at a time: about {minutes(total)} left")


def _cell(cell: Cell, seconds: float) -> dict[str, Any]:
    return {"name": cell.name, "path": str(cell.path), "finished": cell.finished, "steps": cell.steps,
            "done": cell.done, "seconds": round(seconds, 1)}  # fmt: skip


def _report(out: Path, flags: Flags) -> None:
    from selfcorrect.page import write_report
    from selfcorrect.page.html import read_report
    from selfcorrect.page.tables import result_tables
    from selfcorrect.page.text import table_text

    tables = result_tables(read_report([out]).rows.rows)
    written = write_report([out], out / "report.html")
    if flags.json:
        found = [{"id": t.id, "title": t.title, "columns": t.columns, "notes": t.notes, "rows": [
            {"row": r.label, "seeds": r.seeds, "cells": [[c.value, c.below] for c in r.cells]} for r in t.rows]}
            for t in tables]  # fmt: skip
        print(json.dumps({"report": str(written.path), "tables": found}, ensure_ascii=False))
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
    """Copy runs without their models, small enough to keep and to make the report from.

    Settings, summaries, metrics and the last model's first greedy episodes, compressed.
    """
    flags: Flags = context.obj
    from selfcorrect.paper.pack import pack as pack_runs

    done = pack_runs(source, out, episodes=episodes)
    if flags.json:
        print(json.dumps({"directories": done.directories, "bytes": done.size}))
        return
    print(f"{done.directories} runs and evaluations, {done.size / 1e6:.1f} MB, are in {out}.")
