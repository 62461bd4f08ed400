"""AdamW with a schedule and gradient clipping, from options."""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

import optax

from jaxr1.base.checks import check_least, check_positive, check_types


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """AdamW (arXiv:1711.05101).

    Attributes:
      learning_rate: at the peak.
      schedule: after the warm-up: "constant", or "cosine" or "linear" towards `final` x
        learning_rate, which the step after the stage's last one would have: with `final` 0 the last
        step still moves.
      warmup: steps, or a fraction of the stage's steps when below 1.
      final: where the decay ends, as a fraction of the peak.
      b1: decay of AdamW's mean of gradients.
      b2: decay of AdamW's mean of squared gradients.
      eps: added to AdamW's denominator.
      weight_decay: of AdamW.
      clip_norm: global gradient norm; 0 is off.
    """

    learning_rate: float = 1e-6
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup: float = 0.0
    final: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0

    def __post_init__(self):
        check_types(self)
        check_least(self, learning_rate=0, warmup=0, final=0, weight_decay=0, clip_norm=0)
        check_positive(self, "eps")

    @functools.lru_cache  # noqa: B019 - equal options must give one object, or `apply` compiles anew
    def rate(self, steps: int) -> optax.Schedule:
        """The learning rate as a function of the optimiser step."""
        warmup = round(self.warmup * steps) if self.warmup < 1 else int(self.warmup)
        rest = max(1, steps - warmup)
        peak, end = self.learning_rate, self.final * self.learning_rate
        shapes = {
            "constant": lambda: optax.constant_schedule(peak),
            "cosine": lambda: optax.cosine_decay_schedule(peak, rest, self.final),
            "linear": lambda: optax.linear_schedule(peak, end, rest),
        }
        after = shapes[self.schedule]()
        if not warmup:
            return after
        # The first step of a warm-up already moves: step k of w has rate (k + 1) / w.
        ramp = optax.linear_schedule(peak / warmup, peak, max(1, warmup - 1))
        return optax.join_schedules([ramp, after], [warmup])

    @functools.lru_cache  # noqa: B019
    def build(self, steps: int) -> optax.GradientTransformation:
        """The optax transformation for a stage of `steps` optimiser steps."""
        adamw = optax.adamw(
            self.rate(steps), self.b1, self.b2, self.eps, weight_decay=self.weight_decay
        )
        if not self.clip_norm:
            return adamw
        return optax.chain(optax.clip_by_global_norm(self.clip_norm), adamw)
