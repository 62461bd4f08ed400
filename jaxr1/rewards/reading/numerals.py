"""Numbers in words: "twenty-one", "three eighths", "三十二"."""

from __future__ import annotations

import re
from fractions import Fraction

_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_CARDINALS = {word: n for n, word in enumerate(_SMALL)} | {
    word: 10 * n for n, word in enumerate(_TENS, 2)
}
_PARTS = {
    **dict(half=2, halves=2, third=3, quarter=4, fourth=4, fifth=5, sixth=6, seventh=7, eighth=8),
    **dict(ninth=9, tenth=10, twelfth=12, hundredth=100),
}
_PARTS |= {f"{word}s": n for word, n in _PARTS.items()}
ORDINALS = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth "
    "fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth twentieth"
).split()
NUMBER_WORDS = "|".join(sorted(_CARDINALS, key=len, reverse=True))
_NUMBER = re.compile(
    rf"(?i)(?:(?P<tens>{'|'.join(_TENS)})(?:[ -](?P<units>{'|'.join(_SMALL[1:10])}))?"
    rf"|(?P<small>{'|'.join(sorted(_SMALL, key=len, reverse=True))}))(?![\w'])"
)
_FRACTION = re.compile(
    rf"(?i)(?:(?P<top>{'|'.join(_SMALL[1:13])}|an?)[ -])?(?P<part>"
    rf"{'|'.join(sorted(_PARTS, key=len, reverse=True))})(?![\w'])"
)
_AND_A_HALF = re.compile(r"(?i)\s*and (?:a|one)[ -](half|quarter|third)\b")
_SIZE = re.compile(r"(?i)\s*(hundred|thousand) (?:and )?")
_HAN_DIGITS = {c: n for n, c in enumerate("零一二三四五六七八九")} | {"两": 2, "俩": 2, "〇": 0}
HAN_NUMBER = re.compile(
    r"[零〇一二两俩三四五六七八九十百]+(?![角边面样种直起定般旦成]|些|共|下|次函)"
)

_HAN_DECIMAL = re.compile(r"([零一二三四五六七八九十]+)点([零一二三四五六七八九]+)(?![分点半])")
_HAN_SHARE = re.compile(r"([二三四五六七八九十百]+)分之([零一二两三四五六七八九十百]+)")


def number_in_words(text: str) -> tuple[Fraction, str] | None:
    """The number that a text begins with in words, and the rest of the text; None without one.

    Up to thousands, common fractions, and Chinese numerals up to 999: "seven cubes" is
    (7, "cubes"), "三个" is (3, "个").
    """
    text = text.strip()
    minus = re.match(r"(?i)(?:minus|negative)\s+", text)
    if minus:
        found = number_in_words(text[minus.end() :])
        return None if found is None or found[0] < 0 else (-found[0], found[1])
    if match := re.match(r"(?i)an? dozen\b", text):
        return Fraction(12), text[match.end() :].strip()
    if match := re.match(r"(?i)a (?=(?:hundred|thousand|million|billion)\b)", text):
        return Fraction(1), text[match.end() :].strip()
    if match := _FRACTION.match(text):
        top = (match["top"] or "a").lower()
        is_part = match["top"] is not None or match["part"].lower() == "half"
        if is_part:
            value = Fraction(_CARDINALS.get(top, 1), _PARTS[match["part"].lower()])
            return value, text[match.end() :].strip()
    if match := _NUMBER.match(text):
        number = _CARDINALS[(match["tens"] or match["small"]).lower()]
        value = Fraction(number + _CARDINALS.get((match["units"] or "zero").lower(), 0))
        end = match.end()
        if size := _SIZE.match(text, end):  # "one hundred and twenty", not yet "one hundred"
            smaller = number_in_words(text[size.end() :])
            if smaller and (hundreds := re.match(r"(?i)hundred\b", smaller[1])):
                smaller = (100 * smaller[0], smaller[1][hundreds.end() :].strip())
            factor = 100 if size[1].lower() == "hundred" else 1000
            if smaller and smaller[0].denominator == 1 and 0 < smaller[0] < factor:
                return value * factor + smaller[0], smaller[1]
        if more := _AND_A_HALF.match(text, end):
            value, end = value + Fraction(1, _PARTS[more[1].lower()]), more.end()
        return value, text[end:].strip()
    if match := _HAN_SHARE.match(text):
        below, above = _han_value(match[1]), _han_value(match[2])
        return (Fraction(above, below), text[match.end() :].strip()) if below and above else None
    if match := _HAN_DECIMAL.match(text):
        places = "".join(str(_HAN_DIGITS[sign]) for sign in match[2])
        whole = _han_value(match[1])
        rest = text[match.end() :].strip()
        return None if whole is None else (Fraction(f"{whole}.{places}"), rest)
    if match := HAN_NUMBER.match(text):
        han = _han_value(match.group())
        return None if han is None else (Fraction(han), text[match.end() :].strip())
    return None


def _han_value(numeral: str) -> int | None:
    """The value of a Chinese numeral: 十二 is 12, 三百零五 is 305."""
    total, digit = 0, None
    for sign in numeral:
        if sign in _HAN_DIGITS:
            if digit:
                return None
            digit = _HAN_DIGITS[sign]
        else:
            total += (1 if digit is None else digit) * (10 if sign == "十" else 100)
            digit = None
    return total + (digit or 0)
