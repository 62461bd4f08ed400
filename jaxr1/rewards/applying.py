"""What a worker needs to apply reward functions: values, routes, and calls that wait.

rows   a: "boxes"    b: "count"    c: "boxes"
route  iou(a, c)     numeric(b)                    by the column that says so
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxr1.rewards.foreign import Function, source_name
from jaxr1.rewards.types import Example

OTHERWISE = ""
"""The value of a routing column that stands for all others."""

SOURCE = "source"
"""The column that every row has: the name of its data set."""


def number_of(value: Any) -> float | None:
    """A reward as a float, None for None.

    Raises:
      TypeError: it is not a number.
    """
    if value is None:
        return None
    if isinstance(value, str | bytes):
        raise TypeError(f"it returned {value!r:.200}, which is no number")
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"it returned a {type(value).__name__}, which is no number") from None


@dataclass(frozen=True)
class Value:
    """What one reward gives one item.

    Attributes:
      value: the number, None for no opinion, or where there is a problem.
      parts: the components that the function told of, by name.
      problem: what went wrong; {} if nothing.
    """

    value: float | None
    parts: dict[str, float] = field(default_factory=dict)
    problem: dict[str, Any] = field(default_factory=dict)


class Branches:
    """Functions of which each item gets one, by a column of its row; a single one for all."""

    def __init__(self, functions: dict[str, Function], column: str = "") -> None:
        """Takes the functions by the values of the column; OTHERWISE is for all other values."""
        self.functions, self.column = functions, column

    @property
    def together(self) -> bool:
        return any(function.together for function in self.functions.values())

    def of(self, example: Example) -> Function:
        """The function for an item.

        Raises:
          ValueError: there is none for what its row says.
        """
        said = example.metadata.get(self.column)
        if said is None and self.column == SOURCE:
            said = source_name(example)
        found = self.functions.get("" if said is None else str(said)) or self.functions.get(
            OTHERWISE
        )
        if found is None:
            known = ", ".join(map(repr, self.functions))
            raise ValueError(f"no reward is given for {self.column} {said!r}; there are {known}")
        return found


class Late(Exception):
    """An awaited call is over its deadline."""


def run_all(calls: Sequence[Any], timeout_s: float) -> list[Any]:
    """The results of awaitables that run at the same time, an exception where one raised it."""
    import asyncio  # most rewards wait for nothing

    async def one(call: Any) -> Any:
        task = asyncio.ensure_future(call)
        done, _ = await asyncio.wait([task], timeout=timeout_s)
        if not done:
            task.cancel()
            return Late()
        return await task

    async def run() -> list[Any]:
        return await asyncio.gather(*map(one, calls), return_exceptions=True)

    return asyncio.run(run())
