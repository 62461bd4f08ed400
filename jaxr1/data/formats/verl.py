"""verl: a prompt of turns, and a reference answer in `reward_model`."""

from collections.abc import Mapping
from typing import Any

from jaxr1.data.formats.base import Format, others, parsed, refuse_sound
from jaxr1.data.stored import BadField, Row


def _own(row: Row) -> dict[str, Any]:
    columns = row.columns
    refuse_sound(columns)
    model = parsed(columns["reward_model"], "reward_model")
    if not isinstance(model, Mapping):
        raise BadField("reward_model", f"expected an object, got {model!r:.80}")
    own = others(columns, ("reward_model", "audios"))
    own["prompt"] = parsed(own["prompt"], "prompt")
    if model.get("ground_truth") is not None:
        own["answer"] = model["ground_truth"]
    own["reward_model"] = others(model, ("ground_truth",))
    return own


FORMAT = Format(
    name="verl",
    columns=(("prompt", "reward_model"),),
    convert=_own,
    unmarked="error",
    unfilled="text",
    names={"answer": "reward_model.ground_truth"},
)
