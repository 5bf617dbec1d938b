"""How second attempts differ from first ones, over the stored episodes of all seeds: python results/smollm2/changes.py"""

import gzip
import json
import re
from pathlib import Path

HERE = Path(__file__).parent
STAGES = {"base": "base", "stage1": "Stage I", "score": "SCoRe"}


def form(episode, turn):
    """Whether an attempt is the equation that was asked for, another text with a number, or holds no number."""
    left = episode["prompt"].removesuffix("?")
    text = episode["turns"][turn]["text"]
    if re.fullmatch(re.escape(left) + r"-?\d+\.?\s*(The)?\s*", text):
        return "equation"
    return "other" if episode["turns"][turn]["extracted"] else "none"


def share(episodes, condition):
    return f"{100 * sum(map(condition, episodes)) / len(episodes):.0f}"


def main():
    print("In % of all episodes:\n")
    print(
        "| | writes the equation, t1 / t2 | corrected: another number in the equation | corrected: wrote the equation at last |"
    )
    print("|---|---|---|---|")
    for stage, title in STAGES.items():
        episodes = []
        for path in sorted(HERE.glob(f"seed-*/episodes/eval-{stage}-attempts.jsonl.gz")):
            with gzip.open(path, "rt", encoding="utf-8") as file:
                episodes += [json.loads(line) for line in file]
        equations = " / ".join(share(episodes, lambda e, k=k: form(e, k) == "equation") for k in (0, 1))
        corrected = [e["turns"][0]["verdict"] != "right" and e["turns"][1]["verdict"] == "right" for e in episodes]
        already = [c and form(e, 0) == "equation" for c, e in zip(corrected, episodes, strict=True)]
        late = [c and form(e, 0) != "equation" for c, e in zip(corrected, episodes, strict=True)]
        print(
            f"| {title} | {equations} | {100 * sum(already) / len(episodes):.0f} | {100 * sum(late) / len(episodes):.0f} |"
        )


if __name__ == "__main__":
    main()
