"""Export an evaluation's episodes as an `inspect_ai` log for its viewer (``inspect view``).

Each episode is one sample: the conversation as messages, and for every attempt a score ``t1``, ``t2``, ... of C or I
with the extracted answer and the verdict. The log's results are this evaluation's metrics, not inspect_ai's.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from selfcorrect.errors import ConfigError, DataError
from selfcorrect.evaluation.flat_metrics import flat_metrics
from selfcorrect.extras import require
from selfcorrect.script import Script
from selfcorrect.storage.episode_log import StoredEpisode, StoredTurn, episodes_file, read_episodes
from selfcorrect.storage.evaluation_dir import read_identity
from selfcorrect.storage.seal import check_seal, read_results
from selfcorrect.types import Part, StopReason

ENDINGS = (".eval", ".json")


def export(path: str | Path, out: str | Path, *, part: str = Part.ATTEMPTS) -> int:
    """Write the episodes of an evaluation's directory as a log; return their number.

    Args:
        out: the log's path, ending in ``.eval`` (compressed) or ``.json``.
        part: which episodes; see `selfcorrect show`.

    Raises:
        ConfigError: ``out`` has another ending, or inspect_ai is not installed.
        DataError: there is no evaluation in ``path``, or ``out`` exists already.
    """
    path, out = Path(path), Path(out)
    if out.suffix not in ENDINGS:
        raise ConfigError(f"out = {out}: an inspect_ai log ends in {' or '.join(ENDINGS)}.")
    if os.path.lexists(out):  # a link that leads nowhere would be written through
        raise DataError(f"{out} exists already: choose another name.")
    inspect_log = require("inspect_ai.log", extra="inspect", why="the export")
    identity = read_identity(path)
    check_seal(path)
    if "script" not in identity:
        raise DataError(f"{path / 'eval.json'} holds no script, so the conversations are unknown: evaluate again.")
    script = Script(**identity["script"])
    samples = [_sample(episode, script) for episode in read_episodes(episodes_file(path, part=Part(part)))]
    out.parent.mkdir(parents=True, exist_ok=True)
    inspect_log.write_eval_log(_log(path, identity, samples, part), str(out))
    return len(samples)


def _sample(episode: StoredEpisode, script: Script) -> Any:
    """Return one episode as a sample; inspect_ai counts the samples of a problem as epochs, from 1."""
    from inspect_ai.log import EvalSample
    from inspect_ai.model import ModelOutput

    last = next(turn for turn in reversed(episode.turns) if not turn.skipped)
    return EvalSample(
        id=episode.problem_id,
        epoch=episode.sample + 1,
        input=episode.prompt,
        target=episode.reference,
        messages=list(_messages(episode, script)),
        output=ModelOutput.from_content("", last.text, "max_tokens" if last.stop is StopReason.LENGTH else "stop"),
        scores={f"t{k}": _score(turn) for k, turn in enumerate(episode.attempts, 1)},
        metadata={"difficulty": episode.difficulty},
    )


def _messages(episode: StoredEpisode, script: Script) -> Iterator[Any]:
    from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem, ChatMessageUser

    if script.system:
        yield ChatMessageSystem(content=script.system)
    for said, turn in zip(script.user_turns(episode.prompt), episode.turns, strict=False):
        if turn.skipped:
            return
        yield ChatMessageUser(content=said.text)
        yield ChatMessageAssistant(content=turn.text)


def _score(turn: StoredTurn) -> Any:
    from inspect_ai.scorer import CORRECT, INCORRECT, Score

    verdict = turn.judged
    by_rule = {name: outcome.value for name, outcome in verdict.by_rule.items()}
    more = {"verdict": verdict.outcome.value, "tokens": turn.length, "stop": turn.stop.value, **by_rule}
    value = CORRECT if verdict.correct else INCORRECT
    return Score(value=value, answer=verdict.extracted, explanation=verdict.detail or None, metadata=more)


def _log(path: Path, identity: Mapping[str, Any], samples: list[Any], part: str) -> Any:
    from inspect_ai.log import EvalConfig, EvalDataset, EvalLog, EvalSpec

    name = identity["task"]["name"].replace(":", "_")
    spec = EvalSpec(
        created=datetime.fromtimestamp((path / "eval.json").stat().st_mtime, UTC).isoformat(timespec="seconds"),
        task=f"{name}_{part}",
        task_version=identity["task"]["version"],
        dataset=EvalDataset(name=name, samples=identity["problems"]["count"]),
        model=f"selfcorrect/{identity['model']['source']}",
        config=EvalConfig(epochs=max(sample.epoch for sample in samples)),
        metadata=dict(identity),
    )
    finished = (path / "summary.json").is_file()
    return EvalLog(
        status="success" if finished else "started",
        eval=spec,
        samples=samples,
        results=_results(path, len(samples)) if finished and part == Part.ATTEMPTS else None,
    )


def _results(path: Path, count: int) -> Any:
    """Return the metrics of ``summary.json`` under one score, with their intervals as metadata."""
    from inspect_ai.log import EvalMetric, EvalResults, EvalScore

    found = read_results(path)["model"]
    metrics = {
        name: EvalMetric(name=name, value=metric.value, metadata={"ci95": metric.ci95 and list(metric.ci95)})
        for name, metric in flat_metrics(found).items()
    }
    score = EvalScore(name="selfcorrect", scorer="selfcorrect", metrics=metrics, metadata={"n": found["n"]})
    return EvalResults(total_samples=count, completed_samples=count, scores=[score])
