"""Objectives: per-token losses as pure functions, and the weights that aggregate them.

A loss is always sum(weight * per-token loss): weights are made on the host (`token_weights`), where the whole batch is
known, so micro-batches and devices only add.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

LOG_RATIO_LIMIT = 20.0  # exp of a stale ratio overflows before the surrogate clips it
KL_LIMIT = 10.0  # as verl and EasyR1 bound the estimate of k3

Aggregation = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"]
KlEstimator = Literal["k1", "k2", "k3"]


@dataclasses.dataclass(frozen=True)
class Surrogate:
    """The policy loss.

    Attributes:
      clip_low: the ratio is clipped to [1 - clip_low, 1 + clip_high] (PPO, arXiv:1707.06347).
      clip_high: its upper width; apart from the lower one in DAPO (arXiv:2503.14476).
      aggregation: how tokens are averaged, see `token_weights`.
      length_norm: the constant of "seq-mean-token-sum-norm" (Dr. GRPO); 0 is the stage's response limit.
      entropy_coef: weight of the entropy bonus.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    aggregation: Aggregation = "token-mean"
    length_norm: float = 0.0
    entropy_coef: float = 0.0


@dataclasses.dataclass(frozen=True)
class Kl:
    """KL to a frozen reference, added to the loss with the policy loss's aggregation.

    Attributes:
      coef: weight; at 0 there is no reference model.
      estimator: "k1", "k2" or "k3" (http://joschu.net/blog/kl-approx.html).
    """

    coef: float = 0.0
    estimator: KlEstimator = "k3"


def clipped_surrogate(
    logp: jax.Array, old_logp: jax.Array, advantage: jax.Array, clip_low: float, clip_high: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """PPO's clipped surrogate, per token: -min(ratio * A, clip(ratio) * A) (arXiv:1707.06347, eq. 7).

    Args:
      logp: log-probs of the policy, the differentiated ones.
      old_logp: log-probs at rollout; equal to `logp` when one update follows, then the ratio is exactly 1.
      advantage: same shape.
      clip_low, clip_high: widths of the clip interval.

    Returns:
      Loss, ratio, and 1.0 where the clip took the gradient away.
    """
    ratio = jnp.exp(jnp.clip(logp - old_logp, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))
    bounded = jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
    clipped = jnp.where(advantage > 0, ratio > 1.0 + clip_high, (ratio < 1.0 - clip_low) & (advantage < 0))
    return -jnp.minimum(ratio * advantage, bounded * advantage), ratio, clipped.astype(jnp.float32)


def kl_estimate(logp: jax.Array, ref_logp: jax.Array, estimator: KlEstimator) -> jax.Array:
    """Per-token estimate of KL(policy, reference) from a token of the policy, with d = logp - ref_logp.

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


def token_weights(
    counts: Sequence[Sequence[int]], aggregation: Aggregation, length_norm: float = 1.0
) -> list[list[float]]:
    """The weight of each token of each response, for the whole batch of one optimiser step.

        token-mean                 1 / N               N = tokens of the batch
        seq-mean-token-mean        1 / (R T_i)         R = responses with at least one token, T_i = its tokens
        seq-mean-token-sum         1 / R
        seq-mean-token-sum-norm    1 / (R L)           L = `length_norm`

    Args:
      counts: tokens that count in each response of each prompt; 0 leaves the response out.
      aggregation: one of the above.
      length_norm: L, in tokens.

    Returns:
      One weight per response (equal for its tokens).

    Raises:
      ValueError: an unknown aggregation.
    """
    flat = np.asarray([n for group in counts for n in group], np.int64)
    tokens, responses = max(1, int(flat.sum())), max(1, int((flat > 0).sum()))
    rule = {
        "token-mean": lambda n: 1.0 / tokens,
        "seq-mean-token-mean": lambda n: 1.0 / (responses * n),
        "seq-mean-token-sum": lambda n: 1.0 / responses,
        "seq-mean-token-sum-norm": lambda n: 1.0 / (responses * length_norm),
    }.get(aggregation)
    if rule is None:
        raise ValueError(f"unknown aggregation {aggregation!r}")
    return [[rule(n) if n else 0.0 for n in group] for group in counts]
