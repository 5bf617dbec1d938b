"""Options that several commands share, and how the commands print."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from selfcorrect.cli.console import echo
from selfcorrect.printable import printable

if TYPE_CHECKING:
    from rich.text import Text

USAGE_ERROR: type[Any] = typer.BadParameter.__bases__[0]
"""The root of all errors of usage, which typer does not export itself."""


class WholeSentences(TyperGroup):
    """A group whose list shows the whole first sentence of each command, wrapped on a narrow terminal, never truncated."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        sentences = [(name, command.get_short_help_str(limit=1000)) for name, command in self.commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl(sentences)


Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY.PATH=VALUE", help="Change a setting; repeatable.")]
AllowCode = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-code",
        metavar="NAME",
        help="Allow code that the directory names, as its rejection lists it; repeatable.",
    ),
]
MAX_SEED, MAX_COUNT = 2**63 - 1, 10**9
"""Upper bounds of options that are no settings; a setting's own range bounds the option with its name."""

Seed = Annotated[int, typer.Option(min=0, max=MAX_SEED)]


def print_text(text: str | Text) -> None:
    """Print to stdout, with styles only on a terminal and without NO_COLOR; the text itself cannot steer the terminal."""
    if isinstance(text, str):
        echo(text)
        return
    from rich.console import Console
    from rich.text import Text

    plain = Console(color_system=None)
    text = Text("").join(Text(printable(part.text), part.style or "") for part in text.render(plain))
    console = Console(soft_wrap=True, highlight=False)
    with console.capture() as captured:  # a plain `print` raises BrokenPipeError, rich does not
        console.print(text, end="")
    print(captured.get())


def task_options(context: typer.Context, given: list[str]) -> dict[str, Any]:
    """Return the options given as KEY=VALUE, with values as `config.toml.given_value` reads them."""
    from selfcorrect.config.toml import given_value

    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise USAGE_ERROR(f"--task-option {text!r}: write KEY=VALUE", ctx=context)
        found[name] = given_value(name, value)
    return found


class SplitName(StrEnum):
    """The splits to evaluate on."""

    test = "test"
    dev = "dev"


def print_results(results: Any, episodes: Any, temperature: float = 0.0, label: str | None = None) -> None:
    """Print the tables of an evaluation and a few of its episodes; ``label`` is what their model is called."""
    from selfcorrect.report import episode_text, terminal

    echo(terminal.all_tables(results, temperature=temperature) + "\n")
    for episode in episode_text.examples(episodes):
        print_text(episode_text.episode_text(episode, label))
