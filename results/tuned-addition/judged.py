"""Judge the tuned rows by the protocol, from packed runs: python results/tuned-addition/judged.py

For each row of two attempts, with 95% t-intervals over the seeds that both rows have: H and M1 against single-turn RL, and the
difference from SCoRe in either attempt.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from scipy import stats

from selfcorrect.report.statistics import t_estimate


def accuracies(directory):
    """Acc@t1 and Acc@t2 of the last model in %, by row and seed."""
    found = {}
    for path in sorted(directory.glob("*/seed-*/summary.json")):
        results = json.loads(path.read_text())["results"]
        last = results[list(results)[-1]]
        row, seed = path.parts[-3:-1]
        found.setdefault(row, {})[seed] = np.array([100 * last["acc_t1"], 100 * last["acc_t2"]])
    return found


def interval(differences):
    """Mean, half of the t-interval, and the p-value of a mean of 0."""
    found = t_estimate(differences)
    return f"{found.mean:+.1f} ± {found.high - found.mean:.1f} (p = {stats.ttest_1samp(differences, 0).pvalue:.2g})"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, nargs="?", default=Path(__file__).parent)
    found = accuracies(parser.parse_args().directory)
    single, score = found["single-turn"], found["score"]
    for row, seeds in found.items():
        shown = "  ".join(f"{t1:.1f} / {t2:.1f}" for t1, t2 in seeds.values())
        print(f"{row:16} {shown}  mean {' / '.join(f'{x:.1f}' for x in np.mean(list(seeds.values()), 0))}")
        if row in ("base", "single-turn"):
            continue
        against = [s for s in seeds if s in single]
        print(f"{'':16} H  {interval([single[s][0] - seeds[s][0] for s in against])}")
        print(f"{'':16} M1 {interval([seeds[s][1] - single[s][0] for s in against])}")
        if row != "score":
            for attempt in (0, 1):
                less = [seeds[s][attempt] - score[s][attempt] for s in seeds if s in score]
                print(f"{'':16} Acc@t{attempt + 1} less SCoRe's {interval(less)}")


if __name__ == "__main__":
    main()
