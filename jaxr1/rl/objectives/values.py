"""Losses of a critic."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxr1.base.checks import check_least, check_types
from jaxr1.rl.terms import Mean, Metrics, Term, Tokens

__all__ = ["ValueLoss"]


@dataclasses.dataclass(frozen=True)
class ValueLoss(Term):
    """Half the squared error of a value, not less than with the value clipped near its old one.

        0.5 max((v - R)^2, (clip(v, old - clip, old + clip) - R)^2)

    Attributes:
      clip: width, in units of the reward; 0 is off (0.2 in OpenRLHF and LMM-R1, 0.5 in verl).
    """

    clip: float = 0.2

    reads: ClassVar[tuple[str, ...]] = ("value",)
    whole_rows: ClassVar[bool] = False
    needs_zero_advantage: ClassVar[bool] = True

    def __post_init__(self):
        check_types(self)
        check_least(self, clip=0)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("old_value", "return") if self.clip else ("return",)

    def __call__(self, tokens: Tokens) -> tuple[jax.Array, Metrics]:
        value, own = tokens.value, tokens.own
        aim: Any = getattr(tokens, "return")
        error = (value - aim) ** 2
        metrics: Metrics = {"value": Mean.of(value, own)}
        if self.clip:
            near = jnp.clip(value - tokens.old_value, -self.clip, self.clip) + tokens.old_value
            clipped = (near - aim) ** 2
            metrics["clip_frac"] = Mean.of(clipped > error, own)
            error = jnp.maximum(error, clipped)
        return 0.5 * error, metrics
