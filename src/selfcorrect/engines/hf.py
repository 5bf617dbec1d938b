"""Sampling with a Hugging Face model in this process, on a key-value cache built for it.

The engine improves on a plain loop in four ways. It reads a prompt once for all its samples. Large batches attend to one
copy of a prompt's keys and values, where the forward pass supports that. Finished rows leave the batch. A later turn
continues from the cache of the turn before and reads only the observation.

Rows of different lengths share a batch by masking. A cache slot without a token of its row is never attended to, and
positions count tokens, not slots, so the arrangement of a batch does not change what a row computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache

from selfcorrect.engines.base import Completion, EngineKind, EngineSettings, Request, Sampling, refuse_options
from selfcorrect.engines.kv_cache import Handle, KVCache, PreallocatedLayer
from selfcorrect.errors import ModelError
from selfcorrect.models.families import refusing
from selfcorrect.models.forward import NewTokens
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.types import StopReason

LEAVE_SHARE = 0.25
"""Finished rows leave once they are this fraction of the batch, because removal copies the cache of the other rows."""

FIRST_ROOM = 64
"""Token slots that rows with a shared prompt start with, if they may sample that many."""

DRAW_BLOCK = 256
"""Vocabulary entries per block when a token is drawn."""

LOOK_EVERY = 16
"""Tokens between looks at which rows have ended, on a device that computes apart from the host: every look waits for it."""


class HFEngine:
    """An engine that shares its `LanguageModel` with the policy, so it copies no weights.

    Args:
        model: the model to sample from.
        max_num_seqs: the largest number of requests in a batch; it changes the speed, not the samples.
    """

    def __init__(self, model: LanguageModel, *, max_num_seqs: int = 512) -> None:
        self.lm = model
        self.max_num_seqs = max_num_seqs

    def load_weights(self, policy: LanguageModel) -> None:
        if policy is not self.lm:
            self.lm.load_weights(policy)

    def close(self) -> None:
        pass

    def limits(self, requests: Sequence[Request], sampling: Sampling) -> list[int]:
        """Return the token limit of every request, `Sampling.max_tokens`. A subclass may lower it per request."""
        return [sampling.max_tokens] * len(requests)

    @torch.no_grad()
    def generate(self, requests: Sequence[Request], sampling: Sampling, *, keep: bool = False) -> list[Completion]:
        completions: list[Completion | None] = [None] * len(requests)
        with self.lm.sampling(min(len(requests), self.max_num_seqs)), self.lm.adapters.on(self.lm.adapter):
            for continued in (False, True):
                chosen = [i for i, request in enumerate(requests) if (request.parent is not None) == continued]
                for start in range(0, len(chosen), self.max_num_seqs):
                    part = chosen[start : start + self.max_num_seqs]
                    done = _Batch(self, [requests[i] for i in part], sampling, keep).run()
                    for i, completion in zip(part, done, strict=True):
                        completions[i] = completion
        return [completion for completion in completions if completion is not None]

    def read(self, before: KVCache | None, ids_BS: Tensor, valid_BS: Tensor) -> tuple[KVCache, Tensor]:
        """Feed ids [B, S] after a cache, which must not be used again.

        Returns the new cache, and the logits [B, V] after each row's last valid id.
        """
        mask_BL = valid_BS if before is None else torch.cat([before.mask_BL, valid_BS], 1)
        earlier_B1 = 0 if before is None else before.tokens_B1
        position_BS = (earlier_B1 + valid_BS.cumsum(1) - 1).clamp(min=0)
        last_B = valid_BS.sum(1).clamp(min=1) - 1  # padding stands on the right
        if before is None:
            cache, prefix = Cache(layer_class_to_replicate=PreallocatedLayer), None
        else:
            cache, prefix = Cache(layers=list(before.layers)), before.prefix
        new = NewTokens(ids_BS, mask_BL, position_BS, last_B)
        hidden_BD = self.lm.forward_pass.read(cache, new, prefix.layers if prefix else None)
        return KVCache(tuple(cache.layers), mask_BL, prefix), self.lm.logits(hidden_BD)


def open_hf(model: LanguageModel, settings: EngineSettings) -> HFEngine:
    """Open an engine that computes with the model's own weights; `check_cache` says whether it can."""
    return HFEngine(model, max_num_seqs=settings.max_num_seqs)


