"""Write run and evaluation directories with chosen contents, in the package's format."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from selfcorrect.config.toml import load_config, to_toml
from selfcorrect.evaluation.metrics import summarize
from selfcorrect.storage.episode_log import StoredEpisode

Texts = Sequence[str]
"""The attempts at one problem, whose correct answer is "7"."""


def record(number: int, texts: Texts, *, model: str = "score", sample: int = 0, **more: Any) -> dict[str, Any]:
    """Return a stored episode; an attempt is correct if it is "7", and "" has no answer."""
    return {
        "schema": 1,
        "stage": model,
        "step": 3,
        "problem_id": f"p{number}",
        "sample": sample,
        "prompt": f"problem {number}: 3+4=",
        "reference": "7",
        "difficulty": f"level {number % 2}",
        "turns": [
            {
                "text": text,
                "tokens": [1] * len(text),
                "verdict": "right" if text == "7" else "wrong" if text else "no_answer",
                "extracted": text or None,
                "stop": "end",
                "detail": "",
                "online": True,
            }
            for text in texts
        ],
        **more,
    }


def episode(number: int, texts: Texts, **more: Any) -> StoredEpisode:
    """Return the same episode as it is read."""
    return StoredEpisode.from_json(record(number, texts, **more))


def results(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    ids = [r["problem_id"] for r in records]
    return summarize(ids, [StoredEpisode.from_json(r).graded() for r in records], seed=0).to_json()


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def write_run(
    path: Path,
    *,
    seed: int,
    models: Mapping[str, Sequence[Mapping[str, Any]]],
    changes: Sequence[str] = (),
    steps: int = 4,
    base_digest: str = "same",
) -> None:
    """Write a finished run whose models made the given episodes; its reward grows by 0.1 per step."""
    path.mkdir(parents=True)
    config = load_config("demo", [f"seed={seed}", *changes])
    (path / "config.toml").write_text(to_toml(config), encoding="utf-8")
    stages = [name for name in config.stages for _ in range(steps)]
    numbers = [*range(1, steps + 1)] * len(config.stages)
    lines = [
        {"stage": stage, "step": n, "r1": 0.1 * n, "r2": 0.1 * n + 0.01 * seed, "delta": 0.01 * seed, "i_to_c": 0.1,
         "c_to_i": 0.1, "answer_change_rate": 0.5, "kl_base_t1": 0.2 * n, "kl_base_t2": 0.3 * n}
        for stage, n in zip(stages, numbers, strict=True)
    ]  # fmt: skip
    write_lines(path / "metrics.jsonl", lines)
    for name, records in models.items():
        write_lines(path / "episodes" / f"eval-{name}-attempts.jsonl", records)
    summary = {
        "schema": 1,
        "provenance": {"model_digests": {n: base_digest if n == "base" else f"{path}:{n}" for n in models}},
        "results": {name: results(records) for name, records in models.items()},
    }
    (path / "summary.json").write_text(json.dumps(summary), encoding="utf-8")


def write_evaluation(
    path: Path, records: Sequence[Mapping[str, Any]], *, digest: str, seed: int = 0, **plan: Any
) -> None:
    """Write a finished evaluation that made the given episodes."""
    path.mkdir(parents=True)
    turns = len(records[0]["turns"])
    plan = {"turns": turns, "seed": seed, "max_tokens": 8, "temperature": 0.0, "samples": 1,
            "sampled_temperature": None, "controls": False, **plan}  # fmt: skip
    identity = {
        "schema": 1,
        "task": {"name": "addition", "version": "1"},
        "problems": {"split": "test", "data_seed": 0, "count": len(records), "digest": "d"},
        "dtype": "float32",
        "model": {"digest": digest, "source": "some/model"},
        "plan": plan,
    }
    (path / "eval.json").write_text(json.dumps(identity), encoding="utf-8")
    write_lines(path / "episodes" / "eval-attempts.jsonl", records)
    (path / "summary.json").write_text(json.dumps({"results": {"model": results(records)}}), encoding="utf-8")


def comparison(folder: Path, *, problems: int = 20) -> None:
    """Write two methods, "score" with seeds 0-2 and "no-bonus" with seeds 0 and 1, and two evaluations.

    Out of every 10 problems, 3 are incorrect twice. Out of the other 7, the base fixes 1 and breaks 2, "score" fixes 3 and
    breaks s with seed s, "no-bonus" fixes 1 (seed 0) or 2 (seed 1) and breaks none; the rest are correct twice.
    """

    def episodes(model: str, corrected: int, spoilt: int) -> list[dict[str, Any]]:
        kinds: list[Texts] = [("6", "7")] * corrected + [("7", "1")] * spoilt
        kinds += [("7", "7")] * (7 - len(kinds)) + [("0", "0")] * 3
        return [record(i, kinds[i % 10], model=model) for i in range(problems)]

    base = episodes("base", 1, 2)
    for seed in range(3):
        models = {"base": base, "stage1": episodes("stage1", 2, 1), "score": episodes("score", 3, seed)}
        write_run(folder / f"score/seed-{seed}", seed=seed, models=models)
    for seed in range(2):
        models = {"base": base, "score": episodes("score", 1 + seed, 0)}
        write_run(folder / f"no-bonus/seed-{seed}", seed=seed, models=models, changes=["stages.score.bonus=0"])
    longer = [record(i, ("0", "7", "7") if i % 2 else ("0", "0", "7")) for i in range(problems)]
    write_evaluation(folder / "evals/three", longer, digest="same")
    drawn = [record(i, ("7" if s % 2 else "1", "7"), sample=s) for i in range(4) for s in range(4)]
    write_evaluation(folder / "evals/many", drawn, digest="same", temperature=0.7, samples=4)
