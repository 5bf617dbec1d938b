"""The processes of a run, and all that they exchange. Nothing outside this room names `torch.distributed`.

Every process executes the same code. Work is shared by position (`World.share`), sums are taken over all processes, and the
first process owns what exists once: the run's directory and its messages. One process is a world of one, in which every
verb returns what it was given.

A collective is called by all processes in the same order. What may fail on one of them alone runs in `World.together`, so
that an error ends all of them with one message instead of leaving the others waiting.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from selfcorrect.distributed.launcher import number
from selfcorrect.errors import ConfigError, InterruptedRun, ProcessError, first_line

T = TypeVar("T")
TIMEOUT_S = 600
"""The seconds that a process waits for the others before it fails, unless ``distributed.timeout_s`` says otherwise."""


@dataclass(frozen=True, eq=False)
class World:
    """The processes of a run as one of them sees them.

    Attributes:
        rank: this process, counted from 0.
        size: the number of processes.
        local_rank: this process among those of its machine.
        local_size: the number of processes on its machine.
        control: the group over which the processes exchange host values; None in a world of one.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    control: dist.ProcessGroup | None = None

    @property
    def first(self) -> bool:
        """Return whether this process owns the directory and the messages."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Return this process's positions among ``count``: contiguous, and the first processes have one more.

        >>> [list(World(rank, 3).share(5)) for rank in range(3)]
        [[0, 1], [2, 3], [4]]
        """
        each, more = divmod(count, self.size)
        begin = self.rank * each + min(self.rank, more)
        return range(begin, begin + each + (self.rank < more))

    # -- collectives -----------------------------------------------------------------------------------------------

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Add up tensors over all processes, in place: one flat exchange for each dtype and device."""
        if self.size == 1:
            return
        groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for tensor in tensors:
            groups.setdefault((tensor.dtype, tensor.device), []).append(tensor)
        for group in groups.values():
            flat = torch.cat([tensor.reshape(-1) for tensor in group])
            with _exchange():
                dist.all_reduce(flat, group=None if flat.is_cuda else self.control)
            for tensor, summed in zip(group, flat.split([tensor.numel() for tensor in group]), strict=True):
                tensor.copy_(summed.view_as(tensor))

    def total(self, number: float) -> float:
        """Return the sum of a number over all processes."""
        return float(sum(self.gather(number)))

    def gather(self, value: T) -> list[T]:
        """Return the value of every process, in their order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _exchange():
            dist.all_gather_object(values, value, group=self.control)
        return values

    def chain(self, items: Sequence[T]) -> list[T]:
        """Return the items of all processes, one after the other: the inverse of `share`."""
        return [item for part in self.gather(list(items)) for item in part]

    def from_first(self, make: Callable[[], T]) -> T:
        """Return what ``make`` returns in the first process, which alone calls it. An error there is raised everywhere."""
        if self.size == 1:
            return make()
        box: list[Any] = [None]
        with self.together():
            if self.first:
                box[0] = make()
        with _exchange():
            dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]  # type: ignore[no-any-return]

    def any(self, flag: int | None) -> int:
        """Return the largest flag of all processes, for instance a signal that one of them received; None counts as 0."""
        return self.largest(int(flag or 0))

    def largest(self, number: int) -> int:
        """Return the largest number of all processes."""
        return max(self.gather(number))

    def leaders_first(self, make: Callable[[], T]) -> T:
        """Return what ``make`` returns in each process; one process of every machine calls it before the others.

        What it downloads or writes into a cache is then there for the others.
        """
        made: list[T] = []
        for leads in (True, False):
            with self.together():
                if leads == (self.local_rank == 0):
                    made.append(make())
        return made[0]

    def apart(self, timeout_s: float) -> World:
        """Return the same processes with a group of their own for exchanges, which another thread can make meanwhile."""
        if self.size == 1:
            return self
        return replace(self, control=_gloo(timedelta(seconds=timeout_s)))

    @contextmanager
    def together(self) -> Iterator[None]:
        """Raise an error of any process in all of them.

        The process that failed raises its own error. The others raise a `ProcessError` that repeats it with its rank.
        """
        error: BaseException | None = None
        try:
            yield
        except Exception as raised:
            error = raised
        failed = [(rank, said) for rank, said in enumerate(self.gather(_described(error))) if said is not None]
        if failed:
            rank, (kind, message) = failed[0]
            error = error or ProcessError(f"process {rank} of {self.size} failed: {kind}: {message}")
            error.agreed = True  # type: ignore[attr-defined]
            raise error


