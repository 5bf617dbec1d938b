"""What is wrong with Pair-SFT's first attempts: python results/paper/first_digit.py

Of the kept greedy episodes of all seeds, how many first attempts get the first digit of the sum wrong, and how many of these
get nothing else wrong.
"""

from pathlib import Path

from selfcorrect.storage.episode_log import read_episodes

HERE = Path(__file__).parent


def main():
    for row in ("pair-sft", "pair-sft+"):
        files = sorted(HERE.glob(f"{row}/seed-*/episodes/*.gz"))
        episodes = [episode for file in files for episode in read_episodes(file.with_suffix(""))]
        pairs = [(episode.graded()[0].extracted or "", episode.reference) for episode in episodes]
        first = [(answer, right) for answer, right in pairs if answer[:1] != right[:1]]
        alone = sum(answer[1:] == right[1:] for answer, right in first)
        print(f"{row}: first digit wrong in {len(first)} of {len(pairs)}, and nothing else in {alone}")


if __name__ == "__main__":
    main()
