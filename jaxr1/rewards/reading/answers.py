"""Answers: finding what a completion finally states.

the first whole <answer> block behind </think> (else the first one)    its last box, else all
else the last balanced \\boxed{}                                        behind </think> first
else, of a text that marks nothing                                      its last line
"""

from __future__ import annotations

import re
from dataclasses import dataclass

ANSWER_OPEN, ANSWER_CLOSE, THINK_CLOSE = "<answer>", "</answer>", "</think>"
MAX_ANSWER_CHARS = 2000  # beyond this an answer is an essay: only equal strings are equal
_BOX = re.compile(r"\\(?:boxed|fbox)\s{0,8}\{")
_BRACES = re.compile(r"\\(?:boxed|fbox)\s{0,8}\{|\\[{}]|[{}]")
# Between two boxes of one statement: words that make the first one a draft, or a term.
_DRAFT = re.compile(
    r"(?i)[.!?]\s|\b(?:no|not|wait|but|actually|instead|then|so|therefore|thus|hence"
    r"|corrected|correction|sum|total|gives?|which is)\b|^[\s$]*[=+*/-]|\w.*\n|\n.*\w"
)
_DENIED = re.compile(r"(?i)[\s$,;(]*(?:and |but )?(?:not|rather than|instead of)[\s$]*$")
_NOT_THIS = re.compile(r"(?i)(?:\bnot|n't)[\s$]*$")
# What stands between the boxes of a list: nothing that makes one of them the answer.
_JOINT = re.compile(r"[\s$,;、]*(?:and|&|和)?[\s$]*(?:[A-Za-z]\s*=)?[\s$]*")
_LEFT_OPEN = re.compile(r"(?i)\b(?:or|either|maybe)\b|或|还是")
_ONLY_MARKS = re.compile(r"[\s$`*_\\\[\]()}>.-]*|</?\w+>")


@dataclass(frozen=True)
class Found:
    """What a completion states.

    Attributes:
      text: the answer.
      listed: all boxes of the final statement, where it has several; they may be a list together.
      closing: whether it is the last line of a text that marks no answer.
    """

    text: str
    listed: str | None = None
    closing: bool = False


def extract_answer(text: str, *, tail: bool = False) -> str | None:
    """The answer that a completion states, as drawn at the top of this file; None without one.

    An answer block or box that is never closed is no answer, whatever it holds.

    Args:
      text: a whole completion.
      tail: read the last line of a text that holds neither an answer tag nor a box.
    """
    found = find_answer(text, tail=tail)
    return None if found is None else found.text


def find_answer(text: str, *, tail: bool = False) -> Found | None:
    """As `extract_answer`, with what else is known of the answer."""
    thought = text.find(THINK_CLOSE)
    block = _first_block(text, thought) if thought >= 0 else None
    if block is None:
        block = _first_block(text, 0)
    if block is not None:
        if _BOX.search(block):
            return _boxed(block)
        return Found(block.strip())
    after = text[max(thought, 0) :]
    if ANSWER_OPEN in after:  # opened and never closed: what follows is cut off
        return None
    if _BOX.search(after):
        return _boxed(after)
    if _BOX.search(text):
        return _boxed(text)
    if not tail or marks_answer(text):
        return None
    line = closing_line(text)
    return Found(line, closing=True) if line else None


def marks_answer(text: str) -> bool:
    """Whether a completion holds an answer tag or a box, be it closed or not.

    Only these are read then: a model that has learned the form gains nothing by what it says
    outside.
    """
    return any(mark in text for mark in (ANSWER_OPEN, ANSWER_CLOSE, "\\boxed", "\\fbox"))


def closing_line(text: str) -> str:
    """The last line of a completion that holds more than marks: often a sentence."""
    text = text.rpartition(THINK_CLOSE)[2].rstrip()[-MAX_ANSWER_CHARS:]
    lines = text.split("\n")
    for last in range(len(lines) - 1, -1, -1):
        if not _ONLY_MARKS.fullmatch(lines[last]):
            break
    else:
        return ""
    # the lines of an environment, such as the rows of a matrix, are one
    first = last
    if "\\end{" in lines[last]:
        while first > 0 and "\\begin{" not in lines[first]:
            first -= 1
    return "\n".join(lines[first : last + 1]).strip()


def _first_block(text: str, start: int) -> str | None:
    opened = text.find(ANSWER_OPEN, start)
    if opened < 0:
        return None
    closed = text.find(ANSWER_CLOSE, opened)
    return None if closed < 0 else text[opened + len(ANSWER_OPEN) : closed]


# --- boxes --------------------------------------------------------------------------------------
def boxes(text: str) -> list[tuple[int, int, str]]:
    """(start, end, content) of every outermost box whose braces balance, in linear time."""
    found: list[tuple[int, int, str]] = []
    open_braces: list[tuple[int, int] | None] = []  # a box and its content; None: another brace
    for match in _BRACES.finditer(text):
        token = match.group()
        if token in ("\\{", "\\}"):
            continue
        if token != "}":
            open_braces.append(None if token == "{" else (match.start(), match.end()))
        elif open_braces:
            box = open_braces.pop()
            if box is not None:
                while found and found[-1][0] > box[0]:  # boxes inside this one
                    found.pop()
                found.append((box[0], match.end(), text[box[1] : match.start()]))
    return found


def _boxed(text: str) -> Found | None:
    """The last box, and all those of its statement."""
    found = boxes(text)
    if not found:
        return None
    while len(found) > 1 and _DENIED.fullmatch(text[found[-2][1] : found[-1][0]]):
        found.pop()  # "\\boxed{6}, not \\boxed{5}"
    last = found[-1][2].strip()
    joined, start, is_open, is_list = [last], found[-1][0], False, True
    if _NOT_THIS.search(text[max(start - 20, 0) : start]):
        return Found(f"not {last}")
    for begin, end, content in reversed(found[:-1]):
        between = text[end:start]
        if len(between) > 80 or _DRAFT.search(between):
            break
        is_open = is_open or bool(_LEFT_OPEN.search(between))
        is_list = is_list and bool(_JOINT.fullmatch(between))
        joined.insert(0, content.strip())
        start = begin
    if len(set(joined)) == 1:
        return Found(last)
    if is_open:
        return Found(" or ".join(joined), " or ".join(joined))
    listed = ", ".join(joined)
    return Found(listed if is_list else last, listed)
