"""LMM-R1, OpenRLHF-M and MM-Eureka from its second version on: messages written as text."""

from typing import Any

from jaxr1.data.formats.base import Format, others, parsed, refuse_sound
from jaxr1.data.stored import Row


def _own(row: Row) -> dict[str, Any]:
    columns = row.columns
    refuse_sound(columns)
    own = others(columns, ("message", "audios"))
    return {**own, "messages": parsed(columns["message"], "message")}


FORMAT = Format(
    name="LMM-R1",
    columns=(("message",),),
    convert=_own,
    names={"messages": "message"},
)
