"""Print the README's table from the summaries beside this file: python results/demo/table.py"""

import json
from pathlib import Path

from scipy import stats

HERE = Path(__file__).parent
ROWS = {"base": "base", "stage1": "Stage I", "score": "SCoRe"}
COLUMNS = {"acc_t1": "Acc@t1", "acc_t2": "Acc@t2", "delta": "delta", "i_to_c": "i->c", "c_to_i": "c->i"}


def cell(values):
    """Mean of the seeds in per cent, with its 95 % t-interval."""
    mean = sum(values) / len(values)
    half = stats.sem(values) * stats.t.ppf(0.975, len(values) - 1)
    return f"{100 * mean:.1f} ± {100 * half:.1f}"


def table(results):
    lines = ["| | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for row, title in ROWS.items():
        cells = [cell([result[row][key] for result in results]) for key in COLUMNS]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    results = [json.loads(path.read_text())["results"] for path in sorted(HERE.glob("seed-*.json"))]
    for result in results:
        for r in [*result.values(), *(r["sampled"] for r in result.values())]:
            assert abs(r["delta"] - (r["i_to_c"] - r["c_to_i"])) < 1e-12
    n = results[0]["base"]["n"]
    print(f"Greedy, n = {n} problems, mean ± 95 % t-interval over {len(results)} seeds, in %:\n\n{table(results)}\n")
    print(f"At T = 1:\n\n{table([{row: r['sampled'] for row, r in result.items()} for result in results])}\n")
    print("Per seed, greedy (delta with its paired 95 % interval; t2 of SCoRe with another problem's draft):\n")
    print(
        "| seed | base t1 / t2 | SCoRe t1 / t2 | delta | c->i | t2, swapped draft: base, SCoRe |\n|---|---|---|---|---|---|"
    )
    for path, result in zip(sorted(HERE.glob("seed-*.json")), results, strict=True):
        base, score = result["base"], result["score"]
        low, high = score["delta_ci95"]
        swaps = ", ".join(f"{100 * r['controls']['draft_swap']['difference']:+.1f}" for r in (base, score))
        print(
            f"| {path.stem[5:]} | {100 * base['acc_t1']:.1f} / {100 * base['acc_t2']:.1f} "
            f"| {100 * score['acc_t1']:.1f} / {100 * score['acc_t2']:.1f} "
            f"| {100 * score['delta']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] | {100 * score['c_to_i']:.1f} | {swaps} |"
        )
    print("\nTraining verdicts shuffled, greedy, in %; the gain is Acc@t2 less the base's:\n")
    print("| seed | base t1 / t2 | SCoRe t1 / t2 | gain of t2 |\n|---|---|---|---|")
    gains = []
    for path in sorted(HERE.glob("shuffled-seed-*.json")):
        result = json.loads(path.read_text())["results"]
        base, score = result["base"], result["score"]
        gains.append({key: score[key] - base[key] for key in ("acc_t1", "acc_t2", "delta")})
        print(
            f"| {path.stem.rpartition('-')[2]} | {100 * base['acc_t1']:.1f} / {100 * base['acc_t2']:.1f} "
            f"| {100 * score['acc_t1']:.1f} / {100 * score['acc_t2']:.1f} | {100 * (score['acc_t2'] - base['acc_t2']):+.1f} |"
        )
    means = ", ".join(f"{COLUMNS[key]} {cell([gain[key] for gain in gains])}" for key in gains[0])
    print(f"\nMean gain ± 95 % t-interval over these {len(gains)} seeds: {means}")


if __name__ == "__main__":
    main()
