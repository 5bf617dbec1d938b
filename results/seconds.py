"""How long a comparison took: python results/seconds.py results/paper

Seconds of a worker for each seed: of all steps and of all evaluations, from the runs' summaries. Stages that rows share are
counted in each of them, so it took less.
"""

import json
import sys
from collections import Counter
from pathlib import Path


def main(folder):
    steps, evaluations = Counter(), Counter()
    for file in sorted(folder.glob("**/seed-*/summary.json")):
        kind = "further" if "further" in file.parts else file.parent.name
        seconds = json.loads(file.read_text())["seconds"]
        steps[kind] += sum(seconds.get("steps", {}).values())
        evaluations[kind] += sum(took for name, took in seconds.items() if name.startswith("evaluate"))
    for kind in evaluations:
        print(f"{kind}: steps {steps[kind]:,.0f} s, evaluations {evaluations[kind]:,.0f} s")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
