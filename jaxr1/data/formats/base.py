"""What a format of rows is: columns it is known by, and what they are in our own columns."""

import ast
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxr1.data.stored import BadField, Row
from jaxr1.media.references import MAX_PRINTED_BYTES, is_empty

MEDIA_COLUMNS = ("images", "image", "videos", "video")
OWN_COLUMNS = (
    "messages",
    "prompt",
    *MEDIA_COLUMNS,
    "answer",
    "response",
    "chosen",
    "rejected",
)


@dataclass(frozen=True)
class Format:
    """A format of rows.

    Attributes:
      name: what messages and pages call it.
      columns: sets of columns; a row is of this format where it has all of one of them, not null.
      convert: gives the columns that `Files` describes, and others as they are, from a row. It
        raises BadField, with the names of this format.
      lacks: columns that a row of this format does not have.
      unmarked: what becomes of images and videos of a prompt that marks the place of none of them:
        "first" puts them before the first user turn's text, "chats" does so where the prompt is a
        list of turns, "error" makes it a bad row.
      unfilled: what `<image>` is in a row without images: "error" makes it a bad row, "text" leaves
        it as it is.
      names: what messages call our columns where this format has another name for them.
    """

    name: str
    columns: tuple[tuple[str, ...], ...]
    convert: Callable[[Row], dict[str, Any]]
    lacks: tuple[str, ...] = ()
    unmarked: Literal["first", "chats", "error"] = "first"
    unfilled: Literal["error", "text"] = "error"
    names: Mapping[str, str] = field(default_factory=dict)

    def fits(self, columns: Mapping[str, Any]) -> bool:
        """Whether columns are those of a row of this format."""
        has = {name for name, value in columns.items() if value is not None}
        return any(has.issuperset(needed) for needed in self.columns) and has.isdisjoint(self.lacks)

    def own(self, row: Row) -> dict[str, Any]:
        """The columns of a row as those that `Files` describes.

        Raises:
          BadField: one of them cannot be used.
          DataError: the row could not be read, or is no object.
        """
        own = self.convert(row)
        for name in MEDIA_COLUMNS:
            if isinstance(own.get(name), str):
                own[name] = listed(own[name])
        return own

    def said(self, name: str) -> str:
        """What the user calls a column of ours, or the way into one."""
        head = re.match(r"\w*", name)
        assert head is not None
        return self.names.get(head[0], head[0]) + name[head.end() :]


def others(columns: Mapping[str, Any], used: Iterable[str | None]) -> dict[str, Any]:
    """The columns that a format has no use for, in their order."""
    used = set(used)
    return {name: value for name, value in columns.items() if name not in used}


def reference(columns: Mapping[str, Any], *names: str) -> tuple[Any, str | None]:
    """The first of some columns that says something, and its name; (None, None) where none does."""
    for name in names:
        if columns.get(name) is not None:
            return columns[name], name
    return None, None


def refuse_sound(columns: Mapping[str, Any]) -> None:
    """Raises BadField where a row has sound: an answer to what was not heard teaches nothing."""
    for name in ("audios", "audio"):
        value = columns.get(name)
        filled = [one for one in (value if isinstance(value, list) else [value]) if one]
        if filled and not all(map(is_empty, filled)):
            raise BadField(name, "sound is not read")


def parsed(value: Any, name: str) -> Any:
    """A list or an object that a table holds as text: JSON, or as Python prints it.

    Nothing is evaluated.

    Raises:
      BadField: text that is neither.
    """
    if not isinstance(value, str):
        return value
    found = _literal(value)
    if found is None:
        raise BadField(name, f"neither JSON nor a Python literal: {value!r:.80}")
    return found


def listed(value: str) -> Any:
    """A list that is written as text; the text itself where it is none."""
    if not (value.lstrip()[:1] == "[" and value.rstrip()[-1:] == "]"):
        return value
    found = _literal(value)
    return found if isinstance(found, list) else value


def _literal(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    if len(text) > MAX_PRINTED_BYTES:
        return None
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def spoken(value: Any, name: str) -> str | None:
    """A response: text, or chat turns of which the last one is the model's.

    Raises:
      BadField: anything else.
    """
    if value is None or isinstance(value, str):
        return value
    last = value[-1] if isinstance(value, list) and value else None
    if not isinstance(last, Mapping) or last.get("role") != "assistant":
        raise BadField(name, f"expected text or turns that end with the model's, got {value!r:.80}")
    content, where = last.get("content"), f"{name}[{len(value) - 1}].content"
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise BadField(where, f"expected text or a list of parts, got {content!r:.80}")
    texts = []
    for i, part in enumerate(content):
        is_text = isinstance(part, Mapping) and part.get("type") == "text"
        if not is_text or not isinstance(part.get("text"), str):
            raise BadField(f"{where}[{i}]", f"a response is text, got the part {part!r:.80}")
        texts.append(part["text"])
    return "".join(texts)


def judged(response: Any, liked: Any, name: str) -> dict[str, Any]:
    """Our columns of a response that somebody liked or did not: it is said, or it is the worse one.

    Raises:
      BadField: the judgement `liked`, in the column `name`, is neither true nor false.
    """
    if not isinstance(liked, bool):
        raise BadField(name, f"expected true or false, got {liked!r:.80}")
    return {"response" if liked else "rejected": response}
