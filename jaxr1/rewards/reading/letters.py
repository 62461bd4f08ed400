"""Choice letters: which one an answer names, or which ones."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

from jaxr1.rewards.reading.answers import MAX_ANSWER_CHARS
from jaxr1.rewards.reading.writing import normalise

# After an "A": not an article before a noun ("A dog"), but a letter that is something ("A is
# closer", "A and B").
_NO_NOUN = (
    r"(?:and|or|is|was|because|since|as|seems|looks|would|must|should|has|fits|matches|works)\b"
)
_NO_ARTICLE = rf"(?:(?<!A)|(?<=A)(?! (?!{_NO_NOUN})[a-z]))"
# Letters go to J (ten options, as in MMMU-Pro). "I" is a pronoun as well: on its own, in brackets
# or before a stop only.
_LETTER_ALONE = re.compile(r"[\s(\[*{]*([A-Ja-j])[\s)\].:*,}]*")
_LETTER_FIRST = re.compile(
    r"(?:[(\[]([A-Ja-h])[)\]]|([A-Ja-h])(?:[.):]|\s[-–:]\s)"
    r"|(?i:(?:the )?(?:answer is )?(?:option|choice)) ([A-J])(?: fits| is (?:correct|right"
    r"|true))?[,:;])\s*:?\s*(.*)",
    re.DOTALL,
)
_LETTER_MARKED = re.compile(r"[(\[]([A-Ja-h])[)\]]|(?<![\w'-])([A-HJ])[.):](?!\w)")
_LETTER_OPTION = re.compile(r"(?i:\b(?:option|choice|选项?):? {0,2})[(\[]?([A-Ja-h])(?![\w'])")
_LETTER_SAID = re.compile(
    r"(?i:\banswer(?: is|:| is:)? {0,2})[(\[]?([A-HJ])(?![\w'])" + _NO_ARTICLE
)
_LETTER_SAID_LAST = re.compile(
    r"(?i:\banswer(?: is|:| is:)?(?: option| choice)? {0,2})[(\[]?([a-h])[)\]]?"
)
_LETTER_HAN = re.compile(
    r"(?:答案|选项?|选择|为|是|应选|故选)\s?[:是为]?\s?[(\[]?([A-Ja-h])(?![A-Za-z])"
)
# A letter among words is one where the words before or behind it make it one: no "vitamin B".
_LETTER_ITEM = re.compile(r"([A-J])(?:项|选项|是?正确|符合)")
_LETTER_LONE = re.compile(
    r"(?:^|[,:;.!]\s*|(?i:\b(?:is|are|be|was|answer|answers|option|options|choice|choose|chose"
    r"|picks?"
    r"|select|selected|say|think|believe|guess|letters?|for|with|it's|as|so|therefore|thus|hence"
    r"|and"
    r"|or|nor|not|but|both|only|either|neither|than|of|statements?|figure|image|picture|panel|item"
    r"|object|diagram|graph|shape|would|go|to|one|that|like|actually|probably|definitely|clearly"
    r"|likely|maybe|perhaps|possibly|surely|certainly|也|是|选|为))\s+[\"']?"
    r"|[选是为和或])([A-HJ])(?![A-Za-z0-9_'+*/^=-])(?=$|\s*[,.;:!?)\"]|\s+(?:is|and|or|was|because"
    r"|since|as|seems|looks"
    r"|would|must|should|has|fits|matches|works|can|cannot|could|isn't|can't|be|are|not|but|for"
    r"|here|too|nor|then|it|[(-])(?!\w)|[和或是、])"
)
_LETTER_PICTURED = re.compile(
    r"(?i:\b(?:figure|image|picture|panel|diagram|graph|chart|statement)) ([A-HJ])(?![\w'])"
    + _NO_ARTICLE
)
_LETTER_ANY = re.compile(r"(?<![A-Za-z0-9_'-])([A-HJ])(?![A-Za-z0-9_'-])" + _NO_ARTICLE)
_HEAD = re.compile(
    r"(?i)^(?:(?:so|thus|therefore|hence|the|both|correct|right|true|final|statements?|options?"
    r"|choices?|answers?|letters?|ones?|are|is|选项?|答案|应选|故选"
    r"|[是为:])[\s,:]*)+(?=[(\[]?(?:[a-j](?![a-z]{2})|(?-i:[A-J]{2,8})(?![a-z])))"
)
_BETWEEN = re.compile(r"\s*(?:[,;，、&/+]\s*(?:and\b|和)?|\band\b|和|与|及|\s)\s*")
_LETTER_RUN = re.compile(r"(?<![\w'-])([A-J]{2,8})(?![\w'-])")
_SEE = re.compile(r"(?i)\s*\((?:see|cf\.?|from|as in|figure|fig\.|step)\b[^()]*\)$")
_PLAIN_REST = re.compile(r"[A-Za-z\u4e00-\u9fff'’,.;:()\s-]*")


def is_choice_letter(answer: str) -> bool:
    """Whether the answer is one letter from A to J, and otherwise only brackets or punctuation."""
    return _LETTER_ALONE.fullmatch(normalise(answer)) is not None


def choice_letters(answer: str) -> frozenset[str] | None:
    """The letters of an answer that lists two or more ("A, C", "(A) and (C)", "AC", "A、C").

    None for anything else.
    """
    text = re.sub(r"(?i) only$", "", _HEAD.sub("", normalise(answer))).strip(" .{}[]\\")
    if not 2 <= len(text) <= 60:
        return None
    if re.fullmatch(r"[A-J]{2,10}|[a-j]{2,10}", text):
        names = list(text.upper())
        return frozenset(names) if len(set(names)) == len(names) else None
    names = [part.strip("()[]. \"'") for part in _BETWEEN.split(text.replace(")(", ") ("))]
    if len(names) < 2 or not all(re.fullmatch("[A-Ja-j]", name) for name in names):
        return None
    return frozenset(name.upper() for name in names)


def names_letter(text: str) -> bool:
    """Whether a normalised text holds a letter that may be that of a choice."""
    return _LETTER_ANY.search(text) is not None or _LETTER_MARKED.search(text) is not None


def said_letters(text: str) -> frozenset[str] | None:
    """All letters that a sentence names, where it names two or more and is words otherwise."""
    listed = choice_letters(text)
    if listed is not None:
        return listed
    text = normalise(text)
    if re.search(
        r"(?i)\b(?:maybe|perhaps|possibly|could|might)\b|可能|[A-J] ?(?:-|to|through) ?[A-J]\b",
        text,
    ):
        return None
    found = {name for run in _LETTER_RUN.findall(text) if len(set(run)) == len(run) for name in run}
    found |= _letters_found(_LETTER_ANY, text) | _letters_found(_LETTER_MARKED, text)
    return frozenset(found) if len(found) > 1 and _PLAIN_REST.fullmatch(text) else None


def choice_letter(answer: str) -> str | None:
    """The one choice letter that an answer names, in upper case; None for none, or more than one.

    Letters have word boundaries: "a cat" names no option, and neither does "Bad". Two different
    letters are a hedge. Whether the answer denies the letter is not asked here.

    "B"  "(b)"  "B."  "B. the red cube"  "The answer is (B)"  "option b"  "B is closer"   -> B
    "a red cube"  "A cube"  "(A) or (B)"  "cab"                                           -> None
    """
    text = normalise(answer)
    if len(text) > MAX_ANSWER_CHARS:
        return None
    text = _SEE.sub("", text)
    alone = _LETTER_ALONE.fullmatch(text)
    if alone:
        return _letter(alone)

    # "(B)" and "B." are meant as letters wherever they stand
    marked = _letters_found(_LETTER_MARKED, text)
    if len(marked) > 1:
        return None
    first = _LETTER_FIRST.fullmatch(text)
    if first:
        # "B. No, A." names two
        beside = marked | _letters_found(_LETTER_ANY, first.group(4))
        return _letter(first) if beside <= {_letter(first)} else None

    # letters among words
    named = marked | _letters_found(_LETTER_LONE, text) | _letters_found(_LETTER_HAN, text)
    named |= _letters_found(_LETTER_ITEM, text) | _letters_found(_LETTER_PICTURED, text)
    named |= _letters_found(_LETTER_SAID, text) | _letters_found(_LETTER_OPTION, text)
    if len(named) == 1 and not re.search(
        r"[\d=<>\\^+*]", text.replace(first.group(4) if first else "", "")
    ):
        # another letter somewhere makes it doubtful
        return named.pop() if _letters_found(_LETTER_ANY, text) <= named else None
    last = _LETTER_SAID_LAST.search(text)
    if last and last.end() == len(text) and not named:
        return _letter(last)
    return None


def marked_letters(text: str) -> frozenset[str]:
    """The letters of a text that brackets, a stop or a word before them make letters of choices."""
    found = _letters_found(_LETTER_MARKED, text) | _letters_found(_LETTER_OPTION, text)
    found |= {match.group(1) for match in re.finditer(r"\b(?:which|that) is ([A-J])$", text)}
    return frozenset(found | _letters_found(_LETTER_HAN, text))


def without_letter(text: str, letter: str) -> str:
    """What a text says beside a letter: the text of its choice, or an explanation."""
    text = normalise(text)
    first = _LETTER_FIRST.fullmatch(text)
    if first and _letter(first) == letter:
        return first.group(4).strip()
    mark = rf"[(\[]?(?<![A-Za-z]){letter}(?![A-Za-z])[)\]]?"
    return re.sub(rf"(?:\s*[,:-])?\s*{mark}|{mark}\s*[,:-]?", " ", text, count=1, flags=re.I).strip(
        " ,:=→"
    )


def _letters_found(pattern: re.Pattern[str], text: str) -> set[str]:
    return {_letter(match) for match in pattern.finditer(text)}


def _letter(match: re.Match[str]) -> str:
    """The letter that a pattern found, in upper case; each alternative has a group for it."""
    return next(filter(None, match.groups())).upper()


_OFFERED = re.compile(r"(?:^|(?<=[\s,;?:。？]))(?:\(([A-J])\)|([A-J])[.):．](?=\s?\S))\s*")
MAX_QUESTION_CHARS = 4000


@functools.lru_cache(maxsize=4096)
def offered_by(question: str) -> tuple[tuple[str, str], ...]:
    """(letter, text) of the options that a question lists itself: "(A) red (B) blue"; else ()."""
    if len(question) > MAX_QUESTION_CHARS:
        return ()
    marks = [m for m in _OFFERED.finditer(question) if m.group(1)]
    marks = marks if len(marks) > 1 else [m for m in _OFFERED.finditer(question) if m.group(2)]
    found = []
    for at, mark in enumerate(marks):
        end = marks[at + 1].start() if at + 1 < len(marks) else len(question)
        text = question[mark.end() : end].strip()
        if at + 1 == len(marks):  # a last sentence that asks for the letter is no part of it
            text = re.split(r"\n|(?<=[.?!])\s", text)[0]
        text = re.sub(r"[\s,;?.]*(?:(?<=[\s,;])(?:or|and))?$", "", text)
        found.append((mark.group(1) or mark.group(2), text))
    letters = [letter for letter, _ in found]
    is_list = len(found) > 1 and letters == [chr(ord("A") + i) for i in range(len(found))]
    return tuple(found) if is_list and all(text for _, text in found) else ()


def choice_texts(metadata: Mapping[str, Any], question: str = "") -> dict[str, str]:
    """{letter: normalised text} of the options in a row's `choices` or `options` column.

    Without such a column, of those that the question lists; {} without either.
    """
    choices = metadata.get("choices", metadata.get("options"))
    if isinstance(choices, Mapping):
        pairs = [(str(k).strip().upper(), str(v)) for k, v in choices.items()]
    elif isinstance(choices, list | tuple):
        pairs = [(chr(ord("A") + i), str(v)) for i, v in enumerate(choices[:10])]
    else:
        pairs = list(offered_by(question))
    texts = {}
    for letter, text in pairs:
        if len(letter) == 1 and "A" <= letter <= "J" and len(text) <= MAX_ANSWER_CHARS:
            text = re.sub(rf"^\s*(?:[(\[]{letter}[)\]]|{letter}[.):])\s*", "", text)
            texts[letter] = normalise(text)
    return texts
