"""TRL: prompts with a solution, a completion, or two responses; text or turns."""

from typing import Any

from jaxr1.data.formats.base import Format, judged, others, reference, spoken
from jaxr1.data.stored import BadField, Row


def _own(row: Row) -> dict[str, Any]:
    columns = row.columns
    answer, name = reference(columns, "answer", "solution")
    own = others(columns, (name, "completion"))
    if name is not None:
        own["answer"] = answer
    if columns.get("completion") is not None:
        said = spoken(columns["completion"], "completion")
        if columns.get("label") is None:
            own["response"] = said
        else:
            own |= judged(said, columns["label"], "label")
    if columns.get("prompt") is None:
        own |= _shared(columns["chosen"], columns["rejected"])
    return own


def _shared(chosen: Any, rejected: Any) -> dict[str, Any]:
    """Two conversations that begin alike, as their common prompt and two responses."""
    for name, turns in (("chosen", chosen), ("rejected", rejected)):
        if not isinstance(turns, list):
            raise BadField(name, "without a 'prompt' it must be a list of turns, prompt included")
    pairs = zip(chosen[:-1], rejected[:-1], strict=False)
    differ = (i for i, (one, other) in enumerate(pairs) if one != other)
    same = next(differ, min(len(chosen), len(rejected)) - 1)
    if same < 1:
        raise BadField("chosen", "has no turn in common with 'rejected', and there is no 'prompt'")
    return {"prompt": chosen[:same], "chosen": chosen[same:], "rejected": rejected[same:]}


FORMAT = Format(
    name="TRL",
    columns=(("prompt", "solution"), ("prompt", "completion"), ("chosen", "rejected")),
    convert=_own,
    lacks=("messages", "response"),
    unmarked="chats",
    names={"answer": "solution", "response": "completion"},
)
