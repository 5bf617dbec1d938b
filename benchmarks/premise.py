"""Measure on the base alone whether a task suits self-correction: `python -m benchmarks.premise CONFIG...`.

For each configuration, on its development problems, greedy and at the training temperature: the accuracy of both attempts and
the fraction of second attempts that copy the first; then, at the training temperature,

- correct: the mean number of distinct correct first attempts among a problem's samples;
- repaired: the fraction of second attempts behind an incorrect draft that are correct, of all and of the changed ones;
- out of reach: the fraction of problems without a correct first attempt among their samples, and the fraction of these with a
  correct second attempt.

Nothing is trained. For instance

    python -m benchmarks.premise demo micro_code worked_sums
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from selfcorrect import evaluate, load_config
from selfcorrect.config.schema import Config
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.storage.episode_log import StoredEpisode
from selfcorrect.zoo.resolve import find_model

PROBLEMS, SAMPLES = 500, 16


def main(names: Sequence[str]) -> None:
    """Print a line per configuration."""
    print(f"n = {PROBLEMS} development problems, {SAMPLES} samples each. All but `correct` in %")
    print(
        f"{'':20}  greedy t1 / t2  copies   T = 1 t1 / t2  copies  correct  repaired of all / changed  out of reach / repaired"
    )
    for name in names:
        config = load_config(name)
        print(f"{name:20}  {measured(find_model(config.model, seed=config.seed), config)}")


def measured(model: LanguageModel, config: Config) -> str:
    """Return a model's line of the table."""
    common: dict[str, Any] = {
        "task_options": config.task.options,
        "split": "dev",
        "limit": PROBLEMS,
        "data_seed": config.task.data_seed,
        "max_tokens": config.rollout.max_tokens,
        "max_num_seqs": config.rollout.max_num_seqs,
    }
    greedy = evaluate(model, config.task.name, **common).episodes
    sampled = evaluate(
        model, config.task.name, temperature=config.rollout.temperature, samples=SAMPLES, **common
    ).episodes
    return (
        f"{percent(correct(greedy, 0)):9} / {percent(correct(greedy, 1))} {percent(copies(greedy)):>7}"
        f"  {percent(correct(sampled, 0)):>7} / {percent(correct(sampled, 1))} {percent(copies(sampled)):>7}"
        f"  {distinct_correct(sampled):7.1f}  {' / '.join(map(percent, repaired(sampled))):>25}"
        f"  {' / '.join(map(percent, out_of_reach(sampled))):>23}"
    )


def percent(fraction: float) -> str:
    """Return a fraction in %; a fraction of nothing is a dash."""
    return "-" if np.isnan(fraction) else f"{100 * fraction:.1f}"


def fraction(flags: Iterable[bool]) -> float:
    """Return the fraction of flags that are set; NaN without flags."""
    found = list(flags)
    return float(np.mean(found)) if found else float("nan")


def correct(episodes: Sequence[StoredEpisode], turn: int) -> float:
    """Return the accuracy of an attempt."""
    return fraction(e.attempts[turn].judged.correct for e in episodes)


def copied(episode: StoredEpisode) -> bool:
    """Return whether the second attempt equals the first."""
    return episode.attempts[0].text == episode.attempts[1].text


def copies(episodes: Sequence[StoredEpisode]) -> float:
    """Return the fraction of second attempts that equal the first."""
    return fraction(map(copied, episodes))


def repaired(episodes: Sequence[StoredEpisode]) -> tuple[float, float]:
    """Return the fraction of second attempts behind an incorrect draft that are correct, of all and of the changed ones."""
    wrong = [e for e in episodes if not e.attempts[0].judged.correct]
    return correct(wrong, 1), correct([e for e in wrong if not copied(e)], 1)


def out_of_reach(episodes: Sequence[StoredEpisode]) -> tuple[float, float]:
    """Return the fraction of problems without a correct first attempt, and of these with a correct second one."""
    problems = by_problem(episodes)
    never = [some for some in problems if not correct(some, 0)]
    return len(never) / len(problems), fraction(correct(some, 1) > 0 for some in never)


def distinct_correct(episodes: Sequence[StoredEpisode]) -> float:
    """Return the mean number of distinct correct first attempts per problem."""
    firsts = [[e.attempts[0] for e in some] for some in by_problem(episodes)]
    return float(np.mean([len({a.text for a in some if a.judged.correct}) for some in firsts]))


def by_problem(episodes: Sequence[StoredEpisode]) -> list[list[StoredEpisode]]:
    """Return every problem's episodes."""
    found = defaultdict(list)
    for episode in episodes:
        found[episode.problem_id].append(episode)
    return list(found.values())


if __name__ == "__main__":
    main(sys.argv[1:])
