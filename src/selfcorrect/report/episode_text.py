"""Stored episodes as text: filtered, with the difference between one attempt and the next."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rapidfuzz.distance import Levenshtein

from selfcorrect.evaluation.metrics import flip
from selfcorrect.printable import printable
from selfcorrect.storage.episode_log import StoredEpisode, StoredTurn, length_text
from selfcorrect.types import Check, Flip, Outcome, Role

if TYPE_CHECKING:
    from rich.text import Text

FLIPS = {Flip.I2C: "corrected", Flip.C2I: "regressed", Flip.CC: "correct twice", Flip.II: "incorrect twice"}
STYLES = {Outcome.CORRECT: "green", Outcome.INCORRECT: "red"}
CHECK_STYLES = {"passed": "green", "failed": "red"}
MOST_COMPARED = 20_000
"""The words or characters of a text whose changes are marked: time and memory grow with the product of two lengths."""
WORDY = 4
"""Texts with at least this many words are compared word by word, shorter ones character by character."""


def choose(
    episodes: Iterable[StoredEpisode],
    *,
    kind: Flip | None = None,
    problem: str | None = None,
    text: str | None = None,
) -> Iterator[StoredEpisode]:
    """Yield the episodes with one kind of flip, of one problem, with a text in them, or all of that.

    Raises:
        DataError: ``kind`` is given but the episodes have one attempt.
    """
    for episode in episodes:
        if problem is not None and episode.problem_id != problem:
            continue
        if text is not None and not _contains(episode, text.casefold()):
            continue
        if kind is None or flip(episode.graded()) is kind:
            yield episode


def _contains(episode: StoredEpisode, folded: str) -> bool:
    """Return whether the problem, the reference, a turn or an extracted answer has a casefolded text."""
    extracted = [turn.verdict.extracted or "" for turn in episode.turns if turn.verdict is not None]
    texts = [episode.prompt, episode.reference, *(turn.text for turn in episode.turns), *extracted]
    return any(folded in text.casefold() for text in texts)


def show_command(path: Path, episodes: Iterable[StoredEpisode]) -> str:
    """Return the command that shows a directory's most telling episodes: corrections, else regressions, else any.

    A flip is named only if some episode has it, so that the command always finds something.
    """
    kinds = flip_counts(episodes)
    chosen = next((f" --flip {kind}" for kind in (Flip.I2C, Flip.C2I) if kinds[kind]), "")
    return f"selfcorrect show {shlex.quote(str(path))}{chosen}"


def flip_counts(episodes: Iterable[StoredEpisode]) -> Counter[Flip]:
    """Return the number of episodes with each flip; episodes of one attempt have none."""
    graded = (episode.graded() for episode in episodes)
    return Counter(flip(attempts) for attempts in graded if len(attempts) > 1)


def examples(episodes: Sequence[StoredEpisode], count: int = 3) -> list[StoredEpisode]:
    """Return a few telling episodes: a correction first, then the other kinds, then more corrections."""
    if not episodes or len(episodes[0].attempts) < 2:
        return list(episodes[:count])
    by_kind: dict[Flip, list[StoredEpisode]] = {kind: [] for kind in FLIPS}
    for episode in episodes:
        by_kind[flip(episode.graded())].append(episode)
    firsts = [same[0] for same in by_kind.values() if same]
    more = [episode for same in by_kind.values() for episode in same[1:]]
    return (firsts + more)[:count]


def episode_text(episode: StoredEpisode, label: str | None = None) -> Text:
    """Return one episode: the problem, every attempt with its verdict, and what changed from one to the next.

    ``label`` is what the episode's model is called; unset = its stage's name.
    """
    from rich.text import Text

    attempts = episode.graded()
    kind = f"  {FLIPS[flip(attempts)]}" if len(attempts) > 1 else ""
    sample = f", sample {episode.sample}" if episode.sample else ""
    where = f"{label or episode.stage}, step {episode.step}, problem {printable(episode.problem_id)}"
    out = Text().append(f"--- {where}{sample}{kind}\n", "bold")
    out.append(f"problem    {_indented(episode.prompt)}\nreference  {_indented(episode.reference)}\n")
    k, before = 0, ""
    for turn in episode.turns:
        if turn.role is not Role.ATTEMPT:
            out.append(_aside_text(turn))
            continue
        k += 1
        if turn.skipped:
            out.append(f"attempt {k}  ", "bold").append(f"not asked for: attempt {k - 1} stands\n", "dim")
            continue
        out.append(f"attempt {k}  ", "bold").append(_indented(turn.text) + "\n")
        if k > 1:
            out.append(difference(before, turn.text))
        out.append(_verdict_text(turn))
        before = turn.text
    return out


def _aside_text(turn: StoredTurn) -> Text:
    """Return a turn that is no attempt; a verification is named by what it says."""
    from rich.text import Text

    if turn.skipped:
        return Text()
    name, what = turn.role.value, "no attempt"
    if turn.role is Role.VERIFICATION:
        name, what = "verdict", "says nothing" if turn.said is None else f"says {turn.said}"
    out = Text().append(f"{name:11}", "bold").append(_indented(turn.text) + "\n")
    return out.append(f"{'':11}{what}, {length_text(turn)}, stop: {turn.stop}\n", "dim")


def _verdict_text(turn: StoredTurn) -> Text:
    from rich.text import Text

    verdict = turn.judged
    detail = f" ({printable(verdict.detail)})" if verdict.detail else ""
    extracted = "no answer extracted" if verdict.extracted is None else f"answer {_indented(verdict.extracted)}"
    out = Text(" " * 11).append(verdict.outcome.value, STYLES.get(verdict.outcome, "yellow"))
    other = f", answered as {printable(turn.other_model)}" if turn.other_model else ""
    apart = f", {len(turn.reasoning):,} characters of reasoning apart from the text" if turn.reasoning else ""
    out.append(f"{detail}, {extracted}, {length_text(turn)}, stop: {turn.stop}{other}{apart}\n", "dim")
    return out.append(checks_text(verdict.checks))


def checks_text(checks: Sequence[Check]) -> Text:
    """Return the outcome of each test of a program, one per line."""
    from rich.text import Text

    out = Text()
    for check in checks:
        out.append(f"{check.outcome:>20}  ", CHECK_STYLES.get(check.outcome, "yellow"))
        detail = f"  ({printable(check.detail)})" if check.detail else ""
        out.append(f"{printable(check.label)}{detail}\n", "dim")
    return out


def difference(before: str, after: str) -> Text:
    """Return what changed: carets under changed characters if the lengths are equal, else ``[-old-]{+new+}``."""
    from rich.text import Text

    pad = " " * 11
    if before == after:
        return Text(f"{pad}= the same text\n", "dim")
    before, after = printable(before), printable(after)
    if len(before) == len(after) and "\n" not in before + after and len(after) <= 80:
        carets = "".join("^" if a != b else " " for a, b in zip(before, after, strict=True))
        return Text(f"{pad}{carets.rstrip()}\n", "magenta")
    wordy = min(len(before.split()), len(after.split())) >= WORDY
    old, new = (re.findall(r"\s+|\w+|[^\w\s]", text) if wordy else list(text) for text in (before, after))
    if max(len(old), len(new)) > MOST_COMPARED:
        return Text(f"{pad}(too long to mark what changed)\n", "dim")
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


def _indent(text: str) -> str:
    return text.replace("\n", "\n" + " " * 11)


def _indented(text: str) -> str:
    return _indent(printable(text)) or "(empty)"
