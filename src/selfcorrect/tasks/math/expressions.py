r"""Values of answers as trees, and their grammar: LaTeX, plain text (``2*pi``, ``sqrt(2)``) and mixtures.

`parse` computes nothing, so its time is linear in the length of the text, whatever the numbers are. It raises
`Unreadable` for everything that the grammar does not know, including words: a tree has all of a text, or there is none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

from selfcorrect.tasks.math.notation import plain

DEPTH_LIMIT = 60
"""The nesting beyond which a text is not read; trees are walked recursively."""

CONSTANTS = frozenset({"pi", "e", "i", "oo"})


class Unreadable(Exception):
    """A text is not in the grammar."""


class Unknown(Unreadable):
    """A text has a construct that may be sound but is not in the grammar, such as an integral."""


@dataclass(frozen=True, slots=True)
class Number:
    """A rational number; ``places`` counts the decimals of one that is written as a decimal."""

    value: Fraction
    places: int | None = None


@dataclass(frozen=True, slots=True)
class Symbol:
    """A variable, or one of `CONSTANTS`."""

    name: str


@dataclass(frozen=True, slots=True)
class Apply:
    """A function of expressions: ``add``, ``mul``, ``div``, ``pow``, ``root`` (index, radicand), ``log`` (base, x)..."""

    function: str
    arguments: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Collection:
    """Several values: a ``list``, ``set``, ``union`` or ``matrix`` of ``row``, or items between brackets like ``(]``."""

    kind: str
    items: tuple[Tree, ...]


@dataclass(frozen=True, slots=True)
class Chain:
    """Trees with relations between them, such as 1 < x <= 3."""

    relations: tuple[str, ...]
    terms: tuple[Tree, ...]


Expression = Number | Symbol | Apply
Tree = Number | Symbol | Apply | Collection | Chain

FUNCTIONS = frozenset(
    re.findall(
        r"\w+", "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh exp ln log sqrt cbrt floor ceil abs"
    )
)
_RENAMED = {
    "asin": "arcsin",
    "acos": "arccos",
    "atan": "arctan",
    "lg": "log",
    "infty": "oo",
    "infinity": "oo",
    "inf": "oo",
}
_WORDS = FUNCTIONS | {"pi", "or", "and", "oo"}
_GREEK = frozenset(
    re.findall(
        r"\w+",
        "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau upsilon phi "
        "varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega ell hbar",
    )
)
_RELATIONS = {
    "=": "=", "<": "<", ">": ">", "≤": "<=", "≥": ">=", "≠": "!=", "≈": "~", "∈": "in",
    "\\le": "<=", "\\leq": "<=", "\\leqslant": "<=", "\\ge": ">=", "\\geq": ">=", "\\geqslant": ">=", "\\lt": "<",
    "\\gt": ">", "\\ne": "!=", "\\neq": "!=", "\\approx": "~", "\\in": "in", "\\equiv": "=",
}  # fmt: skip
_OPERATORS = {"\\cdot": "*", "\\times": "*", "\\div": "/", "\\ast": "*", "**": "^"}
_OPENING = {"(": "(", "[": "[", "\\{": "set", "\\lbrace": "set", "\\langle": "(", "\\lbrack": "["}
_CLOSING = {")": ")", "]": "]", "\\}": "set", "\\rbrace": "set", "\\rangle": ")", "\\rbrack": "]"}
_FORMATS = (
    "\\underline",
    "\\uline",
    "\\emph",
    "\\mathbf",
    "\\boldsymbol",
    "\\bm",
    "\\mathit",
    "\\mathsf",
    "\\mathcal",
    "\\boxed",
    "\\textbf",
)
_ACCENTS = ("\\overline", "\\vec", "\\hat", "\\bar", "\\overrightarrow", "\\angle", "\\triangle", "\\mathbb")
_TEXTS = ("\\text", "\\mathrm", "\\textrm", "\\mbox", "\\operatorname", "\\textit", "\\rm")
_MATRICES = frozenset({"matrix", "pmatrix", "bmatrix", "array", "smallmatrix"})
_LINES = frozenset(
    {"align", "aligned", "equation", "gather", "gathered", "displaymath", "split", "alignat", "multline"}
)

_TOKEN = re.compile(
    r"""
    (?P<space>\s+)
  | (?P<repeating>\d*\.(?P<before>\d*)\\overline\{?(?P<again>\d+)\}?)
  | (?P<endless>\d*\.\d+\s*\\ldots)
  | (?P<based>\d[0-9A-Z]*_(?:\d+|\{\s*\d+\s*\}))
  | (?P<number>(?:\d{1,3}(?:(?:\{,\}|\\,|,\\!)\d{3})+(?!\d)|\d+)(?:\.\d+|\.(?![\d.]))?|\.\d+)(?P<power>[eE][-+]?\d+(?![\w.]))?
  | (?P<environment>\\(?:begin|end)\s*\{\s*[a-z]+\s*\})
  | (?P<command>\\[A-Za-z]+|\\.)
  | (?P<word>[A-Za-z]+)
  | (?P<sign>\*\*|[-+*/^_!%°(){}\[\],;:=<>|&'≤≥≠≈∈∪±√])
    """,
    re.VERBOSE,
)
_THOUSANDS = re.compile(r"[-+]?\d{1,3}(?:(?:,\d{3})+|(?: \d{3})+)(?:\.\d+)?")
_THOUSANDS_INSIDE = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    spaced: bool = False
    """Whether space precedes it."""


def parse(text: str) -> Tree:
    r"""Return the tree of a text.

    Raises:
        Unreadable: the text has parts that are not in the grammar.

    >>> parse("2\\pi") == parse("2*pi"), parse("1{,}000")
    (True, Number(value=Fraction(1000, 1), places=None))
    """
    text = _without_thousands(plain(text))
    parser = _Parser(list(_tokens(text)))
    tree = parser.statement()
    parser.expect_end()
    return tree


def digits_in_base(digits: str, base: int) -> Fraction:
    """Return the value of digits in a base.

    >>> digits_in_base("101", 2)
    Fraction(5, 1)
    """
    try:
        return Fraction(int(digits, base))
    except ValueError as error:
        raise Unreadable(f"{digits} is no number in base {base}") from error


def _without_thousands(text: str) -> str:
    """Return a text without the commas that group digits: outside brackets, where they would separate items."""
    if _THOUSANDS.fullmatch(text.strip()):
        return re.sub("[, ]", "", text)
    if not re.search(r"[(\[]|\\\{|\\l?brace|\\langle|\\begin", text):
        return _THOUSANDS_INSIDE.sub(lambda match: match.group().replace(",", ""), text)
    return text


def _tokens(text: str) -> Iterator[_Token]:
    position, spaced = 0, False
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise Unknown(f"{text[position]!r} is not in the grammar")
        position = match.end()
        kind = match.lastgroup or ""
        if kind == "space" or match.group() in ("\\ ", "\\,", "\\;", "\\:", "\\!", "\\quad", "\\qquad", "~"):
            spaced = True
            continue
        kind = next(
            k
            for k in ("repeating", "endless", "based", "number", "environment", "command", "word", "sign")
            if match.group(k)
        )
        name = match.group()[1:]
        if kind == "command" and (renamed := _RENAMED.get(name, name)) in _WORDS:
            yield _Token("name", renamed, spaced)
        elif kind == "word":
            yield from _names(match.group(), spaced)
        elif kind == "command" and match.group() in _TEXTS:
            content, position = _argument(text, position)
            yield from _upright(content, spaced)
        else:
            yield _Token(kind, _OPERATORS.get(match.group(), match.group()), spaced)
        spaced = False


def _argument(text: str, position: int) -> tuple[str, int]:
    """Return the content of the braces that follow a command, without braces of their own, and the position after."""
    match = re.compile(r"\s*\{([^{}]*)\}").match(text, position)
    if match is None:
        raise Unreadable("no text in braces")
    return match[1], match.end()


def _upright(content: str, spaced: bool) -> Iterator[_Token]:
    """Yield the tokens of upright text: digits and brackets, a function, a letter, ``or``; another word is unreadable."""
    yield from (_Token(token.kind, token.text, spaced or token.spaced) for token in _tokens(content.strip()))


def _names(word: str, spaced: bool) -> Iterator[_Token]:
    """Yield a known word, or the letters of a product such as xy."""
    known = _RENAMED.get(word, word)
    if known not in _WORDS:
        known = _RENAMED.get(word.lower(), word.lower())
    if known in _WORDS:
        yield _Token("name", known, spaced)
    elif word in _GREEK and len(word) > 2:
        yield _Token("letter", word, spaced)
    elif len(word) > 2 and word.startswith("pi") and len(word) < 5:
        yield _Token("name", "pi", spaced)
        yield from _names(word[2:], False)
    elif len(word) <= 3:
        for i, letter in enumerate(word):
            yield _Token("letter", letter, spaced and i == 0)
    else:
        raise Unreadable(f"the word {word!r:.40}")


class _Parser:
    """A recursive-descent parser; every method consumes tokens and returns a tree."""

    def __init__(self, tokens: list[_Token]) -> None:
        self.tokens = tokens
        self.position = 0
        self.depth = 0
        self.bars = 0

    # --- tokens ---

    def peek(self, ahead: int = 0) -> _Token:
        at = self.position + ahead
        return self.tokens[at] if at < len(self.tokens) else _Token("end", "")

    def take(self, *texts: str) -> bool:
        token = self.peek()
        if token.kind != "end" and token.text in texts:
            self.position += 1
            return True
        return False

    def expect(self, *texts: str) -> None:
        if not self.take(*texts):
            raise Unreadable(f"expected {texts[0]!r}, not {self.peek().text!r:.20}")

    def expect_end(self) -> None:
        token = self.peek()
        if token.kind != "end":
            why = f"{token.text!r:.20} after the end"
            raise Unknown(why) if token.kind == "command" else Unreadable(why)

    # --- lists, relations, unions ---

    def statement(self) -> Tree:
        """Read one value, or several with commas, ``or`` and ``and`` between them."""
        items = [self.chain()]
        while self.take(",", ";", "or", "and"):
            self.take("or", "and")
            items.append(self.chain())
        return items[0] if len(items) == 1 else Collection("list", tuple(items))

    def chain(self) -> Tree:
        if self.peek().text in ("=", "\\approx", "≈"):  # "= 5", the end of a line of working
            self.position += 1
        relations: list[str] = []
        terms = [self.ratio()]
        while (relation := _RELATIONS.get(self.peek().text)) is not None:
            self.position += 1
            relations.append(relation)
            terms.append(self.ratio())
        return Chain(tuple(relations), tuple(terms)) if relations else terms[0]

    def ratio(self) -> Tree:
        """Read one value, or several with colons: a ratio or a time, which are not divided (8:04 is not 4:02)."""
        items = [self.union()]
        while self.take(":"):
            items.append(self.union())
        return items[0] if len(items) == 1 else Collection("ratio", tuple(items))

    def union(self) -> Tree:
        items = [self.sum()]
        while self.take("\\cup", "∪"):
            items.append(self.sum())
        return items[0] if len(items) == 1 else Collection("union", tuple(items))

    # --- arithmetic ---

    def sum(self) -> Tree:
        self.depth += 1
        if self.depth > DEPTH_LIMIT:
            raise Unreadable("too deeply nested")
        left = self.signed()
        while self.peek().text in ("+", "-", "±", "\\pm", "\\mp"):
            sign = self.peek().text
            self.position += 1
            left = _signed_sum(left, sign, self.product())
        self.depth -= 1
        return left

    def signed(self) -> Tree:
        if self.take("±", "\\pm"):
            return Apply("pm", (Number(Fraction(0)), _expression(self.product())))
        return self.product()

    def product(self) -> Tree:
        left = self.unary()
        while True:
            if self.take("*"):
                left = _product(left, self.unary())
            elif self.take("/"):
                left = Apply("div", (_expression(left), _expression(self.unary())))
            elif self.begins_factor():
                left = self.juxtaposed(left)
            else:
                return left

    def juxtaposed(self, left: Tree) -> Tree:
        """Read a factor that follows another without a sign: a product, or a mixed number such as 2 1/2."""
        token, is_integer = (
            self.peek(),
            isinstance(left, Number) and left.places is None and left.value.denominator == 1,
        )
        before = self.tokens[self.position - 1]
        if token.kind == "number":
            if is_integer and before.kind == "number" and self.peek(1).text == "/" and self.peek(2).kind == "number":
                return self.mixed(left)
            raise Unreadable("a number follows another")
        right = self.power()
        if is_integer and before.kind == "number" and token.text in ("\\frac", "\\dfrac", "\\tfrac"):
            sign = right.function if isinstance(right, Apply) and right.function in ("percent", "degree") else ""
            part = right.arguments[0] if sign and isinstance(right, Apply) else right
            if isinstance(part, Apply) and part.function == "div" and _is_proper(part):
                mixed = Apply("add", (_expression(left), part))
                return Apply(sign, (mixed,)) if sign else mixed
        return _product(left, right)

    def mixed(self, whole: Tree) -> Tree:
        above = _expression(self.number())
        self.expect("/")
        fraction = Apply("div", (above, _expression(self.number())))
        if not _is_proper(fraction):
            raise Unreadable("a number follows another")
        return Apply("add", (_expression(whole), fraction))

    def begins_factor(self) -> bool:
        token = self.peek()
        if token.kind in ("number", "letter", "repeating", "endless", "based"):
            return True
        if token.kind == "name":
            return token.text not in ("or", "and")
        if token.text == "|":
            return self.bars == 0
        return token.text in _OPENING or token.text in ("{", "√") or _is_factor_command(token)

    def unary(self) -> Tree:
        negative = False
        count = 0
        while self.peek().text in ("-", "+"):
            negative ^= self.peek().text == "-"
            self.position += 1
            count += 1
        if count > 2:
            raise Unreadable("a row of signs")
        if not negative:
            return self.power()
        inner = self.power()  # binds less tightly than the power, so -2^2 is -(2^2), as is the mixed number -2 1/2
        if self.begins_factor() and isinstance(inner, Number):
            inner = self.juxtaposed(inner)
        return negated(_expression(inner))

    def power(self) -> Tree:
        base = self.postfix()
        if self.peek().text != "^":
            return base
        self.position += 1
        if self.degree_sign():
            return self.powers_after(Apply("degree", (_expression(base),)))
        exponent = self.exponent()
        return self.powers_after(Apply("pow", (_expression(base), exponent)))

    def powers_after(self, tree: Tree) -> Tree:
        while self.peek().text in ("!", "%", "\\%", "°"):
            tree = Apply(_POSTFIX[self.peek().text], (_expression(tree),))
            self.position += 1
        return tree

    def degree_sign(self) -> bool:
        if self.take("\\circ", "°"):
            return True
        if self.peek().text == "{" and self.peek(1).text == "\\circ" and self.peek(2).text == "}":
            self.position += 3
            return True
        return False

    def exponent(self) -> Expression:
        """Read an exponent: a group, or a signed factor that may have an exponent itself."""
        if self.take("-"):
            return negated(self.exponent())
        self.take("+")
        base = _expression(self.braced() if self.peek().text == "{" else self.postfix())
        if self.take("^"):
            return Apply("pow", (base, self.exponent()))
        return base

    def postfix(self) -> Tree:
        return self.powers_after(self.atom())

    # --- atoms ---

    def atom(self) -> Tree:
        token = self.peek()
        if token.kind in ("number", "repeating", "endless", "based"):
            return self.number()
        if token.kind == "name":
            return self.named()
        if token.kind == "letter" or (token.kind == "command" and token.text[1:] in _GREEK):
            return self.symbol()
        if token.text == "|":
            return self.bar_group("|")
        if token.text in _OPENING:
            return self.brackets()
        return self.group() if token.text == "{" else self.command()

    def group(self) -> Tree:
        """Read what braces hold: one value, or in plain text the items of a set."""
        self.expect("{")
        items = [self.nested()]
        while self.take(","):
            items.append(self.nested())
        self.expect("}")
        return items[0] if len(items) == 1 else Collection("set", tuple(items))

    def named(self) -> Tree:
        name = self.peek().text
        if name in FUNCTIONS:
            return self.function()
        if name in ("or", "and"):
            raise Unreadable(f"{name!r} without a value before it")
        self.position += 1
        return Symbol(name)

    def number(self) -> Tree:
        token = self.peek()
        self.position += 1
        if token.kind == "based":
            digits, _, base = token.text.partition("_")
            radix = int(base.strip("{} "))
            value = digits_in_base(digits, radix if radix > 1 else 99)
            return Number(value) if radix == 10 else Apply("based", (Number(value),))
        if token.kind == "repeating":
            return Number(_repeating(token.text))
        if token.kind == "endless":
            return _endless(token.text)
        if token.kind != "number":
            raise Unreadable(f"expected a number, not {token.text!r:.20}")
        return _decimal(token.text)

    def symbol(self) -> Tree:
        name = self.peek().text.removeprefix("\\")
        self.position += 1
        if self.take("_"):
            name += "_" + self.subscript()
        while self.take("'"):
            name += "'"
        return Symbol(name)

    def subscript(self) -> str:
        if not self.take("{"):
            token = self.peek()
            self.position += 1
            if token.kind not in ("number", "letter"):
                raise Unreadable("a subscript without braces")
            return token.text
        start = self.position
        while self.peek().text != "}":
            if self.peek().kind == "end" or self.peek().text == "{":
                raise Unreadable("a subscript without end")
            self.position += 1
        self.position += 1
        return "".join(token.text for token in self.tokens[start : self.position - 1])

    def braced(self) -> Tree:
        self.expect("{")
        tree = self.nested()
        self.expect("}")
        return tree

    def nested(self) -> Tree:
        """Read a chain inside brackets, where an outer bar cannot end."""
        bars, self.bars = self.bars, 0
        tree = self.chain()
        self.bars = bars
        return tree

    def bar_group(self, *closing: str) -> Tree:
        self.position += 1
        bars, self.bars = self.bars, self.bars + 1
        inner = _expression(self.sum())
        self.bars = bars
        self.expect(*closing)
        return Apply("abs", (inner,))

    def brackets(self) -> Tree:
        opening = _OPENING[self.peek().text]
        self.position += 1
        items: list[Tree] = []
        if self.peek().text not in _CLOSING:
            items.append(self.nested())
            while self.take(",", ";"):
                items.append(self.nested())
        closing = _CLOSING.get(self.peek().text)
        if closing is None or (opening == "set") != (closing == "set"):
            raise Unreadable("brackets that do not match")
        self.position += 1
        if opening == "set":
            return Collection("set", tuple(items))
        if len(items) != 1:
            return Collection(opening + closing, tuple(items)) if items else self.fail("empty brackets")
        if opening + closing not in ("()", "[]"):
            raise Unreadable("brackets that do not match")
        return items[0]

    def fail(self, why: str) -> Tree:
        raise Unreadable(why)

    def function(self) -> Tree:
        name = self.peek().text
        self.position += 1
        if name in ("sqrt", "cbrt"):
            return self.root(3 if name == "cbrt" else 2)
        base: Expression | None = None
        power: Expression | None = None
        if name == "log" and self.take("_"):
            base = _expression(self.braced() if self.peek().text == "{" else self.single())
        if self.take("^"):
            power = self.exponent()
        if name == "log" and base is None and self.peek().text == "(":
            arguments = self.brackets()
            if isinstance(arguments, Collection) and arguments.kind == "()" and len(arguments.items) == 2:
                value, base = map(_expression, arguments.items)  # log(x, b), as programs write it
                return _applied(name, value, base, power)
            return _applied(name, _expression(self.powers_after(arguments)), None, power)
        argument = self.function_argument()
        return _applied(name, argument, base, power)

    def function_argument(self) -> Expression:
        """Read the argument of a function: brackets, or factors as far as a sign, a bracket or another function."""
        if self.peek().text in ("(", "[", "{", "|"):
            return _expression(self.postfix())
        if self.take("-"):
            return negated(self.function_argument())
        argument = _expression(self.power())
        while self.peek().kind in ("number", "letter") or self.peek().text in ("pi", "\\frac", "\\dfrac", "\\tfrac"):
            argument = _expression(self.juxtaposed(argument))
        return argument

    def root(self, index: int) -> Tree:
        degree: Expression = Number(Fraction(index))
        if self.take("["):
            degree = _expression(self.sum())
            self.expect("]")
        radicand = self.braced() if self.peek().text == "{" else self.atom()
        return Apply("root", (degree, _expression(radicand)))

    def single(self) -> Tree:
        """Read the argument of a command without braces: one digit, letter or command."""
        token = self.peek()
        if token.kind == "number" and len(token.text) > 1 and token.text[0].isdigit():
            self.tokens[self.position] = _Token("number", token.text[1:])
            return Number(Fraction(int(token.text[0])))
        return self.braced() if token.text == "{" else self.atom()

    def command(self) -> Tree:
        token = self.peek()
        self.position += 1
        if token.kind == "environment":
            return self.matrix(re.sub(r".*\{\s*|\s*\}", "", token.text))
        rule = _COMMANDS.get(token.text)
        if rule is None:
            raise Unknown(f"{token.text!r:.20} is not in the grammar")
        return rule(self, token.text)

    def two(self, function: str) -> Tree:
        above = _expression(self.single())
        return Apply(function, (above, _expression(self.single())))

    def rounded(self, name: str) -> Tree:
        inner = _expression(self.sum())
        self.expect("\\rfloor" if name == "\\lfloor" else "\\rceil")
        return Apply("floor" if name == "\\lfloor" else "ceil", (inner,))

    def bars_by_name(self) -> Tree:
        self.position -= 1
        return self.bar_group("\\rvert", "\\vert")

    def matrix(self, environment: str) -> Tree:
        if environment not in _MATRICES:
            raise Unknown(f"the environment {environment!r:.20}")
        if environment == "array":
            self.subscript()
        rows, row = [], [self.nested()]
        while self.peek().kind != "environment":
            if self.take("\\\\"):
                if self.peek().kind != "environment":
                    rows.append(Collection("row", tuple(row)))
                    row = [self.nested()]
            else:
                self.expect("&")
                row.append(self.nested())
        self.position += 1
        return row[0] if not rows and len(row) == 1 else Collection("matrix", (*rows, Collection("row", tuple(row))))


_COMMANDS: dict[str, Callable[[_Parser, str], Tree]] = {
    **dict.fromkeys(("\\frac", "\\dfrac", "\\tfrac", "\\cfrac"), lambda parser, _: parser.two("div")),
    **dict.fromkeys(("\\binom", "\\dbinom", "\\tbinom"), lambda parser, _: parser.two("binomial")),
    **dict.fromkeys(("\\lfloor", "\\lceil"), _Parser.rounded),
    **dict.fromkeys(("\\lvert", "\\vert"), lambda parser, _: parser.bars_by_name()),
    **dict.fromkeys(("\\emptyset", "\\varnothing"), lambda parser, _: Collection("set", ())),
    **dict.fromkeys(_FORMATS, lambda parser, _: parser.braced()),
    **dict.fromkeys(_ACCENTS, lambda parser, name: Symbol(f"{name[1:]} {parser.subscript()}")),
}
_POSTFIX = {"!": "factorial", "%": "percent", "\\%": "percent", "°": "degree"}


def _is_factor_command(token: _Token) -> bool:
    return token.kind == "command" and (token.text in _COMMANDS or token.text[1:] in _GREEK)


def _expression(tree: Tree) -> Expression:
    if isinstance(tree, Collection | Chain):
        raise Unknown("a collection inside an expression")
    return tree


def negated(expression: Expression) -> Expression:
    """Return the negative of an expression; a number stays a number."""
    if isinstance(expression, Number):
        return Number(-expression.value, expression.places)
    return Apply("mul", (Number(Fraction(-1)), expression))


def _product(left: Tree, right: Tree) -> Apply:
    a, b = _expression(left), _expression(right)
    return Apply("mul", (*(a.arguments if isinstance(a, Apply) and a.function == "mul" else (a,)), b))


def _signed_sum(left: Tree, sign: str, right: Tree) -> Apply:
    a, b = _expression(left), _expression(right)
    if sign in "+-":
        terms = a.arguments if isinstance(a, Apply) and a.function == "add" else (a,)
        return Apply("add", (*terms, b if sign == "+" else negated(b)))
    return Apply("pm", (a, b if sign != "\\mp" else negated(b)))


def _is_proper(fraction: Apply) -> bool:
    above, below = fraction.arguments
    return (
        isinstance(above, Number)
        and isinstance(below, Number)
        and above.places is None
        and below.places is None
        and 0 < above.value < below.value
    )


def _applied(name: str, argument: Expression, base: Expression | None, power: Expression | None) -> Expression:
    arguments = (base or Number(Fraction(10)), argument) if name == "log" else (argument,)
    if power == Number(Fraction(-1)) and name in ("sin", "cos", "tan"):
        return Apply("arc" + name, (argument,))
    applied = Apply(name, arguments)
    return applied if power is None else Apply("pow", (applied, power))


def _decimal(text: str) -> Expression:
    mantissa, _, exponent = re.sub(r"\{,\}|\\,|,\\!", "", text).lower().partition("e")
    whole, _, places = mantissa.partition(".")
    number = Number(Fraction(int((whole + places) or "0"), 10 ** len(places)), len(places) or None)
    if not exponent:
        return number
    return Apply("mul", (number, Apply("pow", (Number(Fraction(10)), Number(Fraction(int(exponent)))))))


def _endless(text: str) -> Expression:
    r"""Return 1/3 for 0.333\ldots, which shows its period three times (twice from three digits on); other digits go on."""
    digits = text.partition("\\")[0].strip()
    whole, _, places = digits.partition(".")
    for length in range(1, len(places) // 2 + 1):
        again = places[-length:]
        if places.endswith(again * (2 if length > 2 else 3)):
            return Number(_repeating(f"{whole}.{places[:-length]}\\overline{{{again}}}"))
    return Apply("endless", (Number(Fraction(int(whole + places), 10 ** len(places)), len(places)),))


def _repeating(text: str) -> Fraction:
    r"""Return the value of a repeating decimal such as 0.1\overline{6}."""
    whole, _, rest = text.partition(".")
    before, _, again = rest.partition("\\overline")
    again = again.strip("{}")
    start = Fraction(int((whole + before) or "0"), 10 ** len(before))
    return start + Fraction(int(again), 10 ** len(before) * (10 ** len(again) - 1))
