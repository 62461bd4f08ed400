"""Values as bytes on their way between hosts, and back: nothing in them is ever executed.

Numbers, texts, bytes and numpy arrays stay what they are; whatever holds others is a list that
begins with its kind:

    (1, [2.0])                      ["tuple", 1, ["list", 2.0]]
    {0: None}                       ["dict", [0, None]]
    Draw(position=3, row=1, ...)    ["Draw", ["position", 3], ["row", 1], ...]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.serialization import msgpack_restore, msgpack_serialize

from jaxr1.base.errors import UserError

PLAIN = (type(None), bool, int, float, str, bytes, np.ndarray, np.generic)


def packed(value: Any) -> bytes:
    """A value as bytes.

    Raises:
      TypeError: it holds something else than plain values, lists, tuples, dicts and dataclasses.
    """
    return msgpack_serialize({"value": _packed(value)})


def unpacked(data: bytes, kinds: Mapping[str, type]) -> Any:
    """The value that `packed` was given.

    Args:
      kinds: {name: dataclass} of those that may be in it.
    """
    return _unpacked(msgpack_restore(data)["value"], kinds)


def _packed(value: Any) -> Any:
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, list | tuple):
        return [type(value).__name__, *map(_packed, value)]
    if isinstance(value, dict):
        return ["dict", *([_packed(k), _packed(v)] for k, v in value.items())]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
        return [type(value).__name__, *([name, _packed(held)] for name, held in fields)]
    raise TypeError(f"hosts do not tell one another of a {type(value).__name__}")


def _unpacked(value: Any, kinds: Mapping[str, type]) -> Any:
    if not isinstance(value, list):
        return value
    kind, *held = value
    if kind in ("list", "tuple"):
        items = [_unpacked(item, kinds) for item in held]
        return items if kind == "list" else tuple(items)
    pairs = {_unpacked(k, kinds): _unpacked(v, kinds) for k, v in held}
    return pairs if kind == "dict" else kinds[kind](**pairs)


def packed_error(error: Exception) -> tuple[str, str]:
    """An exception as name and message."""
    return type(error).__name__, str(error)


def unpacked_error(name: str, message: str, other: type[UserError]) -> UserError:
    """The user's error of this name; `other` for what is none, with its name in the message."""
    known = {kind.__name__: kind for kind in _kinds_of(UserError)}
    return known[name](message) if name in known else other(f"{name}: {message}")


def _kinds_of(kind: type[UserError]) -> list[type[UserError]]:
    found = [kind]
    for below in kind.__subclasses__():
        found += _kinds_of(below)
    return found
