"""Does a published model correct itself as it is? Measure it on twelve tasks.

    python results/as-published/measure.py --model MODEL [--work DIR] [-- OPTIONS OF selfcorrect eval]
    selfcorrect report results/as-published/MODEL/* --tables markdown --out report.html

``MODEL`` is whatever `selfcorrect eval` takes: a bundled model's name, a directory, a hub id, or a server's model with
``-- --base-url URL``. Every task is one evaluation with controls, greedy, of the first ``--limit`` test problems. An interrupted
evaluation resumes in ``--work``; a finished one is packed into ``--out``/MODEL/TASK, and not made again.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).parent
GYM = (
    *("basic_arithmetic", "chain_sum", "simple_equations", "gcd", "leg_counting"),
    *("letter_counting", "number_sorting", "spell_backward", "syllogism", "time_intervals"),
)
TOKENS: Mapping[str, int] = {
    "gsm_symbolic": 256,
    "humaneval": 256,
    **{f"reasoning_gym:{name}": 128 for name in GYM},
}
"""The token limit of a turn, by task."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="the model to measure")
    parser.add_argument(
        "--name", help="its directory under --out; unset: its name, without signs that paths do not take"
    )
    parser.add_argument("--tasks", nargs="*", choices=TOKENS, default=list(TOKENS), help="tasks; unset: all twelve")
    parser.add_argument("--limit", type=int, default=150, help="problems per task")
    parser.add_argument("--work", type=Path, default=Path("evals/as-published"), help="directory of the evaluations")
    parser.add_argument("--out", type=Path, default=HERE, help="directory of the packed evaluations")
    parser.add_argument("options", nargs="*", help="options of `selfcorrect eval`, after --")
    measure(parser.parse_args())


def measure(arguments: argparse.Namespace) -> None:
    """Evaluate the model on every task that is not in ``--out`` yet, and pack what is finished."""
    name = arguments.name or re.sub(r"[^\w.-]+", "-", arguments.model).strip("-")
    for task in arguments.tasks:
        place = Path(name) / task.replace("reasoning_gym:", "")
        work, packed = arguments.work / place, arguments.out / place
        if not packed.exists():
            size = ["--limit", str(arguments.limit), "--max-tokens", str(TOKENS[task])]
            common = ["--model", arguments.model, "--task", task, "--controls", "--no-sampled"]
            selfcorrect("eval", *common, *size, "--out", str(work), *arguments.options)
            selfcorrect("pack", str(work), "--out", str(packed))


def selfcorrect(*command: str) -> None:
    subprocess.run([sys.executable, "-m", "selfcorrect", *command], check=True)


if __name__ == "__main__":
    main()
