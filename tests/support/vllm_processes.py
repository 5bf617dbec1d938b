"""A short run with vLLM, then an evaluation with it, in one of several processes.

As a script it is one of the processes: ``python tests/support/vllm_processes.py MODEL OUT [SETTING ...]``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # where it runs as a script

from selfcorrect import runtime

if __name__ == "__main__":
    os.environ |= runtime.ENVIRONMENT  # before torch is imported, as the command line does
from selfcorrect.config.toml import load_config
from selfcorrect.distributed.world import joined
from selfcorrect.evaluation.evaluate import evaluate
from selfcorrect.runs.run import train
from support.crash import SETTINGS
from support.verifiers import lenient_additions

CHANGES = ("rollout.engine=vllm", "rollout.max_num_seqs=16", "eval.controls=false")


def main(model: str, out: Path, *settings: str) -> None:
    """Train a few steps of both stages, and evaluate the result with an engine of its own."""
    config = load_config("demo", [*SETTINGS, *CHANGES, f"model.source={model}", *settings])
    with lenient_additions(), joined() as world:
        train(config, out / "run", world=world)
        evaluate(
            str(out / "run"), "addition", engine="vllm", limit=7, max_tokens=6, max_num_seqs=8, device="cpu",
            out=out / "eval", world=world,
        )  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
