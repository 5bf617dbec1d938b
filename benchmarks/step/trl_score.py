"""Run TRL's side, SCoRe's second stage on `GRPOTrainer`: ``python trl_score.py FOLDER SETTINGS``.

The interpreter of TRL's own environment runs it, so it imports nothing of this package but the protocol's module, from
the same folder. SCoRe is expressed like this:

1. Two turns: a ``rollout_func`` samples both attempts with `generate` and gives them to the trainer as one completion,
   with the words between them masked (``env_mask``).
2. A reward per attempt and the bonus: a reward function keeps the rewards; an override of
   ``_generate_and_score_completions`` turns them into leave-one-out advantages per turn, [B, T], a shape that the
   trainer's loss accepts.
3. KL: ``beta``, as a term of the loss. The second stage anchors both turns equally, so one coefficient suffices.
4. The sum over tokens without length normalisation: ``loss_type="dr_grpo"``, which divides by a constant.

Forced lengths: `generate` has no end token and samples every row up to the longest length; longer rows are truncated.
TRL features that only cost time here are off: gradient checkpointing, logging, saving.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# stdout carries only answers; all other output goes to stderr.
OUT = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import protocol  # type: ignore[import-not-found]  # in this script's folder; needs only the standard library
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

PASSES = 64
"""Repetitions of the problems in the data set: a pass rarely ends, so its cost stays out of the steps."""


def keep_freed_memory() -> None:
    """Make glibc keep freed memory and map no large block by itself, as on our side."""
    mallopt = ctypes.CDLL(None).mallopt
    if mallopt(-3, 1 << 30) or mallopt(-3, 32 << 20):
        mallopt(-1, (1 << 31) - 1)


class Clock:
    """A clock that adds up the seconds of a step by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        protocol.wait()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start


class Rollout:
    """A sampler of both attempts. ``prompts`` are problem numbers as text; a problem's samples are adjacent."""

    def __init__(self, work: dict[str, Any], *, continued: bool, clock: Clock) -> None:
        self.work, self.continued, self.clock = work, continued, clock
        self.group = int(work["workload"]["group"])

    def __call__(self, prompts: Sequence[str], trainer: Any) -> dict[str, Any]:
        with self.clock("generate"), torch.no_grad():
            return self._both(list(map(int, prompts)), trainer)

    def _both(self, problems: list[int], trainer: Any) -> dict[str, Any]:
        work = self.work
        lengths = [work["lengths"][p][i % self.group] for i, p in enumerate(problems)]
        first = [work["prompt_ids"][p] for p in problems]
        observation = [work["glue_ids"][p] for p in problems]
        ones, cache = generate(trainer, first, [length[0] for length in lengths])
        second = [[*a, *b, *c] for a, b, c in zip(first, ones, observation, strict=True)]
        # Only a cache without padding between its tokens can be continued; any other would have to be rebuilt.
        even = len({(len(a), len(b), len(c)) for a, b, c in zip(first, ones, observation, strict=True)}) == 1
        twos, _ = generate(
            trainer, second, [length[1] for length in lengths], cache if even and self.continued else None
        )
        parts = list(zip(ones, observation, twos, strict=True))
        return {
            "prompt_ids": first,
            "completion_ids": [[*a, *g, *b] for a, g, b in parts],
            "logprobs": None,
            "env_mask": [[1] * len(a) + [0] * len(g) + [1] * len(b) for a, g, b in parts],
            "attempts": [[a, b] for a, _, b in parts],
            "problem": problems,
        }


