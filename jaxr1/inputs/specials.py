"""Strings that are special tokens: where text must not become one, and which of them are text."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

# Private-use characters: a template may lower-case or trim around them, and never contains them
# itself.
SENTINEL = "\ue000{}\ue001"
SENTINEL_PATTERN = re.compile("\ue000([0-9]+)\ue001")
# The form of <think> and </answer>. Marks of turns and media are written <|like_this|>, [LIKE] or,
# where they have this form too, are known by what they do: they stop, open or pad.
_TAG = re.compile(r"</?[A-Za-z][\w-]*>")


@dataclasses.dataclass(frozen=True)
class Specials:
    """The strings that are special tokens of a model.

    A special token in the form of a tag, <think> or </answer>, is part of what the model says: the
    rewards read answers by it. The others are silent, and so is a tag where the tokenizer gives it
    another part (beginning, end, padding, unknown), or where it stops a response or stands for
    media.

    Attributes:
      names: of all tokens that text must not become.
      tags: names of those that are part of what the model says.
      silent: ids of those that are not.
    """

    names: tuple[str, ...]
    tags: tuple[str, ...] = ()
    silent: frozenset[int] = frozenset()

    @classmethod
    def of(cls, tokenizer: Any, stops: Sequence[int], media: Sequence[int]) -> Specials:
        """Those of a tokenizer of transformers, by the ids that stop a response or are media."""
        parts = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token)
        names, tags, silent = [], [], set()
        for i, token in tokenizer.added_tokens_decoder.items():
            if not token.special and i not in media:
                continue
            names.append(token.content)
            has_part = i in stops or i in media or token.content in parts
            if _TAG.fullmatch(token.content) and not has_part:
                tags.append(token.content)
            elif token.special:
                silent.add(i)
        return cls(tuple(names), tuple(tags), frozenset(silent))

    @functools.cached_property
    def pattern(self) -> re.Pattern:
        """Matches each of them, the longest first; splitting at it keeps them."""
        longest_first = sorted(self.names, key=len, reverse=True)
        return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    @functools.cached_property
    def _to_hide(self) -> re.Pattern:
        # The sentinel's own first character is hidden too, so that no text can hold a sentinel.
        return re.compile(f"{self.pattern.pattern}|{SENTINEL[0]}")

    @functools.cached_property
    def _heads(self) -> frozenset[str]:
        return frozenset().union(*(_starts(name) for name in self.names))

    @functools.cached_property
    def _tails(self) -> frozenset[str]:
        return frozenset().union(*(_ends(name) for name in self.names))

    def hide(self, text: str, keep: Callable[[str], str]) -> str:
        """A text of the user as a template may have it: no special string in it or at its borders.

        What `keep` gives (a sentinel) takes the place of every special string, and of the pieces at
        both ends that could become one together with the text beside them:

            "a<|im_end|>b<|im_", "end|>c"    ->    "a" S "b" S, S "c"
        """
        text = self._to_hide.sub(lambda m: keep(m.group()), text)
        longest = max(map(len, self.names), default=0)
        for size in range(min(longest, len(text)), 0, -1):
            if text[-size:] in self._heads:
                text = text[:-size] + keep(text[-size:])
                break
        for size in range(min(longest, len(text)), 0, -1):
            if text[:size] in self._tails:
                return keep(text[:size]) + text[size:]
        return text

    def spoken(self, text: str) -> list[str]:
        """The text in pieces, every tag one of its own."""
        if not self.tags:
            return [text]
        cut = re.split("(" + "|".join(map(re.escape, self.tags)) + ")", text)
        return [piece for piece in cut if piece]

    def pieces(self, text: str) -> list[str]:
        """The text in pieces of which none holds a special string: such a one is cut in two."""
        found: list[str] = []
        for piece in self.pattern.split(text):
            cut = 1 if self.pattern.fullmatch(piece) else len(piece)
            found += [part for part in (piece[:cut], piece[cut:]) if part]
        return found


def _starts(name: str) -> set[str]:
    return {name[:size] for size in range(1, len(name))}


def _ends(name: str) -> set[str]:
    return {name[size:] for size in range(1, len(name))}
