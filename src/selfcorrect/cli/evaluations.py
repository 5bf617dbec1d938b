"""The commands on finished evaluations: rescore, compare, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from selfcorrect.cli.console import COMMON, Flags, Interrupts, counted, echo, echo_json
from selfcorrect.cli.options import USAGE_ERROR, AllowCode, Seed, task_options
from selfcorrect.types import Dtype, Part

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
    a: Annotated[str, typer.Argument(metavar="A", help="A finished evaluation's directory, a run, or RUN:STAGE.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another one, on the same problems.")],
    part: Annotated[Part, typer.Option(help="Which episodes: attempts or sampled.")] = Part.ATTEMPTS,
    seed: Seed = 0,
    across_modes: Annotated[
        bool,
        typer.Option("--across-modes", help="Allow comparing a served model (context mode messages) with a local one."),
    ] = False,
) -> None:
    """Test the difference of two evaluations, paired by problem.

    Accuracies: McNemar's exact test. Delta: a bootstrap over problems and a permutation test. Of a run, the final
    evaluation of its last stage is compared, or that of RUN:STAGE; RUN:base is the base's.
    """
    flags: Flags = context.obj
    from selfcorrect.evaluation import compare as comparison

    with Interrupts():
        found = comparison.compare(a, b, part=part, seed=seed, across_modes=across_modes)
    if flags.json:
        echo_json(found.to_json(), indent=1)
    else:
        echo(comparison.comparison_text(found, a, b))


@app.command(epilog=COMMON)
def export(
    context: typer.Context,
    *,
    path: Annotated[str, typer.Argument(metavar="PATH", help="An evaluation, a run, or for --model also RUN:STAGE.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="LOG", help="An inspect_ai log: a new file, ending in .eval or .json."),
    ] = None,
    episodes: Annotated[
        Path | None, typer.Option("--episodes", metavar="DIR", help="All episodes as a data set: a new directory.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option("--model", metavar="DIR", help="A run's model with its card: a new directory.")
    ] = None,
    part: Annotated[Part, typer.Option(help="Which episodes go into the log.")] = Part.ATTEMPTS,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Dtype of the model. Unset: its own, or float32 for a merged adapter.")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the base model.")
    ] = False,
) -> None:
    """Write a log, a data set of episodes, or a model with its card.

    Open a log with `inspect view --log-dir DIR`, a data set with `datasets.load_dataset(DIR, "attempts")`.
    """
    flags: Flags = context.obj
    if sum(given is not None for given in (out, episodes, model)) != 1:
        raise USAGE_ERROR("give one of --out LOG, --episodes DIR and --model DIR", ctx=context)
    if out is not None:
        from selfcorrect.evaluation import inspect_export as inspect_log

        count = inspect_log.export(path, out, part=part)
        _tell(flags, {"episodes": count, "log": str(out)}, f"{out} holds {counted(count, 'episode')}.")
    elif episodes is not None:
        from selfcorrect.report.episode_export import export_episodes

        rows = export_episodes(path, episodes)
        count = sum(rows.values())
        _tell(flags, {"episodes": count, "files": rows}, f"{episodes} holds {counted(count, 'episode')}.")
    elif model is not None:
        from selfcorrect.report.model_export import export_model

        with Interrupts():
            export_model(path, model, dtype=dtype and dtype.value, trust_remote_code=trust_remote_code)
        _tell(flags, {"path": str(model)}, str(model))


def _tell(flags: Flags, value: dict[str, Any], words: str) -> None:
    if flags.json:
        echo_json(value)
    else:
        echo(words)