def generate(
    trainer: Any, contexts: Sequence[list[int]], lengths: Sequence[int], cache: Any = None
) -> tuple[list[list[int]], Any]:
    """Return samples of exactly these lengths, from the full softmax at temperature 1, and the cache after them."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    pad = trainer.processing_class.pad_token_id
    longest = max(map(len, contexts))
    ids = torch.tensor([[pad] * (longest - len(c)) + c for c in contexts])
    mask = torch.tensor([[0] * (longest - len(c)) + [1] * len(c) for c in contexts])
    model.generation_config.eos_token_id = None
    config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=max(lengths),
        pad_token_id=pad,
        return_dict_in_generate=True,
    )
    given = {} if cache is None else {"past_key_values": cache}
    device = model.device
    out = model.generate(
        ids.to(device),
        attention_mask=mask.to(device),
        generation_config=config,
        **given,
    )
    sampled = out.sequences[:, longest:].tolist()
    assert all(len(row) >= length for row, length in zip(sampled, lengths, strict=True)), "a row ended early"
    return [row[:length] for row, length in zip(sampled, lengths, strict=True)], out.past_key_values


class Rewards:
    """The reward function: it matches both attempts with the problem's pattern and keeps the rewards by turn."""

    __name__ = "attempts"

    def __init__(self, work: dict[str, Any], tokenizer: Any) -> None:
        self.patterns, self.tokenizer = work["patterns"], tokenizer
        self.last_NK = torch.zeros(0, 2)

    def __call__(self, *, attempts: Any, problem: Sequence[int], **_: Any) -> list[float]:
        texts = self.tokenizer.batch_decode([ids for pair in attempts for ids in pair], skip_special_tokens=True)
        patterns = [self.patterns[p] for p in problem for _ in range(2)]
        rewards = [
            float(re.fullmatch(pattern, "".join(text.split())) is not None)
            for pattern, text in zip(patterns, texts, strict=True)
        ]
        self.last_NK = torch.tensor(rewards).view(-1, 2)
        return self.last_NK.sum(1).tolist()


