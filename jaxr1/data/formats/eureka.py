"""MM-Eureka, first version: conversations, and addresses of images."""

from typing import Any

from jaxr1.data.formats.base import Format
from jaxr1.data.formats.sharegpt import conversation
from jaxr1.data.stored import Row


def _own(row: Row) -> dict[str, Any]:
    own = conversation(row.columns)
    own["images"] = own.pop("image_urls")
    return own


FORMAT = Format(
    name="MM-Eureka",
    columns=(("conversations", "image_urls"),),
    convert=_own,
    unfilled="text",
    names={"messages": "conversations", "images": "image_urls"},
)
