"""One row of a file as an example: its messages, its media, its answer."""

import math
import re
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from jaxr1.data.example import Example
from jaxr1.data.formats.base import OWN_COLUMNS, Format, spoken
from jaxr1.data.stored import BadField, InRow, Row, Way, as_list, written
from jaxr1.media.images import MediaError, load_image, probe_image
from jaxr1.media.references import StoredMedia, is_empty, media_reference
from jaxr1.media.videos import probe_video

CheckImages: TypeAlias = Literal["header", "decode", "no"]
"""How far media are opened when a row is read; see `Files.check_images`."""

IMAGE_MARK, VIDEO_MARK = "<image>", "<video>"
ROLES = ("system", "user", "assistant", "tool")
_ANSWER_BLOCK = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def make_example(
    row: Row, known: Format, *, require_answer: bool, check_images: CheckImages
) -> Example:
    """The example of a row of a known format.

    Args:
      row: as it stands in the file.
      known: its format.
      require_answer: whether it must have an answer.
      check_images: how far to open its images and videos.

    Raises:
      BadField: a column is missing or unusable, or the media are not those that the prompt marks.
      DataError: the row has no columns at all.
    """
    own = known.own(row)
    try:
        return _example(row, own, known, require_answer, check_images)
    except BadField as error:
        raise BadField(known.said(error.name), error.reason) from error


def _example(
    row: Row, columns: dict[str, Any], known: Format, require_answer: bool, check: CheckImages
) -> Example:
    name = _prompt_column(columns)
    media = {kind: _Media(row, columns, known, kind, check) for kind in ("image", "video")}
    turns = columns[name]
    is_chat = not isinstance(turns, str)
    if not is_chat:
        turns = [{"role": "user", "content": turns}]
    messages = _messages(turns, name, media)
    if known.unmarked == "first" or (known.unmarked == "chats" and is_chat):
        _put_first(messages, media)
    for column in media.values():
        column.finish(name)

    chosen, rejected = (spoken(columns.get(side), side) for side in ("chosen", "rejected"))
    response = columns.get("response")
    if response is not None and not isinstance(response, str):
        raise BadField("response", f"must be text, got {type(response).__name__}")
    if chosen is not None and response is not None:
        raise BadField("chosen", "the row has a 'response' too: which of them is to be said?")
    response = chosen if response is None else response
    if messages[-1]["role"] == "assistant":
        final = _text_of(messages.pop()["content"])
        response = final if response is None else response
    if not any(message["role"] == "user" for message in messages):
        raise BadField(name, "no user turn before the final one")

    answer = _answer(columns.get("answer"), response)
    if require_answer and not answer:
        raise BadField("answer", "missing, and there is no response to take it from")
    return Example(tuple(messages), answer, response, row.source, _metadata(columns), rejected)


# --- messages -----------------------------------------------------------------------------------
def _prompt_column(columns: Mapping[str, Any]) -> str:
    for name in ("messages", "prompt"):
        if columns.get(name) is not None:
            return name
    raise BadField("prompt", "missing, and so is 'messages'")


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
            path = (name, index, "content")
            parts = [_part(part, (*path, i), media) for i, part in enumerate(content)]
        else:
            raise BadField(
                f"{where}.content",
                f"expected text or a list of parts, got {type(content).__name__}",
            )
        messages.append({"role": role, "content": parts})
    return messages


def _put_first(messages: list[dict[str, Any]], media: "dict[str, _Media]") -> None:
    """Puts media before the first user turn's text where no turn has a place for any."""
    user = next((message for message in messages if message["role"] == "user"), None)
    if user is None or any(column.places for column in media.values()):
        return
    parts = []
    for kind, column in media.items():
        parts += [{"type": kind, kind: column.next()} for _ in column.values]
    if parts:
        content = user["content"]
        text = [{"type": "text", "text": content}] if isinstance(content, str) else content
        user["content"] = [*parts, *text]


def _marked_parts(text: str, media: "dict[str, _Media]") -> Any:
    """The text cut at its marks; the text itself where it has none."""
    marks = {}
    if media["image"].values or media["image"].known.unfilled == "error":
        marks[IMAGE_MARK] = media["image"]
    if media["video"].values:
        marks[VIDEO_MARK] = media["video"]
    if not marks:
        return text
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


