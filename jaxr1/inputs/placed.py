"""Prompt rows on the devices, from one pass over a plan to the next.

    uploaded for      the rollout          old, reference log-probs and the update of a plan
                      its rows, once       each micro-batch's rows, once

The rollout has rows of its own, since it holds all prompts of a wave and a plan sorts and cuts
them anew; the passes behind it share theirs where they plan the same rows of the same length.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from jaxr1.inputs.arrangement import PatchGeometry
from jaxr1.inputs.batch import EncodedPrompt, PromptBatch, batch_waste
from jaxr1.inputs.sizes import Buckets
from jaxr1.inputs.strips import Plan, Prompts, plan_prompts
from jaxr1.parallel import Rules, batch_hosts, batch_multiple, place_rows

MOST_KEPT = 1 << 30
"""Bytes of rows that each device keeps at most; what is over is uploaded at each pass."""


@dataclasses.dataclass(frozen=True)
class Placed:
    """The prompt rows of a micro-batch.

    Attributes:
      prompts: those that they hold.
      batch: on the devices.
      waste: see `batch_waste`.
      size: bytes on each device.
    """

    prompts: tuple[EncodedPrompt, ...]
    batch: PromptBatch
    waste: dict[str, float]
    size: int


class PlacedRows:
    """The rows of the plans of one step, as one model takes them.

    Attributes:
      uploaded: bytes that went to the devices.
    """

    def __init__(self, most: int = MOST_KEPT):
        """Keeps up to `most` bytes on each device; 0 keeps nothing."""
        self.most, self.size, self.uploaded = most, 0, 0
        self._kept: dict[Any, Placed] = {}

    def rows(
        self,
        plan: Plan,
        prompts: Prompts,
        buckets: Buckets,
        media: Mapping[str, PatchGeometry],
        mesh: Mesh,
        rules: Rules,
        *,
        last: bool = False,
    ) -> Placed:
        """The rows of a plan: those of an earlier pass over the same prompts, or new ones.

        Args:
          last: no pass follows that needs them; they are not kept any longer.
        """
        chosen = tuple(prompts[i] for i in plan.prompts)
        # By identity: a prompt is never changed, and those that are kept stay alive here.
        key = (plan.rows, plan.prompt_len, mesh, *map(id, chosen))
        if (found := self._kept.get(key)) is None:
            found = self._place(plan, prompts, chosen, buckets, media, mesh, rules)
        if last:
            if self._kept.pop(key, None) is not None:
                self.size -= found.size
        elif key not in self._kept and self.size + found.size <= self.most:
            self._kept[key] = found
            self.size += found.size
        return found

    def _place(
        self,
        plan: Plan,
        prompts: Prompts,
        chosen: tuple[EncodedPrompt, ...],
        buckets: Buckets,
        media: Mapping[str, PatchGeometry],
        mesh: Mesh,
        rules: Rules,
    ) -> Placed:
        multiple = batch_multiple(mesh, rules)
        hosts = batch_hosts(mesh, rules)
        batch = plan_prompts(plan, prompts, buckets, media, multiple=multiple, hosts=hosts)
        size = sum(x.nbytes for x in jax.tree.leaves(batch))
        self.uploaded += size
        placed = place_rows(batch, mesh, rules)
        return Placed(chosen, placed, batch_waste(batch, multiple), -(-size // multiple))
