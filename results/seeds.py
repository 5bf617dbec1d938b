"""Print the tables of runs that differ in their seed, the models on the way too: python results/seeds.py results/demo

Reads NAME-S.json, the `summary.json` of seed S (--name shuffled-seed reads another set), or else packed runs. The tables are
those of `selfcorrect report`.
"""

import argparse
import json
import re
from pathlib import Path

from selfcorrect.report.methods import Method
from selfcorrect.report.rows import all_rows
from selfcorrect.report.sources import Run, read_sources
from selfcorrect.report.table_text import table_markdown
from selfcorrect.report.tables import result_tables, seed_table


def summary(path, seed):
    """The run of a summary: its seed and results, and no settings."""
    found = json.loads(path.read_text())
    stages = dict.fromkeys(name for name in found["results"] if name != "base")
    return Run(path, {"seed": seed, "stages": stages}, "", [], found["results"], found["provenance"]["model_digests"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--name", default="seed")
    given = parser.parse_args()
    seeds = {
        int(m[1]): p for p in given.directory.iterdir() if (m := re.fullmatch(rf"{given.name}-(\d+)\.json", p.name))
    }
    runs = [summary(seeds[seed], seed) for seed in sorted(seeds)] or read_sources([given.directory])[0]
    rows = all_rows([Method("SCoRe", runs, [], None)], []).rows
    print("\n\n".join(table_markdown(table, minor=True) for table in [*result_tables(rows), seed_table(rows)]))


if __name__ == "__main__":
    main()
