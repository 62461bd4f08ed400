"""R1-Omni: conversations about a video. Its sound is not read, and neither is the mark of it."""

from typing import Any

from jaxr1.data.formats.base import Format
from jaxr1.data.formats.sharegpt import conversation
from jaxr1.data.stored import Row

_SOUND = "<audio>"


def _own(row: Row) -> dict[str, Any]:
    own = conversation(row.columns)
    for message in own["messages"]:
        if message["role"] == "user" and isinstance(message["content"], str):
            lines = message["content"].split("\n")
            message["content"] = "\n".join(line for line in lines if line.strip() != _SOUND)
    return own


FORMAT = Format(
    name="R1-Omni",
    columns=(("conversations", "video"),),
    convert=_own,
    unfilled="text",
    names={"messages": "conversations"},
)
