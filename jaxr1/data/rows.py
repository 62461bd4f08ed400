"""One row of a file as an example: its messages, its media, its answer."""

import ast
import base64
import binascii
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from jaxr1.data.example import Example
from jaxr1.data.tables import BadField, Row
from jaxr1.media.images import MediaError, decode_data_uri, load_image, probe_image
from jaxr1.media.videos import probe_video

CheckImages: TypeAlias = Literal["header", "decode", "no"]
"""How far media are opened when a row is read; see `Files.check_images`."""

IMAGE_MARK, VIDEO_MARK = "<image>", "<video>"
ROLES = ("system", "user", "assistant", "tool")
MAX_PATH_CHARS = 4096
MAX_PRINTED_BYTES = 1 << 28
"""Characters of a printed byte string that are still parsed.

64 MiB of image at up to four characters a byte.
"""

_OWN_COLUMNS = ("messages", "prompt", "images", "image", "videos", "video", "answer", "response")
_PRINTED_BYTES = re.compile(r"""b'(?:[^'\\]|\\.)*'|b"(?:[^"\\]|\\.)*\"""", re.ASCII)
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+={0,2}\s*", re.ASCII)
_ANSWER_BLOCK = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
# The first base64 characters of JPEG, PNG, GIF, RIFF (WebP), BMP and TIFF files.
_BASE64_STARTS = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "Qk", "SUkq", "TU0A")


def make_example(row: Row, *, require_answer: bool, check_images: CheckImages) -> Example:
    """The example of a row with the columns that `Files` describes.

    Args:
      row: as it stands in the file.
      require_answer: whether it must have an answer.
      check_images: how far to open its images and videos.

    Raises:
      BadField: a column is missing or unusable, or the media are not those that the prompt marks.
      DataError: the row has no columns at all.
    """
    columns = row.columns
    name = _prompt_column(columns)
    media = {kind: _Media(row, kind, check_images) for kind in ("image", "video")}
    turns = columns[name]
    if isinstance(turns, str):
        turns = [{"role": "user", "content": turns}]
    messages = _messages(turns, name, media)
    for column in media.values():
        column.finish(name)

    response = columns.get("response")
    if response is not None and not isinstance(response, str):
        raise BadField("response", f"must be text, got {type(response).__name__}")
    if messages[-1]["role"] == "assistant":
        final = _text_of(messages.pop()["content"])
        response = final if response is None else response
    if not any(message["role"] == "user" for message in messages):
        raise BadField(name, "no user turn before the final one")

    answer = _answer(columns.get("answer"), response)
    if require_answer and not answer:
        raise BadField("answer", "missing, and there is no response to take it from")
    return Example(tuple(messages), answer, response, row.source, _metadata(columns))


def as_list(value: Any) -> list[Any]:
    """What a column with one or more values holds, as a list; [] for None."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


# --- messages -----------------------------------------------------------------------------------
def _prompt_column(columns: Mapping[str, Any]) -> str:
    for name in ("messages", "prompt"):
        if columns.get(name) is not None:
            return name
    has = ", ".join(map(repr, columns)) or "nothing"
    raise BadField("prompt", f"missing, and so is 'messages'; the row has {has}")


def _messages(turns: Any, name: str, media: "dict[str, _Media]") -> list[dict[str, Any]]:
    """The turns of the column `name`, their media in place."""
    if not isinstance(turns, list) or not turns:
        raise BadField(name, f"expected text or a list of turns, got {turns!r:.80}")
    messages = []
    for index, turn in enumerate(turns):
        where = f"{name}[{index}]"
        if not isinstance(turn, Mapping) or turn.get("content") is None:
            raise BadField(where, "expected an object with 'role' and 'content'")
        role, content = turn.get("role"), turn["content"]
        if role not in ROLES:
            raise BadField(f"{where}.role", f"expected one of {', '.join(ROLES)}, got {role!r}")
        if isinstance(content, str):
            # what a model has said is text to the letter, its "<image>" too
            parts: Any = content if role == "assistant" else _marked_parts(content, media)
        elif isinstance(content, list):
            parts = [_part(part, f"{where}.content[{i}]", media) for i, part in enumerate(content)]
        else:
            raise BadField(
                f"{where}.content",
                f"expected text or a list of parts, got {type(content).__name__}",
            )
        messages.append({"role": role, "content": parts})
    return messages


def _marked_parts(text: str, media: "dict[str, _Media]") -> Any:
    """The text cut at its marks; the text itself where it has none."""
    marks = {IMAGE_MARK: media["image"]}
    if media["video"].values:
        marks[VIDEO_MARK] = media["video"]
    pieces = re.split("(" + "|".join(marks) + ")", text)
    if len(pieces) == 1:
        return text
    parts: list[dict[str, Any]] = []
    for piece in pieces:
        if piece in marks:
            parts.append({"type": marks[piece].kind, marks[piece].kind: marks[piece].next()})
        elif piece:
            parts.append({"type": "text", "text": piece})
    return parts


def _part(part: Any, where: str, media: "dict[str, _Media]") -> dict[str, Any]:
    """A part of a list, as an example keeps it."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text":
        if not isinstance(part.get("text"), str):
            raise BadField(f"{where}.text", "missing")
        return {"type": "text", "text": part["text"]}
    if kind not in ("image", "image_url", "video"):
        raise BadField(where, f"expected a part of type 'text', 'image' or 'video', got {kind!r}")
    medium = "video" if kind == "video" else "image"
    names = ("video", "path") if kind == "video" else ("image", "path", "url", "image_url")
    value = next((part[key] for key in names if part.get(key) is not None), None)
    if kind == "image_url" and isinstance(value, Mapping):
        value = value.get("url")
    column = media[medium]
    reference = column.next() if value is None else column.resolve(value, where)
    return {"type": medium, medium: reference}


