"""Damage every file of a directory in every way, and see what each command makes of it."""

from __future__ import annotations

import contextlib
import io
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from selfcorrect.cli.app import main

Change = Callable[[bytes, random.Random], bytes | None]
DEEP = b"[" * 5000 + b"]" * 5000


def flip(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content))
    return content[:place] + bytes([content[place] ^ (1 << rng.randrange(8))]) + content[place + 1 :]


def edit(content: bytes, rng: random.Random) -> bytes:
    """Change one digit, which leaves most formats well-formed."""
    places = [i for i, byte in enumerate(content[:100_000]) if byte in b"0123456789"]
    if not places:
        return flip(content, rng)
    place = rng.choice(places)
    return content[:place] + str((content[place] - 47) % 10).encode() + content[place + 1 :]


def typed(content: bytes, rng: random.Random) -> bytes:
    """Put a value of another type in the place of a number or a text."""
    places = [i for i, byte in enumerate(content[:100_000]) if byte in b":="]
    if not places:
        return flip(content, rng)
    place = rng.choice(places)
    value = rng.choice([b"null", b"[]", b"{}", b'"x"', b"-1", b"1e999", b"NaN", b"9" * 30, b"true", b'"\\ud800"'])
    end = min((i for i in (content.find(mark, place) for mark in (b",", b"\n", b"}")) if i > 0), default=len(content))
    return content[: place + 1] + b" " + value + content[end:]


CHANGES: dict[str, Change] = {
    "flip a bit": flip,
    "edit a digit": edit,
    "another type": typed,
    "cut": lambda content, rng: content[: rng.randrange(len(content))],
    "empty": lambda content, rng: b"",
    "remove": lambda content, rng: None,
    "garbage": lambda content, rng: rng.randbytes(200),
    "deep": lambda content, rng: DEEP,
}
UNFINISHED = ("remove", "summary.json")
"""Without its summary, a directory is one that was killed before its end: it is shown as such, and resuming finishes it."""
OPTIONAL = ("method.json", "trials.json")
"""Files that a comparison may be without: its rows then have no titles and its report lists no trials; no number changes."""
KINDS = ("named", "harmless", "unfinished", "optional")
"""What may happen: the file is named, the output is that without damage, a finished directory counts as unfinished, or a
file that need not be there was removed."""
OLD_FILES = (".lock", "report.html")


@dataclass
class Table:
    """What happened: ``counts`` by kind, also by the change and the kind (``cells``), and the ``failures`` in words."""

    counts: Counter[str] = field(default_factory=Counter)
    cells: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            f"| {change} | " + " | ".join(str(self.cells[change, kind]) for kind in KINDS) + " |" for change in CHANGES
        ]
        return "\n".join([f"| change | {' | '.join(KINDS)} |", *lines])


@dataclass(frozen=True)
class Case:
    """One file and one change to it."""

    file: Path
    change: str

    def __str__(self) -> str:
        return f"{self.change}: {self.file}"


def cases(folder: Path) -> Iterator[Case]:
    """Every file below a directory with every change."""
    for file in sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in OLD_FILES):
        for change in CHANGES:
            yield Case(file.relative_to(folder), change)


def called(command: Sequence[str], page: Path | None = None) -> tuple[int, str, str]:
    """The exit status of a command, its output with the page that it wrote, and its messages."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([*command])
    written = page.read_text() if page is not None and page.exists() else ""
    if page is not None:
        page.unlink(missing_ok=True)
    return status, out.getvalue() + written, err.getvalue()


def try_all(
    folder: Path, chosen: Sequence[Case], commands: Callable[[Path], Sequence[tuple[list[str], Path | None]]], seed: int
) -> Table:
    """Damage copies of a directory; every command either names the damaged file, or prints what it prints without damage."""
    table, place = Table(), folder.with_name(f"{folder.name}-damaged")
    shutil.copytree(folder, place)
    before = [called(command, page) for command, page in commands(place)]
    assert all(status == 0 for status, _, _ in before), before
    for number, case in enumerate(chosen):
        shutil.rmtree(place)
        shutil.copytree(folder, place)
        content = CHANGES[case.change]((place / case.file).read_bytes(), random.Random(f"{seed}/{number}"))
        if content is None:
            (place / case.file).unlink()
        else:
            (place / case.file).write_bytes(content)
        for (command, page), (_, good, _) in zip(commands(place), before, strict=True):
            _judge(table, case, command[0], called(command, page), good)
    shutil.rmtree(place)
    return table


def _judge(table: Table, case: Case, command: str, found: tuple[int, str, str], good: str) -> None:
    kind = _kind(case, command, found, good)
    table.counts[kind] += 1
    table.cells[case.change, kind] += 1
    if kind not in KINDS:
        table.failures.append(f"{command}, {case}: {kind}: status {found[0]}: {found[2][-400:]}")


def _kind(case: Case, command: str, found: tuple[int, str, str], good: str) -> str:
    status, output, message = found
    if status == 0 and output == good:
        return "harmless"
    if status == 0:
        unfinished = (case.change, case.file.name) == UNFINISHED and command in ("report", "train")
        optional = case.change == "remove" and case.file.name in OPTIONAL
        return "unfinished" if unfinished else "optional" if optional else "unnoticed"
    named = case.file.name in message or case.file.parent.name in message
    if status in (1, 2) and "selfcorrect: error: " in message and "This is a bug" not in message and named:
        return "named"
    return "a bug" if "This is a bug" in message else "not named"
