"""Quantities: a number with its percent sign, unit or currency, read as a whole.

    [about] [name =] [currency] number [magnitude] [% | unit | noun]

The number is a literal (1,204.5  3/8  1 1/2  4.5 \\times 10^{-4}  seven  三) or a constant formula.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, replace
from fractions import Fraction

from jaxr1.rewards.reading.formulas import close, read_formula
from jaxr1.rewards.reading.grammar import Value
from jaxr1.rewards.reading.numbers import MAX_NUMBER_CHARS, literal_at
from jaxr1.rewards.reading.numerals import number_in_words
from jaxr1.rewards.reading.spoken import with_signs
from jaxr1.rewards.reading.units import CURRENCY_SIGNS, Unit, read_unit, same_unit
from jaxr1.rewards.reading.words import PLAIN

LEAST_DIGITS = 3  # of a decimal that stands for an exact number

_MAGNITUDES = {
    "hundred": 10**2,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "dozen": 12,
    "百": 10**2,
    "千": 10**3,
    "万": 10**4,
    "亿": 10**8,
}
_MAGNITUDE = re.compile(
    r"(?i)\s*(hundred|thousand|million|billion|trillion|dozen|[百千万亿]+)(?![a-z米克瓦焦卡帕赫])"
)
_PERCENT = re.compile(r"(?i)\s*(?:%|per ?cent(?:age points?)?\b|pct\b\.?)")
_ABOUT = re.compile(
    r"(?i)\s*(?:(?:about|approximately|approx\.?|around|roughly|circa|ca\.|nearly|exactly|only|just"
    r"|a total of|大约|约|共|一共|总共)\s*|\\approx\s*|~\s*|=\s*)+"
)
NAME = (
    r"(?:[A-Za-z]|[A-Z]{2,3}|\|[A-Z]{2}\||\\overline\s?\{[A-Z]{2}\}|m?\\[A-Za-z]+(?:\s?[A-Z]{1,3})?"
    r"|[A-Za-z]\([^()=]{1,8}\)|[A-Za-z]'{1,2})"
    r"(?:_\{?\w{1,6}\}?)?"
)
_EQUALS = re.compile(r"(?<![<>!=])=(?!=)|\\approx(?![a-z])|≈")
_OUT_OF = re.compile(r"^(\d+) out of (?:every )?(\d+)$")
_WORDS = re.compile(r"[A-Za-z]+|[\u4e00-\u9fff]")
# What a number counts: words, apart from the digits, and no single letter, which is a variable.
_NOUN = re.compile(
    r"(?:\s+(?=[A-Za-z\u4e00-\u9fff(\"])[(\"]?|(?=[\u4e00-\u9fff]|-[a-z]{2}|, ?[a-z]"
    r"|\([a-z]{2}))(?![A-Za-z]\b)" + PLAIN.pattern
)
# After a number: what makes it part of a larger term.
_NOT_A_NOUN = re.compile(
    r"(?i)\b(?:times|squared|cubed|factorial|plus|minus|over|divided|multiplied|more|less|fewer"
    r"|or|to|past|than|through|until|halves|thirds|quarters?|eighths|th|st|nd|rd|power|root"
    r"|cents?|[ap]\.?m"
    r"|jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sep(?:tember)?"
    r"|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\b"
    r"|[月号题倍]|以[上下内外]|次方|折|分之|左右的|多|的(?:平方|立方|一半)"
)


@dataclass(frozen=True)
class Quantity:
    """A number and what it counts.

    Attributes:
      value: exact where it is rational.
      text: the number as it was written.
      decimals: the digits behind the point of a decimal, 0 of an integer; None for other forms.
      percent: whether a percent sign stands behind it; the value is then a hundredth.
      unit: its unit or currency; None where none is named.
      noun: the words behind it that are no unit.
      name: the variable that it was said to be.
      tight: whether the unit is a letter right behind the digits, which may be a variable.
    """

    value: Value
    text: str = ""
    decimals: int | None = None
    percent: bool = False
    unit: Unit | None = None
    noun: str = ""
    name: str = ""
    tight: bool = False


@functools.lru_cache(maxsize=4096)
def read_quantity(text: str) -> Quantity | None:
    """The quantity that all of a normalised text is; None for anything else.

    "x = 5", "A = 4 * 5 = 20" and "2\\sqrt{2} \\approx 2.83" are one quantity, "6 = 7" is none.
    """
    if len(text) > 300:
        return None
    if about := _ABOUT.match(text):
        text = text[about.end() :]
    text = with_signs(_OUT_OF.sub(r"\1/\2", text))
    parts = [part.strip() for part in _EQUALS.split(text)]
    if len(parts) == 1:
        return _one_quantity(text)
    name = parts.pop(0) if re.fullmatch(NAME, parts[0]) else ""
    if not name and len(parts) == 2 and re.fullmatch(NAME, parts[1]):
        name = parts.pop()
    found = [_one_quantity(part) for part in parts]
    if len({one.unit for one in found if one and one.unit is not None}) > 1:
        return None  # "24 cm = 24 m"
    if name and len(parts) > 1 and found[0] is None:  # "A = lw = 20"
        formula = read_formula(parts[0])
        if formula is not None and formula.symbols:
            found.pop(0)
    known = [quantity for quantity in found if quantity is not None]
    if not known or len(known) < len(found):
        return None
    if not all(same_number(one, known[-1]) or same_number(known[-1], one) for one in known):
        return None
    best = next((one for one in known if one.decimals is None), known[-1])
    unit = next((one.unit for one in known if one.unit is not None), None)
    return replace(best, name=name, unit=unit, percent=known[-1].percent)


def _one_quantity(text: str) -> Quantity | None:
    text = text.strip()
    if text.startswith("\\{") and text.endswith("\\}"):  # the set of one solution
        text = text[2:-2].strip()
    if re.fullmatch(r"[+-]?\d{1,3}(?: \d{3})+(?:\.\d+)?", text):
        text = text.replace(" ", "")
    return _begun_quantity(text, whole=True) or _formula_quantity(text) or _word_quantity(text)


def _begun_quantity(text: str, whole: bool) -> Quantity | None:
    found = quantity_at(text, 0, whole=whole)
    if found is None:
        return None
    quantity, end = found
    rest = text[end:].strip()
    if not rest:
        return quantity
    if quantity.percent or not _NOUN.fullmatch(text[end:]) or _NOT_A_NOUN.search(rest):
        return None
    counts = filter(None, map(number_in_words, _WORDS.findall(rest)))
    if any(count[0] != quantity.value for count in counts):  # "5 apples and three pears"
        return None
    return replace(quantity, noun=rest) if len(rest.split()) <= 5 else None


def quantity_at(text: str, start: int, whole: bool = False) -> tuple[Quantity, int] | None:
    """The quantity that begins at a place of a normalised text, with its end; nouns not included.

    Args:
      text: a normalised text.
      start: where it begins.
      whole: whether the text is to be one quantity, so that a single letter may be a unit.
    """
    piece = text[start : start + MAX_NUMBER_CHARS]
    before = re.match(
        r"\s*([+-]?)\s*(US\$|[$€£¥₹₩₽]|(?:USD|EUR|GBP|CNY|RMB|JPY)(?=[ \d]))\s*", piece
    )
    currency = before.group(2) if before else ""
    found = literal_at(piece[before.end() :] if before else piece)
    if found is None:
        return None
    quantity, end = Quantity(found.value, found.written, found.decimals), found.end
    if before:
        end += before.end()
        value = -quantity.value if before.group(1) == "-" else quantity.value
        quantity = replace(quantity, value=value, unit=read_unit(currency))
    while magnitude := _MAGNITUDE.match(piece, end):
        factor = 1
        for word in [magnitude[1].lower()] if magnitude[1].isascii() else magnitude[1]:
            factor *= _MAGNITUDES[word]
        end = magnitude.end()
        quantity = replace(quantity, value=quantity.value * factor, decimals=None)
    if percent := _PERCENT.match(piece, end):
        return replace(quantity, value=quantity.value / 100, percent=True), start + percent.end()
    if quantity.unit is None:
        quantity, end = _with_unit(quantity, piece, end, whole)
    elif after := re.match(r"\s*(?:dollars?|USD)\b", piece[end:]):  # "$5 USD"
        end += after.end()
    elif (rate := re.match(r"\s*(?:/|per )\s*([A-Za-z]+)", piece[end:])) and (
        unit := read_unit(f"{currency}/{rate[1]}")
    ):
        end += rate.end()
        quantity = replace(quantity, unit=unit)
    return quantity, start + end


_UNIT_RUN = re.compile(
    r"\s*(?:\\frac\s*\{[A-Za-z]+\}\s*\{[A-Za-z^\d]+\}|[A-Za-z°µμΩ$€£¥₹¢\"\u4e00-\u9fff/^{}*·.-]"
    r"|\\cdot"
    r"|\\Omega|(?<=\^)\d|(?<=\{)-?\d|(?<=-)\d|\s)*"
)
_AMBIGUOUS = frozenset("in a at as am pm are or and per h".split())


def _with_unit(quantity: Quantity, text: str, end: int, whole: bool) -> tuple[Quantity, int]:
    """The quantity with the longest unit behind it, and where that ends."""
    run = _UNIT_RUN.match(text, end)
    tail = run.group()[:40] if run else ""
    for stop in sorted(
        {m.end() for m in re.finditer(r"\S(?=\s|$)|[\u4e00-\u9fff]|[$€£¥₹¢°]", tail)}, reverse=True
    ):
        name = tail[:stop].strip().rstrip(".")
        if not name or name.endswith(("/", "*", "^", "-")):
            continue
        unit = read_unit(name)
        if unit is None:
            continue
        rest = text[end + stop :].lstrip()
        if name in _AMBIGUOUS and re.match(r"[A-Za-z]", rest):
            continue
        tight = len(name) == 1 and name.isalpha() and name.isascii() and not tail.startswith(" ")
        if tight and not whole:
            continue
        return replace(quantity, unit=unit, tight=tight), end + stop
    return quantity, end


def _formula_quantity(text: str) -> Quantity | None:
    """A constant formula, with a unit where one follows."""
    formula = read_formula(text)
    if formula is not None and (value := formula.constant()) is not None:
        return Quantity(value, text, formula.decimals)
    if text.endswith("%"):
        inner = _formula_quantity(text[:-1].strip())
        if inner is None or inner.percent:
            return None
        return replace(inner, value=inner.value / 100, percent=True)
    if text.count("+") and text[:1] in CURRENCY_SIGNS:  # "$20 + $25"
        text = text[0] + re.sub(rf"(?<=[+-])\s*{re.escape(text[0])}", "", text[1:])
    if text and text[0] in CURRENCY_SIGNS and (inner := _formula_quantity(text[1:])):
        return replace(inner, unit=read_unit(text[0]))
    for match in re.finditer(r"(?<=[\s\d})!])(?=[A-Za-z°\\\u4e00-\u9fff(])", text):
        unit = read_unit(text[match.start() :].strip("() "))
        formula = read_formula(text[: match.start()].rstrip()) if unit is not None else None
        value = formula.constant() if formula is not None else None
        if value is not None:
            tight = len(text) - match.start() == 1 and text[match.start()].isascii()
            tight = tight and text[match.start() - 1] != " "
            return Quantity(value, text[: match.start()].rstrip(), None, unit=unit, tight=tight)
    return None


def _word_quantity(text: str) -> Quantity | None:
    """A number in words, with what it counts: "seven cubes", "three eighths", "三个"."""
    share = number_in_words(text[3:]) if text.startswith("百分之") else None
    if share is not None:
        return None if share[1] else _begun_quantity(f"{share[0]}%", whole=True)
    found = number_in_words(text)
    if found is None:
        return None
    value, rest = found
    digits = f"{value.numerator}/{value.denominator}" if value.denominator != 1 else str(value)
    return _begun_quantity(f"{digits} {rest}".strip(), whole=True)


_AND = re.compile(r"\s*(?:,\s*)?(?:\band\b\s*)?", re.I)


def read_compound(text: str) -> tuple[Quantity, ...] | None:
    """The quantities that one measure is made of, each with its own unit: "2 h 30 min"."""
    found: list[Quantity] = []
    at = 0
    while at < len(text):
        got = quantity_at(text, at)
        if got is None or not got[0].unit:
            return None
        quantity, end = got
        found.append(quantity)
        joint = _AND.match(text, end)
        at = joint.end() if joint else end
    units = {quantity.unit for quantity in found}
    return tuple(found) if len(found) > 1 and len(units) == len(found) else None


def same_compound(gold: tuple[Quantity, ...], answer: tuple[Quantity, ...]) -> bool:
    return len(gold) == len(answer) and all(map(same_quantity, gold, answer))


# --- comparison ---------------------------------------------------------------------------------
def same_quantity(gold: Quantity, answer: Quantity) -> bool:
    """Whether an answer names the reference's quantity.

    A unit that is missing on one side is understood. A percentage equals the bare number and the
    ratio, but only where the reference has the sign: it says which of them is wanted.
    """
    if gold.unit is not None and answer.unit is not None and not same_unit(gold.unit, answer.unit):
        return False
    if answer.tight and gold.unit is None:
        return False
    if gold.name and answer.name and gold.name != answer.name:
        return False
    if gold.unit and answer.noun and answer.unit is None and not _measures(answer.noun):
        return False
    if gold.noun and answer.noun and not _same_noun(gold.noun, answer.noun):
        return False
    if "per " in answer.noun and "per " not in gold.noun:
        return False
    if gold.noun and answer.unit:
        return False
    if answer.percent and not gold.percent:
        return False
    if gold.percent and not answer.percent:
        if answer.unit or (answer.noun and not answer.noun.startswith("of ")):
            return False
        bare = replace(gold, value=100 * gold.value)
        shifted = replace(
            answer,
            value=100 * answer.value,
            decimals=None if answer.decimals is None else answer.decimals - 2,
        )
        return same_number(bare, answer) or same_number(bare, shifted)
    if gold.percent:
        gold = replace(gold, value=100 * gold.value)
        answer = replace(answer, value=100 * answer.value)
    return same_number(gold, answer)


_DIMENSIONS = re.compile(
    r"(?i)(?:long|tall|high|wide|deep|old|away|apart|in (?:total|all|length|height|width|size)|each"
    r"|altogether|left|thick|exactly|approximately)"
)


def _measures(noun: str) -> bool:
    """Whether words behind a number only say how it was measured."""
    return _DIMENSIONS.fullmatch(noun) is not None


def _same_noun(one: str, other: str) -> bool:
    """Whether two nouns can be the same: one names the other with fewer words."""
    left, right = ({word.rstrip("s") for word in noun.lower().split()} for noun in (one, other))
    return left <= right or right <= left


def same_number(gold: Quantity, answer: Quantity) -> bool:
    """Whether the numbers agree.

    A decimal reference asks for its own digits; a decimal for an exact reference is right when it
    is rounded correctly to three significant digits or more. Integers are never rounded.
    """
    if close(gold.value, answer.value):
        return True
    exact_gold, exact_answer = _rational(gold.value), _rational(answer.value)
    if exact_gold is None or exact_answer is None:
        return False
    if gold.decimals is not None and gold.decimals > 0:
        finer = answer.decimals is None or answer.decimals > gold.decimals
        return finer and 2 * abs(exact_answer - exact_gold) < Fraction(10) ** -gold.decimals
    if gold.decimals is None and answer.decimals is not None and _is_open(gold):
        enough = len(re.sub(r"[eE].*|\\.*|[^\d]", "", answer.text).lstrip("0")) >= LEAST_DIGITS
        return enough and 2 * abs(exact_answer - exact_gold) <= Fraction(10) ** -answer.decimals
    return False


def _is_open(quantity: Quantity) -> bool:
    """Whether a number is no integer, so that a decimal may stand for it."""
    value = _rational(quantity.value)
    return value is not None and not close(value, Fraction(round(value)))


def _rational(value: Value) -> Fraction | None:
    """The value as a fraction; None of a complex number."""
    if isinstance(value, Fraction):
        return value
    real = complex(value)
    return Fraction(real.real) if abs(real.imag) <= 1e-12 * abs(real.real) else None
