"""Media rows with room to spare: only the part up to the next level is computed.

level 0        1              2                        all
      [ a a a a b b b . . . . . . . . . . . . . . . . . . ]
                              ^ the tower runs to here
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxr1.inputs.patches import PatchRows, Windows
from jaxr1.inputs.room import levels_of
from jaxr1.parallel import Rules, axis_shards, constrain


def where_used(
    function: Callable[[PatchRows], jax.Array], rows: PatchRows, rules: Rules
) -> jax.Array:
    """`function` of the rows up to a level that holds all that they hold; 0 behind it.

    Its backward pass runs it again: what all levels would keep of it would live at once.

    Args:
      function: of rows; gives [R, embeddings of a row, D].
    """
    devices = axis_shards("batch", rules)
    levels = levels_of(rows, devices)
    if rows.spare == "rows":
        cut, whole = _fewer_rows, rows.segment_rm.shape[0] // devices
        is_used = (rows.segment_rm > 0).any(1).reshape(devices, -1).any(0)
    else:
        cut, whole = _shorter_rows, rows.segment_rm.shape[1]
        is_used = (rows.segment_rm > 0).any(0)
    used = jnp.where(is_used, jnp.arange(1, whole + 1), 0).max()
    like = jax.eval_shape(function, rows)

    def run(level: int) -> Callable[[PatchRows], jax.Array]:
        def branch(rows: PatchRows) -> jax.Array:
            if not level:
                return jnp.zeros(like.shape, like.dtype)
            made = jax.checkpoint(function)(cut(rows, level, devices, rules))
            split = made.reshape(devices, -1, *made.shape[1:]) if cut is _fewer_rows else made
            missing = like.shape[0] // devices if cut is _fewer_rows else like.shape[1]
            padding = [(0, 0)] * split.ndim
            padding[1] = (0, missing - split.shape[1])
            return jnp.pad(split, padding).reshape(like.shape)

        return branch

    # The last level that holds all of it.
    number = (jnp.array(levels) >= used).sum() - 1
    made = jax.lax.switch(number, [run(level) for level in levels], rows)
    return constrain(made, rules, "batch", None, None)


def _fewer_rows(rows: PatchRows, level: int, devices: int, rules: Rules) -> PatchRows:
    """The first rows of each device."""

    def one(x: jax.Array) -> jax.Array:
        split = x.reshape(devices, -1, *x.shape[1:])[:, :level]
        return constrain(split.reshape(-1, *x.shape[1:]), rules, "batch", *[None] * (x.ndim - 1))

    return dataclasses.replace(jax.tree.map(one, rows), spare="")


def _shorter_rows(rows: PatchRows, level: int, devices: int, rules: Rules) -> PatchRows:
    """The first places of each row."""
    pair, windows = rows.pair_rp2, rows.windows
    if pair is not None:
        # What fills the list up names the last block.
        last = jnp.array([level // rows.block - 1, rows.segment_rm.shape[1]], pair.dtype)
        pair = jnp.minimum(pair, last)
    if windows is not None:
        size = windows.index_rwk.shape[2]
        count = min(windows.index_rwk.shape[1], 2 * -(-level // size))
        index, segment = windows.index_rwk[:, :count], windows.segment_rwk[:, :count]
        windows = Windows(index, segment, windows.slot_rm[:, :level])
    shrink = rows.segment_rm.shape[1] // rows.patch_rmc.shape[1]
    shorter: dict[str, Any] = {
        name: getattr(rows, name)[:, :level] for name in ("place_rm2", "size_rm2", "segment_rm")
    }
    if rows.level_rm is not None:
        shorter["level_rm"] = rows.level_rm[:, :level]
    patch = rows.patch_rmc[:, : level // shrink]
    kept = dict(pair_rp2=pair, windows=windows, patch_rmc=patch, spare="")
    return dataclasses.replace(rows, **shorter, **kept)
