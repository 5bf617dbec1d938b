"""Simulate a second device on the CPU. Like a GPU, it rejects an operation on tensors of two devices.

Its name is ``meta``, torch's device without data, because that name needs no driver. Here its tensors have data: within
`a_device`, a CPU tensor holds whatever is made on the device, and computes every operation.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

from selfcorrect.models.language_model import LanguageModel

DEVICE = torch.device("meta")
READ_BY_THE_HOST = (
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.unique_dim.default,
    torch.ops.aten._unique2.default,
)
"""Operations for which the host waits until the device has computed their input."""


@dataclass
class Counts:
    """What the host asked of the device: operations that it launched, and those for which it waited."""

    launches: int = 0
    waits: list[str] = field(default_factory=list)


_counts: list[Counts] = []


@contextlib.contextmanager
def counted() -> Iterator[Counts]:
    """Count the operations on the device within the block, those of `a_device`'s start and end excepted."""
    _counts.append(Counts())
    try:
        yield _counts[-1]
    finally:
        _counts.pop()


def _count(function: Any, *, waits: bool) -> None:
    alias = next((returned.alias_info for returned in function._schema.returns), None)
    computes = alias is None or alias.is_write  # else it is a view
    for counts in _counts:
        counts.launches += computes
        counts.waits += [str(function)] * waits


class Elsewhere(Tensor):
    """A tensor on the device."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Elsewhere:
        assert held.device.type == "cpu" and not isinstance(held, Elsewhere), held.device
        made: Elsewhere = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
            requires_grad=False,
        )
        made.held = held
        return made

    def tolist(self) -> Any:
        _count(torch.ops.aten._local_scalar_dense.default, waits=True)
        return self.held.tolist()

    def new_tensor(self, data: Any) -> Elsewhere:
        return Elsewhere(self.held.new_tensor(data))

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, arguments: Sequence[Any] = (), named: Mapping[str, Any] | None = None
    ) -> Any:
        return _computed(function, arguments, dict(named or {}))


class _Device(TorchDispatchMode):
    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Sequence[Any] = (), named: Mapping[str, Any] | None = None
    ) -> Any:
        return _computed(function, arguments, dict(named or {}))


class _Making(TorchFunctionMode):
    """A mode for `torch.tensor`, which never reaches the other mode."""

    def __torch_function__(
        self, function: Any, types: Any, arguments: Sequence[Any] = (), named: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(named or {})
        if function in (torch.tensor, torch.as_tensor) and torch.device(named.get("device") or "cpu") == DEVICE:
            return Elsewhere(function(*arguments, **{**named, "device": None}))
        return function(*arguments, **named)


def _computed(function: Any, arguments: Sequence[Any], named: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((arguments, named)) if isinstance(leaf, Tensor)]
    here = [tensor for tensor in tensors if not isinstance(tensor, Elsewhere)]
    copies = function is torch.ops.aten.copy_.default
    travels = copies or function is torch.ops.aten._to_copy.default  # between devices
    if not travels and len(here) < len(tensors) and any(tensor.ndim for tensor in here):
        raise RuntimeError(f"{function}: tensors of two devices")
    if named.get("device") is not None:
        goes = torch.device(named["device"]) == DEVICE
        named["device"] = torch.device("cpu")
    else:
        goes = isinstance(arguments[0], Elsewhere) if copies else len(here) < len(tensors)
    found = function(*tree_map(_held, arguments), **tree_map(_held, named))
    if goes or len(here) < len(tensors):
        masks = function in (
            torch.ops.aten.index.Tensor,
            torch.ops.aten.index_put_.default,
            torch.ops.aten.index_put.default,
        )
        by_mask = masks and any(index is not None and index.dtype == torch.bool for index in arguments[1])
        _count(function, waits=by_mask or function in READ_BY_THE_HOST or (travels and not goes))
    if not goes:
        return found
    wrapped = tree_map(lambda leaf: Elsewhere(leaf) if isinstance(leaf, Tensor) else leaf, found)
    return return_and_correct_aliasing(function, arguments, named, wrapped)


def _held(leaf: Any) -> Any:
    return leaf.held if isinstance(leaf, Elsewhere) else leaf


@contextlib.contextmanager
def a_device() -> Iterator[torch.device]:
    """Make the device available within the block."""
    with _Device(), _Making():
        yield DEVICE


def there(model: LanguageModel) -> LanguageModel:
    """Return a model with the same weights on the device."""
    return LanguageModel(moved(copy.deepcopy(model.model)), model.tokenizer)


def moved(module: nn.Module) -> nn.Module:
    """Return the module with its weights and buffers on the device."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                part._parameters[name] = nn.Parameter(Elsewhere(weight.detach()), requires_grad=weight.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = Elsewhere(buffer)
    return module