class ScoreTrainer(GRPOTrainer):  # type: ignore[misc]
    """`GRPOTrainer` with an advantage per turn and a clock."""

    def set_up(self, work: dict[str, Any], rewards: Rewards, clock: Clock) -> None:
        """Set the attributes that the overrides need."""
        self.work, self.rewards, self.clock = work, rewards, clock
        self.sampled = 0

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        output = super()._generate_and_score_completions(inputs)
        # The completion mask marks all tokens, the tool mask the sampled ones; a turn ends where the observation begins.
        sampled_BT = output["completion_mask"] * output["tool_mask"]
        after_glue_BT = (output["completion_mask"] * (1 - output["tool_mask"])).cumsum(1) > 0
        advantages_NK = self._advantages().to(sampled_BT.device)
        output["advantages"] = sampled_BT * torch.where(after_glue_BT, advantages_NK[:, 1:], advantages_NK[:, :1])
        self.sampled = int(sampled_BT.sum())
        return output

    def _advantages(self) -> Tensor:
        """Return leave-one-out advantages of r1 and of r2 + bonus (r2 - r1), [N, K]."""
        rewards_NK, group = self.rewards.last_NK, self.num_generations
        shaped_NK = rewards_NK.clone()
        shaped_NK[:, 1] += self.work["bonus"] * (rewards_NK[:, 1] - rewards_NK[:, 0])
        shaped_PGK = shaped_NK.view(-1, group, 2)
        others_PGK = (shaped_PGK.sum(1, keepdim=True) - shaped_PGK) / (group - 1)
        advantages_NK: Tensor = (shaped_PGK - others_PGK).view(-1, 2)
        return advantages_NK

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
        with self.clock("reward"):
            return super()._calculate_rewards(*args, **kwargs)

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)
        with self.clock("reference"):
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)

    def _prepare_inputs(self, *args: Any, **kwargs: Any) -> Any:
        with self.clock("inputs"):
            return super()._prepare_inputs(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Run a micro-batch forward and backward; the first one of a step also runs the rollout."""
        with self.clock("micro-batches"):
            return super().training_step(*args, **kwargs)


class OnCommand(TrainerCallback):  # type: ignore[misc]
    """A callback that makes each step wait for its command and answers at its end."""

    def __init__(self, trainer: ScoreTrainer, loaded: float) -> None:
        self.trainer, self.loaded, self.begin, self.used = trainer, loaded, 0.0, 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        if not sys.stdin.readline():
            sys.exit(0)
        self.trainer.clock.seconds.clear()
        protocol.forget_peak()
        self.begin, self.used = time.perf_counter(), time.process_time()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        protocol.wait()
        total, seconds = time.perf_counter() - self.begin, self.trainer.clock.seconds
        phases = {name: seconds[name] for name in ("generate", "reward", "reference")}
        phases["learn"] = seconds["micro-batches"] - seconds["inputs"]
        phases["rest"] = total - sum(phases.values())
        say(
            {
                "seconds": total,
                "cpu_seconds": time.process_time() - self.used,
                "phases": phases,
                "tokens": self.trainer.sampled,
                "peak_mib": protocol.peak() - self.loaded,
            }
        )


def say(message: dict[str, Any]) -> None:
    """Write an answer."""
    OUT.write(json.dumps(message) + "\n")
    OUT.flush()


def grpo_config(work: dict[str, Any], settings: dict[str, Any], out: str) -> GRPOConfig:
    """Return a configuration with one optimizer step per generated batch, as in SCoRe's on-policy update."""
    episodes = work["workload"]["episodes"]
    longest = max(2 * work["workload"]["turn"] + len(observation) for observation in work["glue_ids"])
    return GRPOConfig(
        output_dir=out,
        per_device_train_batch_size=settings["rows"],
        gradient_accumulation_steps=episodes // settings["rows"],
        steps_per_generation=episodes // settings["rows"],
        num_generations=work["workload"]["group"],
        max_completion_length=longest,
        beta=work["beta"],
        learning_rate=work["learning_rate"],
        lr_scheduler_type="constant",
        max_steps=10**6,
        loss_type="dr_grpo",
        scale_rewards="none",
        temperature=1.0,
        bf16=settings["dtype"] != "float32",
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=False,
        shuffle_dataset=False,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )


def make_trainer(folder: Path, settings: dict[str, Any], out: str) -> tuple[ScoreTrainer, float]:
    """Return the trainer and the memory in use when its model was loaded."""
    work = json.loads((folder / "work.json").read_text(encoding="utf-8"))
    weights = torch.bfloat16 if settings["dtype"] == "bfloat16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(
        folder / "model", dtype=weights, attn_implementation=settings["attention"]
    )
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    # Weights are read from their file at first use; this must not count as a step's memory.
    with torch.no_grad():
        model(input_ids=torch.zeros((1, 1), dtype=torch.long, device=model.device))
    loaded = protocol.resident()
    tokenizer = AutoTokenizer.from_pretrained(folder / "model", padding_side="left")
    clock, rewards = Clock(), Rewards(work, tokenizer)
    trainer = ScoreTrainer(
        model=model,
        reward_funcs=rewards,
        args=grpo_config(work, settings, out),
        train_dataset=Dataset.from_dict({"prompt": [str(p) for p in range(len(work["prompts"]))] * PASSES}),
        processing_class=tokenizer,
        rollout_func=Rollout(work, continued=settings["continued"], clock=clock),
        peft_config=lora() if work["workload"]["lora"] else None,
    )
    trainer.set_up(work, rewards, clock)
    return trainer, loaded


def lora() -> Any:
    """Return the adapters that our side trains too (`selfcorrect.config.schema.LoRAConfig`)."""
    from peft import LoraConfig

    return LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM")


def main() -> None:
    """Answer commands."""
    settings = json.loads(sys.argv[2])
    if settings["kept_memory"]:
        keep_freed_memory()
    with tempfile.TemporaryDirectory() as out:
        trainer, loaded = make_trainer(Path(sys.argv[1]), settings, out)
        trainer.add_callback(OnCommand(trainer, loaded))
        say({"loaded_mib": loaded, "threads": torch.get_num_threads(), "torch": torch.__version__})
        trainer.train()


if __name__ == "__main__":
    main()
