"""A batch on the mesh: placed, and gone through in parts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxr1.parallel.mesh import Rules, axis_shards, constrain, sharding


def place_rows(tree: Any, mesh: Mesh, rules: Rules) -> Any:
    """Host arrays [rows, ...] split over the devices that share a batch."""

    def place(x: np.ndarray) -> jax.Array:
        axes = ("batch", *(None,) * (x.ndim - 1))
        return jax.device_put(x, sharding(mesh, axes, x.shape, rules))

    return jax.tree.map(place, tree)


def map_rows(function: Callable[[Any], Any], tree: Any, at_once: int, rules: Rules) -> Any:
    """`function` of arrays [rows, ...], for some rows after the others: its temporaries are of few.

    Every device has its own rows in each part.

        device 0   r0 r1 r2 r3   ->   part 0   r0 r1 | r4 r5
        device 1   r4 r5 r6 r7        part 1   r2 r3 | r6 r7

    Args:
      function: of rows; gives arrays [rows, ...].
      at_once: rows of a device that are computed together.
    """
    devices = axis_shards("batch", rules)
    each = jax.tree.leaves(tree)[0].shape[0] // devices
    parts = next(n for n in range(-(-each // max(1, at_once)), each + 1) if each % n == 0)
    if parts == 1:
        return function(tree)

    def cut(x: jax.Array) -> jax.Array:
        split = x.reshape(devices, parts, each // parts, *x.shape[1:])
        moved = jnp.swapaxes(split, 0, 1).reshape(parts, -1, *x.shape[1:])
        return constrain(moved, rules, None, "batch", *(None,) * (x.ndim - 1))

    def join(x: jax.Array) -> jax.Array:
        split = x.reshape(parts, devices, each // parts, *x.shape[2:])
        whole = jnp.swapaxes(split, 0, 1).reshape(-1, *x.shape[2:])
        return constrain(whole, rules, "batch", *(None,) * (whole.ndim - 1))

    return jax.tree.map(join, jax.lax.map(function, jax.tree.map(cut, tree)))


def on_device(tree: Any, itemsize: int = 0) -> float:
    """GiB that arrays take on one device; as numbers of `itemsize` bytes, where one is given."""
    total = 0
    for x in jax.tree.leaves(tree):
        total += math.prod(x.sharding.shard_shape(x.shape)) * (itemsize or x.dtype.itemsize)
    return total / 2**30
