"""``selfcorrect`` and ``python -m selfcorrect``."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    from selfcorrect import runtime
    from selfcorrect.cli import app

    runtime.set_environment()
    runtime.keep_freed_memory()
    return app.main(list(sys.argv[1:] if arguments is None else arguments))


if __name__ == "__main__":
    sys.exit(main())
