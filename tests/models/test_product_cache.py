"""Memory that products of many shapes leave behind (`selfcorrect.runtime.ENVIRONMENT`)."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest
import torch

from selfcorrect.runtime import ENVIRONMENT

PRODUCTS = """
import ctypes, torch

class Heap(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena o s b mapped u f used free keep".split()]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Heap
weight = torch.ones(256, 256)
for rows in range(8, 408):
    torch.ops.mkldnn._linear_pointwise(torch.ones(rows, 256), weight, None, "none", [], "")
    if rows in (207, 407):
        heap = libc.mallinfo2()
        print(heap.used + heap.mapped)
"""


@pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this torch has no oneDNN")
@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="this C library does not say what it has handed out"
)
def test_products_of_ever_new_shapes_take_no_further_memory():
    done = subprocess.run(
        [sys.executable, "-c", PRODUCTS],
        env={**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    after_200, after_400 = map(int, done.stdout.split())
    assert after_400 - after_200 < 10 * 2**20  # 200 products of half a MiB each would be 100
