"""Types and ranges of options: a config file is Python, which would let a wrong value through to
the middle of a run.
"""

from __future__ import annotations

import collections.abc
import contextlib
import dataclasses
import numbers
import types
import typing
from typing import Any

from jaxr1.base.errors import UserError


def check_types(options: Any, path: str | None = None) -> None:
    """Checks the fields of a dataclass against their annotations.

    A field that is a dataclass is taken to have checked itself.

    Args:
      options: a dataclass instance.
      path: what messages begin with; None is the name of its class.

    Raises:
      ValueError: a field of another type; names it, what would be accepted and what is there.
    """
    hints = typing.get_type_hints(type(options))
    for field in dataclasses.fields(options):
        where = _where(options, path) + field.name
        _check(getattr(options, field.name), hints[field.name], where)


class OptionError(UserError):
    """An option that does not fit the model, the data or the machine; names its path."""


@contextlib.contextmanager
def option(path: str) -> collections.abc.Iterator[None]:
    """A ValueError inside the block is of the option at `path`; its subclasses pass.

    Raises:
      OptionError: instead of a plain ValueError, or an ImportError (of an extra that is not
        installed).
    """
    try:
        yield
    except UserError:
        raise
    except (ValueError, ImportError) as e:
        raise OptionError(f"{path}: {e}") from e


def check_least(options: Any, path: str | None = None, **least: float) -> None:
    """Checks fields against their least values.

    Args:
      options: a dataclass instance.
      path: what messages begin with; None is the name of its class.
      least: the least value of each field.

    Raises:
      ValueError: one is less (or NaN); names its path, the least value and what is there.
    """
    for name, bound in least.items():
        if not getattr(options, name) >= bound:
            where = _where(options, path)
            raise ValueError(
                f"{where}{name} must be at least {bound}, got {getattr(options, name)!r}"
            )


def check_positive(options: Any, *names: str, path: str | None = None) -> None:
    """Raises ValueError where one of these fields is not over 0; `path` as in `check_least`."""
    for name in names:
        if not getattr(options, name) > 0:
            where = _where(options, path)
            raise ValueError(f"{where}{name} must be over 0, got {getattr(options, name)!r}")


def _where(options: Any, path: str | None) -> str:
    return f"{type(options).__name__}." if path is None else path


def _check(value: Any, hint: Any, path: str) -> None:
    if not _fits(value, hint):
        raise ValueError(f"{path} must be {_name(hint)}, got {value!r:.80}")
    if isinstance(value, tuple):
        for i, item in enumerate(value):
            _check(item, _item_hint(hint, i), f"{path}.{i}")


def _options(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the hint alone."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def _item_hint(hint: Any, i: int) -> Any:
    """What item i of a tuple should be."""
    for option in _options(hint):
        if typing.get_origin(option) is not tuple:
            continue
        inner = typing.get_args(option)
        if inner[-1] is ...:
            return inner[0]
        return inner[i] if i < len(inner) else Any
    return Any


def _fits(value: Any, hint: Any) -> bool:
    options = _options(hint)
    if len(options) > 1:
        return any(_fits(value, o) for o in options)
    origin = typing.get_origin(hint) or hint
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    if origin is collections.abc.Callable:
        return callable(value)
    if origin in (int, float):  # an integer is a number, a bool is neither
        kind = numbers.Integral if origin is int else numbers.Real
        return isinstance(value, kind) and not isinstance(value, bool)
    return not isinstance(origin, type) or isinstance(value, origin)


def _name(hint: Any) -> str:
    options = _options(hint)
    if len(options) > 1:
        return " | ".join(_name(o) for o in options)
    if typing.get_origin(hint) is typing.Literal:
        return " | ".join(map(repr, typing.get_args(hint)))
    if hint is type(None):
        return "None"
    if typing.get_origin(hint) is tuple:
        inner = ["..." if a is ... else _name(a) for a in typing.get_args(hint)]
        return f"tuple[{', '.join(inner)}]"
    return getattr(hint, "__name__", str(hint))
