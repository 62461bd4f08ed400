"""What a completion states as its answer, for rewards that read more than numbers and letters."""

from __future__ import annotations

import json
import re
from typing import Any

from jaxr1.rewards.reading.answers import extract_answer
from jaxr1.rewards.types import Completion

MAX_CHARS = 20_000  # of an answer that is looked at
MAX_STARTS = 50  # of places where a JSON value may begin
_MARKS = ("<answer>", "</answer>", "\\boxed")


def stated(completion: Completion) -> str | None:
    """The answer block (it may span lines), else the last box, else all that was not thought.

    None of a completion that opens a block and does not close it, and of one that marks no answer
    and was cut at the length limit: it did not come to an end.
    """
    text = completion.text
    if (answer := extract_answer(text)) is not None:
        return answer[:MAX_CHARS]
    if completion.finish_reason == "length" or any(mark in text for mark in _MARKS):
        return None
    return text.rpartition("</think>")[2].strip()[:MAX_CHARS]


def plain(text: str) -> str:
    """A text in lower case, without outer punctuation, its runs of whitespace one space."""
    return " ".join(text.casefold().split()).strip(" .,;:!?\"'`*()[]{}")


def json_in(text: str) -> Any:
    """The object or list that a text holds, alone, in a ```json block or among words; else None."""
    decoder = json.JSONDecoder()
    starts = [match.start() for match in re.finditer(r"[\[{]", text[:MAX_CHARS])]
    for start in starts[:MAX_STARTS]:
        try:
            return decoder.raw_decode(text, start)[0]
        except (ValueError, RecursionError):
            continue
    return None
