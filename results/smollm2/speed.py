"""Seconds of processor time for SmolLM2-135M-Instruct to read 256 tokens, by number format:

    OMP_NUM_THREADS=1 python results/smollm2/speed.py

Processor time, not the clock: the machine may be doing other things.
"""

import time

import torch

from selfcorrect.config import ModelConfig
from selfcorrect.models import find_model

ROWS, TOKENS = 4, 64


def seconds(dtype):
    model = find_model(ModelConfig(source="smollm2-135m", dtype=dtype), seed=0)
    ids = torch.arange(ROWS * TOKENS).view(ROWS, TOKENS)
    with torch.no_grad():
        model.decode(ids[:1])  # the first call sets things up
        start = time.process_time()
        model.decode(ids)
    return time.process_time() - start


if __name__ == "__main__":
    for dtype in ("float32", "bfloat16"):
        found = seconds(dtype)
        print(f"{dtype}: {found:.2f} s, {ROWS * TOKENS / found:.0f} tokens a second")
