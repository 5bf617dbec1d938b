"""What a run changed over its base, paired by problem: python results/demo/gain.py RUN

Differences and intervals are those of `selfcorrect compare`.
"""

import sys
from pathlib import Path

from selfcorrect.evaluation.compare import compare_records
from selfcorrect.storage.episode_log import episodes_file, read_episodes


def main(run):
    base, score = (read_episodes(episodes_file(Path(run), stage=name)) for name in ("base", "score"))
    n, _, differences = compare_records(base, score, seed=0)
    for found in differences:
        change, low, high = (100 * value for value in (found.difference, *found.ci95))
        print(f"{found.figure}: {change:+.1f} [{low:+.1f}, {high:+.1f}] points, n = {n}")


if __name__ == "__main__":
    main(sys.argv[1])
