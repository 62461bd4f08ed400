"""What was computed in a step: counted where it is done, for `perf/...`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxr1.inputs.batch import EncodedPrompt
from jaxr1.inputs.placed import PlacedRows
from jaxr1.inputs.strips import Plan, Strips
from jaxr1.models.flops import forward_flops
from jaxr1.models.vlm import Model


@dataclasses.dataclass(frozen=True)
class Padding:
    """What a micro-batch wasted: fractions of padded places, attention pairs computed / needed."""

    prompt: float
    patches: float
    strips: float
    vision_pairs: float
    tokens: int  # padded, prompts and strips
    real: int  # tokens
    rows: int  # padded
    prompts: int

    @classmethod
    def of(cls, plan: Plan, waste: dict[str, float], strips: Strips) -> Padding:
        """That of a plan, given its strips and what its prompt rows waste (`batch_waste`)."""
        used = float((strips.segment_bst[:, : plan.used] > 0).mean())
        prompts = round((1 - waste["prompt"]) * plan.rows * plan.prompt_len)
        return cls(
            prompt=waste["prompt"],
            patches=waste["patches"],
            strips=1 - used,
            vision_pairs=waste["vision_pairs"],
            tokens=plan.tokens,
            real=prompts + sum(place.length for place in plan.places),
            rows=plan.rows,
            prompts=len(plan.prompts),
        )


@dataclasses.dataclass
class Work:
    """What was computed, and what of it the passes of a step share.

    Attributes:
      flops: floating-point operations that the model needed (`models.flops`), on all devices.
      padding: of each micro-batch that was differentiated.
      placed: prompt rows on the devices, by learner: each has plans of its own.
    """

    flops: int = 0
    padding: list[Padding] = dataclasses.field(default_factory=list)
    placed: dict[str, PlacedRows] = dataclasses.field(default_factory=dict)

    def rows(self, learner: str) -> PlacedRows:
        """Prompt rows as a learner's plans have them."""
        return self.placed.setdefault(learner, PlacedRows())

    def forward(
        self,
        model: Model,
        prompts: Sequence[EncodedPrompt],
        counts: Sequence[Sequence[int]] = (),
        times: int = 1,
    ) -> None:
        """Counts a forward pass over prompts, and over responses of so many tokens."""
        for prompt, group in zip(prompts, counts or [()] * len(prompts), strict=True):
            self.flops += times * sum(forward_flops(model, prompt, group).values())

    def metrics(self) -> dict[str, float]:
        """Padding as means over micro-batches, weighted by their padded tokens."""
        if not self.padding:
            return {}
        tokens = [p.tokens for p in self.padding]
        total = lambda name: sum(getattr(p, name) for p in self.padding)
        mean = lambda name: float(
            np.average([getattr(p, name) for p in self.padding], weights=tokens)
        )
        return {
            "perf/padding_prompt": mean("prompt"),
            "perf/padding_patches": mean("patches"),
            "perf/padding": mean("strips"),
            "perf/vision_pairs": mean("vision_pairs"),
            "perf/padded_per_real": sum(tokens) / sum(p.real for p in self.padding),
            "perf/rows_per_prompt": total("rows") / total("prompts"),
        }
