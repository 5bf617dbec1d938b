"""Run ``python -m benchmarks.step`` in the environment of the command line that it measures."""

from __future__ import annotations

import sys

from selfcorrect import runtime

if __name__ == "__main__":
    runtime.set_environment()
    runtime.keep_freed_memory()
    from benchmarks.step.cli import app
    from selfcorrect.cli.app import main

    sys.exit(main(sys.argv[1:], app, "python -m benchmarks.step"))
