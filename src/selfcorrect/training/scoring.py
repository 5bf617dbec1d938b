"""Log-probabilities, entropy and KL of sampled tokens, computed apart from the engine that sampled them.

Logits are made only for scored positions and only a chunk at a time, in the backward pass too
(`selfcorrect.models.chunked_logprobs`), so
memory does not grow with batch x vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from selfcorrect.models.chunked_logprobs import Targets, logprobs_entropy_kl, token_logprobs
from selfcorrect.models.cpu.llama import CPULlamaForward
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.training.batch import Rows


@dataclass(frozen=True, eq=False)
class TokenScores:
    """For every scored token: log pi, the entropy of its distribution, and KL(pi || reference r) in full, in nats."""

    logprobs_S: Tensor
    entropy_S: Tensor
    kl_RS: Tensor


@dataclass(frozen=True, eq=False)
class ReferenceLogprobs:
    """What a frozen model thinks of the same tokens; ``hidden_SD`` is kept where the full KL is wanted."""

    model: LanguageModel
    logprobs_S: Tensor
    hidden_SD: Tensor | None


def hidden_states(model: LanguageModel, rows: Rows) -> Tensor:
    """The hidden state that predicts each scored token, [S, D].

    This is the one place where positions are shifted: logprobs[b, t] = log p(tokens[b, t] | tokens[b, :t]), so
    the token at t is predicted from the hidden state at t - 1.
    """
    if model.fast_forward is not None:
        return _by_fast_forward(model, model.fast_forward, rows)
    if rows.prompt_B is not None and _fits_window(model, rows):
        return _after_shared_prompts(model, rows, rows.prompt_B)
    row_S, position_S = rows.scored
    output = model.decode(rows.tokens_BT, rows.mask_BT, position_ids=_positions(rows.mask_BT))
    hidden_BTD: Tensor = output.last_hidden_state
    return hidden_BTD[row_S, position_S - 1]


def _by_fast_forward(model: LanguageModel, own: CPULlamaForward, rows: Rows) -> Tensor:
    row_S, position_S = rows.scored
    with model.active_adapter():
        return own.hidden(rows.layout, rows.layout.before(row_S, _positions(rows.mask_BT)[row_S, position_S]))


def _after_shared_prompts(model: LanguageModel, rows: Rows, prompt_B: Tensor) -> Tensor:
    """The same where episodes share prompts: P distinct prompts are read once, and each row goes on from its own.

    Gradients flow through the prompts' keys and values, summed over the rows. The batch must be padded on the right.
    """
    prompts = [tuple(row[:length]) for row, length in zip(rows.tokens_BT.tolist(), prompt_B.tolist(), strict=True)]
    place = {prompt: p for p, prompt in enumerate(dict.fromkeys(prompts))}
    prompt_of_B = prompt_B.new_tensor([place[prompt] for prompt in prompts])
    longest = max(map(len, place))
    prompt_PL = prompt_B.new_tensor([[*prompt, *[model.pad_id] * (longest - len(prompt))] for prompt in place])
    valid_PL = prompt_B.new_tensor([[i < len(prompt) for i in range(longest)] for prompt in place]).bool()
    cache = DynamicCache()
    read = model.decode(prompt_PL, valid_PL, position_ids=_positions(valid_PL), cache=cache)

    # What follows the prompt, moved to the left edge.
    place_BR = prompt_B[:, None] + torch.arange(int((rows.mask_BT.sum(1) - prompt_B).max()), device=prompt_B.device)
    inside_BR = place_BR < rows.mask_BT.sum(1, keepdim=True)
    rest_BR = rows.tokens_BT.gather(1, place_BR.clamp(max=rows.tokens_BT.shape[1] - 1))
    mask = torch.cat([valid_PL[prompt_of_B], inside_BR], 1)
    own = DynamicCache(ddp_cache_data=[(layer.keys[prompt_of_B], layer.values[prompt_of_B]) for layer in cache.layers])
    rest = model.decode(rest_BR, mask, position_ids=place_BR, cache=own)

    row_S, position_S = rows.scored
    before_S = position_S - 1 - prompt_B[row_S]  # -1: predicted from the prompt's last token
    first_SD = read.last_hidden_state[prompt_of_B[row_S], prompt_B[row_S] - 1]
    return torch.where(before_S[:, None] < 0, first_SD, rest.last_hidden_state[row_S, before_S.clamp(min=0)])


def _fits_window(model: LanguageModel, rows: Rows) -> bool:
    """Whether a sliding window, which counts empty slots too, cannot cut off a prompt that is padded in the middle."""
    return model.slots_limit is None or 2 * rows.tokens_BT.shape[1] <= model.slots_limit


def _positions(mask_BT: Tensor) -> Tensor:
    """Positions count tokens, so padding on the left moves nothing."""
    return (mask_BT.cumsum(1) - 1).clamp(min=0)


def score(
    model: LanguageModel,
    rows: Rows,
    temperature: float,
    references: Sequence[ReferenceLogprobs] = (),
    *,
    full_kl: bool = False,
) -> TokenScores:
    """Score the sampled tokens of ``rows`` under ``model`` at the sampling temperature."""
    against = [(r.model, r.hidden_SD) for r in references if full_kl and r.hidden_SD is not None]
    scored = Targets(rows.tokens_BT[rows.scored], temperature, against)
    return TokenScores(*logprobs_entropy_kl(model, hidden_states(model, rows), scored))


@torch.no_grad()
def score_reference(
    model: LanguageModel, rows: Rows, temperature: float, *, keep_hidden: bool = False
) -> ReferenceLogprobs:
    """Score the sampled tokens under a frozen model; its hidden states are kept for the full KL."""
    hidden_SD = hidden_states(model, rows)
    logprobs_S = token_logprobs(model, hidden_SD, Targets(rows.tokens_BT[rows.scored], temperature))
    return ReferenceLogprobs(model, logprobs_S, hidden_SD if keep_hidden else None)
