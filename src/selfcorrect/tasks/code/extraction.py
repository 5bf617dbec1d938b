"""From a model's text to a program.

In either mode, reasoning does not count (`selfcorrect.reasoning`), and only the first of several ``[BEGIN]`` ... ``[DONE]``
answers does: a base model continues with problems of its own. *Strict* takes what is plainly marked or plainly code: an
answer that ends in ``[DONE]``, exactly one closed fenced block, or a text that is Python as a whole. *Lenient*, the
default, also reads unclosed marks, several blocks, prose around bare code and end tokens left in the text.

Among several blocks, the last one that defines the requested function counts, because the corrected version usually
comes last; what it lacks comes from the others (`needs`). The next choices are bare code above the first fence that
defines it, a function's body above the first fence, and the last block that is Python.

Text that is no longer Python after the function is cut, fenced or not. A body ends where the indentation does.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from selfcorrect.errors import ConfigError
from selfcorrect.reasoning import final_part
from selfcorrect.tasks.code.needs import needs, with_needs

Extraction = Literal["flexible", "strict"]

_FENCE = re.compile(
    r"^(?P<indent>[ \t]*)(?P<mark>`{3,}|~{3,})[ \t]*(?P<language>[\w+#.-]*)[^\n`]*\n"
    r"(?P<code>.*?)(?:^[ \t]*(?P=mark)[ \t]*$|(?P<open>\Z))",
    re.MULTILINE | re.DOTALL,
)
_PYTHON = {"", "python", "python3", "py", "py3", "python2", "pycon"}
_BEGIN = re.compile(r"^[ \t]*\[BEGIN\]|\[BEGIN\][ \t]*$", re.MULTILINE)
_DONE = re.compile(r"^[ \t]*\[DONE\]|\[DONE\][ \t]*$", re.MULTILINE)
"""The marks of the paper's prompt; within a line they are prose about them."""
_PROMPT_AGAIN = re.compile(
    r"^(?:You are an expert Python programmer|There might be an error in the code above)\b", re.MULTILINE
)
"""The first words of the paper's prompts, with which a model that did not close its answer continues."""
_LEAVES = re.compile(r"def |class |@|async def |if __name__|import |from ")
"""How a line begins that is not of a function's body, even if no line of that is indented."""
_BLANK_END = re.compile(r"\s*(?:\n\s*(?:#.*)?)*\Z")
_END_TOKENS = ("<|endoftext|>", "<|im_end|>", "<|eot_id|>", "</s>", "<eos>")
_STARTS = ("def ", "class ", "import ", "from ", "@", "async def ")
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)
_MAX_PARSES = 400
_MAX_CUTS = 10
_MAX_CHARS = 2**18


@dataclass(frozen=True, slots=True)
class _Block:
    code: str
    closed: bool


def check_mode(mode: str) -> None:
    """Raise `ConfigError` unless ``mode`` is one of the two."""
    if mode not in get_args(Extraction):
        raise ConfigError(f"extraction = {mode!r}: choose {' or '.join(map(repr, get_args(Extraction)))}.")


def extract_program(
    text: str, *, entry_point: str | None = None, names: Sequence[str] = (), mode: Extraction = "flexible"
) -> str | None:
    """Return the program in a model's text, or None if there is none.

    The program must define ``entry_point``. ``names`` are others that the tests use, such as a class of its arguments.

    >>> extract_program("Sure!\\n```python\\ndef f(x):\\n    return x\\n```\\nThat is it.")
    'def f(x):\\n    return x'
    >>> extract_program("I do not know.") is None
    True
    """
    answer = final_part(text)
    if answer is None:
        return None
    answer = answer.replace("\r\n", "\n")[:_MAX_CHARS]
    return _strict(answer) if mode == "strict" else _flexible(answer, entry_point, names)


def _strict(text: str) -> str | None:
    own = _before_another_task(text)
    if own != text and not _DONE.search(own):
        return None
    text = own
    if _BEGIN.search(text) or _DONE.search(text):
        return _clean(_marked(text)) if _DONE.search(text) else None
    blocks = _blocks(text)
    if blocks:
        return blocks[0].code if len(blocks) == 1 and blocks[0].closed else None
    return _clean(text) if is_code(text) else None


def _flexible(text: str, entry_point: str | None, names: Sequence[str]) -> str | None:
    text = _marked(_before_another_task(_without_end(text)))
    fence = _FENCE.search(text)
    if fence is None:
        return _bare(text, entry_point)
    blocks = [block.code for block in _blocks(text)]
    if found := _in_blocks(blocks, entry_point, names):
        return found
    above = _bare(text[: fence.start()], entry_point)  # a lone fence may close bare code instead of opening a block
    if above and (defines(above, entry_point) or _is_body(above)):
        return above
    return _some_block(blocks, entry_point) or above or _bare(text, entry_point)


def _before_another_task(text: str) -> str:
    """Return the text before the prompt of another task, which follows the answer."""
    again = next((match for match in _PROMPT_AGAIN.finditer(text) if text[: match.start()].strip()), None)
    return text[: again.start()] if again else text


def _marked(text: str) -> str:
    """Return the first marked answer; without marks, the text. The first mark may be the prompt's, the last missing."""
    done = _DONE.search(text)
    before = text[: done.start()] if done else text
    begins = list(_BEGIN.finditer(before))
    if not begins:
        return before
    return before[begins[-1 if done else 0].end() :]


