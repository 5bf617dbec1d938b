"""What a step cannot do without: bytes to read and floating-point operations, from a model's shape and the lengths.

A product of matrices counts 2 operations per multiply-add. Attention counts its two products over the context that
each token sees. Only matrices count: norms, rotations, softmax and sampling are work that the limit leaves out, so the
share reached can only look worse for them. Nothing counts twice that could be kept: the prompt of a problem is read once for all
its samples, in learning too, the second attempt goes on from the first one's cache, and nothing is padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What the counts need of a model: elements of the layers' matrices and of the output's, and the attention's shape."""

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
    """Bytes that have to be read and operations that have to be done."""

    bytes: float
    flop: float

    def limit(self, bandwidth: float, rate: float) -> float:
        """Seconds at the least: whichever binds. ``bandwidth`` in bytes/s, ``rate`` in operations/s."""
        return max(self.bytes / bandwidth, self.flop / rate)

    def binds(self, bandwidth: float, rate: float) -> str:
        return "arithmetic" if self.flop / rate >= self.bytes / bandwidth else "memory"


@dataclass(frozen=True, slots=True)
class EpisodeLengths:
    """Tokens of one episode."""

    prompt: int
    observation: int
    turns: tuple[int, int]

    @property
    def total(self) -> int:
        return self.prompt + self.observation + sum(self.turns)


def decoding(size: ModelSize, episodes: Sequence[EpisodeLengths], group: int) -> Counts:
    """Both turns of all episodes, side by side; weights and the rows' caches are read once per token position."""
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
    """Forward and backward of all episodes; logits of sampled tokens only. The backward pass is twice the forward,
    and as much as it under LoRA, where frozen weights need no gradient."""
    forward = sum(_read(size, 0, e.prompt) for e in episodes[::group])
    forward += sum(_read(size, e.prompt, e.total - e.prompt) + 2 * size.head_weights * sum(e.turns) for e in episodes)
    weights = (size.layer_weights + size.head_weights) * size.item
    return Counts(3.0 * weights * micro_batches, forward * (2.0 if size.lora else 3.0))


def _read(size: ModelSize, before: int, tokens: int) -> float:
    """Operations of feeding so many tokens after ``before`` others through the layers."""
    return 2.0 * size.layer_weights * tokens + 4.0 * size.query_width * size.layers * _summed(before, tokens)


def _summed(before: int, tokens: int) -> float:
    """The context lengths of so many tokens after ``before`` others, each seeing itself, summed."""
    return tokens * before + tokens * (tokens + 1) / 2
