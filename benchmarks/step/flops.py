"""Count the bytes that a step must read and the operations that it must do, from a model's shape and the lengths.

A matrix product counts 2 operations per multiply-add. Attention counts its two products over the context that each
token sees. Norms, rotations, softmax and sampling do not count, so they only lower the fraction reached. Nothing that
could be kept counts twice: a problem's prompt is read once for all its samples, in learning too; the second attempt
continues the first one's cache; nothing is padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ModelSize:
    """The sizes that the counts need: elements of the layers' matrices and of the head, and attention's shape."""

    layer_weights: int
    head_weights: int
    layers: int
    query_width: int
    cache_width: int
    """Elements that a token adds to the cache of one layer: keys and values."""
    item: int
    """Bytes of an element."""
    lora: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Counts:
    """Bytes to read and operations to do."""

    bytes: float
    flop: float

    def limit(self, bandwidth: float, rate: float) -> float:
        """Return the minimum seconds, set by the bottleneck. ``bandwidth`` in bytes/s, ``rate`` in operations/s."""
        return max(self.bytes / bandwidth, self.flop / rate)

    def binds(self, bandwidth: float, rate: float) -> str:
        return "arithmetic" if self.flop / rate >= self.bytes / bandwidth else "memory"


@dataclass(frozen=True, slots=True)
class EpisodeLengths:
    """Token counts of one episode."""

    prompt: int
    observation: int
    turns: tuple[int, int]

    @property
    def total(self) -> int:
        return self.prompt + self.observation + sum(self.turns)


def decoding(size: ModelSize, episodes: Sequence[EpisodeLengths], group: int) -> Counts:
    """Count both turns of all episodes in one batch; weights and the rows' caches are read once per token position."""
    weights = size.layer_weights + size.head_weights
    elements = flop = 0.0
    # Prompts, once per problem, and the first token's logits of each.
    for episode in episodes[::group]:
        flop += _read(size, 0, episode.prompt) + 2 * size.head_weights
    elements += weights
    for k in range(2):
        before = [e.prompt if k == 0 else e.prompt + e.turns[0] + e.observation for e in episodes]
        if k == 1:
            # Each row reads the observation and the last token of the first attempt, which was sampled but never read.
            for e in episodes:
                flop += _read(size, e.prompt + e.turns[0] - 1, e.observation + 1) + 2 * size.head_weights
                elements += size.layers * size.cache_width * (e.prompt + e.turns[0] - 1)
            elements += weights
        steps = max(e.turns[k] for e in episodes) - 1
        elements += weights * steps
        for start, e in zip(before, episodes, strict=True):
            count = e.turns[k] - 1
            flop += _read(size, start, count) + 2 * size.head_weights * count
            elements += size.layers * size.cache_width * _summed(start, count)
    return Counts(elements * size.item, flop)


def learning(size: ModelSize, episodes: Sequence[EpisodeLengths], group: int, micro_batches: int) -> Counts:
    """Count the forward and backward passes of all episodes, with logits at sampled tokens only.

    The backward pass costs twice the forward pass, or the same under LoRA, where frozen weights need no gradient.
    """
    forward = sum(_read(size, 0, e.prompt) for e in episodes[::group])
    forward += sum(_read(size, e.prompt, e.total - e.prompt) + 2 * size.head_weights * sum(e.turns) for e in episodes)
    weights = (size.layer_weights + size.head_weights) * size.item
    return Counts(3.0 * weights * micro_batches, forward * (2.0 if size.lora else 3.0))


def _read(size: ModelSize, before: int, tokens: int) -> float:
    """Return the operations of feeding ``tokens`` tokens after ``before`` others through the layers."""
    return 2.0 * size.layer_weights * tokens + 4.0 * size.query_width * size.layers * _summed(before, tokens)


def _summed(before: int, tokens: int) -> float:
    """Return the sum of the context lengths of ``tokens`` tokens after ``before`` others; each token sees itself."""
    return tokens * before + tokens * (tokens + 1) / 2
