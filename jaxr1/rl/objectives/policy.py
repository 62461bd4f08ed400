"""Policy losses of tokens.

A new one is a class of this file and a name in `TokenLoss`.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxr1.base.checks import check_least, check_types
from jaxr1.rl.terms import Mean, Metrics, Term, Tokens

__all__ = ["Ppo", "clipped_surrogate"]

LOG_RATIO_LIMIT = 20.0  # exp of a stale ratio overflows before the surrogate clips it


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


TokenLoss = Ppo
"""Those whose fields are flags of the command line."""
