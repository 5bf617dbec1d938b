"""Test the estimate of an update's KL by enumeration, and what follows from it."""

from __future__ import annotations

import math

import pytest
import torch
from support.tabular import World

from selfcorrect.config.optimizer import KLControlConfig
from selfcorrect.method.step_control import divergence, goes_too_far, next_factor


def test_the_estimates_of_an_episodes_tokens_add_up_to_the_kl_of_its_turns() -> None:
    """The expectation over all episodes of the old policy is KL(old || new), its other direction is another number."""
    here = World.make(2, 1)
    old, new = here.policy, here.reference
    found, expected, other = (torch.zeros((), dtype=torch.float64) for _ in range(3))
    for played in here.played:
        chance = here.probability(played)
        for k in range(here.turns):
            ours = torch.stack([logp[token] for logp, token in old.token_logprobs(played, k)]).detach()
            theirs = torch.stack([logp[token] for logp, token in new.token_logprobs(played, k)]).detach()
            estimates_S = divergence(ours, theirs)
            assert (estimates_S >= 0).all()
            found += chance * estimates_S.sum()
            expected += chance * (ours - theirs).sum()
            other += theirs.sum().exp() * (theirs - ours).sum()
    assert expected > 0.1 and abs(other - expected) > 0.1
    assert float(found) == pytest.approx(float(expected), abs=1e-12)


@pytest.mark.parametrize(
    ("factor", "kl", "expected"),
    [
        (0.9, 0.2001, 0.6),
        (0.9, 0.2, 0.9),
        (0.9, 0.05, 0.9),
        (0.9, 0.0499, 1.35),
        (0.9, math.nan, 0.6),
        (0.9, math.inf, 0.6),
        (0.3, 0.3, 0.25),
        (1.8, 0.0, 2.0),
    ],
)
def test_the_factor_changes_by_a_half_within_its_bounds(factor: float, kl: float, expected: float) -> None:
    settings = KLControlConfig(target=0.1, minimum=0.25, maximum=2.0)
    assert next_factor(factor, kl, settings) == pytest.approx(expected, rel=1e-12)


def test_a_step_is_undone_above_the_limit_alone() -> None:
    limited = KLControlConfig(target=0.1, limit=0.3)
    assert [goes_too_far(kl, limited) for kl in (0.3, 0.3001, math.nan, math.inf)] == [False, True, True, True]
    assert not any(goes_too_far(kl, KLControlConfig(target=0.1)) for kl in (9.0, math.nan))
