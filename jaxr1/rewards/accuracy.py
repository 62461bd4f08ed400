"""The accuracy reward: extract the answer from a completion and compare it with the reference.

    completion -> first answer block, else last balanced \\boxed{}, else closing line or tail
               -> normalise -> same string? -> choice letters -> units -> numbers -> math-verify

Cheap comparisons come first and are final where they apply, so that most answers never reach sympy.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from jaxr1.rewards.algebra import (
    looks_like_math,
    math_equal,
    math_problem,
    may_be_math_equal,
    parsed_math,
)
from jaxr1.rewards.answers import (
    MAX_ANSWER_CHARS,
    closing_line,
    extract_answer,
    marks_answer,
    says_word,
    statement,
)
from jaxr1.rewards.letters import choice_letter, choice_letters, choice_texts, is_choice_letter
from jaxr1.rewards.numbers import (
    has_operation,
    lone_number,
    numbers_equal,
    parse_number,
    split_unit,
)
from jaxr1.rewards.types import Completion, Example

Named = TypeVar("Named")


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
      tail: read completions that hold neither an answer tag nor a box too: their last line, where
        it says the reference and nothing against it, else their last number or lone choice letter.
        Not applied to completions that were cut at the length limit.

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
    tail = tail and completion.finish_reason != "length"
    if tail and _closes_with(gold, completion.text, example.metadata):
        return 1.0
    answer = extract_answer(completion.text, tail=tail)
    if not answer:
        return 0.0
    return float(answers_match(gold, answer, metadata=example.metadata))


def _closes_with(gold: str, text: str, metadata: Mapping[str, Any]) -> bool:
    """Whether a completion that marks no answer says the reference in its last line.

    Without computer algebra: who only repeats "3 + 4" has not answered 7.
    """
    if marks_answer(text):
        return False
    line = closing_line(text)
    return says_word(gold, line) or answers_match(gold, line, metadata=metadata, math=False)


def accuracy_reading(
    completion: Completion,
    example: Example,
    *,
    unparsable_gold: Literal["none", "one"] = "none",
    tail: bool = True,
) -> str:
    """What the accuracy reward reads in a completion, for a message; arguments as of the reward."""
    text, wanted = completion.text, f"(reference {example.answer!r:.60})"
    tail = tail and completion.finish_reason != "length"
    if tail and example.answer and _closes_with(example.answer, text, example.metadata):
        return f"reads the last line {closing_line(text)!r:.60} {wanted}"
    if answer := extract_answer(text, tail=tail):
        return f"reads {answer!r:.60} {wanted}"
    if marks_answer(text):
        return f"finds answer tags or a box, but no whole one with an answer in it {wanted}"
    if tail:
        return f"finds no number or letter, and the last line says something else {wanted}"
    why = "the response was cut" if completion.finish_reason == "length" else "tail is off"
    return f"finds no answer tags and no \\boxed{{}}, and reads nothing else ({why}) {wanted}"


def answers_match(
    gold: str, answer: str, *, metadata: Mapping[str, Any] | None = None, math: bool = True
) -> bool:
    """Whether an extracted answer means the same as the reference.

    Never raises. With `math=False` (no computer algebra) the relation is reflexive and symmetric.

    Args:
      gold: the reference answer.
      answer: what `extract_answer` found.
      metadata: the row's other columns; a list or mapping under `choices` or `options` lets a
        choice's text stand for its letter.
      math: whether expressions go on to math-verify.
    """
    # the same string
    if gold.strip() == answer.strip():
        return True
    if len(gold) > MAX_ANSWER_CHARS or len(answer) > MAX_ANSWER_CHARS:
        return False
    gold_text, answer_text = statement(gold), statement(answer)
    if gold_text and gold_text.casefold() == answer_text.casefold():
        return True

    # choice letters
    verdict = _compare_choices(gold_text, answer_text, choice_texts(metadata or {}), math)
    if verdict is not None:
        return verdict

    # units: only different ones are decisive, a missing one is understood
    gold_text, gold_unit = split_unit(gold_text)
    answer_text, answer_unit = split_unit(answer_text)
    if gold_unit and answer_unit and gold_unit != answer_unit:
        return False

    # numbers, then whatever else mathematics can compare
    verdict = _compare_numbers(gold_text, answer_text)
    if verdict is not None:
        return verdict
    return math and may_be_math_equal(gold_text, answer_text) and math_equal(gold_text, answer_text)


def _compare_choices(gold: str, answer: str, choices: dict[str, str], math: bool) -> bool | None:
    """Whether two texts name the same choices; None where they are no names of choices."""
    if choices:
        verdict = _equal(_letter_among(gold, choices), _letter_among(answer, choices))
        if verdict is not None:
            return verdict
    if is_choice_letter(gold) or is_choice_letter(answer):
        verdict = _equal(choice_letter(gold), choice_letter(answer))
        if verdict is not None:
            return verdict
        # where the reference is an expression, a lone letter may be a variable
        if not (math and looks_like_math(gold)):
            return False
    return _equal(choice_letters(gold), choice_letters(answer))


def _equal(one: Named | None, other: Named | None) -> bool | None:
    """Whether two things are equal; None where one of them is unknown."""
    return None if one is None or other is None else one == other


def _letter_among(text: str, choices: dict[str, str]) -> str | None:
    """The letter of the choice that a text names, by its whole text or by its letter."""
    # the text first: an option may itself be the word "A" or "B"
    same = [letter for letter, choice in choices.items() if choice == text.casefold()]
    if len(same) == 1 and not is_choice_letter(text):
        return same[0]
    letter = choice_letter(text)
    return letter if letter in choices else None


def _compare_numbers(gold: str, answer: str) -> bool | None:
    """Whether two texts without their units name the same number; None where neither is one."""
    gold_number, answer_number = parse_number(gold), parse_number(answer)
    if gold_number is not None and answer_number is not None:
        return numbers_equal(gold_number, answer_number)
    if gold_number is not None and not has_operation(answer):
        said = lone_number(answer)
        return said is not None and numbers_equal(gold_number, said)
    if answer_number is not None and not has_operation(gold):
        said = lone_number(gold)
        return said is not None and numbers_equal(said, answer_number)
    return None


def needs_math_verify(gold: str, answer: str) -> bool:
    """Whether comparing these two can take math-verify, and so its slow import.

    Cheap; may say yes too often.
    """
    if len(gold) > MAX_ANSWER_CHARS or len(answer) > MAX_ANSWER_CHARS:
        return False
    gold_text, answer_text = (split_unit(statement(text))[0] for text in (gold, answer))
    if gold_text.casefold() == answer_text.casefold():
        return False
    gold_number, answer_number = parse_number(gold_text), parse_number(answer_text)
    if gold_number is not None and (answer_number is not None or not has_operation(answer_text)):
        return False
    return may_be_math_equal(gold_text, answer_text)


@functools.lru_cache(maxsize=4096)
def parse_answer_problem(answer: str | None) -> str | None:
    """Why a reference answer cannot be graded against; None if it can.

    Used when data is loaded or drawn, in the main process: bounded, and anything a computer-algebra
    system could hang on is reported without being parsed. Words, choice letters and plain numbers
    never get that far.
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
    text = statement(answer)
    if not any(c.isalnum() for c in text):
        empty = not answer.strip()
        return ("it is empty" if empty else "it holds neither a letter nor a digit"), ""
    if parse_number(text) is not None or is_choice_letter(text):
        return None, ""
    if "\\" not in text and "^" not in text:
        return None, ""  # words and simple expressions can at least be compared as strings
    problem = math_problem(text)
    if problem:
        return f"it cannot be compared safely: it has {problem}", ""
    return None, text if looks_like_math(text) else ""
