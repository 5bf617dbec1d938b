"""Test the same code on a CUDA device; skipped where there is none."""

from __future__ import annotations

import pytest
from support.episodes import sample_key
from support.models import tiny_model
from support.trainers import make_trainer, settings

from selfcorrect.engines import HFEngine, Request, Sampling
from selfcorrect.models.language_model import LanguageModel

pytestmark = pytest.mark.gpu


def on_the_gpu(seed: int) -> LanguageModel:
    model = tiny_model(seed)
    model.model.cuda()
    return model


def test_the_same_tokens_come_from_either_device() -> None:
    requests = [Request((3, 7 + i, 2, 4), sample_key(f"p{i}")) for i in range(16)]
    on_cpu = HFEngine(tiny_model(1)).generate(requests, Sampling(1.0, 12))
    model = on_the_gpu(1)
    on_gpu = HFEngine(model).generate(requests, Sampling(1.0, 12))
    assert [c.ids for c in on_gpu] == [c.ids for c in on_cpu]
    for a, b in zip(on_gpu, on_cpu, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-6)


def test_a_step_on_the_gpu_is_that_on_the_cpu() -> None:
    on_cpu = make_trainer(settings()).step().metrics
    on_gpu = make_trainer(settings(), policy=on_the_gpu(0), base=on_the_gpu(1)).step().metrics
    for name in ("r1", "r2", "gradient_norm", "entropy_t1"):
        assert on_gpu[name] == pytest.approx(on_cpu[name], rel=1e-5), name
