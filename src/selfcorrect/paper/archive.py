"""Pack a comparison into small copies: settings, summaries, metrics and some episodes, enough to build the report."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfcorrect.errors import ConfigError, DataError
from selfcorrect.report.commands import Commands
from selfcorrect.report.methods import group
from selfcorrect.report.sources import found_directories, read_run, read_sources
from selfcorrect.storage.comparison_dir import copy_card, copy_trials
from selfcorrect.storage.episode_log import stored_lines
from selfcorrect.storage.evaluation_dir import read_identity
from selfcorrect.storage.files import copy_file, json_line, refusals, refuse_links, write_atomically
from selfcorrect.storage.seal import check_seal, reseal

AGAIN = "again.sh"
DIGITS = 5
"""Significant digits of the packed metrics: the curves need no more, and full precision does not compress."""


@dataclass(frozen=True, slots=True)
class Packed:
    """The number of packed runs and evaluations, and their size in bytes."""

    directories: int
    size: int


def pack(source: Path, out: Path, *, episodes: int = 200) -> Packed:
    """Copy every finished run and evaluation below ``source`` to the same path below ``out``, without its models.

    A packed run holds ``config.toml``, ``summary.json``, the metrics to 5 digits, and at most ``episodes`` of the last
    model's greedy episodes, compressed. A packed evaluation with several samples per problem holds the samples of at most
    ``episodes`` problems. Files packed before are replaced, and the same directories give the same bytes. ``again.sh``
    holds the command of each.

    Raises:
        DataError: nothing below ``source`` is finished.
        ConfigError: ``out`` lies inside ``source``.
    """
    if source.resolve() in [out.resolve(), *out.resolve().parents]:
        raise ConfigError(f"--out {out} lies inside the source {source}: choose a directory outside it.")
    folders = [folder for folder in found_directories(source) if (folder / "summary.json").is_file()]
    if not folders:
        raise DataError(
            f"{source} contains no finished run (config.toml with summary.json) and no finished evaluation (eval.json with "
            "summary.json)."
        )
    for folder in folders:
        check_seal(folder)
    size = 0
    with refusals(out):
        if out.is_dir():
            refuse_links(out)
        for folder in folders:
            place = out / folder.relative_to(source)
            (place / "episodes").mkdir(parents=True, exist_ok=True)
            size += sum(file.stat().st_size for file in _packed(folder, place, episodes))
        size += sum(file.stat().st_size for file in [*copy_trials(source, out), _commands(out)])
    return Packed(len(folders), size)


def _commands(out: Path) -> Path:
    """Write a script with the command of every packed run, then of every evaluation."""
    runs, evaluations = read_sources([out])
    commands = Commands(group(runs)[0], evaluations)
    lines = [*map(commands.of_run, runs), *map(commands.of_evaluation, evaluations)]
    place = out / AGAIN
    head = "# Each line repeats one run or evaluation. Call them where `selfcorrect pack` was called, runs first."
    write_atomically(place, "\n".join([head, *lines, ""]))
    return place


def _packed(folder: Path, place: Path, episodes: int) -> Iterable[Path]:
    """Pack one run or evaluation; yield the files written."""
    for file in ("config.toml", "eval.json", "summary.json"):
        if (folder / file).is_file():
            yield copy_file(folder / file, place / file)
    yield from copy_card(folder.parent, place.parent)
    name = "eval-attempts.jsonl"
    if (folder / "config.toml").is_file():
        run = read_run(folder)
        name = f"eval-{run.final}-attempts.jsonl"
        if run.steps:
            yield _write(place / "metrics.jsonl.gz", map(shortened, run.steps))
    else:
        episodes *= int(read_identity(folder)["plan"]["samples"])
    kept = (line for _, line in zip(range(episodes), stored_lines(folder / "episodes" / name), strict=False))
    yield _write(place / "episodes" / f"{name}.gz", kept)
    reseal(place)


def shortened(value: Any) -> Any:
    """Return the value with every float rounded to `DIGITS` significant digits.

    >>> shortened({"r1": 0.123456789, "dev": {"n": 200}})
    {'r1': 0.12346, 'dev': {'n': 200}}
    """
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    return {key: shortened(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def _write(path: Path, lines: Iterable[Mapping[str, Any]]) -> Path:
    text = "".join(map(json_line, lines)).encode()
    write_atomically(path, gzip.compress(text, 9, mtime=0))
    return path
