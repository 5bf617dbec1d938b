"""The directory of one evaluation: what is evaluated, its episodes, and its results once finished.

eval.json        what is evaluated: model, task, data and plan; another evaluation is refused
episodes/        eval-attempts.jsonl, eval-sampled.jsonl, ...
summary.json     the results, once finished: the same shape as a run's, under the name "model"
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selfcorrect.errors import DataError, RunDirectoryError
from selfcorrect.script import current_revise
from selfcorrect.storage.episode_log import StoredEpisode
from selfcorrect.storage.files import json_line, locked, nothing_left, refusals, write_atomically
from selfcorrect.storage.provenance import provenance
from selfcorrect.types import TOKENS, Part

IDENTITY = "eval.json"
SCHEMA = 1
SOURCES = ("model.source", "task_source.")
"""Where things came from; whether they are the same, their digests and versions decide."""


class EvaluationDirectory:
    """One evaluation on disk; while it is open no other process can open it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.episodes = path / "episodes"
        self._identity: Mapping[str, Any] = {}

    @classmethod
    @contextmanager
    def open(cls, path: Path) -> Iterator[EvaluationDirectory]:
        """Open a directory that is new, empty or holds an evaluation.

        Raises:
            RunDirectoryError: it holds something else, lies inside a run, cannot be written, or is in use.
        """
        for parent in path.absolute().parents:
            if (parent / "config.toml").is_file() and (parent / "checkpoints").is_dir():
                raise RunDirectoryError(f"{path} lies inside the run {parent}: choose a directory outside it.")
        with nothing_left(path):
            with refusals(path):
                path.mkdir(parents=True, exist_ok=True)
                present = sorted(item.name for item in path.iterdir() if not item.name.startswith("."))
                if present and IDENTITY not in present:
                    what = "a run" if "config.toml" in present else f"other files ({', '.join(present[:3])})"
                    raise RunDirectoryError(f"{path} holds {what}: choose another directory.")
                lock = locked(path)
            with lock:
                yield cls(path)

    @property
    def finished(self) -> bool:
        return (self.path / "summary.json").exists()

    def check(self, known: Mapping[str, Any]) -> None:
        """Refuse an evaluation that differs from the one here in any of the settings given.

        Raises:
            RunDirectoryError: the message lists what differs.
        """
        path = self.path / IDENTITY
        if not path.exists():
            return
        here, asked = flat(read_identity(self.path)), flat(json.loads(json.dumps(known)))
        groups = {key.partition(".")[0] for key in asked}
        keys = [*asked, *(key for key in here if key not in asked and key.partition(".")[0] in groups)]
        differing = [
            f"{key}: {here.get(key, 'unset')!r} there, {asked.get(key, 'unset')!r} asked for"
            for key in keys
            if here.get(key, "unset") != asked.get(key, "unset") and not key.startswith(SOURCES)
        ]
        if differing:
            raise RunDirectoryError(
                f"{self.path} holds another evaluation, choose another directory:"
                + "".join(f"\n  - {line}" for line in differing)
            )

    def claim(self, identity: Mapping[str, Any]) -> None:
        """Record what is evaluated here, or make sure that it is the same.

        Raises:
            RunDirectoryError: another evaluation is here already.
        """
        self.check(identity)
        self._identity = identity
        with refusals(self.path):
            if not (self.path / IDENTITY).exists():
                write_atomically(self.path / IDENTITY, _pretty(identity))
            self.episodes.mkdir(exist_ok=True)

    def replace(self, identity: Mapping[str, Any], parts: Mapping[Part, Sequence[StoredEpisode]]) -> None:
        """Put other episodes and another identity in the place of those here; the results are to be written anew.

        Every file is replaced as a whole, and the old results go last: after a crash in between the evaluation still
        counts as finished, so the same call can be repeated.
        """
        self._identity = identity
        with refusals(self.path):
            for part, episodes in parts.items():
                write_atomically(
                    self.episodes / f"eval-{part}.jsonl", "".join(json_line(episode.to_json()) for episode in episodes)
                )
            write_atomically(self.path / IDENTITY, _pretty(identity))
            (self.path / "summary.json").unlink(missing_ok=True)

    def finish(self, results: Mapping[str, Any], seconds: float) -> None:
        """Write ``summary.json``; a finished evaluation keeps the one it has."""
        path, identity = self.path / "summary.json", self._identity
        if path.exists():
            return
        summary = {
            "schema": SCHEMA,
            "provenance": provenance(
                task=identity["task"],
                data_digest=identity["problems"]["digest"],
                model_digests={"model": identity["model"]["digest"]},
                seed=identity["plan"]["seed"],
                evaluation=dict(identity),
            ),
            "seconds": {"evaluate": round(seconds, 3)},
            "results": {"model": dict(results)},
        }
        with refusals(self.path):
            write_atomically(path, _pretty(summary))


def read_identity(path: Path) -> dict[str, Any]:
    """Return what is evaluated in a directory, in today's form.

    Where no context mode is recorded, it was tokens: there was no other. Roles of user turns are named.

    Raises:
        RunDirectoryError: it holds no evaluation, or its file cannot be read.
    """
    try:
        found: dict[str, Any] = json.loads((path / IDENTITY).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunDirectoryError(
            f"{path} holds no evaluation: it has no {IDENTITY}. Give the DIR of `selfcorrect eval --out DIR`."
        ) from None
    except (ValueError, OSError) as error:
        raise RunDirectoryError(f"{path / IDENTITY} cannot be read ({error}): choose another directory.") from None
    script = found.get("script", {})
    if "revise" in script:
        found["script"] = {**script, "revise": current_revise(script["revise"])}
    return {"context_mode": TOKENS, **found}


def read_finished_identity(path: Path) -> dict[str, Any]:
    """What is evaluated in a directory whose evaluation is finished.

    Raises:
        RunDirectoryError: see `read_identity`.
        DataError: the evaluation is not finished.
    """
    found = read_identity(path)
    if not (path / "summary.json").is_file():
        raise DataError(
            f"the evaluation in {path} is not finished: run the same `selfcorrect eval` command again first."
        )
    return found


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, its keys joined by dots."""
    found: dict[str, Any] = {}
    for key, item in value.items():
        found |= flat(item, f"{prefix}{key}.") if isinstance(item, Mapping) else {f"{prefix}{key}": item}
    return found


def plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """Options as JSON keeps them; what it does not know (a path) becomes text."""
    return json.loads(json.dumps(value, default=str))  # type: ignore[no-any-return]


def _pretty(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
