"""Dates and times of day."""

from __future__ import annotations

import re
from typing import NamedTuple

from jaxr1.rewards.reading.numerals import HAN_NUMBER, ORDINALS, number_in_words
from jaxr1.rewards.reading.words import PLAIN

_MONTHS = (
    "january february march april may june july august september october november december"
).split()
_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?"
    r"|sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\b\.?"
)
_YEAR = r"(?P<year>\d{4})(?!\d)"
_DAY = r"(?P<day>\d{1,2})(?!\d)"
_PATTERNS = tuple(
    re.compile(rf"(?i)(?<![\w/.-]){pattern}(?![\w/-]|\.\d)")
    for pattern in (
        rf"(?P<month>{_MONTH})\s*{_DAY}(?:\s*,?\s*{_YEAR})?",
        rf"{_DAY}\s*(?:of\s+)?(?P<month>{_MONTH})(?:\s*,?\s*(?:of\s+)?{_YEAR})?",
        rf"{_YEAR}\s*,?\s*(?P<month>{_MONTH})\s*{_DAY}",
        rf"(?P<month>{_MONTH})\s*,?\s*(?:of\s+)?{_YEAR}",
        rf"{_YEAR}(?P<sep>[-/.])(?P<number>\d{{1,2}})(?P=sep){_DAY}",
        rf"(?P<one>\d{{1,2}})(?P<sep>[-/.])(?P<other>\d{{1,2}})(?P=sep){_YEAR}",
        rf"(?:{_YEAR}\s*年\s*)?(?P<number>\d{{1,2}})\s*月\s*{_DAY}\s*[日号]",
        rf"{_YEAR}\s*年\s*(?P<number>\d{{1,2}})\s*月",
    )
)
_WEEKDAY = (
    r"(?:mon|tues?|wed(?:nes)?|thur?s?|fri|sat(?:ur)?|sun)(?:day)?\b\.?,?\s*|(?:星期"
    r"|周)[一二三四五六日天],?\s*"
)
# What makes a date or time a bound instead.
_BOUND = re.compile(
    r"(?i)\b(?:before|after|until|till|since|from|between|by|not|than|past|except"
    r"|around and)\s*(?:the )?$"
)


class Date(NamedTuple):
    """A day or a month; what is not said is None.

    Attributes:
      written: of a date whose order of day and month is not clear: what stands there.
    """

    year: int | None
    month: int | None
    day: int | None
    written: str = ""


def read_date(text: str) -> Date | None:
    """The date that all of a normalised text is: "May 5, 2021", "5 May 2021", "2021-05-05"."""
    text = re.sub(rf"(?i)^(?:on |the |{_WEEKDAY})+", "", _with_digits(text)).strip()
    text = re.sub(rf"(?i)[,\s(]*(?:{_WEEKDAY})\)?$", "", text) or text
    for pattern in _PATTERNS:
        if match := pattern.fullmatch(text):
            return _date(match)
    return None


def said_date(text: str) -> Date | None:
    """The one date that a sentence names; None for none, for two, and for a bound of time."""
    text = _with_digits(text)
    found: set[Date | None] = set()
    rest = text
    for pattern in _PATTERNS:
        while match := pattern.search(rest):
            if _BOUND.search(rest[: match.start()]):
                return None
            found.add(_date(match))
            rest = f"{rest[: match.start()]} {rest[match.end() :]}"
    return found.pop() if len(found) == 1 and PLAIN.fullmatch(rest) else None


def _with_digits(text: str) -> str:
    """The text with days in words as numbers: "the fourth of July", "二〇二一年五月三日"."""
    if "月" in text and re.search("[一二三四五六七八九十](?=[年月日号])", text):
        text = re.sub(
            "[〇零一二三四五六七八九]{4}(?=年)", lambda m: m.group().translate(_HAN), text
        )
        text = re.sub("[一二三四五六七八九十]{1,3}(?=[月日号])", _number_of, text)
    return re.sub(
        rf"(?i)\b(?:the )?({'|'.join(ORDINALS)})(?= (?:day )?(?:of )?{_MONTH})",
        lambda match: str(ORDINALS.index(match.group(1).lower()) + 1),
        re.sub(r"(?i)\bthe (?=\d{1,2}\b)", "", text),
    )


_HAN = str.maketrans("〇零一二三四五六七八九", "00123456789")


def _number_of(match: re.Match[str]) -> str:
    found = number_in_words(match.group())
    return str(found[0]) if found else match.group()


def _date(match: re.Match[str]) -> Date | None:
    found = match.groupdict()
    year = int(found["year"]) if found.get("year") else None
    day = int(found["day"]) if found.get("day") else None
    if found.get("month"):
        month = next(
            i for i, m in enumerate(_MONTHS, 1) if m.startswith(found["month"][:3].lower())
        )
    elif found.get("number"):
        month = int(found["number"])
    else:
        one, other = int(found["one"]), int(found["other"])
        if one <= 12 and other <= 12 and one != other:
            return Date(year, None, None, f"{one} {other}")
        month, day = (other, one) if one > 12 or one == other else (one, other)
    if not 1 <= month <= 12 or (day is not None and not 1 <= day <= 31):
        return None
    return Date(year, month, day)


