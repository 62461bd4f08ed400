"""The forms of a reward function: one item, a list of items, or one item while others wait."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, Literal

Form = Literal["item", "batch", "async"]
"""How a reward function is called.

"item": `def f(completion, example) -> float | None`, once for each item; "batch": `def
f(completions, examples) -> list`, once for up to 64 items; "async": `async def f(completion,
example) -> float | None`, for up to 64 items at the same time (requests to a judge).
"""

BATCH = ("completions", "examples")
"""The names of the first two parameters that make a function one of the batch form."""

SIGNATURE = (
    "def f(completion, example) -> float | None, async def of the same, "
    "or def f(completions, examples) -> list"
)


def form_of(function: Callable[..., Any]) -> Form:
    """The form of a function, by the names of its parameters and by whether it is async."""
    try:
        names = inspect.signature(function).parameters
    except (TypeError, ValueError):  # a callable without a signature, from C code
        return "item"
    if is_batch(names):
        return "batch"
    return "async" if inspect.iscoroutinefunction(function) else "item"


def is_batch(names: Iterable[str]) -> bool:
    """Whether parameters of these names are those of the batch form."""
    return tuple(names)[:2] == BATCH
