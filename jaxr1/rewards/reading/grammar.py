"""The grammar of formulas: a text becomes a function of its symbols' values.

    sum      ->  product (("+" | "-") product)*
    product  ->  power (("*" | "/" | nothing) power)*
    power    ->  postfix ("^" exponent)?
    postfix  ->  atom "!"*
    atom     ->  number | symbol | constant | function power | bracket | \\frac | \\sqrt

Plain text and LaTeX have one grammar, and all of a text is read or none of it. Evaluation is
bounded: rational numbers stay exact up to a thousand digits and are floats beyond.
"""

from __future__ import annotations

import cmath
import math
import re
from collections.abc import Callable
from fractions import Fraction

MAX_DEPTH = 40  # of brackets, and of powers of powers
MAX_EXPONENT = 1000
MAX_FACTORIAL = 170  # the last that a float holds

Value = Fraction | complex
Environment = dict[str, complex]
Node = Callable[[Environment], Value]

_GREEK = (
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi "
    "rho sigma tau phi varphi chi psi omega Gamma Delta Theta Lambda Sigma Phi Psi Omega ell hbar"
)
_FUNCTIONS: dict[str, Callable[[complex], complex]] = {
    "sin": cmath.sin,
    "cos": cmath.cos,
    "tan": cmath.tan,
    "cot": lambda x: 1 / cmath.tan(x),
    "sec": lambda x: 1 / cmath.cos(x),
    "csc": lambda x: 1 / cmath.sin(x),
    "arcsin": cmath.asin,
    "arccos": cmath.acos,
    "arctan": cmath.atan,
    "sinh": cmath.sinh,
    "cosh": cmath.cosh,
    "tanh": cmath.tanh,
    "exp": cmath.exp,
    "ln": cmath.log,
    "log": cmath.log10,
    "lg": cmath.log10,
    "sqrt": cmath.sqrt,
    "abs": abs,
}
_INVERSE = {"sin": "arcsin", "cos": "arccos", "tan": "arctan"}
_CONSTANTS: dict[str, Value] = {"pi": complex(math.pi), "e": complex(math.e), "i": 1j}
# Words of two letters that are no product of two variables.
_WORDS = frozenset("an at if in is it no of on or to".split())
# "nRT" and "mgh" are products; a word has a vowel, or capital letters in front only.
_PRODUCT = re.compile(r"[b-df-hj-np-tv-xz]{3,4}|xyz|[a-z][A-Z]{1,3}")
_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+\.?\d*|\.\d+)"
    r"|\\(?P<command>[A-Za-z]+|[{}|])"
    r"|(?P<word>[A-Za-z]+)"
    r"|(?P<sign>\*\*|[-+*/^!_()\[\]{}|'√]))"
)


class NoFormula(ValueError):
    """A text that the grammar does not cover."""


def tokens_of(text: str) -> list[tuple[str, str]]:
    found, at = [], 0
    text = text.rstrip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise NoFormula(text[at : at + 10])
        at = match.end()
        found.append((match.lastgroup or "", match[match.lastgroup or 0]))
    return [*found, ("end", "")]


