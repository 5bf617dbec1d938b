"""Test that the estimators that the benchmark compares have the gradient that it calls true."""

from __future__ import annotations

import pytest
import torch

from benchmarks.estimators import READERS, Policies, estimators, sampled_gradient, true_gradient


@pytest.mark.slow
@pytest.mark.parametrize("name", estimators(4.0))
def test_the_mean_of_many_steps_is_the_true_gradient(name: str) -> None:
    stage, random = estimators(4.0)[name], torch.Generator().manual_seed(1)
    for read in READERS.values():
        policies = Policies.reading(read)
        truth = true_gradient(policies, stage)
        steps = torch.stack([sampled_gradient(policies, stage, random) for _ in range(400)])
        error = steps.std(0).norm() / 400**0.5
        assert error < truth.norm() / 4, "enough steps to tell it from another gradient"
        assert (steps.mean(0) - truth).norm() < 1.5 * error


def test_readers_read_as_much_as_they_say() -> None:
    found = {name: Policies.reading(read).d for name, read in READERS.items()}
    assert found["answers again"] == pytest.approx(0, abs=1e-12)
    assert found["reads half"] == pytest.approx(0.25)  # half of the errors of 20 to 80 %
    assert found["copies"] == pytest.approx(0.9)
