"""Test that both sides of the benchmark learn the same: on equal episodes, TRL's gradient is ours divided by a constant.

Skipped where TRL's environment is missing: ``make trl``.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.engines import ScriptedEngine
from support.gradients import relative_gap
from support.needs import TRL_PYTHON
from torch import Tensor, nn

from benchmarks.step import process as children
from benchmarks.step import trl_settings
from benchmarks.step.inputs import Work, write_work
from benchmarks.step.ours import STAGE, OurSide
from benchmarks.step.workloads import Shape, Workload
from selfcorrect.engines import Request
from selfcorrect.runtime import ENVIRONMENT
from selfcorrect.zoo.tiny_llama import SPECIAL

pytestmark = [pytest.mark.slow, pytest.mark.trl]

SHAPE = Shape(layers=1, width=16, inner=24, heads=2, kv_heads=1, head_dim=8, vocabulary=40)
TURN = 5
# Budget and rows are so small that both sides sum over several micro-batches.
MINIATURE = Workload("miniature", "for tests", SHAPE, 8, group=4, prompt=6, turn=TURN, budget=64, rows=4)
REWARDS = [[(0, 1), (1, 0), (0, 0), (1, 1)], [(0, 1), (0, 1), (1, 1), (0, 0)]]
"""Rewards of both attempts, by problem and sample: each turn of each problem has 0 and 1, so there are advantages."""

# Our loss is the sum over all sampled tokens, divided by the N episodes. TRL's `dr_grpo` divides the sum of a micro-batch
# by its rows and by `max_completion_length`, and then by the number of micro-batches; rows times micro-batches are N. What
# is left is `max_completion_length`: two attempts of at most 5 tokens and what stands between them, which is
# <|end|> <|user|> w1 w2 w3 w4 <|end|> <|assistant|>.
CONSTANT = 2 * TURN + 8

THEIR_SIDE = """
import json, sys
from pathlib import Path

folder, bench, settings = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
sys.path.insert(0, bench)

import torch
import trl_score
from transformers import TrainerCallback

given, contexts = torch.load(folder / "given.pt"), []


def generate(trainer, asked, lengths, cache=None):
    attempts = [pair[len(contexts)] for pair in given["attempts"]]
    assert [len(ids) for ids in attempts] == lengths
    contexts.append(asked)
    return attempts, None


class Capture(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, **_):
        gradients = {name: weight.grad.cpu() for name, weight in trainer.model.named_parameters()}
        found = {"contexts": contexts, "rewards": trainer.rewards.last_NK, "gradients": gradients}
        torch.save(found, folder / "theirs.pt")
        control.should_training_stop = True


trl_score.generate = generate
trainer, _ = trl_score.make_trainer(folder, settings, str(folder / "out"))
with torch.no_grad():
    for name, weight in trainer.model.named_parameters():
        weight += given["noise"][name].to(weight.device)
trainer.args.max_grad_norm = 0.0  # it would clip before the gradients are captured
trainer.add_callback(Capture())
trainer.train()
"""


@dataclass(frozen=True)
class Given:
    """The input of both sides: the work in a folder, the attempts, and the noise added to the policy's weights."""

    folder: Path
    attempts: list[tuple[list[int], list[int]]]
    noise: dict[str, Tensor]


@dataclass(frozen=True)
class Found:
    """The output of a side: the contexts of all attempts by turn, the rewards [N, K], and the gradients by name."""

    contexts: list[list[list[int]]]
    rewards: list[list[float]]
    gradients: dict[str, Tensor]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    """Make uneven prompts and attempts of random ids, some special, and noise that moves the policy from its reference."""
    folder, rng = tmp_path_factory.mktemp("trl"), np.random.default_rng(0)
    work = uneven(write_work(MINIATURE, folder), rng)
    work.save(folder)
    attempts = []
    for lengths, rewards in zip(work.lengths, REWARDS, strict=True):
        for turns, right in zip(lengths, rewards, strict=True):
            one, two = (attempt(n, r, rng) for n, r in zip(turns, right, strict=True))
            attempts.append((one, two))
    torch.manual_seed(0)
    noise = {
        name: 0.2 * torch.randn(weight.shape)
        for name, weight in OurSide(folder).trainer.policy.model.named_parameters()
    }
    torch.save({"attempts": attempts, "noise": noise}, folder / "given.pt")
    return Given(folder, attempts, noise)


