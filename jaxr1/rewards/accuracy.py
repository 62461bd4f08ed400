"""The accuracy reward: extract the answer from a completion and compare it with the reference.

    completion -> first answer block, else last balanced \\boxed{}, else (option) the tail
               -> normalise -> same string? -> choice letters -> units -> numbers -> math-verify

Cheap comparisons come first and are final where they apply, so that most answers never reach sympy.
Everything that is parsed is bounded before: nested powers and long digit strings hang a
computer-algebra system for hours.

math-verify is called with its own timeouts off: they rest on SIGALRM, which needs the main thread.
Reward functions run in worker processes that can be killed instead (`jaxr1.rewards.pool`).
"""

from __future__ import annotations

import functools
import itertools
import logging
import re
from collections.abc import Mapping
from typing import Any

from jaxr1.rewards.answers import MAX_ANSWER_CHARS, extract_answer, statement
from jaxr1.rewards.letters import choice_letter, choice_letters, choice_texts, is_choice_letter
from jaxr1.rewards.numbers import (
    MAX_DIGITS,
    MAX_EXPONENT,
    has_operation,
    lone_number,
    numbers_equal,
    parse_number,
    split_unit,
)
from jaxr1.rewards.types import Completion, Example

MAX_MATH_CHARS = 400  # what we hand to sympy
MAX_SYMBOL_EXPONENT = 100
MAX_BRACKET_EXPONENT = 12
MAX_EXPONENT_PRODUCT = 100_000
MAX_DEPTH = 12


# --- math-verify
# ----------------------------------------------------------------------------------------------------

_ENVIRONMENT = re.compile(r"\\(?:begin|end)\{[a-z]{1,12}\*?\}")
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_WORD = re.compile(r"[A-Za-z]{3,}")
_FUNCTIONS = frozenset(
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log exp sqrt inf".split()
)
_MATH_SIGN = re.compile(r"[\d\\^=+*/<>|]|(?<=\w)-(?=\w)")
_UNBOUNDED = re.compile(
    r"\\(?:int|iint|oint|sum|prod|lim|binom|dbinom|choose|partial|det)(?![a-zA-Z])|!|\\(?:frac\s*\{d\}|frac\s*d)"
)


def _math_problem(text: str) -> str | None:
    """Why a normalised text must not be handed to a computer-algebra system; None if it is bounded."""
    if len(text) > MAX_MATH_CHARS:
        return f"{len(text)} characters are too many for an expression (at most {MAX_MATH_CHARS})"
    longest = max((len(run) for run in re.findall(r"\d+", text)), default=0)
    if longest > MAX_DIGITS:
        return f"a number of {longest} digits (at most {MAX_DIGITS})"
    depth = deepest = 0
    for character in text:
        depth += (character in "({[") - (character in ")}]")
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:
        return f"brackets nested {deepest} deep (at most {MAX_DEPTH})"
    if text.count("{") != text.count("}"):
        return "braces that do not balance"
    match = _UNBOUNDED.search(text)
    if match:
        return f"{match.group()!r}, which can take unbounded time to evaluate"
    flat = text.replace("**", "^")
    product = 1
    parts = flat.split("^")
    for before, part in itertools.pairwise(parts):
        exponent = _leading_group(part)
        # brackets to a power get expanded, and equations in a symbol solved, so their bounds are
        # lower
        base = before.rstrip()[-1:]
        bound = (
            MAX_EXPONENT
            if base.isdigit()
            else MAX_SYMBOL_EXPONENT
            if base.isalpha()
            else MAX_BRACKET_EXPONENT
        )
        if "^" in exponent:
            return "a power in an exponent"
        for run in re.findall(r"\d+", exponent):
            value = int(run) if len(run) <= 6 else MAX_EXPONENT + 1
            if value > bound:
                return f"an exponent above {bound}"
            product *= max(value, 1)
    # {a^b}^c and a^{b^c} multiply exponents; the product over all of them bounds either
    if product > MAX_EXPONENT_PRODUCT or re.search(r"\^\s*(?:\{[^{}]*\^|\w\s*\^|\([^()]*\^)", flat):
        return "powers that multiply up"
    if text.count("\\exp") > 1:
        return "an exponential of an exponential"
    return None


