"""AdamW with a schedule and gradient clipping, from options."""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

import optax


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """AdamW (arXiv:1711.05101).

    Attributes:
      learning_rate: at the peak.
      schedule: after the warm-up: "constant", "cosine" or "linear" to `final` x learning_rate at the stage's last step.
      warmup: steps, or a fraction of the stage's steps when below 1.
      final: end of the decay, as a fraction of the peak.
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

    @functools.lru_cache  # noqa: B019 - options are few; equal ones must give one object, or `apply` compiles again
    def rate(self, steps: int) -> optax.Schedule:
        """The learning rate as a function of the optimiser step.

        Raises:
          ValueError: an unknown schedule.
        """
        warmup = round(self.warmup * steps) if self.warmup < 1 else int(self.warmup)
        rest = max(1, steps - warmup)
        peak, end = self.learning_rate, self.final * self.learning_rate
        shapes = {
            "constant": lambda: optax.constant_schedule(peak),
            "cosine": lambda: optax.cosine_decay_schedule(peak, rest, self.final),
            "linear": lambda: optax.linear_schedule(peak, end, rest),
        }
        if self.schedule not in shapes:
            raise ValueError(f"schedule must be one of {', '.join(shapes)}, got {self.schedule!r}")
        # The first step of a warm-up already moves: step k of w has rate (k + 1) / w.
        ramp = optax.linear_schedule(peak / max(1, warmup), peak, max(1, warmup - 1))
        return optax.join_schedules([ramp, shapes[self.schedule]()], [warmup]) if warmup else shapes[self.schedule]()

    @functools.lru_cache  # noqa: B019
    def build(self, steps: int) -> optax.GradientTransformation:
        """The optax transformation for a stage of `steps` optimiser steps."""
        adamw = optax.adamw(self.rate(steps), self.b1, self.b2, self.eps, weight_decay=self.weight_decay)
        return optax.chain(optax.clip_by_global_norm(self.clip_norm), adamw) if self.clip_norm else adamw
