"""Losses that keep a policy from becoming certain too early."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax

from jaxr1.rl.terms import Metrics, Term, Tokens

__all__ = ["Entropy"]


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
