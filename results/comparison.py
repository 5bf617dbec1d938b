"""Print the main table of a comparison in Markdown: python results/comparison.py results/paper

A line for each method's last model, greedy: both attempts, delta, both controls, and the difference of Acc@t2 from SCoRe's;
the figures, intervals and p-values are the report's (`selfcorrect report DIR --tables markdown` has all of them).
"""

import argparse
from pathlib import Path

from selfcorrect.page.html import read_report
from selfcorrect.page.tables import CONTROLS, cell_of, result_tables

HEAD = ["", "Acc@t1", "Acc@t2", "delta", "c→i", *CONTROLS.values(), "Acc@t2 less SCoRe's"]


def joined(cell):
    return f"{cell.value} {cell.below}".strip()


def lines(rows):
    differences = next((table for table in result_tables(rows) if table.id == "differences"), None)
    found = {row.label: row.cells[1] for row in differences.rows} if differences else {}
    for row in rows:
        if not row.final:
            continue
        cells = [cell_of(row.estimate(f), signed=f == "delta") for f in ("acc_t1", "acc_t2", "delta", "c_to_i")]
        cells += [cell_of(row.control(kind), signed=True) for kind in CONTROLS]
        yield [row.label, *map(joined, cells), joined(found[row.label]) if row.label in found else ""]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    rows = read_report([parser.parse_args().directory]).rows.rows
    print("| " + " | ".join(HEAD) + " |\n" + "|---" * len(HEAD) + "|")
    print("\n".join("| " + " | ".join(line) + " |" for line in lines(rows)))


if __name__ == "__main__":
    main()
