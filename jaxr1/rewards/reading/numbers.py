"""Number literals: integers, decimals, fractions, mixed numbers, scientific notation."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from jaxr1.rewards.reading.formulas import MAX_DIGITS
from jaxr1.rewards.reading.writing import normalise

MAX_NUMBER_CHARS = 100
MAX_EXPONENT = 1000

_UNSIGNED = r"(?:\d{1,3}(?:,\d{3})+(?!\d|,\d)(?:\.\d*)?|\d+(?:\.\d+)?|\d+\.(?!\w)|\.\d+)"
_TEN = r"(?:\\times|\\cdot|\*|x)\s*10\s*(?:\^|\*\*)\s*[{(]?\s*(?P<power>[+-]?\s*\d{1,4})\s*[})]?"
_DECIMAL = re.compile(rf"(?P<digits>{_UNSIGNED})(?:[eE](?P<exponent>[+-]?\d{{1,4}})|\s*{_TEN})?")
_RATIO = re.compile(
    rf"(?:(?P<whole>\d+)(?:\s+|\s*-\s*(?=\d+/)|\s+and\s+))?(?P<top>{_UNSIGNED})\s*/\s*"
    rf"(?P<bottom>-?{_UNSIGNED})"
)
# \frac takes a group in braces, or a single digit: \frac12
_FRAC = re.compile(
    r"(?P<whole>\d*)\s*\\frac\s*"
    rf"(?:\{{\s*(?P<top>[+-]?{_UNSIGNED})\s*\}}|(?P<top_digit>\d))\s*"
    rf"(?:\{{\s*(?P<bottom>[+-]?{_UNSIGNED})\s*\}}|(?P<bottom_digit>\d))"
)
_REPEATING = re.compile(
    r"(?P<digits>\d*\.\d*)(?:\\overline\s*\{(?P<period>\d+)\}|\((?P<cycle>\d+)\))"
)
_MINUS = ("-", "negative", "minus", "负")
_SIGN = re.compile(r"(?i)\s*(?P<sign>[+-]|\b(?:negative|minus|positive|plus)\b|负)?\s*")


class Literal(NamedTuple):
    """A number as it was written.

    Attributes:
      value: its exact value.
      written: its text without the sign.
      decimals: the digits behind the point of a decimal, 0 of an integer; None of a fraction.
      end: where it ends in the text that begins with it.
    """

    value: Fraction
    written: str
    decimals: int | None
    end: int


def parse_number(answer: str) -> Fraction | None:
    """The exact value of an answer that is a number literal as a whole; None for anything else.

    Integers, decimals, thousands separators, scientific notation, fractions a/b and
    \\frac{a}{b}, mixed numbers, with a sign. None for a zero denominator and for numbers beyond
    the bounds at the top of this file too.
    """
    text = normalise(answer)
    found = literal_at(text)
    return found.value if found and found.end == len(text) else None


def literal_at(text: str) -> Literal | None:
    """The number literal that a normalised text begins with."""
    if len(text) > MAX_NUMBER_CHARS:
        text = text[:MAX_NUMBER_CHARS]
    sign = _SIGN.match(text)
    start = sign.end() if sign else 0
    negative = bool(sign and sign["sign"] and sign["sign"].lower() in _MINUS)
    for pattern in (_REPEATING, _FRAC, _RATIO, _DECIMAL):
        if match := pattern.match(text, start):
            break
    else:
        return None
    if pattern is _DECIMAL:
        value, decimals = _decimal_value(match), _decimals(match)
    elif pattern is _REPEATING:
        value, decimals = _repeating_value(match), None
    else:
        value, decimals = _quotient(match), None
    written = match.group().strip()
    if value is None or sum(c.isdigit() for c in written) > MAX_DIGITS:
        return None
    return Literal(-value if negative else value, written, decimals, match.end())


def _decimal_value(match: re.Match[str]) -> Fraction | None:
    shift = int((match["exponent"] or match["power"] or "0").replace(" ", ""))
    if abs(shift) > MAX_EXPONENT:
        return None
    return _fraction(match["digits"]) * Fraction(10) ** shift


def _repeating_value(match: re.Match[str]) -> Fraction:
    """The value of 0.1\\overline{6}, which is 1/6."""
    period = match["period"] or match["cycle"]
    places = len(match["digits"].partition(".")[2])
    tail = Fraction(int(period), 10 ** len(period) - 1) / 10**places
    return Fraction(f"0{match['digits']}0") + tail


def _decimals(match: re.Match[str]) -> int | None:
    """The places of a decimal that its digits reach; an exponent moves them."""
    shift = int((match["exponent"] or match["power"] or "0").replace(" ", ""))
    return len(match["digits"].partition(".")[2]) - shift


def _quotient(match: re.Match[str]) -> Fraction | None:
    """The value of a fraction or a mixed number."""
    found = match.groupdict()
    top = found["top"] or found["top_digit"]
    below = _fraction(found["bottom"] or found["bottom_digit"])
    whole = found["whole"]
    # the parts of a mixed number have one sign, which stands before both
    if below == 0 or (whole and (top.startswith("-") or below < 0)):
        return None
    return int(whole or 0) + _fraction(top) / below


def _fraction(digits: str) -> Fraction:
    digits = digits.replace(",", "")
    return Fraction(digits + "0" if digits.endswith(".") else digits)
