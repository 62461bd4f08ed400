"""Several data sets as one, drawn by weights.

parts      a (weight 2)   b (weight 1)
draws      a b a a b a a b a ...          at any time each within two draws of its share
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxr1.base.checks import check_least, check_types
from jaxr1.data.example import DataError, Dataset, DataSource, Example, source_files
from jaxr1.data.files import Files
from jaxr1.data.order import Order, keyed

SOURCE = "mixture_part"
"""The column of metadata that names the part a row is of: a reward may be routed by it."""


@dataclass(frozen=True)
class Part:
    """One data set of a mixture.

    Attributes:
      data: the rows.
      weight: its share of the draws, relative to the other parts; 0 is the number of its rows.
      later: its weight when `Mixture.over` draws are done, on a straight line from `weight`; -1
        stays.
      count: how many of its rows are taken, a random choice; more than there are take rows several
        times. 0 is all of them.
      name: in messages and metadata; "" is that of the data set.
    """

    data: DataSource
    weight: float = 0.0
    later: float = -1.0
    count: int = 0
    name: str = ""

    def __post_init__(self) -> None:
        check_types(self)
        check_least(self, weight=0, later=-1, count=0)


@dataclass(frozen=True)
class Mixture:
    """Several data sets, drawn by weights.

    Attributes:
      parts: the data sets. A text is a file or a pattern of files, with "#500" behind it for 500 of
        its rows, as ms-swift writes it.
      over: draws until weights have moved to `later`; 0 where none moves.
      seed: of the choice of rows where a part has a `count`.
    """

    parts: tuple[Part | str, ...]
    over: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        check_least(self, over=0, seed=0)
        if not self.parts:
            raise ValueError("Mixture: no parts")
        moves = [part for part in self.all_parts() if part.later >= 0]
        if moves and not self.over:
            raise ValueError("Mixture: a part's weight has a `later`, but `over` is 0")
        if self.over and not moves:
            raise ValueError("Mixture: `over` is read only where a part has a `later` weight")

    def all_parts(self) -> list[Part]:
        """The parts, those that are written as text too."""
        return [_part(part) if isinstance(part, str) else part for part in self.parts]

    def files(self) -> list[str]:
        """The files of rows of all parts."""
        return list(itertools.chain.from_iterable(source_files(p.data) for p in self.all_parts()))

    def load(self) -> Dataset:
        """The rows of all parts, one part after the other, and their order of draws.

        Raises:
          DataError: a part cannot be used.
        """
        loaded = [_Loaded.of(part, [self.seed, i]) for i, part in enumerate(self.all_parts())]
        names = [part.name for part in loaded]
        if double := sorted({name for name in names if names.count(name) > 1}):
            raise DataError(f"Mixture: two parts are called {double[0]!r}: give one a name")
        ends = list(itertools.accumulate(len(part.rows) for part in loaded))

        def get(i: int) -> Example:
            number = bisect.bisect_right(ends, i)
            first = ends[number - 1] if number else 0
            return loaded[number].example(i - first)

        return Dataset(
            "+".join(names),
            ends[-1],
            get,
            itertools.chain.from_iterable(part.dataset.dropped for part in loaded),
            videos=any(part.dataset.videos for part in loaded),
            drop_bad=all(part.dataset.drop_bad for part in loaded),
            advice="; ".join(sorted({p.dataset.advice for p in loaded if p.dataset.advice})),
            order=lambda seed: Mixed(loaded, self.over, seed),
        )


def _part(text: str) -> Part:
    path, mark, count = text.rpartition("#")
    if not mark:
        return Part(Files(text))
    if not count.isdecimal() or not int(count):
        raise ValueError(f"{text!r}: behind # stands how many rows to take, a whole number")
    return Part(Files(path), count=int(count))


@dataclass(frozen=True)
class _Loaded:
    """A part with its rows.

    Attributes:
      rows: of the data set, those that are taken.
      weights: at the beginning and later.
    """

    name: str
    dataset: Dataset
    rows: Sequence[int]
    weights: tuple[float, float]

    @classmethod
    def of(cls, part: Part, key: Sequence[int]) -> _Loaded:
        dataset = part.data.load()
        size = len(dataset)
        rows: Sequence[int] = range(size)
        if part.count:
            if dataset.order is not None:
                raise DataError(
                    f"{dataset.name}: a part with a `count` has no order of its own: count its rows"
                )
            rng = keyed(*key)
            # Whole passes, then a choice without repeats.
            rest = rng.permutation(size)[: part.count % size]
            rows = [*range(size)] * (part.count // size) + sorted(rest.tolist())
        weight = part.weight or float(len(rows))
        later = weight if part.later < 0 else part.later
        return cls(part.name or dataset.name, dataset, rows, (weight, later))

    def example(self, i: int) -> Example:
        found = self.dataset[self.rows[i]]
        return found.noted({SOURCE: self.name})

    def ordered(self, seed: int) -> Order:
        return self.dataset.ordered(seed, len(self.rows))


class Mixed(Order):
    """The parts in turn: the next draw is of the part that lags most behind its share."""

    def __init__(self, parts: Sequence[_Loaded], over: int, seed: int):
        sizes = [len(part.rows) for part in parts]
        self._firsts = [0, *itertools.accumulate(sizes)][:-1]
        self._orders = [part.ordered(seed + i) for i, part in enumerate(parts)]
        self._begin = _shares([part.weights[0] for part in parts])
        self._later = _shares([part.weights[1] for part in parts])
        self._over = over
        # Of each position so far: its part, and how many draws of that part came before.
        self._turns: list[tuple[int, int]] = []
        self._lag, self._taken = np.zeros(len(parts)), [0] * len(parts)

    def shares(self, position: int) -> np.ndarray:
        """float64[parts]: the share of each part at a position, which sum to 1."""
        moved = min(position / self._over, 1.0) if self._over else 0.0
        return (1 - moved) * self._begin + moved * self._later

    def __getitem__(self, position: int) -> int:
        while len(self._turns) <= position:
            self._lag += self.shares(len(self._turns))
            part = int(np.argmax(self._lag))
            self._lag[part] -= 1
            self._turns.append((part, self._taken[part]))
            self._taken[part] += 1
        part, place = self._turns[position]
        return self._firsts[part] + self._orders[part][place]

    @property
    def state(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for i, order in enumerate(self._orders):
            found |= {f"{i}/{name}": value for name, value in order.state.items()}
        return found

    def resume(self, state: Mapping[str, float]) -> None:
        for i, order in enumerate(self._orders):
            own = {k.partition("/")[2]: v for k, v in state.items() if k.startswith(f"{i}/")}
            order.resume(own)

    def follow(self, metrics: Mapping[str, float]) -> None:
        for order in self._orders:
            order.follow(metrics)


def _shares(weights: Sequence[float]) -> np.ndarray:
    total = sum(weights)
    if total <= 0:
        raise DataError("Mixture: all weights are 0 at the beginning or later")
    return np.array(weights) / total
