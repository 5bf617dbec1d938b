"""Print the main table of a comparison in Markdown: python results/comparison.py results/paper

A line for each method's last model, greedy: both attempts, delta, both controls, and the difference of Acc@t2 from SCoRe's;
the figures, intervals and p-values are the report's (`selfcorrect report DIR --tables markdown` has all of them).
"""

import argparse
from pathlib import Path

from selfcorrect.report.html import read_report
from selfcorrect.report.tables import CONTROLS, cell_of, result_tables

HEAD = ["", "Acc@t1", "Acc@t2", "delta", "c→i", *CONTROLS.values(), "Acc@t2 less SCoRe's"]
LEFT_OUT = ("c→i", CONTROLS["independent_resample"])


def lines(rows):
    differences = next((table for table in result_tables(rows.rows) if table.id == "differences"), None)
    found = {row.label: row.cells[1] for row in differences.rows} if differences else {}
    for row in rows.finals:
        cells = [cell_of(row.estimate(f), signed=f == "delta") for f in ("acc_t1", "acc_t2", "delta", "c_to_i")]
        cells += [cell_of(row.control(kind), signed=True) for kind in CONTROLS]
        yield [row.label, *(cell.text for cell in cells), found[row.label].text if row.label in found else ""]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--short", action="store_true", help="the README's columns only")
    given = parser.parse_args()
    columns = [i for i, name in enumerate(HEAD) if not given.short or name not in LEFT_OUT]
    table = [HEAD, ["---"] * len(HEAD), *lines(read_report([given.directory]).rows)]
    print("\n".join("| " + " | ".join(line[i] for i in columns) + " |" for line in table))


if __name__ == "__main__":
    main()
