"""Numbers: the exact value of an answer that is one, with its unit."""

from __future__ import annotations

import re
from fractions import Fraction

from jaxr1.rewards.answers import MAX_ANSWER_CHARS, normalise

MAX_NUMBER_CHARS = 100
MAX_DIGITS = 40
MAX_EXPONENT = 1000
RELATIVE_TOLERANCE = Fraction(1, 1_000_000)  # math-verify rounds to six places as well

_UNSIGNED = r"(?:\d{1,3}(?:,\d{3})+(?:\.\d*)?|\d+(?:\.\d*)?|\.\d+)"
_DECIMAL = re.compile(
    rf"([+-]?)({_UNSIGNED})(?:[eE]([+-]?\d{{1,3}})|\s*(?:\\times|\*|x)\s*10\^\{{?([+-]?\d{{1,3}})\}}?)?"
)
_RATIO = re.compile(rf"([+-]?)(?:(\d+)\s+)?({_UNSIGNED})\s*/\s*([+-]?{_UNSIGNED})")
_FRAC = re.compile(
    rf"([+-]?)(\d*)\s*\\frac\s*(?:\{{\s*([+-]?{_UNSIGNED})\s*\}}|(\d))\s*(?:\{{\s*([+-]?{_UNSIGNED})\s*\}}|(\d))"
)


def parse_number(answer: str) -> tuple[Fraction, bool] | None:
    """The exact value of an answer that is a plain number, and whether it was written as a
    percentage.

    Integers, decimals, thousands separators, scientific notation, percentages, fractions a/b and
    \\frac{a}{b}, mixed numbers, "minus" or a currency sign before. The value of "15%" is 15/100.
    None for anything else, for a zero denominator, and for numbers beyond the bounds at the top of
    this file.
    """
    text = normalise(answer).replace("\\times ", "\\times")
    if not text or len(text) > MAX_NUMBER_CHARS or sum(c.isdigit() for c in text) > MAX_DIGITS:
        return None
    if not text.isascii():
        return None
    text = re.sub(r"^([+-]?)\s*[$]\s*", r"\1", _SIGN_IN_WORDS.sub("-", text))
    text = re.sub(r"^([+-])\s+", r"\1", text)
    percent = text.endswith("%")
    if percent:
        text = text[:-1].rstrip()
    value = _plain_value(text)
    if value is None:
        return None
    return (value / 100 if percent else value), percent


def _plain_value(text: str) -> Fraction | None:
    def fraction(digits: str) -> Fraction:
        digits = digits.replace(",", "")
        return Fraction((digits + "0" if digits.endswith(".") else digits) or "0")

    match = _DECIMAL.fullmatch(text)
    if match:
        sign, digits, exponent, power = match.groups()
        shift = int(exponent or power or 0)
        if abs(shift) > MAX_EXPONENT:
            return None
        return fraction(digits) * Fraction(10) ** shift * (-1 if sign == "-" else 1)
    match = _RATIO.fullmatch(text)
    if match:
        sign, whole, top, bottom = match.groups()
    else:
        match = _FRAC.fullmatch(text)
        if not match:
            return None
        sign, whole, top, top_digit, bottom, bottom_digit = match.groups()
        top, bottom = top or top_digit, bottom or bottom_digit
    below = fraction(bottom)
    if below == 0 or (whole and (top.startswith("-") or below < 0)):
        return None
    value = Fraction(int(whole)) if whole else Fraction(0)
    return (value + fraction(top) / below) * (-1 if sign == "-" else 1)


_SIGN_IN_WORDS = re.compile(r"(?i)\b(?:negative|minus)\s+(?=[\d.])")
_COMPARED = re.compile(
    r"(?i)\b(?:not|never|no|between|at (?:least|most)|(?:less|fewer|more|greater|larger|smaller|other) than)\b|n't\b"
)
_NUMBER_IN_WORDS = re.compile(rf"(?<![\w.,])[+-]?{_UNSIGNED}\s?%?(?!\d|[.,]\d|[eE][+-]?\d)")
_OPERATION = re.compile(r"[\\^=+*/<>{}|]")


