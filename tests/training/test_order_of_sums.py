"""Sums of gradients have an order: a step's bits must not depend on which thread comes first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from support.families import FAMILIES, lively, of_family
from support.trainers import make_trainer, settings
from torch.utils._python_dispatch import TorchDispatchMode

from selfcorrect.config.schema import Config
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.models.selection import rows_at, tokens_at

IN_ORDER_OF_ARRIVAL = ("aten.index_put", "aten._index_put_impl", "aten.put")
"""On a CPU, torch adds with one atomic operation an element in these operators, if they accumulate float32."""


class Watch(TorchDispatchMode):
    """Collect the operators whose result depends on the order in which threads arrive."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        accumulates = (kwargs or {}).get("accumulate", len(args) > 3 and args[3])
        if str(func).startswith(IN_ORDER_OF_ARRIVAL) and accumulates:
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def test_the_watch_sees_an_index_that_accumulates() -> None:
    tensor = torch.zeros(3, 2, requires_grad=True)
    with Watch() as watch:
        tensor[torch.tensor([1, 1])].sum().backward()
    assert len(watch.found) == 1


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": {"share_prompts": False}},
        {"kl": {"placement": "loss", "estimator": "full"}},
        {"optimizer": {"micro_batch_tokens": 40}},
    ],
    ids=["prompts shared", "whole rows", "full KL", "many micro-batches"],
)
def test_a_step_adds_nothing_in_the_order_of_arrival(changes: Mapping[str, Any]) -> None:
    assert_in_order(of_family("Llama", tied=True, dtype=torch.float32), settings(**changes))


@pytest.mark.parametrize("family", FAMILIES)
def test_no_family_adds_in_the_order_of_arrival(family: str) -> None:
    assert_in_order(of_family(family, tied=False, dtype=torch.float32, cpu_kernels=False), settings())


def test_a_step_of_an_adapter_adds_nothing_in_the_order_of_arrival() -> None:
    assert_in_order(lively(of_family("Llama", tied=True, dtype=torch.float32)), settings())


def assert_in_order(policy: LanguageModel, config: Config) -> None:
    trainer = make_trainer(config, policy=policy, base=of_family("Llama", tied=True, dtype=torch.float32, seed=1))
    with Watch() as watch:
        trainer.step()
    assert watch.calls > 500 and not watch.found, set(watch.found)


@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 2, 3, 4)])
@pytest.mark.parametrize("index", [[4, 0, 0, 2, 0], [[1, 1], [3, 0]]])
def test_rows_and_their_gradients_are_those_of_indexing(shape: tuple[int, ...], index: list[Any]) -> None:
    torch.manual_seed(0)
    ours = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    found, expected = rows_at(ours, torch.tensor(index)), theirs[torch.tensor(index)]
    assert torch.equal(found, expected)
    weights = torch.randn(expected.shape, dtype=torch.float64)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-12)


def test_tokens_and_their_gradients_are_those_of_indexing() -> None:
    torch.manual_seed(0)
    ours = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    row_S, position_S = torch.tensor([0, 2, 2, 1, 2]), torch.tensor([3, 0, 0, 1, 3])
    found, expected = tokens_at(ours, row_S, position_S), theirs[row_S, position_S]
    assert torch.equal(found, expected)
    found.pow(2).sum().backward()
    expected.pow(2).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-12)
