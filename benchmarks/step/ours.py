"""Run our side: take trainer steps on command. ``python -m benchmarks.step.ours FOLDER [SLOWDOWN [SETTINGS...]]``."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # 70 MiB of code that the first optimizer step loads anyway; they are not the work's

from benchmarks.step import protocol as side
from benchmarks.step.flops import EpisodeLengths, ModelSize, decoding, learning
from benchmarks.step.inputs import Work, load_policy
from benchmarks.step.workloads import Workload
from selfcorrect.config.schema import Config, LoRAConfig
from selfcorrect.config.toml import load_config, make_config, with_overrides
from selfcorrect.engines import HFEngine, Request, Sampling
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.rollout.chat_format import ChatFormat
from selfcorrect.runtime import keep_freed_memory
from selfcorrect.script import Script
from selfcorrect.training.stage_trainer import StepRecord
from selfcorrect.training.trainer import Trainer
from selfcorrect.types import Outcome, Problem, Verdict

STAGE = "score"


class ForcedEngine(HFEngine):
    """An engine that ends every attempt after the tokens that the work gives it; ``lengths`` by problem, sample and turn."""

    def __init__(self, model: LanguageModel, lengths: dict[tuple[str, int, int], int], *, max_num_seqs: int) -> None:
        super().__init__(model, max_num_seqs=max_num_seqs)
        self.lengths = lengths

    def limits(self, requests: Sequence[Request], sampling: Sampling) -> list[int]:
        return [self.lengths[r.key.problem, r.key.sample, r.key.turn] for r in requests]


class PatternVerifier:
    """A verifier that accepts what matches the reference, a regular expression, and measures its own time."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def verify(self, items: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        begin = time.perf_counter()
        right = [re.fullmatch(problem.reference, "".join(text.split())) is not None for problem, text in items]
        verdicts = [Verdict(Outcome.CORRECT if ok else Outcome.INCORRECT) for ok in right]
        self.seconds += time.perf_counter() - begin
        return verdicts


