"""Work of other people's code in a process of its own: what it prints, its signal handlers and its imports stay there."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from selfcorrect.errors import DataError, SelfCorrectError


def in_own_process(function: Callable[[Any], Any], request: Any, *, what: str) -> Any:
    """Return what a function of a module makes of a request, called in a new process with a fixed hash seed.

    Request and result are pickled. The process takes this one's module path, and a session of its own, so an interrupt does not
    end it halfway. What it prints appears on stderr.

    Args:
        what: what works there, for the message.

    Raises:
        SelfCorrectError: what the function raised; other exceptions are for the function to turn into one.
        DataError: the process ended before the function returned.
    """
    code = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
    done = subprocess.run(
        [
            *(sys.executable, "-P", "-c", f"{code}from {__name__} import serve; serve(*sys.argv[2:])"),
            json.dumps([path for path in sys.path if isinstance(path, str)]),
            *(function.__module__, function.__name__),
        ],
        input=pickle.dumps(request),
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONHASHSEED": "0"},
        start_new_session=True,
        check=False,
    )
    if done.returncode != 0 or not done.stdout:
        raise DataError(f"{what} ended its process with exit status {done.returncode}.")
    found, error = pickle.loads(done.stdout)
    if error is not None:
        raise error
    return found


def serve(module: str, function: str) -> None:
    """Be the process of `in_own_process`: a pickled request on stdin, the answer on stdout, and all prints on stderr."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    request = pickle.load(sys.stdin.buffer)
    try:
        answer: tuple[Any, SelfCorrectError | None] = getattr(import_module(module), function)(request), None
    except SelfCorrectError as error:
        answer = None, type(error)(str(error))
    out.write(pickle.dumps(answer))
    out.close()
