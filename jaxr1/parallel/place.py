"""Arrays on the mesh: placed, gone through in parts, and fetched."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxr1.parallel.mesh import Rules, axis_shards, constrain, sharding


def put(x: np.ndarray | jax.Array, target: NamedSharding) -> jax.Array:
    """A host array on devices; of several hosts each places its own slices, and reads no others."""
    if isinstance(x, jax.Array) and x.sharding == target:
        return x
    if target.is_fully_addressable:
        return jax.device_put(x, target)
    return jax.make_array_from_callback(x.shape, target, lambda index: x[index])


def place_rows(tree: Any, mesh: Mesh, rules: Rules) -> Any:
    """Host arrays [rows, ...] split over the devices that share a batch."""

    def one(x: np.ndarray) -> jax.Array:
        axes = ("batch", *(None,) * (x.ndim - 1))
        return put(x, sharding(mesh, axes, x.shape, rules))

    return jax.tree.map(one, tree)


def fetch(tree: Any) -> Any:
    """Arrays on the host, whole on every one."""

    def one(x: jax.Array | np.ndarray) -> np.ndarray:
        if isinstance(x, np.ndarray):
            return x
        if not (x.is_fully_addressable or x.is_fully_replicated):
            assert isinstance(x.sharding, NamedSharding) and isinstance(x.sharding.mesh, Mesh)
            x = _replicated(x.sharding.mesh)(x).addressable_data(0)
        return np.asarray(x)

    return jax.tree.map(one, tree)


@functools.lru_cache
def _replicated(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    """The jitted function that gives every device the whole of an array."""
    return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))


def fetch_own(x: jax.Array) -> np.ndarray:
    """An array on the host; slices of other hosts' devices are 0."""
    if x.is_fully_addressable:
        return np.asarray(x)
    out = np.zeros(x.shape, x.dtype)
    for shard in x.addressable_shards:
        out[shard.index] = shard.data
    return out


def slots(shares: Sequence[int], rows: int) -> list[list[int]]:
    """The rows of a batch that lie on each host, in the order that they are filled.

    Every device has a row before one has two.

        device     0       1       2       3
        row        0  1    2  3    4  5    6  7
        filled     1. 5.   2. 6.   3. 7.   4. 8.        on one host

    Args:
      shares: host of each share of the batch.
      rows: of the batch, a multiple of the shares.
    """
    each = rows // len(shares)
    found: list[list[int]] = [[] for _ in range(max(shares) + 1)]
    for number in range(each):
        for share, host in enumerate(shares):
            found[host].append(share * each + number)
    return found


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
