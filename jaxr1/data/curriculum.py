"""Curricula: rows by difficulty, in an order fixed beforehand or one that follows the model.

Difficulty is a number in a column: a pass rate (`Rated` puts it there), a level, a length.
MM-Eureka (arXiv:2503.07365) found no gain in ordering by difficulty: measure before relying on it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jaxr1.base.checks import check_least, check_types
from jaxr1.data.example import DataError, Dataset, DataSource, source_files
from jaxr1.data.order import Order, Shuffled, keyed
from jaxr1.data.rated import PASS_RATE

LEVEL = "level"
"""The state of an order that follows the model: 0 is at the easiest rows, 1 at the hardest."""


@dataclass(frozen=True)
class Curriculum:
    """Rows in an order that goes by their difficulty.

    Attributes:
      data: the rows.
      by: the column of metadata that holds the difficulty, a number.
      hard: which end of it is hard: "low" for a pass rate, "high" for a level.
    """

    data: DataSource
    by: str = PASS_RATE
    hard: Literal["low", "high"] = "low"

    def files(self) -> list[str]:
        """The files of rows."""
        return source_files(self.data)

    def load(self) -> Dataset:
        """The rows, in their order of draws.

        Raises:
          DataError: a row has no number in the column `by`.
        """
        rows = self.data.load()
        ranked = easiest_first(rows, self.by, self.hard)
        return rows.with_order(lambda seed: self.ordered(ranked, seed))

    def ordered(self, ranked: np.ndarray, seed: int) -> Order:
        """The order of draws, given int64[rows], the rows from easy to hard."""
        raise NotImplementedError


@dataclass(frozen=True)
class EasyToHard(Curriculum):
    """One pass from easy rows to hard ones.

    Attributes:
      data: the rows.
      by: the column of metadata that holds the difficulty, a number.
      hard: which end of it is hard: "low" for a pass rate, "high" for a level.
      window: share of all rows within which neighbours are shuffled; 0 sorts strictly.
      again: what follows the first pass: "shuffled" passes, or "sorted" ones like it.
    """

    window: float = 0.1
    again: Literal["shuffled", "sorted"] = "shuffled"

    def __post_init__(self) -> None:
        check_types(self)
        check_least(self, window=0)

    def ordered(self, ranked: np.ndarray, seed: int) -> Order:
        return Ascending(ranked, self, seed)


@dataclass(frozen=True)
class TargetRate(Curriculum):
    """Rows of a difficulty at which the model is right about as often as it should be.

    Rows are drawn from a window that moves over the rows, easy ones first: to harder ones while the
    metric is over the target, back to easier ones while it is under it. A window's rows are all
    drawn once before one comes again, as long as it stands still.

    Attributes:
      data: the rows.
      by: the column of metadata that holds the difficulty, a number.
      hard: which end of it is hard: "low" for a pass rate, "high" for a level.
      target: what the metric is to be.
      tolerance: how far it may be off before the window moves.
      metric: of a step; "filter/mean" where an online filter drops groups.
      window: share of all rows that a window has.
      pace: share of all rows that the window moves by after a step.
    """

    target: float = 0.5
    tolerance: float = 0.1
    metric: str = "reward/accuracy"
    window: float = 0.2
    pace: float = 0.02

    def __post_init__(self) -> None:
        check_types(self)
        check_least(self, tolerance=0, pace=0)
        if not 0 < self.window <= 1:
            raise ValueError(f"TargetRate: window must be in (0, 1], got {self.window:g}")

    def ordered(self, ranked: np.ndarray, seed: int) -> Order:
        return AtLevel(ranked, self, seed)


def easiest_first(rows: Dataset, by: str, hard: Literal["low", "high"]) -> np.ndarray:
    """int64[rows]: the rows from easy to hard; equal ones stay in their order.

    Raises:
      DataError: a row has no number in the column; names it, and the columns that it has.
    """
    values = np.zeros(len(rows))
    for i in range(len(rows)):
        example = rows[i]
        value = example.metadata.get(by)
        try:
            values[i] = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            has = ", ".join(map(repr, example.metadata)) or "none"
            raise DataError(
                f"{example.source}: field {by!r}: a curriculum needs a number, got {value!r:.40}; "
                f"the row has the columns {has}"
            ) from None
        if not np.isfinite(values[i]):
            raise DataError(f"{example.source}: field {by!r}: {value!r} is no finite number")
    return np.argsort(-values if hard == "low" else values, kind="stable")


class Ascending(Order):
    """The order of `EasyToHard`."""

    def __init__(self, ranked: np.ndarray, options: EasyToHard, seed: int):
        self._ranked, self._options, self._seed = ranked, options, seed
        self._shuffled = Shuffled(len(ranked), seed)
        self._pass, self._rows = -1, ranked

    def __getitem__(self, position: int) -> int:
        number, place = divmod(position, len(self._ranked))
        if number and self._options.again == "shuffled":
            return self._shuffled[position]
        if number != self._pass:
            # Rows change places with neighbours: each is put off by up to the window.
            noise = keyed(self._seed, number).random(len(self._ranked))
            late = np.arange(len(self._ranked)) + noise * self._options.window * len(self._ranked)
            self._pass, self._rows = number, self._ranked[np.argsort(late, kind="stable")]
        return int(self._rows[place])


class AtLevel(Order):
    """The order of `TargetRate`; its state is the window's place."""

    def __init__(self, ranked: np.ndarray, options: TargetRate, seed: int):
        self._ranked, self._options, self._seed = ranked, options, seed
        self._size = max(1, round(options.window * len(ranked)))
        self._level = 0.0

    def __getitem__(self, position: int) -> int:
        first = round(self._level * (len(self._ranked) - self._size))
        number, place = divmod(position, self._size)
        shuffled = keyed(self._seed, number).permutation(self._size)
        return int(self._ranked[first + shuffled[place]])

    @property
    def state(self) -> dict[str, float]:
        return {LEVEL: self._level}

    def resume(self, state: Mapping[str, float]) -> None:
        self._level = state.get(LEVEL, 0.0)

    def follow(self, metrics: Mapping[str, float]) -> None:
        options = self._options
        value = metrics.get(options.metric)
        if value is None:
            has = ", ".join(sorted(n for n in metrics if n.startswith(("reward/", "filter/"))))
            raise DataError(f"TargetRate: a step has no metric {options.metric!r}; it has {has}")
        if abs(value - options.target) > options.tolerance:
            step = options.pace if value > options.target else -options.pace
            self._level = min(max(self._level + step, 0.0), 1.0)
