"""Losses on given responses."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax

from jaxr1.rl.terms import Mean, Metrics, Term, Tokens

__all__ = ["CrossEntropy"]


@dataclasses.dataclass(frozen=True)
class CrossEntropy(Term):
    """Negative log-likelihood of given responses."""

    whole_rows: ClassVar[bool] = False

    def __call__(self, tokens: Tokens) -> tuple[jax.Array, Metrics]:
        return -tokens.logp, {"sft/nll": Mean.of(-tokens.logp, tokens.own)}
