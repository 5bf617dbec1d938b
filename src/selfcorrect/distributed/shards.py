"""Models whose weights lie in shards over the processes of a run (FSDP2), and what may be done with the shards.

Each decoder layer is one group of weights, and the rest (embeddings, last norm, head) another. A group is gathered for its
forward and its backward pass. FSDP2 does this in hooks of the modules' ``forward``, so a step calls the model in one of two ways:

- Scoring is one call of the root (`Shards.as_forward`). Every process makes the same calls in the same order, since each call
  exchanges weights. A backward pass adds up the gradients of all processes.
- Sampling runs within `Shards.whole`, which gathers everything once. Inside there are no exchanges, so processes may sample
  different numbers of tokens.

What goes wrong silently otherwise is tested in ``tests/system/test_shards.py``.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from selfcorrect.distributed.world import World
from selfcorrect.errors import ConfigError, TrainingError
from selfcorrect.models.dtypes import ROUNDED
from selfcorrect.models.language_model import LanguageModel

T = TypeVar("T")
CALLED = "called_with"
"""The forward method of a sharded model that calls a function."""


class Shards:
    """The placement of a model in shards; `shard` makes it."""

    sharded = True

    def __init__(
        self, root: Any, layers: Sequence[Any], world: World, *, mesh: Any, blank: Any, rounded: torch.dtype | None
    ) -> None:
        self.root, self.layers, self.world, self.mesh = root, layers, world, mesh
        self.blank, self.rounded = blank, rounded
        self.in_parts = False

    def as_forward(self, function: Callable[[], T]) -> T:
        """Return what the function returns, called as a forward method of the root."""
        called: T = getattr(self.root, CALLED)(function)
        return called

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Hold all weights whole within the block; only its beginning exchanges anything.

        The modules called inside enter FSDP2's order of forward passes, by which a backward pass fetches weights ahead.
        Processes that call differently often would then wait for each other for ever, so the end resets that order.
        """
        if self.in_parts:
            yield
            return
        for layer in self.layers:
            layer.set_reshard_after_forward(False, recurse=False)
        for group in (self.root, *self.layers):
            group.unshard()
        self.in_parts = True
        try:
            yield
        finally:
            self.in_parts = False
            for layer in self.layers:
                layer.set_reshard_after_forward(True, recurse=False)
            self.root.reset_iter_state()  # also shards the weights again

    def release(self) -> None:
        """Shard the root's own weights again. A forward pass leaves them whole for the backward pass."""
        self.root.reset_iter_state()

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return a new tensor of this shape as a shard like those of the weights."""
        from torch.distributed.tensor import Shard
        from torch.distributed.tensor import empty as empty_shard

        made: Tensor = empty_shard(*shape, dtype=dtype, device_mesh=self.mesh, placements=[Shard(0)])
        return made

    def full(self, tensor: Tensor) -> Tensor:
        """Return a weight whole, in the dtype that the model computes with."""
        return full_tensor(tensor).to(self.rounded) if self.rounded and is_shard(tensor) else full_tensor(tensor)

    def gathered(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the weights whole and on the CPU in the first process, none elsewhere; tied names stay one tensor."""
        found: dict[int, Tensor] = {}
        for tensor in tensors.values():
            if id(tensor) not in found:
                whole = self.full(tensor)
                found[id(tensor)] = whole.cpu() if self.world.first else whole.new_empty(0)
        return {name: found[id(tensor)] for name, tensor in tensors.items()} if self.world.first else {}


def shard(model: LanguageModel, world: World, *, device: str | None = None) -> None:
    """Shard a model's weights over the processes, in place; one process, and a model in shards, keep theirs.

    A model in the host's memory may have another ``device``, to which it goes layer by layer.

    Do this before making an optimizer. Adapters stay whole in every process. Weights in bfloat16 that are trained become
    float32 shards and are rounded whenever they are gathered, so no other master weights are needed.

    Raises:
        ConfigError: see `placed`.
    """
    if world.size == 1 or model.placement.sharded:
        return
    model.adapters.placement = shards = placed(
        model.model,
        world,
        dtype=model.dtype,
        device=torch.device(device or model.device).type,
        adapters=model.adapters.added(),
    )
    _first_pass(model, shards)


