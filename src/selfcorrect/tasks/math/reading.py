r"""Extraction of the answer from a completion.

Two rules extract it. Both outcomes are kept (`Verdict.by_rule`), because a model that solves the problem but ignores
the form differs from one that cannot solve it:

* *strict*: the last ``Final Answer: The final answer is $answer$. I hope it is correct.``, the form that the prompt
  asks for.
* *flexible*: the strict answer, or else the last of ``\boxed{...}``, ``the answer is ...`` and ``#### ...``, or else a
  short text that is nothing but an expression, or else the last formula or number of the text.

Reasoning is left out first (`selfcorrect.reasoning`), and so is what a base model writes after its answer: a question of
its own, which begins with a header (``Question:``, ``Q:``, ``User:``). An answer that is taken back in the same solution
stays retracted: the last one counts. Exactly one candidate is judged, so naming several answers earns nothing; boxes
with only ``and`` or a comma between them are one list.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from selfcorrect.reasoning import final_part
from selfcorrect.tasks.math.wrapping import balanced, bare

CONTENT_LIMIT = 2000
"""The longest text after a marker that is read, in characters."""

# Possessive and bounded, so that matching takes linear time at most. Repeated groups are atomic, (?>(?:...)*), and not
# possessive, (?:...)*+, which Python before 3.11.5 matches wrongly where a group has alternatives (gh-106052).
FINAL = re.compile(r"Final Answer: The final answer is((?:(?!Final Answer:).){0,2000}?)I hope it is correct", re.DOTALL)
PHRASE = re.compile(
    r"answers?(?:\s++(?:is|are)\b(?!\s++not\b)|\s*+\**+[:=])\s*+:?"
    r"|^[ \t]*+(?:\#{1,6}|\*\*)[ \t]*+(?:the\s+)?(?:final\s+)?answer[ \t]*+\**[ \t]*+$",  # a heading
    re.IGNORECASE | re.MULTILINE,
)
HASHES = re.compile(r"####(?!#)")
BOXED = re.compile(r"\\f?boxed(?:\s*+(\{)|\s++([^\s$.{]+))")
FORMULA = re.compile(r"\$\$(.{1,500}?)\$\$|\$([^$\n]{1,500}?)\$|\\\((.{1,500}?)\\\)|\\\[(.{1,500}?)\\\]", re.DOTALL)
NUMBER = re.compile(
    r"(?<![\w.])[-−–]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:\s?/\s?\d+)?\s?\\?%?|(?<![\w.])[-−–]?\.\d+"
)
WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
SENTENCE_END = re.compile(r"(?<!\.\.)[.!?](?=\**\s+[A-Z(])|(?<!\.\.)[.!?]\**$|<\||</s>|\s(?i:I hope it is correct)")
OPENED = re.compile(
    r"(?>(?:\*\*|:|\s)*)(?:\$\$(?P<dollars>.*?)(?:\$\$|\Z)|\\\[(?P<brackets>.*?)(?:\\\]|\Z)|\\\((?P<inline>\s*\n.*?)(?:\\\)|\Z)|```\w*\n(?P<fence>.*?)(?:```|\Z)"
    r"|(?P<environment>\\begin\{(?P<name>[a-z]+\*?)\}.*?(?:\\end\{(?P=name)\}|\Z)))",
    re.DOTALL,
)
LEAD = re.compile(r"(?>(?:[\s*:>]|</?[A-Za-z][A-Za-z0-9]{0,9}/?>|(?:[(\[{]|\$(?!\$)|\\\{)[ \t]*(?=\n))*)")
"""What may stand between a marker and its answer: a quotation, a tag, a bracket alone on its line."""
GOES_ON = re.compile(r"[ \t]*(?:[,;]|and\b|or\b)")
HEADER = re.compile(
    r"^(?:<s>|<bos>|[ \t>*_#])*(?:\[|<\|?(?:im_start\|>|start_header_id\|>)?)?"
    r"(?:(?:(?:here\s+is|here's|now|try|next|new|another|follow-?\s?up|bonus|practice|similar|extra|additional|related|sample|math"
    r"|word|one|more|a|second|third)\s+){0,4}(?:question|problem|exercise|example|puzzle|task|challenge|bonus)\s*#?\d*"
    r"|q\d*|human|user|instruction|prompt|input|student"
    r"|pregunta|problema|pergunta|frage|aufgabe|exercice|вопрос|задача|问题|問題|题目|題目|質問)"
    r"(?:\s*[:：\]>|]|\s*\d*[.)](?=\s)|[ \t*_]*$)|^\s*###\s*$|^\s*\[INST\]|^You are a math expert\b"
    r"|^There might be an error in the solution|^[ \t]*\d+[.)][ \t]+[A-Z][^\n]{5,300}\?[ \t]*$"
    r"|^</s>|^<eos>|^<start_of_turn>|^<end_of_turn>|^<\|[a-z_]{1,30}\|>",
    re.IGNORECASE | re.MULTILINE,
)
"""The line with which a completion begins a question of its own, or another turn of a conversation."""

_COUNTED = re.compile(r"^[ \t]*####[ \t]*[-−–$\\(]*\d[^\n]{0,60}$", re.MULTILINE)
_TAKES_BACK = re.compile(
    r"\b(?:no|not|wait|actually|but|however|sorry|oops|hmm|instead|rather|again|mistake\w*|errors?|wrong|incorrect|correct\w*|check\w*"
    r"|re\w*check\w*|revis\w+|redo|let me|should|alternatively|i (?:forgot|missed|made|see)|step|part)\b",
    re.IGNORECASE,
)
_BETWEEN = re.compile(
    r"(?:\n[ \t]*[-*•](?=\s)|\s|[$,;&{}]|\\(?:lor|vee)(?![A-Za-z])|\\[()\[\],;:! ]|"
    r"\\\\|\\q?quad|\band\b|\bor\b|\\(?:text|mathrm|textrm|mbox)\s*\{\s*(?:,|and|or)?\s*\}|"
    r"\\(?:begin|end)\{[a-z]+\*?\}|[A-Za-z](?:_\{?\w\}?)?\s*=)*"
)
_SEPARATOR = re.compile(r"\n[ \t]*[-*•]\s|\\lor|\\vee|[,;&]|\\\\|quad|\band\b|\bor\b")


@dataclass(frozen=True, slots=True)
class Box:
    r"""A ``\boxed{...}`` and its place."""

    start: int
    end: int
    content: str


def strict_answer(text: str) -> str | None:
    """Return the bare answer in the form that the prompt asks for, or None.

    >>> strict_answer("So. Final Answer: The final answer is $\\\\frac{1}{2}$. I hope it is correct.")
    '\\\\frac{1}{2}'
    >>> strict_answer("The answer is 7.") is None
    True
    """
    own = own_solution(text)
    return None if own is None else _in_form(own)


def flexible_answer(text: str) -> str | None:
    """Return the bare answer by the flexible rule of this module, or None.

    >>> flexible_answer("It is 3, so the answer is 12 apples."), flexible_answer("so \\\\boxed{x^2}."), flexible_answer("?")
    ('12 apples', 'x^2', None)
    """
    own = own_solution(text)
    if own is None:
        return None
    if strict := _in_form(own):
        return strict
    if marked := last_marked(own):
        return marked
    if _is_expression(own):
        return bare(own) or None
    free = [(match.end(), next(filter(None, match.groups()))) for match in FORMULA.finditer(own)]
    free += [(match.end(), match.group()) for match in NUMBER.finditer(own)]
    return bare(max(free)[1]) or None if free else None


def own_solution(text: str) -> str | None:
    r"""Return the part of a completion that solves the problem: after reasoning, before a question of its own.

    >>> own_solution("18\n\nQuestion: 3+2?\n#### 5"), own_solution("<think>#### 3")
    ('18\n\n', None)
    """
    answer = final_part(text)
    return None if answer is None else _before_a_second_end(_before_a_question(answer))


def _before_a_question(answer: str) -> str:
    headers = HEADER.finditer(answer)
    first = next((header.start() for header in headers if answer[: header.start()].strip()), None)
    if first is None:
        return answer
    if _is_expression(answer[:first]):
        return answer[:first]
    finished = _first_finish(answer)
    header = None if finished is None else HEADER.search(answer, finished)
    return answer[: header.start()] if header else answer


def _before_a_second_end(answer: str) -> str:
    """Return a text up to its first formal end if another follows that takes nothing back.

    A formal end (the paper's form, ``####`` and a number) closes a solution, so what follows answers another problem.
    """
    ends = sorted(
        (match for pattern in (FINAL, _COUNTED) for match in islice(pattern.finditer(answer), 2)), key=re.Match.end
    )
    if len(ends) < 2 or _TAKES_BACK.search(answer[ends[0].end() : ends[1].start()]):
        return answer
    return answer[: ends[0].end()]


def _first_finish(text: str) -> int | None:
    """Return the place up to which the first marked answer is written, or None."""
    ends = [match.end() for match in [FINAL.search(text)] if match and bare(match[1])]
    ends += [box.end for box in islice((box for box in _boxed(text) if bare(box.content)), 1)]
    for pattern in (PHRASE, HASHES):
        marks = (match.end() for match in islice(pattern.finditer(text), _TRIED))
        ends += islice((end for end in marks if bare(_content(text, end))), 1)
    return min(ends, default=None)


def boxed_answer(text: str) -> str | None:
    r"""Return the content of the last closed ``\boxed{...}``, or of several with only ``and`` between, as a list.

    >>> boxed_answer(r"so \boxed{\frac{1}{2}}. Not \boxed{"), boxed_answer(r"$\boxed{2}$ or $\boxed{3}$")
    ('\\frac{1}{2}', '2, 3')
    """
    last = _last_box(text)
    return None if last is None else last.content


def _in_form(text: str) -> str | None:
    found = FINAL.findall(text)
    return bare(found[-1]) or None if found else None


def last_marked(text: str) -> str | None:
    r"""Return the bare content of the last marker that has one: ``\boxed{...}``, ``the answer is ...`` or ``#### ...``.

    >>> last_marked("3 birds, so the answer is 12 legs. Bye."), last_marked("12")
    ('12 legs', None)
    """
    box = _last_box(text)
    marks = sorted((match for pattern in (PHRASE, HASHES) for match in pattern.finditer(text)), key=re.Match.end)
    later = len(text)
    for mark in reversed(marks[-_TRIED:]):
        if box is not None and box.end > mark.end():
            break
        leads_on = later < len(text) and "\n" not in text[mark.end() : later]  # "Final Answer: The final answer is"
        if not leads_on and (answer := bare(_content(text, mark.end()))):
            return answer
        later = mark.start()
    return (bare(box.content) or None) if box is not None else None


_TRIED = 8
"""The number of empty markers, from the end, after which no earlier one is tried."""


def _content(text: str, start: int) -> str:
    """Return what a marker introduces: a display on the lines below, or the rest of the line up to its sentence's end."""
    following = text[start : start + CONTENT_LIMIT]
    following = following[LEAD.match(following).end() :]  # type: ignore[union-attr]  # it matches nothing, too
    opened = OPENED.match(following)
    if opened and not GOES_ON.match(following, opened.end()):
        display = next(filter(None, opened.group("dollars", "brackets", "inline", "fence", "environment")), "")
        display = display.partition("I hope it is correct")[0]  # an empty $$ opens nothing
        box = boxed_answer(display)
        return display if box is None else box
    line = following.partition("\n")[0]
    if (box := boxed_answer(line)) is not None:
        return box
    sentence = SENTENCE_END.split(line)[0]
    asked = line[len(sentence) : len(sentence) + 1] == "?" or (sentence == line and line.rstrip(" *").endswith("?"))
    return "" if asked else sentence


def _last_box(text: str) -> Box | None:
    """Return the last box, joined with those right before it that only a comma, ``and`` or ``or`` separates."""
    boxes = [box for box in _boxed(text) if bare(box.content)]
    if not boxes:
        return None
    joined = [boxes[-1]]
    for box in reversed(boxes[-_JOINED:-1]):
        between = text[box.end : joined[0].start]
        if box.end > joined[0].start or "\n\n" in between or not _BETWEEN.fullmatch(between):
            break
        if not _SEPARATOR.search(between):
            break
        joined.insert(0, box)
    contents = list(dict.fromkeys(box.content.strip() for box in joined))
    return Box(joined[0].start, joined[-1].end, ", ".join(contents))


_JOINED = 12
"""The largest number of boxes that are one list, plus one."""


def _boxed(text: str) -> Iterator[Box]:
    r"""Yield every closed ``\boxed{...}`` that is not within another, in order."""
    starts = {match.end() - 1: match for match in BOXED.finditer(text)}
    open_braces: list[int] = []
    boxes: list[Box] = []
    for brace in _BRACE.finditer(text):
        if brace.group() == "{":
            open_braces.append(brace.start())
        elif open_braces:
            start = open_braces.pop()
            if (match := starts.get(start)) is not None and match[1]:
                boxes.append(Box(match.start(), brace.end(), text[start + 1 : brace.start()]))
    boxes += [Box(match.start(), match.end(), match[2]) for match in starts.values() if match[2]]  # \boxed 5
    end = -1
    for box in sorted(boxes, key=lambda box: box.start):
        if box.start >= end:
            end = box.end
            yield box


_BRACE = re.compile(r"(?<!\\)[{}]")


def _is_expression(text: str) -> bool:
    """Return whether a text is one short line without words."""
    short = len(text) <= 100 and "\n" not in text.strip() and balanced(text)
    return short and len(WORD.findall(text)) < 2 and re.search(r"\w", text) is not None
