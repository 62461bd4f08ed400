"""ms-swift: messages with media, a worse response or a solution; or a query and a response."""

from collections.abc import Iterator, Mapping
from typing import Any

from jaxr1.data.formats.alpaca import Names, asked
from jaxr1.data.formats.base import Format, others, parsed, refuse_sound
from jaxr1.data.formats.sharegpt import ROLES, judge, turns, with_system
from jaxr1.data.stored import BadField, Row

_ROLES = {**ROLES, "tool_call": "assistant", "tool_response": "tool"}
_QUERY = Names(prompt="query", query=None, response="response", history="history", system="system")
_REFERENCE, _BOX = "<ref-object>", "<bbox>"


def _own(row: Row) -> dict[str, Any]:
    columns = others(row.columns, ("solution", "rejected_response", "rejected_messages"))
    if columns.get("messages") is None:
        own = asked(columns, _QUERY)
    else:
        refuse_sound(columns)
        messages = turns(columns["messages"], "messages", _ROLES)
        own = others(columns, ("system", "audios"))
        own["messages"] = with_system(messages, columns.get("system"))
    if row.columns.get("solution") is not None:
        own["answer"] = row.columns["solution"]
    own |= _worse(row.columns)
    if isinstance(columns.get("label"), bool):
        own = judge(own, columns["label"], "label")
    if columns.get("objects") is not None:
        own["objects"] = parsed(columns["objects"], "objects")
        own["messages"] = _named(own["messages"], own["objects"])
    return own


def _worse(columns: Mapping[str, Any]) -> dict[str, Any]:
    """The worse response, as text or as the end of another conversation."""
    if columns.get("rejected_response") is not None:
        return {"rejected": columns["rejected_response"]}
    if columns.get("rejected_messages") is not None:
        return {"rejected": turns(columns["rejected_messages"], "rejected_messages", _ROLES)}
    return {}


def _named(messages: list[dict[str, Any]], objects: Any) -> list[dict[str, Any]]:
    """Messages in which the marks of things stand for their names."""
    if not isinstance(objects, Mapping):
        raise BadField("objects", f"expected an object, got {objects!r:.80}")
    names = iter(objects.get("ref") or ())
    return [{**message, "content": _filled(message["content"], names)} for message in messages]


def _filled(content: Any, names: Iterator[Any]) -> Any:
    if not isinstance(content, str):
        return content
    if _BOX in content:
        raise BadField(
            "objects",
            f"the text has a {_BOX}, and how a box is written depends on the model; write the "
            "boxes into the text",
        )
    pieces = content.split(_REFERENCE)
    text = pieces[0]
    for piece in pieces[1:]:
        name = next(names, None)
        if name is None:
            raise BadField("objects.ref", f"fewer names than there are {_REFERENCE} in the text")
        text += f"{name}{piece}"
    return text


FORMAT = Format(
    name="ms-swift",
    columns=(
        ("messages", "rejected_response"),
        ("messages", "rejected_messages"),
        ("messages", "solution"),
        ("messages", "objects"),
        ("messages", "label"),
        ("query",),
    ),
    convert=_own,
    lacks=("answer",),
    names={"answer": "solution", "rejected": "rejected_response"},
)
