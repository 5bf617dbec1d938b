"""Run a function in the workers of a Ray cluster, which Ray Train starts and restarts. Nothing else in the package names Ray."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfcorrect.distributed.world import agreed
from selfcorrect.errors import ConfigError, ProcessError, SelfCorrectError, first_line
from selfcorrect.extras import missing
from selfcorrect.runtime import ENVIRONMENT, keep_freed_memory

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault(
    "RAY_TRAIN_ENABLE_PRINT_PATCH", "0"
)  # it would take what is printed away from a redirected stdout
os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # it would swallow lines that differ in numbers only
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # what Ray does today, without its warning
try:
    import ray
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError, get_context
    from ray.train.backend import Backend
    from ray.train.collective import broadcast_from_rank_zero
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError as error:
    raise missing("ray", extra="ray", why="`selfcorrect ray`", reason=str(error)) from error

LOCAL = "local"
OBJECT_STORE = 100_000_000
"""Bytes of shared memory for Ray's objects in a cluster of our own: nothing but functions and errors passes through it."""
CONNECT_S = 10
"""Seconds in which a cluster has to answer."""
LOOK_S = 0.5
"""Seconds between two checks for a request to stop."""


@dataclass(frozen=True)
class Workers:
    """The workers to ask a cluster for.

    Attributes:
        least: the work neither begins nor continues with fewer.
        most: Ray starts up to this many, as the cluster has room for them.
        cpus: cores of each worker, as Ray counts them.
        gpus: whether each worker takes a GPU if the cluster has any.
        max_failures: how often workers may be lost before the work fails.
        address: the cluster's; unset = one of this machine's cores and GPUs, which ends with the work.
        logs: whether to print the logs of Ray and of all workers too.
    """

    least: int
    most: int
    cpus: float = 1
    gpus: bool = True
    max_failures: int = 3
    address: str | None = None
    logs: bool = False


def on_workers(
    workers: Workers, work: Callable[..., Any], *arguments: Any, should_stop: Callable[[], int | None]
) -> Any:
    """Return what ``work(*arguments, attempt=..., should_stop=...)`` returns in the first worker.

    Every worker calls it, and may join the world of the others. If one of them is lost, all call it again in new processes, so
    it has to resume from files; ``attempt`` counts from 1. It is a function of a module. An error that is raised
    on purpose, or that all processes agree on, is final. What the first worker prints is printed here.

    Raises:
        ConfigError: there is no such cluster, or too few cores or GPUs in one of our own.
        ProcessError: more workers were lost than ``max_failures``.
        SelfCorrectError: the error of a worker.
    """
    should_stop()  # from here on a signal is something that is asked for
    with _cluster(workers) as here, tempfile.TemporaryDirectory(prefix="selfcorrect-") as folder:
        # On the caller's machine, because a lost machine must not take the board with it.
        board = ray.remote(num_cpus=0)(_Board).options(scheduling_strategy=here).remote()
        order = {"board": board, "directory": str(Path.cwd()), "work": work, "arguments": arguments}
        trainer = TorchTrainer(
            _share,
            train_loop_config=order,
            torch_config=_Launcher(),
            scaling_config=_scaling(workers),
            run_config=RunConfig(
                storage_path=folder,  # Ray's own checkpoints, of which there are none
                failure_config=FailureConfig(max_failures=workers.max_failures),
                logging_config=LoggingConfig(log_level=_log_level(workers)),
                worker_runtime_env={
                    "env_vars": {name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()}
                },
            ),
        )
        returned, failure = _fitted(trainer, board, should_stop)
        error = ray.get(board.error.remote())
    if error is not None:
        raise error
    if failure is not None:
        raise ProcessError(
            f"workers were lost more often than --max-failures = {workers.max_failures} allows (the last time: "
            f"{first_line(failure)}). The same command resumes from the last checkpoint."
        ) from failure
    return returned


