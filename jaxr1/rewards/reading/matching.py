"""Matching: whether a text claims what a reference asks for.

reference  -> typed values: letters, quantity, date, interval, ...           kinds.py
text       -> what it claims in the end; hedges and denials count for none   sentences.py
claim      -> read as the kinds of the reference, all of it, and compared
           -> math-verify, where both are mathematics and neither was read   algebra.py
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from jaxr1.rewards.reading.algebra import looks_like_math, math_equal, may_be_math_equal
from jaxr1.rewards.reading.answers import MAX_ANSWER_CHARS
from jaxr1.rewards.reading.choices import Choices
from jaxr1.rewards.reading.counted import forbids_number
from jaxr1.rewards.reading.kinds import (
    EQUATION,
    EXPRESSION,
    LIST,
    PHRASE,
    QUANTITY,
    Reading,
    readings,
)
from jaxr1.rewards.reading.letters import choice_texts, names_letter
from jaxr1.rewards.reading.lexicon import contradict
from jaxr1.rewards.reading.numbers import parse_number
from jaxr1.rewards.reading.sentences import (
    claim_of,
    core,
    denies,
    last_word,
    lines_joined,
    sentences,
)
from jaxr1.rewards.reading.words import PLAIN, canonical
from jaxr1.rewards.reading.writing import normalise, unwrapped

MAX_CLAIM_CHARS = 600
TRUTH = re.compile(r"(?i)(?:no|yes|true|false)\b")
_INFORMS = re.compile(r"[\d=\\<>?]")


def informs(sentence: str) -> bool:
    """Whether a sentence holds a number, a letter of a choice, mathematics, or a question."""
    return _INFORMS.search(sentence) is not None or names_letter(sentence)


def answers_match(
    gold: str,
    answer: str,
    *,
    metadata: Mapping[str, Any] | None = None,
    question: str = "",
    math: bool = True,
) -> bool:
    """Whether an extracted answer means the same as the reference, whose kind says what is asked.

    Never raises.

    Args:
      gold: the reference answer.
      answer: what `extract_answer` found.
      metadata: the row's other columns; a list or mapping under `choices` or `options` lets a
        choice's text stand for its letter.
      question: the text of the question; whether it offers options decides what "b" means.
      math: whether expressions that cannot be read go on to math-verify.
    """
    if gold.strip() == answer.strip():
        return True
    if len(gold) > MAX_ANSWER_CHARS or len(answer) > MAX_ANSWER_CHARS:
        return False
    gold_text, text = reference_text(gold), normalise(answer)
    if len(text) > MAX_CLAIM_CHARS:  # of an essay, the last sentence
        text = sentences(text[-MAX_CLAIM_CHARS:])[-1]
    if gold_text and _same_text(gold_text, text):
        return True
    texts = choice_texts(metadata or {}, question)
    known = _known(gold_text, texts, question)
    if _is_unevaluated(known, text):
        return False
    said = [text]
    if "\n" in answer.strip() and "\\begin" not in answer:
        said = [lines_joined(answer)]
    own = [words for kind, value in known for words in kind.own(value)]
    names = [gold_text]
    for kind, value in known:
        names += [texts[letter] for letter in value] if kind.name == "option" else []
    said += _sentence_that_counts(names, last_word(said[0]), own)
    if any(_claims(known, part) for part in said):
        return True
    return math and _equal_by_algebra(known, gold_text, text)


def reference_text(gold: str) -> str:
    """A reference without what it is wrapped in, normalised."""
    return normalise(unwrapped(gold)) or normalise(gold)


def _same_text(gold: str, text: str) -> bool:
    """Whether two texts are equal; letter case is free in words, and carries meaning elsewhere."""
    if gold == text:
        return True
    if gold.isalnum() and re.sub(r"_\{?(\d+)\}?", r"\1", text) == gold:  # H_2O
        return True
    if text.endswith("?"):
        return False
    is_words = PLAIN.fullmatch(gold) and all(len(word) > 2 for word in canonical(gold).split())
    return bool(is_words) and canonical(gold) == canonical(text)


def _known(gold: str, texts: dict[str, str], question: str) -> tuple[Reading, ...]:
    """What a reference is: the options that it names, or every kind that reads it."""
    if texts:
        choices = Choices(texts)
        named = choices.named_by(gold)
        if named is not None:
            return ((choices.kind(), named),)
    if re.fullmatch("[a-e]", gold) and re.search(rf"(?:\(|(?<![\w(])){gold}[).]", question):
        gold = gold.upper()
    return readings(gold)


def _claims(known: tuple[Reading, ...], text: str) -> bool:
    """Whether a text claims one of the readings of a reference in the end."""
    claim = claim_of(text)
    for kind, value in known:
        beside, leaves_open = claim.text, claim.leaves_open
        if kind.has_or and leaves_open:
            leaves_open = claim_of(_EITHER.sub("", claim.text)).leaves_open
        if own := kind.own(value):
            beside = canonical(beside)
            for words in own:
                beside = beside.replace(canonical(words), " ")
            leaves_open = claim.text.endswith("?") or claim_of(beside).leaves_open
        if leaves_open:
            continue
        if denies(claim.text) and denies(beside) and not kind.denies:
            continue
        # "3/5 or 0.6" says one thing
        parts = [_EITHER.sub("", claim.text) if kind.has_or else claim.text]
        if claim.has_or and not kind.has_or:
            parts = re.split(r"\s*(?:\bor\b|或|还是)\s*", claim.text)
        if all(kind.says(value, part) for part in parts) and not any(
            kind.says(value, no) for no in claim.denied
        ):
            return True
    return False


_EITHER = re.compile(r"(?i)\beither (?=\\?[a-z] ?=|-?\d)")
_LETTERED = re.compile(r"\(?[A-J](?:[.)]|[,:;](?= \w+ \w+ \w)) (?=\S)")
_JUDGES = re.compile(
    r"(?i)^(?:no\W*$|(?:but )?(?:that|this|it)(?:'s| is| was)? (?:\w+ )?(?:wrong|incorrect|false"
    r"|(?:not|n't)"
    r"(?: it| so| right| correct| true| the case)?)\W*$|.*\bnot (?:sure|certain|right|correct"
    r"|true)\b)"
)
_VERB = re.compile(
    r"(?i)\b(?:is|are|was|were|has|have|had|does|do|can|will|would|\w{2,}(?:s|ed|ing))\b|'s"
)
_CLAUSE = re.compile(r";\s+(?=[A-Za-z']+ )")


def _denies_beside(text: str, own: Iterable[str]) -> bool:
    """Whether a text denies something in other words than an answer's own."""
    if not denies(text):
        return False
    beside = canonical(text)
    for words in own:
        beside = beside.replace(canonical(words), " ")
    return denies(beside)