# --- times --------------------------------------------------------------------------------------
class Time(NamedTuple):
    """A time of day.

    Attributes:
      hour: 0 to 23; where `half` is "", as it was written, 1 to 12.
      half: "am", "pm", or "" where it is not said.
      whole_day: whether it was written in 24 hours, as "15:05".
    """

    hour: int
    minute: int
    second: int
    half: str
    whole_day: bool = False


_HALF = r"(?:\s*(?P<half>[ap])\s?\.?\s?m\b\.?)"
_CLOCK = tuple(
    re.compile(rf"(?i)(?<![\w:.,/-]){pattern}(?![\w:]|\.\d|,\d)")
    for pattern in (
        rf"(?P<hour>\d{{1,2}}):(?P<minute>\d\d)(?::(?P<second>\d\d))?(?:{_HALF}|\s*h(?:ours?"
        rf"|rs)?\b)?(?:\s*o'?clock)?",
        rf"(?P<hour>\d{{1,2}})(?:\.(?P<minute>\d\d))?{_HALF}",
        rf"(?P<hour>\d{{1,2}})\s*o'?\s?clock(?:{_HALF})?",
        r"(?P<noon>(?:12(?::00)? )?(?:noon|midnight)|midday|正午|午夜)",
        rf"(?:(?P<count>\d{{1,2}}|half|(?:a )?quarter)(?: minutes?)? (?P<way>past|to|after|before"
        rf"|till) (?P<hour>\d{{1,2}}))(?: o'?clock)?(?:{_HALF})?",
        r"(?P<early>上午|早上|凌晨|下午|晚上|中午|傍晚)?(?P<hour>\d{1,2})(?:点|时)(?:(?P<minute>\d{1,2})分?"
        r"|(?P<late>半|整))?",
    )
)
_HOUR_WORDS = re.compile(
    r"(?i)\b(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve"
    r"|twenty(?:[ -]five)?)\b"
)
_DAY_HALF = re.compile(r"(?i)\s*(?:in|at) (?:the )?(morning|afternoon|evening|night)\b")


def read_time(text: str) -> Time | None:
    """The time of day that all of a normalised text is: "3:05 pm", "15:05", "noon"."""
    text = _clock_digits(text)
    for pattern in _CLOCK:
        if match := pattern.fullmatch(re.sub(r"(?i)^(?:at|around|about) ", "", text)):
            return _time(match)
    return None


def said_time(text: str) -> Time | None:
    """The one time that a sentence names; None for none, for two, and for a bound of time."""
    rest = _clock_digits(text)
    found: set[Time | None] = set()
    for pattern in reversed(_CLOCK):
        while match := pattern.search(rest):
            if _BOUND.search(rest[: match.start()]):
                return None
            found.add(_time(match))
            rest = f"{rest[: match.start()]} {rest[match.end() :]}"
    return found.pop() if len(found) == 1 and PLAIN.fullmatch(rest) else None


def _clock_digits(text: str) -> str:
    """The text with hours as numbers, and with halves of the day as am and pm."""

    def digits(match: re.Match[str]) -> str:
        found = number_in_words(match.group())
        return str(found[0]) if found else match.group()

    if re.search(r"(?i)clock|past|\bto\b|[ap]\.?m|morning|afternoon|evening", text):
        text = _HOUR_WORDS.sub(digits, text)
    text = re.sub(rf"{HAN_NUMBER.pattern}(?=[点时分])", digits, text)
    return _DAY_HALF.sub(lambda m: " am" if m.group(1).lower() == "morning" else " pm", text)


def _time(match: re.Match[str]) -> Time | None:
    found = match.groupdict()
    if word := found.get("noon"):
        return Time(
            0 if word.endswith(("midnight", "午夜")) else 12,
            0,
            0,
            "am" if "midnight" in word or word == "午夜" else "pm",
        )
    hour, minute = int(found["hour"]), int(found.get("minute") or 0)
    if count := found.get("count"):
        word = count.lower().removeprefix("a ")
        minute = {"half": 30, "quarter": 15}.get(word) or int(word)
        if found["way"].lower() in ("to", "before", "till"):
            hour, minute = (hour - 2) % 12 + 1, 60 - minute
    if found.get("late") == "半":
        minute = 30
    half = f"{found['half'].lower()}m" if found.get("half") else ""
    if early := found.get("early"):
        half = "am" if early in ("上午", "早上", "凌晨") else "pm"
    second = int(found.get("second") or 0)
    if hour > 24 or minute > 59 or second > 59:
        return None
    if half and 1 <= hour <= 12:
        hour = hour % 12 + (12 if half == "pm" else 0)
    elif hour > 12 or hour == 0:
        return Time(hour % 24, minute, second, "pm" if 12 < hour < 24 else "am", True)
    return Time(hour, minute, second, half)


def same_time(gold: Time, answer: Time) -> bool:
    """Whether an answer is the reference's time; am or pm may be missing on one side."""
    if gold[1:3] != answer[1:3]:
        return False
    if gold.half and answer.half:
        return gold.hour == answer.hour
    # "22:00" is an evening's time, "10:00" that of a morning or of either half
    return gold.hour % 12 == answer.hour % 12 and not (answer.whole_day and not gold.half)
