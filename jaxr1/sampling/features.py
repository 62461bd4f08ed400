"""What is frozen is computed once: a frozen tower's output replaces a prompt's pixels.

    frozen                kept per prompt       computed by rollout, old, reference and every update
    nothing, or decoder   pixels                tower, merger, decoder
    tower                 tower output          merger, decoder
    tower and merger      media embeddings      decoder

Deep features (Qwen3-VL) are kept beside them, in the same array.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np

from jaxr1.inputs.arrangement import block_size
from jaxr1.inputs.batch import EncodedPrompt
from jaxr1.inputs.patches import Held, PatchRows, blank, make_rows
from jaxr1.inputs.room import arrange_in_room
from jaxr1.inputs.sizes import Buckets
from jaxr1.models import vlm
from jaxr1.models.spare import where_used
from jaxr1.models.vlm import Model, Tower
from jaxr1.parallel import (
    batch_hosts,
    batch_multiple,
    fetch_own,
    host_index,
    mesh_of,
    place_rows,
)

PATCHES_AT_ONCE = 16384
"""Of a device, or as many as the largest image has."""

Unit = tuple[int, int]
"""An image, tile or frame pair: number of its prompt, and its own number there."""


def kept(tower: Tower, frozen: Sequence[str]) -> Held:
    """What may be kept of a tower's media when these parts are frozen."""
    if tower.part not in frozen:
        return "pixels"
    return "merger" if tower.merger in frozen else "tower"


def with_features(
    model: Model,
    params: dict,
    prompts: Sequence[EncodedPrompt],
    buckets: Buckets,
    frozen: Sequence[str],
) -> list[EncodedPrompt]:
    """The prompts with their media replaced by what the frozen parts make of them.

    Args:
      frozen: parts of the model that do not change.
    """
    seen = list(prompts)
    for tower in model.towers:
        if (held := kept(tower, frozen)) != "pixels":
            seen = _computed(model, tower, params, seen, buckets, held)
    return seen


def _computed(
    model: Model,
    tower: Tower,
    params: dict,
    prompts: Sequence[EncodedPrompt],
    buckets: Buckets,
    held: Held,
) -> list[EncodedPrompt]:
    """The prompts with what a tower (and its merger) makes of the pixels that they hold."""
    # The parts are read in chunks, so that activations of few images live at once.
    found: dict[Unit, np.ndarray] = {}
    needed = {part: params[part] for part in (tower.part, tower.merger)}
    most = max(PATCHES_AT_ONCE, buckets.patches[-1])
    mesh = mesh_of(params)
    shares = batch_hosts(mesh, model.rules) or (0,) * batch_multiple(mesh, model.rules)
    for units in _chunks(prompts, most, shares):
        found |= _features(model, tower, needed, prompts, units, buckets, held, most)

    seen = []
    for b, prompt in enumerate(prompts):
        if (b, 0) in found:
            features = tuple(found[b, i] for i in range(len(prompt.grids)))
            prompt = dataclasses.replace(prompt, patches=features, held=held)
        seen.append(prompt)
    return seen


def _chunks(
    prompts: Sequence[EncodedPrompt], most: int, shares: Sequence[int]
) -> Iterator[dict[Unit, int]]:
    """All units that are still pixels and the device of each, up to `most` patches of a device.

    Args:
      shares: host of each device.
    """
    chosen: dict[Unit, int] = {}
    load = [0] * len(shares)
    for b, prompt in enumerate(prompts):
        if prompt.held != "pixels":
            continue
        for i, patches in enumerate(prompt.patches):
            own = [device for device, host in enumerate(shares) if host == prompt.host]
            emptiest = min(own, key=load.__getitem__)
            if load[emptiest] + len(patches) > most:
                yield chosen
                chosen, load, emptiest = {}, [0] * len(shares), own[0]
            chosen[b, i] = emptiest
            load[emptiest] += len(patches)
    if chosen:
        yield chosen


def _features(
    model: Model,
    tower: Tower,
    params: dict,
    prompts: Sequence[EncodedPrompt],
    units: Mapping[Unit, int],
    buckets: Buckets,
    held: Held,
    most: int,
) -> dict[Unit, np.ndarray]:
    """What a tower makes of some units, which lie on the devices that are given."""
    mesh, block = mesh_of(params), block_size(buckets.patches[-1])
    multiple = batch_multiple(mesh, model.rules)
    grids = [prompts[b].grids[i] for b, i in units]
    arranged = arrange_in_room(
        list(map(math.prod, grids)),
        list(units.values()),
        buckets.patches,
        tower.geometry,
        patches=most,
        devices=multiple,
        block=block,
        hosts=batch_hosts(mesh, model.rules),
    )
    rows, start = make_rows(
        [prompts[b].patches[i] for b, i in units],
        grids,
        buckets.patches,
        tower.geometry,
        levels=[prompts[b].levels[i] for b, i in units],
        block=block,
        arranged=arranged,
    )
    with jax.set_mesh(mesh):
        out = fetch_own(_compute(model, params, place_rows(rows, mesh, model.rules), held))
    flat = out.reshape(-1, out.shape[-1])

    # The merger makes one embedding of merge^2 patches; `start` counts embeddings.
    unit = tower.geometry.merge**2
    shrink = unit if held == "merger" else 1
    found = {}
    for (b, i), first in zip(units, start.tolist(), strict=True):
        begin = first * unit // shrink
        own = flat[begin : begin + len(prompts[b].patches[i]) // shrink]
        is_own = prompts[b].host == host_index()
        found[b, i] = own if is_own else blank(own.shape, own.dtype)
    return found


@functools.partial(jax.jit, static_argnames=("model", "held"))
def _compute(model: Model, params: dict, rows: PatchRows, held: Held) -> jax.Array:
    params = vlm.cast(model, params)
    with vlm.exactly(model, "features"):

        def run(rows: PatchRows) -> jax.Array:
            if held == "tower":
                return vlm.tower(model, params, rows)
            out = vlm.encode_patches(model, params, rows)
            return out.reshape(rows.patch_rmc.shape[0], -1, out.shape[-1])

        return where_used(run, rows, model.rules) if rows.spare else run(rows)
