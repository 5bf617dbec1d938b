"""The commands about tasks: list them, try one, write example data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from selfcorrect.cli.console import COMMON, FAILURE, Flags, echo, echo_json
from selfcorrect.cli.options import MAX_COUNT, USAGE_ERROR, Set, WholeSentences, task_options

if TYPE_CHECKING:
    from selfcorrect.config.schema import Config
    from selfcorrect.tasks import Task


class ListsByDefault(WholeSentences):
    """A group whose command `list` may be left out: `selfcorrect tasks addition` lists one task."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        asks_help = bool(args) and args[0] in ctx.help_option_names
        if not asks_help and (not args or args[0] not in self.commands):
            args = ["list", *args]
        return super().parse_args(ctx, args)


app = typer.Typer()
tasks_app = typer.Typer(
    cls=ListsByDefault,
    help="List the tasks, each with an example; try one.",
    rich_markup_mode=None,
)
app.add_typer(tasks_app, name="tasks")


@tasks_app.command("list", epilog=COMMON)
def tasks_list(
    context: typer.Context,
    *,
    name: Annotated[str | None, typer.Argument(help="A family, or family:variant.")] = None,
) -> None:
    """List the tasks, each with an example; `list` may be left out."""
    flags: Flags = context.obj
    from selfcorrect.tasks.catalogue import catalogue, entry_json, entry_text

    for entry in catalogue(name):
        text = entry_text(entry, full=name is not None)
        if flags.json:
            echo_json(entry_json(entry))
        else:
            echo(text)


@tasks_app.command("check", epilog=COMMON)
def tasks_check(
    context: typer.Context,
    *,
    task: Annotated[
        str, typer.Argument(metavar="TASK", help="A task, or a training config (CONFIG.toml) for its task.")
    ],
    task_option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="An option of the task; repeatable.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="A model whose chat template and tokenizer to use. Unset: no template, lengths in characters."
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=MAX_COUNT, help="Problems of each split to try.")] = 100,
    show: Annotated[int, typer.Option(min=0, max=MAX_COUNT, help="Problems to print.")] = 10,
    answer: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Instead of all checks, verify this answer to one problem; - reads stdin."),
    ] = None,
    problem: Annotated[
        str | None, typer.Option(metavar="ID", help="The problem of --answer. Unset: the first one that is printed.")
    ] = None,
    changes: Set = None,
) -> None:
    """Try a task: its prompts, its verifier on known answers, its splits.

    Prints ten problems as the model sees them. Correct answers must pass the verifier and corrupted ones must fail; no
    two splits may share a problem. If a check fails, the exit status is 1. With --model, it suggests a limit for a turn.

    --answer "The answer is 12." tries an answer of your own: it prints what the verifier extracts, the verdict and the
    reason, and an answer that is accepted.

    --set changes any setting of the task: --set task.options.path=FILE, --set task.system="Be brief."
    """
    flags: Flags = context.obj
    if problem is not None and answer is None:
        raise USAGE_ERROR("--problem names the problem of --answer, which is missing", ctx=context)
    config = _config(task, task_options(context, task_option or []), changes or [])
    from selfcorrect.evaluation.task_check import check_json, check_task, check_text
    from selfcorrect.tasks.base import get_task, script_of

    made = get_task(config.task.name, config.task.options)
    if answer is not None:
        _try_answer(flags, config, made, sys.stdin.read() if answer == "-" else answer, problem)
        return
    tokenizer = None
    if model is not None:
        from selfcorrect.zoo.resolve import find_tokenizer

        tokenizer = find_tokenizer(model)
    found = check_task(
        made,
        script_of(config, made),
        seed=config.task.data_seed,
        limit=limit,
        show=show,
        time_limit_s=config.task.time_limit_s,
        tokenizer=tokenizer,
        template_options=config.model.chat_template_kwargs,
        max_tokens=config.rollout.max_tokens if _sets_limit(task, changes or []) else None,
    )
    if flags.json:
        echo_json(check_json(found))
    else:
        echo(check_text(found))
    if not found.passed:
        raise typer.Exit(FAILURE)


def _try_answer(flags: Flags, config: Config, task: Task, answer: str, problem: str | None) -> None:
    """Print the verdict of one answer; a verifier that fails is a failure of the command."""
    from selfcorrect.evaluation.answer_check import answer_json, answer_text, check_answer
    from selfcorrect.types import Outcome, Split

    settings = config.task
    counts = {
        Split.TRAIN: settings.train_problems,
        Split.DEV: settings.dev_problems,
        Split.TEST: config.eval.problems,
    }
    found = check_answer(
        task, answer, problem=problem, counts=counts, seed=settings.data_seed, time_limit_s=settings.time_limit_s
    )
    if flags.json:
        echo_json(answer_json(found))
    else:
        echo(answer_text(found))
    if found.verdict.outcome is Outcome.VERIFIER_FAILED:
        raise typer.Exit(FAILURE)


@tasks_app.command("examples", epilog=COMMON)
def tasks_examples(
    context: typer.Context,
    *,
    out: Annotated[Path, typer.Argument(metavar="DIR", help="A new directory.")] = Path("examples"),
) -> None:
    """Write the data files of the documentation's examples into a new directory."""
    flags: Flags = context.obj
    from selfcorrect.storage.new_directory import new_directory
    from selfcorrect.tasks.dataset.examples import example_files

    files = example_files()
    with new_directory(out) as folder:
        for name, content in files.items():
            (folder / name).write_bytes(content)
    places = [str(out / name) for name in files]
    if flags.json:
        echo_json(places)
    else:
        echo("\n".join(places))


def _sets_limit(task: str, changes: list[str]) -> bool:
    """Return whether the limit of a turn is somebody's choice: a configuration's, or a change's."""
    return task.endswith(".toml") or any(change.startswith("rollout.max_tokens") for change in changes)


def _config(task: str, options: dict[str, Any], changes: list[str]) -> Config:
    """Return a training config, or the defaults with a named task, with the changes and the task's options."""
    from selfcorrect.config.toml import apply_override, load_config, make_config

    if task.endswith(".toml"):
        config = load_config(task, changes)
    else:
        table: dict[str, Any] = {"task": {"name": task}}
        for change in changes:
            apply_override(table, change)
        config = make_config(table)
    settings = config.task.model_copy(update={"options": {**config.task.options, **options}})
    return config.model_copy(update={"task": settings})
