"""ShareGPT, LLaVA, VLM-R1, and the cold start of Vision-R1: conversations."""

from collections.abc import Mapping
from typing import Any

from jaxr1.data.formats.base import Format, judged, others, parsed, reference, refuse_sound
from jaxr1.data.stored import BadField

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "system": "system",
    "observation": "tool",
    "tool": "tool",
}
KEYS = (("from", "value"), ("role", "content"))


def turns(
    value: Any,
    name: str,
    roles: Mapping[str, str] = ROLES,
    keys: tuple[tuple[str, str], ...] = KEYS,
) -> list[dict[str, Any]]:
    """Turns of other names as ours, {"role", "content"}.

    Args:
      value: a list of turns, or the text of one.
      name: of the column.
      roles: ours of theirs.
      keys: pairs of names that the role and the content may have in a turn.

    Raises:
      BadField: no such turns.
    """
    found = parsed(value, name)
    if not isinstance(found, list) or not found:
        raise BadField(name, f"expected a list of turns, got {found!r:.80}")
    made = []
    for i, turn in enumerate(found):
        has = [pair for pair in keys if isinstance(turn, Mapping) and turn.get(pair[0]) is not None]
        if not has:
            expected = " or ".join(f"'{role}' and '{content}'" for role, content in keys)
            raise BadField(f"{name}[{i}]", f"expected an object with {expected}")
        role, content = has[0]
        if turn[role] not in roles:
            known = ", ".join(roles)
            raise BadField(f"{name}[{i}].{role}", f"expected one of {known}, got {turn[role]!r}")
        said = turn.get(content)
        if isinstance(said, int | float):  # a box or a count that is to be said
            said = str(said)
        if not isinstance(said, str | list):
            raise BadField(f"{name}[{i}].{content}", f"expected text, got {said!r:.80}")
        made.append({"role": roles[turn[role]], "content": said})
    return made


def with_system(messages: list[dict[str, Any]], system: Any) -> list[dict[str, Any]]:
    """Turns behind what a column says that the system is told, unless they say it themselves."""
    if not isinstance(system, str) or not system or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": system}, *messages]


def judge(own: dict[str, Any], liked: Any, name: str) -> dict[str, Any]:
    """Our columns where somebody liked the response of a row, or did not; see `judged`."""
    own = dict(own)
    response = own.pop("response", None)
    if response is None and own["messages"][-1]["role"] == "assistant":
        *own["messages"], final = own["messages"]
        response = final["content"]
    if response is None:
        raise BadField(name, "there is no response that it could be about")
    return own | judged(response, liked, name)


def conversation(columns: Mapping[str, Any], name: str = "conversations") -> dict[str, Any]:
    """Our columns of a row whose turns stand in the column `name`."""
    refuse_sound(columns)
    answer, answered = reference(columns, "answer", "solution")
    own = others(columns, (name, answered, "system", "audios"))
    own["messages"] = with_system(turns(columns[name], name), columns.get("system"))
    if answered is not None:
        own["answer"] = answer
    for side in ("chosen", "rejected"):
        if isinstance(columns.get(side), Mapping):  # a turn
            own[side] = turns([columns[side]], side)
    return own


FORMAT = Format(
    name="ShareGPT",
    columns=(("conversations",),),
    convert=lambda row: conversation(row.columns),
    unfilled="text",
    names={"messages": "conversations"},
)
