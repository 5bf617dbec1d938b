"""The command line: options in, text out. What the commands do is elsewhere; nothing heavy is imported for `--help`."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.step import cli as cli_bench
from selfcorrect.cli import evaluations as cli_measure
from selfcorrect.cli import look as cli_look
from selfcorrect.cli import paper as cli_paper
from selfcorrect.cli.console import BAD_INPUT, COMMON, Flags, Interrupts, guarded, say
from selfcorrect.cli.look import USAGE_ERROR, Dtype, Seed, Set, WholeSentences, print_text, task_options

app = typer.Typer(
    cls=WholeSentences,
    name="selfcorrect",
    help="Train and measure intrinsic self-correction of language models (SCoRe).\n\n"
    "Start with: selfcorrect train demo --out runs/demo",
    epilog=COMMON,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class SplitName(StrEnum):
    """Splits to evaluate on."""

    test = "test"
    dev = "dev"


def main(arguments: list[str]) -> int:
    """Run the command line; returns the exit status."""
    flags, rest = Flags.taken_from(arguments)
    return guarded(lambda: _parsed(rest, flags), debug=flags.debug)


def _parsed(arguments: list[str], flags: Flags) -> int:
    try:
        status = app(args=arguments, obj=flags, prog_name="selfcorrect", standalone_mode=False)
    except USAGE_ERROR as error:
        context: Any = getattr(error, "ctx", None)
        if type(error).__name__ == "NoArgsIsHelpError":
            print(context.get_help(), file=sys.stderr)
            return BAD_INPUT
        where = context.command_path if context else "selfcorrect"
        message = error.format_message().removesuffix(".")
        say(f"error: {message}{'' if message.endswith('?') else '.'} See `{where} --help`.")
        return BAD_INPUT
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # typer's own way with closed pipes is status 1
            raise stop.__context__ from None
        raise
    except typer.Abort:
        return 130
    return status if isinstance(status, int) else 0


def _version(asked: bool) -> None:
    if asked:
        from selfcorrect import __version__

        print(f"selfcorrect {__version__}")
        raise typer.Exit


@app.callback()
def root(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Nothing but `--version` stands before the command; the options of every command may."""