def attempt(length: int, right: int, rng: np.random.Generator) -> list[int]:
    """Return ``length`` ids, of which the last is a word; a correct attempt ends in an even digit."""
    words = SHAPE.vocabulary - len(SPECIAL)
    number = 2 * int(rng.integers(words // 2)) + 1 - right
    return [*rng.integers(SHAPE.vocabulary, size=length - 1).tolist(), len(SPECIAL) + number]


def uneven(work: Work, rng: np.random.Generator) -> Work:
    """Return the work with attempts of 1 to 5 tokens, a shorter second prompt, and a KL about as strong as the rewards."""
    (text, shorter), (ids, (user, _, *rest)) = work.prompts, work.prompt_ids
    return replace(
        work,
        prompts=[text, shorter.partition(" ")[2]],
        prompt_ids=[ids, [user, *rest]],
        lengths=rng.integers(1, TURN + 1, size=(2, MINIATURE.group, 2)).tolist(),
        beta=3.0,
    )


@pytest.fixture(scope="module")
def theirs(given: Given) -> Found:
    """Run TRL's trainer in a separate process, up to its first update."""
    settings = json.dumps(trl_settings.default(MINIATURE))
    done = subprocess.run(
        [str(TRL_PYTHON), "-c", THEIR_SIDE, str(given.folder), str(Path(children.__file__).parent), settings],
        env={**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = torch.load(given.folder / "theirs.pt")
    return Found(found["contexts"], found["rewards"].tolist(), found["gradients"])


def ours(given: Given, changes: Sequence[str] = ()) -> Found:
    """Run our trainer up to its first update, with a KL of the same gradient in the same place as TRL's, the loss.

    TRL's term is k3 times the importance ratio, pi over pi without a gradient (`use_bias_correction_kl`). With d the
    log-ratio to the reference, the gradient of (exp(-d) - 1 + d) * ratio at ratio 1 is the gradient of log pi times
    (1 - exp(-d)) + (exp(-d) - 1 + d) = d, which is k2's gradient.
    """
    trainer = OurSide(given.folder, changes=["kl.placement=loss", "kl.estimator=k2", *changes]).trainer
    perturb(trainer.policy.model, given.noise)

    def place(request: Request) -> int:
        return MINIATURE.group * int(request.key.problem[1:]) + request.key.sample

    engine = ScriptedEngine(lambda request: given.attempts[place(request)][request.key.turn], end_id=-1)
    trainer.sampler.engine = engine
    episodes = trainer.sampler.sample(trainer.state.step)
    batch = trainer.pack_rollout(episodes)
    assert len(batch.batches) > 1
    trainer.accumulate_gradient(batch, trainer.advantages(batch), first=True)
    gradients = {name: w.grad.cpu() for name, w in trainer.policy.model.named_parameters() if w.grad is not None}
    asked = sorted(engine.asked, key=lambda request: (request.key.turn, place(request)))
    contexts = [[list(request.ids) for request in asked if request.key.turn == k] for k in range(2)]
    played = sorted(episodes, key=lambda episode: (episode.problem.id, episode.sample))
    return Found(contexts, [list(episode.rewards) for episode in played], gradients)


@torch.no_grad()
def perturb(model: nn.Module, noise: dict[str, Tensor]) -> None:
    """Move the policy away from its reference."""
    for name, weight in model.named_parameters():
        weight.add_(noise[name].to(weight.device))


@pytest.mark.nightly
def test_both_sides_are_given_the_same(given: Given, theirs: Found) -> None:
    """The second attempts' contexts hold the first attempts and the words between them."""
    found = ours(given)
    assert found.contexts == theirs.contexts
    assert len({len(context) for context in found.contexts[0]}) == 2
    assert found.rewards == theirs.rewards == [list(pair) for of_problem in REWARDS for pair in of_problem]


def gaps(found: Found, theirs: Found) -> dict[str, float]:
    """Return the distance of each weight's gradient from TRL's times the constant, relative to its size."""
    assert set(found.gradients) == set(theirs.gradients)
    return {name: relative_gap(CONSTANT * theirs.gradients[name], found.gradients[name]) for name in found.gradients}


def test_the_gradient_is_the_same_up_to_the_constant(given: Given, theirs: Found) -> None:
    found = gaps(ours(given), theirs)
    assert set(found) == set(given.noise)
    assert all(gap < 1e-4 for gap in found.values()), found


@pytest.mark.parametrize(
    "change",
    [
        f"stages.{STAGE}.bonus=9.9",
        f"stages.{STAGE}.baseline=none",
        f"stages.{STAGE}.discount=0.01",
        f"stages.{STAGE}.reward_weights=[1, 1.1]",
        f"stages.{STAGE}.kl_coefs=[{{base=3.03}}, {{base=3}}]",
        "kl.estimator=k3",
        "kl.estimator=full",
        "rollout.temperature=1.01",
    ],
)
def test_a_small_difference_would_be_seen(change: str, given: Given, theirs: Found) -> None:
    found = gaps(ours(given, [change]), theirs)
    assert all(gap > 1e-3 for gap in found.values()), found
