"""From a model's text to a program: hand-written cases, strict and lenient."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from selfcorrect.errors import ConfigError
from selfcorrect.tasks.code.extraction import check_mode, complete, extract_program

F = "def f(x):\n    return x + 1"
G = "def g(x):\n    return x - 1"
OLD = "def f(x):\n    return x"
BODY = "y = x + 1\n    return y"


class Case(NamedTuple):
    name: str
    text: str
    lenient: str | None
    strict: str | None
    entry: str | None = "f"


CASES = [
    Case("fenced", f"```python\n{F}\n```", F, F),
    Case("fenced, no language", f"```\n{F}\n```", F, F),
    Case("fenced, py", f"```py\n{F}\n```", F, F),
    Case("fenced, capital", f"```Python\n{F}\n```", F, F),
    Case("fenced, python3", f"```python3\n{F}\n```", F, F),
    Case("fenced with attributes", f'```python title="f.py"\n{F}\n```', F, F),
    Case("fenced with tildes", f"~~~python\n{F}\n~~~", F, F),
    Case("fenced with four", f"````python\n{F}\n````", F, F),
    Case("prose around a fence", f"Sure, here it is:\n\n```python\n{F}\n```\nHope it helps!", F, F),
    Case("carriage returns", f"```python\n{F}\n```".replace("\n", "\r\n"), F, F),
    Case("fence in a list item", "1. Do this:\n   ```python\n   def f(x):\n       return x + 1\n   ```", F, F),
    Case("unclosed fence", f"```python\n{F}", F, None),
    Case("empty fence", "```python\n```", None, None),
    Case("fence of a shell", "```bash\npip install numpy\n```", None, None),
    Case("shell, then Python", f"```bash\npip install numpy\n```\n```python\n{F}\n```", F, F),
    Case("text fence after Python", f"```python\n{F}\n```\nOutput:\n```text\n3\n```", F, F),
    Case("two programs, the last one wins", f"```python\n{OLD}\n```\nCorrected:\n```python\n{F}\n```", F, None),
    Case("program, then a usage example", f"```python\n{F}\n```\nUse it:\n```python\nprint(f(1))\n```", F, None),
    Case("helper before the program", f"```python\n{G}\n```\n```python\n{F}\n```", F, None),
    Case("other function after the program", f"```python\n{F}\n```\n```python\n{G}\n```", F, None),
    Case("broken block after a good one", f"```python\n{F}\n```\n```python\ndef f(x) return\n```", F, None),
    Case("bare code that a lone fence closes", f"{F}\n```\n\nIt adds one.", F, None),
    Case("bare code, then the output fenced", f"{F}\n\nOutput:\n```\n3\n```", F, "3"),
    Case("constant above bare code", f"N = 1\n{F}", f"N = 1\n{F}", f"N = 1\n{F}"),
    Case("only a broken block", "```python\ndef f(x) return\n```", "def f(x) return", "def f(x) return"),
    Case("no entry point asked for", f"```python\n{F}\n```\n```python\n{G}\n```", G, None, entry=None),
    Case("marked", f"[BEGIN]\n{F}\n[DONE]", F, F),
    Case("marked, the prompt opened", f"{F}\n[DONE]", F, F),
    Case("marked, then more problems", f"{F}\n[DONE]\n\nYou are an expert\n[BEGIN]\n{G}\n[DONE]", G, None),
    Case("marked, not closed", f"[BEGIN]\n{F}", F, None),
    Case("closed twice", f"{F}\n[DONE]\n[DONE]", F, None),
    Case("marked and fenced", f"[BEGIN]\n```python\n{F}\n```\n[DONE]", F, f"```python\n{F}\n```"),
    Case("nothing between the marks", "[BEGIN]\n[DONE]", None, None),
    Case("bare program", F, F, F),
    Case("bare program with blank lines", f"\n\n{F}\n\n", F, F),
    Case("bare program with imports", f"import math\n\n{F}", f"import math\n\n{F}", f"import math\n\n{F}"),
    Case("bare lambda", "f = lambda x: x + 1", "f = lambda x: x + 1", "f = lambda x: x + 1"),
    Case("prose, then bare program", f"Here is the function:\n\n{F}", F, None),
    Case("bare program, then prose", f"{F}\n\nThis adds one to x.", F, None),
    Case("prose on both sides", f"Okay.\n{F}\nThat's it, isn't it?", F, None),
    Case("prose that starts like code", f"from the text we see it.\n{F}", F, None),
    Case("decorated", f"Look:\n@cache\n{F}\nDone!", f"@cache\n{F}", None),
    Case("body", f"    {BODY}", f"    {BODY}", f"    {BODY}"),
    Case("body, first line stripped", BODY, BODY, BODY),
    Case("body of one line", "return x + 1", "return x + 1", "return x + 1"),
    Case("body, then a stop string", f"    {BODY}\n\n# Test it:\nit works.", f"    {BODY}", None),
    Case("body, then prose", f"    {BODY}\nNow it's right.", f"    {BODY}", None),
    Case("end token in the text", f"{F}<|endoftext|>and so on it's", F, None),
    Case("chat token in the text", f"{F}\n<|im_end|>\n<|im_start|>user", F, None),
    Case("reasoning first", f"<think>\ndef f(x): maybe?\n</think>\n{F}", F, None),
    Case("only prose", "I do not know how to do this.", None, None),
    Case("one word", "Sorry", None, None),
    Case("a number", "42", None, None),
    Case("an answer line", "Answer: 4", None, None),
    Case("empty", "", None, None),
    Case("blank", "  \n\t\n", None, None),
    Case("null characters", "\0\0", None, None),
    Case("brackets without end", "(" * 50_000, None, None),
]


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 40
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_is_extracted(case: Case) -> None:
    assert extract_program(case.text, entry_point=case.entry) == case.lenient
    assert extract_program(case.text, entry_point=case.entry, mode="strict") == case.strict


PROMPT = 'import math\n\n\ndef helper(x):\n    return x\n\n\ndef f(x):\n    """Add one."""\n'

COMPLETIONS = {
    "a body": "    return x + 1",
    "a stripped body": "y = x\n    return y + 1",
    "a body without indentation": "y = x\nreturn y + 1",
    "the whole function": F,
    "a function that uses the prompt's helper": "def f(x):\n    return helper(x) + 1",
    "a function that uses the prompt's import": "def f(x):\n    return math.floor(x) + 1",
}


@pytest.mark.parametrize("code", COMPLETIONS.values(), ids=COMPLETIONS)
def test_a_completion_becomes_a_whole_program(code: str) -> None:
    space: dict[str, object] = {}
    exec(complete(PROMPT, code, "f"), space)  # hand-written above, not a model's
    assert space["f"](41) == 42  # type: ignore[operator]


def test_a_mode_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="'flexible' or 'strict'"):
        check_mode("loose")