@torch.no_grad()
def check_cache(engine: HFEngine) -> None:
    """Make sure that reading tokens after a cache gives what reading the whole rows gives, padded ones included.

    Raises:
        ModelError: it fails, or gives something else: the model keeps no keys and values that a later turn can extend, as
            state-space models do not.
    """
    lm = engine.lm
    row = [i * lm.vocabulary // 7 for i in range(7)]
    whole, parts, added = [row[:5], row[2:6]], [row[:4], row[2:4]], [row[4:5], row[4:6]]
    with refusing(lm.model, "it keeps no keys and values that a later token can extend"):
        cache, _ = engine.read(None, *_padded(parts, lm))
        _, ours_BV = engine.read(cache, *_padded(added, lm))
        theirs_BV = torch.cat([engine.read(None, *_padded([ids], lm))[1] for ids in whole])
    allowed = 0.01 if lm.model.dtype in (torch.float32, torch.float64) else 0.3
    gap = float((ours_BV - theirs_BV).abs().max())
    if not gap <= allowed * max(1.0, float(theirs_BV.abs().max())):
        raise ModelError(
            f"{type(lm.model).__name__} is not supported: tokens read after a cache give other logits (by {gap:.3g}) than "
            "the same tokens read at once, so it does not keep keys and values alone."
        )


def _padded(rows: Sequence[Sequence[int]], lm: LanguageModel) -> tuple[Tensor, Tensor]:
    """Return rows as ids [B, S] and the mask of valid ones, padded on the right: a padded query then still sees real keys."""
    longest = max(map(len, rows))
    ids_BS = np.full((len(rows), longest), lm.pad_id)
    valid_BS = np.zeros((len(rows), longest), dtype=bool)
    for b, row in enumerate(rows):
        ids_BS[b, : len(row)] = row
        valid_BS[b, : len(row)] = True
    return torch.from_numpy(ids_BS).to(lm.device), torch.from_numpy(valid_BS).to(lm.device)


HF_KIND = EngineKind(open_hf, refuse_options, shares_weights=True)


class _Batch:
    """The state of one batch between prompt and completion."""

    def __init__(self, engine: HFEngine, requests: Sequence[Request], sampling: Sampling, keep: bool) -> None:
        self.engine, self.requests, self.sampling, self.keep = engine, requests, sampling, keep
        self.device = engine.lm.device
        self.ends = torch.tensor(sorted(engine.lm.end_ids), device=self.device)
        uniforms = np.stack([request.key.uniforms(sampling.max_tokens) for request in requests])
        self.uniforms_BT = torch.from_numpy(uniforms).to(self.device)
        shape = (len(requests), sampling.max_tokens)
        self.ids_BT = torch.zeros(shape, dtype=torch.long, device=self.device)
        self.logprobs_BT = torch.zeros(shape, dtype=torch.float64, device=self.device)
        self.length_B = torch.tensor(engine.limits(requests, sampling), device=self.device)
        self.stopped_B = torch.zeros(len(requests), dtype=torch.bool, device=self.device)
        # Enough trailing tokens to hold any stop text and the last token: a token is at least one byte.
        self.tail = max((len(text.encode()) for text in sampling.stop), default=0) + 4
        self.look_every = 1 if self.device.type == "cpu" else LOOK_EVERY
        self.handles: dict[int, tuple[KVCache, int]] = {}

    def run(self) -> list[Completion]:
        """Sample until every row has ended. A counts the rows still in the batch; ``active_A`` are their indices among B."""
        cache, logits_AV = self._continue() if self.requests[0].parent is not None else self._start()
        active_A = torch.arange(len(self.requests), device=self.device)
        done_A = torch.zeros_like(active_A, dtype=torch.bool)
        seen = 0  # the tokens of every row at the last look
        for position in range(self.sampling.max_tokens):
            ids_A, logprobs_A = draw(logits_AV, self.uniforms_BT[active_A, position], self.sampling.temperature)
            # A finished row still gets tokens, beyond its length.
            self.ids_BT[active_A, position], self.logprobs_BT[active_A, position] = ids_A, logprobs_A.double()
            length_A = self.length_B[active_A]
            ended_A = ~done_A & (torch.isin(ids_A, self.ends) | (length_A == position + 1))
            self.length_B[active_A] = torch.where(ended_A, position + 1, length_A)
            done_A = done_A | ended_A
            last = position + 1 == self.sampling.max_tokens
            if last or (position + 1) % self.look_every == 0:
                if self.sampling.stop:
                    cache, done_A = self._cut_at_stop_texts(cache, active_A, done_A, range(seen, position + 1))
                seen, finished = position + 1, int(done_A.sum())
                if last or finished == len(active_A):
                    break
                if finished >= LEAVE_SHARE * len(active_A):
                    self._park(cache, active_A, done_A)
                    staying = (~done_A).nonzero()[:, 0]
                    cache = cache.select(staying).compacted()
                    active_A, ids_A, done_A = active_A[staying], ids_A[staying], done_A[staying]
            # A finished row that is still in the batch is fed too, but its slot is marked as empty.
            cache, logits_AV = self.engine.read(cache, ids_A[:, None], ~done_A[:, None])
        self._park(cache, active_A, torch.ones_like(done_A))
        return self._completions()

    def _cut_at_stop_texts(
        self, cache: KVCache, active_A: Tensor, done_A: Tensor, positions: range
    ) -> tuple[KVCache, Tensor]:
        """End rows at the first of these positions that completes a stop text, unless they ended before it.

        Returns the cache without what was fed after such an end, and which rows have ended [A].
        """
        first = max(0, positions.start + 1 - self.tail)
        window_AX = self.ids_BT[active_A, first : positions.stop].tolist()
        length_A = self.length_B[active_A].tolist()
        cut: dict[int, int] = {}
        for row, (ids, length) in enumerate(zip(window_AX, length_A, strict=True)):
            for position in positions:
                at_end = position + 1 >= length and ids[position - first] in self.engine.lm.end_ids
                if position >= length or at_end:
                    break
                text = self.engine.lm.tokenizer.decode(
                    ids[max(0, position + 1 - self.tail - first) : position + 1 - first]
                )
                if any(stop in text for stop in self.sampling.stop):
                    cut[row] = position
                    break
        if not cut:
            return cache, done_A
        rows, ends = torch.tensor([*cut], device=self.device), torch.tensor([*cut.values()], device=self.device)
        self.length_B[active_A[rows]], self.stopped_B[active_A[rows]] = ends + 1, True
        # The newest slot holds the token before the last of these positions; those from an end on become empty.
        slots = cache.mask_BL.shape[1]
        fed_1L = torch.arange(slots, device=self.device)[None] - slots + positions.stop - 1
        mask_BL = cache.mask_BL.index_put((rows,), cache.mask_BL[rows] & (fed_1L < ends[:, None]))
        return replace(cache, mask_BL=mask_BL), done_A.index_fill(0, rows, True)

    def _start(self) -> tuple[KVCache, Tensor]:
        """Read every distinct prompt once; its requests share its cache, or each gets a copy. Return logits [B, V]."""
        distinct = {ids: i for i, ids in enumerate(dict.fromkeys(request.ids for request in self.requests))}
        cache, logits_PV = self._read(None, list(distinct))
        prompt_B = torch.tensor([distinct[request.ids] for request in self.requests], device=self.device)
        if len(distinct) == len(prompt_B):  # in the requests' order, so they are the rows
            return cache, logits_PV
        if self.engine.lm.forward_pass.shares_prefixes and cache.sharing_pays(len(prompt_B)):
            room = min(self.sampling.max_tokens, FIRST_ROOM)
            return cache.shared_by(prompt_B, room=room), logits_PV[prompt_B]
        return cache.select(prompt_B), logits_PV[prompt_B]

    def _continue(self) -> tuple[KVCache, Tensor]:
        """Fetch the parents' caches and read the ids that the requests add to them."""
        parents: list[Handle] = [request.parent for request in self.requests]
        for request, parent in zip(self.requests, parents, strict=True):
            if request.ids[: len(parent.ids)] != parent.ids:
                raise AssertionError("a request must extend the ids of its parent")
        added = [request.ids[len(request.parent.ids) :] for request in self.requests]
        return self._read(KVCache.gathered(parents, room=max(map(len, added))), added)

    def _read(self, cache: KVCache | None, rows: Sequence[Sequence[int]]) -> tuple[KVCache, Tensor]:
        return self.engine.read(cache, *_padded(rows, self.engine.lm))

    def _park(self, cache: KVCache, active_A: Tensor, leaving_A: Tensor) -> None:
        """Keep the caches of leaving rows for the turns that continue them."""
        if not self.keep:
            return
        everyone = bool(leaving_A.all())
        parked = cache if everyone else cache.select(leaving_A.nonzero()[:, 0])
        for row, b in enumerate((active_A if everyone else active_A[leaving_A]).tolist()):
            self.handles[b] = (parked, row)

    def _completions(self) -> list[Completion]:
        columns = self.ids_BT, self.logprobs_BT, self.length_B, self.stopped_B
        found = []
        rows = zip(*(column.tolist() for column in columns), strict=True)
        for b, (row, logprobs, length, stopped) in enumerate(rows):
            ids = tuple(row[:length])
            handle = None
            if self.keep:
                # The last sampled id was never fed, so its key and value are not in the cache.
                handle = Handle(*self.handles[b], (*self.requests[b].ids, *ids[:-1]))
            stop = StopReason.STOP if stopped else StopReason.LENGTH
            if ids[-1] in self.engine.lm.end_ids:
                stop = StopReason.END
            found.append(Completion(ids, tuple(logprobs[:length]), stop, handle))
        return found


def draw(logits_BV: Tensor, uniforms_B: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Draw one token per row by inverting the cumulative distribution at ``uniforms_B``; greedy at temperature 0.

    Returns ids [B] and their log-probabilities [B] under softmax(logits / temperature) (greedy: / 1). A token with
    probability 0 is never drawn.
    """
    probs_BV = torch.softmax(logits_BV if temperature in (0, 1) else logits_BV / temperature, -1)
    ids_B = logits_BV.argmax(-1) if temperature == 0 else _inverse(probs_BV, uniforms_B)
    return ids_B, probs_BV.gather(-1, ids_B[:, None])[:, 0].log()


def _inverse(probs_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """Return the tokens [B] at which the cumulative distributions pass ``uniforms_B``.

    In a large vocabulary the sums of blocks locate the right block, and only that block is searched.
    """
    vocabulary, uniforms_B1 = probs_BV.shape[-1], uniforms_B[:, None].double()
    if vocabulary <= 2 * DRAW_BLOCK:
        return _passed(probs_BV, uniforms_B1)[0][:, 0]
    whole = vocabulary - vocabulary % DRAW_BLOCK
    sums_BN = probs_BV[:, :whole].unflatten(-1, (-1, DRAW_BLOCK)).sum(-1)
    if whole < vocabulary:
        sums_BN = torch.cat([sums_BN, probs_BV[:, whole:].sum(-1, keepdim=True)], -1)
    block_B1, inside_B1 = _passed(sums_BN, uniforms_B1)
    token_BX = block_B1 * DRAW_BLOCK + torch.arange(DRAW_BLOCK, device=probs_BV.device)
    inside_BX = probs_BV.gather(-1, token_BX.clamp(max=vocabulary - 1)).masked_fill_(token_BX >= vocabulary, 0)
    # NaN logits lead past the end; whatever uses the token's log-probability rejects them.
    return token_BX.gather(-1, _passed(inside_BX, inside_B1)[0])[:, 0].clamp(max=vocabulary - 1)


def _passed(weights_BX: Tensor, share_B1: Tensor) -> tuple[Tensor, Tensor]:
    """Return where the float64 cumulative weights pass a fraction of their sum, and the fraction of that place's own weight.

    A fraction of 1, to which rounding may raise a smaller one, counts as just below 1, so the place always has weight.
    """
    weights_BX = weights_BX.double()
    sum_BX = weights_BX.cumsum(-1)
    end_B1 = sum_BX[:, -1:]
    target_B1 = torch.minimum(share_B1 * end_B1, end_B1.nextafter(torch.zeros_like(end_B1)))
    place_B1 = torch.searchsorted(sum_BX, target_B1, right=True).clamp(max=sum_BX.shape[-1] - 1)
    share_B1 = 1 - (sum_BX.gather(-1, place_B1) - target_B1) / weights_BX.gather(-1, place_B1)
    return place_B1, share_B1.clamp(min=0)
