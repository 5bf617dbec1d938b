"""The command `eval`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from selfcorrect.cli.console import COMMON, Flags, Interrupts, echo, echo_json
from selfcorrect.cli.options import AllowCode, Seed, Set, SplitName, print_results, task_options
from selfcorrect.cli.processes import processes
from selfcorrect.types import DtypeChoice, ServerAPI

if TYPE_CHECKING:
    from selfcorrect.evaluation.evaluation import Evaluation

app = typer.Typer()


@app.command("eval", epilog=COMMON)
def evaluate(
    context: typer.Context,
    *,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            help="A directory, a run, RUN:STAGE, a bundled model's name, a hub id, or the URL of a server with one model; "
            "with --base-url, a model name that the server knows.",
        ),
    ],
    task: Annotated[
        str,
        typer.Option(
            "--task", help="A task (see `selfcorrect tasks`), or a training config (CONFIG.toml) for its task."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Directory for the results.")],
    turns: Annotated[int, typer.Option(min=1, max=10, help="Attempts per problem.")] = 2,
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum number of problems.")] = None,
    seed: Seed = 0,
    split: Annotated[SplitName, typer.Option(help="Which split of the problems.")] = SplitName.test,
    task_option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="An option of the task; repeatable.")
    ] = None,
    data_seed: Annotated[int | None, typer.Option(min=0, help="Seed of the problems.")] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Token limit of a turn. Unset: the run's, else 512 or what the context holds."),
    ] = None,
    temperature: Annotated[float, typer.Option(min=0, help="Sampling temperature; 0 is greedy.")] = 0.0,
    samples: Annotated[
        int,
        typer.Option(min=1, help="Sampled episodes per problem; avg@k is --temperature T --samples K."),
    ] = 1,
    sampled: Annotated[
        bool | None,
        typer.Option(
            "--sampled/--no-sampled",
            help="Also sample at the run's training temperature, else at T = 1. Unset: only with --controls.",
        ),
    ] = None,
    controls: Annotated[
        bool,
        typer.Option(
            "--controls",
            help="Also run the blind drafts, samples and the independent resample, which tell whether the model corrects itself "
            "or only answers again: 8 replies per problem instead of 2, 5 with --no-sampled.",
        ),
    ] = False,
    drafts: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="A finished evaluation whose first attempts are revised in place of the model's own: the same for all models.",
        ),
    ] = None,
    dtype: Annotated[
        DtypeChoice | None, typer.Option(help="Dtype of the model's weights. Unset: the run's, else float32.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    max_num_seqs: Annotated[
        int | None, typer.Option(min=1, help="Episodes in one batch; affects memory and speed only.")
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option(
            "--base-url", metavar="URL", help="An OpenAI-compatible server, such as http://localhost:8000/v1."
        ),
    ] = None,
    api: Annotated[
        ServerAPI,
        typer.Option(
            help="The server's protocol: chat (messages), completions (token ids), or auto, which says what it picked."
        ),
    ] = ServerAPI.AUTO,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The served model's tokenizer, a directory or a hub id, for --api completions."
        ),
    ] = None,
    key_env: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Environment variable with the server's key. Unset: OPENAI_API_KEY."),
    ] = None,
    request_timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Time limit of one request to the server. Unset: 300.")
    ] = None,
    retries: Annotated[
        int | None, typer.Option(min=0, help="Retries of a request after a transient failure. Unset: 6.")
    ] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help=r"Text that ends a turn; repeatable. \n, \t and \\ stand for a newline, a tab and a backslash.",
        ),
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that comes with a model from the hub.")
    ] = False,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Sampling engine: hf (unset), vllm, an installed package's engine, or module:attribute.",
        ),
    ] = None,
    allow_code: AllowCode = None,
    changes: Set = None,
) -> None:
    """Evaluate a model on a task and print the results.

    An unfinished evaluation with the same settings resumes in its directory. If MODEL is a run trained on this task,
    the options left unset take that run's values: the task's options, instructions and problems, the token limit, and
    the stop texts. A run is computed in its own dtype on every task. With --task CONFIG.toml, the task comes from that
    configuration.

    A server gets --max-num-seqs requests (16) at a time. Its context mode is "messages", or "tokens" with --api completions.

    --set changes any setting and wins over the options: --set revise="Look again.", --set vllm.dtype=bfloat16.
    In a value without TOML quotes, here and in --task-option, \\n, \\t and \\\\ stand for a newline, a tab and a backslash,
    unless the setting's name ends in "pattern".

    On several processes: torchrun --standalone --nproc-per-node N -m selfcorrect eval --model MODEL --task T --out DIR.
    --max-num-seqs is then for each of them.
    """
    flags: Flags = context.obj
    from selfcorrect.config.evaluation import EvalSettings, make_eval_settings
    from selfcorrect.config.toml import unescaped

    # The options that bear the name of a setting are that setting.
    given = {name: value for name, value in context.params.items() if name in EvalSettings.model_fields}
    given["stop"] = [unescaped(text) for text in stop or []] or None
    given["task_options"] = task_options(context, task_option or [])
    from selfcorrect.cli.progress import reporting

    with Interrupts() as interrupts, processes(flags) as world:
        with world.together():
            settings = make_eval_settings(given, changes or [])
        quiet = flags.quiet or not world.first
        halves: list[tuple[Evaluation, int]] = []
        try:
            with reporting({}, quiet=quiet, verbose=flags.verbose) as reporter:
                from selfcorrect.evaluation.callbacks import Callbacks
                from selfcorrect.evaluation.evaluate import evaluate as measure

                callbacks = Callbacks(
                    on_progress=reporter.on_progress,
                    on_left=reporter.on_left,
                    on_partial=lambda found, problems: halves.append((found, problems)),
                    should_stop=interrupts.should_stop,
                )
                allowed = allow_code or ()
                found = measure(
                    model, task, settings=settings, out=out, callbacks=callbacks, allow_code=allowed, world=world
                )
        except Exception:
            for partial, problems in halves if not flags.json else ():
                _print_partial(partial, problems, settings.temperature)
            raise
        if not world.first:
            return
    from selfcorrect.storage.seal import read_summary

    summary = read_summary(out)
    if flags.json:
        echo_json(summary, indent=1)
        return
    print_results(summary["results"], found.episodes, settings.temperature)
    echo(f"The evaluation is in {out}. More episodes: selfcorrect show {shlex.quote(str(out))}")


def _print_partial(partial: Evaluation, problems: int, temperature: float) -> None:
    from selfcorrect.report import terminal

    results = {"model": partial.to_json()}
    echo(terminal.partial_tables(results, problems=problems, temperature=temperature) + "\n")
