"""Memory that products of many shapes leave behind (`selfcorrect.runtime.ENVIRONMENT`)."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from selfcorrect.runtime import ENVIRONMENT

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this torch has no oneDNN")
@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="this C library does not say what it has handed out"
)
def test_products_of_ever_new_shapes_take_no_further_memory() -> None:
    caches = {name: value for name, value in ENVIRONMENT.items() if name.endswith("_CACHE_CAPACITY")}
    assert len(caches) == 2
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", "--products"],
        cwd=ROOT,
        env={**os.environ, **caches, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    handed_out = {int(shapes): float(mib) for shapes, mib in re.findall(r"(\d+) shapes: ([\d.]+) MiB", done.stdout)}
    assert handed_out[600] - handed_out[200] < 10  # 400 products of half a MiB each would be 200
