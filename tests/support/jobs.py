"""Jobs of a comparison that fail in one of their processes."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

from selfcorrect.distributed.world import joined
from selfcorrect.evaluation.callbacks import Callbacks


@dataclass(frozen=True)
class OneFails:
    """A job whose second process raises, is killed, or fails together with the others, while the first one waits for it."""

    name: str
    path: Path
    parent: Path | None = None
    finished: bool = False

    def finish(self, callbacks: Callbacks) -> None:
        with joined(timeout_s=60) as world:
            if world.rank == 1 and self.name == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if world.rank == 1 and self.name == "raises":
                raise ValueError("the disk is full")
            with world.together():
                if world.rank == 1:
                    raise ValueError("the verifier broke")
