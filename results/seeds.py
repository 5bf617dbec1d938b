"""Print the tables of runs that differ in their seed: python results/seeds.py results/micro_code

Reads summaries seed-S.json, or packed runs seed-S/.
"""

import argparse
import json
from pathlib import Path

from scipy import stats

ROWS = {"base": "base", "stage1": "Stage I", "score": "SCoRe"}
COLUMNS = {"acc_t1": "Acc@t1", "acc_t2": "Acc@t2", "delta": "delta", "i_to_c": "i->c", "c_to_i": "c->i"}
SWAP = "t2 after another problem's draft"


def mean(values):
    """Mean of the seeds in per cent, with its 95 % t-interval; of the base, which is one model, its one value."""
    if len(set(values)) == 1:
        return f"{100 * values[0]:.1f}"
    half = stats.sem(values) * stats.t.ppf(0.975, len(values) - 1)
    return f"{100 * sum(values) / len(values):.1f} ± {100 * half:.1f}"


def swapped(result):
    """The accuracy of second attempts that saw the draft of another problem, where it was measured."""
    return [result["controls"]["draft_swap"]["acc_t2_swapped"]] if result.get("controls") else []


def table(head, rows):
    return "\n".join(
        ["| " + " | ".join(head) + " |", "|---" * len(head) + "|", *(f"| {' | '.join(r)} |" for r in rows)]
    )


def means(results, controls):
    rows = []
    for row, title in ROWS.items():
        several = [result[row] for result in results.values()]
        cells = [mean([r[key] for r in several]) for key in COLUMNS]
        rows.append([title, *cells, *([mean([s for r in several for s in swapped(r)])] if controls else [])])
    return table(["", *COLUMNS.values(), *controls], rows)


def each(results, controls):
    rows = []
    for seed, result in results.items():
        for row, title in ROWS.items():
            r = result[row]
            low, high = r["delta_ci95"]
            delta = f"{100 * r['delta']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
            shares = [f"{100 * r[key]:.1f}" for key in COLUMNS if key != "delta"] + [
                f"{100 * s:.1f}" for s in swapped(r)
            ]
            rows.append([seed, title, *shares[:2], delta, *shares[2:]])
    return table(
        ["seed", "model", "Acc@t1", "Acc@t2", "delta and its paired 95 % interval", "i->c", "c->i", *controls], rows
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    place = parser.parse_args().directory
    paths = {p.stem[5:]: p for p in place.glob("seed-*.json")} or {
        p.parent.name[5:]: p for p in place.glob("seed-*/summary.json")
    }
    results = {seed: json.loads(paths[seed].read_text())["results"] for seed in sorted(paths)}
    first = next(iter(results.values()))["base"]
    controls = [SWAP] if swapped(first) else []
    print(f"Greedy, n = {first['n']}, mean ± 95 % t-interval over seeds {', '.join(results)}, in %:\n")
    print(means(results, controls))
    gains = [result["score"]["delta"] - result["base"]["delta"] for result in results.values()]
    print(f"\ndelta of SCoRe less that of the base, in points: {mean(gains)}\n")
    print(each(results, controls))


if __name__ == "__main__":
    main()
