"""The commands that only look: show, tasks, config; and those about the models that the package makes."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from selfcorrect.cli.console import COMMON, Flags, say
from selfcorrect.cli.options import USAGE_ERROR, Set, print_text
from selfcorrect.types import Flip, Part

if TYPE_CHECKING:
    pass

app = typer.Typer()


@app.command(epilog=COMMON)
def show(
    context: typer.Context,
    *,
    path: Annotated[Path, typer.Argument(metavar="RUN_OR_EVAL", help="Directory of a run or of an evaluation.")],
    flip: Annotated[Flip | None, typer.Option(help="Only these: i2c is wrong, then right.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many episodes.")] = 5,
    stage: Annotated[
        str | None, typer.Option(help="`base` or a stage of the run; unset: the last one there is.")
    ] = None,
    part: Annotated[Part, typer.Option(help="Which episodes.")] = Part.ATTEMPTS,
    problem: Annotated[str | None, typer.Option(help="Only the problem of this id.")] = None,
) -> None:
    """Show episodes: the attempts and what changed.

    With every attempt its verdict, the extracted answer and why it stopped. A finished or a running run will do, or
    an evaluation.
    """
    flags: Flags = context.obj
    from selfcorrect.report import episode_text as traces
    from selfcorrect.storage.episode_log import episodes_file, read_episodes

    file = episodes_file(path, stage=stage, part=part)
    chosen = traces.choose(read_episodes(file), kind=flip, problem=problem)
    shown = False
    for episode in islice(chosen, limit):
        shown = True
        print_text(json.dumps(episode.to_json(), ensure_ascii=False) if flags.json else traces.episode_text(episode))
    if not shown and not flags.quiet:
        wanted = {"--flip": flip.value if flip else None, "--problem": problem}
        asked = " ".join(f"{option} {value}" for option, value in wanted.items() if value is not None)
        say(f"no episode in {file} fits {asked}." if asked else f"{file} has no whole episode yet.")


@app.command(epilog=COMMON)
def report(
    context: typer.Context,
    *,
    paths: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Runs, evaluations, or directories that hold some.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The HTML file to write.")],
    episodes: Annotated[int, typer.Option(min=0, help="Episodes in the browser at most; 0 leaves it out.")] = 20_000,
    tables: Annotated[
        Literal["text", "markdown"] | None, typer.Option(help="Also print the tables, without the models on the way.")
    ] = None,
    figure: Annotated[
        Path | None,
        typer.Option(metavar="FILE.svg", help="Also draw first and second attempts; needs selfcorrect[figures]."),
    ] = None,
) -> None:
    """Write one HTML page of tables, figures and episodes.

    It is made from the directories alone and needs no network. Runs that differ in nothing but the seed are one method,
    named after its directories.
    """
    flags: Flags = context.obj
    from selfcorrect.report import write_report
    from selfcorrect.report.attempts_svg import check_figure, write_attempts

    if figure is not None:
        check_figure(figure)
    done = write_report(paths, out, episodes=episodes)
    for path in done.repeated:
        say(f"{path} is left out: it repeats a configuration and a seed.")
    if figure is not None:
        write_attempts(done.rows.finals, figure)
    from selfcorrect.report.table_text import table_json, table_markdown, table_text
    from selfcorrect.report.tables import overview_table, result_tables

    shown = [] if tables is None else [overview_table(done.rows.rows), *result_tables(done.rows.rows)]
    if flags.json:
        found = {"path": str(done.path), "runs": done.runs, "evaluations": done.evaluations}
        found |= {"methods": done.methods, "episodes": done.episodes}
        found |= {"tables": [*map(table_json, shown)]} if tables is not None else {}
        found |= {"figure": str(figure)} if figure is not None else {}
        print(json.dumps(found, ensure_ascii=False))
        return
    for table in shown:
        print((table_markdown if tables == "markdown" else table_text)(table) + "\n")
    counted = f"{done.runs} runs, {done.evaluations} evaluations, {done.episodes} episodes"
    print(f"The report is in {done.path}: {counted}.")


@app.command(epilog=COMMON)
def tasks(
    context: typer.Context,
    *,
    name: Annotated[str | None, typer.Argument(help="One family, or family:variant.")] = None,
) -> None:
    """List the tasks, each with an example."""
    flags: Flags = context.obj
    from selfcorrect.tasks.catalogue import catalogue, entry_json, entry_text

    for entry in catalogue(name):
        text = entry_text(entry, full=name is not None)
        print(json.dumps(entry_json(entry), ensure_ascii=False) if flags.json else text, flush=True)


@app.command(epilog=COMMON)
def config(
    context: typer.Context,
    *,
    source: Annotated[
        str | None, typer.Argument(metavar="CONFIG", help="A TOML file or a shipped configuration's name.")
    ] = None,
    changes: Set = None,
    shipped: Annotated[bool, typer.Option("--list", help="List the shipped configurations.")] = False,
) -> None:
    """Print a configuration with every setting resolved."""
    flags: Flags = context.obj
    from selfcorrect.config.toml import load_config, shipped_configs, to_toml

    if shipped == (source is not None):
        raise USAGE_ERROR("give CONFIG or --list", ctx=context)
    if source is None:
        print(json.dumps(shipped_configs()) if flags.json else "\n".join(shipped_configs()))
        return
    settings = load_config(source, changes or [])
    print(json.dumps(settings.model_dump(mode="json"), indent=1) if flags.json else to_toml(settings).rstrip())
