"""What is frozen is computed once: the output of a frozen tower (and merger) takes the place of pixels in a prompt.

    frozen                  kept per prompt              computed by rollout, old, reference and every update
    nothing, or decoder     pixels                       tower, merger, decoder
    vision                  tower output                 merger, decoder
    vision and merger       media embeddings             decoder

Deep features (Qwen3-VL) are kept beside them, in the same array.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np

from jaxr1.inputs.batch import EncodedPrompt
from jaxr1.inputs.patches import block_size, make_rows
from jaxr1.inputs.sizes import Buckets
from jaxr1.models import vlm
from jaxr1.models.vlm import Model
from jaxr1.parallel import batch_multiple, mesh_of, place_rows

PATCHES_AT_ONCE = 16384


def frozen_stage(frozen: Sequence[str]) -> str:
    """What may be kept when these parts are frozen; see `PatchRows.stage`."""
    if "vision" not in frozen:
        return "pixels"
    return "merger" if "merger" in frozen else "tower"


@functools.partial(jax.jit, static_argnames=("model", "stage"))
def _compute(model: Model, params: dict, rows, stage: str):
    params = vlm.cast(model, params)
    with vlm.exactly(model, "features"):
        if stage == "tower":
            return vlm.tower(model, params, rows)
        out = vlm.encode(model, params, rows)
        assert out is not None
        return out.reshape(rows.patch_rmc.shape[0], -1, out.shape[-1])


def with_features(
    model: Model, params: dict, prompts: Sequence[EncodedPrompt], buckets: Buckets, frozen: Sequence[str]
) -> list[EncodedPrompt]:
    """The prompts with what the frozen parts make of their media; the same prompts where nothing can be kept.

    Args:
      frozen: parts of the model that do not change.
    """
    stage, layout = frozen_stage(frozen), model.layout
    images = [(b, i) for b, p in enumerate(prompts) for i in range(len(p.grids)) if p.stage == "pixels"]
    if stage == "pixels" or layout is None or not images:
        return list(prompts)
    mesh = mesh_of(params)
    needed = {k: v for k, v in params.items() if k in ("vision", "merger")}
    shrink = layout.merge**2 if stage == "merger" else 1
    found: dict[tuple[int, int], np.ndarray] = {}
    while images:
        size = 0
        chosen: list[tuple[int, int]] = []
        while images and (not chosen or size + len(prompts[images[0][0]].patches[images[0][1]]) <= PATCHES_AT_ONCE):
            b, i = images.pop(0)
            size += len(prompts[b].patches[i])
            chosen.append((b, i))
        rows, start = make_rows(
            [prompts[b].patches[i] for b, i in chosen],
            [prompts[b].grids[i] for b, i in chosen],
            buckets.patches,
            layout,
            multiple=batch_multiple(mesh, model.rules),
            block=block_size(buckets.patches[-1]),
        )
        with jax.set_mesh(mesh):
            out = np.asarray(_compute(model, needed, place_rows(rows, mesh, model.rules), stage))
        flat = out.reshape(-1, out.shape[-1])
        for (b, i), first in zip(chosen, start.tolist(), strict=True):
            begin = first * layout.merge**2 // shrink
            found[b, i] = flat[begin : begin + len(prompts[b].patches[i]) // shrink]
    return [
        dataclasses.replace(p, patches=tuple(found[b, i] for i in range(len(p.grids))), stage=stage)
        if p.grids and p.stage == "pixels"
        else p
        for b, p in enumerate(prompts)
    ]
