"""AdamW with a schedule and gradient clipping, from options."""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

import optax

from jaxr1.base.checks import check_least, check_positive, check_types
from jaxr1.nn.params import Table, flatten, nest


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
      weight_decay: of AdamW, on matrices and embeddings; norms, biases and other vectors are left
        alone.
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
    def build(
        self, steps: int, vectors: frozenset[str] = frozenset()
    ) -> optax.GradientTransformation:
        """The optax transformation for a stage of `steps` optimiser steps.

        Args:
          vectors: paths of parameters that do not decay (`vectors_of`).
        """

        def decaying(tree: dict) -> dict:
            return nest({path: path not in vectors for path in flatten(tree)})

        # Without decay there is nothing to leave out, and the state stays as plain as it was.
        mask = decaying if self.weight_decay and vectors else None
        adamw = optax.adamw(
            self.rate(steps),
            self.b1,
            self.b2,
            self.eps,
            weight_decay=self.weight_decay,
            mask=mask,
        )
        if not self.clip_norm:
            return adamw
        return optax.chain(optax.clip_by_global_norm(self.clip_norm), adamw)


def vectors_of(table: Table) -> frozenset[str]:
    """Paths of the parameters that weight decay leaves alone, as Hugging Face's Trainer does.

    They are known by the shape that a layer's tensor has in the checkpoint: here biases and norms
    may have a dimension for layers and one for heads.
    """
    return frozenset(path for path, p in table.items() if len(p.hf_shape) == 1)
