"""Where the values of a JSON list stand in the bytes of its file."""

import array
import codecs
import json
from typing import BinaryIO

import numpy as np

READ_BYTES = 1 << 20
_DECODER = json.JSONDecoder()


def list_places(file: str, encoding: str, start: int) -> np.ndarray | None:
    """The places of the values of a JSON list; one of them is in memory at a time.

    Args:
      encoding: of the text.
      start: where it begins, behind a byte order mark.

    Returns:
      int64[n, 2], first byte and size. None where the file holds no list, or breaks off: what is
      wrong is for the parser of the whole to say.
    """
    with open(file, "rb") as opened:
        try:
            found = _places(_Window(opened, encoding, start))
        except UnicodeDecodeError:
            return None
    return None if found is None else np.frombuffer(found, np.int64).reshape(-1, 2)


def _places(window: "_Window") -> array.array | None:
    """The places of a list's values; None where it is no list, or no whole one."""
    if window.next() != "[":
        return None
    window.advance(window.at + 1)
    found = array.array("q")
    if window.next() != "]":
        while True:
            window.next()
            first, end = window.offset, window.value()
            if end is None:
                return None
            window.advance(end)
            found.extend((first, window.offset - first))
            following = window.next()
            if following == "]":
                break
            if following != ",":
                return None
            window.advance(window.at + 1)
    window.advance(window.at + 1)
    return found if not window.next() else None


class _Window:
    """The part of a JSON file that is being parsed.

    Attributes:
      text: that part.
      at: what of it is done with, in characters.
      offset: the same in bytes, from the beginning of the file.
    """

    def __init__(self, file: BinaryIO, encoding: str, start: int) -> None:
        self.text, self.at, self.offset = "", 0, start
        self._file, self._encoding = file, encoding
        self._read = codecs.getincrementaldecoder(encoding)()
        file.seek(start)

    def advance(self, to: int) -> None:
        """Is done with the text before a place in it."""
        self.offset += len(self.text[self.at : to].encode(self._encoding))
        self.at = to

    def next(self) -> str:
        """The next character that is no white space, which is passed over; "" at the end."""
        while True:
            self.advance(_skip(self.text, self.at))
            if self.at < len(self.text) or not self._more():
                return self.text[self.at : self.at + 1]

    def value(self) -> int | None:
        """Where in the text the value ends that begins here; None where none does."""
        while True:
            try:
                end = _DECODER.raw_decode(self.text, self.at)[1]
            except (ValueError, RecursionError):
                end = None  # perhaps only for want of its end
            # The text may break off inside a number, after what is one too: 3.5 of 3.5e-7.
            if end is not None and self._following(end) in (",", "]"):
                return end
            if not self._more():
                return None

    def _following(self, end: int) -> str:
        at = _skip(self.text, end)
        return self.text[at : at + 1]

    def _more(self) -> bool:
        """Reads on, at least as much as is there already; False at the end of the file."""
        data = self._file.read(max(READ_BYTES, len(self.text) - self.at))
        self.text = self.text[self.at :] + self._read.decode(data, final=not data)
        self.at = 0
        return bool(data)


def _skip(text: str, at: int) -> int:
    """The place of the next character that is no white space of JSON."""
    while text[at : at + 1] in (" ", "\t", "\r", "\n"):
        at += 1
    return at
