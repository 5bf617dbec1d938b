"""Short Python functions over integers, lists and strings, made from templates: offline, seeded, endless.

A problem is a chain of steps ("keep the elements greater than 3", "multiply each by 2") and an end ("return their
sum"); ``level`` is the number of steps. Each step knows its common mistakes (off by one, wrong operator, missing edge
case), so every problem comes with incorrect programs. The hidden tests are chosen so that each of these programs fails
at least one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from selfcorrect.errors import ConfigError
from selfcorrect.rng import generator
from selfcorrect.tasks.code.task import CodeSettings, CodeTask
from selfcorrect.tasks.splits import take_split
from selfcorrect.types import Problem, Split

DEFAULT_LIMIT = 1000
MAX_LEVEL = 5
TESTS = 8
"""The minimum number of hidden tests per problem; each incorrect program may add one."""


@dataclass(frozen=True, slots=True)
class Step:
    """One line of a function: its description, its code, and its common mistakes."""

    text: str
    code: str
    wrong: tuple[str, ...]


Make = Callable[[np.random.Generator], Step]


@dataclass(frozen=True, slots=True)
class Kind:
    """A family of problems: the type of ``x``, its steps and ends, and test values."""

    noun: str
    steps: tuple[Make, ...]
    ends: tuple[Make, ...]
    edges: tuple[Any, ...]
    draw: Callable[[np.random.Generator], Any]


def _number(rng: np.random.Generator, low: int, high: int) -> int:
    return int(rng.integers(low, high + 1))


def _fixed(text: str, code: str, *wrong: str) -> Make:
    return lambda rng: Step(text, code, wrong)


def _with(low: int, high: int, text: str, code: str, *wrong: str) -> Make:
    """Return a template in which ``#`` stands for a number from ``low`` to ``high``, and ``#+`` for one more."""

    def make(rng: np.random.Generator) -> Step:
        n = _number(rng, low, high)
        return _filled({"#+": str(n + 1), "#": str(n)}, text, code, *wrong)

    return make


def _letter(text: str, code: str, *wrong: str) -> Make:
    """Return a template in which ``#`` stands for a letter."""
    return lambda rng: _filled({"#": "abelo"[_number(rng, 0, 4)]}, text, code, *wrong)


def _filled(values: Mapping[str, str], *parts: str) -> Step:
    for mark, value in values.items():
        parts = tuple(part.replace(mark, value) for part in parts)
    text, code, *wrong = parts
    return Step(text, code, tuple(wrong))


INTEGERS = Kind(
    "an integer",
    (
        _with(2, 9, "add #", "x = x + #", "x = x - #", "x = x + #+"),
        _with(2, 9, "multiply it by #", "x = x * #", "x = x + #", "x = x * #+"),
        _with(2, 9, "subtract # from it", "x = x - #", "x = # - x", "x = x + #"),
        _with(3, 9, "take its remainder when divided by #", "x = x % #", "x = x // #", "x = x % #+"),
        _with(2, 5, "divide it by #, rounding down", "x = x // #", "x = int(x / #)", "x = x % #"),
        _with(0, 9, "replace it by # if it is less than #", "x = max(x, #)", "x = min(x, #)"),
        _with(5, 20, "replace it by # if it is greater than #", "x = min(x, #)", "x = max(x, #)"),
        _fixed("take its absolute value", "x = abs(x)", "x = -x", "x = x"),
        _with(2, 9, "add # if it is even", "x = x + # if x % 2 == 0 else x", "x = x + # if x % 2 == 1 else x"),
    ),
    (
        _fixed("return it", "return x", "return x + 1"),
        _fixed("return its square", "return x * x", "return x * 2", "return x + x"),
        _fixed("return whether it is positive", "return x > 0", "return x >= 0", "return x < 0"),
        _fixed("return the number of its decimal digits", "return len(str(abs(x)))", "return len(str(x))"),
        _fixed(
            "return the sum of the integers from 1 to it, or 0 if it is less than 1",
            "return sum(range(1, x + 1))",
            "return sum(range(1, x))",
            "return x * (x + 1) // 2",
        ),
    ),
    (0, 1, -1, 2, 9, 10, -10, 11, 100),
    lambda rng: _number(rng, -30, 60),
)

