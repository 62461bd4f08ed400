"""Coefficients that move from step to step: pure functions of scalars and of a step's metrics.

    scalars {"kl_coef": 0.001}, metrics {"policy/kl": 0.2}   ->   {"kl_coef": 0.00102}

Scalars enter the compiled programs as arguments: a new value compiles nothing. A metric that is NaN
(a step that computed nothing) or missing moves nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

from jaxr1.base.checks import check_least, check_positive, check_types

__all__ = ["AdaptiveEntropy", "AdaptiveKl", "BcoShift", "Controller"]

Controller = Callable[[Mapping[str, float], Mapping[str, float]], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class AdaptiveEntropy:
    """Moves "entropy_coef" up where the entropy is at its target or under it, else down.

    The bonus is in force ("entropy_on" is 1) only after a step whose entropy was not over the
    target (arXiv:2505.22312).

    Attributes:
      step: how far the coefficient moves.
      target: entropy of a token, in nats.
      low: its lower bound.
      high: its upper bound.
      metric: the name of the entropy.
    """

    step: float = 0.005
    target: float = 0.2
    low: float = 0.0
    high: float = 1.0
    metric: str = "policy/entropy"

    def __post_init__(self):
        check_types(self)
        check_least(self, step=0, low=0, high=self.low)

    def __call__(
        self, scalars: Mapping[str, float], metrics: Mapping[str, float]
    ) -> dict[str, float]:
        """The scalars after a step."""
        entropy = metrics.get(self.metric, math.nan)
        if math.isnan(entropy):
            return dict(scalars)
        is_low = entropy <= self.target
        coef = scalars["entropy_coef"] + (self.step if is_low else -self.step)
        coef = min(coef, self.high) if is_low else max(coef, self.low)
        return {**scalars, "entropy_coef": coef, "entropy_on": float(is_low)}


@dataclasses.dataclass(frozen=True)
class AdaptiveKl:
    """Moves a coefficient with the KL's distance from its target (arXiv:1909.08593, section 2.2).

        coef (1 + clip(KL / target - 1, -clip, clip) samples / horizon)

    Attributes:
      target: KL of a token, in nats.
      samples: responses of a step.
      horizon: in responses.
      clip: bound of the error.
      metric: the name of the KL.
      scalar: the name of the coefficient.
    """

    target: float
    samples: int
    horizon: float = 10000
    clip: float = 0.2
    metric: str = "policy/kl"
    scalar: str = "kl_coef"

    def __post_init__(self):
        check_types(self)
        check_positive(self, "target", "samples", "horizon")
        check_least(self, clip=0)

    def __call__(
        self, scalars: Mapping[str, float], metrics: Mapping[str, float]
    ) -> dict[str, float]:
        """The scalars after a step."""
        kl = metrics.get(self.metric, math.nan)
        if math.isnan(kl):
            return dict(scalars)
        error = min(max(kl / self.target - 1, -self.clip), self.clip)
        coef = scalars[self.scalar] * (1 + error * self.samples / self.horizon)
        return {**scalars, self.scalar: coef}


@dataclasses.dataclass(frozen=True)
class BcoShift:
    """Moves "bco_shift" to the running mean of the rewards of chosen and rejected responses.

    Attributes:
      momentum: share of the old value (0.99 in NeMo-RL); 0 leaves the shift as it is, at 0 as in
        TRL.
      chosen: the name of the mean reward of chosen responses.
      rejected: the name of that of rejected ones.
    """

    momentum: float = 0.0
    chosen: str = "policy/bco_chosen_reward"
    rejected: str = "policy/bco_rejected_reward"

    def __post_init__(self):
        check_types(self)
        check_least(self, momentum=0)
        if self.momentum >= 1:
            raise ValueError(f"BcoShift.momentum must be under 1, got {self.momentum!r}")

    def __call__(
        self, scalars: Mapping[str, float], metrics: Mapping[str, float]
    ) -> dict[str, float]:
        """The scalars after a step."""
        mean = (metrics.get(self.chosen, math.nan) + metrics.get(self.rejected, math.nan)) / 2
        if math.isnan(mean) or not self.momentum:
            return dict(scalars)
        shift = self.momentum * scalars["bco_shift"] + (1 - self.momentum) * mean
        return {**scalars, "bco_shift": shift}
