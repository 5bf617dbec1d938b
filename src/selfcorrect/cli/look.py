"""The commands that only read: show, report, config."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from selfcorrect.cli.console import COMMON, Flags, counted, echo, echo_json, say
from selfcorrect.cli.options import MAX_COUNT, USAGE_ERROR, Set, print_text
from selfcorrect.printable import printable_toml
from selfcorrect.types import Flip, Part

if TYPE_CHECKING:
    from selfcorrect.storage.episode_log import StoredEpisode

app = typer.Typer()


@app.command(epilog=COMMON)
def show(
    context: typer.Context,
    *,
    path: Annotated[Path, typer.Argument(metavar="RUN_OR_EVAL", help="Directory of a run or an evaluation.")],
    flip: Annotated[
        Flip | None, typer.Option(help="Only episodes with this flip; i2c: incorrect, then correct.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=MAX_COUNT, help="Maximum number of episodes.")] = 5,
    stage: Annotated[
        str | None, typer.Option(help="`base` or a stage of the run. Unset: the last one evaluated.")
    ] = None,
    part: Annotated[Part, typer.Option(help="Which episodes.")] = Part.ATTEMPTS,
    problem: Annotated[str | None, typer.Option(help="Only the problem with this id.")] = None,
    grep: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="Only episodes with this text in the problem, reference, a turn or an answer."
        ),
    ] = None,
) -> None:
    """Show episodes: the attempts and what changed between them.

    Prints each attempt with its verdict, its extracted answer and why it stopped. The run need not be finished. --grep
    takes the text as it stands, in any case.
    """
    flags: Flags = context.obj
    from selfcorrect.config.stage_labels import label_in
    from selfcorrect.report import episode_text as traces
    from selfcorrect.storage.episode_log import episodes_file, read_episodes

    file = episodes_file(path, stage=stage, part=part)
    chosen = traces.choose(read_episodes(file), kind=flip, problem=problem, text=grep)
    shown, label = False, functools.cache(functools.partial(label_in, path))
    for episode in islice(chosen, limit):
        shown = True
        if flags.json:
            echo_json(episode.to_json())
        else:
            print_text(traces.episode_text(episode, label(episode.stage)))
    if not shown and not flags.quiet:
        wanted = {"--flip": flip.value if flip else None, "--problem": problem, "--grep": grep}
        asked = " ".join(f"{option} {shlex.quote(value)}" for option, value in wanted.items() if value is not None)
        there = _there(traces.choose(read_episodes(file), problem=problem, text=grep) if flip else (), problem, grep)
        say(f"no episode in {file} matches {asked}{there}." if asked else f"{file} has no complete episode yet.")


def _there(episodes: Iterable[StoredEpisode], problem: str | None, text: str | None) -> str:
    """Return which flips there are where the one asked for is not."""
    from selfcorrect.report.episode_text import flip_counts

    counts = flip_counts(episodes)
    where = ("" if problem is None else " of this problem") + ("" if text is None else " with this text")
    return (
        f"; the flips{where} are " + ", ".join(f"{kind} ({counts[kind]:,})" for kind in sorted(counts))
        if counts
        else ""
    )


@app.command(epilog=COMMON)
def report(
    context: typer.Context,
    *,
    paths: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Runs, evaluations, or directories that contain some.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The HTML file to write.")],
    episodes: Annotated[
        int, typer.Option(min=0, max=MAX_COUNT, help="Maximum episodes in the page's browser; 0 leaves it out.")
    ] = 20_000,
    tables: Annotated[
        Literal["text", "markdown"] | None, typer.Option(help="Also print the tables, without the intermediate models.")
    ] = None,
    figure: Annotated[
        Path | None,
        typer.Option(metavar="FILE.svg", help="Also draw first and second attempts; needs selfcorrect[figures]."),
    ] = None,
) -> None:
    """Write one HTML page with tables, figures and episodes.

    The page comes from the directories alone and needs no network. Runs that differ only in the seed form one method,
    named after its directories.
    """
    flags: Flags = context.obj
    from selfcorrect.report import write_report
    from selfcorrect.report.attempts_svg import check_figure, write_attempts

    if figure is not None:
        check_figure(figure)
    done = write_report(paths, out, episodes=episodes)
    for path in done.repeated:
        say(f"{path} is left out: another run has the same configuration and seed.")
    for path in done.unfinished:
        say(
            f"{path} is left out: the evaluation is not finished; the `selfcorrect eval` command that began it resumes it."
        )
    if done.problem_sets:
        sets = "; ".join(f"{name} = {words}" for name, words in done.problem_sets.items())
        say(f"the rows answer different problems, so their differences say nothing about the models: {sets}.")
    if done.unsealed:
        say(f"not sealed, so changes cannot be noticed: {', '.join(map(str, done.unsealed))}.")
    if figure is not None:
        write_attempts(done.rows.finals, figure)
    from selfcorrect.report.table_text import table_json, table_markdown, table_text
    from selfcorrect.report.tables import overview_table, result_tables

    shown = [] if tables is None else [overview_table(done.rows.rows), *result_tables(done.rows.rows)]
    if flags.json:
        found = {"path": str(done.path), "runs": done.runs, "evaluations": done.evaluations}
        found |= {"methods": done.methods, "episodes": done.episodes}
        left_out = {"repeated": done.repeated, "unfinished": done.unfinished}
        found |= {why: [*map(str, folders)] for why, folders in left_out.items() if folders}
        found |= {"tables": [*map(table_json, shown)]} if tables is not None else {}
        found |= {"figure": str(figure)} if figure is not None else {}
        echo_json(found)
        return
    for table in shown:
        echo((table_markdown if tables == "markdown" else table_text)(table) + "\n")
    sources = (
        f"{counted(done.runs, 'run')}, {counted(done.evaluations, 'evaluation')}, {counted(done.episodes, 'episode')}"
    )
    echo(f"The report is in {done.path}: {sources}.")


@app.command(epilog=COMMON)
def config(
    context: typer.Context,
    *,
    source: Annotated[
        str | None, typer.Argument(metavar="CONFIG", help="A TOML file or the name of a built-in config.")
    ] = None,
    changes: Set = None,
    listed: Annotated[bool, typer.Option("--list", help="List the built-in configs.")] = False,
) -> None:
    """Print a configuration: every setting, and its comments.

    To begin a run of your own: selfcorrect config qwen_math > mine.toml; selfcorrect plan mine.toml --gpus 1.
    """
    flags: Flags = context.obj
    from selfcorrect.config.comments import read_comments, with_comments
    from selfcorrect.config.toml import builtin_configs, load_config, read_text, to_toml

    if listed == (source is not None):
        raise USAGE_ERROR("give CONFIG or --list", ctx=context)
    if source is None:
        if flags.json:
            echo_json(builtin_configs())
        else:
            echo("\n".join(builtin_configs()))
        return
    settings = load_config(source, changes or [])
    if flags.json:
        echo_json(settings.model_dump(mode="json"), indent=1)
    else:
        changed = {change.partition("=")[0].strip() for change in changes or []}
        text = with_comments(to_toml(settings).rstrip(), read_comments(read_text(source)[0]), changed)
        print(printable_toml(text))
