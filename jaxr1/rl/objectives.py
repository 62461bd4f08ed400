"""Losses: the terms that objectives are made of.

    GRPO    (Ppo(), Kl(0.04), PolicyStats())
    SFT     (CrossEntropy(),)

A new loss is a new class here: a frozen dataclass that names what it takes (`rl.terms.Term`) and is
called on `Tokens`. Where `Surrogate` lists it, its fields are flags of the command line.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from jaxr1.base.checks import check_least, check_types
from jaxr1.rl.terms import Max, Mean, Metrics, Term, Tokens

__all__ = [
    "CrossEntropy",
    "Entropy",
    "Kl",
    "PolicyStats",
    "Ppo",
    "Surrogate",
    "clipped_surrogate",
    "kl_estimate",
]

LOG_RATIO_LIMIT = 20.0  # exp of a stale ratio overflows before the surrogate clips it
KL_LIMIT = 10.0  # as verl and EasyR1 bound the estimate of k3

KlEstimator = Literal["k1", "k2", "k3"]


# --- policies -----------------------------------------------------------------------------------
def clipped_surrogate(
    logp: jax.Array, old_logp: jax.Array, advantage: jax.Array, clip_low: float, clip_high: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """PPO's clipped surrogate per token: -min(r A, clip(r) A) (arXiv:1707.06347, eq. 7).

    Args:
      logp: log-probs of the policy, the differentiated ones.
      old_logp: log-probs at rollout; equal to `logp` when one update follows, then the ratio is 1.
      advantage: same shape.
      clip_low, clip_high: widths of the clip interval.

    Returns:
      Loss, ratio, and 1.0 where the clip took the gradient away.
    """
    ratio = jnp.exp(jnp.clip(logp - old_logp, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))
    bounded = jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
    too_high, too_low = ratio > 1.0 + clip_high, ratio < 1.0 - clip_low
    clipped = jnp.where(advantage > 0, too_high, too_low & (advantage < 0))
    return -jnp.minimum(ratio * advantage, bounded * advantage), ratio, clipped.astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Ppo(Term):
    """The clipped surrogate of PPO (arXiv:1707.06347, eq. 7), which GRPO takes too.

    Attributes:
      clip_low: the ratio is clipped to [1 - clip_low, 1 + clip_high].
      clip_high: its upper width; apart from the lower one in DAPO (arXiv:2503.14476).
    """

    clip_low: float = 0.2
    clip_high: float = 0.2

    needs: ClassVar[tuple[str, ...]] = ("advantage", "old_logp")
    whole_rows: ClassVar[bool] = False

    def __post_init__(self):
        check_types(self)
        check_least(self, clip_low=0, clip_high=0)

    def __call__(self, tokens: Tokens) -> tuple[jax.Array, Metrics]:
        loss, ratio, clipped = clipped_surrogate(
            tokens.logp, tokens.old_logp, tokens.advantage, self.clip_low, self.clip_high
        )
        own = tokens.own
        return loss, {"clip_frac": Mean.of(clipped, own), "ratio": Mean.of(ratio, own)}


@dataclasses.dataclass(frozen=True)
class PolicyStats(Term):
    """Measures what every policy loss wants to know, and adds none of its own.

    `rollout/max_abs_dlogp` is the largest difference between the log-probs that the sampler
    reported and those that are trained.
    """

    needs: ClassVar[tuple[str, ...]] = ("old_logp", "sampled_logp")
    reads: ClassVar[tuple[str, ...]] = ("logp", "entropy")
    whole_rows: ClassVar[bool] = False

    def __call__(self, tokens: Tokens) -> tuple[None, Metrics]:
        own = tokens.own
        return None, {
            "entropy": Mean.of(tokens.entropy, own),
            "approx_kl": Mean.of(tokens.old_logp - tokens.logp, own),
            "rollout/max_abs_dlogp": Max.of(jnp.abs(tokens.logp - tokens.sampled_logp), own),
        }


@dataclasses.dataclass(frozen=True)
class Entropy(Term):
    """The entropy bonus: -coef * H (arXiv:1707.06347, eq. 9).

    Attributes:
      coef: weight of the bonus.
    """

    coef: float

    reads: ClassVar[tuple[str, ...]] = ("entropy",)
    whole_rows: ClassVar[bool] = False
    needs_zero_advantage: ClassVar[bool] = True

    def __call__(self, tokens: Tokens) -> tuple[jax.Array, Metrics]:
        return -self.coef * tokens.entropy, {}


# --- distance to a reference --------------------------------------------------------------------
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


# --- supervised ---------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class CrossEntropy(Term):
    """Negative log-likelihood of given responses."""

    whole_rows: ClassVar[bool] = False

    def __call__(self, tokens: Tokens) -> tuple[jax.Array, Metrics]:
        return -tokens.logp, {"sft/nll": Mean.of(-tokens.logp, tokens.own)}


Surrogate = Ppo | Term
"""What may stand as the policy loss of a stage: a term of this file, or one of the user's own."""