class _Board:
    """What the caller and the workers tell each other."""

    def __init__(self) -> None:
        self._attempts, self._signal = 0, 0
        self._error: Exception | None = None
        self._printed: list[tuple[str, str]] = []

    def begin(self) -> int:
        """Count an attempt of the first worker."""
        self._attempts += 1
        return self._attempts

    def stop(self, number: int) -> None:
        self._signal = number

    def signal(self) -> int:
        return self._signal

    def fail(self, error: Exception) -> None:
        self._error = self._error or error

    def error(self) -> Exception | None:
        return self._error

    def write(self, stream: str, text: str) -> None:
        self._printed.append((stream, text))

    def printed(self) -> list[tuple[str, str]]:
        """Return what was written since the last call."""
        new, self._printed = self._printed, []
        return new


class _Printed(io.TextIOBase):
    """A stream of the first worker, which the caller prints."""

    def __init__(self, board: Any, stream: str) -> None:
        self._board, self._stream = board, stream

    def write(self, text: str) -> int:
        self._board.write.remote(self._stream, text)
        return len(text)


class _Devices(Backend):  # type: ignore[misc]
    """Every worker sees the GPUs of all workers of its machine, as under torchrun; otherwise NCCL cannot copy between them."""

    share_cuda_visible_devices = True


