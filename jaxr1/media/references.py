"""What may stand for a picture or a clip: a path, bytes in any of their spellings, or nothing.

The same forms are read wherever media are named: in the parts of a prompt, in the columns and parts
of a data file, among the frames of a clip.
"""

import ast
import base64
import binascii
import os
import re
import urllib.parse
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxr1.base.errors import UserError

MAX_PATH_CHARS = 4096
MAX_PRINTED_BYTES = 1 << 28
"""Characters of a printed byte string that are still parsed.

64 MiB of image at up to four characters a byte.
"""

_DATA_URI = re.compile(r"data:[\w.+-]*/?[\w.+-]*(;[\w.+-]+=[^;,]*)*;base64,", re.ASCII)
_FILE_URI = re.compile(r"file:(?://)?(?:localhost(?=/))?", re.ASCII | re.IGNORECASE)
_WEB = re.compile(r"(?:https?|ftp|s3|gs|hf)://", re.ASCII | re.IGNORECASE)
_PRINTED_BYTES = re.compile(r"""b'(?:[^'\\]|\\.)*'|b"(?:[^"\\]|\\.)*\"""", re.ASCII)
# The first base64 characters of JPEG, PNG, GIF, RIFF (WebP, AVI), BMP, TIFF, JPEG 2000, of what
# begins with a box "ftyp" (AVIF, MP4, MOV), of Matroska (WebM), FLV and Ogg files.
_BASE64_STARTS = re.compile(
    r"/9j/|iVBORw0KGgo|R0lGOD|UklGR|Qk|SUkq|TU0A|AAAADGpQ|AAAA..Z0eX[A-D]|GkXfo|RkxW|T2dnU"
)


class MediaError(UserError):
    """An image or video that is missing, damaged, too large or none; the message names it."""


class StoredMedia(ABC):
    """Encoded bytes that are read from where they lie when they are needed.

    Attributes:
      name: how messages call them.
    """

    __slots__ = ()

    @property
    @abstractmethod
    def name(self) -> str: ...

    @abstractmethod
    def read(self) -> bytes:
        """The bytes.

        Raises:
          MediaError: they are no longer there.
        """


def is_empty(value: Any) -> bool:
    """Whether an entry stands for no picture: null, "", or a struct of nulls."""
    if isinstance(value, Mapping):
        return all(map(is_empty, value.values()))
    return value is None or (isinstance(value, str) and not value.strip())


def media_reference(value: Any, root: Path | None = None) -> str | bytes:
    """A path or encoded bytes, from whatever may stand for them.

    Args:
      value: a path or `file://` address, bytes, base64, a `data:` URI with base64, the printed form
        of a byte string, or a mapping with "bytes" or "path".
      root: folder that relative paths start from; None is the working directory.

    Raises:
      MediaError: nothing of this, an empty entry, or an address on the web.
    """
    if isinstance(value, StoredMedia):
        return value.read()
    if is_empty(value):
        raise MediaError(f"the entry is empty: {value!r:.80}")
    if isinstance(value, Mapping):  # the image struct of parquet files
        if not is_empty(value.get("bytes")):
            return _encoded_bytes(value["bytes"])
        if is_empty(value.get("path")):
            has = ", ".join(map(repr, value))
            raise MediaError(f"expected an object with 'bytes' or 'path', got one with {has}")
        value = value["path"]
        if not isinstance(value, str | os.PathLike):
            raise MediaError(f"'path' must be text, got {type(value).__name__}")
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str):
        raise MediaError(
            f"expected a path, bytes, base64 or a data URI, got {type(value).__name__}"
        )
    found = _spelled_bytes(value)
    return _path(value, root) if found is None else found


def _encoded_bytes(value: Any) -> bytes:
    """What stands under "bytes", where JSON has no bytes of its own."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, list | tuple) and value:
        if all(type(item) is int and 0 <= item < 256 for item in value):
            return bytes(value)
    if isinstance(value, str):
        found = _spelled_bytes(value)
        return _decoded(value, "text") if found is None else found
    raise MediaError(
        f"'bytes' must be bytes, base64, a data URI or numbers from 0 to 255, got {value!r:.80}"
    )


def _spelled_bytes(text: str) -> bytes | None:
    """The bytes that a text spells out; None where it does not look so and may be a path."""
    if text[:5].lower() == "data:":
        return decode_data_uri(text)
    if text.startswith(("b'", 'b"')) and len(text) > 3 and text[-1] == text[1]:
        return parse_printed_bytes(text)
    if len(text) >= 64 and _BASE64_STARTS.match(text):
        try:
            return base64.b64decode("".join(text.split()), validate=True)
        except (binascii.Error, ValueError):
            pass  # then it is a path
    return None


def _path(text: str, root: Path | None) -> str:
    """The path that a text names."""
    if _WEB.match(text):
        raise MediaError(
            f"{text[:200]!r}: images are not downloaded; fetch the file and name its path"
        )
    if len(text) > MAX_PATH_CHARS:
        raise MediaError(
            f"{text[:40]!r}... ({len(text)} characters): neither a path nor base64 of a known "
            "image format"
        )
    folder = Path() if root is None else root
    address = _FILE_URI.match(text)
    if address is None:
        return os.fspath(folder / text)
    # Tools that write such addresses do not agree: some encode a space as %20, some write the name
    # as it is, and then a percent sign is one. A file that has the name to the letter is meant.
    literal = folder / text[address.end() :]
    try:
        if literal.is_file():
            return os.fspath(literal)
    except (OSError, ValueError):
        pass  # whatever is wrong with it is said when it is opened
    return os.fspath(folder / urllib.parse.unquote(text[address.end() :]))


def decode_data_uri(text: str) -> bytes:
    """The bytes of a `data:...;base64,` URI.

    Raises:
      MediaError: another kind of URI, or text that is not base64.
    """
    match = _DATA_URI.match("data:" + text[5:])
    if match is None:
        raise MediaError(f"data URI without ';base64,': {text[:60]!r}")
    return _decoded(text[match.end() :], f"data URI of {len(text)} characters")


def _decoded(text: str, name: str) -> bytes:
    """The bytes of base64; `name` is how the message calls it."""
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise MediaError(f"{name}: not base64 ({error})") from error


def parse_printed_bytes(text: str) -> bytes:
    r"""The bytes that Python printed as text: `"b'\\xff\\xd8...'"` gives `b'\xff\xd8...'`.

    Only a single bytes literal is accepted (checked before parsing), and nothing is evaluated.

    Raises:
      MediaError: anything else, or more than `MAX_PRINTED_BYTES` characters.
    """
    if len(text) > MAX_PRINTED_BYTES:
        raise MediaError(
            f"printed byte string of {len(text)} characters: "
            f"more than {MAX_PRINTED_BYTES} are not parsed"
        )
    if _PRINTED_BYTES.fullmatch(text) is None:
        raise MediaError(f"{text[:40]!r}...: not a printed byte string")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise MediaError(f"{text[:40]!r}...: not a printed byte string ({error})") from error
    if not isinstance(value, bytes):
        raise MediaError(f"{text[:40]!r}...: not a printed byte string")
    return value
