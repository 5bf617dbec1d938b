"""Does a published model correct itself as it is? Measure it on twelve tasks, or print the table of all that were measured.

    python results/as-published/measure.py --model MODEL [--work DIR] [-- OPTIONS OF selfcorrect eval]
    python results/as-published/measure.py --table

``MODEL`` is whatever `selfcorrect eval` takes: a bundled model's name, a directory, a hub id, or a server's model with
``-- --base-url URL``. Every task is one evaluation with controls, greedy, of the first ``--limit`` test problems. An interrupted
evaluation resumes in ``--work``; a finished one is packed into ``--out``/MODEL/TASK, and not made again.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

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
    parser.add_argument("--model", help="the model to measure")
    parser.add_argument(
        "--name", help="its directory under --out; unset: its name, without signs that paths do not take"
    )
    parser.add_argument("--tasks", nargs="*", choices=TOKENS, default=list(TOKENS), help="tasks; unset: all twelve")
    parser.add_argument("--limit", type=int, default=150, help="problems per task")
    parser.add_argument("--work", type=Path, default=Path("evals/as-published"), help="directory of the evaluations")
    parser.add_argument("--out", type=Path, default=HERE, help="directory of the packed evaluations")
    parser.add_argument(
        "--table", action="store_true", help="print the table of what lies in --out, and measure nothing"
    )
    parser.add_argument("options", nargs="*", help="options of `selfcorrect eval`, after --")
    arguments = parser.parse_args()
    if arguments.table:
        print("\n".join(table(arguments.out)))
    elif arguments.model is None:
        parser.error("give --model, or --table")
    else:
        measure(arguments)


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


def table(directory: Path) -> Iterator[str]:
    """Yield the lines of a Markdown table: accuracies in % with intervals, and delta's parts in points."""
    head = ("model", "task", "n", "Acc@t1", "Acc@t2", "delta", "re-answering", "keep", "repair", "J", "what it does")
    yield in_markdown(head)
    yield in_markdown(["---"] * len(head))
    for path in sorted(directory.glob("*/*/summary.json")):
        (found,) = json.loads(path.read_text())["results"].values()
        yield in_markdown([*path.parts[-3:-1], *cells(found)])


def cells(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield a row's figures; a part of delta is given as its range over the blind drafts."""
    yield str(found["n"])
    for key, sign in (("acc_t1", ""), ("acc_t2", ""), ("delta", "+")):
        low, high = found[f"{key}_ci95"]
        yield f"{100 * found[key]:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"
    parts = found["decomposition"]["blind"].values()
    for key in ("re_answering", "keep", "repair"):
        values = [100 * part[key] for part in parts]
        yield f"{min(values):+.1f} to {max(values):+.1f}"
    youden = found["decomposition"]["detection"]["youden"]
    yield "" if youden is None else f"{youden:+.2f}"
    yield found["decomposition"]["conclusion"]["behaviour"]


def in_markdown(values: Sequence[str]) -> str:
    return f"| {' | '.join(values)} |"


if __name__ == "__main__":
    main()
