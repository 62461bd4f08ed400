"""Where a stop string ends a response."""

from __future__ import annotations

import bisect
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxr1.inputs.processor import Processor


@dataclasses.dataclass(frozen=True)
class Cut:
    """A response up to a stop string.

    Attributes:
      text: what stands before the string.
      size: tokens up to the one that completed it; the others were drawn only because the host
        looks in chunks.
    """

    text: str
    size: int


@dataclasses.dataclass(frozen=True, eq=False)
class StopStrings:
    """The strings that end a response, in what a processor makes of token ids.

    A string with a special token's name in it is looked for in the text with all special tokens
    written out, every other one in the text as users get it.

    Attributes:
      strings: that end a response.
      processor: of the model.
    """

    strings: tuple[str, ...]
    processor: Processor

    @functools.cached_property
    def ids(self) -> frozenset[int]:
        """Special tokens whose names are stop strings: the device itself stops at them."""
        added = self.processor.tokenizer.added_tokens_decoder
        return frozenset(i for i, token in added.items() if token.content in self.strings)

    @functools.cached_property
    def _named(self) -> frozenset[str]:
        """The strings that hold the name of a special token."""
        added = self.processor.tokenizer.added_tokens_decoder.values()
        names = [token.content for token in added if token.special]
        return frozenset(stop for stop in self.strings if any(name in stop for name in names))

    @property
    def longest(self) -> int:
        """Bytes of the longest one, and so the most tokens that it takes."""
        return max((len(stop.encode()) for stop in self.strings), default=0)

    def found(self, token_ids: np.ndarray) -> bool:
        """Whether the text of some tokens holds one of the strings."""
        texts = self._texts(token_ids)
        return any(stop in texts[stop in self._named] for stop in self.strings)

    def cut(self, token_ids: np.ndarray) -> Cut | None:
        """The response up to the first string in it; None without one."""
        if not self.found(token_ids):
            return None
        texts = self._texts(token_ids)
        before = []
        for stop in self.strings:
            is_named = stop in self._named
            place = texts[is_named].find(stop)
            if place >= 0:
                told = self._told(token_ids, place) if is_named else texts[False][:place]
                before.append(told)
        holds = lambda count: self.found(token_ids[:count])
        counts = range(1, len(token_ids) + 1)
        return Cut(min(before, key=len), 1 + bisect.bisect_left(counts, True, key=holds))

    def _texts(self, token_ids: Sequence[int] | np.ndarray) -> dict[bool, str]:
        """The text by whether special tokens are written out, as far as any string needs it."""
        wanted = {stop in self._named for stop in self.strings}
        return {named: self.processor.decode(token_ids, special=named) for named in wanted}

    def _told(self, token_ids: Any, place: int) -> str:
        """What users get of a text with its special tokens, cut at a character of it."""
        written = lambda count: self.processor.decode(token_ids[:count], special=True)
        # the tokens that are over before that character, and what is left of the next one
        reaches = lambda count: len(written(count)) > place
        count = bisect.bisect_left(range(1, len(token_ids) + 1), True, key=reaches)
        rest = written(len(token_ids))[len(written(count)) : place]
        return self.processor.decode(token_ids[:count]) + rest
