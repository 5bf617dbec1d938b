"""Reasoning and answer in one completion: thinking models write both, and only the answer is read.

Chat templates mark reasoning in a few ways (`MARKERS`), and prompts in others: a tag whose name says so
(``<scratchpad>``, ``<reflection>``) counts too. Some templates open it in the prompt, so a completion may hold the closing
marker alone. One rule covers them all: the answer is what stands after the last closing marker, and reasoning without an
end has no answer. A marker in quotes or backticks is text about reasoning, not reasoning.

Every task's verdicts depend on this rule: a change of it changes the version of all tasks.
"""

from __future__ import annotations

import re

MARKERS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
)
"""Opening and closing marker of reasoning in the chat templates of model families, and in common prompts."""

_NAME = (
    r"[\w:.-]{0,30}(?:think|thought|reason|reflect|scratch|rationale|monolog|brainstorm|deliberat|draft)[\w:.-]{0,30}"
    r"|analysis|cot|plan|planning"
)
"""The names of tags that set reasoning apart; prompts and models make up their own."""
_OPENING = {opening.casefold() for opening, _ in MARKERS}
_CLOSING = {closing.casefold() for _, closing in MARKERS}
_MARKER = re.compile(
    r"(?<![\"'`])(?:"
    + "|".join(re.escape(marker) for pair in MARKERS for marker in pair)
    + rf"|<\|?\s{{0,2}}(?P<slash>/?)\s{{0,2}}(?P<name>{_NAME})(?:\s[^<>\n]{{0,100}})?\|?>"
    + r"|(?-i:\Aanalysis(?=[A-Z0-9])|assistantfinal))",  # channels whose special tokens were left out
    re.IGNORECASE,
)
_ENDS = re.compile(r"(?:^|[_.:-])(?:end|stop|close)(?:$|[_.:-])", re.IGNORECASE)
_ANSWER = re.compile(r"<(/?)answer>", re.IGNORECASE)


def final_part(text: str) -> str | None:
    """Return the text that answers: after all reasoning, and within ``<answer>`` tags where there are any.

    None means that the reasoning has no end, so there is no answer. The time is linear in the length of the text.

    >>> final_part("<think>12? No.</think>15"), final_part("Perhaps 12.</think>15"), final_part("<think>Perhaps 12.")
    ('15', '15', None)
    >>> final_part("<reasoning>12?</reasoning><answer>15</answer>"), final_part("15")
    ('15', '15')
    """
    start, inside = 0, False
    for marker in _MARKER.finditer(text):
        inside = _opens(marker)
        start = marker.end()
    return None if inside else _within_tags(text[start:] if start else text)


def _opens(marker: re.Match[str]) -> bool:
    """Return whether a marker opens reasoning."""
    text = marker.group().casefold()
    if text in _OPENING or text in _CLOSING or not marker["name"]:
        return text in _OPENING or text == "analysis"
    return not marker["slash"] and not _ENDS.search(marker["name"])


def opened_by(prompt: str) -> str | None:
    """Return the marker of the reasoning that a rendered prompt opens and leaves open, or None.

    >>> opened_by("<|im_start|>assistant\\n<think>\\n"), opened_by("<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n")
    ('<think>', None)
    """
    stripped = prompt.rstrip()
    markers = (marker for marker in _MARKER.finditer(stripped) if marker.end() == len(stripped))
    return next((marker.group() for marker in markers if _opens(marker)), None)


def _within_tags(text: str) -> str:
    """Return the content of the last ``<answer>`` tag, closed or truncated; a text without one is returned as it is."""
    tags = list(_ANSWER.finditer(text))
    starts = [index for index, tag in enumerate(tags) if not tag[1]]
    if not starts:
        return text
    end = tags[starts[-1] + 1].start() if starts[-1] + 1 < len(tags) else len(text)
    return text[tags[starts[-1]].end() : end]
