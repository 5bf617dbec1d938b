"""Draw the comparison of packed runs: python results/picture.py results/paper results/paper/attempts.svg

Both attempts of every method's last model, greedy, with 95 % intervals; the figures are the report's.
"""

import argparse
from pathlib import Path

from matplotlib.figure import Figure

from selfcorrect.report.html import read_report

FIRST, SECOND, LINE = "#6b7280", "#0b62a8", "#b6bcc6"


def draw(rows, out):
    figure = Figure(figsize=(8.5, 0.36 * len(rows) + 1.1), layout="constrained")
    axes = figure.add_subplot()
    for place, row in enumerate(rows):
        one, two = row.estimate("acc_t1"), row.estimate("acc_t2")
        axes.plot([100 * one.mean, 100 * two.mean], [place, place], color=LINE, linewidth=2, zorder=1)
        for estimate, colour, face in ((one, FIRST, "white"), (two, SECOND, SECOND)):
            axes.plot([100 * estimate.low, 100 * estimate.high], [place, place], color=colour, linewidth=5, alpha=0.35)
            axes.scatter(100 * estimate.mean, place, color=colour, facecolor=face, zorder=3, s=30)
        right = 100 * max(one.high, two.high)
        axes.annotate(f"{100 * row.estimate('delta').mean:+.1f}", (right + 1, place), va="center", fontsize=8)
    axes.scatter([], [], color=FIRST, facecolor="white", label="first attempt")
    axes.scatter([], [], color=SECOND, label="second attempt (beside it delta, in points)")
    axes.set_yticks(range(len(rows)), [row.label for row in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(right=109)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("accuracy, %; bars: 95 % intervals")
    axes.grid(axis="x", color="#e5e7eb")
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper center", ncols=2, fontsize=8, frameon=False)
    figure.savefig(out, metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    rows = read_report([given.directory]).rows
    draw(rows.finals, given.out)


if __name__ == "__main__":
    main()