LISTS = Kind(
    "a list of integers",
    (
        _with(
            -2,
            6,
            "keep the elements greater than #",
            "x = [v for v in x if v > #]",
            "x = [v for v in x if v >= #]",
            "x = [v for v in x if v < #]",
        ),
        _with(
            0,
            9,
            "keep the elements less than #",
            "x = [v for v in x if v < #]",
            "x = [v for v in x if v <= #]",
            "x = [v for v in x if v > #]",
        ),
        _with(
            2,
            4,
            "keep the elements divisible by #",
            "x = [v for v in x if v % # == 0]",
            "x = [v for v in x if v % # != 0]",
        ),
        _with(2, 6, "multiply each element by #", "x = [v * # for v in x]", "x = x * #", "x = [v + # for v in x]"),
        _with(1, 9, "add # to each element", "x = [v + # for v in x]", "x = x + [#]", "x = [v - # for v in x]"),
        _with(1, 3, "leave out the first #", "x = x[#:]", "x = x[#+:]", "x = x[:#]"),
        _with(1, 3, "leave out the last #", "x = x[:-#]", "x = x[-#:]", "x = x[:#]"),
        _with(2, 3, "keep every #th element, beginning with the first", "x = x[::#]", "x = x[#::#]", "x = x[1::#]"),
        _fixed("replace each element by its absolute value", "x = [abs(v) for v in x]", "x = [-v for v in x]"),
        _fixed("sort them in increasing order", "x = sorted(x)", "x = sorted(x, reverse=True)"),
        _fixed("reverse their order", "x = x[::-1]", "x = sorted(x)"),
        _fixed(
            "remove repeated elements, keeping first occurrences", "x = list(dict.fromkeys(x))", "x = sorted(set(x))"
        ),
    ),
    (
        _fixed("return the list", "return x", "return x[1:]", "return x[:-1]"),
        _fixed("return their sum", "return sum(x)", "return len(x)", "return sum(x[1:])"),
        _fixed("return how many there are", "return len(x)", "return len(x) - 1", "return sum(x)"),
        _with(
            0,
            1,
            "return the largest, or # if there is none",
            "return max(x, default=#)",
            "return max(x)",
            "return min(x, default=#)",
        ),
        _with(
            0,
            1,
            "return the smallest, or # if there is none",
            "return min(x, default=#)",
            "return min(x)",
            "return max(x, default=#)",
        ),
        _fixed(
            "return the last one, or None if there is none",
            "return x[-1] if x else None",
            "return x[-1]",
            "return x[0] if x else None",
        ),
        _fixed(
            "return the first one, or None if there is none",
            "return x[0] if x else None",
            "return x[0]",
            "return x[-1] if x else None",
        ),
        _fixed(
            "return the sum of their squares",
            "return sum(v * v for v in x)",
            "return sum(x) ** 2",
            "return sum(v * 2 for v in x)",
        ),
    ),
    ([], [0], [1], [-1, -2], [3, 3, 3], [5, 1, 4, 2, 3], [10, -10, 6, 12, 6]),
    lambda rng: [_number(rng, -9, 15) for _ in range(_number(rng, 1, 9))],
)

STRINGS = Kind(
    "a string",
    (
        _fixed("make it lower case", "x = x.lower()", "x = x.upper()"),
        _fixed("make it upper case", "x = x.upper()", "x = x.lower()"),
        _fixed("reverse it", "x = x[::-1]", "x = x[::-2]", "x = x[-1:0:-1]"),
        _with(1, 3, "leave out its first # characters", "x = x[#:]", "x = x[#+:]", "x = x[:#]"),
        _with(1, 3, "leave out its last # characters", "x = x[:-#]", "x = x[-#:]", "x = x[:#]"),
        _with(2, 3, "repeat it # times", "x = x * #", "x = x * #+"),
        _with(2, 3, "keep every #th character, beginning with the first", "x = x[::#]", "x = x[1::#]"),
        _letter('remove every "#"', 'x = x.replace("#", "")', 'x = x.replace("#", "", 1)', 'x = x.strip("#")'),
        _fixed(
            "keep only its letters",
            'x = "".join(c for c in x if c.isalpha())',
            'x = "".join(c for c in x if c.isalnum())',
        ),
        _fixed(
            "keep only its digits",
            'x = "".join(c for c in x if c.isdigit())',
            'x = "".join(c for c in x if not c.isdigit())',
        ),
        _fixed("remove spaces at both its ends", "x = x.strip()", 'x = x.replace(" ", "")', "x = x.lstrip()"),
    ),
    (
        _fixed("return it", "return x", "return x[1:]", "return x[:-1]"),
        _fixed("return its length", "return len(x)", "return len(x) - 1", "return len(set(x))"),
        _letter(
            'return how often "#" occurs in it', 'return x.count("#")', 'return int("#" in x)', 'return x.find("#")'
        ),
        _fixed(
            "return its number of words", "return len(x.split())", 'return len(x.split(" "))', 'return x.count(" ")'
        ),
        _fixed(
            "return whether it reads the same backwards",
            "return x == x[::-1]",
            "return x[:1] == x[-1:]",
            "return x != x[::-1]",
        ),
        _fixed('return its first character, or "" if there is none', "return x[:1]", "return x[0]", "return x[-1:]"),
        _fixed('return its last character, or "" if there is none', "return x[-1:]", "return x[-1]", "return x[:1]"),
    ),
    ("", " ", "a", "level", "Hello World", " two  words ", "a1b22c", "Bob"),
    lambda rng: "".join("aabeloBLE 12"[_number(rng, 0, 11)] for _ in range(_number(rng, 1, 12))),
)

KINDS: dict[str, Kind] = {"integers": INTEGERS, "lists": LISTS, "strings": STRINGS}


