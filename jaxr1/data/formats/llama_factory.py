"""LLaMA-Factory: the entries of its registry, `dataset_info.json`."""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxr1.data.example import DataError
from jaxr1.data.formats.alpaca import Names, asked
from jaxr1.data.formats.base import OWN_COLUMNS, Format, others, refuse_sound
from jaxr1.data.formats.sharegpt import judge, turns, with_system
from jaxr1.data.stored import Row

REGISTRY = "dataset_info.json"
_REMOTE = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")
_TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
_ROLES = {
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "assistant",
    "system_tag": "system",
}
_DEFAULTS = {
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    "messages": "conversations",
}
_SIDES = ("chosen", "rejected")
_MEDIA = ("images", "videos")


@dataclass(frozen=True)
class Entry:
    """An entry of a registry.

    Attributes:
      name: of the data set.
      registry: the file that it stands in; paths start from its folder.
      path: its file or folder of rows.
      limit: so many rows of it are used.
      known: the format of its rows.
    """

    name: str
    registry: Path
    path: Path
    limit: int | None
    known: Format


def entry_of(path: str) -> Entry | None:
    """The entry that "folder/dataset_info.json:name" names; None for another kind of path.

    Without a name it is the only entry of the registry.

    Raises:
      DataError: there is no such entry, or it names no file that is here.
    """
    file, name = Path(path), ""
    if file.name != REGISTRY:
        before, _, name = path.rpartition(":")
        file = Path(before)
    if file.name != REGISTRY or not file.is_file():
        return None
    try:
        entries = json.loads(file.read_bytes().decode("utf-8-sig"))
    except ValueError as error:
        raise DataError(f"{file}: not JSON: {error}") from error
    if not isinstance(entries, Mapping):
        raise DataError(f"{file}: expected an object of data sets, got {type(entries).__name__}")
    if not name and len(entries) == 1:
        (name,) = entries
    found = entries.get(name)
    if not isinstance(found, Mapping):
        raise DataError(
            f'{file}: which data set? Name one, as in "{file}:NAME": {", ".join(entries)}'
        )
    return _entry(file, name, found)


def _entry(file: Path, name: str, options: Mapping[str, Any]) -> Entry:
    where = f"{file}:{name}"
    if not isinstance(options.get("file_name"), str):
        remote = ", ".join(key for key in _REMOTE if key in options) or "no file_name"
        raise DataError(
            f"{where}: has {remote}, and nothing is downloaded; fetch the data and set file_name"
        )
    formatting = options.get("formatting", "alpaca")
    if formatting not in ("alpaca", "sharegpt"):
        raise DataError(f"{where}: formatting must be 'alpaca' or 'sharegpt', got {formatting!r}")
    columns = dict(options.get("columns") or _DEFAULTS)
    tags = {**_TAGS, **(options.get("tags") or {})}
    if formatting == "alpaca":
        reads, asked_in = functools.partial(_alpaca, columns), columns.get("prompt")
    else:
        asked_in = columns.setdefault("messages", _DEFAULTS["messages"])
        reads = functools.partial(_sharegpt, columns, tags)
    convert = functools.partial(_own, columns, tags, bool(options.get("ranking")), reads)
    names = {field: columns[field] for field in (*_SIDES, *_MEDIA) if columns.get(field)}
    if asked_in is not None:
        names["messages"] = asked_in
    known = dataclasses.replace(FORMAT, convert=convert, names=names)
    return Entry(name, file, file.parent / options["file_name"], options.get("num_samples"), known)


def _own(
    columns: Mapping[str, Any],
    tags: Mapping[str, str],
    is_ranking: bool,
    reads: Callable[[Mapping[str, Any]], dict[str, Any]],
    row: Row,
) -> dict[str, Any]:
    """Our columns of a row; `columns` has the names of its own, by what they are for."""
    theirs = row.columns
    refuse_sound({"audios": _value(theirs, columns.get("audios"))})
    used = {columns[field] for field in columns if field not in ("kto_tag", "tools")}
    unlisted = others(theirs, (*used, *OWN_COLUMNS))
    own = {**unlisted, **reads(theirs)}
    for field in _MEDIA:
        own[field] = _value(theirs, columns.get(field))
    if is_ranking:
        for side in _SIDES:
            said = _value(theirs, columns.get(side))
            own[side] = [_turn(said, columns[side], tags)] if isinstance(said, Mapping) else said
    tag = columns.get("kto_tag")
    if tag is not None and _value(theirs, tag) is not None:
        own = judge(own, theirs[tag], tag)
    return own


def _value(theirs: Mapping[str, Any], name: str | None) -> Any:
    """What a row has in a column; None where there is no such column."""
    return None if name is None else theirs.get(name)


def _alpaca(columns: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    names = Names(**{field.name: columns.get(field.name) for field in dataclasses.fields(Names)})
    named = {name: theirs.get(name) for name in vars(names).values() if name is not None}
    return asked(named, names)


def _sharegpt(
    columns: Mapping[str, Any], tags: Mapping[str, str], theirs: Mapping[str, Any]
) -> dict[str, Any]:
    name = columns["messages"]
    roles = {tags[tag]: role for tag, role in _ROLES.items()}
    keys = ((tags["role_tag"], tags["content_tag"]),)
    messages = turns(theirs.get(name), name, roles, keys)
    return {"messages": with_system(messages, _value(theirs, columns.get("system")))}


def _turn(value: Mapping[str, Any], name: str, tags: Mapping[str, str]) -> dict[str, Any]:
    roles = {tags[tag]: role for tag, role in _ROLES.items()}
    return turns([value], name, roles, ((tags["role_tag"], tags["content_tag"]),))[0]


FORMAT = Format(
    name="LLaMA-Factory",
    columns=(),  # the registry says which
    convert=lambda row: dict(row.columns),
    unmarked="error",
)
