"""Print the tables of micro_code from the summaries beside this file: python results/micro_code/table.py"""

import json
from pathlib import Path

from scipy import stats

HERE = Path(__file__).parent
ROWS = {"base": "base", "stage1": "Stage I", "score": "SCoRe"}
COLUMNS = {"acc_t1": "Acc@t1", "acc_t2": "Acc@t2", "delta": "delta", "i_to_c": "i->c", "c_to_i": "c->i"}
SWAP = "t2 after another problem's draft"


def cell(values):
    """Mean of the seeds in per cent, with its 95 % t-interval."""
    half = stats.sem(values) * stats.t.ppf(0.975, len(values) - 1)
    return f"{100 * sum(values) / len(values):.1f} ± {100 * half:.1f}"


def means(results):
    print(f"Greedy, mean ± 95 % t-interval over seeds {', '.join(results)}, in %:\n")
    print("| | " + " | ".join([*COLUMNS.values(), SWAP]) + " |\n" + "|---" * (len(COLUMNS) + 2) + "|")
    for row, title in ROWS.items():
        several = [result[row] for result in results.values()]
        cells = [cell([r[key] for r in several]) for key in COLUMNS] + [cell([swapped(r) for r in several])]
        print(f"| {title} | " + " | ".join(cells) + " |")
    gains = [result["score"]["delta"] - result["base"]["delta"] for result in results.values()]
    print(f"\ndelta of SCoRe less that of the base, in points: {cell(gains)}\n")


def swapped(result):
    """The accuracy of second attempts that saw the draft of another problem."""
    return result["controls"]["draft_swap"]["acc_t2_swapped"]


def main():
    results = {path.stem[5:]: json.loads(path.read_text())["results"] for path in sorted(HERE.glob("seed-*.json"))}
    means(results)
    print(f"| seed | model | Acc@t1 | Acc@t2 | delta and its paired 95 % interval | i->c | c->i | {SWAP} |")
    print("|---" * 8 + "|")
    for seed, result in results.items():
        for row, title in ROWS.items():
            r = result[row]
            low, high = r["delta_ci95"]
            print(
                f"| {seed} | {title} | {100 * r['acc_t1']:.1f} | {100 * r['acc_t2']:.1f} "
                f"| {100 * r['delta']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] "
                f"| {100 * r['i_to_c']:.1f} | {100 * r['c_to_i']:.1f} | {100 * swapped(r):.1f} |"
            )


if __name__ == "__main__":
    main()
