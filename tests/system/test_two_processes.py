"""Test that two processes with a sharded model have the gradient of one, before the package itself uses several."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.families import lively, of_family
from support.sharded import SCENARIOS, Scenario, gradients, policy_of
from support.trainers import settings

from selfcorrect.errors import TrainingError
from selfcorrect.training.learner import Learner

SCRIPT = Path(__file__).parents[1] / "support/sharded.py"
TIME_LIMIT_S = 240
TOLERANCES = {"float64": 1e-6, "float32": 1e-4}


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    """Return every scenario's gradients, gathered from two processes on gloo."""
    folder = tmp_path_factory.mktemp("sharded")
    logs = [(folder / f"rank-{rank}.log").open("w+") for rank in (0, 1)]
    processes = [
        subprocess.Popen([sys.executable, str(SCRIPT), str(rank), "2", str(folder)], stdout=log, stderr=log)
        for rank, log in enumerate(logs)
    ]
    try:
        for process, log in zip(processes, logs, strict=True):
            status = process.wait(TIME_LIMIT_S)  # a hang is a failed test, not a hung suite
            log.seek(0)
            assert status == 0, log.read()[-3000:]
    finally:
        for process in processes:
            process.kill()
            process.wait()
        for log in logs:
            log.close()
    found: dict[str, dict[str, torch.Tensor]] = torch.load(folder / "gradients.pt", weights_only=True)
    return found


@pytest.mark.slow
@pytest.mark.pitfall(21)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_two_processes_have_the_gradient_of_one(
    scenario: Scenario, sharded: dict[str, dict[str, torch.Tensor]]
) -> None:
    policy = policy_of(scenario)
    expected = gradients(scenario, policy, 0, 1)
    assert len(expected) == len(policy.parameters())
    found = sharded[scenario.name]
    assert found.keys() == expected.keys(), "a parameter has no gradient"
    for name, gradient in expected.items():
        gap = float((found[name] - gradient).norm() / gradient.norm())
        assert gap < TOLERANCES[scenario.dtype], f"{name}: {gap}"


@pytest.mark.pitfall(21)
def test_a_step_with_a_missing_gradient_is_refused() -> None:
    policy = of_family("Llama", tied=False)
    learner = Learner(policy, settings().optimizer)
    before = policy.digest()
    (policy.model.get_decoder().embed_tokens.weight.square().sum()).backward()
    with pytest.raises(TrainingError, match=r"stage 's', step 1: \d+ of \d+ trainable .*q_proj.weight.* and \d+ more"):
        learner.update(1e-3, "stage 's', step 1")
    assert policy.digest() == before


def test_frozen_parameters_need_no_gradient() -> None:
    policy = lively(of_family("Llama", tied=True))
    learner = Learner(policy, settings().optimizer)
    torch.autograd.backward(sum(parameter.square().sum() for parameter in policy.parameters()))
    assert learner.update(1e-3, "the step") > 0