@app.command(epilog=COMMON)
def train(
    context: typer.Context,
    *,
    config: Annotated[str | None, typer.Argument(help="A TOML file or a shipped configuration's name.")] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="RUN", help="Directory of the new run.")] = None,
    resume: Annotated[Path | None, typer.Option("--resume", metavar="RUN", help="Go on with this run instead.")] = None,
    changes: Set = None,
    page: Annotated[
        bool, typer.Option("--report/--no-report", help="Write RUN/report.html at the end (see `selfcorrect report`).")
    ] = True,
) -> None:
    """Train, evaluate the base and every stage, print the table.

    A run that was stopped or killed goes on with --resume, exactly as if nothing had happened. With --resume, --set
    may only make the last stage longer: --set stages.NAME.steps=N.
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
        from selfcorrect.runs import run

        callbacks = run.Callbacks(
            on_step=reporter.on_step,
            on_eval=reporter.on_eval,
            on_progress=reporter.on_progress,
            should_stop=interrupts.should_stop,
        )
        if resume is not None:
            summary = run.resume(resume, overrides=overrides, callbacks=callbacks)
        else:
            assert settings is not None and out is not None
            summary = run.train(settings, out, callbacks=callbacks)
    written = page and cli_look.try_report(summary.path)
    if flags.json:
        print(json.dumps(summary.json, indent=1, ensure_ascii=False))
        return
    last = list(summary.evaluations)[-1]
    _print_results(summary.json["results"], summary.evaluations[last].episodes)
    print(f"The run is in {summary.path}. More episodes: selfcorrect show {summary.path} --flip i2c")
    if written:
        print(f"Figures and all episodes, in a browser: {summary.path / 'report.html'}")


@app.command("eval", epilog=COMMON)
def evaluate(
    context: typer.Context,
    *,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            help="A directory, a run, RUN:STAGE, a made model's name, a hub id, the URL of a server with one model; "
            "with --base-url, a name that the server knows.",
        ),
    ],
    task: Annotated[str, typer.Option("--task", help="See `selfcorrect tasks`.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Directory of the results.")],
    turns: Annotated[int, typer.Option(min=1, max=10, help="Attempts per problem.")] = 2,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many problems.")] = None,
    seed: Seed = 0,
    split: Annotated[SplitName, typer.Option(help="Which problems.")] = SplitName.test,
    task_option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="A task's own option; repeatable.")
    ] = None,
    data_seed: Annotated[int | None, typer.Option(min=0, help="Seed of the problems.")] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Token limit of a turn; unset: the run's, else 512 or what the context holds."),
    ] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    samples: Annotated[
        int,
        typer.Option(min=1, help="Episodes per problem where they are sampled: avg@k is --temperature T --samples K."),
    ] = 1,
    sampled: Annotated[
        bool | None,
        typer.Option(
            "--sampled/--no-sampled",
            help="Also sample as in the run's training, else at T = 1; unset: with --controls.",
        ),
    ] = None,
    controls: Annotated[
        bool, typer.Option("--controls", help="Also the draft swap and the independent resample.")
    ] = False,
    dtype: Annotated[Dtype, typer.Option(help="Number format.")] = Dtype.float32,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    max_rows: Annotated[int | None, typer.Option(min=1, help="Episodes side by side; memory and speed only.")] = None,
    base_url: Annotated[
        str | None,
        typer.Option(
            "--base-url", metavar="URL", help="An OpenAI-compatible chat server, as http://localhost:8000/v1."
        ),
    ] = None,
    key_env: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Environment variable with the server's key; unset: OPENAI_API_KEY."),
    ] = None,
    request_timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="For one request to the server; unset: 300.")
    ] = None,
    retries: Annotated[
        int | None, typer.Option(min=0, help="Times a request that failed in passing is made again; unset: 6.")
    ] = None,
    stop: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="Ends a turn; repeatable.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that comes with a model from the hub.")
    ] = False,
) -> None:
    """Measure a model on a task and print the table.

    A half-finished evaluation with the same settings goes on in its directory. Where MODEL is a run trained on this
    task, what is not given is as in that run: the task's options, its instructions and problems, the token limit, the
    stop texts; not --dtype.

    A model on a server is asked for texts, --max-rows requests (16) at a time; its context mode is "messages".
    """
    flags: Flags = context.obj
    options = task_options(context, task_option or [])
    from selfcorrect.cli.progress import reporting

    with Interrupts() as interrupts, reporting({}, quiet=flags.quiet, verbose=flags.verbose) as reporter:
        from selfcorrect.evaluation import evaluate as evaluation_run
        from selfcorrect.runs import run

        callbacks = run.Callbacks(on_progress=reporter.on_progress, should_stop=interrupts.should_stop)
        found = evaluation_run.evaluate(
            model,
            task,
            task_options=options,
            split=split.value,
            turns=turns,
            limit=limit,
            seed=seed,
            data_seed=data_seed,
            max_tokens=max_tokens,
            temperature=temperature,
            samples=samples,
            sampled=sampled,
            controls=controls,
            dtype=dtype.value,
            device=device,
            max_rows=max_rows,
            stop=stop or None,
            trust_remote_code=trust_remote_code,
            base_url=base_url,
            key_env=key_env,
            request_timeout=request_timeout,
            retries=retries,
            out=out,
            callbacks=callbacks,
        )
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    if flags.json:
        print(json.dumps(summary, indent=1, ensure_ascii=False))
        return
    _print_results(summary["results"], found.episodes, temperature)
    print(f"The evaluation is in {out}. More episodes: selfcorrect show {out}")


def _print_results(results: Any, episodes: Any, temperature: float = 0.0) -> None:
    from selfcorrect.report import episode_text as show
    from selfcorrect.report import terminal as report

    print(report.all_tables(results, temperature=temperature) + "\n")
    for record in show.examples(episodes):
        print_text(show.episode_text(record))


app.add_typer(cli_look.app)
app.add_typer(cli_measure.app)
app.add_typer(cli_paper.app)
app.add_typer(cli_bench.app)