def _leading_group(text: str) -> str:
    """What an exponent sign applies to: a braced or bracketed group, or the first run of word
    characters.
    """
    text = text.lstrip()
    if text[:1] not in ("{", "("):
        match = re.match(r"[+-]?\w+", text)
        return match.group() if match else ""
    closing, depth = ("}" if text[0] == "{" else ")"), 0
    for i, character in enumerate(text):
        depth += (character == text[0]) - (character == closing)
        if depth == 0:
            return text[: i + 1]
    return text


def looks_like_math(text: str) -> bool:
    """Whether a normalised text is an expression rather than words ("2x + 1", not "two cats"; "cat"
    is not c*a*t).
    """
    if not _MATH_SIGN.search(text) and not re.fullmatch(r"[\[(].*,.*[\])]|\{.*\}", text):
        return False
    words = _WORD.findall(_COMMAND.sub(" ", _ENVIRONMENT.sub(" ", text)))
    return all(word in _FUNCTIONS for word in words)


@functools.cache
def math_verify_module() -> Any:
    """math_verify, imported when first needed: sympy takes a second, and most answers never need
    it.
    """
    import math_verify

    # it announces at each call that its timeouts are off, which is what we asked for
    for name in ("math_verify.parser", "math_verify.grader", "math_verify.utils"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return math_verify


@functools.lru_cache(maxsize=4096)
def _parsed_math(text: str) -> tuple[Any, ...]:
    """math-verify's reading of a bounded, normalised text: candidates as a tuple; () where it reads
    nothing.
    """
    module = math_verify_module()
    try:
        return tuple(
            module.parse(f"${text}$" if looks_like_math(text) else text, parsing_timeout=None)
        )
    except (
        Exception
    ):  # the parser stack (antlr, sympy) raises a dozen types on junk: all mean "not an expression"
        return ()


_HEDGE = re.compile(r"(?i)\b(?:or|either|maybe)\b|[;?]")


def _math_equal(gold: str, answer: str) -> bool:
    """math-verify's verdict on two bounded, normalised texts."""
    gold_parsed, answer_parsed = _parsed_math(gold), _parsed_math(answer)
    if not gold_parsed or not answer_parsed:
        return False
    try:
        # gold first: verify() is not symmetric, it is lenient towards the form of its second
        # argument
        return bool(
            math_verify_module().verify(
                list(gold_parsed), list(answer_parsed), timeout_seconds=None
            )
        )
    except Exception:  # sympy cannot decide: not shown to be equal
        return False


# --- comparing
# ------------------------------------------------------------------------------------------------------


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
    if gold.strip() == answer.strip():
        return True
    if len(gold) > MAX_ANSWER_CHARS or len(answer) > MAX_ANSWER_CHARS:
        return False
    gold_text, answer_text = statement(gold), statement(answer)
    if gold_text and gold_text.casefold() == answer_text.casefold():
        return True

    choices = choice_texts(metadata or {})
    if choices:
        gold_letter, answer_letter = (
            _letter_among(gold_text, choices),
            _letter_among(answer_text, choices),
        )
        if gold_letter is not None and answer_letter is not None:
            return gold_letter == answer_letter
    if is_choice_letter(gold_text) or is_choice_letter(answer_text):
        gold_letter, answer_letter = choice_letter(gold_text), choice_letter(answer_text)
        if gold_letter is not None and answer_letter is not None:
            return gold_letter == answer_letter
        if not (math and looks_like_math(gold_text)):
            return False

    several = choice_letters(gold_text), choice_letters(answer_text)
    if None not in several:
        return several[0] == several[1]

    (gold_text, gold_unit), (answer_text, answer_unit) = (
        split_unit(gold_text),
        split_unit(answer_text),
    )
    if gold_unit and answer_unit and gold_unit != answer_unit:
        return False
    gold_number, answer_number = parse_number(gold_text), parse_number(answer_text)
    if gold_number is not None and answer_number is not None:
        return numbers_equal(gold_number, answer_number)
    if gold_number is not None and not has_operation(answer_text):
        said = lone_number(answer_text)
        return said is not None and numbers_equal(gold_number, said)
    if answer_number is not None and not has_operation(gold_text):
        said = lone_number(gold_text)
        return said is not None and numbers_equal(said, answer_number)
    return (
        math and _may_be_math_equal(gold_text, answer_text) and _math_equal(gold_text, answer_text)
    )


def _may_be_math_equal(gold: str, answer: str) -> bool:
    """Whether it takes computer algebra to tell two normalised texts apart (neither is handed over
    otherwise).
    """
    if parse_number(gold) is None and not looks_like_math(gold):
        return False
    if _math_problem(gold) or _math_problem(answer) or not _MATH_SIGN.search(answer):
        return False
    # "3 or 4": the verifier would pick one of them
    return looks_like_math(answer) or not _HEDGE.search(answer)


def needs_math_verify(gold: str, answer: str) -> bool:
    """Whether comparing these two can take math-verify, and so its slow import. Cheap; may say yes
    too often.
    """
    if len(gold) > MAX_ANSWER_CHARS or len(answer) > MAX_ANSWER_CHARS:
        return False
    gold_text, answer_text = (split_unit(statement(text))[0] for text in (gold, answer))
    if gold_text.casefold() == answer_text.casefold():
        return False
    gold_number, answer_number = parse_number(gold_text), parse_number(answer_text)
    if gold_number is not None and (answer_number is not None or not has_operation(answer_text)):
        return False
    return _may_be_math_equal(gold_text, answer_text)


def _letter_among(text: str, choices: dict[str, str]) -> str | None:
    """The letter of the choice that a text names, by its whole text or by its letter."""
    # the text first: an option may itself be the word "A" or "B"
    same = [letter for letter, choice in choices.items() if choice == text.casefold()]
    if len(same) == 1 and not is_choice_letter(text):
        return same[0]
    letter = choice_letter(text)
    return letter if letter in choices else None


@functools.lru_cache(maxsize=4096)
def parse_answer_problem(answer: str | None) -> str | None:
    """Why a reference answer cannot be graded against; None if it can.

    Used when data is loaded, in the main process: bounded, and anything a computer-algebra system
    could hang on is reported without being parsed. Words, choice letters and plain numbers never
    get that far.
    """
    if answer is None:
        return "there is no reference answer"
    if not isinstance(answer, str):
        return f"it is a {type(answer).__name__}, not a string"
    if len(answer) > MAX_ANSWER_CHARS:
        return f"{len(answer)} characters are too many for an answer (at most {MAX_ANSWER_CHARS})"
    text = statement(answer)
    if not any(c.isalnum() for c in text):
        return "it is empty" if not answer.strip() else "it holds neither a letter nor a digit"
    if parse_number(text) is not None or is_choice_letter(text):
        return None
    if "\\" not in text and "^" not in text:
        return None  # words and simple expressions can at least be compared as strings
    problem = _math_problem(text)
    if problem:
        return f"it cannot be compared safely: it has {problem}"
    # a bare string is math-verify's fallback when nothing parsed: it would only ever equal itself
    if looks_like_math(text) and not any(
        not isinstance(candidate, str) for candidate in _parsed_math(text)
    ):
        return "math-verify cannot parse it"
    return None


def accuracy_reward(
    completion: Completion, example: Example, *, unparsable_gold: str = "none", tail: bool = False
) -> float | None:
    """1.0 if the completion's answer equals the reference, 0.0 if it does not or states none.

    Args:
      completion: text with the template's prefix, and the finish reason.
      example: `answer` is the reference; `metadata["choices"]`, where present, names the options.
      unparsable_gold: what to return where the reference itself cannot be parsed: "none" leaves the
        sample to the other rewards; "one" gives 1.0, as LMM-R1 and MM-Eureka do.
      tail: see `extract_answer`; not applied to completions that were cut at the length limit.

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
    answer = extract_answer(completion.text, tail=tail and completion.finish_reason != "length")
    if not answer:
        return 0.0
    return float(answers_match(gold, answer, metadata=example.metadata))
