"""The answer without its wrapping: delimiters of formulas, boxes, emphasis, a full stop."""

from __future__ import annotations

import re

_PAIRS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("\\boxed{", "}"), ("\\fbox{", "}"))

_MARKS = re.compile(
    r"^(?:</?(?:b|i|u|em|strong|span|div|p|sub|mark|code)>|[✓✔✅☑🎉👉➡→“”\ufe0f]|\s)+"
    r"|(?:</?(?:b|i|u|em|strong|span|div|p|sub|mark|code|br)\s?/?>|[✓✔✅☑🎉“”\ufe0f]|\\(?:checkmark|blacksquare|square|Box|qed)(?![A-Za-z])|\s)+$"
)
"""What decorates an answer: tags, check marks, quotation marks, the end of a proof."""


def bare(answer: str) -> str:
    r"""Return the answer without its wrapping: dollar signs, boxes, emphasis, a full stop, currency signs.

    >>> bare("**$\\boxed{ 1{,}000 }$.**"), bare(" $5. "), bare("\\$18"), bare("\\(x\\)")
    ('1{,}000', '5', '18', 'x')
    """
    before = None
    answer = answer.replace("−", "-").replace("\u00a0", " ")
    while answer != before:
        before = answer
        answer = _MARKS.sub("", answer.strip().strip("*`").strip())
        answer = re.sub(r"(?<!\.)\.$|(?<!\\)[,;:]+$", "", answer).strip()  # three dots go on: 0.333...
        for left, right in _PAIRS:
            inner = answer[len(left) : len(answer) - len(right)]
            boxed = left.endswith("{")
            if answer == left + inner + right and (balanced(inner) if boxed else left not in inner):
                answer = inner
        currency = r"\\?[$€£¥]" if answer.count("$") < 2 else r"(?:\\[$]|[€£¥])"  # else it opens a formula
        answer = re.sub(
            rf"^(?:{currency}\s*|=\s*|\\displaystyle\b|\\[,;! ])|(?:\\(?:[,;:! ]|q?quad(?![A-Za-z])))$", "", answer
        )
        answer = re.sub(r"^_([^_]+)_$", r"\1", answer)
        if answer.count("$") == 1 and not answer.endswith("\\$"):
            answer = answer.rstrip("$").rstrip()
    return answer


def balanced(text: str) -> bool:
    """Return whether every closing brace has an opening one before it, and none stays open."""
    depth = 0
    for character in text:
        depth += (character == "{") - (character == "}")
        if depth < 0:
            return False
    return depth == 0
