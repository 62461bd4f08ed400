"""Decontamination: rows that another set, such as a benchmark, holds too.

    question   it shares a run of n words with a question of the other set, or is the same
    picture    a picture of it looks like one of the other set
    both       question and picture of one and the same row: the row itself

Runs of 13 words are what GPT-3 (arXiv:2005.14165, appendix C) was cleaned by. Questions of picture
sets are often equal ("What is shown?"): with pictures, only "both" says that the row is the same.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

from jaxr1.inspection.hashes import Hashes
from jaxr1.inspection.looked import Looked

NGRAM = 13

Kind = Literal["question", "picture", "both"]


@dataclasses.dataclass(frozen=True)
class Overlap:
    """A row and what it has in common with another one.

    Attributes:
      row: its number, from 0.
      source: its file and number.
      kind: what is in common.
      other: source of the other row.
      is_same: whether it is to be taken for the same row.
    """

    row: int
    source: str
    kind: Kind
    other: str
    is_same: bool


def grams(words: Sequence[str], n: int) -> set[tuple[str, ...]]:
    """The runs of n words; a shorter text is one run, whole."""
    if len(words) <= n:
        return {tuple(words)} if words else set()
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def overlaps(rows: Sequence[Looked], others: Sequence[Looked], n: int = NGRAM) -> list[Overlap]:
    """Rows that have a question, a picture or both in common with another set.

    Args:
      rows: of the set that is to be trained on.
      others: of the set that it is not to hold.
      n: words of a run.

    Returns:
      One for each row that has something in common, with what says most.
    """
    by_gram: dict[tuple[str, ...], list[int]] = defaultdict(list)
    by_exact: dict[str, list[int]] = defaultdict(list)
    for i, other in enumerate(others):
        for gram in grams(other.words, n):
            by_gram[gram].append(i)
        for name in other.exact:
            by_exact[name].append(i)
    nearest = Hashes({i: other.alike for i, other in enumerate(others)})

    found = []
    for number, row in enumerate(rows):
        asked, seen = set[int](), set[int]()
        for gram in grams(row.words, n):
            asked.update(by_gram.get(gram, ()))
        for name in row.exact:
            seen.update(by_exact.get(name, ()))
        for one in row.alike:
            seen.update(nearest.near(one))
        kinds: list[tuple[Kind, set[int]]] = [
            ("both", asked & seen),
            ("picture", seen),
            ("question", asked),
        ]
        for kind, matches in kinds:
            if matches:
                first = others[min(matches)]
                has_pictures = bool(row.exact or first.exact)
                is_same = kind == "both" or (kind == "question" and not has_pictures)
                found.append(Overlap(number, row.source, kind, first.source, is_same))
                break
    return found


def twice(rows: Sequence[Looked]) -> tuple[list[list[str]], list[list[str]]]:
    """(rows with equal question and pictures, rows with an equal picture), by their sources."""
    by_prompt: dict[tuple, list[str]] = defaultdict(list)
    by_picture: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        by_prompt[(row.words, row.exact)].append(row.source)
        for name in {*row.exact}:
            by_picture[name].append(row.source)
    several = lambda groups: [sources for sources in groups.values() if len(sources) > 1]
    return several(by_prompt), several(by_picture)
