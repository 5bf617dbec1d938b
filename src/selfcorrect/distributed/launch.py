"""Start a function in several new processes of this machine, by the machinery of torchrun."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from selfcorrect.errors import ProcessError, SelfCorrectError

T = TypeVar("T")
LOGS = (
    *("torch.distributed.elastic.agent.server.api", "torch.distributed.elastic.multiprocessing.api"),
    *("torch.distributed.elastic.multiprocessing.errors.error_handler", "torch.multiprocessing.spawn"),
)
"""The logs that would tell of a failure, which is one error here."""


def on_processes(count: int, work: Callable[..., T], *arguments: Any) -> list[T]:
    """Return what ``work(*arguments)`` returns in each of ``count`` new processes, which may join their world.

    ``work`` is a function of a module. If one process fails, the others are ended too.

    Raises:
        ProcessError: a process failed or was killed.
    """
    for name in LOGS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="selfcorrect-") as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",  # any free port
            local_addr="127.0.0.1",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
            signals_to_handle="SIGHUP",  # the caller decides what other signals do
        )
        try:
            returned = elastic_launch(config, _called)(folder, work, *arguments)
        except ChildFailedError as error:
            seen, _ = error.get_first_failure()
            raise ProcessError(_cause(Path(folder), count, seen)) from None
    return [returned[rank] for rank in range(count)]


def _called(folder: str, work: Callable[..., T], *arguments: Any) -> T:
    """Call the function in one of the processes; leave a note where it fails."""
    try:
        return work(*arguments)
    except Exception as error:
        kind = "" if isinstance(error, SelfCorrectError) else f"{type(error).__name__}: "
        note = {"follows": isinstance(error, ProcessError), "time": time.time(), "message": f"{kind}{error}"}
        (Path(folder) / os.environ["RANK"]).write_text(json.dumps(note))
        raise SystemExit(1) from None


def _cause(folder: Path, count: int, seen: int) -> str:
    """Return what the process that failed first says, rather than one that lost it; ``seen`` is one that failed."""
    notes = {int(file.name): json.loads(file.read_text()) for file in folder.iterdir()}
    causes = [note for note in notes.values() if not note["follows"]]
    if causes:
        return str(min(causes, key=lambda note: float(note["time"]))["message"])
    silent = [rank for rank in (seen, *range(count)) if rank not in notes]
    if not silent:
        return str(notes[seen]["message"])
    return f"process {silent[0]} of {count} ended without a message: it was killed, perhaps because memory ran out."
