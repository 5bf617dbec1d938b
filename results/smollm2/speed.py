"""Processor time of SmolLM2-135M-Instruct: two number formats, and a learner that reads shared prompts once.

    OMP_NUM_THREADS=1 python results/smollm2/speed.py

Processor time, not the clock: the machine may be doing other things.
"""

import time

import torch

from selfcorrect.config.schema import ModelConfig
from selfcorrect.training.batch import pack
from selfcorrect.training.sample import Segment, TrainingSample
from selfcorrect.training.scoring import score
from selfcorrect.zoo.resolve import find_model

TOKENS = 128
PROBLEMS, SAMPLES, PROMPT, ANSWER, OBSERVATION = 4, 4, 42, 9, 18  # a step of run-seed-0


def seconds(work):
    start = time.process_time()
    work()
    return time.process_time() - start


def read(model):
    with torch.no_grad():
        model.decode(torch.arange(TOKENS).view(2, -1))


def a_step():
    """Samples of the lengths that run-seed-0 has, of arbitrary tokens."""

    def segment(observation_ids, first, turn):
        return Segment(observation_ids, range(first, first + ANSWER), turn)

    return [
        TrainingSample.of_segments(
            [segment((100 + p,) * PROMPT, 200 + s, 0), segment((300,) * OBSERVATION, 400 + s, 1)]
        )
        for p in range(PROBLEMS)
        for s in range(SAMPLES)
    ]


def main():
    for dtype in ("bfloat16", "float32"):
        model = find_model(ModelConfig(source="smollm2-135m", dtype=dtype), seed=0)
        read(model)  # the first call sets things up
        found = seconds(lambda model=model: read(model))
        print(f"{dtype}: {TOKENS} tokens read in {found:.2f} s, {TOKENS / found:.0f} a second", flush=True)
    samples = a_step()
    with torch.no_grad():
        for share in (False, True):
            rows = pack(samples, range(len(samples)), pad_id=0, share_prompts=share)
            found = seconds(lambda rows=rows: score(model, rows, 1.0))
            print(
                f"{len(samples)} episodes scored, prompts read {'once' if share else 'each time'}: {found:.2f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
