"""The families of `worked_steps`: problems, their solutions step by step, and how a family's answer is read from a text.

Every family is a function of a random generator and a level from 1 (easy) to 3. A solution has one step a line, and its last
line ends with the answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np

from selfcorrect.rng import generator
from selfcorrect.tasks.reasoning_gym import last_number

Rng = np.random.Generator
Operation = tuple[str, int]
"""``+`` or ``*``, and the number that is added or multiplied by."""

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
CONSONANTS, VOWELS = "bdfgklmnprst", "aeiou"


@dataclass(frozen=True, slots=True)
class Worked:
    """A problem with the lines of its solution and its answer."""

    prompt: str
    lines: tuple[str, ...]
    answer: str


@dataclass(frozen=True, slots=True)
class Family:
    """A family of problems: what it asks, how it draws a problem of a level, and how it reads an answer."""

    what: str
    draw: Callable[[Rng, int], Worked]
    read: Callable[[str], str | None]


# -- how answers are read ----------------------------------------------------------------------------------------------


def last_line_numbers(text: str) -> str | None:
    """Return the whole numbers in the last line that is not blank, or None if it has none.

    >>> last_line_numbers("5, then 17 8\\n5 8 17.\\n"), last_line_numbers("sorted")
    ('5 8 17', None)
    """
    lines = text.split("\n")
    last = next((line for line in reversed(lines) if line.strip()), "")
    return " ".join(re.findall(r"\d+", last)) or None


def last_word(text: str) -> str | None:
    """Return the last word of at least two letters, in small letters, or None.

    >>> last_word("l o m i\\nThe answer is Imol."), last_word("3")
    ('imol', None)
    """
    found = re.findall(r"[^\W\d_]{2,}", text)
    return found[-1].lower() if found else None


def last_time(text: str) -> str | None:
    """Return the last time of day as ``H:MM``, or None.

    >>> last_time("47 + 38 = 85\\nIt is 09:05."), last_time("9 hours")
    ('9:05', None)
    """
    found = re.findall(r"(?<!\d)(\d{1,2}):(\d\d)(?!\d)", text)
    return f"{int(found[-1][0])}:{found[-1][1]}" if found else None


# -- whether the steps hold --------------------------------------------------------------------------------------------

ARITHMETIC = re.compile(r"\s*\d{1,12}(?:\s*[-+*/]\s*\d{1,12})*\s*\.?\s*", re.ASCII)


def equations_hold(text: str) -> bool:
    """Return whether all sides of every written equation have one value. Sides that are not arithmetic, as ``5 x``, do not count.

    >>> equations_hold("5 x = 88 - 38 = 50\\nx = 50 / 5 = 10"), equations_hold("5 x = 88 - 38 = 60"), equations_hold("1 / 0 = 1")
    (True, False, False)
    """
    for line in text.split("\n"):
        values = [_value(side) for side in line.split("=") if ARITHMETIC.fullmatch(side)]
        if None in values or len(set(values)) > 1:
            return False
    return True


def _value(side: str) -> Fraction | None:
    """Return the value of a sum of products and quotients, or None where it divides by zero."""
    total, term, sign = Fraction(0), Fraction(0), "+"
    for operation, number in re.findall(r"([-+*/]?)\s*(\d+)", side):
        if operation in ("*", "/"):
            if operation == "/" and int(number) == 0:
                return None
            term = term * int(number) if operation == "*" else term / int(number)
        else:
            total, term, sign = total + (term if sign == "+" else -term), Fraction(int(number)), operation or "+"
    return total + (term if sign == "+" else -term)


STEP = re.compile(r"\s*(\d{1,12}) ?([-+*]) ?(\d{1,12}) ?= ?(\d{1,12})\s*\.?\s*", re.ASCII)


def operations_taken(text: str) -> str | None:
    """Return which operations were taken on which number, and the digit in which their result ends; None without equations.

    Each equation begins with the last digit of the result before. Equations of which one is false, or begins with another
    number, are returned as they stand.

    >>> operations_taken("7 + 5 = 12\\n2 * 4 = 8\\n8 + 3 = 11"), operations_taken("So 7 + 5 = 12")
    ('7 + 5 * 4 + 3 -> 1', None)
    >>> operations_taken("7 + 5 = 12\\n12 * 4 = 48"), operations_taken("7 + 5 = 11\\n1 * 4 = 4")
    ('7 + 5 = 12; 12 * 4 = 48', '7 + 5 = 11; 1 * 4 = 4')
    """
    steps = [found.groups() for line in text.split("\n") if (found := STEP.fullmatch(line))]
    if not steps:
        return None
    written = [f"{before} {sign} {n} = {after}" for before, sign, n, after in steps]
    goes_on = all(one[3][-1] == other[0] for one, other in pairwise(steps))
    if not (goes_on and all(map(equations_hold, written))):
        return "; ".join(written)
    return f"{steps[0][0]} {' '.join(f'{sign} {n}' for _, sign, n, _ in steps)} -> {steps[-1][3][-1]}"


# -- drawing -----------------------------------------------------------------------------------------------------------


def _int(rng: Rng, low: int, high: int) -> int:
    return int(rng.integers(low, high + 1))


def _shuffled(numbers: Iterable[int]) -> list[int]:
    """Return different numbers in an order that is a function of the numbers, so that no two problems differ in order alone."""
    found = sorted(numbers)
    return [found[i] for i in generator("worked_steps order", found).permutation(len(found))]


def _different(rng: Rng, count: int, low: int, high: int) -> list[int]:
    return _shuffled(int(n) for n in rng.choice(np.arange(low, high + 1), count, replace=False))


def _word(rng: Rng, syllables: int) -> str:
    pairs = [(rng.choice(list(CONSONANTS)), rng.choice(list(VOWELS))) for _ in range(syllables)]
    return "".join(letter for pair in pairs for letter in pair)


def _parts(number: int) -> list[int]:
    """Return a number's digits with their places: 305 as 300 and 5."""
    digits = str(number)
    return [int(digit) * 10 ** (len(digits) - i) for i, digit in enumerate(digits, 1) if digit != "0"]


