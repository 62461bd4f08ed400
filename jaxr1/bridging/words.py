"""What the models are asked, and what is put right in what they say: one place to edit."""

from __future__ import annotations

import dataclasses
import functools
import re

from jaxr1.base.checks import check_types

PSEUDO = """Question: {question}
Its answer is: {answer}

Say first, in detail, what you see. Then explain step by step how one gets from there to this \
answer."""

DESCRIBE = """Question: {question}

Notes of someone who has thought about it:
{pseudo}

Someone else, who cannot see what you see, is to answer the question from your words alone. Write \
down everything that the answer may depend on: objects, texts, numbers, labels, lengths, colours, \
and how they lie. Do not reason, and do not give the answer."""

REASON = """What someone sees:
{description}

Question: {question}

Think step by step between <think> and </think>, then write nothing but the answer between \
<answer> and </answer>."""

RESPONSE = "<think>\n{thought}\n</think>\n<answer>{answer}</answer>"

_NAMED = r"(?:text(?:ual)? |written |verbal |image |picture |given |provided |above )*"
REPLACED = (
    (
        rf"\bthe {_NAMED}descriptions? (says?|states?|mentions?|tells? us|notes?)\b",
        "the image shows",
    ),
    (rf"\bthe {_NAMED}descriptions?\b", "the image"),
    (rf"\b(?:this|that) {_NAMED}description\b", "this image"),
    (r"\bas (?:described|stated|mentioned|given)(?: above)?\b", "as shown"),
    (r"\b(is|are|was|were) described\b", r"\1 shown"),
    (r"\bdescriptions?\b", "image"),
    (r"(?:文字|图片|图像|上述|给出的)*描述", "图像"),
)
"""(pattern, what takes its place), in order: words about a description become words about a
picture, which is what the response stands beside in the end. Case of the first letter is kept.
"""

_FIELDS = {
    "pseudo": ("question", "answer"),
    "describe": ("question", "pseudo"),
    "reason": ("question", "description"),
    "response": ("thought", "answer"),
}


@dataclasses.dataclass(frozen=True)
class Words:
    """What the models are asked, with places for what is known by then.

    Attributes:
      pseudo: asks for a caption and a reasoning of the known answer: {question}, {answer}.
      describe: asks for a description that suffices: {question}, {pseudo}.
      reason: asks for an answer without the picture: {question}, {description}.
      response: the worked response: {thought}, {answer}.
      replaced: (pattern, what takes its place) in the thought.
    """

    pseudo: str = PSEUDO
    describe: str = DESCRIBE
    reason: str = REASON
    response: str = RESPONSE
    replaced: tuple[tuple[str, str], ...] = REPLACED

    def __post_init__(self):
        check_types(self)
        for name, fields in _FIELDS.items():
            text = getattr(self, name)
            if missing := [field for field in fields if f"{{{field}}}" not in text]:
                raise ValueError(f"words.{name} has no place for {{{missing[0]}}}")
        for pattern, _ in self.replaced:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"words.replaced: {pattern!r} is no pattern ({error})") from error

    def asked(self, name: str, **known: str) -> str:
        """One of the texts with its places filled; braces in what is known stay as they are."""
        pieces = re.split(r"(\{\w+\})", getattr(self, name))
        return "".join(
            known.get(piece[1:-1], piece) if piece[:1] == "{" else piece for piece in pieces
        )

    def of_the_picture(self, thought: str) -> str:
        """A thought about a description as one about a picture."""
        for pattern, new in self.replaced:
            thought = re.sub(pattern, functools.partial(_like, new), thought, flags=re.IGNORECASE)
        return thought


def _like(new: str, found: re.Match[str]) -> str:
    """The replacement, with a capital letter where what it replaces has one."""
    text = found.expand(new)
    return text[:1].upper() + text[1:] if found.group()[:1].isupper() else text
