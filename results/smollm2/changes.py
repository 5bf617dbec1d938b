"""How second attempts differ from first ones, over the stored episodes of all seeds: python results/smollm2/changes.py"""

import re
from pathlib import Path

from selfcorrect.evaluation.metrics import flip
from selfcorrect.storage.episode_log import read_episodes
from selfcorrect.types import Flip

HERE = Path(__file__).parent
STAGES = {"base": "base", "stage1": "Stage I", "score": "SCoRe"}


def form(episode, turn):
    """Whether an attempt is the equation that was asked for, another text with a number, or holds no number."""
    left, attempt = episode.prompt.removesuffix("?"), episode.graded()[turn]
    if re.fullmatch(re.escape(left) + r"-?\d+\.?\s*(The)?\s*", attempt.text):
        return "equation"
    return "other" if attempt.extracted else "none"


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
            episodes += read_episodes(path.with_suffix(""))
        equations = " / ".join(share(episodes, lambda e, k=k: form(e, k) == "equation") for k in (0, 1))
        corrected = [flip(e.graded()) is Flip.I2C for e in episodes]
        already = [c and form(e, 0) == "equation" for c, e in zip(corrected, episodes, strict=True)]
        late = [c and form(e, 0) != "equation" for c, e in zip(corrected, episodes, strict=True)]
        print(
            f"| {title} | {equations} | {100 * sum(already) / len(episodes):.0f} | {100 * sum(late) / len(episodes):.0f} |"
        )


if __name__ == "__main__":
    main()
