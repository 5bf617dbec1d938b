"""The command line: options in, text out. The work is elsewhere; `--help` imports nothing heavy."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from selfcorrect.cli import evaluate, evaluations, look, models, paper, plan, ray_train, tasks, train
from selfcorrect.cli.console import BAD_INPUT, COMMON, Flags, guarded
from selfcorrect.cli.options import USAGE_ERROR, WholeSentences
from selfcorrect.cli.processes import Said, refuse_several_processes, say_once

app = typer.Typer(
    cls=WholeSentences,
    name="selfcorrect",
    help="Train and measure intrinsic self-correction of language models (SCoRe).\n\nStart with: selfcorrect demo",
    epilog=COMMON,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main(arguments: list[str], commands: typer.Typer = app, program: str = "selfcorrect") -> int:
    """Run a command line and return its exit status."""
    flags, rest = Flags.taken_from(arguments)
    return guarded(lambda: _parsed(commands, program, rest, flags), debug=flags.debug)


def _parsed(commands: typer.Typer, program: str, arguments: list[str], flags: Flags) -> int:
    try:
        status = _built(commands)(args=arguments, obj=flags, prog_name=program, standalone_mode=False)
    except USAGE_ERROR as error:
        context: Any = getattr(error, "ctx", None)
        if type(error).__name__ == "NoArgsIsHelpError":
            print(context.get_help(), file=sys.stderr)
            return BAD_INPUT
        where = context.command_path if context else program
        message = error.format_message().removesuffix(".")
        say_once(f"error: {message}{'' if message.endswith('?') else '.'} See `{where} --help`.")
        return BAD_INPUT
    except Said as end:
        return end.status
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # typer turns a closed pipe into status 1
            raise stop.__context__ from None
        raise
    except typer.Abort:
        return 130
    return status if isinstance(status, int) else 0


@functools.cache
def _built(commands: typer.Typer) -> Callable[..., Any]:
    """Return the commands with their options, which are built once: a process may run many command lines."""
    return typer.main.get_command(commands)


def _version(asked: bool) -> None:
    if asked:
        from selfcorrect import __version__

        print(f"selfcorrect {__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Take `--version` before the command; the options that every command has may stand there too."""
    refuse_several_processes(context.invoked_subcommand or "")


for part in (train, ray_train, evaluate, look, tasks, models, evaluations, paper, plan):
    app.add_typer(part.app)
