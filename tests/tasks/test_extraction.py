"""From a model's text to a program: hand-written cases, strict and lenient."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from selfcorrect.errors import ConfigError
from selfcorrect.tasks.code.extraction import check_mode, complete, defines, extract_program

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


FLAT = "y = x\nreturn y + 1"
HELPED = f"    return g(x) + 2\n\n\n{G}"
MARKED = "def f(x):\n    return '</think>'"


def below(what: str, text: str, *, python: bool = True) -> Case:
    """A body with something below that is not of it."""
    whole = f"    {BODY}\n\n\n{text}"
    return Case(f"body, then {what}", whole, f"    {BODY}", whole if python else None)


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
    Case("marked, then more problems", f"{F}\n[DONE]\n\nYou are an expert\n[BEGIN]\n{G}\n[DONE]", F, F),
    Case("both marks, then more problems", f"[BEGIN]\n{F}\n[DONE]\n\nAnd:\n[BEGIN]\n{G}\n[DONE]\n[BEGIN]\nx", F, F),
    Case("marked, then a problem that is cut off", f"{F}\n[DONE]\n\nYou are an expert\n[BEGIN]\ndef g(", F, F),
    Case(
        "not closed, then another task",
        f"{F}\n\nYou are an expert Python programmer, and\n[BEGIN]\n{OLD}\n[DONE]",
        F,
        None,
    ),
    Case(
        "not closed, then revised unasked",
        f"{F}\n\nThere might be an error in the code above.\n[BEGIN]\n{OLD}\n[DONE]",
        F,
        None,
    ),
    Case("marks that prose mentions", f"Between [BEGIN] and [DONE].\n\n[BEGIN]\n{F}\n[DONE]", F, F),
    Case("marked on the lines of the code", f"[BEGIN]{F}[DONE]\nYou are", F, F),
    Case("no answer, then another problem's", f"[DONE]\n\nYou are an expert\n[BEGIN]\n{G}\n[DONE]", None, None),
    Case("marked, not closed", f"[BEGIN]\n{F}", F, None),
    Case("closed twice", f"{F}\n[DONE]\n[DONE]", F, F),
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
    Case("reasoning first", f"<think>\ndef f(x): maybe?\n</think>\n{F}", F, F),
    Case("a draft in reasoning that the prompt opened", f"Perhaps:\n```python\n{OLD}\n```\n</think>\n{F}", F, F),
    Case("a draft fenced, the answer marked", f"```python\n{OLD}\n```\n[/THINK][BEGIN]\n{F}\n[DONE]", F, F),
    Case("reasoning without an end", f"<think>\n```python\n{F}\n```", None, None),
    Case("a draft without an end after reasoning", f"<think>a</think>\n{F}\n<think>\n{OLD}", None, None),
    Case("reasoning, then tags around the answer", f"<reasoning>{OLD}</reasoning><answer>{F}</answer>", F, F),
    Case("a marker in the program", MARKED, MARKED, MARKED),
    Case("fenced, cut off in an example", f"```python\n{F}\n\nprint(f(1", F, None),
    Case("bare, cut off in an example", f"{F}\n\nprint(f(1", F, None),
    Case("fenced, cut off in an example's text", f'```python\n{F}\n\n"""For instance', F, None),
    Case("fenced, with words below", f"```python\n{F}\n\n2 it is\n```", F, f"{F}\n\n2 it is"),
    Case("fenced, cut off in a main block", f"```python\n{F}\n\nif __name__ == '__main__':\n    for i in", F, None),
    Case(
        "a correction that is cut off within",
        f"```python\n{F}\n```\nBetter:\n```python\ndef f(x):\n    return (",
        F,
        None,
    ),
    Case("words that are Python below", f"{F}\n\nExplanation\nDone", F, f"{F}\n\nExplanation\nDone"),
    Case("a note that is Python below", f"{F}\n\nNote: this", F, f"{F}\n\nNote: this"),
    Case("bare program, then another question", f"{F}\n\nQuestion: Write g.\nAnswer:\n{G}", F, None),
    Case("bare program, then a heading", f"{F}\n\n## Why\n\nIt adds one.", f"{F}\n\n## Why", None),
    below("a main block", "if __name__ == '__main__':\n    main()"),
    below("another function", f"{G}\n\nprint(g(no))"),
    below("the same function again", OLD),
    below("tests", "assert f(1) == 3\nMETADATA = {}"),
    below("a constant of another question", "x = 5\nprint(x)"),
    below("a function that is cut off", 'def g(x):\n    """Sub', python=False),
    below("a heading", "### Explanation\n\nWe add one.", python=False),
    below("a question", "Question: what is 1 + 1?\nAnswer: 2", python=False),
    below("a class that is cut off", "class Test(TestCase):\n    def test_f(self", python=False),
    Case("body, first line stripped, then a function", f"{BODY}\n\n\n{G}", BODY, f"{BODY}\n\n\n{G}"),
    Case("body of one line, then a function", f"return x + 1\n\n\n{G}", "return x + 1", f"return x + 1\n\n\n{G}"),
    Case("body without indentation, then a function", f"{FLAT}\n\n{G}", FLAT, f"{FLAT}\n\n{G}"),
    Case("body that a lone fence closes", f"    {BODY}\n```\n\nIt adds one, and so on.", f"    {BODY}", None),
    Case("body with text at the margin", *(["    y = '''\na\n'''\n    return y"] * 3)),
    Case("body with a comment at the margin", *(["    y = x\n# then\n    return y"] * 3)),
    Case("body with its helper below", f"{HELPED}\n\nprint(g(no))", HELPED, f"{HELPED}\n\nprint(g(no))"),
    Case("indented program", "    def f(x):\n        return x + 1", F, "    def f(x):\n        return x + 1"),
    Case(
        "body in a block, then an example", f"```python\n    {BODY}\n```\n```python\nr = f(3)\n```", f"    {BODY}", None
    ),
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


