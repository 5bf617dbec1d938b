"""From a model's text to a program.

There are two modes. *Strict* takes what is plainly marked or plainly code: one ``[BEGIN]`` ... ``[DONE]`` (``[BEGIN]``
may be the prompt's), exactly one closed fenced block, or a text that is Python as a whole. *Lenient*, the default, also
reads unclosed marks, several blocks, prose around bare code, reasoning in ``<think>`` and end tokens left in the text.

Among several blocks, the last one that defines the requested function counts, because the corrected version usually
comes last. The next choices are bare code above the first fence that defines it, and the last block that is Python.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from selfcorrect.errors import ConfigError

Extraction = Literal["flexible", "strict"]

_FENCE = re.compile(
    r"^(?P<indent>[ \t]*)(?P<mark>`{3,}|~{3,})[ \t]*(?P<language>[\w+#.-]*)[^\n`]*\n"
    r"(?P<code>.*?)(?:^[ \t]*(?P=mark)[ \t]*$|(?P<open>\Z))",
    re.MULTILINE | re.DOTALL,
)
_PYTHON = {"", "python", "python3", "py", "py3", "python2", "pycon"}
_END_TOKENS = ("<|endoftext|>", "<|im_end|>", "<|eot_id|>", "</s>", "<eos>")
_STARTS = ("def ", "class ", "import ", "from ", "@", "async def ")
_MAX_PARSES = 400
_MAX_CHARS = 2**18


@dataclass(frozen=True, slots=True)
class _Block:
    code: str
    closed: bool


def check_mode(mode: str) -> None:
    """Raise `ConfigError` unless ``mode`` is one of the two."""
    if mode not in get_args(Extraction):
        raise ConfigError(f"extraction = {mode!r}: choose {' or '.join(map(repr, get_args(Extraction)))}.")


def extract_program(text: str, *, entry_point: str | None = None, mode: Extraction = "flexible") -> str | None:
    """Return the program in a model's text, or None if there is none.

    >>> extract_program("Sure!\\n```python\\ndef f(x):\\n    return x\\n```\\nThat is it.")
    'def f(x):\\n    return x'
    >>> extract_program("I do not know.") is None
    True
    """
    text = text.replace("\r\n", "\n")[:_MAX_CHARS]
    return _strict(text) if mode == "strict" else _flexible(text, entry_point)


def _strict(text: str) -> str | None:
    if "[DONE]" in text or "[BEGIN]" in text:
        if text.count("[DONE]") != 1 or text.count("[BEGIN]") > 1:
            return None
        before = text.partition("[DONE]")[0]
        return _clean(before.rpartition("[BEGIN]")[2])
    blocks = _blocks(text)
    if blocks:
        return blocks[0].code if len(blocks) == 1 and blocks[0].closed else None
    return _clean(text) if is_code(text) else None


def _flexible(text: str, entry_point: str | None) -> str | None:
    text = _without_noise(text)
    begun = text.partition("[BEGIN]")[2] if "[BEGIN]" in text else text
    text = begun.partition("[DONE]")[0]
    blocks = [block.code for block in _blocks(text) if block.code.strip()]
    if found := [code for code in blocks if defines(code, entry_point)]:
        return found[-1]
    above = _above_fences(text, entry_point)  # a lone fence may close bare code instead of opening a block
    if above:
        return above
    for good in (is_code, lambda code: True):
        if found := [code for code in blocks if good(code)]:
            return found[-1]
    if is_code(text):
        return _clean(text)
    return _inside_prose(text, entry_point) or _cut_body(text)


def _above_fences(text: str, entry_point: str | None) -> str | None:
    """Return the bare code above the first fence if it defines the function."""
    fence = _FENCE.search(text)
    code = fence and _inside_prose(text[: fence.start()], entry_point)
    return code if code and defines(code, entry_point) else None


def _without_noise(text: str) -> str:
    text = re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL)
    for token in _END_TOKENS:
        text = text.partition(token)[0]
    return text


def _blocks(text: str) -> list[_Block]:
    """Return the fenced blocks marked as Python or without a language; others are not programs."""
    found = []
    for match in _FENCE.finditer(text):
        if match["language"].lower() in _PYTHON:
            found.append(_Block(_dedented(match["code"], match["indent"]), match["open"] is None))
    return [block for block in found if block.code.strip()]


def _dedented(code: str, indent: str) -> str:
    """Return a block from a list item without the list's indentation."""
    return "\n".join(line.removeprefix(indent) for line in code.rstrip().split("\n"))