def _joined(numbers: Iterable[int]) -> str:
    return " ".join(map(str, numbers))


# -- numbers -----------------------------------------------------------------------------------------------------------


def _sum(rng: Rng, level: int) -> Worked:
    """Add two numbers of ``level`` + 1 digits, place by place."""
    a, b = _different(rng, 2, 10**level + 1, 10 ** (level + 1) - 1)
    lines, total = [], 0
    for power in range(level + 1):
        place = 10**power
        one, other = a // place % 10 * place, b // place % 10 * place
        lines.append(f"{one} + {other} = {one + other}")
        if power:
            lines.append(f"{one + other} + {total} = {one + other + total}")
        total += one + other
    return Worked(f"Add {a} and {b}.", tuple(lines), str(a + b))


def _product(rng: Rng, level: int) -> Worked:
    """Multiply a number of two (level 3: three) digits by one of two digits, part by part; on level 1 by one below 30."""
    a, b = _int(rng, 101, 999) if level == 3 else _int(rng, 12, 99), _int(rng, 11, 29 if level == 1 else 99)
    b += b % 10 == 0  # a round number has one part
    parts = _parts(b)
    lines = [f"{a} * {part} = {a * part}" for part in parts]
    total = a * parts[0]
    for part in parts[1:]:
        lines.append(f"{total} + {a * part} = {total + a * part}")
        total += a * part
    return Worked(f"Multiply {a} by {b}.", tuple(lines), str(a * b))


def _chain(rng: Rng, level: int) -> Worked:
    """Take ``level`` + 2 operations on a small number, one after the other."""
    value = _int(rng, 2, 12)
    words, lines = [f"Start with {value}."], []
    for _ in range(level + 2):
        n, signs = _int(rng, 2, 9), ["+"]
        signs += ["-"] * (value > 9) + ["*"] * (value <= 25)
        sign = str(rng.choice(signs))
        after = {"+": value + n, "-": value - n, "*": value * n}[sign]
        words.append({"+": f"Add {n}.", "-": f"Subtract {n}.", "*": f"Multiply by {n}."}[sign])
        lines.append(f"{value} {sign} {n} = {after}")
        value = after
    return Worked(" ".join(words), tuple(lines), str(value))


def _order(rng: Rng, level: int) -> Worked:
    """Take ``level`` operations on a digit, then a sum and a product in the order that ends in a digit; last digits go on."""
    start, first = _int(rng, 2, 9), [_operation(rng, str(rng.choice(["+", "*"]))) for _ in range(level)]
    free = [_operation(rng, "+"), _operation(rng, "*")]
    while free[0][1] * (free[1][1] - 1) % 10 == 0:  # both orders end in the same digit
        free = [_operation(rng, "+"), _operation(rng, "*")]
    named = _named(free)
    taken = [*first, *(free if rng.integers(2) else free[::-1])]
    lines, value = operations_worked(start, taken)
    given = " ".join(f"{_words(operation).capitalize()}." for operation in first)
    left = " and ".join(map(_words, named))
    prompt = f"Start with {start} and keep last digits only. {given} Then {left}, in the order that ends in {value}."
    return Worked(prompt, lines, _taken(start, taken, value))


