"""Kinds of answers: how a text is read as one, and when two readings are the same.

A new kind is a row of `KINDS`, with a file of its own where it takes more than a few lines.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from jaxr1.rewards.reading.counted import forbids_number, said_quantity, total_of
from jaxr1.rewards.reading.dates import read_date, read_time, said_date, said_time, same_time
from jaxr1.rewards.reading.equations import (
    read_equation,
    read_expression,
    read_own_equation,
    read_own_expression,
    same_equation,
)
from jaxr1.rewards.reading.formulas import read_formula, same_formula
from jaxr1.rewards.reading.letters import (
    choice_letter,
    choice_letters,
    is_choice_letter,
    said_letters,
)
from jaxr1.rewards.reading.numerals import ORDINALS
from jaxr1.rewards.reading.quantities import (
    read_compound,
    read_quantity,
    same_compound,
    same_quantity,
)
from jaxr1.rewards.reading.sentences import core
from jaxr1.rewards.reading.structures import (
    Interval,
    Matrix,
    Piece,
    parts_of,
    read_assignments,
    read_interval,
    read_list,
    read_matrix,
    read_ratio,
    read_sequence,
    read_tuple,
    without_name,
)
from jaxr1.rewards.reading.words import (
    PLAIN,
    canonical,
    read_phrase,
    read_yes_no,
    says_phrase,
    says_yes_no,
)


@dataclass(frozen=True)
class Kind:
    """A kind of answers.

    Attributes:
      name: for messages.
      read: the value that all of a normalised reference is; None where it is none of this kind.
      says: whether a claim, often a sentence, states the value of a reference, and no other.
      has_or: whether an "or" may join parts of one answer, and an "either" begin it.
      denies: whether "no" and "not" are words of its own.
      own: the words of a value that deny nothing: a reference may itself be "not parallel".
    """

    name: str
    read: Callable[[str], Any]
    says: Callable[[Any, str], bool]
    has_or: bool = False
    denies: bool = False
    own: Callable[[Any], tuple[str, ...]] = lambda _: ()


def _compared(
    read: Callable[[str], Any], same: Callable[[Any, Any], bool]
) -> Callable[[Any, str], bool]:
    """`says` of a kind whose claims are read into a value as well."""

    def says(gold: Any, text: str) -> bool:
        answer = read(text)
        return answer is not None and bool(same(gold, answer))

    return says


# --- scalars ------------------------------------------------------------------------------------
def same_scalar(gold: str, answer: str) -> bool:
    """Whether two parts of a structure are the same quantity, formula or phrase."""
    if gold == answer:
        return True
    scalars: tuple[tuple[Callable[[str], Any], Callable[[Any, Any], bool]], ...] = (
        (read_quantity, same_quantity),
        (read_formula, same_formula),
    )
    for read, same in scalars:
        one, other = read(gold), read(answer)
        if one is not None and other is not None:
            return same(one, other)
        if one is not None or other is not None:
            return False
    return bool(PLAIN.fullmatch(gold)) and canonical(gold) == canonical(answer)


def _same_parts(gold: tuple[str, ...], answer: tuple[str, ...]) -> bool:
    return len(gold) == len(answer) and all(map(same_scalar, gold, answer))


def _same_members(gold: tuple[str, ...], answer: tuple[str, ...]) -> bool:
    """Whether two lists have the same members, in any order and any number of times."""
    return all(any(same_scalar(one, other) for other in answer) for one in gold) and all(
        any(same_scalar(one, other) for one in gold) for other in answer
    )


# --- letters ------------------------------------------------------------------------------------
def _read_letter(text: str) -> frozenset[str] | None:
    if is_choice_letter(text) and text.strip("()[]*. ").isupper():
        return frozenset(text.strip("()[]*. "))
    first = re.match(r"\(([A-J])\)\s|([A-J])[.:)]\s", text)
    return frozenset(filter(None, first.groups())) if first else None


def _read_letters(text: str) -> frozenset[str] | None:
    return choice_letters(text) if text != text.lower() else None


def _said_letter(text: str) -> frozenset[str] | None:
    letter = choice_letter(text)
    return None if letter is None else frozenset(letter)


# --- quantities ---------------------------------------------------------------------------------
# "9 chairs (3 rows of 3)", "9 chairs in 3 rows"
_ARRANGED = re.compile(
    r"(?i)\s+(?:\((?=[^()]*\d[^()]*[a-z][^()]*\d)(?![^()]*\b(?:or|not)\b)[^()]*\)$|in \d+ [a-z]+s$)"
)


def _said_quantity(text: str) -> Any:
    text = _ARRANGED.sub("", text)
    found = read_quantity(text) or said_quantity(text) or total_of(text)
    if found is not None:
        return found
    before, inner = core(text)
    if not before or forbids_number(before) or not re.search(r"[\d\\]", inner):
        return None
    return read_quantity(inner)


def _read_ordinal(text: str) -> int | None:
    """3 for "third"."""
    word = text.lower()
    return ORDINALS.index(word) + 1 if word in ORDINALS else None


def _says_ordinal(gold: int, text: str) -> bool:
    """Whether a text says "third", or "3rd", of which normalising leaves the number."""
    if says_phrase(ORDINALS[gold - 1], text):
        return True
    found = _said_quantity(re.sub(r"(?i)^the |\s+(?:one|place|row|column|floor)$", "", text))
    return found is not None and found == replace(found, value=gold, unit=None, noun="", decimals=0)


# --- structures ---------------------------------------------------------------------------------
def _same_interval(gold: Interval, answer: Interval) -> bool:
    if len(gold) != len(answer):
        return False
    return all(any(_same_piece(one, other) for other in answer) for one in gold)


def _same_piece(one: Piece, other: Piece) -> bool:
    return (
        (one.has_low, one.has_high) == (other.has_low, other.has_high)
        and bool(one.low) == bool(other.low)
        and bool(one.high) == bool(other.high)
        and (not one.low or same_scalar(one.low, other.low))
        and (not one.high or same_scalar(one.high, other.high))
    )


def _read_matrix(text: str) -> Matrix | None:
    found = read_matrix(text)
    if found is not None:
        return found
    column = read_tuple(text)
    return None if column is None else Matrix(tuple((cell,) for cell in column))


def _read_tuple(text: str) -> tuple[str, ...] | None:
    """A tuple, or a matrix of one column or row."""
    found = read_tuple(text)
    if found is None and "{" not in text and "(" not in text:  # "1, 2"
        members = parts_of(text, re.compile(r"\s*,\s*"))
        return tuple(members) if len(members) > 1 and all(members) else None
    if found is None and (matrix := read_matrix(text)) and not matrix.factor:
        flat = matrix.rows[0] if len(matrix.rows) == 1 else tuple(row[0] for row in matrix.rows)
        return flat if len(flat) == sum(map(len, matrix.rows)) else None
    return found


_IDENTITY = re.compile(
    r"(?i)(?P<factor>[^()\[\]]{0,20}?)\s*(?:\\cdot|\*)?\s*"
    r"(?:(?-i:I)(?:_\{?(?P<size>\d)\}?)?|(?:the )?identity matrix)"
)


def _says_matrix(gold: Matrix, text: str) -> bool:
    """Whether a text states a matrix, which may be a multiple of the identity: "2I"."""
    if _within(_read_matrix, _same_matrix)(gold, text):
        return True
    match, size = _IDENTITY.fullmatch(without_name(text)), len(gold.rows)
    if match is None or int(match["size"] or size) != size:
        return False
    rows = tuple(tuple(str(int(i == j)) for j in range(size)) for i in range(size))
    return _same_matrix(gold, Matrix(rows, match["factor"].strip()))


def _same_matrix(gold: Matrix, answer: Matrix) -> bool:
    if [len(row) for row in gold.rows] != [len(row) for row in answer.rows]:
        return False
    return all(
        _same_parts(_scaled(one, gold.factor), _scaled(other, answer.factor))
        for one, other in zip(gold.rows, answer.rows, strict=True)
    )


def _scaled(row: tuple[str, ...], factor: str) -> tuple[str, ...]:
    if not factor:
        return row
    factor = f"{factor}1" if factor in "+-" else factor
    return tuple(f"({factor})*({cell})" for cell in row)


_BETWEEN = re.compile(r"(?i)\bbetween\s*$")
_VERB = re.compile(r"(?:\b(?:is|are|equals?|as|at|be)\b|:)\s+")


def _within(
    read: Callable[[str], Any], same: Callable[[Any, Any], bool]
) -> Callable[[Any, str], bool]:
    """`says` of a kind that a sentence holds whole: the text without the words around it."""

    def says(gold: Any, text: str) -> bool:
        before, inner = core(text)
        inner = text if _BETWEEN.search(before) else inner
        return any(
            answer is not None and bool(same(gold, answer))
            for answer in map(read, dict.fromkeys((text, inner, _VERB.split(text)[-1])))
        )

    return says


def _says_assignments(gold: tuple[tuple[str, str], ...], text: str) -> bool:
    """Whether a text gives every variable its value, by name or as a tuple in their order."""
    for said in (text, core(text)[1]):
        answer = read_assignments(said)
        if answer is not None:
            return [name for name, _ in gold] == [name for name, _ in answer] and _same_parts(
                tuple(value for _, value in gold), tuple(value for _, value in answer)
            )
        if (values := read_tuple(said)) is not None:
            return _same_parts(tuple(value for _, value in gold), values)
    return False


_INFINITY = re.compile(
    r"(?i)(\+|-|positive |plus |negative |minus )?\s*(?:\\infty|infinity|无穷大?)"
)


def _read_infinity(text: str) -> str | None:
    """ "+" or "-" for infinity."""
    match = _INFINITY.fullmatch(text)
    if match is None:
        return None
    return "-" if (match[1] or "").lower().strip() in ("-", "negative", "minus") else "+"


_EMPTY = re.compile(
    r"(?i)(?:(?:there (?:is|are) |(?:it|(?:the|this) (?:equation|system|inequality|problem)) has )?"
    r"no (?:real |integer |such |valid )?"
    r"(?:solutions?|roots?|numbers?|values?)(?: exists?| of x)?"
    r"|(?:the )?empty set|(?:there (?:is|are) )?none(?: of (?:them|these|those|the \w+))?|无解|空集"
    r"|没有解|(?:该|此|这个)?(?:方程组?|不等式组?)(?:无解|没有解)"
    r"|(?:\\?\w\s*(?:\\in|=)\s*)?(?:\\emptyset|\\varnothing|∅|Ø|\\?\{\s*\\?\}))"
)


def _read_empty(text: str) -> bool | None:
    """True for "no solution", in words or as the empty set."""
    return True if _EMPTY.fullmatch(text) else None


# --- the table ---------------------------------------------------------------------------------
LETTER = Kind("letter", _read_letter, _compared(_said_letter, frozenset.__eq__))
LETTERS = Kind("letters", _read_letters, _compared(said_letters, frozenset.__eq__))
DATE = Kind(
    "date", read_date, _compared(lambda text: read_date(text) or said_date(text), tuple.__eq__)
)
TIME = Kind(
    "time", read_time, _compared(lambda text: read_time(text) or said_time(text), same_time)
)
QUANTITY = Kind("quantity", read_quantity, _compared(_said_quantity, same_quantity))
COMPOUND = Kind("compound", read_compound, _within(read_compound, same_compound))
MATRIX = Kind("matrix", read_matrix, _says_matrix)
INTERVAL = Kind(
    "interval",
    read_interval,
    _within(read_interval, _same_interval),
    has_or=True,
)
TUPLE = Kind("tuple", read_tuple, _within(_read_tuple, _same_parts))
SEQUENCE = Kind("sequence", read_sequence, _within(read_sequence, _same_parts))
LIST = Kind(
    "list",
    read_list,
    _within(read_list, _same_members),
    has_or=True,
)
RATIO = Kind("ratio", read_ratio, _within(read_ratio, _same_parts))
EQUATION = Kind("equation", read_own_equation, _within(read_equation, same_equation))
EXPRESSION = Kind("expression", read_own_expression, _within(read_expression, same_formula))
YES_NO = Kind("yes or no", read_yes_no, says_yes_no, denies=True)
ASSIGNMENTS = Kind("assignments", read_assignments, _says_assignments)
INFINITE = Kind("infinity", _read_infinity, _within(_read_infinity, str.__eq__))
EMPTY = Kind("no solution", _read_empty, lambda _, text: _read_empty(text) is not None, denies=True)
ORDINAL = Kind("ordinal", _read_ordinal, _says_ordinal)
PHRASE = Kind("phrase", read_phrase, says_phrase, own=lambda phrase: (phrase,))

# In the order in which a reference is read. Where the first kinds of a row read it, those of the
# second are no readings of it: "12:00" is no ratio, and "1,234" no list.
KINDS = (
    EMPTY,
    INFINITE,
    ASSIGNMENTS,
    LETTER,
    LETTERS,
    DATE,
    TIME,
    QUANTITY,
    COMPOUND,
    MATRIX,
    INTERVAL,
    TUPLE,
    SEQUENCE,
    LIST,
    RATIO,
    EQUATION,
    EXPRESSION,
    YES_NO,
    ORDINAL,
    PHRASE,
)
_SHADOWS = (
    ((LETTER, LETTERS), (QUANTITY, LIST, EXPRESSION, INTERVAL, PHRASE)),
    ((EMPTY, INFINITE, ASSIGNMENTS), (LIST, TUPLE, EXPRESSION, PHRASE)),
    ((DATE, TIME), (QUANTITY, LIST, RATIO, EXPRESSION, PHRASE)),
    ((COMPOUND,), (LIST, PHRASE)),
    ((QUANTITY,), (TUPLE, LIST, RATIO, EQUATION, EXPRESSION, PHRASE)),
    (
        (MATRIX, INTERVAL, TUPLE, SEQUENCE, LIST, RATIO, EQUATION, EXPRESSION, YES_NO, ORDINAL),
        (PHRASE,),
    ),
)
Reading = tuple[Kind, Any]


@functools.lru_cache(maxsize=4096)
def readings(text: str) -> tuple[Reading, ...]:
    """Every kind that a normalised reference is, with its value; a phrase where it is no other."""
    found = {kind.name: (kind, value) for kind in KINDS if (value := kind.read(text)) is not None}
    for above, below in _SHADOWS:
        if any(kind.name in found for kind in above):
            for kind in below:
                found.pop(kind.name, None)
    return tuple(found.values())
