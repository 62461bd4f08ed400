"""Spoken amounts, with signs instead: "4 times 6 is 24", "12 dollars and 50 cents"."""

from __future__ import annotations

import re

from jaxr1.rewards.reading.numerals import NUMBER_WORDS

# "3/5 (0.6)", "24 (twenty-four)"
_AGAIN = re.compile(
    rf"(?i)(?<=[\d}}%]) \(([^()]*\d[^()]*|(?:{NUMBER_WORDS})(?:[ -][a-z]+){{0,3}})\)$"
)
_IS = re.compile(r"(?i)(?<=\d) (?:is equal to|is|equals|makes|gives) (?=\$?\d)")
_SIGNS = tuple(
    (re.compile(rf"(?i)(?<=\d) {words} (?=\d)"), sign)
    for words, sign in (
        ("(?:times|multiplied by)", "*"),
        ("plus", "+"),
        ("minus", "-"),
        ("divided by", "/"),
    )
)
_EACH = re.compile(r"^每(小时|分钟|秒|天|年|个?月)\s?(\d.*)$")
_HAN_NOUN = re.compile(r"\(([\u4e00-\u9fff]{1,4})\)$")  # "15(个)"
_HAS_CENTS = re.compile(r"(?i)\b(?:cents?|pence|p)\b")
_CENTS = re.compile(
    r"(?i)(?<![\d.,])(\d[\d,]*) ?(dollars?|bucks?|euros?|pounds?) (?:and )?(\d{1,2}) ?"
    r"(?:cents?|pence|p)\b"
)


def with_cents(text: str) -> str:
    """A text in which dollars and cents are one amount: "12 dollars and 50 cents"."""
    if not _HAS_CENTS.search(text):
        return text
    return _CENTS.sub(lambda m: f"{m[1]}.{int(m[3]):02d} {m[2]}", text)


def with_signs(text: str) -> str:
    """A normalised text in which an amount that is said again, or worked out, has equals signs.

    A product alone stays as it is: "4 times 6" states no value.
    """
    text = with_cents(_EACH.sub(r"\2/\1", text))
    text = _HAN_NOUN.sub(r"\1", _AGAIN.sub(r" = \1", text))
    if "=" in text or _IS.search(text):
        text = _IS.sub(" = ", text)
        for words, sign in _SIGNS:
            text = words.sub(sign, text)
    return text
