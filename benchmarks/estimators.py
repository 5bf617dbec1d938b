"""Compare the noise of policy-gradient estimators at equal completions, on small policies whose true gradient is known.

    python -m benchmarks.estimators [--alpha 10] [--steps 2000]

A problem has four answers, one of them correct. Its policy is a table: logits of the first attempt, and logits of the second
attempt for every first one. All policies answer alike at first and differ in how they read their draft. Every estimator spends 16
completions on each of 32 problems. Printed: the squared norm of the true gradient over the expected squared error of a step's
gradient, per 1,000 completions (higher is better), of both turns and of each alone, and d = P(r2 | r1 = 1) - P(r2 | r1 = 0).
The advantages are the package's own (`method.score.advantages`). A table shares nothing between contexts, whereas what a model
learns from one draft helps it with others: these figures understate estimators that see fewer different drafts (trees).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from selfcorrect.config.stages import ReinforcementStage
from selfcorrect.method.base import StepOutcome
from selfcorrect.method.score import advantages

PROBLEMS, ANSWERS, COMPLETIONS = 32, 4, 16


@dataclass(frozen=True)
class Policies:
    """Probabilities of the first attempt [P, A], and of the second for every first one [P, A, A]; answer 0 is correct."""

    first_PA: Tensor
    second_PAA: Tensor

    @classmethod
    def reading(cls, second: Callable[[Tensor], Tensor]) -> Policies:
        """Return policies whose first attempts are correct on 20 to 80 % and whose second ones are ``second`` of the first."""
        right_P1 = torch.linspace(0.2, 0.8, PROBLEMS, dtype=torch.float64)[:, None]
        first_PA = torch.cat([right_P1, ((1 - right_P1) / (ANSWERS - 1)).expand(-1, ANSWERS - 1)], 1)
        return cls(first_PA, second(first_PA))

    @property
    def d(self) -> float:
        """Return the mean over problems of P(r2 | r1 = 1) - P(r2 | r1 = 0)."""
        wrong_P = (self.first_PA[:, 1:] * self.second_PAA[:, 1:, 0]).sum(1) / self.first_PA[:, 1:].sum(1)
        return float((self.second_PAA[:, 0, 0] - wrong_P).mean())


def re_answers(first_PA: Tensor) -> Tensor:
    """Answer the problem again, whatever the draft says."""
    return first_PA[:, None].repeat(1, ANSWERS, 1)


def reads_half(first_PA: Tensor) -> Tensor:
    """Correct drafts lose half of their errors; the others are answered again."""
    second_PAA = re_answers(first_PA)
    kept_PA = first_PA / 2
    kept_PA[:, 0] += 0.5
    second_PAA[:, 0] = kept_PA
    return second_PAA


def copies(first_PA: Tensor) -> Tensor:
    """Repeat nine drafts in ten; answer the problem again in the tenth."""
    return 0.1 * re_answers(first_PA) + 0.9 * torch.eye(ANSWERS, dtype=torch.float64)


READERS = {"answers again": re_answers, "reads half": reads_half, "copies": copies}


def estimators(alpha: float) -> dict[str, ReinforcementStage]:
    """Return the stages that are compared: the same expected gradient, from as many completions."""
    weight = {"reward_weights": (1, 1 + alpha)}
    made = {
        f"bonus {alpha:g}": {"reward_weights": (1, 1), "bonus": alpha},
        "plain weight": weight,
        "fitted": {**weight, "baseline": "fitted"},
        "tree, 4 x (1 + 3)": {**weight, "revisions": 3},
        "tree, 2 x (1 + 7)": {**weight, "revisions": 7},
    }
    return {name: ReinforcementStage(steps=1, kl_coefs=({}, {}), **stage) for name, stage in made.items()}  # type: ignore[arg-type]


def true_gradient(policies: Policies, stage: ReinforcementStage) -> Tensor:
    """Return the gradient of the objective by logits, [P, A + A * A]: first attempts, then second ones by first one."""
    first_PA, second_PAA = policies.first_PA, policies.second_PAA
    right_A = torch.eye(ANSWERS, dtype=torch.float64)[0]
    one_PA = stage.reward_weights[0] * first_PA * (right_A - first_PA[:, :1])
    weight = stage.reward_weights[1] + stage.bonus
    two_PAA = weight * first_PA[:, :, None] * second_PAA * (right_A - second_PAA[:, :, :1])
    return torch.cat([one_PA, two_PAA.flatten(1)], 1) / PROBLEMS


def sampled_gradient(policies: Policies, stage: ReinforcementStage, random: torch.Generator) -> Tensor:
    """Return one step's gradient, [P, A + A * A]."""
    revisions = stage.revisions
    drafts = COMPLETIONS // (1 + revisions)
    group = drafts * revisions
    first_PD = torch.multinomial(policies.first_PA, drafts, replacement=True, generator=random)
    first_N = first_PD.repeat_interleave(revisions, 1).flatten()
    problem_N = torch.arange(PROBLEMS).repeat_interleave(group)
    chances_NA = policies.second_PAA[problem_N, first_N]
    second_N = torch.multinomial(chances_NA, 1, generator=random)[:, 0]
    rewards_NK = torch.stack([first_N == 0, second_N == 0], 1).double()
    online_NK = torch.ones_like(rewards_NK, dtype=torch.bool)
    online_NK[:, 0] = torch.arange(len(first_N)) % revisions == 0
    found_NK = advantages(StepOutcome(rewards_NK, torch.zeros_like(rewards_NK), online_NK, group, revisions), stage)
    one_hot = torch.eye(ANSWERS, dtype=torch.float64)
    one_NA = found_NK[:, :1] * (one_hot[first_N] - policies.first_PA[problem_N])
    two_NA = found_NK[:, 1:] * (one_hot[second_N] - chances_NA)
    one_PA = torch.zeros(PROBLEMS, ANSWERS, dtype=torch.float64).index_add_(0, problem_N, one_NA) / drafts
    rows_PA = torch.zeros(PROBLEMS * ANSWERS, ANSWERS, dtype=torch.float64)
    two_PAA = rows_PA.index_add_(0, problem_N * ANSWERS + first_N, two_NA) / group
    return torch.cat([one_PA, two_PAA.view(PROBLEMS, -1)], 1) / PROBLEMS


def signal_to_noise(policies: Policies, stage: ReinforcementStage, steps: int) -> list[float]:
    """Return the ratio per 1,000 completions of both turns together, of the first and of the second."""
    random = torch.Generator().manual_seed(0)
    truth = true_gradient(policies, stage)
    errors = torch.stack([(sampled_gradient(policies, stage, random) - truth).square() for _ in range(steps)]).mean(0)
    per = 1000 / (PROBLEMS * COMPLETIONS)
    parts = [slice(None), slice(0, ANSWERS), slice(ANSWERS, None)]
    return [per * float(truth[:, part].square().sum() / errors[:, part].sum()) for part in parts]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alpha", type=float, default=10.0)
    parser.add_argument("--steps", type=int, default=2000)
    given = parser.parse_args()
    policies = {name: Policies.reading(read) for name, read in READERS.items()}
    print("| | " + " | ".join(f"{name}, d = {found.d:.2f}" for name, found in policies.items()) + " |")
    print("|---" * (1 + len(policies)) + "|")
    for name, stage in estimators(given.alpha).items():
        cells = [signal_to_noise(found, stage, given.steps) for found in policies.values()]
        print(f"| {name} | " + " | ".join(f"{both:.2f} ({one:.2f}, {two:.2f})" for both, one, two in cells) + " |")


if __name__ == "__main__":
    main()
