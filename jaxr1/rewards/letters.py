"""Choice letters: which one an answer names, or which ones."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from jaxr1.rewards.answers import MAX_ANSWER_CHARS, NO_ARTICLE, normalise

# Letters go to J (ten options, as in MMMU-Pro). "I" is a pronoun as well: on its own, in brackets
# or before a stop only.
_LETTER_ALONE = re.compile(r"[\s(\[*]*([A-Ja-h])[\s)\].:*,]*")
_LETTER_FIRST = re.compile(r"(?:[(\[]([A-Ja-h])[)\]]|([A-Ja-h])[.):])\s*:?\s*(.*)", re.DOTALL)
_LETTER_MARKED = re.compile(r"[(\[]([A-Ja-h])[)\]]|(?<![\w'-])([A-HJ])[.):](?!\w)")
_LETTER_OPTION = re.compile(r"(?i:\b(?:option|choice):? {0,2})[(\[]?([A-Ja-h])(?![\w'])")
_LETTER_SAID = re.compile(r"(?i:\banswer(?: is|:| is:)? {0,2})[(\[]?([A-HJ])(?![\w'])" + NO_ARTICLE)
_LETTER_SAID_LAST = re.compile(r"(?i:\banswer(?: is|:| is:)? {0,2})[(\[]?([a-h])[)\]]?")
_LETTER_LONE = re.compile(r"(?<![\w'-])([A-HJ])(?![\w'-])" + NO_ARTICLE)
_LETTERS = re.compile(r"\(?[A-J]\)?(?:(?: ?[,;&/] ?| )(?:and )?\(?[A-J]\)?)+")


def is_choice_letter(answer: str) -> bool:
    """Whether the answer is one letter from A to J, and otherwise only brackets or punctuation."""
    return _LETTER_ALONE.fullmatch(normalise(answer)) is not None


def choice_letters(answer: str) -> frozenset[str] | None:
    """The letters of an answer that lists them ("A, C", "(A) and (C)"); None for anything else."""
    text = normalise(answer)
    if len(text) > 40 or not _LETTERS.fullmatch(text):
        return None
    return frozenset(re.findall("[A-J]", text))


def choice_letter(answer: str) -> str | None:
    """The one choice letter that an answer names, in upper case; None for none, or more than one.

    Letters have word boundaries: "a cat" names no option, and neither does "Bad". Two different
    letters are a hedge.

    "B"  "(b)"  "B."  "B. the red cube"  "The answer is (B)"  "option b"  "B is closer"   -> B
    "a red cube"  "A cube"  "(A) or (B)"  "cab"                                           -> None
    """
    text = normalise(answer)
    if len(text) > MAX_ANSWER_CHARS:
        return None
    alone = _LETTER_ALONE.fullmatch(text)
    if alone:
        return _letter(alone)

    # "(B)" and "B." are meant as letters wherever they stand
    marked = _letters_found(_LETTER_MARKED, text)
    if len(marked) > 1:
        return None
    first = _LETTER_FIRST.fullmatch(text)
    if first and marked <= {_letter(first)}:
        return _letter(first)

    # letters among words
    named = marked | _letters_found(_LETTER_LONE, text)
    named |= _letters_found(_LETTER_SAID, text) | _letters_found(_LETTER_OPTION, text)
    if len(named) == 1:
        return named.pop()
    last = _LETTER_SAID_LAST.search(text)
    if last and last.end() == len(text) and not named:
        return _letter(last)
    return None


def _letters_found(pattern: re.Pattern[str], text: str) -> set[str]:
    return {_letter(match) for match in pattern.finditer(text)}


def _letter(match: re.Match[str]) -> str:
    """The letter that a pattern found, in upper case; each alternative has a group for it."""
    return next(filter(None, match.groups())).upper()


def choice_texts(metadata: Mapping[str, Any]) -> dict[str, str]:
    """{letter: normalised text} of the options in a row's `choices` or `options` column, or {}."""
    choices = metadata.get("choices", metadata.get("options"))
    if isinstance(choices, Mapping):
        pairs = [(str(k).strip().upper(), str(v)) for k, v in choices.items()]
    elif isinstance(choices, list | tuple):
        pairs = [(chr(ord("A") + i), str(v)) for i, v in enumerate(choices[:10])]
    else:
        return {}
    texts = {}
    for letter, text in pairs:
        if len(letter) == 1 and "A" <= letter <= "J" and len(text) <= MAX_ANSWER_CHARS:
            text = re.sub(rf"^\s*(?:[(\[]{letter}[)\]]|{letter}[.):])\s*", "", text)
            texts[letter] = normalise(text).casefold()
    return texts