def _text_of(content: Any) -> str:
    """The content of a turn without its media."""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content)


# --- media --------------------------------------------------------------------------------------
class _Media:
    """The images (or videos) of a row, handed out place by place.

    What is asked for beyond their end is counted, for `finish` to report.
    """

    def __init__(self, row: Row, kind: str, check: CheckImages) -> None:
        self.kind, self.root, self.check = kind, row.root, check
        self.field = f"{kind}s" if row.columns.get(f"{kind}s") is not None else kind
        self.values = as_list(row.columns.get(self.field))
        self.places = 0

    def next(self) -> Any:
        """The reference that the next place gets; None beyond the end."""
        index = self.places
        self.places += 1
        if index >= len(self.values):
            return None
        return self.resolve(self.values[index], f"{self.field}[{index}]")

    def finish(self, name: str) -> None:
        """Raises BadField where the prompt in the column `name` has more or fewer places."""
        if self.places != len(self.values):
            relation = "more" if self.places > len(self.values) else "fewer"
            raise BadField(
                name,
                f"{relation} <{self.kind}> placeholders than {self.kind}s: "
                f"{self.places} in {name!r}, {len(self.values)} in {self.field!r}",
            )

    def resolve(self, value: Any, where: str) -> str | bytes:
        """The reference that an example keeps, a path or bytes, opened as far as was asked for."""
        try:
            reference = _reference(value, self.root)
            if self.kind == "video":
                if self.check != "no":
                    probe_video(reference)
            elif self.check == "decode":
                load_image(reference)
            elif self.check == "header":
                probe_image(reference)
        except MediaError as error:
            raise BadField(where, str(error)) from error
        return reference


def _reference(value: Any, root: Path) -> str | bytes:
    """What an images column may hold, as a path or as encoded bytes."""
    if isinstance(value, Mapping):  # the image struct of parquet files
        if value.get("bytes") is not None:
            return bytes(value["bytes"])
        value = value.get("path")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise MediaError(
            f"expected a path, bytes, base64 or a data URI, got {type(value).__name__}"
        )
    if not value.strip():
        raise MediaError("the path is empty")
    if value.startswith("data:"):
        return decode_data_uri(value)
    if value.startswith(("http://", "https://")):
        raise MediaError(
            f"{value[:200]!r}: images are not downloaded; fetch the file and name its path"
        )
    if value.startswith(("b'", 'b"')) and len(value) > 3 and value[-1] == value[1]:
        return parse_printed_bytes(value)
    if len(value) >= 64 and value.startswith(_BASE64_STARTS) and _BASE64.fullmatch(value):
        try:
            return base64.b64decode("".join(value.split()), validate=True)
        except (binascii.Error, ValueError):
            pass  # then it is a path
    if len(value) > MAX_PATH_CHARS:
        raise MediaError(
            f"{value[:40]!r}... ({len(value)} characters): neither a path nor base64 of a known "
            "image format"
        )
    return os.fspath(root / value.removeprefix("file://"))


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


# --- answers and other columns ------------------------------------------------------------------
def _answer(value: Any, response: str | None) -> str | None:
    """The reference answer: the column's, else the one that the response states."""
    if isinstance(value, str):
        return value
    if value is not None:
        is_number = isinstance(value, bool | int | float)
        if not is_number or (isinstance(value, float) and not math.isfinite(value)):
            raise BadField("answer", f"expected text or a number, got {value!r:.80}")
        return str(value)
    if response is None:
        return None
    blocks = _ANSWER_BLOCK.findall(response)
    return (blocks[0] if len(blocks) == 1 else response).strip()


def _metadata(columns: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that mean nothing here, without those that hold bytes."""
    metadata = {}
    for name, value in columns.items():
        if name not in _OWN_COLUMNS and not _has_bytes(value):
            metadata[name] = _plain(value)
    return metadata


def _has_bytes(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_has_bytes(item) for item in value.values())
    if isinstance(value, list | tuple):
        return any(_has_bytes(item) for item in value)
    return isinstance(value, bytes)


def _plain(value: Any) -> Any:
    """A parquet value as JSON can hold it, so that rewards and rollout files can take it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, str | bool | int | float) else str(value)