def _part(part: Any, path: Way, media: "dict[str, _Media]") -> dict[str, Any]:
    """A part of a list, as an example keeps it; `path` is the way to it."""
    where = written(path)
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text":
        if not isinstance(part.get("text"), str):
            raise BadField(f"{where}.text", "missing")
        return {"type": "text", "text": part["text"]}
    if kind not in ("image", "image_url", "video"):
        raise BadField(where, f"expected a part of type 'text', 'image' or 'video', got {kind!r}")
    medium = "video" if kind == "video" else "image"
    names = ("video", "path") if kind == "video" else ("image", "path", "url", "image_url")
    name = next((key for key in names if not is_empty(part.get(key))), None)
    if name is None:
        return {"type": medium, medium: media[medium].next()}
    value, inner = part[name], (*path, name)
    if kind == "image_url" and isinstance(value, Mapping) and "url" in value:
        value, inner = value["url"], (*inner, "url")
    return {"type": medium, medium: media[medium].resolve(value, inner, where)}


def _text_of(content: Any) -> str:
    """The content of a turn without its media."""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content)


# --- media --------------------------------------------------------------------------------------
class _Media:
    """The images (or videos) of a row, handed out place by place.

    A column of nothing but empty entries is one without media: other tools write so where a row has
    none. What is asked for beyond the end is counted, for `finish` to report.
    """

    def __init__(
        self, row: Row, columns: dict[str, Any], known: Format, kind: str, check: CheckImages
    ) -> None:
        self.kind, self.row, self.known, self.check = kind, row, known, check
        given = {name: as_list(columns.get(name)) for name in (f"{kind}s", kind)}
        filled = [name for name in given if not all(map(is_empty, given[name]))]
        present = [name for name in given if columns.get(name) is not None]
        self.field = next(iter(filled or present), kind)
        self.values: list[Any] = given[self.field] if filled else []
        self.left_out = 0 if filled else len(given[self.field])
        for i, value in enumerate(self.values):
            if is_empty(value):
                raise BadField(
                    f"{self.field}[{i}]",
                    f"the entry is empty: {value!r:.80}; leave it out, or all of them where there "
                    f"is no {kind}",
                )
        self.places = 0

    def next(self) -> Any:
        """The reference that the next place gets; None beyond the end."""
        index = self.places
        self.places += 1
        if index >= len(self.values):
            return None
        value: Any = self.values[index]
        path: Way = (self.field, index)
        where = written(path)
        if isinstance(value, Mapping) and is_empty(value.get("bytes")):
            if not is_empty(value.get(self.kind)):  # {"image": "a.png", "max_pixels": 4}
                value, path = value[self.kind], (*path, self.kind)
        return self.resolve(value, path, where)

    def finish(self, name: str) -> None:
        """Raises BadField where the prompt in the column `name` has more or fewer places."""
        if self.places != len(self.values):
            relation = "more" if self.places > len(self.values) else "fewer"
            empty = f" (and {self.left_out} empty: null or '')" if self.left_out else ""
            raise BadField(
                name,
                f"{relation} <{self.kind}> placeholders than {self.kind}s: {self.places} in "
                f"{self.known.said(name)!r}, {len(self.values)} in "
                f"{self.known.said(self.field)!r}{empty}",
            )

    def resolve(self, value: Any, path: Way, where: str) -> str | StoredMedia:
        """The reference that an example keeps, opened as far as was asked for.

        A path, or the place of bytes in their file.
        """
        try:
            reference = media_reference(value, self.row.at.root)
            if self.kind == "video":
                if self.check != "no":
                    probe_video(reference)
            elif self.check == "decode":
                load_image(reference)
            elif self.check == "header":
                probe_image(reference)
        except MediaError as error:
            raise BadField(where, str(error)) from error
        if isinstance(reference, str):
            return reference
        return InRow(self.row.at, self.known, path)


# --- answers and other columns ------------------------------------------------------------------
def _answer(value: Any, response: str | None) -> str | None:
    """The reference answer: the column's, else the one that the response states."""
    if isinstance(value, str):
        return _stated(value)
    if value is not None:
        is_number = isinstance(value, bool | int | float)
        if not is_number or (isinstance(value, float) and not math.isfinite(value)):
            raise BadField("answer", f"expected text or a number, got {value!r:.80}")
        return str(value)
    if response is None:
        return None
    return _stated(response).strip()


def _stated(text: str) -> str:
    """What stands in the answer block of a text; the text where it has none, or several."""
    blocks = _ANSWER_BLOCK.findall(text)
    return blocks[0].strip() if len(blocks) == 1 else text


def _metadata(columns: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that mean nothing here, without those that hold bytes."""
    metadata = {}
    for name, value in columns.items():
        if name not in OWN_COLUMNS and not _has_bytes(value):
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
