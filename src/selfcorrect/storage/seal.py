"""The seal of finished results: digests in ``summary.json`` by which a later change is noticed.

    "seal": {"files": {"eval.json": SHA-256, "episodes/eval-attempts.jsonl": SHA-256, ...}, "summary": SHA-256}

A file's digest is that of its uncompressed content, so a log may be compressed later. The last digest is that of the summary
without it. The seal finds damage and edits; it is no signature, because whoever can edit the results can seal them again.
Results of earlier versions have no seal and stay readable: commands that rely on them say "not sealed".

Documents that stand alone, a comparison's cards and trials, hold their own digest: ``"seal": SHA-256``.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from selfcorrect.documents import read_json
from selfcorrect.errors import DataError
from selfcorrect.storage.files import json_page, opened_log, write_atomically
from selfcorrect.storage.shapes import SUMMARY_SHAPE, check_shape, table

SUMMARY = "summary.json"
SEAL = "seal"
SEALED = ("config.toml", "eval.json", "metrics.jsonl")
"""Sealed where they exist, in addition to all episodes. Timings are not: no result depends on them."""
WAY_OUT = "Restore it from a copy. Without one, evaluate again in another directory."


def sealed(path: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return a summary with the seal of the files that are in its directory now."""
    plain = json.loads(json_page({key: value for key, value in summary.items() if key != SEAL}))  # as it is read again
    files = {name: digest for name in _names(path) if (digest := content_digest(path / name)) is not None}
    seal = {"files": files}
    return {**plain, SEAL: {**seal, "summary": _digest({**plain, SEAL: seal})}}


def sealed_document(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document that stands alone with its seal."""
    plain = json.loads(json_page({key: value for key, value in content.items() if key != SEAL}))  # as it is read again
    return {**plain, SEAL: _digest(plain)}


def unsealed_document(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document that stands alone without its seal, if it has one.

    Raises:
        ValueError: the document differs from its seal.
    """
    plain = {key: value for key, value in content.items() if key != SEAL}
    if SEAL in content and content[SEAL] != _digest(plain):
        raise ValueError(f"it differs from its {SEAL}, so it was changed after it was written")
    return plain


def reseal(path: Path) -> None:
    """Seal the files that are in a directory now, if its summary had a seal: a copy holds fewer episodes."""
    summary = read_summary(path)
    if SEAL in summary:
        write_atomically(path / SUMMARY, json_page(sealed(path, summary)))


def unseal(path: Path) -> None:
    """Remove the seal from a summary whose files are about to be replaced."""
    summary = read_summary(path)
    if SEAL in summary:
        write_atomically(path / SUMMARY, json_page({key: value for key, value in summary.items() if key != SEAL}))


def read_summary(path: Path) -> dict[str, Any]:
    """Return the summary in a directory, checked against its own seal.

    Raises:
        DataError: it is missing, not a JSON object, or differs from its seal.
    """
    file = path / SUMMARY
    try:
        summary = read_json(file)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}. {WAY_OUT}") from None
    if not isinstance(summary, dict):
        raise DataError(f"{file} is damaged: it holds a {type(summary).__name__}, not a JSON object. {WAY_OUT}")
    seal = summary.get(SEAL)
    if seal is None:
        return summary
    if not isinstance(seal, dict) or not isinstance(seal.get("files"), dict):
        raise DataError(f"{file} is damaged: its seal is no object with files. {WAY_OUT}")
    rest = {**summary, SEAL: {key: value for key, value in seal.items() if key != "summary"}}
    if _digest(rest) != seal.get("summary"):
        raise DataError(
            f"{file} is damaged: it differs from its seal, so it was changed after it was written. {WAY_OUT}"
        )
    return summary


def read_results(path: Path, names: Sequence[str] = ("model",)) -> dict[str, dict[str, Any]]:
    """Return the results in a directory's summary, by model; at least those of ``names``.

    Raises:
        DataError: the summary is damaged.
    """
    summary = read_summary(path)
    try:
        check_shape(summary, SUMMARY_SHAPE)
        check_shape(summary["results"], dict.fromkeys(names, table), "results.")
    except ValueError as error:
        raise DataError(f"{path / SUMMARY} is damaged: {error}. {WAY_OUT}") from None
    return dict(summary["results"])


def check_seal(path: Path) -> bool:
    """Check all sealed files of a directory; return whether it is sealed at all.

    Raises:
        DataError: a file is missing or differs from its digest; the message names it.
    """
    if not (path / SUMMARY).exists():
        return False
    seal = read_summary(path).get(SEAL)
    if seal is None:
        return False
    for name, digest in seal["files"].items():
        _check(path, name, digest)
    for name in _names(path):
        if name not in seal["files"]:
            raise DataError(
                f"{path / name} came into the finished directory later: {path / SUMMARY} does not list it. Remove it."
            )
    return True


def check_sealed_file(path: Path, name: str) -> None:
    """Check one file of a directory, if the directory is sealed.

    Raises:
        DataError: the file is missing or differs from its digest.
    """
    if (path / SUMMARY).exists():
        digest = read_summary(path).get(SEAL, {"files": {}})["files"].get(name)
        if digest is not None:
            _check(path, name, digest)


def _check(path: Path, name: str, digest: object) -> None:
    if ".." in Path(name).parts or Path(name).is_absolute():
        raise DataError(f"{path / SUMMARY} is damaged: it seals {name!r}, which is not in its directory. {WAY_OUT}")
    found = content_digest(path / name)
    if found != digest:
        how = "is missing" if found is None else "is damaged: it differs from the seal in its summary.json"
        raise DataError(f"{path / name} {how}. {WAY_OUT}")


def content_digest(path: Path) -> str | None:
    """Return the SHA-256 of a file's content, compressed (``.gz``) or not; None where neither file is there.

    Raises:
        DataError: the file cannot be read or decompressed.
    """
    try:
        with opened_log(path) as file:
            return None if file is None else hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged or cannot be read: {error}. {WAY_OUT}") from None


def _names(path: Path) -> Iterator[str]:
    """Yield the names of the sealed kinds of files that are there, without ``.gz``."""
    for name in SEALED:
        if (path / name).exists() or (path / f"{name}.gz").exists():
            yield name
    episodes = path / "episodes"
    logs = {file.name.removesuffix(".gz") for file in episodes.glob("*.jsonl*")}
    yield from sorted(f"episodes/{name}" for name in logs if name.endswith(".jsonl") and not name.startswith("."))


def _digest(summary: Mapping[str, Any]) -> str:
    text = json.dumps(summary, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
