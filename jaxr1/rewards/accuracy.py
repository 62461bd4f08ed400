"""The accuracy reward: read the answer of a completion and compare it with the reference.

    completion -> first answer block, else last boxes, else last line            answers.py
               -> compared with the reference, by the reference's own kind       matching.py

Cheap comparisons come first, and most answers never reach sympy.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Literal

from jaxr1.rewards.reading.algebra import looks_like_math, math_problem, parsed_math
from jaxr1.rewards.reading.answers import (
    MAX_ANSWER_CHARS,
    Found,
    closing_line,
    find_answer,
    marks_answer,
)
from jaxr1.rewards.reading.kinds import ASSIGNMENTS, LETTERS, LIST, PHRASE, TUPLE, readings
from jaxr1.rewards.reading.letters import is_choice_letter
from jaxr1.rewards.reading.matching import answers_match, informs, reference_text, repeats_question
from jaxr1.rewards.reading.sentences import denies, sentences
from jaxr1.rewards.reading.writing import normalise
from jaxr1.rewards.types import Completion, Example


def accuracy_reward(
    completion: Completion,
    example: Example,
    *,
    unparsable_gold: Literal["none", "one"] = "none",
    tail: bool = True,
) -> float | None:
    """1.0 if the completion's answer equals the reference, 0.0 if it does not or states none.

    Args:
      completion: text with the template's prefix, and the finish reason.
      example: `answer` is the reference; `metadata["choices"]`, where present, names the options.
      unparsable_gold: what to return where the reference itself cannot be parsed: "none" leaves the
        sample to the other rewards; "one" gives 1.0, as LMM-R1 and MM-Eureka do. By default such
        rows are never drawn (`Rl.drop_unparsable`).
      tail: read completions that hold neither an answer tag nor a box too: what their last line
        states. Not applied to completions that were cut at the length limit.

    Raises:
      ValueError: unknown `unparsable_gold`.
    """
    if unparsable_gold not in ("none", "one"):
        raise ValueError(
            f"accuracy reward: unparsable_gold must be 'none' or 'one', got {unparsable_gold!r}"
        )
    gold = example.answer
    if gold is None or parse_answer_problem(gold) is not None:
        return 1.0 if unparsable_gold == "one" and gold is not None else None
    found = _found(completion, tail)
    if found is None or not found.text:
        return 0.0
    if repeats_question(example.question, found.text, gold):
        return 0.0
    return float(
        any(
            answers_match(gold, text, metadata=example.metadata, question=example.question)
            for text in _candidates(found, gold)
        )
    )


def _found(completion: Completion, tail: bool) -> Found | None:
    return find_answer(completion.text, tail=tail and completion.finish_reason != "length")


def _candidates(found: Found, gold: str) -> Iterator[str]:
    """The texts that may be the answer: one, but for lists in several boxes and for last lines."""
    yield found.text
    if found.listed is not None and any(
        kind in (LIST, LETTERS, TUPLE, ASSIGNMENTS) for kind, _ in readings(reference_text(gold))
    ):
        yield found.listed
    if not found.closing:
        return
    # of a last line that also reasons, the last sentence, or the one before that says no more
    said = sentences(normalise(found.text))
    if len(said) < 2 or _CONTRADICTS.match(said[-1]):
        return
    yield said[-1]
    if not informs(said[-1]) and not denies(said[-1]) and _ANNOUNCES.search(said[-2]):
        yield said[-2]


_CONTRADICTS = re.compile(r"(?i)no,? \S+$")  # "4. No, 5." settles nothing
_ANNOUNCES = re.compile(r"(?i)\banswer\b|\bresult\b|^(?:so|therefore|thus|hence)\b|答案|所以|因此")


def accuracy_reading(
    completion: Completion,
    example: Example,
    *,
    unparsable_gold: Literal["none", "one"] = "none",
    tail: bool = True,
) -> str:
    """What the accuracy reward reads in a completion, for a message; arguments as of the reward."""
    text, wanted = completion.text, f"(reference {example.answer!r:.60})"
    found = _found(completion, tail)
    if found is not None and found.text:
        where = "the last line " if found.closing else ""
        return f"reads {where}{found.text!r:.60} {wanted}"
    if marks_answer(text):
        return f"finds answer tags or a box, but no whole one with an answer in it {wanted}"
    if completion.finish_reason == "length":
        why = "the response was cut"
    else:
        why = "tail is off" if closing_line(text) else "the response is empty"
    return f"finds no answer tags and no \\boxed{{}}, and reads nothing else ({why}) {wanted}"


# --- references ---------------------------------------------------------------------------------
@functools.lru_cache(maxsize=4096)
def parse_answer_problem(answer: str | None) -> str | None:
    """Why a reference answer cannot be graded against; None if it can.

    Used when data is loaded or drawn, in the main process: bounded, and anything a computer-algebra
    system could hang on is reported without being parsed. What some kind of answers reads never
    gets that far.
    """
    problem, text = _plain_problem(answer)
    # a bare string is math-verify's fallback when nothing parsed: it would only ever equal itself
    if text and all(isinstance(c, str) for c in parsed_math(text)):
        return "math-verify cannot parse it"
    return problem


def takes_algebra(answer: str | None) -> bool:
    """Whether it takes math-verify, and so milliseconds, to tell if an answer has a problem."""
    return bool(_plain_problem(answer)[1])


def quoted_problem(answer: str | None) -> str | None:
    """As `parse_answer_problem`, with the answer before the reason."""
    problem = parse_answer_problem(answer)
    return None if problem is None else f"answer {answer!r:.80}: {problem}"


def _plain_problem(answer: str | None) -> tuple[str | None, str]:
    """What is wrong with an answer by its text alone, and the text that has yet to be parsed.

    At most one of the two is there; without either the answer is known to be sound.
    """
    if answer is None:
        return "there is no reference answer", ""
    if not isinstance(answer, str):
        return f"it is a {type(answer).__name__}, not a string", ""
    if len(answer) > MAX_ANSWER_CHARS:
        many = f"{len(answer)} characters are too many for an answer (at most {MAX_ANSWER_CHARS})"
        return many, ""
    text = reference_text(answer)
    if not any(c.isalnum() for c in text):
        empty = not answer.strip()
        return ("it is empty" if empty else "it holds neither a letter nor a digit"), ""
    if is_choice_letter(text) or any(kind is not PHRASE for kind, _ in readings(text)):
        return None, ""
    if "\\" not in text and "^" not in text:
        return None, ""  # words and simple expressions can at least be compared as strings
    problem = math_problem(text)
    if problem:
        return f"it cannot be compared safely: it has {problem}", ""
    return None, text if looks_like_math(text) else ""
