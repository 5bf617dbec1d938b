"""The command `ray`."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from selfcorrect.cli.console import COMMON, Flags, Interrupts, counted, say
from selfcorrect.cli.options import AllowCode, Set
from selfcorrect.cli.train import AUTO, Order, shared, tell

if TYPE_CHECKING:
    from selfcorrect.config.schema import Config

app = typer.Typer()
MOST = 10_000


def worker_range(text: str) -> tuple[int, int]:
    """Return the least and the most workers that ``MIN:MAX`` or ``N`` asks for.

    >>> worker_range("2:4"), worker_range("3")
    ((2, 4), (3, 3))
    """
    least, colon, most = text.partition(":")
    parts = (least, most) if colon else (least, least)
    if not all(part.isascii() and part.isdigit() and len(part) <= len(str(MOST)) for part in parts):
        raise typer.BadParameter(f"{text!r}: write MIN:MAX, for instance 2:4, or N, whole numbers from 1 to {MOST}")
    low, high = map(int, parts)
    if not 1 <= low <= high <= MOST:
        raise typer.BadParameter(f"{text!r}: the numbers must satisfy 1 <= MIN <= MAX <= {MOST}")
    return low, high


@app.command(epilog=COMMON)
def ray(
    context: typer.Context,
    config: Annotated[str, typer.Argument(help="A TOML file or the name of a built-in config.")],
    *,
    out: Annotated[
        Path, typer.Option("--out", metavar="RUN", help="Directory of the run, on a file system of all machines.")
    ],
    workers: Annotated[
        str,
        typer.Option(metavar="MIN:MAX", help="Number of workers, N for a fixed one."),
    ],
    changes: Set = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="The cluster, `auto` for the one on this machine. Unset: RAY_ADDRESS, else a cluster is started here."
        ),
    ] = None,
    cpus_per_worker: Annotated[
        float, typer.Option(min=0.01, max=1e4, help="Cores of a worker, as Ray counts them.")
    ] = 1.0,
    max_failures: Annotated[int, typer.Option(min=0, max=10**6, help="Restarts after losses.")] = 3,
    allow_code: AllowCode = None,
    page: Annotated[
        bool, typer.Option("--report/--no-report", help="Write RUN/report.html at the end; see `selfcorrect report`.")
    ] = True,
) -> None:
    """Train on a Ray cluster, which replaces lost workers.

    It may continue with fewer workers. The same command resumes, as `train CONFIG --out RUN --resume auto` does. A worker takes
    one GPU if the cluster has any and model.device is not cpu. After a loss, all workers restart from the last checkpoint, at
    least MIN of them. Needs pip install "selfcorrect[ray]" on every machine.
    """
    flags: Flags = context.obj
    least, most = worker_range(workers)
    order = Order(config, out.resolve(), Path(AUTO), changes or [], allow_code or [], flags)
    with Interrupts() as interrupts:
        settings = _checked(order, most)
        from selfcorrect.distributed.ray_workers import Workers, on_workers

        asked = Workers(
            least,
            most,
            cpus=cpus_per_worker,
            gpus=settings.model.device != "cpu",
            max_failures=max_failures,
            address=address,
            logs=flags.debug,
        )
        status = on_workers(asked, _share, order, page, should_stop=interrupts.should_stop)
    if status:
        raise typer.Exit(status)


def _checked(order: Order, processes: int) -> Config:
    """Return the settings, after the checks that need no model: a cluster is not asked for a run that would be rejected."""
    from selfcorrect.engines.factory import check_processes, engine_kind
    from selfcorrect.tasks.base import checked_task

    settings = order.decided().settings()
    assert settings is not None  # an automatic order has a configuration
    check_processes(settings.rollout.engine, engine_kind(settings.rollout.engine), processes)
    checked_task(settings.task.name, settings.task.options)
    return settings


def _share(order: Order, page: bool, *, attempt: int, should_stop: Callable[[], int | None]) -> int:
    """Do one worker's share of the run; return the exit status."""
    from selfcorrect.config.toml import timeout_of
    from selfcorrect.distributed.world import joined

    with joined(timeout_s=timeout_of(order.config or "", order.changes)) as world:
        if world.first and not order.flags.quiet:
            say(
                f"{'started' if attempt == 1 else 'restarted from the last checkpoint'} with {counted(world.size, 'worker')}"
            )
        try:
            summary = shared(order, should_stop, world)
        except Exception as error:
            if order.flags.debug:
                traceback.print_exception(error)
            raise
    return tell(summary, order.flags, page=page) if world.first else 0
