"""The accuracy reward: extract the answer from a completion and compare it with the reference.

    completion -> first answer block, else last balanced \\boxed{}, else (option) the tail
               -> normalise -> same string? -> choice letters -> numbers -> math-verify

Cheap comparisons come first and are final where they apply, so that most answers never reach sympy. Everything that is
parsed is bounded before: nested powers and long digit strings hang a computer-algebra system for hours.

math-verify is called with its own timeouts off: they rest on SIGALRM, which needs the main thread. Reward functions run
in worker processes that can be killed instead (`jaxr1.rewards.pool`).
"""

from __future__ import annotations

import functools
import itertools
import logging
import re
import unicodedata
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from jaxr1.rewards.types import Completion, Example

MAX_ANSWER_CHARS = 2000  # beyond this an answer is an essay: only equal strings are equal
MAX_MATH_CHARS = 400  # what we hand to sympy
MAX_NUMBER_CHARS = 100
MAX_DIGITS = 40
MAX_EXPONENT = 1000
MAX_SYMBOL_EXPONENT = 100
MAX_BRACKET_EXPONENT = 12
MAX_EXPONENT_PRODUCT = 100_000
MAX_DEPTH = 12
RELATIVE_TOLERANCE = Fraction(1, 1_000_000)  # math-verify rounds to six places as well

ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"


# --- extraction -----------------------------------------------------------------------------------------------------


def extract_answer(text: str, *, tail: bool = False) -> str | None:
    """The answer that a completion states, or None.

    The content of the first answer block (it may span lines; text inside a closed think block does not count, unless
    there is no other), else the content of the last balanced \\boxed{}. With `tail`, else the last number or lone
    choice letter of the text: lenient, for models that were never asked for tags. An answer block that is never closed
    is no answer.

    Args:
      text: a whole completion.
      tail: look for a last number or letter where there is neither a block nor a box.
    """
    after_thought = text.find("</think>")
    block = _first_block(text, max(after_thought, 0)) if after_thought >= 0 else None
    if block is None:
        block = _first_block(text, 0)
    if block is not None:
        boxed = last_boxed(block)
        return (boxed if boxed is not None else block).strip()
    boxed = last_boxed(text)
    if boxed is not None:
        return boxed.strip()
    return _tail_answer(text) if tail else None


def _first_block(text: str, start: int) -> str | None:
    opened = text.find(ANSWER_OPEN, start)
    if opened < 0:
        return None
    closed = text.find(ANSWER_CLOSE, opened)
    return None if closed < 0 else text[opened + len(ANSWER_OPEN) : closed]


def last_boxed(text: str) -> str | None:
    """The content of the last \\boxed{} or \\fbox{} whose braces balance (the outer where they nest); linear time."""
    found: str | None = None
    open_braces: list[int | None] = []  # where the content of a box begins; None for any other brace
    for match in re.finditer(r"\\boxed\s{0,8}\{|\\fbox\s{0,8}\{|\\[{}]|[{}]", text):
        token = match.group()
        if token in ("\\{", "\\}"):
            continue
        if token == "}":
            if open_braces:
                start = open_braces.pop()
                if start is not None:
                    found = text[start : match.start()]
        else:
            open_braces.append(None if token == "{" else match.end())
    return found


_TAIL = re.compile(r"(?<![\w.])-?(?:\d{1,40}(?:,\d{3}){0,12}(?:\.\d{1,40})?%?|\(?[A-H]\)?)(?!\w)")


def _tail_answer(text: str) -> str | None:
    last = None
    for match in _TAIL.finditer(text[-MAX_ANSWER_CHARS:]):
        last = match.group()
    return last


# --- normalisation --------------------------------------------------------------------------------------------------