def fenced(*blocks: str) -> str:
    return "\n\nThen:\n\n".join(f"```python\n{block}\n```" for block in blocks)


USES = "def f(x):\n    return add(x, N)"
ADDS = "def f(x):\n    return x + N"
SPREAD = {
    "imports first": fenced("import operator", "N = 1", "def f(x):\n    return operator.add(x, N)"),
    "imports last": fenced("def f(x):\n    return floor(x) + 1", "from math import *\nfrom math import floor"),
    "an import of everything": fenced("import os", "from math import *\nfloor(None)", "def f(x): return floor(x) + 1"),
    "a helper and a constant": fenced("def add(a, b):\n    return a + b", "N = 1", USES),
    "a helper that needs more": fenced("import operator as o\nN = 1", "def add(a, b):\n    return o.add(a, b)", USES),
    "a corrected helper": fenced("def add(a, b): return a - b\nN = 1", USES, "def add(a, b): return a + b"),
    "the nearest constant": fenced("N = 5", "N = 1\ndef add(a, b): return a + b", USES, "N = 7\nprint(f(N))"),
    "examples that fail between": fenced("import operator\nprint(undefined)", "M = int(input())", "N = 1", ADDS),
    "an example below": fenced("N = 1", ADDS, "import sys\nprint(f(int(sys.argv[9])))\nsys.exit(f(N))"),
    "a module's method above": fenced("import sys\nN = 1\nsys.exit(1)", "def f(x):\n    sys.stdout\n    return x + N"),
    "a correction that needs the first block": fenced(
        f"from math import floor\n{OLD}", "def f(x): return floor(x) + 1"
    ),
    "a correction that needs nothing": fenced("raise SystemExit\nimport nothing\ndef f(x): pass", F),
    "a table that is filled": fenced(
        "T = {}\nfor i in range(50):\n    T[i] = i + 1\nT.update({})\nprint(T[99])", "def f(x):\n    return T[x]"
    ),
    "a class": fenced(
        "from functools import wraps as w\nclass P:\n    def __init__(self, x): self.x = x\n"
        "@w(P)\ndef q(x): return P(x)\nq()",
        "def f(x):\n    return q(x).x + 1",
    ),
    "annotations": fenced("from typing import List", "def f(x: List[int]) -> List[int]:\n    return x + 1"),
    "a future import": fenced(
        "from __future__ import annotations\nN = 1", f'"""Add."""\nfrom __future__ import annotations\nQ: R = 1\n{ADDS}'
    ),
    "a main block": fenced("N = 1\nif __name__ == '__main__':\n    N = 9", ADDS),
    "a decorator": fenced("from functools import cache", "@cache\ndef f(x):\n    return x + 1"),
    "a default": fenced("N = 1", "def f(x, n=N):\n    return x + n"),
    "a last block that is cut off": fenced("N = 1") + f"\n```python\n{ADDS}\n\nprint(f(",
    "other languages between": f"```sh\npip install x\n```\n{fenced('N = 1', ADDS)}\n```text\n3\n```",
    "recursion": fenced("def f(x):\n    return 0", "def f(x):\n    return 1 if x == 0 else 1 + f(x - 1)"),
}
"""Answers that spread a program, which adds one, over several blocks."""


@pytest.mark.parametrize("text", SPREAD.values(), ids=SPREAD)
def test_a_program_in_several_blocks_is_put_together(text: str) -> None:
    code = extract_program(text, entry_point="f")
    space: dict[str, object] = {"__name__": "solution"}
    assert code is not None
    exec(code, space)  # hand-written above, not a model's
    assert space["f"](41) == 42  # type: ignore[operator]


def test_what_the_tests_use_counts_as_needed() -> None:
    pair = "class Pair:\n    def __init__(self, a, b): self.a, self.b = a, b"
    text = fenced(pair, "def f(pairs):\n    return max(p.a for p in pairs)", "print(f([Pair(1, 2)]))")
    code = extract_program(text, entry_point="f", names=["Pair", "f"])
    assert code is not None and defines(code, "Pair") and defines(code, "f") and "print" not in code


@pytest.mark.parametrize(
    "text",
    [
        fenced(*(f"N{i} = N{i + 1}" for i in range(4_000)), "def f(x):\n    return N0"),
        fenced("\n".join(f"N{i} = N{i + 1}" for i in range(8_000)), "def f(x):\n    return N0"),
        fenced(*["def g("] * 8_000, F),
        f"[BEGIN]\n{OLD}\n" * 6_000 + f"[BEGIN]\n{F}\n[DONE]\n" + "[DONE]\n" * 8_000,
        f"{F}\n" + "print(f(1\n" * 20_000,
    ],
    ids=["blocks", "needs", "broken blocks", "marks", "examples"],
)
def test_long_answers_are_read(text: str) -> None:
    assert defines(extract_program(text, entry_point="f") or "", "f")


def test_a_mode_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="'flexible' or 'strict'"):
        check_mode("loose")
