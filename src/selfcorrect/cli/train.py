"""The commands `train` and `demo`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from selfcorrect.cli.console import COMMON, Flags, Interrupts, echo, echo_json, say
from selfcorrect.cli.options import USAGE_ERROR, AllowCode, Set, print_results
from selfcorrect.cli.processes import processes

if TYPE_CHECKING:
    from selfcorrect.config.schema import Config
    from selfcorrect.distributed.world import World
    from selfcorrect.runs.run import Summary

app = typer.Typer()
STOPPED = 3
"""Exit status of a finished run of which `log.stop_if_worse` ended a stage."""
AUTO = "auto"
"""The value of ``--resume`` that continues the run in ``--out``, or starts it: a launcher repeats the same command."""


@app.command(epilog=COMMON)
def train(
    context: typer.Context,
    *,
    config: Annotated[str | None, typer.Argument(help="A TOML file or the name of a built-in config.")] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="RUN", help="Directory of the new run.")] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume",
            metavar="RUN",
            help="Resume this run instead; `auto`: resume --out if it is a run, else start it.",
        ),
    ] = None,
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

    On several processes: torchrun --standalone --nproc-per-node N -m selfcorrect train CONFIG --out RUN --resume auto.
    """
    flags: Flags = context.obj
    order = Order(config, out, resume, changes or [], allow_code or [], flags)
    if not order.automatic and ((config is None) == (resume is None) or (out is None) == (resume is None)):
        raise USAGE_ERROR("give CONFIG and --out RUN to start a run, or --resume RUN alone", ctx=context)
    from selfcorrect.config.toml import timeout_of

    timeout_s = timeout_of(config or Path(resume or "") / "config.toml", order.changes)
    with Interrupts() as interrupts, processes(flags, timeout_s=timeout_s) as world:
        summary = shared(order, interrupts.should_stop, world)
        if not world.first:
            return
    if status := tell(summary, flags, page=page):
        raise typer.Exit(status)


@app.command(epilog=COMMON)
def demo(
    context: typer.Context,
    *,
    out: Annotated[Path, typer.Option("--out", metavar="RUN", help="Directory of the run.")] = Path("runs/demo"),
    changes: Set = None,
) -> None:
    """Train the built-in demo on the CPU in minutes, and print its table.

    SCoRe from a tiny base in the package, on additions of six digits. The page RUN/report.html has figures and episodes.
    Started again, it resumes a stopped run and prints a finished one.

    The same as: selfcorrect train demo --set model.device=cpu --out RUN --resume auto
    """
    train(context, config="demo", out=out, resume=Path(AUTO), changes=["model.device=cpu", *(changes or [])])


@dataclass(frozen=True)
class Order:
    """What the options of `train` ask for, which `_settings` and `_same_settings` read."""

    config: str | None
    out: Path | None
    resume: Path | None
    changes: list[str]
    allow_code: list[str]
    flags: Flags

    @property
    def automatic(self) -> bool:
        """Return whether to resume ``out`` if it is a run, else to start it."""
        return self.resume == Path(AUTO) and self.config is not None and self.out is not None

    def decided(self) -> Order:
        """Return what an automatic order means now: to start a new run, or to resume the one that is there.

        Raises:
            ConfigError: the command has other settings than the run.
        """
        if not self.automatic or self.config is None or self.out is None:
            return self
        if not (self.out / "config.toml").is_file():
            return replace(self, resume=None)
        return replace(self, resume=self.out, changes=_same_settings(self.config, self.out, self.changes))

    def settings(self) -> Config | None:
        """Return the settings of the run to start or to resume; None where there is no run, which `resume` explains."""
        return _settings(self.config, self.resume, self.changes)


def shared(order: Order, should_stop: Callable[[], int | None], world: World) -> Summary:
    """Do this process's share of a run, and report its progress if it is the first."""
    from selfcorrect.cli.progress import reporting
    from selfcorrect.config.stage_labels import stage_label

    flags = order.flags
    order = world.from_first(order.decided)
    with world.together():
        settings = order.settings()
    steps = {} if settings is None else {name: stage.length for name, stage in settings.stages.items()}
    label = str if settings is None else functools.partial(stage_label, settings)
    with reporting(steps, quiet=flags.quiet or not world.first, verbose=flags.verbose, label=label) as reporter:
        from selfcorrect.evaluation.callbacks import Callbacks
        from selfcorrect.runs import run

        callbacks = Callbacks(
            on_step=reporter.on_step,
            on_eval=reporter.on_eval,
            on_progress=reporter.on_progress,
            on_left=reporter.on_left,
            should_stop=should_stop,
        )
        if order.resume is not None:
            return run.resume(
                order.resume, overrides=order.changes, callbacks=callbacks, allow_code=order.allow_code, world=world
            )
        assert settings is not None and order.out is not None
        return run.train(settings, order.out, callbacks=callbacks, world=world)


def tell(summary: Summary, flags: Flags, *, page: bool) -> int:
    """Write a finished run's page if it is wanted, print the results and return the exit status."""
    written = page and try_report(summary.path)
    if flags.json:
        echo_json(summary.json, indent=1)
    else:
        _print_summary(summary, report=written)
    return STOPPED if summary.json.get("stopped") else 0


def _print_summary(summary: Summary, *, report: bool) -> None:
    """Print how a run ended, first of all what went wrong with it."""
    from selfcorrect.report.terminal import outcome

    for sentence in outcome(summary.json):
        echo(f"{sentence}\n")
    from selfcorrect.config.stage_labels import labelled, stage_label
    from selfcorrect.config.toml import load_config
    from selfcorrect.report.episode_text import show_command

    config = load_config(summary.path / "config.toml")
    last, evaluation = list(summary.evaluations.items())[-1]
    episodes = evaluation.episodes
    print_results(labelled(config, summary.json["results"]), episodes, label=stage_label(config, last))
    echo(f"The run is in {summary.path}. More episodes: {show_command(summary.path, episodes)}")
    for where in summary.curves:
        echo(f"curves: {where}")
    if report:
        echo(f"Figures and all episodes in a browser: {summary.path / 'report.html'}")


def _settings(config: str | None, resumed: Path | None, overrides: list[str]) -> Config | None:
    """Return the settings of the run to start or to resume; None where there is no run, which `resume` explains."""
    from selfcorrect.config.toml import load_config

    if resumed is None:
        return None if config is None else load_config(config, overrides)
    stored = resumed / "config.toml"
    return load_config(stored, overrides) if stored.is_file() else None


def _same_settings(config: str, run: Path, overrides: list[str]) -> list[str]:
    """Return the changes that continue ``run`` by the command that started it: none, or a longer last stage.

    Raises:
        ConfigError: the command has other settings than the run.
    """
    from selfcorrect.config.toml import as_stored, load_config, with_overrides
    from selfcorrect.runs.checkpoints import longer

    old, new = load_config(run / "config.toml"), as_stored(load_config(config, overrides))
    if new.model.dtype == "auto":
        new = as_stored(with_overrides(new, [f"model.dtype={old.model.dtype}"]))
    if old == new:
        return []
    longer(old, new)
    last = list(old.stages)[-1]
    return [f"stages.{last}.steps={new.stages[last].steps}"]


def try_report(run: Path) -> bool:
    """Write ``report.html`` into a finished run; a failure here does not fail the run."""
    from selfcorrect.report import write_report

    try:
        write_report([run], run / "report.html")
    except Exception as error:  # hours of training must not fail for their report
        say(f"the run finished, but its report could not be written ({error}). See `selfcorrect report --help`.")
        return False
    return True
