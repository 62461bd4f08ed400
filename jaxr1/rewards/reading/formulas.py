"""Formulas: an answer that is one expression, read as a whole and compared by its values.

Two formulas are equal where they have the same value at a few fixed points: an identity of
polynomials that holds at random points holds everywhere (J. T. Schwartz, JACM 27 (1980), 701-717),
and rational numbers are compared exactly. Nothing is simplified, so that no formula can take long;
what the grammar does not cover is left to `rewards.algebra`.
"""

from __future__ import annotations

import cmath
import functools
import hashlib
import re
from dataclasses import dataclass
from fractions import Fraction

from jaxr1.rewards.reading.grammar import Environment, Node, NoFormula, Reader, Value, tokens_of

MAX_CHARS = 400
MAX_DIGITS = 40
POINTS = 5
CLOSE = 1e-9  # relative; sums of a few hundred terms lose no more
ZERO = 1e-12  # what is left of a difference that is zero


@dataclass(frozen=True)
class Formula:
    """An expression that was read as a whole.

    Attributes:
      value: what it is worth where its symbols have the values of an environment.
      symbols: the names of its variables; letter case counts.
      decimals: the digits behind the point where it is one decimal number, else None.
      text: as it was written.
    """

    value: Node
    symbols: frozenset[str]
    decimals: int | None
    text: str

    def constant(self) -> Value | None:
        """Its value without symbols; None with them, or where it has no finite value."""
        return None if self.symbols else self.at({})

    def at(self, environment: Environment) -> Value | None:
        """Its value there; None where it has none."""
        try:
            value = self.value(environment)
        except (ArithmeticError, ValueError, RecursionError):
            return None
        return value if isinstance(value, Fraction) or cmath.isfinite(value) else None


@functools.lru_cache(maxsize=4096)
def read_formula(text: str) -> Formula | None:
    """The formula that a normalised text is; None where any part of it is left over."""
    if not text or len(text) > MAX_CHARS or _longest(text) > MAX_DIGITS:
        return None
    try:
        reader = Reader(tokens_of(text))
        value = reader.sum()
        if reader.kind() != "end":
            return None
    except NoFormula:
        return None
    decimal = re.fullmatch(r"[-+]?\s*[\d,]*\.(\d*)", text)
    decimals = len(decimal[1]) if decimal else None
    return Formula(value, frozenset(reader.symbols), decimals, text)


def _longest(text: str) -> int:
    return max(map(len, re.findall(r"\d+", text)), default=0)


def same_formula(one: Formula, other: Formula) -> bool:
    """Whether two formulas have the same value wherever both have one."""
    names = one.symbols | other.symbols
    if not names:
        return close(one.constant(), other.constant())
    compared = 0
    for environment in environments(names):
        left, right = one.at(environment), other.at(environment)
        if left is None and right is None:
            continue
        if not close(left, right):
            return False
        compared += 1
    return compared >= 2


def environments(names: frozenset[str]) -> list[Environment]:
    """The points where formulas are compared; a symbol has the same values in every formula."""
    return [{name: _coordinate(name, point) for name in names} for point in range(POINTS)]


@functools.lru_cache(maxsize=4096)
def _coordinate(name: str, point: int) -> complex:
    digest = hashlib.blake2b(f"{name} {point}".encode(), digest_size=8).digest()
    share = int.from_bytes(digest) / 2**64
    # positive but for one point, which tells |x| from x
    return complex(-0.4 - share if point == 1 else 0.6 + 1.7 * share)


def close(one: Value | None, other: Value | None) -> bool:
    """Whether two values are equal: rational ones exactly, others but for rounding."""
    if one is None or other is None:
        return False
    if isinstance(one, Fraction) and isinstance(other, Fraction):
        return one == other
    try:
        left, right = complex(one), complex(other)
    except OverflowError:
        return False
    size = max(abs(left), abs(right))
    return abs(left - right) <= CLOSE * size or size < ZERO
