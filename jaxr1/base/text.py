"""Text of others on its way to a terminal."""

from __future__ import annotations

import unicodedata

# They turn the direction of what follows, and so show a line as another one.
TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def visible(text: str) -> str:
    r"""The same text with control characters written out, such as \x1b; line breaks and tabs stay.

    A terminal obeys escape sequences: a row's name or a model's answer could clear the screen, set
    the title or forge what a run has said.
    """
    return "".join(map(_shown, text))


def _shown(character: str) -> str:
    if character in "\n\t" or not _is_control(character):
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def _is_control(character: str) -> bool:
    return character in TURNING or unicodedata.category(character) in ("Cc", "Cs")
