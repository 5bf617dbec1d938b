"""Test the interfaces that scoring and sampling require of a model, and their implementations."""

from __future__ import annotations

import gc
import re
import weakref
from pathlib import Path

import pytest
import torch
from support.families import is_fast, of_family
from support.tabular import Tabular

import selfcorrect
from selfcorrect.models.chunked_logprobs import log_softmax_gradient
from selfcorrect.models.cpu.log_softmax import fused_log_softmax_gradient
from selfcorrect.models.forward import Decoder, GeneralForward
from selfcorrect.models.scorable import Scorable

SOURCE = Path(selfcorrect.__file__).parent


def test_what_is_scored_answers_all_that_scoring_asks() -> None:
    """`Tabular` replaces a model in the gradient's tests, so it must declare all that scoring needs."""
    for model in (of_family("Llama", tied=True), Tabular((1, 1), 0)):
        assert isinstance(model, Scorable) and isinstance(model, Decoder)
    assert not isinstance(torch.nn.Linear(1, 1), Scorable)


def test_only_models_know_the_cpus_forward_pass() -> None:
    known = re.compile(r"CPULlamaForward|cpu\.llama")
    found = {path.relative_to(SOURCE).parts[0] for path in SOURCE.rglob("*.py") if known.search(path.read_text())}
    assert found == {"models"}


def test_a_model_is_given_up_as_soon_as_nobody_holds_it() -> None:
    """A model's forward pass must not hold the model: gigabytes would wait for the garbage collector."""
    gc.disable()
    try:
        for cpu_kernels in (True, False):
            model = of_family("Llama", tied=True, cpu_kernels=cpu_kernels)
            assert is_fast(model) == cpu_kernels
            watched = weakref.ref(model)
            del model
            assert watched() is None
    finally:
        gc.enable()


def test_the_general_forward_pass_takes_no_prefix() -> None:
    model = of_family("Llama", tied=True, cpu_kernels=False)
    assert not model.forward_pass.shares_prefixes
    with pytest.raises(AssertionError, match="shares_prefixes"):
        GeneralForward(model).read(None, None, [])  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_of_a_log_softmax_is_the_same_by_kernel_and_by_formula(dtype: torch.dtype) -> None:
    logp_SV = torch.log_softmax(4 * torch.randn(7, 33, dtype=dtype), -1)
    grad_SV = torch.randn(7, 33, dtype=dtype)
    expected = fused_log_softmax_gradient(grad_SV, logp_SV)
    assert torch.equal(
        log_softmax_gradient(grad_SV.clone(), logp_SV), expected
    )  # on a CPU the kernel's result, bit by bit

    class Elsewhere(torch.Tensor):
        """A tensor that claims not to be on a CPU."""

        device = torch.device("cuda")

    by_formula = log_softmax_gradient(grad_SV.clone().as_subclass(Elsewhere), logp_SV).as_subclass(torch.Tensor)
    torch.testing.assert_close(by_formula, expected, atol=8 * torch.finfo(dtype).eps, rtol=8 * torch.finfo(dtype).eps)
