"""Which thoughts are kept: rules against texts that are unfinished, or at odds with themselves."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

from jaxr1.rewards.accuracy import answers_match
from jaxr1.rewards.reading.answers import ANSWER_OPEN, boxes, extract_answer
from jaxr1.rewards.repetition import repetition_reward
from jaxr1.rewards.types import Completion

THINK, THINK_END = "<think>", "</think>"
MIN_THOUGHT = 20  # characters: less is no reasoning
REPEATED_WORDS, MOST_REPEATED = 8, 0.2  # runs of so many words, share of them that are repeats

_BLIND = re.compile(
    r"(?i)\b(?:can(?:not|'t| not)|unable to|could not) (?:see|view|access)\b"
    r"|\bnot (?:provided|specified|mentioned|given|described|stated)\b"
    r"|\b(?:insufficient|not enough|missing) (?:information|details?|data)\b"
    r"|\bwithout (?:seeing|the image|the picture)\b"
    r"|无法看到|没有(?:提供|说明|提到)|信息不足"
)
_LEAKED = re.compile(r"(?i)\b(?:the notes?|(?:known|given|provided|reference) answer)\b")
_STATED = re.compile(r"(?i)\b(?:answer|result) (?:is|must be|should be|=):?\s+([^\n.;]{1,60})")
_CHINESE = re.compile(r"[\u4e00-\u9fff]")


@dataclasses.dataclass(frozen=True)
class Reasoned:
    """A response of the model that reasons, in its parts.

    Attributes:
      thought: its reasoning.
      answer: what it states in the end; "" where it states nothing.
      reference: the right answer.
      question: the question.
      stopped: whether it ended by itself.
    """

    thought: str
    answer: str
    reference: str
    question: str
    stopped: bool

    @classmethod
    def of(cls, text: str, reference: str, question: str, stopped: bool) -> Reasoned:
        """The parts of a text with or without tags."""
        thought = text
        if THINK_END in text:
            thought = text[: text.rfind(THINK_END)]
        elif ANSWER_OPEN in text:
            thought = text[: text.find(ANSWER_OPEN)]
        thought = thought.replace(THINK, "").strip()
        answer = extract_answer(text, tail=True) or ""
        return cls(thought, answer, reference, question, stopped)


def _unfinished(said: Reasoned) -> str | None:
    return None if said.stopped else "it was cut at the length limit"


def _short(said: Reasoned) -> str | None:
    return None if len(said.thought) >= MIN_THOUGHT else "there is hardly any thought"


def _blind(said: Reasoned) -> str | None:
    found = _BLIND.search(said.thought)
    return f"it misses something: {found.group()!r}" if found else None


def _leaked(said: Reasoned) -> str | None:
    """Words about notes or a known answer, which somebody who looks at a picture does not have."""
    found = _LEAKED.search(said.thought)
    return f"it speaks of {found.group()!r}" if found else None


def _contradicts(said: Reasoned) -> str | None:
    """The last answer inside the thought is another one than that behind it."""
    boxed = [content for _, _, content in boxes(said.thought)]
    stated = boxed[-1:] or _STATED.findall(said.thought)[-1:]
    for one in stated:
        if one and not answers_match(said.reference, one.strip().strip("*$ ")):
            return f"the thought ends with {one.strip()!r:.40}, the answer is {said.answer!r:.40}"
    return None


def _repeats(said: Reasoned) -> str | None:
    share = -repetition_reward(Completion(said.thought), ngram=REPEATED_WORDS)
    return None if share <= MOST_REPEATED else f"it repeats itself ({share:.0%})"


def _switches(said: Reasoned) -> str | None:
    if _CHINESE.search(said.question + said.reference) or not _CHINESE.search(said.thought):
        return None
    return "it changes the language"


RULES: dict[str, Callable[[Reasoned], str | None]] = {
    "unfinished": _unfinished,
    "short": _short,
    "blind": _blind,
    "leaked": _leaked,
    "contradicts": _contradicts,
    "repeats": _repeats,
    "switches": _switches,
}
"""{name: why a thought is dropped, or None}."""
