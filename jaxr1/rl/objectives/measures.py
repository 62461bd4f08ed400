"""Terms that measure, and add nothing to a loss."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from jaxr1.rl.terms import Max, Mean, Metrics, Term, Tokens

__all__ = ["PolicyStats"]


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
