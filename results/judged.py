"""Judge a comparison by its protocol, from its runs: python results/judged.py DIRECTORY [--controls EVALUATIONS]

For each row of two attempts, with 95% t-intervals over the seeds: H and M1 against single-turn RL, the differences from SCoRe and
from the base in either attempt, delta, the draft swap, how i->c and c->i differ from the base's, and Youden's J. EVALUATIONS
holds evaluations of the rows' last models with all blind drafts, as ROW/seed-N (`selfcorrect eval --controls`); from them comes
the least repair of a seed over its blind drafts. What a row or its evaluations lack is left out.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from scipy import stats

from selfcorrect.report.statistics import t_estimate

STATED = {
    "delta": lambda last, base: last["delta"],
    "Acc@t1 less the base's": lambda last, base: last["acc_t1"] - base["acc_t1"],
    "Acc@t2 less the base's": lambda last, base: last["acc_t2"] - base["acc_t2"],
    "swap": lambda last, base: last["controls"]["draft_swap"]["difference"],
    "i->c less the base's": lambda last, base: last["i_to_c"] - base["i_to_c"],
    "c->i less the base's": lambda last, base: last["c_to_i"] - base["c_to_i"],
    "J": lambda last, base: last["decomposition"]["detection"]["youden"],
}


def summaries(directory):
    """The results of the last model and of the base, by row and seed."""
    found = {}
    for path in sorted(directory.glob("*/seed-*/summary.json")):
        results = json.loads(path.read_text())["results"]
        row, seed = path.parts[-3:-1]
        found.setdefault(row, {})[seed] = (results[list(results)[-1]], results.get("base"))
    return found


def accuracies(seeds):
    """Acc@t1 and Acc@t2 in %, by seed."""
    return {seed: np.array([100 * last["acc_t1"], 100 * last["acc_t2"]]) for seed, (last, _) in seeds.items()}


def least_repair(last):
    """The least repair over the blind drafts."""
    return min(blind["repair"] for blind in last["decomposition"]["blind"].values())


def interval(differences):
    """Mean, half of the t-interval, and the p-value of a mean of 0; of fewer than two seeds their mean alone."""
    if len(differences) < 2:
        return f"{np.mean(differences):+.1f} (one seed)" if differences else "no seed"
    found = t_estimate(differences)
    return f"{found.mean:+.1f} ± {found.high - found.mean:.1f} (p = {stats.ttest_1samp(differences, 0).pvalue:.2g})"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--controls", type=Path)
    given = parser.parse_args()
    found = summaries(given.directory)
    controlled = summaries(given.controls) if given.controls else {}
    by_row = {row: accuracies(seeds) for row, seeds in found.items()}
    single, score = by_row.get("single-turn", {}), by_row.get("score", {})

    def tell(name, differences):
        print(f"{'':16} {name} {interval(differences)}")

    for row, seeds in by_row.items():
        shown = "  ".join(f"{t1:.1f} / {t2:.1f}" for t1, t2 in seeds.values())
        print(f"{row:16} {shown}  mean {' / '.join(f'{x:.1f}' for x in np.mean(list(seeds.values()), 0))}")
        if row in ("base", "single-turn"):
            continue
        against = [seed for seed in seeds if seed in single]
        tell("H ", [single[seed][0] - seeds[seed][0] for seed in against])
        tell("M1", [seeds[seed][1] - single[seed][0] for seed in against])
        for attempt in (0, 1) if row != "score" else ():
            less = [seeds[seed][attempt] - score[seed][attempt] for seed in seeds if seed in score]
            tell(f"Acc@t{attempt + 1} less SCoRe's", less)
        for name, stated in STATED.items():
            tell(name, [100 * stated(last, base) for last, base in found[row].values() if base])
        if row in controlled:
            tell("least repair", [100 * least_repair(last) for last, _ in controlled[row].values()])


if __name__ == "__main__":
    main()