def _holds(sentence: str, name: str) -> bool:
    return re.search(rf"(?i)(?<!\w){re.escape(name)}(?!\w)", sentence) is not None


def _sentence_that_counts(names: list[str], text: str, own: list[str]) -> list[str]:
    """The one sentence of several that says something; others ask, or deny something else.

    None where what is denied is the reference, which has these names.
    """
    said: list[str] = []
    for sentence in sentences(text):
        said += _CLAUSE.split(sentence)
    if (first := _LETTERED.match(said[0] if said else "")) is not None:
        # "B. It cannot be A.", "B, they do not meet"
        said = [first.group().strip(" ,:;"), said[0][first.end() :], *said[1:]]
        if not any(_denies_beside(sentence, own) for sentence in said[1:]):
            return []
    if len(said) < 2 or said[-1].endswith("?") or any(map(_JUDGES.search, said[1:])):
        return []
    kept = []
    for sentence in said:
        if _denies_beside(sentence, own):
            if any(_holds(sentence, name) for name in names):
                return []
        elif not sentence.endswith("?"):
            kept.append(sentence)
    informing = [s for s in kept if informs(s)]
    rest = [s for s in kept if s not in informing]
    if not informing and kept:
        informing = kept[:1] if len(kept[0].split()) <= 3 else kept[-1:]
        rest = [s for s in kept if s not in informing]
        # an explanation, and not another answer
        if any(not _VERB.search(s) or len(s.split()) < 3 or TRUTH.match(s) for s in rest):
            return []
    is_clear = len(informing) == 1 and not any(
        claim_of(s).leaves_open or contradict(s, informing[0]) for s in rest
    )
    return informing if is_clear else []


