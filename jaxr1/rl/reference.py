"""The reference of a KL penalty, where it follows the policy (arXiv:2404.09656)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxr1.base.checks import check_least, check_positive, check_types

__all__ = ["Reference"]


@dataclasses.dataclass(frozen=True)
class Reference:
    """Whether and how the reference moves.

    Attributes:
      every: steps after which it moves; 0 is never: it stays what the stage began with.
      alpha: share of the policy in the new reference, 1 replaces it. TRL's are 512 steps and 0.6.
    """

    every: int = 0
    alpha: float = 1.0

    def __post_init__(self):
        check_types(self)
        check_least(self, every=0)
        check_positive(self, "alpha")
        if self.alpha > 1:
            raise ValueError(f"Reference.alpha must be at most 1, got {self.alpha}")

    def is_due(self, step: int) -> bool:
        """Whether it moves when this step is done."""
        return self.every > 0 and step % self.every == 0


@jax.jit
def mixed(reference: dict, policy: dict, alpha) -> dict:
    """alpha * policy + (1 - alpha) * reference, in float32: bfloat16 would lose small moves."""
    wide = lambda x: x.astype(jnp.float32)
    return jax.tree.map(lambda r, p: wide(r) + alpha * (wide(p) - wide(r)), reference, policy)
