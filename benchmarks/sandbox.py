"""Measure programs per second through the fully isolated sandbox: `python -m benchmarks.sandbox [WORKERS]`.

The programs are short ones (micro_code) and HumanEval's solutions, judged by the `Verifier` that training uses. Starting
the workers is not counted.
"""

from __future__ import annotations

import os
import sys
import time

from selfcorrect.tasks.code.humaneval import HumanEvalTask
from selfcorrect.tasks.code.micro_code import MicroCodeTask
from selfcorrect.tasks.code.task import CodeTask
from selfcorrect.tasks.verifier import Verifier
from selfcorrect.types import Split

PROGRAMS = 492


def measure(task: CodeTask, workers: int) -> str:
    """Return a line with one task's programs per second."""
    problems = list(task.problems(Split.TEST, seed=0, limit=164))
    rounds = range(
        PROGRAMS // len(problems)
    )  # the number makes the programs differ, because equal ones are judged once
    items = [(problem, f"```python\n{problem.reference}\n# {n}\n```") for n in rounds for problem in problems]
    with Verifier(task, workers=workers) as verifier:
        verifier.verify(items[:32])
        begin = time.perf_counter()
        correct = sum(verdict.correct for verdict in verifier.verify(items))
        seconds = time.perf_counter() - begin
    return (
        f"{task.name:12} {len(items) / seconds:6.1f} programs/s  ({correct} of {len(items)} correct, {workers} workers)"
    )


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    print(f"load average {os.getloadavg()[0]:.1f}")
    for each in (MicroCodeTask(), HumanEvalTask()):
        print(measure(each, count), flush=True)
