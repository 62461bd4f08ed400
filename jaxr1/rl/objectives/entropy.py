"""Losses that keep a policy from becoming certain too early.

A new policy loss among them is also a name in `CovLoss`.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxr1.base.checks import check_least, check_types
from jaxr1.rl.episodes import Episodes
from jaxr1.rl.objectives.policy import (
    LOG_RATIO_LIMIT,
    clip_metrics,
    clipped_sides,
    ratio_of,
    surrogate,
)
from jaxr1.rl.terms import Mean, Metrics, Noise, Term, Tokens

__all__ = ["ClipCov", "Entropy", "KlCov"]


@dataclasses.dataclass(frozen=True)
class Entropy(Term):
    """The entropy bonus: -coef * H (arXiv:1707.06347, eq. 9), H the mean over tokens.

    Attributes:
      coef: weight of the bonus; where it is adaptive, its first value.
      adaptive: the weight is the scalar "entropy_coef", where the scalar "entropy_on" is 1
        (`rl.controllers.AdaptiveEntropy` moves both).
    """

    coef: float
    adaptive: bool = False

    reads: ClassVar[tuple[str, ...]] = ("entropy",)
    weight: ClassVar[str] = "token_weight"
    whole_rows: ClassVar[bool] = False
    needs_zero_advantage: ClassVar[bool] = True

    def __post_init__(self):
        check_types(self)

    @property
    def scalars(self) -> dict[str, float]:
        return {"entropy_coef": self.coef, "entropy_on": 0.0} if self.adaptive else {}

    def __call__(self, tokens: Tokens) -> tuple[jax.Array, Metrics]:
        if not self.adaptive:
            return -self.coef * tokens.entropy, {}
        coef = tokens.scalars["entropy_coef"] * tokens.scalars["entropy_on"]
        return -coef * tokens.entropy, {}


def covariance(episodes: Episodes) -> np.ndarray:
    """float64[N]: (A - mean A) (l - mean l), means over `Episodes.counted_n`; 0 elsewhere."""
    where = episodes.counted_n
    product = np.ones(len(where))
    for name in ("advantage", "now_logp"):
        column = episodes.columns[name].astype(np.float64)
        product *= column - (column[where].mean() if where.any() else 0.0)
    return np.where(where, product, 0.0)


@dataclasses.dataclass(frozen=True)
class ClipCov(Term):
    """PPO's loss, but 0 for some tokens whose advantage and log-prob go together most.

    They are drawn among the tokens that PPO does not clip and whose covariance, over all tokens of
    the optimiser step, is between two bounds (arXiv:2505.22617).

    Attributes:
      clip_low: as in `Ppo`.
      clip_high: as in `Ppo`.
      share: at most this share of all tokens is drawn, and at least one token.
      cov_low: lower bound of the covariance.
      cov_high: upper bound of the covariance.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    share: float = 2e-4
    cov_low: float = 1.0
    cov_high: float = 5.0

    corrected: ClassVar[bool] = True
    fresh: ClassVar[tuple[str, ...]] = ("now_logp",)
    needs: ClassVar[tuple[str, ...]] = ("advantage", "cov_mask", "old_logp")
    whole_rows: ClassVar[bool] = False

    def __post_init__(self):
        check_types(self)
        check_least(self, clip_low=0, clip_high=0, share=0, cov_high=self.cov_low)

    def prepare(self, episodes: Episodes, noise: Noise) -> dict[str, np.ndarray]:
        now = episodes.columns["now_logp"]
        # On policy nobody has scored the old policy: it is the one at hand.
        z = now - episodes.columns.get("old_logp", now)
        ratio = np.exp(np.clip(z, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))
        advantage = episodes.columns["advantage"]
        too_high = (ratio > 1.0 + self.clip_high) & (advantage > 0)
        too_low = (ratio < 1.0 - self.clip_low) & (advantage < 0)
        cov, where = covariance(episodes), episodes.counted_n
        among = where & ~too_high & ~too_low & (cov > self.cov_low) & (cov < self.cov_high)
        most = max(1, int(self.share * where.sum()))
        order = np.argsort(np.where(among, noise(), 2.0), kind="stable")[:most]
        mask = np.zeros(len(cov), np.float32)
        mask[order] = among[order]
        return {"cov_mask": mask}

    def __call__(self, tokens: Tokens) -> tuple[jax.Array, Metrics]:
        advantage, own, drawn = tokens.advantage, tokens.own, tokens.cov_mask
        ratio = ratio_of(tokens.logp - tokens.old_logp)
        low, high = clipped_sides(ratio, advantage, self.clip_low, self.clip_high)
        loss = surrogate(ratio, advantage, self.clip_low, self.clip_high) * (1.0 - drawn)
        return loss, clip_metrics(low, high, ratio, own) | {"cov_frac": Mean.of(drawn, own)}


@dataclasses.dataclass(frozen=True)
class KlCov(Term):
    """-ratio A, with beta |log ratio| at the tokens of highest covariance (arXiv:2505.22617).

    Attributes:
      share: of all tokens of the optimiser step, and at least one token.
      beta: weight of the distance.
    """

    share: float = 2e-4
    beta: float = 1.0

    corrected: ClassVar[bool] = True
    fresh: ClassVar[tuple[str, ...]] = ("now_logp",)
    needs: ClassVar[tuple[str, ...]] = ("advantage", "cov_mask", "old_logp")
    whole_rows: ClassVar[bool] = False
    needs_zero_advantage: ClassVar[bool] = True

    def __post_init__(self):
        check_types(self)
        check_least(self, share=0, beta=0)

    def prepare(self, episodes: Episodes, noise: Noise) -> dict[str, np.ndarray]:
        cov, where = covariance(episodes), episodes.counted_n
        most = max(1, int(self.share * where.sum()))
        order = np.argsort(np.where(where, -cov, np.inf), kind="stable")[:most]
        mask = np.zeros(len(cov), np.float32)
        mask[order] = where[order]
        return {"cov_mask": mask}

    def __call__(self, tokens: Tokens) -> tuple[jax.Array, Metrics]:
        own, chosen = tokens.own, tokens.cov_mask
        z = tokens.logp - tokens.old_logp
        ratio = ratio_of(z)
        loss = self.beta * chosen * jnp.abs(z) - ratio * tokens.advantage
        return loss, {"ratio": Mean.of(ratio, own), "cov_frac": Mean.of(chosen, own)}


CovLoss = ClipCov | KlCov
"""Those whose fields are flags of the command line."""