class Reader:
    """A recursive descent over the tokens of one text.

    Attributes:
      symbols: the names met so far.
    """

    def __init__(self, tokens: list[tuple[str, str]]):
        self.tokens, self.place, self.depth = tokens, 0, 0
        self.symbols: set[str] = set()
        self._queue: list[str] = []  # letters of a word that are still to be read
        self._bars = 0  # open signs of an absolute value

    def kind(self) -> str:
        return "word" if self._queue else self.tokens[self.place][0]

    def peek(self) -> str:
        return self._queue[0] if self._queue else self.tokens[self.place][1]

    def take(self) -> str:
        if self._queue:
            return self._queue.pop(0)
        self.place += 1
        return self.tokens[self.place - 1][1]

    def has(self, *signs: str) -> bool:
        return self.kind() in ("sign", "command") and self.peek() in signs

    def expect(self, sign: str) -> None:
        if self.kind() == "end" or self.take() != sign:
            raise NoFormula(f"no {sign}")

    def sum(self) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise NoFormula("nested too deep")
        total = self.signed()
        while self.has("+", "-"):
            sign = self.take()
            total = _apply(_add if sign == "+" else _subtract, total, self.signed())
        self.depth -= 1
        return total

    def signed(self) -> Node:
        minus = False
        while self.has("+", "-"):
            minus ^= self.take() == "-"
        value = self.product()
        return _apply(_subtract, _constant(Fraction(0)), value) if minus else value

    def product(self) -> Node:
        value = self.power()
        while True:
            if self.has("*", "cdot", "times"):
                self.take()
                value = _apply(_multiply, value, self.factor())
            elif self.has("/", "div"):
                self.take()
                value = _apply(_divide, value, self.factor())
            elif self.begins():
                # a number does not follow a value without a sign: "1 2" and "x2" are no products
                if self.kind() == "number":
                    raise NoFormula("a number without an operator before it")
                value = _apply(_multiply, value, self.power())
            else:
                return value

    def factor(self) -> Node:
        if self.has("-", "+"):
            sign = self.take()
            value = self.factor()
            return _apply(_subtract, _constant(Fraction(0)), value) if sign == "-" else value
        return self.power()

    def begins(self) -> bool:
        """Whether a further factor begins here."""
        if self.kind() in ("number", "word"):
            return True
        if self.has("|"):
            return self._bars == 0
        return self.has("(", "[", "{", "√") or (
            self.kind() == "command" and self.peek() not in ("}", "|", "cdot", "times", "div")
        )

    def power(self) -> Node:
        base = self.postfix()
        if self.has("^", "**"):
            self.take()
            return _apply(_power, base, self.exponent())
        return base

    def exponent(self) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise NoFormula("nested too deep")
        if self.has("-", "+"):
            sign = self.take()
            value = self.exponent()
            value = _apply(_subtract, _constant(Fraction(0)), value) if sign == "-" else value
        else:
            value = self.power()
        self.depth -= 1
        return value

    def postfix(self) -> Node:
        value = self.atom()
        while self.has("!"):
            self.take()
            value = _apply(_factorial, value)
        return value

    def atom(self) -> Node:
        kind = self.kind()
        if kind == "number":
            return self.number()
        if kind == "word":
            return self.word()
        if kind == "command":
            return self.command()
        for opening, closing in ("()", "[]", "{}"):
            if self.has(opening):
                return self.bracket(opening, closing)
        if self.has("|"):
            self.take()
            self._bars += 1
            value = self.sum()
            self._bars -= 1
            self.expect("|")
            return _apply(_function("abs"), value)
        if self.has("√"):
            self.take()
            return _apply(_function("sqrt"), self.postfix())
        raise NoFormula(self.peek())

    def bracket(self, opening: str, closing: str) -> Node:
        self.expect(opening)
        bars, self._bars = self._bars, 0
        value = self.sum()
        self._bars = bars
        self.expect(closing)
        return value

    def number(self) -> Node:
        digits = self.take().replace(",", "")
        if self.has("_"):  # a numeral of another base is known by its name alone
            return self.symbol(digits)
        return _constant(Fraction(digits + "0" if digits.endswith(".") else digits))

    def word(self) -> Node:
        if not self._queue:
            word = self.take()
            if word in _FUNCTIONS:
                return self.applied(word)
            if word == "pi":
                return _constant(_CONSTANTS["pi"])
            if word.lower() in _WORDS or (len(word) > 2 and not _PRODUCT.fullmatch(word)):
                raise NoFormula(word)
            self._queue = list(word)
        return self.symbol(self.take())

    def symbol(self, name: str) -> Node:
        if self.has("_"):
            self.take()
            name += f"_{self.index()}"
        while self.has("'"):
            name += self.take()
        if name in _CONSTANTS:
            return _constant(_CONSTANTS[name])
        self.symbols.add(name)
        return lambda environment: environment[name]

    def index(self) -> str:
        if not self.has("{"):
            if self.kind() == "end":
                raise NoFormula("an index without a name")
            return self.take()
        self.take()
        name = ""
        while not self.has("}"):
            if self.kind() == "end":
                raise NoFormula("an index without an end")
            name += self.take()
        self.take()
        return name

    def command(self) -> Node:
        name = self.take()
        if name == "frac":
            return _apply(_divide, self.group(), self.group())
        if name == "sqrt":
            degree = None
            if self.has("["):
                degree = self.bracket("[", "]")
            value = self.group()
            if degree is None:
                return _apply(_function("sqrt"), value)
            return _apply(_power, value, _apply(_divide, _constant(Fraction(1)), degree))
        if name in ("binom", "dbinom", "tbinom"):
            return _apply(_choose, self.group(), self.group())
        if name in _FUNCTIONS:
            return self.applied(name)
        if name == "pi":
            return _constant(_CONSTANTS["pi"])
        if name in _GREEK.split():
            return self.symbol(name)
        raise NoFormula(name)

    def group(self) -> Node:
        """What a command applies to: a group in braces or brackets, else one digit or symbol."""
        if self.has("{"):
            return self.bracket("{", "}")
        if self.kind() == "number" and (digits := self.take()).isdigit():
            if len(digits) > 1:
                self.place -= 1
                self.tokens[self.place] = ("number", digits[1:])
            return _constant(Fraction(digits[0]))
        return self.postfix()

    def applied(self, name: str) -> Node:
        """A function and its argument; "\\sin^2 x" is the square of the sine."""
        exponent = base = None
        if self.has("_") and name == "log":
            self.take()
            base = self.group()
        if self.has("^") and name not in ("sqrt", "abs"):
            self.take()
            start = self.place
            exponent = self.group() if self.has("{") else self.postfix()
            written = "".join(token for _, token in self.tokens[start : self.place])
            if written.strip("{}") == "-1" and name in _INVERSE:
                name, exponent = _INVERSE[name], None
            elif written.strip("{}") == "-1":
                raise NoFormula("an inverse function")
        if self.has("(", "[", "{", "|"):
            argument = self.atom()
        else:  # without brackets as far as factors go: "\\sin 2x"
            argument = self.power()
            while self.begins() and self.kind() == "word" and self.peek() not in _FUNCTIONS:
                argument = _apply(_multiply, argument, self.power())
        value = _apply(_function(name), argument)
        if base is not None:
            value = _apply(
                _divide, _apply(_function("ln"), argument), _apply(_function("ln"), base)
            )
        return value if exponent is None else _apply(_power, value, exponent)


