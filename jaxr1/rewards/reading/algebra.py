"""Computer algebra: which texts math-verify may be given, and its verdicts on them.

Everything that is parsed is bounded before: nested powers and long digit strings hang a
computer-algebra system for hours.

Nothing is evaluated as Python: sympy's evaluator of strings gives way to `rewards.arithmetic`.

math-verify is called with its own timeouts off: they rest on SIGALRM, which needs the main thread.
Reward functions run in worker processes that can be killed instead (`jaxr1.rewards.pool`).
"""

from __future__ import annotations

import functools
import itertools
import logging
import re
from typing import Any

from jaxr1.rewards.reading.arithmetic import without_evaluator
from jaxr1.rewards.reading.formulas import MAX_DIGITS
from jaxr1.rewards.reading.numbers import MAX_EXPONENT, parse_number

MAX_MATH_CHARS = 400  # what we hand to sympy
MAX_SYMBOL_EXPONENT = 100
MAX_BRACKET_EXPONENT = 12
MAX_EXPONENT_PRODUCT = 100_000
MAX_DEPTH = 12

_ENVIRONMENT = re.compile(r"\\(?:begin|end)\{[a-z]{1,12}\*?\}")
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_WORD = re.compile(r"[A-Za-z]{3,}")
_FUNCTIONS = frozenset(
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log exp sqrt inf".split()
)
_MATH_SIGN = re.compile(r"[\d\\^=+*/<>|]|(?<=\w)-(?=\w)")
_HEDGE = re.compile(r"(?i)\b(?:or|either|maybe)\b|[;?]")
_UNBOUNDED = re.compile(
    r"\\(?:int|iint|oint|sum|prod|lim|binom|dbinom|choose|partial|det)(?![a-zA-Z])"
    r"|!|\\(?:frac\s*\{d\}|frac\s*d)"
)
_POWER_OF_POWER = re.compile(r"\^\s*(?:\{[^{}]*\^|\w\s*\^|\([^()]*\^)")


# --- what may be handed over --------------------------------------------------------------------
def math_problem(text: str) -> str | None:
    """Why a normalised text must not reach a computer-algebra system; None if it is bounded."""
    if len(text) > MAX_MATH_CHARS:
        return f"{len(text)} characters are too many for an expression (at most {MAX_MATH_CHARS})"
    longest = max(map(len, re.findall(r"\d+", text)), default=0)
    if longest > MAX_DIGITS:
        return f"a number of {longest} digits (at most {MAX_DIGITS})"
    deepest = _bracket_depth(text)
    if deepest > MAX_DEPTH:
        return f"brackets nested {deepest} deep (at most {MAX_DEPTH})"
    if text.count("{") != text.count("}"):
        return "braces that do not balance"
    match = _UNBOUNDED.search(text)
    if match:
        return f"{match.group()!r}, which can take unbounded time to evaluate"
    problem = _power_problem(text.replace("**", "^"))
    if problem is None and text.count("\\exp") > 1:
        return "an exponential of an exponential"
    return problem


def _bracket_depth(text: str) -> int:
    depth = deepest = 0
    for character in text:
        depth += (character in "({[") - (character in ")}]")
        deepest = max(deepest, depth)
    return deepest


def _power_problem(text: str) -> str | None:
    """Why the powers of a text are too large to evaluate; None if they are bounded."""
    product = 1
    for before, after in itertools.pairwise(text.split("^")):
        bound = _largest_exponent(before.rstrip()[-1:])
        for run in re.findall(r"\d+", _leading_group(after)):
            # digits are counted first: what they say may be a number of thousands of digits
            value = int(run) if len(run) <= 6 else MAX_EXPONENT + 1
            if value > bound:
                return f"an exponent above {bound}"
            product *= max(value, 1)
    # {a^b}^c and a^{b^c} multiply exponents; the product over all of them bounds either
    if product > MAX_EXPONENT_PRODUCT or _POWER_OF_POWER.search(text):
        return "powers that multiply up"
    return None


def _largest_exponent(base: str) -> int:
    """The largest exponent that may follow a character."""
    # brackets to a power get expanded, and equations in a symbol solved, so their bounds are lower
    if base.isdigit():
        return MAX_EXPONENT
    return MAX_SYMBOL_EXPONENT if base.isalpha() else MAX_BRACKET_EXPONENT


def _leading_group(text: str) -> str:
    """What an exponent sign applies to: a group in brackets, else the first word or number."""
    text = text.lstrip()
    if text[:1] not in ("{", "("):
        match = re.match(r"[+-]?\w+", text)
        return match.group() if match else ""
    closing = "}" if text[0] == "{" else ")"
    depth = 0
    for i, character in enumerate(text):
        depth += (character == text[0]) - (character == closing)
        if depth == 0:
            return text[: i + 1]
    return text


def looks_like_math(text: str) -> bool:
    """Whether a normalised text is an expression rather than words.

    "2x + 1" is one, "two cats" is not, and "cat" is not c*a*t.
    """
    if not _MATH_SIGN.search(text) and not re.fullmatch(r"[\[(].*,.*[\])]|\{.*\}", text):
        return False
    words = _WORD.findall(_COMMAND.sub(" ", _ENVIRONMENT.sub(" ", text)))
    return all(word in _FUNCTIONS for word in words)


def may_be_math_equal(gold: str, answer: str) -> bool:
    """Whether it takes computer algebra to tell two normalised texts apart; both are bounded."""
    if parse_number(gold) is None and not looks_like_math(gold):
        return False
    if math_problem(gold) or math_problem(answer) or not _MATH_SIGN.search(answer):
        return False
    # "3 or 4": the verifier would pick one of them
    return looks_like_math(answer) or not _HEDGE.search(answer)


# --- math-verify --------------------------------------------------------------------------------
@functools.cache
def math_verify_module() -> Any:
    """math_verify, imported when first needed: sympy takes a second, most answers never need it."""
    import math_verify

    # it announces at each call that its timeouts are off, which is what we asked for
    for name in ("math_verify.parser", "math_verify.grader", "math_verify.utils"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return math_verify


@functools.lru_cache(maxsize=4096)
def parsed_math(text: str) -> tuple[Any, ...]:
    """math-verify's candidates for a bounded, normalised text; () where it reads nothing."""
    module = math_verify_module()
    marked = f"${text}$" if looks_like_math(text) else text
    try:
        with without_evaluator():
            return tuple(module.parse(marked, parsing_timeout=None))
    # the parser stack (antlr, sympy) raises a dozen types on junk: all mean "not an expression"
    except Exception:
        return ()


def math_equal(gold: str, answer: str) -> bool:
    """math-verify's verdict on two bounded, normalised texts."""
    gold_parsed, answer_parsed = parsed_math(gold), parsed_math(answer)
    if not gold_parsed or not answer_parsed:
        return False
    verify = math_verify_module().verify
    try:
        # gold first: verify() is not symmetric, it is lenient towards its second argument's form
        with without_evaluator():
            return bool(verify(list(gold_parsed), list(answer_parsed), timeout_seconds=None))
    except Exception:  # sympy cannot decide: not shown to be equal
        return False
