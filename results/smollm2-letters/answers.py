"""What the attempts of run-seed-0 say: python results/smollm2-letters/answers.py"""

from collections import Counter
from pathlib import Path

from selfcorrect.storage.episode_log import read_episodes

HERE = Path(__file__).parent / "run-seed-0"
STAGES = ("base", "stage1", "score")


def quoted(text):
    """The first thing in double quotes: the letter that is counted."""
    return [*text.split('"'), ""][1]


def main():
    print("| | answers t1 -> t2, most frequent | same answer twice | t1, t2 count the letter that was asked for |")
    print("|---|---|---|---|")
    for stage in STAGES:
        episodes = list(read_episodes(HERE / f"eval-{stage}-attempts.jsonl"))
        answers = [tuple(attempt.extracted or "none" for attempt in episode.graded()) for episode in episodes]
        pairs = ", ".join(f"{one} -> {two}: {count}" for (one, two), count in Counter(answers).most_common(4))
        same = sum(one == two for one, two in answers) / len(episodes)
        asked = [
            sum(quoted(episode.attempts[k].text) == quoted(episode.prompt) for episode in episodes) / len(episodes)
            for k in (0, 1)
        ]
        print(f"| {stage} | {pairs} | {100 * same:.0f} % | {100 * asked[0]:.0f} %, {100 * asked[1]:.0f} % |")
    always = Counter(episode.reference for episode in episodes).most_common(1)[0]
    print(f"\nThe answer {always[0]} is right in {always[1]} of these {len(episodes)} problems.")


if __name__ == "__main__":
    main()
