"""OpenRLHF: an input, which is text or turns, and a label."""

from typing import Any

from jaxr1.data.formats.base import Format, listed, others, reference, refuse_sound
from jaxr1.data.stored import Row

LABELS = ("label", "answer", "ground_truth", "solution", "target")
"""Columns that hold the label; the first one there counts. OpenRLHF itself asks for its name."""


def _own(row: Row) -> dict[str, Any]:
    columns = row.columns
    refuse_sound(columns)
    answer, name = reference(columns, *LABELS)
    own = others(columns, ("input", name, "output", "audios"))
    if name is not None:
        own["answer"] = answer
    if columns.get("output") is not None:
        own["response"] = columns["output"]
    asked = columns["input"]
    return {**own, "prompt": listed(asked) if isinstance(asked, str) else asked}


FORMAT = Format(
    name="OpenRLHF",
    columns=(("input",),),
    convert=_own,
    lacks=("messages", "prompt", "instruction"),
    names={"prompt": "input", "answer": "label", "response": "output"},
)
