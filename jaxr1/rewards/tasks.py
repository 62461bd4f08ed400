"""Rewards of answers that are compared in one fixed way, as VLM-R1 names them for each row.

The accuracy reward finds the way by itself; these are for data that says what an answer is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from jaxr1.rewards.reading.answers import extract_answer
from jaxr1.rewards.reading.letters import choice_letter
from jaxr1.rewards.stated import json_in, plain, stated
from jaxr1.rewards.types import Completion, Example

_DECIMAL = r"(?:\d[\d,]{0,30}(?:\.\d{0,30})?|\.\d{1,30})(?:[eE][-+]?\d{1,3})?"
_NUMBER = re.compile(rf"(?<![\w.])([-+]?{_DECIMAL})(?:\s?/\s?({_DECIMAL}))?(\s?%)?")
_YES_NO = re.compile(r"(?i)\b(yes|no)\b")


def numeric_reward(
    completion: Completion, example: Example, *, absolute: float = 0.0, relative: float = 0.0
) -> float | None:
    """1.0 if the last number of the answer is that of the reference, within a tolerance.

    Right is |answer - reference| <= max(absolute, relative x |reference|). "15%" is 0.15, "1,200"
    is 1200 and "3/4" is 0.75. ChartQA's relaxed accuracy is relative=0.05; a reference of 0 has
    then to be met.

    Args:
      completion: text with the template's prefix, and the finish reason.
      example: `answer` is the reference.
      absolute, relative: 0 or more; both 0 asks for the same number.

    Returns:
      None where the reference holds no number.

    Raises:
      ValueError: a tolerance below 0.
    """
    if absolute < 0 or relative < 0:
        raise ValueError(
            f"numeric reward: tolerances must be 0 or more, got {absolute} and {relative}"
        )
    gold, said = _number(_bare(example)), _number(stated(completion) or "")
    if gold is None:
        return None
    # products of decimal fractions are off by a few last bits
    slack = max(absolute, relative * abs(gold)) + 1e-9 * abs(gold)
    return float(said is not None and abs(said - gold) <= slack)


def yes_no_reward(completion: Completion, example: Example) -> float | None:
    """1.0 if the first yes or no of the answer is that of the reference, else 0.0.

    Both are looked for as words, in any letter case. None where the reference has neither.
    """
    gold, said = (_YES_NO.search(text) for text in (_bare(example), stated(completion) or ""))
    if gold is None:
        return None
    return float(said is not None and said.group().casefold() == gold.group().casefold())


def all_match_reward(completion: Completion, example: Example) -> float | None:
    """1.0 if the answer is the reference to the letter, but for letter case, whitespace and the
    punctuation around it; else 0.0. None where there is no reference.
    """
    gold = plain(_bare(example))
    return float(plain(stated(completion) or "") == gold) if gold else None


def choice_text_reward(completion: Completion, example: Example) -> float | None:
    """1.0 if the answer holds the text of the right option and of no other, else 0.0.

    As in VLMEvalKit's matching by text: an answer of over twice the characters of all options names
    none. Options that are part of a longer one which is there do not count. An answer without the
    text of any option may still name one by its letter.

    Args:
      completion: text with the template's prefix, and the finish reason.
      example: `answer` is the text or letter of an option, and the column `choices` or `options` a
        list of them, or {letter: text}.

    Returns:
      None where the reference is none of the options.

    Raises:
      ValueError: the row has no options.
    """
    options = _options(example.metadata)
    gold = _option_of(_bare(example), options)
    if gold is None:
        return None
    return float(_option_of(stated(completion) or "", options) == gold)


def json_fields_reward(
    completion: Completion, example: Example, *, fields: str = "", partial: bool = False
) -> dict[str, float] | None:
    """1 if the answer is a JSON object whose wanted fields are all those of the reference.

    Numbers are compared by value, texts without letter case and outer whitespace, all else as JSON.

    Args:
      completion: text with the template's prefix, and the finish reason.
      example: `answer` is a JSON object.
      fields: names of the wanted ones, divided by commas; "" is all of the reference.
      partial: whether the reward is the share of fields that are right.

    Returns:
      {"score", "share": of fields that are right}; None where the reference is no JSON object with
      these fields.
    """
    gold = json_in(example.answer or "")
    if not isinstance(gold, Mapping):
        return None
    names = [name.strip() for name in fields.split(",")] if fields else list(gold)
    if not names or any(name not in gold for name in names):
        return None
    said = json_in(stated(completion) or "")
    given = said if isinstance(said, Mapping) else {}
    right = [name in given and _same(given[name], gold[name]) for name in names]
    share = sum(right) / len(names)
    return {"score": share if partial else float(all(right)), "share": share}


def matching_reading(
    completion: Completion, example: Example, **options: float | bool | str
) -> str:
    """What the rewards of this file read in a completion, for a message; arguments as of them."""
    answer = stated(completion)
    if answer is None:
        return "finds no whole answer"
    return f"reads {answer!r:.60} (reference {example.answer!r:.60})"


def _bare(example: Example) -> str:
    """The reference, without the answer tags that VLM-R1's rows put around it."""
    answer = example.answer or ""
    return extract_answer(answer) or answer


def _number(text: str) -> float | None:
    """The last number of a text; a fraction of two is one."""
    found = _NUMBER.findall(text)
    if not found:
        return None
    above, below, percent = (part.replace(",", "") for part in found[-1])
    try:
        number = float(above) / (float(below) if below else 1.0) / (100.0 if percent else 1.0)
    except (ValueError, ZeroDivisionError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _same(said: Any, gold: Any) -> bool:
    if isinstance(said, str) and isinstance(gold, str):
        return " ".join(said.casefold().split()) == " ".join(gold.casefold().split())
    return isinstance(said, bool) == isinstance(gold, bool) and said == gold


def _options(metadata: Mapping[str, Any]) -> dict[str, str]:
    """{letter: plain text} of a row's options."""
    given = metadata.get("choices", metadata.get("options"))
    if isinstance(given, list | tuple):
        return {chr(ord("A") + i): plain(str(text)) for i, text in enumerate(given[:26])}
    if isinstance(given, Mapping) and given:
        return {str(letter).strip().upper(): plain(str(text)) for letter, text in given.items()}
    raise ValueError("choice_text reward: the row has no column 'choices' or 'options'")


def _option_of(text: str, options: Mapping[str, str]) -> str | None:
    """The letter of the one option that a text names."""
    words = plain(text)
    same = [letter for letter, option in options.items() if option == words]
    if same:
        return same[0]
    room = 2 * sum(map(len, options.values()))
    held = {letter: option for letter, option in options.items() if _holds(words, option)}
    whole = [letter for letter in held if not _is_part(letter, held)]
    if whole and len(words) <= room:
        return whole[0] if len(whole) == 1 else None
    letter = None if whole else choice_letter(text)
    return letter if letter in options else None


def _holds(words: str, option: str) -> bool:
    return bool(option) and re.search(rf"(?<!\w){re.escape(option)}(?!\w)", words) is not None


def _is_part(letter: str, held: Mapping[str, str]) -> bool:
    """Whether an option stands inside a longer one that is there too."""
    others = [text for other, text in held.items() if other != letter]
    return any(len(text) > len(held[letter]) and _holds(text, held[letter]) for text in others)
