"""Drafts that say nothing of their problem, for the blind second attempts of the controls."""

from __future__ import annotations

import numpy as np

from selfcorrect.reasoning import final_part
from selfcorrect.rng import generator


def shuffled_draft(text: str, *, seed: int, problem_id: str, sample: int) -> str:
    """Return a first attempt with its words in the order that belongs to this sample of this problem."""
    return shuffled_words(text, generator(seed, "eval/shuffled draft", problem_id, sample))


def shuffled_words(text: str, rng: np.random.Generator) -> str:
    """Return the answer's words in a random order; a single word, or words that are all the same, as shuffled characters.

    Reasoning before the answer is left out. The shuffled text may be the same if it is short.

    >>> sorted(shuffled_words("the sum is 7", np.random.default_rng(0)).split())
    ['7', 'is', 'sum', 'the']
    >>> shuffled_words("0076901", np.random.default_rng(0))
    '7961000'
    """
    words = (final_part(text) or "").split()
    if len(set(words)) > 1:
        return " ".join(words[i] for i in rng.permutation(len(words)))
    joined = " ".join(words)
    return "".join(joined[i] for i in rng.permutation(len(joined)))
