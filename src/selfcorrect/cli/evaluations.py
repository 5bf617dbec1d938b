"""The commands that work on finished evaluations: rescore, compare, export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from selfcorrect.cli.console import COMMON, Flags, Interrupts
from selfcorrect.cli.options import Seed, task_options
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
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print; the directory stays as it is.")] = False,
) -> None:
    """Verify stored answers again; nothing is generated.

    Prints the new table. Takes the task as it is now: a repaired verifier, a corrected reference, another
    --task-option extraction=strict.
    """
    flags: Flags = context.obj
    options = task_options(context, task_option or [])
    from selfcorrect.evaluation import rescore as again
    from selfcorrect.report import terminal as report

    with Interrupts():
        found = again.rescore(path, task_options=options, dry_run=dry_run)
    if flags.json:
        print(json.dumps(found.to_json(), indent=1, ensure_ascii=False))
        return
    print(report.all_tables({"model": found.evaluation.to_json()}))
    print(f"\n{again.rescored_text(found)}{' (nothing was written)' if dry_run else ''}.")


@app.command(epilog=COMMON)
def compare(
    context: typer.Context,
    *,
    a: Annotated[Path, typer.Argument(metavar="A", help="Directory of a finished evaluation.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another one, of the same problems.")],
    part: Annotated[Part, typer.Option(help="Which episodes: attempts or sampled.")] = Part.ATTEMPTS,
    seed: Seed = 0,
    across_modes: Annotated[
        bool, typer.Option("--across-modes", help="Even if one is of a server (context mode messages), one is not.")
    ] = False,
) -> None:
    """Test two evaluations for a difference, paired by problem.

    McNemar's exact test for accuracies, a bootstrap over problems and a permutation test for delta.
    """
    flags: Flags = context.obj
    from selfcorrect.evaluation import compare as comparison

    with Interrupts():
        found = comparison.compare(a, b, part=part, seed=seed, across_modes=across_modes)
    print(json.dumps(found.to_json(), indent=1) if flags.json else comparison.comparison_text(found, str(a), str(b)))


@app.command(epilog=COMMON)
def export(
    context: typer.Context,
    *,
    path: Annotated[Path, typer.Argument(metavar="EVAL", help="Directory of an evaluation.")],
    out: Annotated[Path, typer.Option("--out", metavar="LOG", help="A new file, ending in .eval or .json.")],
    part: Annotated[Part, typer.Option(help="Which episodes.")] = Part.ATTEMPTS,
) -> None:
    """Write episodes as a log of inspect_ai.

    Look at it with `inspect view --log-dir DIR`.
    """
    flags: Flags = context.obj
    from selfcorrect.evaluation import inspect_export as inspect_log

    count = inspect_log.export(path, out, part=part)
    print(json.dumps({"episodes": count, "log": str(out)}) if flags.json else f"{count} episodes are in {out}.")
