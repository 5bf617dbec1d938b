"""What this processor computes well."""

from __future__ import annotations

import functools

import torch


@functools.cache
def has_bfloat16() -> bool:
    """Return whether this processor multiplies matrices in bfloat16, at about twice its rate in float32: AVX-512 BF16 or AMX.

    Others, where torch supports bfloat16 at all, convert every operand. oneDNN may be kept from instructions that the
    processor has (`ONEDNN_MAX_CPU_ISA`), so it is asked too.
    """
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    native = any(getattr(torch.cpu, name, lambda: False)() for name in names)
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return native and torch.backends.mkldnn.is_available() and supported is not None and bool(supported())