def _order_first(rng: Rng, level: int) -> Worked:
    """Take a sum and a product in the order that ends in a digit after ``level`` further operations; last digits go on.

    The order must be chosen before the operations that lead from it to the digit.
    """
    while True:
        start, free = _int(rng, 2, 9), [_operation(rng, "+"), _operation(rng, "*")]
        rest = [_operation(rng, str(rng.choice(["+", "*"]))) for _ in range(level)]
        if operations_worked(start, [*free, *rest])[1] != operations_worked(start, [*free[::-1], *rest])[1]:
            break
    named = _named(free)
    taken = [*(free if rng.integers(2) else free[::-1]), *rest]
    lines, value = operations_worked(start, taken)
    choice = " and ".join(map(_words, named)).capitalize()
    then = " ".join(f"Then {_words(operation)}." for operation in rest)
    prompt = f"Start with {start} and keep last digits only. {choice}, in either order. {then} End in {value}."
    return Worked(prompt, lines, _taken(start, taken, value))


def operations_worked(start: int, taken: Iterable[Operation]) -> tuple[tuple[str, ...], int]:
    """Return a line for each sum or product, which begins with the last digit of the one before, and the digit at the end.

    >>> operations_worked(7, [("+", 5), ("*", 4)])
    (('7 + 5 = 12', '2 * 4 = 8'), 8)
    """
    value, lines = start, []
    for sign, n in taken:
        after = value + n if sign == "+" else value * n
        lines.append(f"{value} {sign} {n} = {after}")
        value = after % 10
    return tuple(lines), value


def _operation(rng: Rng, sign: str) -> Operation:
    return sign, _int(rng, 2, 9)


def _named(free: Sequence[Operation]) -> Sequence[Operation]:
    """Return the two operations in the order in which the problem names them, a function of their numbers alone."""
    return free if generator("worked_steps order", [n for _, n in free]).integers(2) else free[::-1]


def _words(operation: Operation) -> str:
    sign, n = operation
    return f"{'add' if sign == '+' else 'multiply by'} {n}"


def _taken(start: int, taken: Iterable[Operation], end: int) -> str:
    """Return the answer: what was taken on which number, and the digit at the end, as `operations_taken` reads it."""
    return f"{start} {' '.join(f'{sign} {n}' for sign, n in taken)} -> {end}"


def _equation(rng: Rng, level: int) -> Worked:
    """Solve ``a x + b = c``; from level 2 with x on both sides; on level 3 with larger numbers."""
    most = 30 if level == 3 else 12
    a, x, b = _int(rng, 4, 9), _int(rng, 2, most), _int(rng, 2, 5 * most)
    if level == 1:
        c = a * x + b
        lines = [f"{a} x = {c} - {b} = {c - b}", f"x = {c - b} / {a} = {x}"]
        return Worked(f"Solve {a} x + {b} = {c}.", tuple(lines), str(x))
    d = _int(rng, 2, a - 2)
    c = (a - d) * x + b
    lines = [f"{a} x - {d} x = {c} - {b}", f"{a - d} x = {c - b}", f"x = {c - b} / {a - d} = {x}"]
    return Worked(f"Solve {a} x + {b} = {d} x + {c}.", tuple(lines), str(x))


def _remainder(rng: Rng, level: int) -> Worked:
    """Divide a number of at most three digits by one of one (level 3: two) digits; the remainder counts."""
    a = _int(rng, 40, 299) if level == 1 else _int(rng, 100, 999)
    b = _int(rng, 11, 29) if level == 3 else _int(rng, 3, 9)
    whole = a // b * b
    lines = (f"{b} * {a // b} = {whole}", f"{a} - {whole} = {a - whole}")
    return Worked(f"What is the remainder of {a} divided by {b}?", lines, str(a - whole))


def _units(rng: Rng, level: int) -> Worked:
    """Convert hours and minutes; hours, minutes and seconds; or weeks, days and hours to the smallest of them."""
    names = {1: ("hours", "minutes"), 2: ("hours", "minutes", "seconds"), 3: ("weeks", "days", "hours")}[level]
    size = {"minutes": 60, "seconds": 60, "days": 7, "hours": 24}
    values = [_int(rng, 2, {1: 72, 2: 12, 3: 52}[level]), *(_int(rng, 2, size[name] - 1) for name in names[1:])]
    lines, total = [], values[0]
    for name, value in zip(names[1:], values[1:], strict=True):
        lines += [f"{total} * {size[name]} = {total * size[name]}"]
        total *= size[name]
        lines += [f"{total} + {value} = {total + value}"]
        total += value
    given = " ".join(f"{value} {name}" for value, name in zip(values, names, strict=True))
    return Worked(f"Convert {given} to {names[-1]}.", tuple(lines), str(total))