# --- values -------------------------------------------------------------------------------------
def _constant(value: Value) -> Node:
    return lambda environment: value


def _apply(function: Callable[..., Value], *parts: Node) -> Node:
    return lambda environment: function(*[part(environment) for part in parts])


def _both(one: Value, other: Value) -> bool:
    return isinstance(one, Fraction) and isinstance(other, Fraction)


def _add(one: Value, other: Value) -> Value:
    return one + other if _both(one, other) else complex(one) + complex(other)  # type: ignore


def _subtract(one: Value, other: Value) -> Value:
    return one - other if _both(one, other) else complex(one) - complex(other)  # type: ignore


def _multiply(one: Value, other: Value) -> Value:
    return one * other if _both(one, other) else complex(one) * complex(other)  # type: ignore


def _divide(one: Value, other: Value) -> Value:
    return one / other if _both(one, other) else complex(one) / complex(other)  # type: ignore


def _power(base: Value, exponent: Value) -> Value:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 1:
        digits = len(str(base.numerator)) + len(str(base.denominator))
        if abs(exponent) * digits <= MAX_EXPONENT:
            return base ** int(exponent)
    return complex(base) ** complex(exponent)


def _factorial(value: Value) -> Value:
    if not isinstance(value, Fraction) or value.denominator != 1 or not 0 <= value <= MAX_FACTORIAL:
        raise ValueError("no factorial")
    return Fraction(math.factorial(int(value)))


def _choose(total: Value, part: Value) -> Value:
    """The binomial coefficient of two integers."""
    if not (isinstance(total, Fraction) and isinstance(part, Fraction)):
        raise ValueError("no binomial coefficient")
    if total.denominator * part.denominator != 1 or not 0 <= part <= total <= MAX_FACTORIAL:
        raise ValueError("no binomial coefficient")
    return Fraction(math.comb(int(total), int(part)))


def _function(name: str) -> Callable[[Value], Value]:
    def called(value: Value) -> Value:
        if name == "sqrt" and isinstance(value, Fraction) and value >= 0:
            top, bottom = math.isqrt(value.numerator), math.isqrt(value.denominator)
            if top**2 == value.numerator and bottom**2 == value.denominator:
                return Fraction(top, bottom)
        if name == "abs" and isinstance(value, Fraction):
            return abs(value)
        return complex(_FUNCTIONS[name](complex(value)))

    return called
