"""The directory of one evaluation: its identity, its episodes, and its results once it is finished.

eval.json        the identity: model, task, data and plan; a different evaluation is rejected
episodes/        eval-attempts.jsonl, eval-sampled.jsonl, ...
summary.json     the results of the finished evaluation, in the shape of a run's, under the name "model", and the seal
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selfcorrect.documents import read_json
from selfcorrect.errors import DataError, RunDirectoryError
from selfcorrect.script import current_revise
from selfcorrect.storage.episode_log import StoredEpisode
from selfcorrect.storage.files import claim, json_line, json_page, locked, nothing_left, refusals, write_atomically
from selfcorrect.storage.provenance import provenance
from selfcorrect.storage.seal import WAY_OUT, check_seal, sealed, unseal
from selfcorrect.storage.shapes import IDENTITY_SHAPE, check_shape
from selfcorrect.types import TOKENS, Part

IDENTITY = "eval.json"
SCHEMA = 1
SOURCES = ("model.source", "task_source.")
"""Keys of origins, which may differ: digests and versions decide whether the content is the same."""


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
            RunDirectoryError: the directory holds something else, lies inside a run, is not writable, is in use, or holds
                links (see `files.claim`).
            DataError: it holds a finished evaluation that differs from its seal.
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
                with refusals(path):
                    claim(path)
                check_seal(path)
                yield cls(path)

    @property
    def finished(self) -> bool:
        return (self.path / "summary.json").exists()

    def check(self, known: Mapping[str, Any]) -> None:
        """Reject an evaluation that differs from the one here in any of the given settings.

        Raises:
            RunDirectoryError: settings differ; the message lists them.
        """
        path = self.path / IDENTITY
        if not path.exists():
            return
        here, asked = flat(read_identity(self.path)), flat(json.loads(json.dumps(known)))
        groups = {key.partition(".")[0] for key in asked}
        keys = [*asked, *(key for key in here if key not in asked and key.partition(".")[0] in groups)]
        differing = [
            f"{key}: {here.get(key, 'unset')!r} there, {asked.get(key, 'unset')!r} requested"
            for key in keys
            if here.get(key, "unset") != asked.get(key, "unset") and not key.startswith(SOURCES)
        ]
        if differing:
            raise RunDirectoryError(
                f"{self.path} holds another evaluation. Choose another directory; these settings differ:"
                + "".join(f"\n  - {line}" for line in differing)
            )

    def claim(self, identity: Mapping[str, Any]) -> None:
        """Record the identity of this evaluation, or make sure that it equals the recorded one.

        Raises:
            RunDirectoryError: the directory holds another evaluation.
        """
        self.check(identity)
        self._identity = identity
        with refusals(self.path):
            if not (self.path / IDENTITY).exists():
                write_atomically(self.path / IDENTITY, json_page(identity))
            self.episodes.mkdir(exist_ok=True)

    def replace(self, identity: Mapping[str, Any], parts: Mapping[Part, Sequence[StoredEpisode]]) -> None:
        """Replace the episodes and the identity; the results must then be written again.

        Every file is replaced as a whole, and the old results are removed last. After a crash in between, the evaluation
        still counts as finished, so the call can be repeated. The seal goes first, since it fits the old files only.
        """
        self._identity = identity
        with refusals(self.path):
            unseal(self.path)
            for part, episodes in parts.items():
                write_atomically(
                    self.episodes / f"eval-{part}.jsonl", "".join(json_line(episode.to_json()) for episode in episodes)
                )
            write_atomically(self.path / IDENTITY, json_page(identity))
            (self.path / "summary.json").unlink(missing_ok=True)

    def finish(self, results: Mapping[str, Any], seconds: float, origin: Mapping[str, Any]) -> None:
        """Write ``summary.json``; a finished evaluation keeps its own. ``origin`` is `tasks.base.origin_of` the task."""
        path, identity = self.path / "summary.json", self._identity
        if path.exists():
            return
        summary = {
            "schema": SCHEMA,
            "provenance": provenance(
                task=identity["task"],
                data_digest=identity["problems"]["digest"],
                **origin,
                model_digests={"model": identity["model"]["digest"]},
                seed=identity["plan"]["seed"],
                evaluation=dict(identity),
            ),
            "seconds": {"evaluate": round(seconds, 3)},
            "results": {"model": dict(results)},
        }
        with refusals(self.path):
            write_atomically(path, json_page(sealed(self.path, summary)))


def read_identity(path: Path) -> dict[str, Any]:
    """Return the identity of the evaluation in a directory, in today's form.

    A missing context mode means tokens, once the only one; user turns get a named role.

    Raises:
        RunDirectoryError: the directory holds no evaluation, or its file cannot be read.
    """
    file = path / IDENTITY
    try:
        identity = read_json(file)
    except FileNotFoundError:
        raise RunDirectoryError(
            f"{path} holds no evaluation: it has no {IDENTITY}. Give the DIR of `selfcorrect eval --out DIR`."
        ) from None
    except OSError as error:
        raise RunDirectoryError(f"{file} cannot be read ({error.strerror}): choose another directory.") from None
    except DataError as error:
        raise RunDirectoryError(f"{error} {WAY_OUT}") from None
    try:
        check_shape(identity, IDENTITY_SHAPE)
        script = identity.get("script", {})
        if "revise" in script:
            identity["script"] = {**script, "revise": current_revise(script["revise"])}
    except ValueError as error:
        raise RunDirectoryError(f"{file} is damaged: {error}. {WAY_OUT}") from None
    return {"context_mode": TOKENS, **identity}


def read_finished_identity(path: Path) -> dict[str, Any]:
    """Return the identity of the finished evaluation in a directory.

    Raises:
        RunDirectoryError: see `read_identity`.
        DataError: the evaluation is not finished, or differs from its seal.
    """
    identity = read_identity(path)
    if not (path / "summary.json").exists():
        raise DataError(f"the evaluation in {path} is not finished: run the same `selfcorrect eval` command again.")
    check_seal(path)
    return identity


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, with keys joined by dots."""
    merged: dict[str, Any] = {}
    for key, item in value.items():
        merged |= flat(item, f"{prefix}{key}.") if isinstance(item, Mapping) else {f"{prefix}{key}": item}
    return merged


def plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as JSON stores them; any other value, such as a path, becomes text."""
    return json.loads(json.dumps(value, default=str))  # type: ignore[no-any-return]
