"""What a correction is: a number that multiplies the loss of each token."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable

import numpy as np

from jaxr1.rl.episodes import Episodes
from jaxr1.rl.terms import LOG_RATIO_LIMIT

__all__ = ["Corrected", "Correction", "correct"]


@dataclasses.dataclass(frozen=True)
class Corrected:
    """What a correction gives.

    Attributes:
      column: float64[N], multiplies the loss of each token.
      metrics: numbers to be logged.
    """

    column: np.ndarray
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)


class Ratios:
    """The log-ratios of a step, and sums of them over responses.

    Attributes:
      counted_n: bool[N], own tokens of responses that have a reward.
      counts_bg: int64[B, G], such tokens of each response.
      raw_n: float64[N], old_logp - sampled_logp; 0 where not counted.
    """

    def __init__(self, episodes: Episodes, over: str = "sampled_logp", of: str = "old_logp"):
        self.episodes = episodes
        self.counted_n = episodes.counted_n
        self.counts_bg = episodes.sums(self.counted_n).astype(np.int64)
        raw_n = episodes.columns[of].astype(np.float64) - episodes.columns[over]
        # Chosen, and not multiplied by 0: what is not counted may be NaN.
        self.raw_n = np.where(self.counted_n, raw_n, 0.0)

    @functools.cached_property
    def x_n(self) -> np.ndarray:
        """float64[N], log-ratios within +- 20."""
        return np.clip(self.raw_n, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)

    @property
    def w_n(self) -> np.ndarray:
        """float64[N], ratios; 1 where not counted."""
        return np.exp(self.x_n)

    @property
    def log_bg(self) -> np.ndarray:
        """float64[B, G], sums of log-ratios, within +- 20."""
        return np.clip(self.episodes.sums(self.x_n), -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)

    @property
    def said_bg(self) -> np.ndarray:
        """bool[B, G]: responses with a counted token."""
        return self.counts_bg > 0

    def mean_bg(self, value_n: np.ndarray) -> np.ndarray:
        """float64[B, G]: the mean over counted tokens of a response; 0 of none."""
        total_bg = self.episodes.sums(np.where(self.counted_n, value_n, 0.0))
        return total_bg / np.maximum(self.counts_bg, 1)

    def max_bg(self, value_n: np.ndarray) -> np.ndarray:
        """float64[B, G]: the largest over counted tokens of a response; 0 at least."""
        most_bg = np.zeros(self.counts_bg.size)
        response_n = self.spread(np.arange(self.counts_bg.size))
        np.maximum.at(most_bg, response_n[self.counted_n], value_n[self.counted_n])
        return most_bg.reshape(self.counts_bg.shape)

    def spread(self, value_bg: np.ndarray) -> np.ndarray:
        """A number of each response at each of its tokens, in its own precision."""
        return np.repeat(value_bg.ravel(), self.episodes.counts_bg.ravel())


class Correction:
    """A frozen dataclass that is called on the episodes of an optimiser step.

    Subclasses override what differs, as properties or as class attributes.
    """

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns that it reads, by name."""
        return ()

    @property
    def name(self) -> str:
        """Stands before the names of its metrics."""
        raise NotImplementedError

    def multiplier(self, episodes: Episodes) -> np.ndarray:
        """float64[N]; what it is where tokens are not counted is not read."""
        raise NotImplementedError

    def __call__(self, episodes: Episodes) -> Corrected:
        where_n = episodes.counted_n
        column_n = np.where(where_n, self.multiplier(episodes), 1.0)
        among = column_n[where_n]
        metrics = {
            "mean": mean_of(among),
            "min": float(among.min()) if len(among) else math.nan,
            "max": float(among.max()) if len(among) else math.nan,
            "frac_masked": mean_of(among == 0),
        }
        named = {f"correction/{self.name}_{key}": value for key, value in metrics.items()}
        return Corrected(column_n, named)


def correct(corrections: Iterable[Correction], episodes: Episodes) -> Corrected:
    """The product of all, and their metrics."""
    column_n = np.ones(len(episodes.token_n))
    metrics: dict[str, float] = {}
    for correction in corrections:
        found = correction(episodes)
        column_n = column_n * found.column
        metrics |= found.metrics
    return Corrected(column_n, metrics)


def mean_of(values: np.ndarray) -> float:
    """NaN of none."""
    return float(np.mean(values)) if len(values) else math.nan
