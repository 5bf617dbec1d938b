"""Measure on the base alone whether a task suits self-correction: `python -m benchmarks.premise CONFIG...`.

For each configuration, on its development problems, it prints the accuracy of both attempts, greedy and at the training
temperature, the fraction of second attempts that copy the first, and the number of distinct correct completions among a
problem's samples. Nothing is trained. For instance

    python -m benchmarks.premise demo micro_code worked_sums
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from selfcorrect import evaluate, load_config
from selfcorrect.storage.episode_log import StoredEpisode
from selfcorrect.zoo.resolve import find_model

PROBLEMS, SAMPLES = 500, 16


def main(names: Sequence[str]) -> None:
    """Print a line per configuration."""
    print(
        f"n = {PROBLEMS} development problems, {SAMPLES} samples each. Values are %; the last two columns: means per problem"
    )
    print(
        "configuration         greedy t1 / t2   copies   sampled t1 / t2   copies   tokens   distinct correct completions"
    )
    for name in names:
        config = load_config(name)
        common: dict[str, Any] = {
            "task_options": config.task.options,
            "split": "dev",
            "limit": PROBLEMS,
            "data_seed": config.task.data_seed,
            "max_tokens": config.rollout.max_tokens,
            "max_num_seqs": config.rollout.max_num_seqs,
        }
        model = find_model(config.model, seed=config.seed)
        greedy = evaluate(model, config.task.name, **common)
        sampled = evaluate(model, config.task.name, temperature=config.rollout.temperature, samples=SAMPLES, **common)
        one, many = greedy.to_json(), sampled.to_json()
        print(
            f"{name:20} {100 * one['acc_t1']:8.1f} / {100 * one['acc_t2']:4.1f} {100 * copies(greedy.episodes):8.0f}"
            f" {100 * many['acc_t1']:12.1f} / {100 * many['acc_t2']:4.1f} {100 * copies(sampled.episodes):8.0f}"
            f" {one['lengths'][0]['mean']:8.1f}"
            f" {distinct_correct(sampled.episodes):8.1f}"
        )


def copies(episodes: Sequence[StoredEpisode]) -> float:
    """Return the fraction of second attempts that equal the first."""
    return float(np.mean([e.attempts[0].text == e.attempts[1].text for e in episodes]))


def distinct_correct(episodes: Sequence[StoredEpisode]) -> float:
    """Return the mean number of distinct correct first attempts per problem."""
    by_problem: dict[str, set[str]] = {}
    for episode in episodes:
        texts = by_problem.setdefault(episode.problem_id, set())
        first = episode.attempts[0]
        if first.judged.correct:
            texts.add(first.text)
    return float(np.mean([len(texts) for texts in by_problem.values()]))


if __name__ == "__main__":
    main(sys.argv[1:])
