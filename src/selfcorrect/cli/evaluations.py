"""The commands on finished evaluations: rescore, compare, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from selfcorrect.cli.console import COMMON, Flags, Interrupts, counted, echo, echo_json
from selfcorrect.cli.options import AllowCode, Seed, task_options
from selfcorrect.types import Part

app = typer.Typer()


@app.command(epilog=COMMON)
def rescore(
    context: typer.Context,
    *,
    path: Annotated[Path, typer.Argument(metavar="EVAL", help="Directory of a finished evaluation.")],
    task_option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Change an option of the task; repeatable.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the results and write nothing.")] = False,
    allow_code: AllowCode = None,
) -> None:
    """Verify stored answers again, without sampling anything.

    Applies the task as it is now, for instance with a repaired verifier, a corrected reference, or
    --task-option extraction=strict, and prints the new results.
    """
    flags: Flags = context.obj
    options = task_options(context, task_option or [])
    from selfcorrect.evaluation import rescore as again
    from selfcorrect.report import terminal as report

    with Interrupts():
        found = again.rescore(path, task_options=options, dry_run=dry_run, allow_code=allow_code or ())
    if flags.json:
        echo_json(found.to_json(), indent=1)
        return
    echo(report.all_tables({"model": found.evaluation.to_json()}))
    echo(f"\n{again.rescored_text(found)}{' (nothing was written)' if dry_run else ''}.")


@app.command(epilog=COMMON)
def compare(
    context: typer.Context,
    *,
    a: Annotated[Path, typer.Argument(metavar="A", help="Directory of a finished evaluation.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another one, on the same problems.")],
    part: Annotated[Part, typer.Option(help="Which episodes: attempts or sampled.")] = Part.ATTEMPTS,
    seed: Seed = 0,
    across_modes: Annotated[
        bool,
        typer.Option("--across-modes", help="Allow comparing a served model (context mode messages) with a local one."),
    ] = False,
) -> None:
    """Test the difference of two evaluations, paired by problem.

    Accuracies: McNemar's exact test. Delta: a bootstrap over problems and a permutation test.
    """
    flags: Flags = context.obj
    from selfcorrect.evaluation import compare as comparison

    with Interrupts():
        found = comparison.compare(a, b, part=part, seed=seed, across_modes=across_modes)
    if flags.json:
        echo_json(found.to_json(), indent=1)
    else:
        echo(comparison.comparison_text(found, str(a), str(b)))


@app.command(epilog=COMMON)
def export(
    context: typer.Context,
    *,
    path: Annotated[Path, typer.Argument(metavar="EVAL", help="Directory of an evaluation.")],
    out: Annotated[Path, typer.Option("--out", metavar="LOG", help="A new file, ending in .eval or .json.")],
    part: Annotated[Part, typer.Option(help="Which episodes.")] = Part.ATTEMPTS,
) -> None:
    """Write episodes as an inspect_ai log.

    Open it with `inspect view --log-dir DIR`.
    """
    flags: Flags = context.obj
    from selfcorrect.evaluation import inspect_export as inspect_log

    count = inspect_log.export(path, out, part=part)
    if flags.json:
        echo_json({"episodes": count, "log": str(out)})
    else:
        echo(f"{out} holds {counted(count, 'episode')}.")