def _clean(text: str) -> str | None:
    """Return the text without blank lines around it; the first line keeps its indentation."""
    kept = re.sub(r"\A(?:[ \t]*\n)+", "", text).rstrip()
    return kept or None


def _inside_prose(text: str, entry_point: str | None) -> str | None:
    """Return the first run of lines that is Python and defines the function, or else the first that is Python."""
    fallback = None
    for code in _runs(text.split("\n")):
        if defines(code, entry_point):
            return code
        fallback = fallback or code
    return fallback


def _runs(lines: list[str]) -> Iterator[str]:
    """Yield the longest run of Python lines from each line that starts like code."""
    tried = 0
    for start, line in enumerate(lines):
        if not line.startswith(_STARTS):
            continue
        for end in range(len(lines), start, -1):
            tried += 1
            if tried > _MAX_PARSES:
                return
            code = "\n".join(lines[start:end]).rstrip()
            if parse(code) is not None:
                yield code
                break


def _cut_body(text: str) -> str | None:
    """Return a function's body up to the first line that leaves it: models without an end token keep writing."""
    lines = (_clean(text) or "").split("\n")
    for end, line in enumerate(lines[1:], 1):
        if line and not line[0].isspace():
            body = "\n".join(lines[:end]).rstrip()
            return body if is_code(body) else None
    return None


# --- is it Python? ----------------------------------------------------------------------------------


def parse(code: str) -> ast.Module | None:
    """Return the syntax tree, or None if the code is not Python."""
    try:
        return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def is_code(text: str) -> bool:
    """Return whether a text is Python with at least one statement that is more than an expression.

    The body of a function counts, even if its first line has lost its indentation.
    """
    trees = [parse(text), *(parse("def _():\n" + body) for body in bodies(text))]
    return any(_acts(node) for tree in trees if tree for node in _statements(tree))


def _statements(tree: ast.Module) -> list[ast.stmt]:
    first = tree.body[0] if tree.body else None
    return first.body if isinstance(first, ast.FunctionDef) and first.name == "_" else tree.body


def _acts(node: ast.stmt) -> bool:
    return not isinstance(node, ast.Expr | ast.AnnAssign)  # "Answer: 4" is an annotation


def bodies(code: str) -> list[str]:
    """Return the ways to read a text as a function body: as it is, fully indented, or with its first line indented."""
    code = _clean(code) or ""
    first, newline, rest = code.partition("\n")
    everything = "\n".join(f"    {line}" if line.strip() else line for line in code.split("\n"))
    depths = sorted({*re.findall(r"^([ \t]+)\S", rest, re.MULTILINE), "    "}, key=len)
    return [code, everything, *(f"{depth}{first.lstrip()}{newline}{rest}" for depth in depths[:2])]


def defines(code: str, name: str | None) -> bool:
    """Return whether a program defines the function ``name`` (any function, if None) at its top level."""
    tree = parse(code)
    if tree is None:
        return False
    return bool(functions(tree) if name is None else name in functions(tree))


def functions(tree: ast.Module) -> set[str]:
    """Return the names of functions, classes and assigned variables at the top level of a program."""
    names = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def complete(prompt: str, code: str, entry_point: str) -> str:
    """Return the whole program for a prompt that ends in the head of a function.

    Code that defines the function gets the prompt's imports and helpers; any other code is read as the function's body.

    >>> print(complete("import math\\ndef f(x):\\n", "return math.floor(x)", "f"))
    import math
    def f(x):
        return math.floor(x)
    """
    if defines(code, entry_point):
        return _above(prompt, entry_point) + code
    if not prompt.endswith("\n"):
        prompt += "\n"
    for body in bodies(code):
        if _size(prompt + body, entry_point) > _size(prompt, entry_point):
            return prompt + body
    return prompt + code


def _size(program: str, entry_point: str) -> int:
    """Return the number of statements in the function; 0 if the program is not Python."""
    tree = parse(program)
    heads = (node for node in (tree.body if tree else ()) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return max((len(node.body) for node in heads if node.name == entry_point), default=0)


def _above(prompt: str, entry_point: str) -> str:
    head = re.search(rf"^(?:async )?def {re.escape(entry_point)}\b", prompt, re.MULTILINE)
    return prompt[: head.start()] if head else ""
