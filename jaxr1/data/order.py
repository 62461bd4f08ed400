"""In which order the rows of a data set are drawn: position -> row, without end.

    Shuffled      every row once in each pass, in another order each time
    Mixed         sources by weights that may move, each in its own order       (`data.mixture`)
    EasyToHard    rows by a column, neighbours shuffled                         (`data.curriculum`)
    AtLevel       rows of a difficulty that follows a metric                    (`data.curriculum`)

An order is a function of (seed, position), and of a state that is saved with a checkpoint where it
follows what the model can do.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np


class Order:
    """A mapping of positions to rows."""

    def __getitem__(self, position: int) -> int:
        """The row at a position, from 0 on."""
        raise NotImplementedError

    @property
    def state(self) -> dict[str, float]:
        """What it depends on besides seed and position; a resumed run gives it back."""
        return {}

    def resume(self, state: Mapping[str, float]) -> None:
        """Takes over the state of a checkpoint."""

    def follow(self, metrics: Mapping[str, float]) -> None:
        """Called with the metrics of each step; the state may move."""


class Shuffled(Order):
    """Every row once in each pass, in another order each time."""

    def __init__(self, length: int, seed: int):
        import grain  # slow to import, and whoever only reads rows needs none of it

        self._rows: Any = grain.MapDataset.range(length).seed(seed % 2**32).shuffle().repeat()

    def __getitem__(self, position: int) -> int:
        return int(self._rows[position])


def keyed(*key: int) -> np.random.Generator:
    """Random numbers that are a function of these numbers alone."""
    return np.random.default_rng(np.random.SeedSequence(list(key)))
