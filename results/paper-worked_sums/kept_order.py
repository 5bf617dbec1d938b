"""How corrections are made: python results/paper-worked_sums/kept_order.py [ROW...]

Of the kept greedy episodes of all seeds whose second attempt corrects the first, how many add the numbers in the first one's
order; and, from the summaries, in how many of all episodes the answer changed, and the mean edit-distance ratio of the texts.
"""

import json
import statistics
import sys
from pathlib import Path

from selfcorrect.storage.episode_log import read_episodes
from selfcorrect.types import Outcome

HERE = Path(__file__).parent


def order(text):
    return [step.split("=")[0] for step in text.split("+")]


def main(rows):
    known = sorted(card.parent.name for card in HERE.glob("*/method.json"))
    if unknown := sorted({*rows} - {*known}):
        sys.exit(f"there is no row {unknown[0]!r}; there are {', '.join(known)}")
    for row in rows or known:
        runs = sorted(HERE.glob(f"{row}/seed-*"))
        files = [file for run in runs for file in run.glob("episodes/*.gz")]
        attempts = [episode.graded() for file in files for episode in read_episodes(file.with_suffix(""))]
        corrected = [a for a in attempts if (a[0].outcome, a[1].outcome) == (Outcome.INCORRECT, Outcome.CORRECT)]
        kept = sum(order(a[0].text) == order(a[1].text) for a in corrected)
        results = [list(json.loads((run / "summary.json").read_text())["results"].values())[-1] for run in runs]
        changed, distance = (
            statistics.mean(result[name] for result in results)
            for name in ("answer_change_rate", "edit_distance_ratio_mean")
        )
        print(f"{row:14} order kept in {kept} of {len(corrected)}; changed {changed:.1%}, distance {distance:.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
