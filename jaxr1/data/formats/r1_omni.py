"""R1-Omni and LLaVA-Video: conversations about a video.

Its sound is not read, and neither is the mark of it. Where `<image>` is the mark of a video, as in
LLaVA-Video, it is read so.
"""

from typing import Any

from jaxr1.data.formats.base import Format
from jaxr1.data.formats.sharegpt import conversation
from jaxr1.data.stored import Row
from jaxr1.media.references import is_empty

_SOUND, _VIDEO, _IMAGE = "<audio>", "<video>", "<image>"


def _own(row: Row) -> dict[str, Any]:
    own = conversation(row.columns)
    asked = [m for m in own["messages"] if m["role"] == "user" and isinstance(m["content"], str)]
    is_marked = any(_VIDEO in message["content"] for message in asked)
    has_images = own.get("images") or not is_empty(own.get("image"))
    for message in asked:
        lines = message["content"].split("\n")
        text = "\n".join(line for line in lines if line.strip() != _SOUND)
        message["content"] = text if is_marked or has_images else text.replace(_IMAGE, _VIDEO)
    return own


FORMAT = Format(
    name="R1-Omni",
    columns=(("conversations", "video"),),
    convert=_own,
    unfilled="text",
    names={"messages": "conversations"},
)
