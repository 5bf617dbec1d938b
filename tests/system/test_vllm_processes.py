"""Test runs and evaluations over two processes, each with its own vLLM engine, against one process."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from support import vllm_processes
from support.processes import free_port, launcher_environment
from support.two_turns import real

from selfcorrect.models.language_model import load_model
from selfcorrect.storage.files import read_jsonl

pytestmark = pytest.mark.vllm

LIMIT_S = 300
"""A hang is a failed test, not a hung suite."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    real(3).save(path)
    return path


@pytest.fixture(scope="module")
def alone(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(model, tmp_path_factory.mktemp("alone"), count=1)


def finished(model: Path, out: Path, *settings: str, count: int) -> Path:
    """Return the directory of the run and the evaluation of ``count`` processes, which have ended well."""
    command = [sys.executable, vllm_processes.__file__, str(model), str(out), *settings]
    port = free_port()
    with ExitStack() as stack:
        logs = [stack.enter_context((out / f"{rank}.log").open("wb")) for rank in range(count)]
        processes = [
            subprocess.Popen(command, env=launcher_environment(rank, count, port), stdout=log, stderr=log)
            for rank, log in enumerate(logs)
        ]
        for process in processes:
            stack.callback(process.wait)
            stack.callback(process.kill)
        ended = [process.wait(LIMIT_S) for process in processes]
    assert not any(ended), (out / f"{ended.index(max(ended))}.log").read_text()[-3000:]
    return out


@pytest.mark.parametrize(
    "shard",
    [pytest.param("false", marks=pytest.mark.nightly), "true"],
    ids=["replicated", "sharded"],
)
def test_an_engine_in_each_process_samples_what_one_does(shard: str, model: Path, alone: Path, tmp_path: Path) -> None:
    """Every process samples, learns, hands over the weights and samples again; then an evaluation opens another engine."""
    out = finished(model, tmp_path, f"distributed.shard={shard}", count=2)
    names = [path.relative_to(alone) for path in sorted(alone.rglob("*.jsonl")) if "episodes" in path.parts]
    assert len(names) > 4
    for name in names:
        ours, others = read_jsonl(out / name), read_jsonl(alone / name)
        assert [[t["tokens"] for t in e["turns"]] for e in ours] == [
            [t["tokens"] for t in e["turns"]] for e in others
        ], name
    steps = [read_jsonl(place / "run/metrics.jsonl") for place in (out, alone)]
    assert len(steps[0]) == 7
    for two, one in zip(*steps, strict=True):
        assert one["gradient_norm"] > 0, "nothing is learned"
        assert two["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=5e-3)
        assert two["max_logprob_diff"] < 1e-3, "an engine does not have the policy's weights"
    weights = [load_model(place / "run/checkpoints/score").model.state_dict() for place in (out, alone)]
    start = load_model(model).model.state_dict()
    for name, weight in weights[1].items():
        moved = (weight - start[name]).norm()
        assert moved > 0 and (weights[0][name] - weight).norm() < 0.02 * moved, name