# -- times, lists, words -----------------------------------------------------------------------------------------------


def _clock(rng: Rng, level: int) -> Worked:
    """Tell the time some minutes after another: less than an hour, less than four hours, less than ten hours."""
    hour, minute = _int(rng, 1, 12), _int(rng, 1, 59)
    after = _int(rng, 5, {1: 59, 2: 239, 3: 599}[level])
    hours, minutes = divmod(after, 60)
    lines = [f"{after} = {hours} * 60 + {minutes}"] if level > 1 else []
    total = minute + minutes
    lines.append(f"{minute} + {minutes} = {total}")
    if total >= 60:
        lines.append(f"{total} - 60 = {total - 60}")
    carried = hour + hours + (total >= 60)
    lines.append(f"{hour} + {hours + (total >= 60)} = {carried}")
    answer = f"{carried}:{total % 60:02d}"
    return Worked(f"It is {hour}:{minute:02d}. What time is it {after} minutes later?", (*lines, answer), answer)


def _weekday(rng: Rng, level: int) -> Worked:
    """Tell the day of the week some days after another."""
    start, after = _int(rng, 0, 6), _int(rng, 8, {1: 400, 2: 800, 3: 1600}[level])
    weeks, rest = divmod(after, 7)
    day = DAYS[(start + rest) % 7]
    passed = " ".join(DAYS[(start + i) % 7] for i in range(rest + 1))
    lines = (f"{after} = 7 * {weeks} + {rest}", passed, day)
    return Worked(f"Which day is {after} days after {DAYS[start]}?", lines, day.lower())


def _sort(rng: Rng, level: int) -> Worked:
    """Sort ``level`` + 2 numbers of two digits by taking the smallest again and again."""
    numbers = _different(rng, level + 2, 2, 99)
    left, lines = list(numbers), []
    while len(left) > 1:
        smallest = min(left)
        left.remove(smallest)
        lines.append(f"{smallest}, then {_joined(left)}")
    answer = _joined(sorted(numbers))
    return Worked(f"Sort {_joined(numbers)}.", (*lines, answer), answer)


def _filter(rng: Rng, level: int) -> Worked:
    """Keep the multiples of a number among ``level`` + 3 numbers; some are kept, and some are not."""
    divisor = _int(rng, 3, 7)
    count = level + 3
    kept = {int(n) * divisor for n in rng.choice(np.arange(2, 96 // divisor), _int(rng, 1, count - 1), replace=False)}
    others = [n for n in range(4, 97) if n % divisor]
    numbers = _shuffled([*kept, *(int(n) for n in rng.choice(others, count - len(kept), replace=False))])
    lines = [", ".join(f"{n} {'yes' if n in kept else 'no'}" for n in numbers)]
    answer = _joined(n for n in numbers if n in kept)
    return Worked(f"Keep the multiples of {divisor}: {_joined(numbers)}.", (*lines, answer), answer)


def _count(rng: Rng, level: int) -> Worked:
    """Count a letter in a made-up word of ``level`` + 3 syllables: spell it, pick the letter, count."""
    word = _word(rng, level + 3)
    letter = word[2 * _int(rng, 0, level + 2) + 1]
    found = word.count(letter)
    lines = (" ".join(word), " ".join(letter * found), str(found))
    return Worked(f"How many {letter} are in {word}?", lines, str(found))


def _reverse(rng: Rng, level: int) -> Worked:
    """Write a made-up word of ``level`` + 1 syllables backwards, letter by letter."""
    word = _word(rng, level + 1)
    lines = (" ".join(word), " ".join(reversed(word)), word[::-1])
    return Worked(f"Reverse the word {word}.", lines, word[::-1])


FAMILIES: Mapping[str, Family] = {
    "sum": Family("sums, place by place", _sum, last_number),
    "product": Family("products, part by part", _product, last_number),
    "chain": Family("several operations on a number", _chain, last_number),
    "order": Family("operations in the right order", _order, operations_taken),
    "order_first": Family("operations in the right order, then others", _order_first, operations_taken),
    "equation": Family("linear equations", _equation, last_number),
    "remainder": Family("division with remainder", _remainder, last_number),
    "units": Family("units of time", _units, last_number),
    "clock": Family("times of day", _clock, last_time),
    "weekday": Family("days of the week", _weekday, last_word),
    "sort": Family("sorting a list", _sort, last_line_numbers),
    "filter": Family("filtering a list", _filter, last_line_numbers),
    "count": Family("counting letters", _count, last_number),
    "reverse": Family("spelling backwards", _reverse, last_word),
}
LEVELS: Sequence[int] = (1, 2, 3)