def placed(
    root: Any, world: World, *, dtype: torch.dtype, device: str, adapters: Collection[nn.Parameter] = ()
) -> Shards:
    """Shard the weights of a model that computes in ``dtype``, in place; they may not exist yet (the `meta` device).

    A forward pass of the root must follow before anything else, and then `Shards.release`.

    Raises:
        ConfigError: this torch cannot do it.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    if not hasattr(FSDPModule, "reset_iter_state"):
        raise ConfigError(f"distributed.shard needs torch 2.13 or later, and this is {torch.__version__}.")
    weights = [weight for weight in root.parameters() if weight not in adapters]
    rounded = dtype if dtype in ROUNDED and any(weight.requires_grad for weight in weights) else None
    mesh = init_device_mesh(device, (world.size,))
    options: dict[str, Any] = {"mesh": mesh, "ignored_params": set(adapters)}
    blank = _blank(root)
    if rounded:
        for weight in weights:
            weight.data = weight.data.float()
        options["mp_policy"] = MixedPrecisionPolicy(param_dtype=rounded, reduce_dtype=torch.float32)
    layers = decoder_layers(root.get_decoder())
    for module in (*layers, root):
        fully_shard(module, **options)
        module.set_gradient_divide_factor(1.0)  # sums over the processes; the default is a mean
        module.set_force_sum_reduction_for_comms(True)  # gloo knows no sum with a factor
    setattr(root, CALLED, lambda function: function())
    register_fsdp_forward_method(root, CALLED)  # before `fully_shard` it would do nothing
    return Shards(root, layers, world, mesh=mesh, blank=blank, rounded=rounded)


def _first_pass(model: LanguageModel, shards: Shards) -> None:
    """Call the root once, which makes it the root for FSDP2; then no parameter may stay whole for an optimizer to find."""
    with torch.no_grad():
        ids = torch.zeros((1, 1), dtype=torch.long, device=model.device)
        shards.as_forward(lambda: model.decode(ids).last_hidden_state)
    shards.release()


def _blank(root: Any) -> Any:
    """Return the same model without weights (on the `meta` device), which saves others' weights as its own."""
    memo = {id(weight): nn.Parameter(torch.empty_like(weight, device="meta"), False) for weight in root.parameters()}
    return copy.deepcopy(root, memo)  # type: ignore[arg-type]


def decoder_layers(decoder: nn.Module) -> list[nn.Module]:
    """Return the decoder's layers: its longest list of modules."""
    lists = [list(child) for child in decoder.children() if isinstance(child, nn.ModuleList)]
    return max(lists, key=len, default=[])


# -- tensors that may be shards ------------------------------------------------------------------------------------


def is_shard(tensor: Tensor) -> bool:
    """Return whether this process holds only a shard of the tensor. FSDP2 adds up the gradients of such parameters."""
    module = sys.modules.get("torch.distributed.tensor")  # imported by whoever made the shard; it takes a second
    return module is not None and isinstance(tensor, module.DTensor)


def full_tensor(tensor: Tensor) -> Tensor:
    """Return the whole of a shard, which all processes must ask for, or the tensor itself."""
    if not is_shard(tensor):
        return tensor
    shard: Any = tensor
    with torch.no_grad():
        whole: Tensor = shard.full_tensor()
        return whole


def like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Return the shard of a whole tensor that fits a shard of the same shape, without an exchange; or the tensor itself."""
    if is_shard(tensor) or not is_shard(parameter) or tensor.shape != parameter.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    own, shard = tensor.to(parameter.device), cast(Any, parameter)
    return distribute_tensor(own, shard.device_mesh, shard.placements, src_data_rank=None)


def assert_sharded(parameters: Sequence[Tensor]) -> None:
    """Reject parameters that a forward pass has gathered: an optimizer of these would never train the model.

    Raises:
        TrainingError: some are whole.
    """
    whole = sum(not is_shard(parameter) for parameter in parameters)
    if whole:
        raise TrainingError(
            f"{whole} of {len(parameters)} trained parameters are whole while the optimizer is made, after a forward pass: "
            "they would never be trained. Make it right after `shard`, or after `release`."
        )


def norm(tensors: Sequence[Tensor]) -> float:
    """Return the norm of all tensors as one vector, in float64."""
    norms = [full_tensor(torch.linalg.vector_norm(tensor, dtype=torch.float64)) for tensor in tensors]
    return float(torch.stack(norms).norm())