class OurSide:
    """The trainer on the work in ``folder``.

    Args:
        slowdown: lengthens every step by this fraction, as a planted fault.
        changes: settings that differ from the work's, as ``key.path=value``.
    """

    def __init__(self, folder: Path, slowdown: float = 0.0, changes: Sequence[str] = ()) -> None:
        self.work, self.slowdown = Work.load(folder), slowdown
        self.workload = Workload(**{**self.work.workload, "model": ""})
        self.config = with_overrides(our_config(self.workload, self.work), changes)
        policy = load_policy(folder, self.workload.dtype, cpu_kernels=self.config.model.cpu_kernels)
        self.loaded = side.resident()
        reference = policy
        if self.workload.lora:
            policy = policy.with_adapter("policy", LoRAConfig())
            policy.end_ids = reference.end_ids
        else:
            reference = policy.frozen_copy()
        self.verifier = PatternVerifier()
        self.trainer = self._trainer(policy, reference)

    def _trainer(self, policy: LanguageModel, reference: LanguageModel) -> Trainer:
        work, config = self.work, self.config
        trainer = Trainer(
            config,
            STAGE,
            policy=policy,
            references={"base": reference},
            problems=[Problem(f"p{p}", text, work.patterns[p]) for p, text in enumerate(work.prompts)],
            chat=ChatFormat(policy.tokenizer, Script(**work.script)),
            verifier=self.verifier,
        )
        lengths = {
            (f"p{p}", g, k): length
            for p, of_problem in enumerate(work.lengths)
            for g, of_sample in enumerate(of_problem)
            for k, length in enumerate(of_sample)
        }
        trainer.sampler.engine = ForcedEngine(policy, lengths, max_num_seqs=config.rollout.max_num_seqs)
        return trainer

    def ready(self) -> dict[str, Any]:
        return {"loaded_mib": self.loaded, "threads": torch.get_num_threads(), "torch": torch.__version__}

    def step(self) -> dict[str, Any]:
        """Take a step; return seconds in total and by phase, sampled tokens, and peak memory above the loaded model."""
        self.verifier.seconds = 0.0
        side.forget_peak()
        begin, used = time.perf_counter(), time.process_time()
        record = self.trainer.step()
        side.wait()
        seconds = time.perf_counter() - begin
        while time.perf_counter() - begin < seconds * (1 + self.slowdown):
            pass
        total = time.perf_counter() - begin
        tokens = sum(turn.sampled for episode in record.episodes for turn in episode.turns)
        phases = self._phases(record, total)
        return {
            "seconds": total,
            "cpu_seconds": time.process_time() - used,
            "phases": phases,
            "tokens": tokens,
            "peak_mib": side.peak() - self.loaded,
        }

    def _phases(self, record: StepRecord, total: float) -> dict[str, float]:
        reward = self.verifier.seconds
        phases = {
            "generate": record.seconds["generate"] - reward,
            "reward": reward,
            "reference": record.seconds["reference"],
            "learn": record.seconds["learn"],
        }
        return {**phases, "rest": total - sum(phases.values())}

    def counts(self) -> dict[str, Any]:
        """Return the bytes and operations that a step of this work needs."""
        size, episodes = model_size(self.trainer.policy, lora=self.workload.lora), episode_lengths(self.work)
        decode = decoding(size, episodes, self.workload.group)
        micro_batches = -(-sum(e.total for e in episodes) // self.workload.budget)
        learn = learning(size, episodes, self.workload.group, micro_batches)
        return {
            "model": size.to_json(),
            "decoding": {"bytes": decode.bytes, "flop": decode.flop},
            "learning": {"bytes": learn.bytes, "flop": learn.flop},
        }


def our_config(workload: Workload, work: Work) -> Config:
    """Return the run's settings: the workload's configuration, or the defaults, sized to the work.

    Per-turn gradient norms cost a backward pass per turn and are off, because the other side has none.
    """
    table = load_config(workload.config).model_dump() if workload.config else {}
    table["rollout"] = {
        **table.get("rollout", {}),
        "batch_size": workload.episodes,
        "group_size": workload.group,
        "max_tokens": max(length for problem in work.lengths for sample in problem for length in sample),
    }
    table["optimizer"] = {"learning_rate": work.learning_rate, "micro_batch_tokens": workload.budget}
    table["task"] = {"train_problems": max(1, workload.problems)}
    anchors = ({"base": work.beta}, {"base": work.beta})
    table["stages"] = {STAGE: {"steps": 10**6 - 1, "reward_weights": (1, 1), "bonus": work.bonus, "kl_coefs": anchors}}
    table["log"] = {"turn_gradients_every": 0}
    return make_config(table)


def model_size(model: LanguageModel, *, lora: bool = False) -> ModelSize:
    """Return attention's shape and the elements of all matrices but the embedding, which is looked up, not multiplied."""
    config = model.model.config.get_text_config()
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    decoder = model.model.get_decoder()
    layers = sum(w.numel() for name, w in decoder.layers.named_parameters() if w.ndim == 2 and "lora_" not in name)
    return ModelSize(
        layer_weights=layers,
        head_weights=model.vocabulary * model.width,
        layers=config.num_hidden_layers,
        query_width=config.num_attention_heads * head_dim,
        cache_width=2 * config.num_key_value_heads * head_dim,
        item=torch.finfo(model.model.dtype).bits // 8,
        lora=lora,
    )


def episode_lengths(work: Work) -> list[EpisodeLengths]:
    """Return the lengths of all episodes of a step; a problem's episodes are adjacent."""
    return [
        EpisodeLengths(len(prompt), len(observation), (turns[0], turns[1]))
        for prompt, observation, samples in zip(work.prompt_ids, work.glue_ids, work.lengths, strict=True)
        for turns in samples
    ]


def main() -> None:
    """Answer commands."""
    keep_freed_memory()
    ours = OurSide(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 0.0, sys.argv[3:])
    side.answer({"step": ours.step, "counts": ours.counts}, ours.ready)


if __name__ == "__main__":
    main()
