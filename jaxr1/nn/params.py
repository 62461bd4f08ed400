"""The parameter table: one entry per tensor, from which everything about parameters is derived.

A table maps a path in the parameter tree ("decoder/layers/q/kernel") to a `Param`. Initialising, sharding, loading,
saving, freezing and counting all walk the same table, so a tensor is described once.

Layers of one kind are stacked: our tensor has a leading layer dimension, the Hugging Face checkpoint one tensor a
layer, whose name holds "{}" for the layer number.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxr1.parallel import Rules, sharding

Table = dict[str, "Param"]


@dataclasses.dataclass(frozen=True)
class Param:
    """One tensor of a model.

    Attributes:
      shape: our shape, with the layer dimension first when `layers` > 0.
      axes: one logical axis (or None) per dimension of `shape`.
      name: Hugging Face name, "{}" standing for the layer.
      hf_shape: shape of one Hugging Face tensor.
      transpose: the tensor is a matrix [out, in...] there and [in..., out...] here.
      init: "normal", "zeros" or "ones".
      scale: standard deviation of "normal".
      layers: number of stacked layers, 0 for a tensor of its own.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    name: str
    hf_shape: tuple[int, ...]
    transpose: bool = False
    init: str = "normal"
    scale: float = 0.02
    layers: int = 0

    def names(self) -> list[str]:
        """The Hugging Face names, one per layer."""
        return [self.name.format(i) for i in range(self.layers)] if self.layers else [self.name]

    def from_hf(self, array: np.ndarray) -> np.ndarray:
        """One Hugging Face tensor in our layout (without the layer dimension)."""
        shape = self.shape[1:] if self.layers else self.shape
        if self.transpose:
            array = array.reshape(array.shape[0], -1).T
        return array.reshape(shape)

    def to_hf(self, array: np.ndarray) -> np.ndarray:
        """The inverse of `from_hf`."""
        if self.transpose:
            array = array.reshape(-1, self.hf_shape[0]).T
        return np.ascontiguousarray(array.reshape(self.hf_shape))


def linear(
    name: str, out: tuple[int, ...], into: tuple[int, ...], axes: tuple[str | None, ...], *, hf_shape=None, **kw
) -> Param:
    """A matrix [prod(out), prod(into)] there, stored here as [*into, *out]."""
    default = (math.prod(out), math.prod(into))
    return Param((*into, *out), axes, name, hf_shape or default, transpose=True, **kw)


def vector(name: str, shape: tuple[int, ...], axes: tuple[str | None, ...], init: str = "zeros") -> Param:
    return Param(shape, axes, name, (math.prod(shape),), init=init)


def stack(table: Table, layers: int) -> Table:
    """The same entries with a leading layer dimension."""
    return {
        path: dataclasses.replace(p, shape=(layers, *p.shape), axes=(None, *p.axes), layers=layers)
        for path, p in table.items()
    }


def nest(flat: dict[str, Any]) -> dict:
    """{"a/b": x} -> {"a": {"b": x}}."""
    tree: dict = {}
    for path, value in flat.items():
        node = tree
        *parents, leaf = path.split("/")
        for key in parents:
            node = node.setdefault(key, {})
        node[leaf] = value
    return tree


def flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    """The inverse of `nest`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        flat.update(flatten(value, path + "/") if isinstance(value, dict) else {path: value})
    return flat


def shardings(table: Table, mesh, rules: Rules) -> dict:
    """NamedShardings in the shape of the parameter tree."""
    return nest({path: sharding(mesh, p.axes, p.shape, rules) for path, p in table.items()})


def init_params(table: Table, seed: int, dtype: str, mesh, rules: Rules) -> dict:
    """Random parameters, each drawn from (seed, its path): adding a tensor to a model changes no other.

    Returns:
      The parameter tree in `dtype`, placed on `mesh`.
    """
    import zlib

    flat = {}
    for path, p in table.items():
        if p.init == "normal":
            rng = np.random.default_rng([seed, zlib.crc32(path.encode())])
            host = rng.standard_normal(p.shape, np.float32) * np.float32(p.scale)
        else:
            host = np.full(p.shape, 1.0 if p.init == "ones" else 0.0, np.float32)
        flat[path] = jax.device_put(host.astype(jnp.dtype(dtype)), sharding(mesh, p.axes, p.shape, rules))
    return nest(flat)


def count(table: Table) -> int:
    """Number of parameters."""
    return sum(math.prod(p.shape) for p in table.values())
