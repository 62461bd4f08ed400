"""What estimators compute with: the rewards of a step and its tokens, in float64."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from jaxr1.rl.episodes import Episodes


@dataclasses.dataclass(frozen=True)
class Scored:
    """Episodes as an estimator reads them. R = B x G responses, T the most own tokens of one.

    Attributes:
      episodes: of the step.
      valid_bg: bool[B, G]: responses that count.
      reward_bg: float64[B, G], as the options want them; 0 where there is none.
      penalty_n: float64[N], rewards of single tokens; 0 where there is none.
    """

    episodes: Episodes
    valid_bg: np.ndarray
    reward_bg: np.ndarray
    penalty_n: np.ndarray

    @property
    def own_n(self) -> np.ndarray:
        """bool[N]: tokens that the policy produced."""
        return self.episodes.columns["own"] > 0

    @functools.cached_property
    def counts_bg(self) -> np.ndarray:
        """int64[B, G], own tokens of each response."""
        return self.episodes.sums(self.own_n).astype(np.int64)

    @property
    def counted_n(self) -> np.ndarray:
        """bool[N]: own tokens of responses that count."""
        return self.own_n & self.spread(self.valid_bg)

    @property
    def uneven_b1(self) -> np.ndarray:
        """bool[B, 1]: groups with two different rewards at least.

        Told by the rewards themselves: the mean of equal numbers may differ from them by a
        rounding, and so may their standard deviation from 0.
        """
        return uneven(self.reward_bg, self.valid_bg)

    def spread(self, value_bg: np.ndarray) -> np.ndarray:
        """A number of each response at each of its tokens, [N], in its own precision."""
        return np.repeat(value_bg.ravel(), self.episodes.counts_bg.ravel())

    # --- own tokens side by side ----------------------------------------------------------------
    @functools.cached_property
    def _places(self) -> tuple[np.ndarray, np.ndarray]:
        """(response, place among its own tokens) of each own token."""
        own_n = self.own_n
        response = self.spread(np.arange(self.counts_bg.size))[own_n]
        before = np.cumsum(self.counts_bg.ravel()) - self.counts_bg.ravel()
        return response, np.arange(own_n.sum()) - before[response]

    def table(self, value_n: np.ndarray) -> np.ndarray:
        """float64[R, T]: a column over own tokens, one response a row, 0 behind its end.

        value  [ a b c d e f g ]   own  [ 1 0 1 1 1 1 1 ]   counts  [ 4 3 ]

        table  [ a c d ]           what an environment said between two own tokens is left out,
               [ e f g ]           so that they follow one another
        """
        table_rt = np.zeros((self.counts_bg.size, self.counts_bg.max(initial=0)))
        table_rt[self._places] = value_n[self.own_n]
        return table_rt

    def column(self, table_rt: np.ndarray) -> np.ndarray:
        """float64[N]: the way back from `table`; 0 where a token is not own."""
        value_n = np.zeros(len(self.own_n))
        value_n[self.own_n] = table_rt[self._places]
        return value_n

    def at_last(self, value_bg: np.ndarray) -> np.ndarray:
        """float64[R, T]: a number of each response at its last own token, 0 elsewhere."""
        table_rt = np.zeros((self.counts_bg.size, self.counts_bg.max(initial=0)))
        some = np.flatnonzero(self.counts_bg.ravel())
        table_rt[some, self.counts_bg.ravel()[some] - 1] = value_bg.ravel()[some]
        return table_rt


def to_go(value_rt: np.ndarray, decay: float) -> np.ndarray:
    """float64[R, T]: at each token, sum over s >= t of decay^(s - t) x the value at s."""
    total_rt, running_r = np.zeros_like(value_rt), np.zeros(len(value_rt))
    for t in reversed(range(value_rt.shape[1])):
        running_r = value_rt[:, t] + decay * running_r
        total_rt[:, t] = running_r
    return total_rt


def uneven(value_bg: np.ndarray, valid_bg: np.ndarray) -> np.ndarray:
    """bool[B, 1]: groups that hold two different values among the valid ones."""
    low_b1 = np.where(valid_bg, value_bg, np.inf).min(-1, keepdims=True, initial=np.inf)
    high_b1 = np.where(valid_bg, value_bg, -np.inf).max(-1, keepdims=True, initial=-np.inf)
    return high_b1 > low_b1


VARIANCE_FLOOR = 1e-8  # of whitening, in the units of advantages


def whitened(value_n: np.ndarray, weight_n: np.ndarray, unbiased: bool, divide: bool) -> np.ndarray:
    """float64[N]: minus the weighted mean, and over the weighted standard deviation.

    Args:
      value_n: float64[N].
      weight_n: float64[N], what a token counts; 0 leaves it out.
      unbiased: the variance is over (sum of weights - 1).
      divide: whether the standard deviation is divided by at all.
    """
    among = value_n[weight_n > 0]
    # Equal values give exactly 0: a rounding of their mean must not be blown up.
    if len(among) == 0 or among.min() == among.max():
        return np.zeros_like(value_n)
    total = weight_n.sum()
    centred_n = value_n - (weight_n * value_n).sum() / total
    if not divide:
        return centred_n
    least = 1.0 if unbiased else 0.0
    over = total - least if total > least else 1.0
    variance = (weight_n * centred_n**2).sum() / over
    return centred_n / np.sqrt(max(variance, VARIANCE_FLOOR))
