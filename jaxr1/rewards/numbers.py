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
    rf"(?P<sign>[+-]?)(?P<digits>{_UNSIGNED})"
    r"(?:[eE](?P<exponent>[+-]?\d{1,3})"
    r"|\s*(?:\\times|\*|x)\s*10\^\{?(?P<power>[+-]?\d{1,3})\}?)?"
)
_RATIO = re.compile(
    rf"(?P<sign>[+-]?)(?:(?P<whole>\d+)\s+)?(?P<top>{_UNSIGNED})\s*/\s*(?P<bottom>[+-]?{_UNSIGNED})"
)
# \frac takes a group in braces, or a single digit: \frac12
_FRAC = re.compile(
    r"(?P<sign>[+-]?)(?P<whole>\d*)\s*\\frac\s*"
    rf"(?:\{{\s*(?P<top>[+-]?{_UNSIGNED})\s*\}}|(?P<top_digit>\d))\s*"
    rf"(?:\{{\s*(?P<bottom>[+-]?{_UNSIGNED})\s*\}}|(?P<bottom_digit>\d))"
)


def parse_number(answer: str) -> tuple[Fraction, bool] | None:
    """The exact value of an answer that is a number, and whether it was written as a percentage.

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
    """The value of a number without currency and percent signs; None for anything else."""
    if match := _DECIMAL.fullmatch(text):
        value = _decimal_value(match)
    elif match := _RATIO.fullmatch(text) or _FRAC.fullmatch(text):
        value = _quotient(match)
    else:
        return None
    return -value if value is not None and match["sign"] == "-" else value


def _decimal_value(match: re.Match[str]) -> Fraction | None:
    shift = int(match["exponent"] or match["power"] or 0)
    if abs(shift) > MAX_EXPONENT:
        return None
    return _fraction(match["digits"]) * Fraction(10) ** shift


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


_SIGN_IN_WORDS = re.compile(r"(?i)\b(?:negative|minus)\s+(?=[\d.])")
_COMPARED = re.compile(
    r"(?i)\b(?:not|never|no|between|at (?:least|most)"
    r"|(?:less|fewer|more|greater|larger|smaller|other) than)\b|n't\b"
)
_NUMBER_IN_WORDS = re.compile(rf"(?<![\w.,])[+-]?{_UNSIGNED}\s?%?(?!\d|[.,]\d|[eE][+-]?\d)")
_OPERATION = re.compile(r"[\\^=+*/<>{}|]")


def has_operation(text: str) -> bool:
    """Whether a normalised text is an expression rather than a number among words."""
    return _OPERATION.search(text) is not None


def lone_number(text: str) -> tuple[Fraction, bool] | None:
    """The one number that a sentence without mathematics names ("3 dogs", "It costs $4.50").

    None if there are several: two different numbers are a hedge ("3 or 4"). "less than 3" and
    "not 3" name no number, and with operators in it the text is an expression.
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


# --- units --------------------------------------------------------------------------------------
_UNIT_NAMES = {
    "mm": "mm millimeter millimetre",
    "cm": "cm centimeter centimetre",
    "m": "m meter metre",
    "km": "km kilometer kilometre",
    "in": "in inch inches",
    "ft": "ft foot feet",
    "mi": "mi mile",
    "mph": "mph",
    "mg": "mg milligram",
    "g": "g gram",
    "kg": "kg kilogram",
    "lb": "lb pound",
    "ms": "ms millisecond",
    "s": "s sec second",
    "min": "min minute",
    "h": "h hr hour",
    "day": "day",
    "week": "week",
    "month": "month",
    "year": "year",
    "am": "am a.m",
    "pm": "pm p.m",
    "ml": "ml milliliter millilitre",
    "l": "l liter litre",
    "dollar": "dollar",
    "cent": "cent",
    "euro": "euro",
}


def _units_by_name() -> dict[str, str]:
    """{name: unit} for all names, longer ones also in the plural."""
    units = {}
    for unit, names in _UNIT_NAMES.items():
        for name in names.split():
            units[name] = unit
            if len(name) > 2 and not name.endswith("s"):
                units[f"{name}s"] = unit
    return units


_UNITS = _units_by_name()
_NAME = "|".join(sorted((re.escape(n) for n in _UNITS if len(n) > 1), key=len, reverse=True))
_LETTER_NAME = "|".join(n for n in _UNITS if len(n) == 1)
_POWER = r"(?: ?\^ ?\{{?(?P<{}>[23])\}}?)?"
# A single letter is a unit after a space only: "5m" may as well be five times m.
_UNIT_AT_END = re.compile(
    rf"(?i)(?<=[\d)}}%])(?: ?(?P<name>{_NAME})| (?P<letter>{_LETTER_NAME}))"
    rf"{_POWER.format('power')}"
    rf"(?: ?(?:/|per) ?(?P<below>{_NAME}|{_LETTER_NAME}){_POWER.format('below_power')})?\.?"
)


def split_unit(text: str) -> tuple[str, str]:
    """A normalised text without the unit of measurement at its end, and that unit.

    The unit is written as "cm^2" or "km/h", and is "" where there is none. Names of a unit are one
    unit: "5 cm" and "5 centimeters". Units are not converted.
    """
    start = max(0, len(text) - 40)
    match = next((m for m in _UNIT_AT_END.finditer(text, start) if m.end() == len(text)), None)
    if match is None:
        return text, ""
    unit = _unit(match["name"] or match["letter"], match["power"])
    if match["below"]:
        unit += "/" + _unit(match["below"], match["below_power"])
    return text[: match.start()], unit


def _unit(name: str, power: str | None) -> str:
    return _UNITS[name.lower()] + (f"^{power}" if power else "")