class _Launcher(TorchConfig):  # type: ignore[misc]
    """Leaves torch.distributed to `world.joined`."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _Devices

    @property
    def train_func_context(self) -> Any:
        return contextlib.nullcontext


@contextlib.contextmanager
def _cluster(workers: Workers) -> Iterator[NodeAffinitySchedulingStrategy]:
    """Connect to the cluster or start one; yield the place of this process in it."""
    address = workers.address or os.environ.get("RAY_ADDRESS")
    own = {"address": LOCAL, "include_dashboard": False, "object_store_memory": OBJECT_STORE}
    try:
        _check_address(address)
        with _signals_kept():
            ray.init(
                **({"address": address} if address else own),
                log_to_driver=workers.logs,
                logging_level=_log_level(workers),
            )
    except (OSError, ValueError, RuntimeError) as error:
        where = f"connect to the Ray cluster at {address!r}" if address else "start Ray on this machine"
        raise ConfigError(f"cannot {where} ({first_line(error)}).") from error
    try:
        if not address:
            _check_room(workers)
        yield NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    finally:
        ray.shutdown()


def _check_address(address: str | None) -> None:
    """Reject an address at which nothing answers, to which Ray would try to connect for ten minutes."""
    if address is None or address in ("auto", LOCAL):
        return
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or "/" in host:
        raise ValueError("it must be HOST:PORT or auto; `ray job submit` starts this command on a remote cluster")
    socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Give the signals back to those who handled them before the block, in which Ray takes SIGTERM."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _log_level(workers: Workers) -> str:
    return "INFO" if workers.logs else "ERROR"


def _check_room(workers: Workers) -> None:
    """Reject more workers than a cluster of our own can ever hold, for which Ray would wait forever."""
    room = ray.cluster_resources()
    for name, each in _resources(workers).items():
        if each * workers.least > room.get(name, 0):
            raise ConfigError(
                f"--workers asks for at least {workers.least} with {each:g} {name} each, but this machine has "
                f"{room.get(name, 0):g} {name}: ask for fewer, lower --cpus-per-worker, or name a cluster by --address."
            )


def _resources(workers: Workers) -> dict[str, float]:
    """Return what each worker takes of the cluster."""
    gpu = {"GPU": 1.0} if workers.gpus and ray.cluster_resources().get("GPU", 0) >= 1 else {}
    return {"CPU": workers.cpus, **gpu}


def _scaling(workers: Workers) -> ScalingConfig:
    resources = _resources(workers)
    count = workers.least if workers.least == workers.most else (workers.least, workers.most)
    return ScalingConfig(num_workers=count, use_gpu="GPU" in resources, resources_per_worker=resources)


def _fitted(trainer: TorchTrainer, board: Any, should_stop: Callable[[], int | None]) -> tuple[Any, Exception | None]:
    """Return what the first worker returned, and how training failed, if it did. A request to stop goes to the workers."""
    failures: list[Exception] = []
    results: list[Any] = []

    def fit() -> None:
        try:
            results.append(trainer.fit().return_value)
        except Exception as error:
            failures.append(error)

    # In a thread of its own, because Ray's own handler of SIGINT, which aborts, goes only to the main one.
    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    told, running = False, True
    while running:
        thread.join(LOOK_S)
        running = thread.is_alive()  # what was printed before is read below, once more at the end
        number = should_stop()
        if number and not told:
            board.stop.remote(number)
            told = True
        for stream, text in ray.get(board.printed.remote()):
            getattr(sys, stream).write(text)
            getattr(sys, stream).flush()
    if failures and not isinstance(failures[0], TrainingFailedError):
        raise failures[0]
    return (results[0], None) if results else (None, failures[0])


# ---------------------------------------------------------------- in a worker


def _share(order: dict[str, Any]) -> Any:
    """Return what the work returns in one worker."""
    board = order["board"]
    if ray.get(board.error.remote()) is not None:
        return None  # another attempt after an error that is final
    rank, attempt = _take_place(board)
    keep_freed_memory()
    try:
        _enter(order["directory"])
        with _printing(board) if rank == 0 else contextlib.nullcontext():
            return order["work"](
                *order["arguments"], attempt=attempt, should_stop=lambda: ray.get(board.signal.remote())
            )
    except Exception as error:
        if not _final(error):
            if not isinstance(error, ProcessError):  # the others tell only that they lost this one
                ray.get(board.write.remote("stderr", f"selfcorrect: {_portable(error, rank)}\n"))
            raise
        if rank == 0 or not agreed(error):
            ray.get(board.fail.remote(_portable(error, rank)))
        return None


def _take_place(board: Any) -> tuple[int, int]:
    """Set the variables of a launcher; return the rank and the number of the attempt."""
    context = get_context()
    rank = context.get_world_rank()
    mine = (*_free_place(), ray.get(board.begin.remote())) if rank == 0 else None
    address, port, attempt = broadcast_from_rank_zero(mine)
    places = {"RANK": rank, "WORLD_SIZE": context.get_world_size(), "MASTER_ADDR": address, "MASTER_PORT": port}
    places |= {"LOCAL_RANK": context.get_local_rank(), "LOCAL_WORLD_SIZE": context.get_local_world_size()}
    os.environ.update({name: str(value) for name, value in places.items()})
    return rank, attempt


@contextlib.contextmanager
def _printing(board: Any) -> Iterator[None]:
    """Have the caller print what this process prints."""
    with contextlib.redirect_stdout(_Printed(board, "stdout")), contextlib.redirect_stderr(_Printed(board, "stderr")):
        yield
    ray.get(board.signal.remote())  # calls arrive in their order, so all that was printed is there


def _free_place() -> tuple[str, int]:
    """Return this machine's address, and a port that is free."""
    address = ray.util.get_node_ip_address()
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as free:
        free.bind((address, 0))
        return address, free.getsockname()[1]


def _enter(directory: str) -> None:
    """Work where the caller does: relative paths and modules of the configuration are looked for there."""
    try:
        os.chdir(directory)
    except OSError as error:
        raise ConfigError(
            f"{directory}, in which the command was started, is not there on {socket.gethostname()} ({error.strerror}): start "
            "it in a directory that all machines of the cluster share."
        ) from error


def _final(error: Exception) -> bool:
    """Return whether the work would fail again: not after a lost process, nor after an error that nobody expected."""
    return agreed(error) or (isinstance(error, SelfCorrectError) and not isinstance(error, ProcessError))


def _portable(error: Exception, rank: int) -> SelfCorrectError:
    """Return the error, or one that says the same, which every process can unpickle."""
    if isinstance(error, SelfCorrectError):
        return error
    return ProcessError(f"process {rank} failed: {type(error).__name__}: {first_line(error)}")