def has_operation(text: str) -> bool:
    """Whether a normalised text is an expression rather than a number among words."""
    return _OPERATION.search(text) is not None


def lone_number(text: str) -> tuple[Fraction, bool] | None:
    """The one number that a sentence without mathematics names ("3 dogs", "It costs $4.50"); None
    if there are several.

    Two different numbers are a hedge ("3 or 4"), "less than 3" and "not 3" name no number, and with
    operators in it the text is an expression.
    """
    if len(text) > MAX_ANSWER_CHARS or has_operation(text) or _COMPARED.search(text):
        return None
    text = _SIGN_IN_WORDS.sub("-", text)
    found = {parse_number(match.group()) for match in _NUMBER_IN_WORDS.finditer(text)}
    return found.pop() if len(found) == 1 else None


def numbers_equal(one: tuple[Fraction, bool], other: tuple[Fraction, bool]) -> bool:
    """Whether two results of `parse_number` name the same value.

    Integers must be equal; with a fraction or decimal a relative difference of 1e-6 is rounding. A
    percentage equals its ratio (15% = 0.15) and also the bare number (15% = 15), because questions
    ask "what percentage".
    """
    (a, a_percent), (b, b_percent) = one, other
    pairs = [(a, b)]
    if a_percent != b_percent:
        pairs.append((a * 100, b) if a_percent else (a, b * 100))
    for x, y in pairs:
        if x == y:
            return True
        rounded = x.denominator != 1 or y.denominator != 1
        if rounded and abs(x - y) <= RELATIVE_TOLERANCE * max(abs(x), abs(y)):
            return True
    return False


# --- units
# ----------------------------------------------------------------------------------------------------------

_UNIT_NAMES = {
    "mm": "mm millimeter millimetre", "cm": "cm centimeter centimetre", "m": "m meter metre", "km": "km kilometer kilometre",
    "in": "in inch inches", "ft": "ft foot feet", "mi": "mi mile", "mph": "mph",
    "mg": "mg milligram", "g": "g gram", "kg": "kg kilogram", "lb": "lb pound",
    "ms": "ms millisecond", "s": "s sec second", "min": "min minute", "h": "h hr hour", "day": "day", "week": "week",
    "month": "month", "year": "year", "am": "am a.m", "pm": "pm p.m",
    "ml": "ml milliliter millilitre", "l": "l liter litre", "dollar": "dollar", "cent": "cent", "euro": "euro",
}  # fmt: skip
_UNITS = {name: unit for unit, names in _UNIT_NAMES.items() for name in names.split()}
_UNITS |= {
    f"{name}s": unit for name, unit in _UNITS.items() if len(name) > 2 and not name.endswith("s")
}
_NAME = "|".join(sorted((re.escape(n) for n in _UNITS if len(n) > 1), key=len, reverse=True))
_LETTER_NAME = "|".join(n for n in _UNITS if len(n) == 1)
_POWER = r"(?: ?\^ ?\{?([23])\}?)?"
# A single letter is a unit after a space only: "5m" may as well be five times m.
_UNIT_AT_END = re.compile(
    rf"(?i)(?<=[\d)}}%])(?: ?({_NAME})| ({_LETTER_NAME})){_POWER}(?: ?(?:/|per) ?({_NAME}|{_LETTER_NAME}){_POWER})?\.?"
)


def split_unit(text: str) -> tuple[str, str]:
    """A normalised text without the unit of measurement at its end, and that unit ("cm^2", "km/h");
    "" where it has none.

    Names of a unit are one unit: "5 cm" and "5 centimeters". Units are not converted.
    """
    start = max(0, len(text) - 40)
    match = next((m for m in _UNIT_AT_END.finditer(text, start) if m.end() == len(text)), None)
    if match is None:
        return text, ""
    name, letter, power, below, below_power = match.groups()
    unit = _UNITS[(name or letter).lower()] + (f"^{power}" if power else "")
    if below:
        unit += f"/{_UNITS[below.lower()]}" + (f"^{below_power}" if below_power else "")
    return text[: match.start()], unit
