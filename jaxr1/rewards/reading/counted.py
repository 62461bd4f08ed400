"""Quantities in sentences: the one number that a sentence names, with words around it."""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction

from jaxr1.rewards.reading.numerals import HAN_NUMBER, number_in_words
from jaxr1.rewards.reading.quantities import NAME, Quantity, quantity_at, same_quantity
from jaxr1.rewards.reading.spoken import with_cents
from jaxr1.rewards.reading.words import WORDY

MAX_NUMBERS = 20  # of a sentence that names one again and again
WORDS = 60  # characters before a number that say what it bounds, or is a part of
_BEGINS = re.compile(
    r"(?<![A-Za-z0-9.,^_/*!}\])-])(?:(?:negative|minus)\s+|-)?(?:US\$|[$€£¥]|USD )?\s?(?=\.?\d"
    r"|\\frac)"
)
_BEFORE = re.compile(
    r"(?i)(?:\b(?:than|least|most|over|under|above|below|beyond|within|(?<!add )(?<!adds )up to"
    r"|between|from|before"
    r"|after|until|since|not|never|twice|double|triple|half|half of|root|root of|times|plus"
    r"|minus|(?:multiple|power|factor|divisor|digit|part|fraction|multiples) of|exceeds?|minimum"
    r"|maximum|figure"
    r"|chapter|question|step|problem|part|number of the|no\.|except|besides|without|jan\w*|feb\w*"
    r"|mar(?:ch)?|apr\w*|may|june?|july?|aug\w*|sept?\w*|oct\w*|nov\w*|dec\w*)|[<>^_*/+-]|!=|[<>]="
    r"|[大小多少高低]于|超过|不到|至少|至多|最多|最少|第|不足|除了|之间)"
    r"\s*(?:the |a |an |about |exactly )*$"
)
_AFTER = re.compile(
    r"(?i)(?:(?=[a-z])|\s+[b-hj-z]\b(?!')|\s*(?:[!^_*/+<>({|\\]|-(?=\w)|-\s+(?=\d|[a-z]\b))"
    r"|\s*(?:times|squared|cubed"
    r"|factorial|plus|minus|or (?:more|less|fewer)"
    r"|and (?:a half|up|over|above)|more than|less than|fewer than|(?:is|are) (?:less|greater|more"
    r"|smaller|larger|bigger|fewer)|divided|multiplied|past|out of"
    r"|to the"
    r"|per [a-z]+|percent|jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?"
    r"|aug(?:ust)?"
    r"|sep(?:tember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\b|[月号题倍]|多(?![边面])|[个人只]?以[上下内外]"
    r"|次方|折|分之|的(?:平方|立方|一半))"
)
_REMAINS = re.compile(f"[!?#&…~*{WORDY}]*")


def forbids_number(before: str) -> bool:
    """Whether the words before a number make it another one's bound or part: "less than"."""
    return _BEFORE.search(before[-WORDS:]) is not None


def said_quantity(text: str) -> Quantity | None:
    """The one quantity that a sentence names ("There are 3 dogs.", "It costs $4.50").

    None if there are several: two different numbers are a hedge or a list. What is left of the
    sentence must be words.
    """
    found: list[Quantity] = []
    text, rest, at = with_cents(text), [], 0
    for match in _BEGINS.finditer(text):
        if match.start() < at:
            continue
        got = quantity_at(text, match.start())
        if got is None:
            return None
        quantity, end = got
        if len(found) == MAX_NUMBERS:
            return None
        before = text[: match.start()]
        if name := re.search(rf"(?<![\w\\])({NAME})\s*=\s*$", before[-WORDS:]):
            quantity, before = (
                replace(quantity, name=name[1]),
                before[: len(before) - len(name.group())],
            )
        if _BEFORE.search(before[-WORDS:]) or _AFTER.match(text, end):
            return None
        rest.append(before[at:])
        found.append(quantity)
        at = end
    rest.append(text[at:])
    left = " ".join(rest)
    if not _REMAINS.fullmatch(left):
        return None
    if not found:
        return _said_in_words(text)
    last = found[-1]
    if not all(same_quantity(last, one) for one in found):
        return None
    return next((one for one in found if one.unit is not None), last)


_TOTAL = re.compile(
    r"(?i)(?:[:=]|\bso|that is|that makes|makes?|total|altogether|in all|共)[\s,:]*$"
)
_TOTALLED = re.compile(r"(?i)\s*(?:[a-z]+ )?(?:in total|altogether|in all|total|all together)\b")
_COUNTED = re.compile(r"\s*(?:\+|[a-z]{2,}|[\u4e00-\u9fff])")
_BEGINS_TOTAL = re.compile(r"\s*(?:[a-z]+ )?(?:\(|,? (?:namely|that is|i\.e\.)|:| = )")


def total_of(text: str) -> Quantity | None:
    """The total of the parts that a text counts: "3 on the left, 5 on the right, 8 in total".

    It stands at one end, is marked as the total, and is the sum of all the other numbers; the parts
    are counted things, or summands.
    """
    found: list[tuple[Quantity, int, int]] = []
    for match in _BEGINS.finditer(text):
        got = quantity_at(text, match.start())
        if got is None or len(found) == MAX_NUMBERS:
            return None
        if not found or match.start() >= found[-1][2]:
            found.append((got[0], match.start(), got[1]))
    if len(found) < 3 or not all(isinstance(one.value, Fraction) for one, _, _ in found):
        return None
    if not all(_COUNTED.match(text, end) for _, _, end in found[1:-1]):
        return None
    last, start, end = found[-1]
    if _BEGINS_TOTAL.match(text, found[0][2]) and _is_sum(found[0], found[1:]):
        return found[0][0]
    is_marked = _TOTALLED.match(text, end) or _TOTAL.search(text[:start])
    is_total = is_marked and _COUNTED.match(text, found[0][2]) and _is_sum(found[-1], found[:-1])
    return last if is_total else None


def _is_sum(total: tuple[Quantity, int, int], parts: list[tuple[Quantity, int, int]]) -> bool:
    return sum(Fraction(str(part.value)) for part, _, _ in parts) == total[0].value


_HAN_BEFORE = re.compile(r"([有是为共得:]|等于|一共|答案)(?=[零一二两三四五六七八九十])")


_COUNTING = frozenset(
    "is are was were exactly just only about has have see be equals count".split()
)


def _said_in_words(text: str) -> Quantity | None:
    """The one number that a sentence without digits names in words."""
    words = _HAN_BEFORE.sub(r"\1 ", text).split()
    found: set[Quantity] = set()
    at = 0
    while at < len(words):
        before = words[at - 1].lower() if at else "is"
        # "the right one" counts nothing
        is_pronoun = words[at].lower() == "one" and before not in _COUNTING
        if is_pronoun or number_in_words(words[at]) is None:
            at += 1
            continue
        reading = number_in_words(" ".join(words[at:]))
        if reading is None or _BEFORE.search(" ".join(words[:at])[-WORDS:]):
            return None
        value, left = reading
        taken = len(words) - at - len(left.split())
        if _AFTER.match(" " + left) or HAN_NUMBER.search(left):
            return None
        found.add(Quantity(value, str(value), 0 if value.denominator == 1 else None))
        at += max(taken, 1)
    return found.pop() if len(found) == 1 else None
