"""The command `train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from selfcorrect.cli.console import COMMON, Flags, Interrupts, echo, echo_json, say
from selfcorrect.cli.options import USAGE_ERROR, AllowCode, Set, print_results

app = typer.Typer()


@app.command(epilog=COMMON)
def train(
    context: typer.Context,
    *,
    config: Annotated[str | None, typer.Argument(help="A TOML file or the name of a built-in config.")] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="RUN", help="Directory of the new run.")] = None,
    resume: Annotated[Path | None, typer.Option("--resume", metavar="RUN", help="Resume this run instead.")] = None,
    changes: Set = None,
    allow_code: AllowCode = None,
    page: Annotated[
        bool, typer.Option("--report/--no-report", help="Write RUN/report.html at the end; see `selfcorrect report`.")
    ] = True,
) -> None:
    """Train a model, evaluate every stage and print the results.

    --resume continues a stopped or killed run exactly as if nothing had happened. With --resume, --set may only make
    the last stage longer: --set stages.NAME.steps=N. Code that the run's settings name, such as a verifier, runs only
    with --allow-code NAME, or --set with the same value.
    """
    flags: Flags = context.obj
    if (config is None) == (resume is None) or (out is None) == (resume is None):
        raise USAGE_ERROR("give CONFIG and --out RUN to start a run, or --resume RUN alone", ctx=context)
    from selfcorrect.config.toml import load_config

    overrides, source = changes or [], config
    if resume is not None and (resume / "config.toml").is_file():
        source = str(resume / "config.toml")
    settings = None if source is None else load_config(source, overrides)
    steps = {} if settings is None else {name: stage.length for name, stage in settings.stages.items()}
    from selfcorrect.cli.progress import reporting

    with Interrupts() as interrupts, reporting(steps, quiet=flags.quiet, verbose=flags.verbose) as reporter:
        from selfcorrect.evaluation.callbacks import Callbacks
        from selfcorrect.runs import run

        callbacks = Callbacks(
            on_step=reporter.on_step,
            on_eval=reporter.on_eval,
            on_progress=reporter.on_progress,
            should_stop=interrupts.should_stop,
        )
        if resume is not None:
            summary = run.resume(resume, overrides=overrides, callbacks=callbacks, allow_code=allow_code or ())
        else:
            assert settings is not None and out is not None
            summary = run.train(settings, out, callbacks=callbacks)
    written = page and try_report(summary.path)
    if flags.json:
        echo_json(summary.json, indent=1)
        return
    last = list(summary.evaluations)[-1]
    print_results(summary.json["results"], summary.evaluations[last].episodes)
    echo(f"The run is in {summary.path}. More episodes: selfcorrect show {summary.path} --flip i2c")
    if written:
        echo(f"Figures and all episodes in a browser: {summary.path / 'report.html'}")


def try_report(run: Path) -> bool:
    """Write ``report.html`` into a finished run; a failure here does not fail the run."""
    from selfcorrect.report import write_report

    try:
        write_report([run], run / "report.html")
    except Exception as error:  # hours of training must not fail for their report
        say(f"the run finished, but its report could not be written ({error}). See `selfcorrect report --help`.")
        return False
    return True