ALONE = World()


@contextmanager
def _exchange() -> Iterator[None]:
    """Say in words that the other side of an exchange is gone."""
    try:
        yield
    except (RuntimeError, ValueError) as error:  # gloo's and NCCL's errors
        raise _lost(error) from error


def _lost(error: Exception) -> ProcessError:
    return ProcessError(
        f"another process of this run ended or did not answer ({first_line(error):.200}); its own message says "
        "why. Start the same command again with --resume auto: it continues from the last checkpoint."
    )


def agreed(error: Exception) -> bool:
    """Return whether all processes end with this error, or with one that repeats it: the first can then speak for all.

    An error of `World.together` is one. So is a stop, which they agree on by `World.any`.
    """
    return isinstance(error, InterruptedRun) or getattr(error, "agreed", False)


def _described(error: BaseException | None) -> tuple[str, str] | None:
    return None if error is None else (type(error).__name__, str(error))


def given_or_joined(world: World | None, *, timeout_s: float = TIMEOUT_S) -> AbstractContextManager[World]:
    """Return the given processes as they are; where there are none, join those that a launcher started."""
    return joined(timeout_s=timeout_s) if world is None else nullcontext(world)


@contextmanager
def joined(*, timeout_s: float = TIMEOUT_S) -> Iterator[World]:
    """Join the processes that a launcher such as torchrun started, and leave them at the end.

    Without a launcher, the world has one process and torch.distributed is not initialised.

    Raises:
        ConfigError: the launcher's variables are incomplete, or torch.distributed is in use already.
    """
    size = number("WORLD_SIZE", 1)
    if size == 1:
        yield ALONE
        return
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE = {size}, but {', '.join(missing)} is not set: start the processes with torchrun, or unset WORLD_SIZE."
        )
    if dist.is_initialized():
        raise ConfigError(
            f"the program that calls this already uses torch.distributed over {size} processes: pass world=ALONE from "
            "selfcorrect.distributed.world to work in this process alone, or start the work before torch.distributed."
        )
    local_rank = number("LOCAL_RANK", 0)
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(local_rank % torch.cuda.device_count())
    control = _control_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timedelta(seconds=timeout_s))
    try:
        yield World(number("RANK", 0), size, local_rank, number("LOCAL_WORLD_SIZE", size), control)
        dist.barrier(group=control)  # without it, a process that ends early can abort the others' last exchange
    except RuntimeError as error:
        # FSDP2 exchanges weights within forward and backward passes, where gloo raises nothing more special than this.
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise _lost(error) from error
        raise
    finally:
        dist.destroy_process_group()


def in_group() -> bool:
    """Return whether this process has joined others."""
    return dist.is_initialized()


@contextmanager
def staying_in_group() -> Iterator[None]:
    """Keep the processes joined while a library closes that also ends a group which it did not start."""
    leave = dist.destroy_process_group

    def leave_own(group: dist.ProcessGroup | None = None) -> None:
        if group is not None and group is not dist.group.WORLD:
            leave(group)

    dist.destroy_process_group = leave_own
    try:
        yield
    finally:
        dist.destroy_process_group = leave


def _control_group(backend: str, timeout: timedelta) -> dist.ProcessGroup:
    """Start torch.distributed, and return a group of all processes for messages between their CPUs.

    Raises:
        ProcessError: the processes do not find each other.
    """
    try:
        dist.init_process_group(backend, timeout=timeout)
        return _gloo(timeout)
    except RuntimeError as error:
        if dist.is_initialized():
            dist.destroy_process_group()
        reason = first_line(error)
        raise ProcessError(
            f"the processes of this run did not find each other ({reason:.200}). If torchrun restarted them, it may "
            "have given them the addresses of those that ended: start it with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1."
        ) from error


def _gloo(timeout: timedelta) -> dist.ProcessGroup:
    group = dist.new_group(backend="gloo", timeout=timeout)
    assert isinstance(group, dist.ProcessGroup)
    return group
