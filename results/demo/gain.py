"""What a run changed over its base, paired by problem, with normal 95 % intervals: python results/demo/gain.py RUN"""

import json
import sys
from math import sqrt
from pathlib import Path
from statistics import mean, stdev


def attempts(path):
    """Whether each attempt at each problem was right."""
    records = map(json.loads, path.read_text().splitlines())
    return {record["problem_id"]: [turn["verdict"] == "right" for turn in record["turns"]] for record in records}


def main(run):
    base, score = (attempts(Path(run, "episodes", f"eval-{name}-attempts.jsonl")) for name in ("base", "score"))
    figures = {"Acc@t1": lambda t: t[0], "Acc@t2": lambda t: t[1], "delta": lambda t: t[1] - t[0]}
    for name, figure in figures.items():
        changes = [figure(score[problem]) - figure(turns) for problem, turns in base.items()]
        gain, half = mean(changes), 1.96 * stdev(changes) / sqrt(len(changes))
        print(
            f"{name}: {100 * gain:+.1f} [{100 * (gain - half):+.1f}, {100 * (gain + half):+.1f}] points, n = {len(changes)}"
        )


if __name__ == "__main__":
    main(sys.argv[1])
