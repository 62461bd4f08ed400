"""The format that `Files` describes."""

from typing import Any

from jaxr1.data.formats.base import Format, listed
from jaxr1.data.stored import Row


def _columns(row: Row) -> dict[str, Any]:
    own = dict(row.columns)
    if isinstance(own.get("messages"), str):  # as tables hold them; else it is a prompt
        own["messages"] = listed(own["messages"])
    return own


FORMAT = Format(
    name="jaxr1",
    columns=(("messages",), ("prompt",)),
    convert=_columns,
    unmarked="chats",
)
