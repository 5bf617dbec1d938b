"""Count what a device is asked to do, and for what the host waits: on a GPU, every wait leaves it idle."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from support.elsewhere import a_device, counted, there
from support.episodes import sample_key
from support.families import of_family
from support.trainers import make_trainer, settings
from support.two_turns import both_turns

from selfcorrect.engines import Completion, HFEngine, Request, Sampling
from selfcorrect.models.language_model import LanguageModel

pytestmark = pytest.mark.slow
LAUNCHES_A_LAYER, OTHER_LAUNCHES = 52, 75
"""At most, for a decoded token."""


@pytest.fixture(autouse=True)
def device() -> Iterator[torch.device]:
    with a_device() as made:
        yield made


def model_here() -> LanguageModel:
    return of_family("Llama", tied=True, dtype=torch.float32, cpu_kernels=False)


def requests() -> list[Request]:
    return [Request(((3, 7, 16, 8), (3, 9))[i // 4], sample_key(f"p{i // 4}", i % 4)) for i in range(8)]


def never_ending(model: LanguageModel) -> HFEngine:
    model.end_ids = frozenset([model.vocabulary])
    return HFEngine(model)


@pytest.mark.parametrize("stop", [(), ("no such text",)])
def test_the_host_looks_once_in_sixteen_tokens(stop: tuple[str, ...]) -> None:
    engine = never_ending(there(model_here()))
    found = []
    for tokens in (32, 64):
        with counted() as counts:
            engine.generate(requests(), Sampling(1.0, tokens, stop))
        found.append(counts)
    assert len(found[1].waits) - len(found[0].waits) == 2 * (3 if stop else 1), "number, ids and lengths of rows"
    layers = engine.lm.model.config.num_hidden_layers
    each = (found[1].launches - found[0].launches) / 32
    assert 20 * layers < each <= LAUNCHES_A_LAYER * layers + OTHER_LAUNCHES


@pytest.mark.parametrize("stop", [(), ("7",), ("12", "+")])
def test_rows_that_end_between_two_looks_are_those_of_a_cpu(stop: tuple[str, ...]) -> None:
    """Their second turns too, which continue from what the first ones left in the cache."""

    def sampled(by: LanguageModel) -> list[Completion]:
        engine, sampling = HFEngine(by, max_num_seqs=6), Sampling(1.0, 40, stop)
        return [*itertools.chain(*both_turns(engine, sampling, requests()))]

    ours, theirs = sampled(there(model_here())), sampled(model_here())
    lengths = {len(completion.ids) for completion in theirs}
    assert len(lengths) > 4 and not all(length % 16 == 0 for length in lengths)
    for found, expected in zip(ours, theirs, strict=True):
        assert found.ids == expected.ids and found.stop == expected.stop
        assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "each"),
    [
        ({}, 0),
        ({"kl": {"placement": "loss", "estimator": "full"}}, 0),
        # `transformers` looks whether rows hold several sequences, once in a forward pass of the policy and the reference.
        ({"optimizer": {"share_prompts": False}}, 2),
    ],
)
def test_micro_batches_do_not_make_the_host_wait(changes: dict[str, dict[str, object]], each: int) -> None:
    waits, batches = [], []
    for tokens in (10_000, 40):
        optimizer = {**changes.get("optimizer", {}), "micro_batch_tokens": tokens}
        groups = {**changes, "optimizer": optimizer, "log": {"turn_gradients_every": 0}}
        trainer = make_trainer(settings(**groups), policy=there(model_here()), base=there(model_here()))
        episodes = trainer.sampler.sample(0)
        with counted() as counts:
            batch = trainer.pack_rollout(episodes)
            trainer.accumulate_gradient(batch, trainer.advantages(batch), first=True)
        waits.append(Counter(counts.waits))
        batches.append(len(batch.batches))
    assert batches[1] >= 4 * batches[0]
    assert (waits[1] - waits[0]).total() == each * (batches[1] - batches[0]), waits[1] - waits[0]
    assert waits[0].total() < 12, "the sums of a step"
