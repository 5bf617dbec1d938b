"""Traces for people: stored episodes, filtered, with the difference between one attempt and the next."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rapidfuzz.distance import Levenshtein

from selfcorrect.evaluation.metrics import flip
from selfcorrect.storage.episode_log import length_text, stored_attempts

if TYPE_CHECKING:
    from rich.text import Text

PARTS = ("attempts", "sampled", "swap", "resample", "train")
FLIPS = {"i2c": "corrected", "c2i": "spoilt", "cc": "right twice", "ii": "wrong twice"}
STYLES = {"right": "green", "wrong": "red"}
CHECK_STYLES = {"passed": "green", "failed": "red"}
WORDY = 4
"""Texts with so many words are compared word by word, shorter ones character by character."""


def choose(
    records: Iterable[dict[str, Any]], *, kind: str | None = None, problem: str | None = None
) -> Iterator[dict[str, Any]]:
    """The episodes of one kind of flip, of one problem, or of both.

    Raises:
        DataError: flips are asked of episodes with one attempt.
    """
    for record in records:
        if problem is not None and record["problem_id"] != problem:
            continue
        if kind is None or flip(stored_attempts(record)) == kind:
            yield record


def examples(records: Sequence[dict[str, Any]], count: int = 3) -> list[dict[str, Any]]:
    """A few episodes that show what happens: a correction first, then the other kinds, then more corrections."""
    if not records or len(records[0]["turns"]) < 2:
        return list(records[:count])
    by_kind: dict[str, list[dict[str, Any]]] = {kind: [] for kind in FLIPS}
    for record in records:
        by_kind[flip(stored_attempts(record))].append(record)
    firsts = [found[0] for found in by_kind.values() if found]
    more = [record for found in by_kind.values() for record in found[1:]]
    return (firsts + more)[:count]


def episode_text(record: Mapping[str, Any]) -> Text:
    """One episode: the problem, every attempt with its verdict, and what changed from one to the next."""
    from rich.text import Text

    attempts = stored_attempts(record)
    kind = f"  {FLIPS[flip(attempts)]}" if len(attempts) > 1 else ""
    sample = f", sample {record['sample']}" if record["sample"] else ""
    where = f"{record['stage']}, step {record['step']}, problem {visible(record['problem_id'])}"
    out = Text().append(f"--- {where}{sample}{kind}\n", "bold")
    out.append(f"problem    {_indented(record['prompt'])}\nreference  {_indented(record['reference'])}\n")
    for k, turn in enumerate(record["turns"], 1):
        for aside in turn.get("asides", ()):
            out.append("aside      ", "bold").append(_indented(aside["text"]) + "\n")
            out.append(f"{'':11}no attempt, {length_text(aside)}, stop: {aside['stop']}\n", "dim")
        out.append(f"attempt {k}  ", "bold").append(_indented(turn["text"]) + "\n")
        if k > 1:
            out.append(difference(record["turns"][k - 2]["text"], turn["text"]))
        detail = f" ({visible(turn['detail'])})" if turn["detail"] else ""
        extracted = "no answer extracted" if turn["extracted"] is None else f"answer {_indented(turn['extracted'])}"
        out.append(" " * 11).append(turn["verdict"], STYLES.get(turn["verdict"], "yellow"))
        out.append(f"{detail}, {extracted}, {length_text(turn)}, stop: {turn['stop']}\n", "dim")
        out.append(checks_text(turn.get("checks", ())))
    return out


def checks_text(checks: Sequence[Mapping[str, str]]) -> Text:
    """What became of each test of a program, one a line."""
    from rich.text import Text

    out = Text()
    for check in checks:
        out.append(f"{check['outcome']:>20}  ", CHECK_STYLES.get(check["outcome"], "yellow"))
        detail = f"  ({visible(check['detail'])})" if check["detail"] else ""
        out.append(f"{visible(check['label'])}{detail}\n", "dim")
    return out


def difference(before: str, after: str) -> Text:
    """What changed: carets under the changed characters where the line is as long, else ``[-old-]{+new+}``."""
    from rich.text import Text

    pad = " " * 11
    if before == after:
        return Text(f"{pad}= the same text\n", "dim")
    before, after = visible(before), visible(after)
    if len(before) == len(after) and "\n" not in before + after and len(after) <= 80:
        carets = "".join("^" if a != b else " " for a, b in zip(before, after, strict=True))
        return Text(f"{pad}{carets.rstrip()}\n", "magenta")
    wordy = min(len(before.split()), len(after.split())) >= WORDY
    old, new = (re.findall(r"\s+|\w+|[^\w\s]", text) if wordy else list(text) for text in (before, after))
    out = Text(f"{'change':11}")
    for step in Levenshtein.opcodes(old, new):
        gone, come = ("".join(old[step.src_start : step.src_end]), "".join(new[step.dest_start : step.dest_end]))
        if step.tag == "equal":
            out.append(_indent(come))
            continue
        if gone:
            out.append(f"[-{_indent(gone)}-]", "red")
        if come:
            out.append(f"{{+{_indent(come)}+}}", "green")
    return out.append("\n")


def visible(text: str) -> str:
    """The text with control characters spelt out: what a model writes must not steer the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def _indent(text: str) -> str:
    return text.replace("\n", "\n" + " " * 11)


def _indented(text: str) -> str:
    return _indent(visible(text)) or "(empty)"
