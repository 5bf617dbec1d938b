"""Test the estimate of an update's KL by enumeration."""

from __future__ import annotations

import pytest
import torch
from support.tabular import World

from selfcorrect.method.step_control import divergence


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
