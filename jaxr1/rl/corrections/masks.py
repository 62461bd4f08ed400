"""Corrections that keep a token or leave it out."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar, Literal

import numpy as np

from jaxr1.base.checks import check_least, check_positive, check_types
from jaxr1.rl.corrections.correction import Correction, Ratios
from jaxr1.rl.episodes import Episodes

__all__ = ["OffPolicyMask", "OverlongFilter", "Reject", "TopEntropy"]


@dataclasses.dataclass(frozen=True)
class Reject(Correction):
    """1 where a statistic of the log-ratio is within bounds, 0 elsewhere; several must all agree.

        k1   -x               log(least) <= k1 <= log(most): bounds are ratios
        k2   x^2 / 2          k2 <= most
        k3   exp(x) - 1 - x   k3 <= most

    Attributes:
      statistic: one of the above.
      level: what is judged by it: each "token", or a response by the sum ("seq_sum"), the mean
        ("seq_mean") or the largest ("seq_max", of k2 and k3) over its tokens.
      most: the upper bound.
      least: the lower bound of "k1"; 0 is none.
    """

    statistic: Literal["k1", "k2", "k3"]
    level: Literal["token", "seq_sum", "seq_mean", "seq_max"]
    most: float
    least: float = 0.0

    needs: ClassVar[tuple[str, ...]] = ("old_logp", "sampled_logp")

    def __post_init__(self):
        check_types(self)
        check_positive(self, "most")
        check_least(self, least=0)
        if self.statistic == "k1" and self.level == "seq_max":
            raise ValueError("Reject.level of 'k1' must be 'token', 'seq_sum' or 'seq_mean'")
        if self.statistic != "k1" and self.least:
            raise ValueError(
                f"Reject.least must be 0 for {self.statistic!r}, which has an upper bound only, "
                f"got {self.least}"
            )

    @property
    def name(self) -> str:
        return f"reject_{self.level}_{self.statistic}"

    def multiplier(self, episodes: Episodes) -> np.ndarray:
        ratios = Ratios(episodes)
        x_n = ratios.x_n
        value_n = {
            "k1": lambda: -x_n,
            "k2": lambda: x_n**2 / 2,
            "k3": lambda: np.exp(x_n) - 1 - x_n,
        }[self.statistic]()
        if self.level == "token":
            return self._kept(value_n).astype(np.float64)
        value_bg = {
            "seq_sum": lambda: episodes.sums(value_n),
            "seq_mean": lambda: ratios.mean_bg(value_n),
            "seq_max": lambda: ratios.max_bg(value_n),
        }[self.level]()
        return ratios.spread(self._kept(value_bg)).astype(np.float64)

    def _kept(self, value: np.ndarray) -> np.ndarray:
        if self.statistic != "k1":
            return value <= self.most
        low = math.log(self.least) if self.least else -math.inf
        return (value >= low) & (value <= math.log(self.most))


@dataclasses.dataclass(frozen=True)
class OffPolicyMask(Correction):
    """0 for responses of negative advantage that the policy has moved away from (arXiv:2512.02556).

    Those whose mean of sampled_logp - logp is over `delta`. The advantage of a response is the mean
    over its own tokens.

    Attributes:
      delta: in nats for each token.
      logp: the column of the policy's log-probs: "now_logp", of the parameters at hand, or
        "old_logp", of those at the rollout.
    """

    delta: float = 0.5
    logp: Literal["now_logp", "old_logp"] = "now_logp"

    name: ClassVar[str] = "off_policy"

    def __post_init__(self):
        check_types(self)
        check_least(self, delta=0)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("advantage", "sampled_logp", self.logp)

    def multiplier(self, episodes: Episodes) -> np.ndarray:
        ratios = Ratios(episodes, of=self.logp)
        far_bg = -ratios.mean_bg(ratios.raw_n) > self.delta
        bad_bg = ratios.mean_bg(episodes.columns["advantage"]) < 0
        return ratios.spread(~(far_bg & bad_bg)).astype(np.float64)


@dataclasses.dataclass(frozen=True)
class OverlongFilter(Correction):
    """0 for responses that were cut at the length limit; baselines count them nevertheless."""

    name: ClassVar[str] = "overlong"

    def multiplier(self, episodes: Episodes) -> np.ndarray:
        kept_bg = np.ones(episodes.counts_bg.shape)
        for b, group in enumerate(episodes.groups):
            kept_bg[b] = [completion.finish_reason != "length" for completion in group]
        return episodes.spread(kept_bg).astype(np.float64)


@dataclasses.dataclass(frozen=True)
class TopEntropy(Correction):
    """1 for the tokens of highest entropy of the step, 0 for the others (arXiv:2506.01939).

    Attributes:
      quantile: the share that is kept, those at the bound included.
      entropy: the column of entropies: "now_entropy", of the parameters at hand, or "old_entropy".
    """

    quantile: float = 0.2
    entropy: Literal["now_entropy", "old_entropy"] = "now_entropy"

    name: ClassVar[str] = "top_entropy"

    def __post_init__(self):
        check_types(self)
        if not 0 < self.quantile <= 1:
            raise ValueError(f"TopEntropy.quantile must be in (0, 1], got {self.quantile}")

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.entropy,)

    def multiplier(self, episodes: Episodes) -> np.ndarray:
        entropy_n = episodes.columns[self.entropy].astype(np.float64)
        among = entropy_n[episodes.counted_n]
        bound = np.quantile(among, 1 - self.quantile) if len(among) else 0.0
        return (entropy_n >= bound).astype(np.float64)
