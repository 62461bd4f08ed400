"""EasyR1, Geometry3K, the RL data of Vision-R1, and R1-V: a problem and its answer."""

from typing import Any

from jaxr1.data.formats.base import Format, others, reference, refuse_sound
from jaxr1.data.stored import Row


def _own(row: Row) -> dict[str, Any]:
    columns = row.columns
    refuse_sound(columns)
    answer, name = reference(columns, "answer", "solution")
    own = others(columns, ("problem", name, "audios"))
    return {**own, "prompt": columns["problem"], "answer": answer}


FORMAT = Format(
    name="EasyR1",
    columns=(("problem",),),
    convert=_own,
    unfilled="text",
    names={"prompt": "problem"},
)
