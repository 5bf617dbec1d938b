"""Print how a run's samples change as it learns: python results/curves.py RUN [--every 10] [METRIC ...]

RUN is a run's directory, or a packed one's. Each line is the mean of the metrics over so many steps; docs/runs.md describes them.
"""

import argparse
from itertools import groupby
from pathlib import Path
from statistics import mean

from selfcorrect.storage.run_dir import read_metrics

METRICS = ["r1", "r2", "i_to_c", "c_to_i", "answer_change_rate", "kl_base_t2"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("metrics", nargs="*", default=METRICS)
    parser.add_argument("--every", type=int, default=10)
    arguments = parser.parse_args()
    print("| stage | steps |", *(f"{name} |" for name in arguments.metrics))
    print("| --- | --- |", *("--- |" for _ in arguments.metrics))
    steps = read_metrics(arguments.run / "metrics.jsonl")
    for (stage, _), lines in groupby(steps, lambda line: (line["stage"], (line["step"] - 1) // arguments.every)):
        some = list(lines)
        values = (f"{mean(line[name] for line in some):.3f} |" for name in arguments.metrics)
        print(f"| {stage} | {some[0]['step']} to {some[-1]['step']} |", *values)


if __name__ == "__main__":
    main()
