"""Alpaca: an instruction, more of it in `input`, and an output."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxr1.data.formats.base import Format, others, parsed, refuse_sound
from jaxr1.data.formats.sharegpt import with_system
from jaxr1.data.stored import BadField


@dataclass(frozen=True)
class Names:
    """What the columns are called; None for one that there is not.

    Attributes:
      prompt: the instruction.
      query: what is said behind it, on a line of its own.
      response: what is to be said.
      history: pairs of an earlier question and what was answered.
      system: what the system is told.
    """

    prompt: str | None = "instruction"
    query: str | None = "input"
    response: str | None = "output"
    history: str | None = "history"
    system: str | None = "system"


def asked(columns: Mapping[str, Any], names: Names) -> dict[str, Any]:
    """Our columns of a row with these names.

    Raises:
      BadField: nothing is asked, or a column is no text.
    """
    refuse_sound(columns)
    said = [_text(columns, name) for name in (names.prompt, names.query)]
    question = "\n".join(filter(None, said))
    if not question:
        raise BadField(names.prompt or "prompt", "missing, or empty")
    messages = _history(columns, names.history)
    messages.append({"role": "user", "content": question})
    own = others(columns, (*vars(names).values(), "audios"))
    response = _text(columns, names.response)
    if response is not None:
        own["response"] = response
    system = columns.get(names.system) if names.system else None
    return {**own, "messages": with_system(messages, system)}


def _text(columns: Mapping[str, Any], name: str | None) -> str | None:
    value = columns.get(name) if name else None
    if value is not None and not isinstance(value, str):
        raise BadField(str(name), f"expected text, got {value!r:.80}")
    return value


def _history(columns: Mapping[str, Any], name: str | None) -> list[dict[str, Any]]:
    value = parsed(columns.get(name), name) if name and columns.get(name) is not None else []
    messages = []
    for i, pair in enumerate(value if isinstance(value, list) else [value]):
        if not (isinstance(pair, list | tuple) and len(pair) == 2):
            raise BadField(f"{name}[{i}]", f"expected a question and its answer, got {pair!r:.80}")
        messages += [
            {"role": "user", "content": pair[0]},
            {"role": "assistant", "content": pair[1]},
        ]
    return messages


FORMAT = Format(
    name="Alpaca",
    columns=(("instruction",),),
    convert=lambda row: asked(row.columns, Names()),
    lacks=("messages", "prompt"),
    names={"messages": "instruction", "response": "output"},
)
