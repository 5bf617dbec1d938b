"""A causal language model: loading, hidden states, logits at chosen positions, saving.

Decoder and head are called separately, so logits exist only where a token is sampled or scored. Wrapping a model checks
once that the two together give the model's own logits.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from selfcorrect.config.schema import LoRAConfig
from selfcorrect.errors import ModelError
from selfcorrect.models.cpu.llama import CPULlamaForward
from selfcorrect.models.cpu.onednn_linear import OneDNNLinear, prepacked_weights, use_onednn
from selfcorrect.models.cpu.packing import PackedSequences
from selfcorrect.models.dtypes import DTYPES
from selfcorrect.models.families import (
    FAMILY_ERRORS,
    cache_argument,
    check_tokenizer,
    context_limit,
    end_ids,
    refusing,
    slots_limit,
)
from selfcorrect.models.forward import ForwardPass, GeneralForward
from selfcorrect.models.lora import Adapters, base_of, is_adapter
from selfcorrect.models.placement import Placement
from selfcorrect.models.reading import readable, share_weights, silent_bars
from selfcorrect.models.scorable import HeadPass

T = TypeVar("T")
FILE_BYTES = 5 * 10**9
"""The largest file of weights; a larger model is saved as several with an index."""


class LanguageModel:
    """A Hugging Face causal LM with its tokenizer, or a view of the same weights through a LoRA adapter (`with_adapter`).

    Args:
        model: any ``AutoModelForCausalLM`` with a decoder and an output embedding.
        tokenizer: its tokenizer.
        adapters: the adapters over these weights, which several views may share.
        adapter: this view's adapter; None: the plain weights.
        cpu_kernels: on a CPU, use the fast forward pass for Llama-like models, and oneDNN for float32 products. The
            linear layers of ``model`` then become `OneDNNLinear`.

    Attributes:
        head_pass: the way from hidden states to log-probabilities; `HeadPass.CHECKPOINTED` if the head's weight is
            sharded.

    Raises:
        ModelError: decoder and head do not reproduce the model's logits, or there is no end token.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        adapters: Adapters | None = None,
        adapter: str | None = None,
        cpu_kernels: bool = True,
    ) -> None:
        self.model = model.eval()  # dropout off, in training too: sampled and trained log-probabilities must agree
        self.tokenizer = tokenizer
        self.adapters = adapters or Adapters(model)
        self.adapter = adapter
        # Of the computation; shards of the weights may be wider.
        self.dtype: torch.dtype = self.adapters.placement.rounded or model.dtype
        self.source = str(model.config._name_or_path)
        self._checkpointed: list[Any] = []
        self.end_ids = end_ids(model, tokenizer)
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(self.end_ids)
        config = model.config.get_text_config()
        self.vocabulary = int(config.vocab_size)
        self.width = int(config.hidden_size)
        self.context_limit = context_limit(config)
        self.slots_limit = slots_limit(config)
        self._softcap = getattr(config, "final_logit_softcapping", None)
        self._scale = float(getattr(config, "logit_scale", None) or 1.0) / float(
            getattr(config, "logits_scaling", None) or 1.0
        )
        check_tokenizer(model, tokenizer)
        self._cache_argument = cache_argument(model.get_decoder())
        self.head_pass = HeadPass.CHUNKED
        self.cpu_kernels = cpu_kernels
        self._fast_forward = None
        if cpu_kernels and self.device.type == "cpu":
            use_onednn(model)
            self._fast_forward = CPULlamaForward.of(model, partial(self.adapters.on, adapter))
        self._check_head()
        if self.adapters.takes_masks is None:
            self.adapters.takes_masks = self.device.type != "cpu" and self._same_with_masks()

    @property
    def takes_masks(self) -> bool:
        """Whether the forward pass should make all masks itself, as suits a GPU."""
        return bool(self.adapters.takes_masks)

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def placement(self) -> Placement:
        """Where the weights lie, the same for all views of them."""
        return self.adapters.placement

    def as_forward(self, function: Callable[[], T]) -> T:
        """Return what the function returns, called as one forward pass of the model; see `Placement`."""
        return self.placement.as_forward(function)

    def parameters(self) -> list[nn.Parameter]:
        """Return the trained parameters: the adapter's, or all weights that are not frozen."""
        if self.adapter is not None:
            return self.adapters.parameters(self.adapter)
        return [p for p in self.model.parameters() if p.requires_grad]

    def decode(self, ids_BT: Tensor, mask_BT: Any = None, *, cache: Any = None, **kwargs: Any) -> Any:
        """Return the decoder's output for ids and a 0/1 mask of valid positions; ``.last_hidden_state`` is [B, T, D].

        The ids continue from a ``cache``, and their keys and values are appended to it. In place of a mask, `window_masks`.
        """
        mask = mask_BT
        if isinstance(mask_BT, Tensor) and mask_BT.dim() == 2:
            mask = None if bool(mask_BT.all()) else mask_BT.long()
        given = {"use_cache": False} if cache is None else {"use_cache": True, self._cache_argument: cache}
        with self.adapters.on(self.adapter), self._recomputing():
            return self.model.get_decoder()(input_ids=ids_BT, attention_mask=mask, **given, **kwargs)

    @torch.no_grad()
    def _same_with_masks(self) -> bool:
        """Whether `decode` computes the same with the masks of `window_masks`; some families need the 0/1 mask itself."""
        ids = torch.arange(4, device=self.device)[None] % self.vocabulary
        seen_11L = torch.tensor([[[False, True, True, True]]], device=self.device)

        def last(mask: Any) -> Tensor:
            cache = DynamicCache()
            self.decode(ids[:, :3], cache=cache)
            read = self.decode(ids[:, 3:], mask, position_ids=torch.full_like(ids[:, 3:], 3), cache=cache)
            hidden: Tensor = read.last_hidden_state.float()
            return hidden

        try:
            ours = self.as_forward(lambda: last(self.window_masks(seen_11L, seen_11L)))
            theirs = self.as_forward(lambda: last(seen_11L[:, 0]))
        except FAMILY_ERRORS:
            return False
        finally:
            self.placement.release()
        return torch.allclose(ours, theirs, rtol=1e-2, atol=1e-2)

    def window_masks(self, full_BSL: Tensor, sliding_BSL: Tensor) -> Any:
        """Return attention masks [B, 1, S, L] for `decode`, by the kind of layer where a family has several kinds."""
        dtype = self.dtype

        def added(seen_BSL: Tensor) -> Tensor:
            zeros = torch.zeros_like(seen_BSL, dtype=dtype)
            return zeros.masked_fill_(~seen_BSL, torch.finfo(dtype).min)[:, None]

        if getattr(self.model.config.get_text_config(), "layer_types", None):
            return {"full_attention": added(full_BSL), "sliding_attention": added(sliding_BSL)}
        return added(sliding_BSL)

    @property
    def forward_pass(self) -> ForwardPass:
        """The fast forward pass if the model has one; else the general one.

        Only the general one works with gradient checkpointing, and calls layers as a whole, as shards need it.
        """
        fast = self._fast_forward if self.placement.in_parts else None
        if fast is None or (self._checkpointed and torch.is_grad_enabled()):
            return GeneralForward(self)
        return fast

    @contextlib.contextmanager
    def sampling(self, rows: int) -> Iterator[None]:
        """Prepare sampling in batches of about ``rows`` rows within the block; the weights must not change meanwhile.

        On a CPU, products then use copies of the weights in the memory layout that suits this number of rows.
        """
        fast = self._fast_forward
        with (
            fast.fused(rows, self.adapter) if fast else contextlib.nullcontext(()) as fused,
            prepacked_weights(self.model, rows, but=fused),
        ):
            yield

    def logits(self, hidden_SD: Tensor) -> Tensor:
        """Return next-token logits of hidden states [..., D] -> [..., V], in float32 or better."""
        with self.adapters.on(self.adapter):
            logits: Tensor = self.model.get_output_embeddings()(hidden_SD)
        logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
        logits = logits * self._scale if self._scale != 1.0 else logits
        return self._softcap * torch.tanh(logits / self._softcap) if self._softcap else logits

    @property
    def plain_head(self) -> nn.Linear | None:
        """The head, if logits are only a product with its weight [V, D]; else None."""
        head = self.model.get_output_embeddings()
        plain = type(head) in (nn.Linear, OneDNNLinear) and head.bias is None
        return head if plain and self._scale == 1.0 and not self._softcap else None

    def head_parameters(self) -> list[nn.Parameter]:
        """Return the head's trained parameters."""
        return [p for p in self.model.get_output_embeddings().parameters() if p.requires_grad]

    def frozen_copy(self, *, cpu_kernels: bool | None = None) -> LanguageModel:
        """Return a reference model: a frozen copy of the current weights."""
        twin = copy.deepcopy(self.model)
        twin.requires_grad_(False)
        return LanguageModel(twin, self.tokenizer, cpu_kernels=self.cpu_kernels if cpu_kernels is None else cpu_kernels)

    def with_adapter(
        self, name: str, source: LoRAConfig | Path, *, seed: int = 0, trainable: bool = True
    ) -> LanguageModel:
        """Return a view of the same weights, not a copy, through a LoRA adapter: a new one, or one from a directory.

        This model stays a view without the adapter.
        """
        self.model.requires_grad_(False)
        if isinstance(source, LoRAConfig):
            self.adapters.create(name, source, seed)
        else:
            self.adapters.load(name, source, rest=trainable)
        return LanguageModel(
            self.model, self.tokenizer, adapters=self.adapters, adapter=name, cpu_kernels=self.cpu_kernels
        )

    def merged(self) -> LanguageModel:
        """Return the plain model with this view's adapter merged into the weights; all views of them become invalid."""
        if self.adapter is None:
            return self
        return LanguageModel(self.adapters.merge(self.adapter), self.tokenizer, cpu_kernels=self.cpu_kernels)

    @torch.no_grad()
    def plain_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the weights of the plain model with this view's adapter merged in, tensor by tensor, in the model's dtype.

        All processes that hold shards of the model must ask for all of them.
        """
        yield from self.adapters.merged_tensors(self.adapter)

    def load_weights(self, other: LanguageModel) -> None:
        """Copy another model's weights into this one, in place."""
        self.model.load_state_dict(other.model.state_dict())

    def enable_gradient_checkpointing(self) -> None:
        """Keep only each layer's input for the backward pass, which recomputes the rest.

        Raises:
            ModelError: the architecture does not support it, or its outputs change (dropout in its layers).
        """
        if not self.model.supports_gradient_checkpointing:
            raise ModelError(
                f"{type(self.model).__name__} does not support gradient checkpointing: unset model.gradient_checkpointing."
            )
        ids = torch.arange(min(8, self.vocabulary), device=self.device)[None]
        before = self.as_forward(lambda: self.decode(ids).last_hidden_state)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # renamed in later versions of transformers
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self._checkpointed = [m for m in self.model.modules() if getattr(m, "gradient_checkpointing", False)]
        same = torch.equal(self.as_forward(lambda: self.decode(ids).last_hidden_state), before)
        self.placement.release()
        if not same:
            raise ModelError(f"{type(self.model).__name__} computes something else with gradient checkpointing.")

    def saved_weights(self) -> Mapping[str, Tensor] | None:
        """Return the weights that `save` writes; None for an adapter. All processes that hold shards must ask together."""
        return None if self.adapter is not None else self.placement.gathered(self.adapters.plain_tensors())

    def save(self, directory: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write a plain Hugging Face directory that ``transformers`` (for an adapter: ``peft``) loads unchanged.

        Of a model in shards, one process writes ``weights``, its `saved_weights`, which it must hold whole;
        `selfcorrect.distributed.exporting` needs no more than a file of them at a time.
        """
        with silent_bars():
            if self.adapter is not None:
                self.adapters.save(self.adapter, directory, self.source)
            else:
                weights = self.saved_weights() if weights is None else weights
                model = self.placement.blank or self.model
                model.save_pretrained(directory, state_dict=dict(weights or {}), max_shard_size=FILE_BYTES)
            self.tokenizer.save_pretrained(directory)
        share_weights(directory)

    def digest(self) -> str:
        """Return the SHA-256 of all weights, names and shapes; equal digests mean equal bits."""
        total = hashlib.sha256()
        own = {} if self.adapter is None else self.adapters.tensors(self.adapter)
        for name, tensor in sorted({**self.adapters.plain_tensors(), **own}.items()):
            whole = self.placement.full(tensor).detach()
            total.update(f"{name} {tuple(whole.shape)} {whole.dtype}".encode())
            total.update(whole.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return total.hexdigest()

    @contextlib.contextmanager
    def _recomputing(self) -> Iterator[None]:
        """Put the checkpointed layers, but not their submodules, into training mode within the block.

        `transformers` recomputes layers only in training mode; the submodules stay in evaluation mode, without dropout.
        """
        active = self._checkpointed if torch.is_grad_enabled() else []
        for layer in active:
            layer.training = True
        try:
            yield
        finally:
            for layer in active:
                layer.training = False

    @torch.no_grad()
    def _check_head(self) -> None:
        count = min(8, self.vocabulary)
        ids = torch.arange(count, device=self.device)[None] % self.vocabulary
        with refusing(self.model, "its decoder and output embedding cannot be computed one after the other"):
            ours = self.as_forward(lambda: self.logits(self.decode(ids).last_hidden_state)).float()
            with self.adapters.on(self.adapter):
                theirs = self.model(input_ids=ids).logits.float()
        self.placement.release()
        gap = float((ours - theirs).abs().max())
        if not gap <= 1e-2 * max(1.0, float(theirs.abs().max())):
            raise ModelError(
                f"{type(self.model).__name__}: decoder plus output embedding differ from the model's own logits by {gap:.3g}. "
                "This architecture transforms its logits in a way that is not supported yet."
            )
        if self._fast_forward is not None:
            with self.placement.whole():  # it calls parts of layers
                agrees = self._agrees(self._fast_forward, ids, theirs[0])
            self._fast_forward = self._fast_forward if agrees else None

    def _agrees(self, fast: CPULlamaForward, ids_1T: Tensor, logits_TV: Tensor) -> bool:
        """Whether the fast forward pass gives these logits [T, V]: some models call themselves Llamas but compute differently.

        The tolerance is far above rounding, so the result does not depend on the weights: a run that resumes from a
        checkpoint must use the same forward pass.
        """
        packed = PackedSequences.of(ids_1T.tolist())
        try:
            found_TV = self.logits(fast.hidden_at(packed, torch.arange(len(logits_TV)))).float()
        except (AttributeError, TypeError, RuntimeError):
            return False
        allowed = 0.01 if self.dtype in (torch.float32, torch.float64) else 0.3
        return float((found_TV - logits_TV).abs().max()) <= allowed * max(1.0, float(logits_TV.abs().max()))


def load_model(
    source: str | Path,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    trust_remote_code: bool = False,
    cpu_kernels: bool = True,
) -> LanguageModel:
    """Load a model directory, an adapter's directory with its base, or a hub id; remote code runs only on request.

    Raises:
        ModelError: the model cannot be loaded; the message gives the reason from ``transformers``.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if is_adapter(Path(source)):
        base = load_model(
            base_of(Path(source)),
            dtype=dtype,
            device=device,
            trust_remote_code=trust_remote_code,
            cpu_kernels=cpu_kernels,
        )
        return base.with_adapter("loaded", Path(source))
    with readable(f"model {str(source)!r}"), silent_bars():
        model = AutoModelForCausalLM.from_pretrained(source, dtype=DTYPES[dtype], trust_remote_code=trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    return LanguageModel(model.to(device), tokenizer, cpu_kernels=cpu_kernels)


@contextlib.contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Restore a live model's training modes after the block, because a `LanguageModel` switches them off."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
