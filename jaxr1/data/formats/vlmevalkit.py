"""VLMEvalKit: tables of questions with their options, and pictures as base64."""

from collections.abc import Mapping
from typing import Any

from jaxr1.data.choices import LETTERS
from jaxr1.data.formats.base import Format, listed, others
from jaxr1.data.stored import BadField, Row

_MAX_INDEX_CHARS = 64  # what is longer is a picture
_REQUEST = "Answer with the letter of the right option."


def _own(row: Row) -> dict[str, Any]:
    columns = row.columns
    images = _pictures(row)
    options = _options(columns)
    parts: list[dict[str, Any]] = [{"type": "image"} for _ in images]
    parts.append({"type": "text", "text": _question(columns, options)})
    own = others(columns, ("question", "hint", "image", "image_path", *options))
    own |= {"prompt": [{"role": "user", "content": parts}], "images": images}
    if options:
        own["choices"] = list(options.values())
    return own


def _options(columns: Mapping[str, Any]) -> dict[str, str]:
    """The options by their letters."""
    found = {x: str(columns[x]) for x in LETTERS if columns.get(x) is not None}
    expected = LETTERS[: len(found)]
    if "".join(found) != expected:
        missing = next(letter for letter in expected if letter not in found)
        raise BadField(missing, f"an empty option before others: {', '.join(found)}")
    return found


def _question(columns: Mapping[str, Any], options: Mapping[str, str]) -> str:
    question = str(columns["question"])
    lines = [f"Hint: {columns['hint']}"] if columns.get("hint") is not None else []
    lines.append(question)
    if options:
        lines.append("Options:")
        lines += [f"{letter}. {option}" for letter, option in options.items()]
        lines.append(_REQUEST)
    return "\n".join(lines)


def _pictures(row: Row) -> list[Any]:
    """The pictures of a row: its own, those of the row whose index it names, or paths."""
    value = row.columns.get("image")
    if value is None:
        paths = row.columns.get("image_path")
        paths = listed(paths) if isinstance(paths, str) else paths
        return _list(paths)
    if isinstance(value, str) and len(value) <= _MAX_INDEX_CHARS:
        other = row.at.rows.find("index", value)
        if other is None:
            raise BadField("image", f"no row has the index {value!r}")
        value = other.get("image")
        if value is None or (isinstance(value, str) and len(value) <= _MAX_INDEX_CHARS):
            raise BadField("image", f"the row with the index {other['index']!r} has no picture")
    found = _list(listed(value) if isinstance(value, str) else value)
    return [{"bytes": one} if isinstance(one, str) else one for one in found]


def _list(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


FORMAT = Format(
    name="VLMEvalKit",
    columns=(("index", "question"),),
    convert=_own,
    lacks=("messages", "prompt", "conversations"),
    names={"prompt": "question", "images": "image"},
)