def _in_blocks(blocks: Sequence[str], entry_point: str | None, names: Sequence[str]) -> str | None:
    """Return the last block that defines the function, with what it needs from the others."""
    read = [_read(block) for block in blocks]
    found = [place for place, (_, tree) in enumerate(read) if _defined(tree, entry_point)]
    if not found:
        return None
    code, program = read[found[-1]]
    before, after = ([tree for _, tree in others if tree.body] for others in (read[: found[-1]], read[found[-1] + 1 :]))
    return with_needs(program, code, before, after, names) if before or after else code


def _read(block: str) -> tuple[str, ast.Module]:
    """Return the part of a block that is Python, and its tree."""
    tree = parse(block)
    if tree is not None:
        return block, tree
    code = _whole_lines(block) or ""
    return code, parse(code) or ast.Module([], [])


def _some_block(blocks: Sequence[str], entry_point: str | None) -> str | None:
    """Return the last block that is Python, a function's body before others, or else the last one."""
    for good in (_is_body, is_code):
        if found := [code for code in blocks if good(code)]:
            return found[-1]
    return (_inside_prose(blocks[-1], entry_point) or blocks[-1]) if blocks else None


def _bare(text: str, entry_point: str | None) -> str | None:
    """Return the program in a text without fences, or the body of a function."""
    indented = textwrap.dedent(text)
    if entry_point and indented != text and defines(indented, entry_point):
        return _clean(indented)
    if not (_clean(text) or "").startswith(_STARTS) and (body := _body(text, entry_point)):
        return body
    if is_code(text):
        return _before_words(_clean(text) or "", entry_point)
    found = _inside_prose(text, entry_point)
    return _before_words(found, entry_point) if found else None


def _without_end(text: str) -> str:
    """Return the text before its first end token."""
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
        tried += _MAX_CUTS
        if whole := _whole_lines("\n".join(lines[start:])):
            yield whole
            continue
        for end in range(len(lines), start, -1):
            tried += 1
            if tried > _MAX_PARSES:
                return
            code = "\n".join(lines[start:end]).rstrip()
            if parse(code) is not None:
                yield code
                break


def _whole_lines(code: str) -> str | None:
    """Return the statements above the one that is not Python, such as an example of use that was cut off.

    None if the broken statement comes first. A broken function is not cut within: its head alone would count as defined.
    """
    lines = code.split("\n")
    last = len(lines)
    for _ in range(_MAX_CUTS):
        line = _broken_line("\n".join(lines[:last]))
        if line is None:
            return "\n".join(lines[:last]).rstrip() or None
        last = min(line, last) - 1
        while last > 0 and not _begins_statement(lines[last]):
            last -= 1
    return None


def _broken_line(code: str) -> int | None:
    """Return the number of the line at which a text stops to be Python."""
    try:
        ast.parse(code)
    except SyntaxError as error:
        return error.lineno or 1
    except (ValueError, RecursionError, MemoryError):
        return 1
    return None


def _begins_statement(line: str) -> bool:
    """Return whether a line begins a statement outside of all functions."""
    return bool(line) and not line[0].isspace() and not line.startswith(("#", ")", "]", "}"))


def _before_words(code: str, entry_point: str | None) -> str:
    """Return a program without the words below its function that happen to be Python: `Done`, `Note: this`."""
    tree = parse(code)
    defined = False
    for node in tree.body if tree else ():
        words = isinstance(node, ast.AnnAssign) and node.value is None
        words |= isinstance(node, ast.Expr) and isinstance(node.value, ast.Name)
        if words and defined:
            return "\n".join(code.split("\n")[: node.lineno - 1]).rstrip()
        names = functions(ast.Module([node], []))
        defined |= bool(names if entry_point is None else entry_point in names)
    return code


def _body(text: str, entry_point: str | None) -> str | None:
    """Return a function's body up to the line that leaves it, with the definitions from below that it needs.

    Models without an end token continue with other functions, a main block, headings or another question.
    """
    lines = (_clean(text) or "").split("\n")
    ends = [end for end, line in enumerate(lines[1:], 1) if _begins_statement(line)]
    if ends and not lines[0][:1].isspace():  # none of its lines may be indented
        ends = [end for end in ends if _LEAVES.match(lines[end]) or lines[end - 1][:1].isspace() or not lines[end - 1]]
    for end in [*ends[:_MAX_CUTS], *([] if len(ends) > _MAX_CUTS else [len(lines)])]:
        body = _BLANK_END.sub("", "\n".join(lines[:end]))
        program = _as_function(body)
        if program is None or not _is_body(body):
            continue
        below = parse(_whole_lines("\n".join(lines[end:])) or "") or ast.Module([], [])
        below.body = [node for node in below.body if isinstance(node, _DEFINITIONS)]
        needed = needs(program, (), [below], own=entry_point)
        return "\n".join([body, *(["", "", *needed] if needed else [])])
    return None


def _is_body(code: str) -> bool:
    """Return whether a text is the body of a function: it is indented, or returns."""
    program = _as_function(code)
    inside = _statements(program) if program else []
    indented = (_clean(code) or "")[:1].isspace()
    return any(isinstance(node, ast.Return) or (indented and _acts(node)) for node in inside)


def _as_function(code: str) -> ast.Module | None:
    """Return the tree of a function with this body, in one of the ways to read it; None if it is none."""
    trees = (parse("def _():\n" + body) for body in bodies(code))
    return next((tree for tree in trees if tree and len(tree.body) == 1), None)


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
    return tree is not None and _defined(tree, name)


def _defined(tree: ast.Module, name: str | None) -> bool:
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
