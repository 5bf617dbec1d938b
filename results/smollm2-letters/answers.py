"""What the attempts of run-seed-0 say: python results/smollm2-letters/answers.py"""

import gzip
import json
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent / "run-seed-0"
STAGES = ("base", "stage1", "score")


def quoted(text):
    """The first thing in double quotes: the letter that is counted."""
    return [*text.split('"'), ""][1]


def main():
    print("| | answers t1 -> t2, most frequent | same answer twice | t1, t2 count the letter that was asked for |")
    print("|---|---|---|---|")
    for stage in STAGES:
        with gzip.open(HERE / f"eval-{stage}-attempts.jsonl.gz", "rt", encoding="utf-8") as file:
            records = [json.loads(line) for line in file]
        answers = [tuple(turn["extracted"] or "none" for turn in record["turns"]) for record in records]
        pairs = ", ".join(f"{one} -> {two}: {count}" for (one, two), count in Counter(answers).most_common(4))
        same = sum(one == two for one, two in answers) / len(records)
        asked = [
            sum(quoted(record["turns"][k]["text"]) == quoted(record["prompt"]) for record in records) / len(records)
            for k in (0, 1)
        ]
        print(f"| {stage} | {pairs} | {100 * same:.0f} % | {100 * asked[0]:.0f} %, {100 * asked[1]:.0f} % |")
    always = Counter(record["reference"] for record in records).most_common(1)[0]
    print(f"\nThe answer {always[0]} is right in {always[1]} of these {len(records)} problems.")


if __name__ == "__main__":
    main()
