"""KL to the reference as a part of the reward, token by token (arXiv:1909.08593, section 2).

    reward of token t    -coef * k(logp_t - ref_logp_t), and the response's reward at its last token

Estimators take it from the column "penalty".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import numpy as np

from jaxr1.base.checks import check_least, check_positive, check_types
from jaxr1.rl.episodes import Episodes
from jaxr1.rl.terms import LOG_RATIO_LIMIT

__all__ = ["KlReward", "penalty"]

LIMIT = 10.0  # of an estimate, as OpenRLHF bounds them all

ESTIMATES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "k1": lambda d: d,
    "abs": np.abs,
    "k2": lambda d: d * d / 2,
    "k3": lambda d: np.expm1(np.clip(-d, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)) + d,
}


@dataclasses.dataclass(frozen=True)
class KlReward:
    """KL in the reward, beside or instead of a KL term of the loss.

    Attributes:
      coef: weight; at 0 there is none. With a target it is what the controller begins with.
      estimator: "k1" (LMM-R1, OpenRLHF, verl), "abs", "k2" or "k3".
      target: KL of a response's mean token that the adaptive controller aims at
        (arXiv:1909.08593, section 2.2); 0 keeps the weight as it is.
      horizon: responses in which the controller may move the weight by a fifth.
    """

    coef: float = 0.0
    estimator: Literal["k1", "abs", "k2", "k3"] = "k1"
    target: float = 0.0
    horizon: float = 10000.0

    def __post_init__(self):
        check_types(self)
        check_least(self, coef=0, target=0)
        check_positive(self, "horizon")
        if self.target and not self.coef:
            raise ValueError(
                "KlReward.target moves the weight of the penalty: it needs a coef over 0 to begin "
                "with, and a reference model with it"
            )


def penalty(
    episodes: Episodes, options: KlReward, coef: float
) -> tuple[np.ndarray, dict[str, float]]:
    """The penalty of each own token, and what is logged of it.

    Args:
      episodes: with the columns "ref_logp" and "old_logp", or "sampled_logp" where nothing was
        scored again: sampler and trainer agree.
      coef: the weight at this step.

    Returns:
      float32[N], not positive for a token that the policy likes more than the reference does; and
      "reward/kl", the mean over responses of their mean token, with "reward/kl_coef".
    """
    columns = episodes.columns
    logp = columns.get("old_logp", columns["sampled_logp"])
    own = columns["own"]
    estimate = ESTIMATES[options.estimator](logp.astype(np.float64) - columns["ref_logp"])
    kl = np.clip(estimate, -LIMIT, LIMIT) * own
    tokens_bg = episodes.sums(own)
    counted = episodes.valid_bg & (tokens_bg > 0)
    mean_bg = episodes.sums(kl) / np.maximum(tokens_bg, 1)
    mean = float(mean_bg[counted].mean()) if counted.any() else 0.0
    return (-coef * kl).astype(np.float32), {"reward/kl": mean, "reward/kl_coef": coef}