class MicroCodeTask(CodeTask):
    """Short Python functions over integers, lists and strings, with hidden tests and typical incorrect programs.

    Args:
        level: the difficulty: the number of steps before the end, 0 to 5.
        kinds: any of ``integers``, ``lists`` and ``strings``; all by default.
        first: the user's first message; see `Script`.
        options: see `CodeSettings`.

    Raises:
        ConfigError: an option is invalid, or the isolation does not work here.
    """

    def __init__(
        self, level: int = 2, kinds: Sequence[str] = tuple(KINDS), *, first: str = "{prompt}", **options: Any
    ) -> None:
        if not 0 <= level <= MAX_LEVEL:
            raise ConfigError(f"level = {level}: micro_code has levels 0 to {MAX_LEVEL}.")
        if not kinds or set(kinds) - KINDS.keys():
            raise ConfigError(f"kinds = {list(kinds)}: choose among {', '.join(KINDS)}.")
        self._level, self._kinds = level, tuple(sorted(set(kinds)))
        super().__init__("micro_code", first, {}, CodeSettings(**options))
        self.version = f"{self.version}+level{level}+{'+'.join(self._kinds)}"

    def problems(self, split: Split, *, seed: int, limit: int | None = None) -> Sequence[Problem]:
        """Return distinct problems of the split, drawn with ``seed``; ``limit`` defaults to 1,000."""
        rng = generator("micro_code", self._level, self._kinds, split.value, seed)
        drawn = problem_stream(self._level, self._kinds, rng)
        return take_split(drawn, split, DEFAULT_LIMIT if limit is None else limit, name=self.name)


def problem_stream(level: int, kinds: Sequence[str], rng: np.random.Generator) -> Iterator[Problem]:
    """Yield problems of all splits without end."""
    while True:
        problem = make_problem(kinds[_number(rng, 0, len(kinds) - 1)], level, rng)
        if problem is not None:
            yield problem


def make_problem(kind_name: str, level: int, rng: np.random.Generator) -> Problem | None:
    """Return a problem, or None if a drawn step has no effect or no input tells an incorrect program apart."""
    kind = KINDS[kind_name]
    chosen = rng.choice(len(kind.steps), size=level, replace=False)
    steps = [kind.steps[int(i)](rng) for i in chosen] + [kind.ends[_number(rng, 0, len(kind.ends) - 1)](rng)]
    reference = whole_program([step.code for step in steps])
    pool = [*kind.edges, *(kind.draw(rng) for _ in range(24))]
    expected = _results(reference, pool)
    if len({repr(e) for e in expected}) < 3 or _idle(steps, pool, expected):
        return None
    wrong = _told_apart(steps, pool, expected)
    if not wrong:
        return None
    shown = _number(rng, len(kind.edges), len(pool) - 1)
    hidden = sorted({*wrong.values(), *(int(i) for i in rng.permutation(len(pool))[:TESTS])} - {shown})
    example = f"For example, f({pool[shown]!r}) is {expected[shown]!r}."
    prompt = f"Write a Python function f(x), where x is {kind.noun}: {'; '.join(s.text for s in steps)}. {example}"
    data = {
        "entry_point": "f",
        "tests": "\n".join(f"assert f({pool[i]!r}) == {expected[i]!r}" for i in [shown, *hidden]),
        "names": ["f"],
        "preamble": "",
        "wrong": list(wrong),
        "lines": [[step.code, *step.wrong] for step in steps],
    }
    return Problem(prompt, prompt, reference, f"{kind_name}, {level} steps", data)


def whole_program(lines: Sequence[str]) -> str:
    """Return the function with these lines."""
    return "def f(x):\n" + "\n".join(f"    {line}" for line in lines)


def _results(program: str, values: Sequence[Any]) -> list[Any]:
    """Return a program's result for each value, or the type of its exception.

    The program comes from the templates above, not from a model, so it may run in this process.
    """
    space: dict[str, Any] = {}
    exec(program, space)
    results = []
    for value in values:
        try:
            results.append(space["f"](value.copy() if isinstance(value, list) else value))
        except (IndexError, ValueError) as error:
            results.append(type(error))
    return results


def _idle(steps: Sequence[Step], pool: Sequence[Any], expected: Sequence[Any]) -> bool:
    """Return whether some step could be left out without a change of results."""
    shorter = ([*steps[:i], *steps[i + 1 :]] for i in range(len(steps) - 1))
    return any(_results(whole_program([step.code for step in rest]), pool) == expected for rest in shorter)


def _told_apart(steps: Sequence[Step], pool: Sequence[Any], expected: Sequence[Any]) -> Mapping[str, int]:
    """Return incorrect programs, each with the index in the pool of an input that exposes it."""
    exposed = {}
    for i, step in enumerate(steps):
        for line in step.wrong:
            program = whole_program([*(s.code for s in steps[:i]), line, *(s.code for s in steps[i + 1 :])])
            results = _results(program, pool)
            differ = (place for place, (r, e) in enumerate(zip(results, expected, strict=True)) if r != e)
            if (place := next(differ, None)) is not None:
                exposed[program] = place
    return exposed
