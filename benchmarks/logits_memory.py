"""Measure the peak memory of scoring tokens with a large vocabulary, forward and backward.

The model is a Llama with one layer, width 32 and Qwen's vocabulary; each line is measured in a separate process.

    python -m benchmarks.logits_memory
"""

from __future__ import annotations

import multiprocessing
import resource

TOKENS = (0, 256, 512, 1024)
VOCABULARY = 151_936
MIB = 2**20


def peak(tokens: int) -> float:
    """Return the peak MiB of this process after scoring ``tokens`` tokens."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from selfcorrect.models.language_model import LanguageModel
    from selfcorrect.training.batch import pack
    from selfcorrect.training.sample import Segment, TrainingSample
    from selfcorrect.training.scoring import score
    from selfcorrect.zoo.addition import make_tokenizer

    torch.set_num_threads(1)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokenizer = make_tokenizer()
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model = LanguageModel(LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **sizes, **ends)), tokenizer)
    if tokens:
        attempts = [Segment((3, 4), (7,) * (tokens // 2), turn) for turn in (0, 1)]
        rows = pack([TrainingSample.of_segments(attempts)], [0], pad_id=model.pad_id)
        score(model, rows, 1.0).logprobs_S.sum().backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB


def main() -> None:
    """Print the table."""
    print("| scored tokens | peak memory of the process | all logits at once |\n|---|---|---|")
    for tokens in TOKENS:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found = pool.apply(peak, (tokens,))
        logits = f"{tokens * VOCABULARY * 4 / MIB:.0f} MiB" if tokens else ""
        print(f"| {tokens or 'none yet'} | {found:.0f} MiB | {logits} |")


if __name__ == "__main__":
    main()
