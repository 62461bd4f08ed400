"""Words that say more than their letters: what excludes what, where a city lies, forms of verbs."""

from __future__ import annotations

import re

_EXCLUSIVE = (
    "red orange yellow green blue purple pink brown black white gray grey",
    "left right",
    "up down",
    "top bottom middle",
    "north south east west northeast northwest southeast southwest",
    "square rectangle rhombus triangle circle pentagon hexagon octagon trapezoid cube sphere cone",
    "monday tuesday wednesday thursday friday saturday sunday",
    "happy sad angry afraid surprised disgusted neutral",
    "increase decrease",
    "acute obtuse",
    "open closed",
    "even odd",
    "parallel perpendicular",
    "positive negative zero",
    "true false",
    "yes no",
    "male female",
)
_SETS = {word: set(words.split()) for words in _EXCLUSIVE for word in words.split()}

# Where a city is said to be: "Tokyo, Japan" is Tokyo.
COUNTRIES = frozenset(
    (
        "argentina australia austria bangladesh belgium brazil canada chile china colombia croatia "
        "cuba denmark egypt england ethiopia finland france germany ghana greece hungary iceland "
        "india indonesia iran iraq ireland israel italy jamaica japan jordan kenya malaysia mexico "
        "morocco nepal netherlands nigeria norway pakistan peru philippines poland portugal qatar "
        "romania russia scotland serbia singapore spain sweden switzerland syria taiwan tanzania "
        "thailand turkey uganda ukraine usa uk us vietnam wales california texas florida illinois "
        "massachusetts washington nevada georgia ohio virginia arizona colorado oregon"
    ).split()
) | {"south korea", "north korea", "south africa", "new zealand", "saudi arabia", "new york"}
COUNTRIES |= {"united kingdom", "united states"}

_STEMS = (
    "increas decreas ris fall grow shrink expand contract doubl halv remain mov accelerat "
    "decelerat melt freez boil evaporat condens sink float rotat vanish disappear"
).split()
_FORM = re.compile(rf"\b({'|'.join(_STEMS)})(?:es|ed|ing|e|s)?\b")
_PREDICATE = re.compile(
    r"(?:(?:it|they|he|she|this|that|there|these|those)|(?:\w+ ){0,3}\w+) "
    r"(?=(?:is|are|was|were|does|do|did|has|have|had|will|can|cannot|would|must)\b)"
)


def excludes(one: str, other: str) -> bool:
    """Whether of two words only one can hold: "red" and "blue"."""
    return one != other and other in _SETS.get(one, ())


def contradict(one: str, other: str) -> bool:
    """Whether two sentences of the same form say what excludes each other: "It is red"."""
    left, right = (re.findall(r"\w+", sentence.lower()) for sentence in (one, other))
    return len(left) == len(right) and any(map(excludes, left, right))


def with_forms_of(word: str, text: str) -> str:
    """A text in small letters in which a verb of change has the form of a word: "decreases"."""
    wanted = _FORM.fullmatch(word)
    if wanted is None:
        return text
    return _FORM.sub(lambda m: word if m.group(1) == wanted.group(1) else m.group(), text)


def predicate(text: str) -> str:
    """What a canonical sentence says of its subject: "are parallel"; other texts as they are."""
    return text[match.end() :] if (match := _PREDICATE.match(text)) else text
