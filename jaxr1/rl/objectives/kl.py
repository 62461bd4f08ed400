"""Distances of a policy to a reference."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from jaxr1.base.checks import check_least, check_types
from jaxr1.rl.objectives.policy import LOG_RATIO_LIMIT
from jaxr1.rl.terms import Mean, Metrics, Term, Tokens

__all__ = ["Kl", "kl_estimate"]

KL_LIMIT = 10.0  # as verl and EasyR1 bound the estimate of k3

KlEstimator = Literal["k1", "k2", "k3"]


def kl_estimate(logp: jax.Array, ref_logp: jax.Array, estimator: KlEstimator) -> jax.Array:
    """Per-token estimate of KL(policy, reference) from a policy's token, with d = logp - ref_logp.

        k1   d                      unbiased; as a loss on-policy its gradient has mean zero
        k2   d^2 / 2                the gradient of the KL in expectation
        k3   exp(-d) - 1 + d        unbiased and never negative; clamped at `KL_LIMIT`

    Raises:
      ValueError: an unknown estimator.
    """
    d = logp - ref_logp
    if estimator == "k1":
        return d
    if estimator == "k2":
        return d * d / 2
    if estimator == "k3":
        bounded = jnp.clip(-d, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
        return jnp.clip(jnp.exp(bounded) - 1.0 - bounded, -KL_LIMIT, KL_LIMIT)
    raise ValueError(f"estimator must be 'k1', 'k2' or 'k3', got {estimator!r}")


@dataclasses.dataclass(frozen=True)
class Kl(Term):
    """KL to a frozen reference, added to the loss with the policy loss's aggregation.

    Attributes:
      coef: weight; at 0 there is no reference model.
      estimator: "k1", "k2" or "k3" (http://joschu.net/blog/kl-approx.html).
    """

    coef: float = 0.0
    estimator: KlEstimator = "k3"

    needs: ClassVar[tuple[str, ...]] = ("ref_logp",)
    whole_rows: ClassVar[bool] = False
    needs_zero_advantage: ClassVar[bool] = True

    def __post_init__(self):
        check_types(self)
        check_least(self, coef=0)

    def __call__(self, tokens: Tokens) -> tuple[jax.Array, Metrics]:
        kl = kl_estimate(tokens.logp, tokens.ref_logp, self.estimator)
        return self.coef * kl, {"kl": Mean.of(kl, tokens.own)}
