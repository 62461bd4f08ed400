"""Equations and expressions, by their values: the same line or curve in any arrangement."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from jaxr1.rewards.reading.formulas import Formula, close, environments, read_formula, same_formula


@dataclass(frozen=True)
class Equation:
    """A line, a curve or a definition.

    Attributes:
      name: the left side where it is a lone symbol, or a function of one: "y", "f(x)".
      left, right: the sides; the left one is None where only the right one was given.
    """

    name: str
    left: Formula | None
    right: Formula


_EQUALS = re.compile(r"(?<![<>!=:])=(?!=)")
_SYMBOL = re.compile(
    r"(?:(?:[A-Za-z]|\\[A-Za-z]+)(?:_\{?\w+\}?)?'*|[A-Za-z]'*\([A-Za-z](?:,\s?[A-Za-z])*\))"
)


@functools.lru_cache(maxsize=4096)
def read_equation(text: str) -> Equation | None:
    """An equation of two formulas; or of one, whose left side went without saying."""
    sides = [side.strip() for side in _EQUALS.split(text)]
    if len(sides) == 1:
        right = read_formula(sides[0])
        return None if right is None else Equation("", None, right)
    if len(sides) != 2:
        return None
    if not _SYMBOL.fullmatch(sides[0]) and _SYMBOL.fullmatch(sides[1]):
        sides.reverse()
    name = sides[0] if _SYMBOL.fullmatch(sides[0]) else ""
    left = read_formula("y" if "(" in name else sides[0])
    right = read_formula(sides[1])
    return None if left is None or right is None else Equation(name, left, right)


def read_own_equation(text: str) -> Equation | None:
    found = read_equation(text)
    return None if found is None or found.left is None else found


def same_equation(gold: Equation, answer: Equation) -> bool:
    if answer.left is None:
        return bool(gold.name) and same_formula(gold.right, answer.right)
    if "(" in gold.name and answer.name and (answer.name in ("y", gold.name)):
        return same_formula(gold.right, answer.right)
    assert gold.left is not None
    names = gold.left.symbols | gold.right.symbols
    if names != answer.left.symbols | answer.right.symbols:
        return False
    if gold.name and gold.name == answer.name and same_formula(gold.right, answer.right):
        return True
    return (
        _proportional(gold, answer, names)
        or _solved(gold, answer, names)
        or _solved(answer, gold, names)
    )


def _proportional(gold: Equation, answer: Equation, names: frozenset[str]) -> bool:
    """Whether the sides of two equations differ by the same terms, but for a factor."""
    ratios: list[complex] = []
    for environment in environments(names):
        one, other = _difference(gold, environment), _difference(answer, environment)
        if one is None or other is None:
            continue
        if not one or not other:
            return False
        ratios.append(one / other)
    return len(ratios) >= 3 and all(abs(r - ratios[0]) <= 1e-7 * abs(ratios[0]) for r in ratios)


def _solved(explicit: Equation, other: Equation, names: frozenset[str]) -> bool:
    """Whether what an equation gives for a symbol fulfils the other one, as "y = 1/x" does "xy ="
    " 1"."""
    if len(names) < 2:  # "x = 3" is no other form of "x^2 = 9", but one of its solutions
        return False
    if not explicit.name or explicit.left is None or explicit.name in explicit.right.symbols:
        return False
    compared = 0
    for environment in environments(names):
        value, at_random = explicit.right.at(environment), _difference(other, environment)
        if value is None or at_random is None or other.left is None:
            continue
        there = {**environment, **dict.fromkeys(explicit.left.symbols, complex(value))}
        if not at_random or not close(other.left.at(there), other.right.at(there)):
            return False
        compared += 1
    return compared >= 3


def _difference(equation: Equation, environment: dict[str, complex]) -> complex | None:
    left = equation.left.at(environment) if equation.left is not None else None
    right = equation.right.at(environment)
    return None if left is None or right is None else complex(left) - complex(right)


def read_expression(text: str) -> Formula | None:
    """A formula with symbols, or behind a name that it does not hold itself."""
    formula = read_formula(text)
    if formula is not None:
        return formula
    sides = [side.strip() for side in _EQUALS.split(text)]
    if len(sides) == 2 and _SYMBOL.fullmatch(sides[0]):
        right = read_formula(sides[1])
        name = read_formula(sides[0].partition("(")[0])
        if right is not None and name is not None and not name.symbols & right.symbols:
            return right
    return None


def read_own_expression(text: str) -> Formula | None:
    formula = read_formula(text)
    return formula if formula is not None and formula.symbols else None
