"""Export the episodes of a run or an evaluation as a directory for `datasets.load_dataset`: Parquet files and a card.

    README.md                    the card; its head says which file is which configuration and split
    attempts/score.parquet       configuration "attempts" (a part of an evaluation, or "train"), split "score" (a model)

The episodes of an evaluation have one split, "model".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from selfcorrect.errors import DataError, RunDirectoryError
from selfcorrect.extras import require
from selfcorrect.report.sources import read_run
from selfcorrect.storage.episode_log import StoredEpisode, StoredTurn, read_episodes
from selfcorrect.storage.evaluation_dir import read_identity
from selfcorrect.storage.new_directory import new_directory
from selfcorrect.storage.seal import check_seal
from selfcorrect.types import Part

ROWS = 1_000
"""Rows that are held in memory and written at a time."""

COLUMNS = {
    "model": "whose episode: `base` or a stage of the run; for `train`, the stage that was trained",
    "step": "the model's training step",
    "problem_id": "the problem; the same in all configurations",
    "sample": "the number of the episode among those of its problem, from 0",
    "prompt": "the problem as the user states it, without what the chat template adds",
    "reference": "the correct answer, or what the verifier checks against",
    "difficulty": "the task's level; may be null",
    "correct": "for each attempt, whether it is correct",
    "turns": "what the model wrote, in order; see below",
}
TURN_COLUMNS = {
    "role": "`attempt`; `feedback` that the model wrote before its next attempt; `verification` of its last attempt",
    "text": "the turn's text",
    "tokens": "the sampled token ids with the end token; empty where a server sampled",
    "length": "the number of sampled tokens; null where a server did not report it",
    "stop": "why the turn ended: `end`, `length` (truncated), `skipped` (not asked for: the attempt before stands), ...",
    "verdict": "`correct`, `incorrect`, `no_answer`, ...; null for other turns",
    "extracted": "the answer that the verifier found in the text",
    "detail": "the verifier's remark",
    "by_rule": "the verdict under each extraction rule, where the task has several",
    "online": "false where another model wrote the turn, which is then not trained",
}


@dataclass(frozen=True, slots=True)
class EpisodeFile:
    """A stored file of episodes and its place in the data set."""

    file: Path
    part: str
    split: str

    @property
    def target(self) -> str:
        return f"{self.part}/{self.split}.parquet"


def export_episodes(path: str | Path, out: str | Path) -> dict[str, int]:
    """Write all episodes in a run's or an evaluation's directory to the new directory ``out``; return the rows of each file.

    Raises:
        ConfigError: pyarrow is not installed.
        DataError: there are no episodes in ``path``, or they are damaged.
        RunDirectoryError: ``path`` is neither, or ``out`` is not empty.
    """
    path, out = Path(path), Path(out)
    require("pyarrow", extra="data", why="the export of episodes")
    check_seal(path)
    title, about = _about(path)
    files = [*_files(path)]
    if not files:
        raise DataError(f"{path} has no episodes yet.")
    with new_directory(out) as folder:
        rows = {item.target: _write(item, folder / item.target) for item in files}
        (folder / "README.md").write_text(_card(title, about, files, rows), encoding="utf-8")
    return rows


def _about(path: Path) -> tuple[str, list[str]]:
    """Return a title, and sentences about where the episodes come from."""
    if (path / "config.toml").is_file():
        run = read_run(path)
        task, model = run.settings["task"]["name"], run.settings["model"]["source"]
        about = [
            f"Episodes of a training run of `selfcorrect` on the task `{task}`, from the base `{model}`, with seed {run.seed}.",
            f"Its stages are {', '.join(f'`{stage}`' for stage in run.stages) or 'none'}. The configuration `train`, where there "
            "is one, has a part of the training episodes; the others have all episodes of the evaluations, by model.",
        ]
        return f"Self-correction on {task}: {path.resolve().name}", about
    if (path / "eval.json").is_file():
        identity = read_identity(path)
        task, problems, plan = identity["task"], identity["problems"], identity["plan"]
        about = [
            f"Episodes of an evaluation by `selfcorrect` of the model `{identity['model']['source']}` on the task "
            f"`{task['name']}` (version {task['version']}).",
            f"It has {problems['count']:,} problems of the split `{problems['split']}`, and {plan['turns']} attempts at "
            f"temperature {plan['temperature']:g} with at most {plan['max_tokens']:,} tokens each.",
        ]
        return f"Self-correction on {task['name']}: {path.resolve().name}", about
    raise RunDirectoryError(
        f"{path} is neither a run (config.toml) nor an evaluation (eval.json): give the DIR of `selfcorrect train --out DIR` or "
        "`selfcorrect eval --out DIR`."
    )


def _files(path: Path) -> Iterator[EpisodeFile]:
    """Yield the files of episodes that are there, the attempts first."""
    run = (path / "config.toml").is_file()
    models = ["base", *read_run(path).stages] if run else [""]
    for part in Part:
        for model in models:
            name = f"train-{model}" if part is Part.TRAIN else f"eval-{model}-{part}" if run else f"eval-{part}"
            file = path / "episodes" / f"{name}.jsonl"
            if next(iter(read_episodes(file, 1)), None) is not None:
                yield EpisodeFile(file, part.value, _split(model or "model"))


def _split(model: str) -> str:
    """Return the name of a split, which may hold letters, digits and _ only.

    Two stages whose names become equal keep apart, because what was replaced is spelt out.

    >>> _split("score"), _split("stage-1"), _split("stage_1")
    ('score', 'stage_2d_1', 'stage_1')
    """
    return "".join(c if c.isascii() and (c.isalnum() or c == "_") else f"_{ord(c):x}_" for c in model)


def _write(item: EpisodeFile, target: Path) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    target.parent.mkdir(exist_ok=True)
    count, episodes, schema = 0, read_episodes(item.file), _schema()
    with pq.ParquetWriter(target, schema) as writer:
        while rows := [_row(episode) for episode in islice(episodes, ROWS)]:
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
            count += len(rows)
    return count


def _schema() -> Any:
    import pyarrow as pa

    turn = {
        "role": pa.string(),
        "text": pa.string(),
        "tokens": pa.list_(pa.int64()),
        "length": pa.int64(),
        "stop": pa.string(),
        "verdict": pa.string(),
        "extracted": pa.string(),
        "detail": pa.string(),
        "by_rule": pa.list_(pa.struct({"rule": pa.string(), "verdict": pa.string()})),
        "online": pa.bool_(),
    }
    columns = {
        "model": pa.string(),
        "step": pa.int64(),
        "problem_id": pa.string(),
        "sample": pa.int64(),
        "prompt": pa.string(),
        "reference": pa.string(),
        "difficulty": pa.string(),
        "correct": pa.list_(pa.bool_()),
        "turns": pa.list_(pa.struct(turn)),
    }
    assert list(turn) == list(TURN_COLUMNS) and list(columns) == list(COLUMNS)  # the card tells of each
    return pa.schema(columns)


def _row(episode: StoredEpisode) -> dict[str, Any]:
    return {
        "model": episode.stage,
        "step": episode.step,
        "problem_id": episode.problem_id,
        "sample": episode.sample,
        "prompt": episode.prompt,
        "reference": episode.reference,
        "difficulty": episode.difficulty,
        "correct": [turn.judged.correct for turn in episode.attempts],
        "turns": [_turn(turn) for turn in episode.turns],
    }


def _turn(turn: StoredTurn) -> dict[str, Any]:
    verdict = turn.verdict
    rules = verdict.by_rule if verdict else {}
    return {
        "role": turn.role.value,
        "text": turn.text,
        "tokens": list(turn.tokens),
        "length": turn.length,
        "stop": turn.stop.value,
        "verdict": verdict.outcome.value if verdict else None,
        "extracted": verdict.extracted if verdict else None,
        "detail": verdict.detail if verdict else None,
        "by_rule": [{"rule": rule, "verdict": outcome.value} for rule, outcome in rules.items()],
        "online": turn.online,
    }


def _card(title: str, about: list[str], files: list[EpisodeFile], rows: Mapping[str, int]) -> str:
    """Return the card: a head that `datasets` reads, then words."""
    from huggingface_hub import DatasetCardData

    configs: dict[str, list[dict[str, str]]] = {}
    for item in files:
        configs.setdefault(item.part, []).append({"split": item.split, "path": item.target})
    head = DatasetCardData(
        pretty_name=title,
        task_categories=["text-generation"],
        tags=["selfcorrect", "self-correction"],
        configs=[
            {"config_name": name, "data_files": splits, **({"default": True} if number == 0 else {})}
            for number, (name, splits) in enumerate(configs.items())
        ],
    )
    first = files[0]
    return "\n".join(
        [
            f"---\n{head.to_yaml().strip()}\n---\n\n# {title}\n",
            *about,
            "\n```python\nfrom datasets import load_dataset\n",
            f'episodes = load_dataset("DIR", "{first.part}", split="{first.split}")\n```\n',
            "| configuration | split | episodes |\n|---|---|---|",
            *(f"| `{item.part}` | `{item.split}` | {rows[item.target]:,} |" for item in files),
            "\n`attempts`: greedy decoding (or as sampled, in an evaluation at a temperature). `sampled`: several samples per "
            "problem. Controls: `swap` has second attempts at another problem's draft, `resample` first attempts sampled again, "
            "`empty` and `shuffled` second attempts at an empty and a shuffled draft.\n",
            "## Columns\n\n| column | |\n|---|---|",
            *(f"| `{name}` | {words} |" for name, words in COLUMNS.items()),
            "\nEach of `turns`:\n\n| field | |\n|---|---|",
            *(f"| `{name}` | {words} |" for name, words in TURN_COLUMNS.items()),
            "\n## Licence\n\nThe export states none: prompts and references are the task's, and a model wrote the texts. "
            "Before you publish them, look up the terms of both.\n",
        ]
    )