# --- what is no answer --------------------------------------------------------------------------
def _is_unevaluated(known: tuple[Reading, ...], text: str) -> bool:
    """Whether an answer is a sum or product of numbers where the reference is a number."""
    if not any(
        kind.name == "option" or (kind is QUANTITY and parse_number(value.text) is not None)
        for kind, value in known
    ):
        return False
    text = re.sub(r"\\(?:times|cdot)\s*", "*", text)
    return re.fullmatch(r"[\d.,\s()*/+-]+", text) is not None and (
        parse_number(text) is None and re.search(r"\d\)?\s*[*+-]", text) is not None
    )


def repeats_question(question: str, answer: str, gold: str) -> bool:
    """Whether an answer only repeats an expression of the question, which asks for its value."""
    text, asked, wanted = (_compact(part) for part in (answer, question, unwrapped(gold)))
    if (
        text == wanted
        or len(text) < 3
        or not re.search(r"[-+*/^!]|\\frac|\\sqrt|\\times|\\cdot", text)
    ):
        return False
    number = parse_number(text)
    if number is not None and text == _compact(str(number)):  # 1/2 is as simple as it gets
        return bool(re.search(r"(?i)\bdecimal\b", question)) and text in asked
    if re.match(r"-?\d*\.?\d+$", text) or "=" in text:
        return False
    return re.search(rf"(?<![\w^+*/-]){re.escape(text)}(?![\w^+*/!-])", asked) is not None


def _compact(text: str) -> str:
    text = normalise(text).replace("\\times", "*").replace("\\cdot", "*")
    text = re.sub(r"\s*([-+*/^=!{}()])\s*", r"\1", text)
    return re.sub(r"\\frac\{(\w+)\}\{(\w+)\}", r"\1/\2", text)


# --- computer algebra ---------------------------------------------------------------------------
def _equal_by_algebra(known: tuple[Reading, ...], gold: str, answer: str) -> bool:
    """math-verify's verdict, where a text is mathematics that no kind reads."""
    claim = claim_of(answer)
    if claim.leaves_open or claim.has_or or claim.denied or denies(claim.text):
        return False
    before = core(claim.text)[0]
    answer = claim.text.removeprefix(before) if not forbids_number(before) else claim.text
    if not _left_to_algebra(known, gold, answer) or not may_be_math_equal(gold, answer):
        return False
    return math_equal(gold, answer)


# What math-verify would read only a part of: words, relations, lists, several values.
_NO_ALGEBRA = re.compile(
    r"[\u4e00-\u9fff,;:?\"]|\\(?:pm|mp|to|rightarrow|Rightarrow|implies|ldots|in|cup|cap|approx"
    r"|text|overline|subset|begin|angle|triangle|%)(?![a-z])|\\sqrt\s*\(|[<>]|!="
    r"|(?<!\\)\b[A-Za-z]{3,}(?![a-z({])"
)


def _left_to_algebra(known: tuple[Reading, ...], gold: str, answer: str) -> bool:
    """Whether it takes computer algebra to tell two normalised texts apart."""
    kinds = {kind.name for kind, _ in known}
    if kinds - {QUANTITY.name, EXPRESSION.name, EQUATION.name, LIST.name, PHRASE.name}:
        return False
    if not looks_like_math(gold) or not looks_like_math(answer):
        return False
    if _NO_ALGEBRA.search(gold) or _NO_ALGEBRA.search(answer) or "\\" not in gold + answer:
        return False
    is_read = bool(kinds - {PHRASE.name})
    return not is_read or not {kind.name for kind, _ in readings(answer)} - {PHRASE.name}


def needs_math_verify(gold: str, answer: str) -> bool:
    """Whether comparing these two can take math-verify, and so its slow import.

    Cheap; may say yes too often.
    """
    if len(gold) > MAX_ANSWER_CHARS or len(answer) > MAX_ANSWER_CHARS:
        return False
    gold_text, text = reference_text(gold), core(normalise(answer))[1]
    return _left_to_algebra(readings(gold_text), gold_text, text)