_SUPERSCRIPTS = str.maketrans({c: f"^{i}" for i, c in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")})
_CHARACTERS = str.maketrans(
    {"−": "-", "–": "-", "—": "-", "×": "\\times ", "÷": "/", "⁄": "/", "·": "\\cdot ", "π": "\\pi ", "∞": "\\infty ",
     "“": '"', "”": '"', "‘": "'", "’": "'", "\u200b": "", "\ufeff": "", "√": "\\sqrt "}
)  # fmt: skip
_VULGAR = re.compile(r"[¼-¾⅐-⅞↉]")
_WRAPPED_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|mbox|operatorname|emph)\s?\{([^{}]*)\}")
_SPACING = re.compile(r"\\(?:[,;:!> ]|quad\b|qquad\b|displaystyle\b)|~")
_DELIMITERS = re.compile(r"\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])|\\[()\[\]]|\$\$?")
_DEGREES = re.compile(r"\^?\s?\{?\s?\\circ\s?\}?|°")


def normalise(answer: str) -> str:
    """An answer without the differences that mean nothing; letter case is kept. Idempotent on what it returns.

    Unicode forms, minus signs and vulgar fractions; dollar signs and other maths delimiters; \\left, \\right, \\text{},
    spacing commands, \\dfrac; degree signs; markdown emphasis, quotes, a final full stop; runs of whitespace.
    """
    for _ in range(8):  # removing one layer can uncover another ("**$5$.**"); each pass shortens or settles the string
        simpler = _normalise_once(answer)
        if simpler == answer:
            break
        answer = simpler
    return answer


def _normalise_once(answer: str) -> str:
    text = _VULGAR.sub(lambda m: " " + unicodedata.normalize("NFKC", m.group()), answer).translate(_SUPERSCRIPTS)
    text = unicodedata.normalize("NFKC", text).translate(_CHARACTERS)
    text = text.replace("\\%", "%").replace("\\$", "").replace("{,}", ",").replace("\\!", "")
    text = text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac").replace("\\cfrac", "\\frac")
    text = _DELIMITERS.sub("", text)
    text = _SPACING.sub(" ", text)
    text = _WRAPPED_TEXT.sub(r"\1", text)
    text = _DEGREES.sub("", text)
    text = text.replace("**", " ").replace("`", "") if "**" in text[:2] or "`" in text else text
    text = " ".join(text.split())
    text = text.strip("\"' ")
    while text.endswith((".", ",", ";")) and not text.endswith(".."):
        text = text[:-1].rstrip()
    return text


_ANNOUNCED = re.compile(r"(?i)^(?:so |thus |therefore |hence )?,? ?(?:the )?(?:final |correct )?answer(?: is|:| is:) +")


def _statement(answer: str) -> str:
    """The normalised answer without an announcing phrase before it."""
    text = normalise(answer)
    stripped = _ANNOUNCED.sub("", text, count=1).strip()
    return normalise(stripped) if stripped else text


# --- choice letters -------------------------------------------------------------------------------------------------

_LETTER_ALONE = re.compile(r"[\s(\[*]*([A-Ha-h])[\s)\].:*,]*")
_LETTER_FIRST = re.compile(r"(?:[(\[]([A-Ha-h])[)\]]|([A-Ha-h])[.):])\s*:?\s*(.*)", re.DOTALL)
_LETTER_MARKED = re.compile(r"[(\[]([A-Ha-h])[)\]]|(?<![\w'-])([A-H])[.):](?!\w)")
_LETTER_SAID = re.compile(r"(?i:\b(?:answer|option|choice)(?: is|:| is:)? {0,2})[(\[]?([A-H])(?![\w'])[)\]]?")
_LETTER_SAID_LAST = re.compile(r"(?i:\b(?:answer|option|choice)(?: is|:| is:)? {0,2})[(\[]?([a-h])[)\]]?")
_LETTER_LONE = re.compile(r"(?<![\w'-])([B-H])(?![\w'-])|(?<![\w'-])(A)(?![\w'-]| (?!and\b|or\b)[a-z])")


def is_choice_letter(answer: str) -> bool:
    """Whether the answer is one of the letters A to H and nothing else but brackets or punctuation."""
    return _LETTER_ALONE.fullmatch(normalise(answer)) is not None


def choice_letter(answer: str) -> str | None:
    """The one choice letter that an answer names, in upper case; None if it names none, or more than one.

    Letters have word boundaries: "a cat" names no option, and neither does "Bad". Two different letters are a hedge.

    "B"  "(b)"  "B."  "B. the red cube"  "The answer is (B)"  "option b"       -> B
    "a red cube"  "A cube"  "(A) or (B)"  "cab"                                -> None
    """
    text = normalise(answer)
    if len(text) > MAX_ANSWER_CHARS:
        return None
    alone = _LETTER_ALONE.fullmatch(text)
    if alone:
        return alone.group(1).upper()
    marked = {(m.group(1) or m.group(2)).upper() for m in _LETTER_MARKED.finditer(text)}
    if len(marked) > 1:
        return None
    first = _LETTER_FIRST.fullmatch(text)
    if first and (not marked or marked == {(first.group(1) or first.group(2)).upper()}):
        return (first.group(1) or first.group(2)).upper()
    lone = {m.group(1) or m.group(2) for m in _LETTER_LONE.finditer(text)} | marked
    said = {m.group(1) for m in _LETTER_SAID.finditer(text)}
    if "A" in said and re.search(r"\bA [a-z]", text) and not marked:
        said.discard("A")  # "the answer is A dog": an article
    if len(lone | said) == 1:
        return (lone | said).pop()
    last = _LETTER_SAID_LAST.search(text)
    if last and last.end() == len(text) and not (lone | said):
        return last.group(1).upper()
    return None


def _choice_texts(metadata: Mapping[str, Any]) -> dict[str, str]:
    """{letter: normalised text} of the options in a row's `choices` or `options` column; {} where there are none."""
    choices = metadata.get("choices", metadata.get("options"))
    if isinstance(choices, Mapping):
        pairs = [(str(k).strip().upper(), str(v)) for k, v in choices.items()]
    elif isinstance(choices, list | tuple):
        pairs = [(chr(ord("A") + i), str(v)) for i, v in enumerate(choices[:8])]
    else:
        return {}
    texts = {}
    for letter, text in pairs:
        if len(letter) == 1 and "A" <= letter <= "H" and len(text) <= MAX_ANSWER_CHARS:
            text = re.sub(rf"^\s*(?:[(\[]{letter}[)\]]|{letter}[.):])\s*", "", text)
            texts[letter] = normalise(text).casefold()
    return texts


# --- numbers --------------------------------------------------------------------------------------------------------

_UNSIGNED = r"(?:\d{1,3}(?:,\d{3})+(?:\.\d*)?|\d+(?:\.\d*)?|\.\d+)"
_DECIMAL = re.compile(
    rf"([+-]?)({_UNSIGNED})(?:[eE]([+-]?\d{{1,3}})|\s*(?:\\times|\*|x)\s*10\^\{{?([+-]?\d{{1,3}})\}}?)?"
)
_RATIO = re.compile(rf"([+-]?)(?:(\d+)\s+)?({_UNSIGNED})\s*/\s*([+-]?{_UNSIGNED})")
_FRAC = re.compile(
    rf"([+-]?)(\d*)\s*\\frac\s*(?:\{{\s*([+-]?{_UNSIGNED})\s*\}}|(\d))\s*(?:\{{\s*([+-]?{_UNSIGNED})\s*\}}|(\d))"
)


def parse_number(answer: str) -> tuple[Fraction, bool] | None:
    """The exact value of an answer that is a plain number, and whether it was written as a percentage.

    Integers, decimals, thousands separators, scientific notation, percentages, fractions a/b and \\frac{a}{b}, mixed
    numbers, a currency sign before. The value of "15%" is 15/100. None for anything else, for a zero denominator, and
    for numbers beyond the bounds at the top of this file.
    """
    text = normalise(answer).replace("\\times ", "\\times")
    if not text or len(text) > MAX_NUMBER_CHARS or sum(c.isdigit() for c in text) > MAX_DIGITS:
        return None
    if not text.isascii():
        return None
    text = re.sub(r"^([+-]?)\s*[$]\s*", r"\1", text)
    text = re.sub(r"^([+-])\s+", r"\1", text)
    percent = text.endswith("%")
    if percent:
        text = text[:-1].rstrip()
    value = _plain_value(text)
    if value is None:
        return None
    return (value / 100 if percent else value), percent


def _plain_value(text: str) -> Fraction | None:
    def fraction(digits: str) -> Fraction:
        digits = digits.replace(",", "")
        return Fraction((digits + "0" if digits.endswith(".") else digits) or "0")

    match = _DECIMAL.fullmatch(text)
    if match:
        sign, digits, exponent, power = match.groups()
        shift = int(exponent or power or 0)
        if abs(shift) > MAX_EXPONENT:
            return None
        return fraction(digits) * Fraction(10) ** shift * (-1 if sign == "-" else 1)
    match = _RATIO.fullmatch(text)
    if match:
        sign, whole, top, bottom = match.groups()
    else:
        match = _FRAC.fullmatch(text)
        if not match:
            return None
        sign, whole, top, top_digit, bottom, bottom_digit = match.groups()
        top, bottom = top or top_digit, bottom or bottom_digit
    below = fraction(bottom)
    if below == 0 or (whole and (top.startswith("-") or below < 0)):
        return None
    value = Fraction(int(whole)) if whole else Fraction(0)
    return (value + fraction(top) / below) * (-1 if sign == "-" else 1)


_NUMBER_IN_WORDS = re.compile(rf"(?<![\w.,])[+-]?{_UNSIGNED}\s?%?(?!\d|[.,]\d|[eE][+-]?\d)")
_OPERATION = re.compile(r"[\\^=+*/<>{}|]")


def lone_number(text: str) -> tuple[Fraction, bool] | None:
    """The one number that a sentence without mathematics names ("3 dogs", "It costs $4.50"); None if there are several.

    Two different numbers are a hedge ("3 or 4"), and with operators in it the text is an expression.
    """
    if len(text) > MAX_ANSWER_CHARS or _OPERATION.search(text):
        return None
    found = {parse_number(match.group()) for match in _NUMBER_IN_WORDS.finditer(text)}
    return found.pop() if len(found) == 1 else None


def numbers_equal(one: tuple[Fraction, bool], other: tuple[Fraction, bool]) -> bool:
    """Whether two results of `parse_number` name the same value.

    Integers must be equal; with a fraction or decimal a relative difference of 1e-6 is rounding. A percentage equals
    its ratio (15% = 0.15) and also the bare number (15% = 15), because questions ask "what percentage".
    """
    (a, a_percent), (b, b_percent) = one, other
    pairs = [(a, b)]
    if a_percent != b_percent:
        pairs.append((a * 100, b) if a_percent else (a, b * 100))
    for x, y in pairs:
        if x == y:
            return True
        rounded = x.denominator != 1 or y.denominator != 1
        if rounded and abs(x - y) <= RELATIVE_TOLERANCE * max(abs(x), abs(y)):
            return True
    return False


# --- math-verify ----------------------------------------------------------------------------------------------------

_COMMAND = re.compile(r"\\[a-zA-Z]+")
_WORD = re.compile(r"[A-Za-z]{3,}")
_FUNCTIONS = frozenset("sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log exp sqrt inf".split())
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
        # brackets to a power get expanded, and equations in a symbol solved, so their bounds are lower
        base = before.rstrip()[-1:]
        bound = MAX_EXPONENT if base.isdigit() else MAX_SYMBOL_EXPONENT if base.isalpha() else MAX_BRACKET_EXPONENT
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
    """What an exponent sign applies to: a braced or bracketed group, or the first run of word characters."""
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
    """Whether a normalised text is an expression rather than words ("2x + 1", not "two cats"; "cat" is not c*a*t)."""
    if not _MATH_SIGN.search(text) and not re.fullmatch(r"[\[(].*,.*[\])]|\{.*\}", text):
        return False
    words = _WORD.findall(_COMMAND.sub(" ", text))
    return all(word in _FUNCTIONS for word in words)


@functools.cache
def math_verify_module() -> Any:
    """math_verify, imported when first needed: sympy takes a second, and most answers never need it."""
    import math_verify

    # it announces at each call that its timeouts are off, which is what we asked for
    for name in ("math_verify.parser", "math_verify.grader", "math_verify.utils"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return math_verify


@functools.lru_cache(maxsize=4096)
def _parsed_math(text: str) -> tuple[Any, ...]:
    """math-verify's reading of a bounded, normalised text: candidates as a tuple; () where it reads nothing."""
    module = math_verify_module()
    try:
        return tuple(module.parse(f"${text}$" if looks_like_math(text) else text, parsing_timeout=None))
    except Exception:  # the parser stack (antlr, sympy) raises a dozen types on junk: all mean "not an expression"
        return ()


_HEDGE = re.compile(r"(?i)\b(?:or|either|maybe)\b|[;?]")


def _math_equal(gold: str, answer: str) -> bool:
    """math-verify's verdict on two bounded, normalised texts."""
    gold_parsed, answer_parsed = _parsed_math(gold), _parsed_math(answer)
    if not gold_parsed or not answer_parsed:
        return False
    try:
        # gold first: verify() is not symmetric, it is lenient towards the form of its second argument
        return bool(math_verify_module().verify(list(gold_parsed), list(answer_parsed), timeout_seconds=None))
    except Exception:  # sympy cannot decide: not shown to be equal
        return False


# --- comparing ------------------------------------------------------------------------------------------------------


def answers_match(gold: str, answer: str, *, metadata: Mapping[str, Any] | None = None, math: bool = True) -> bool:
    """Whether an extracted answer means the same as the reference.

    Never raises. With `math=False` (no computer algebra) the relation is reflexive and symmetric.

    Args:
      gold: the reference answer.
      answer: what `extract_answer` found.
      metadata: the row's other columns; a list or mapping under `choices` or `options` lets a choice's text stand for
        its letter.
      math: whether expressions go on to math-verify.
    """
    if gold.strip() == answer.strip():
        return True
    if len(gold) > MAX_ANSWER_CHARS or len(answer) > MAX_ANSWER_CHARS:
        return False
    gold_text, answer_text = _statement(gold), _statement(answer)
    if gold_text and gold_text.casefold() == answer_text.casefold():
        return True

    choices = _choice_texts(metadata or {})
    if choices:
        gold_letter, answer_letter = _letter_among(gold_text, choices), _letter_among(answer_text, choices)
        if gold_letter is not None and answer_letter is not None:
            return gold_letter == answer_letter
    if is_choice_letter(gold_text) or is_choice_letter(answer_text):
        gold_letter, answer_letter = choice_letter(gold_text), choice_letter(answer_text)
        if gold_letter is not None and answer_letter is not None:
            return gold_letter == answer_letter
        if not (math and looks_like_math(gold_text)):
            return False

    gold_number, answer_number = parse_number(gold_text), parse_number(answer_text)
    if gold_number is not None and answer_number is not None:
        return numbers_equal(gold_number, answer_number)
    if gold_number is not None and not _OPERATION.search(answer_text):
        said = lone_number(answer_text)
        return said is not None and numbers_equal(gold_number, said)
    if answer_number is not None and not _OPERATION.search(gold_text):
        said = lone_number(gold_text)
        return said is not None and numbers_equal(said, answer_number)
    return math and _may_be_math_equal(gold_text, answer_text) and _math_equal(gold_text, answer_text)


def _may_be_math_equal(gold: str, answer: str) -> bool:
    """Whether it takes computer algebra to tell two normalised texts apart (neither is handed over otherwise)."""
    if parse_number(gold) is None and not looks_like_math(gold):
        return False
    if _math_problem(gold) or _math_problem(answer) or not _MATH_SIGN.search(answer):
        return False
    # "3 or 4": the verifier would pick one of them
    return looks_like_math(answer) or not _HEDGE.search(answer)


def needs_math_verify(gold: str, answer: str) -> bool:
    """Whether comparing these two can take math-verify, and so its slow import. Cheap; may say yes too often."""
    if len(gold) > MAX_ANSWER_CHARS or len(answer) > MAX_ANSWER_CHARS:
        return False
    gold_text, answer_text = _statement(gold), _statement(answer)
    if gold_text.casefold() == answer_text.casefold():
        return False
    gold_number, answer_number = parse_number(gold_text), parse_number(answer_text)
    if gold_number is not None and (answer_number is not None or not _OPERATION.search(answer_text)):
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

    Used when data is loaded, in the main process: bounded, and anything a computer-algebra system could hang on is
    reported without being parsed. Words, choice letters and plain numbers never get that far.
    """
    if answer is None:
        return "there is no reference answer"
    if not isinstance(answer, str):
        return f"it is a {type(answer).__name__}, not a string"
    if len(answer) > MAX_ANSWER_CHARS:
        return f"{len(answer)} characters are too many for an answer (at most {MAX_ANSWER_CHARS})"
    text = _statement(answer)
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
    if looks_like_math(text) and not any(not isinstance(candidate, str) for candidate in _parsed_math(text)):
        return "math-verify cannot parse it"
    return None


def accuracy_reward(
    completion: Completion, example: Example, *, unparsable_gold: str = "none", tail: bool = False
) -> float | None:
    """1.0 if the completion's answer equals the reference, 0.0 if it does not or states none.

    Args:
      completion: text with the template's prefix, and the finish reason.
      example: `answer` is the reference; `metadata["choices"]`, where present, names the options.
      unparsable_gold: what to return where the reference itself cannot be parsed: "none" leaves the sample to the other
        rewards; "one" gives 1.0, as LMM-R1 and MM-Eureka do.
      tail: see `extract_answer`; not applied to completions that were cut at the length limit.

    Raises:
      ValueError: unknown `unparsable_gold`.
    """
    if unparsable_gold not in ("none", "one"):
        raise ValueError(f"accuracy reward: unparsable_gold must be 'none' or 'one', got {unparsable_gold!r}")
    gold = example.answer
    if gold is None or parse_answer_problem(gold) is not None:
        return 1.0 if unparsable_gold == "one" and gold is not None else None
    answer = extract_answer(completion.text, tail=tail and completion.finish_reason != "length")
    if not answer:
        return 0.0
    return float(answers_match(gold, answer, metadata=example.metadata))
