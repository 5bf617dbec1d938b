"""``selfcorrect`` and ``python -m selfcorrect``."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    from selfcorrect.cli import app as cli
    from selfcorrect.cli import console

    console.set_environment()
    console.keep_freed_memory()
    return cli.main(list(sys.argv[1:] if arguments is None else arguments))


if __name__ == "__main__":
    sys.exit(main())
