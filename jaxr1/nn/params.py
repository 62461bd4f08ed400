"""The parameter table: one entry per tensor, from which everything about parameters is derived.

A table maps a path in the parameter tree ("decoder/layers/q/kernel") to a `Param`. Initialising,
sharding, loading, saving, freezing and counting all walk the same table, so a tensor is described
once.

Layers of one kind are stacked: our tensor has a leading layer dimension, the Hugging Face
checkpoint one tensor a layer, whose name holds "{}" for the layer number. The other way round,
several entries may be parts of one Hugging Face tensor (a fused qkv): they share its name and each
holds a `Part`.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxr1.parallel import Rules, put, sharding

Table = dict[str, "Param"]


@dataclasses.dataclass(frozen=True)
class Part:
    """Where an entry lies in a fused tensor [out, in...]: in out = prod(shape), along one axis.

      qkv [3 * N * H, D]            shape (3, N, H), axis 0:      q = 0..1, k = 1..2, v = 2..3
      wqkv [K * (G + 2) * H, D]     shape (K, G + 2, H), axis 1:  q = 0..G, k = G..G+1, v = G+1..G+2

    Attributes:
      shape: the view of the fused tensor's first dimension.
      axis: of `shape`.
      start, stop: the slice along `axis`.

    Raises:
      ValueError: the slice is empty or outside the axis.
    """

    shape: tuple[int, ...]
    axis: int
    start: int
    stop: int

    def __post_init__(self) -> None:
        if not (
            0 <= self.axis < len(self.shape)
            and 0 <= self.start < self.stop <= self.shape[self.axis]
        ):
            raise ValueError(f"{self}: no such slice")

    @property
    def own_shape(self) -> tuple[int, ...]:
        """`shape`, narrower along `axis`."""
        return (*self.shape[: self.axis], self.stop - self.start, *self.shape[self.axis + 1 :])

    def of(self, whole: np.ndarray) -> np.ndarray:
        """The part of [out, in...], a view [*own_shape, in...]."""
        view = whole.reshape(*self.shape, *whole.shape[1:])
        return view[(slice(None),) * self.axis + (slice(self.start, self.stop),)]


@dataclasses.dataclass(frozen=True)
class Param:
    """One tensor of a model.

    Attributes:
      shape: our shape, with the layer dimension first when `layers` > 0.
      axes: one logical axis (or None) per dimension of `shape`.
      name: Hugging Face name, "{}" standing for the layer.
      hf_shape: shape of one Hugging Face tensor (of the whole one, where the entry is a part of
        it).
      transpose: the tensor is a matrix [out, in...] there and [in..., out...] here.
      init: "normal", "uniform", "zeros" or "ones".
      scale: standard deviation of "normal" and "uniform".
      layers: number of stacked layers, 0 for a tensor of its own.
      part: the entry is this part of the Hugging Face tensor; None is all of it.
      twin: a second Hugging Face name under which files may hold the same values (the output matrix
        tied to the embedding); "" for none. It is read only to be compared, and never written.

    Raises:
      ValueError: the shapes do not hold the same number of values.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    name: str
    hf_shape: tuple[int, ...]
    transpose: bool = False
    init: str = "normal"
    scale: float = 0.02
    layers: int = 0
    part: Part | None = None
    twin: str = ""

    def __post_init__(self) -> None:
        if self.part and self.hf_shape[:1] != (math.prod(self.part.shape),):
            raise ValueError(f"{self.name}: {self.part} is no view of {self.hf_shape}")
        if math.prod(self.layer_shape) != math.prod(self.own_hf_shape):
            raise ValueError(
                f"{self.name}: {self.layer_shape} here does not fit {self.own_hf_shape} there"
            )

    @property
    def layer_shape(self) -> tuple[int, ...]:
        """Our shape without the layer dimension."""
        return self.shape[1:] if self.layers else self.shape

    @property
    def own_hf_shape(self) -> tuple[int, ...]:
        """Shape of the entry's share of the tensor: `hf_shape`, or [*part.own_shape, in...]."""
        return (*self.part.own_shape, *self.hf_shape[1:]) if self.part else self.hf_shape

    def names(self) -> list[str]:
        """The Hugging Face names, one per layer."""
        return [self.name.format(i) for i in range(self.layers)] if self.layers else [self.name]

    def of(self, whole: np.ndarray) -> np.ndarray:
        """The entry's share of a Hugging Face tensor: all of it, or a view [*own_hf_shape]."""
        return self.part.of(whole) if self.part else whole

    def from_hf(self, whole: np.ndarray) -> np.ndarray:
        """A whole Hugging Face tensor in our layout (without the layer dimension).

        A view; only a part whose slices our shape merges (the queries of `wqkv`) is a copy, of that
        part alone.
        """
        array = self.of(whole)
        if self.transpose:
            array = np.moveaxis(array.reshape(*array.shape[: self._outer], -1), -1, 0)
        return array.reshape(self.layer_shape)

    def to_hf(self, array: np.ndarray) -> np.ndarray:
        """The inverse of `from_hf`: our array (without layers) as a view of `own_hf_shape`."""
        if self.transpose:
            array = array.reshape(-1, math.prod(self.own_hf_shape[: self._outer])).T
        return array.reshape(self.own_hf_shape)

    @property
    def _outer(self) -> int:
        """Dimensions of `own_hf_shape` that are the rows of the matrix."""
        return len(self.part.shape) if self.part else 1


def linear(
    name: str,
    out: tuple[int, ...],
    into: tuple[int, ...],
    axes: tuple[str | None, ...],
    *,
    hf_shape: tuple[int, ...] | None = None,
    part: Part | None = None,
    **kw,
) -> Param:
    """A matrix [prod(out), prod(into)] there, stored here as [*into, *out].

    Args:
      hf_shape: of the whole tensor there, where it has more dimensions ([out, *in] of a
        convolution).
      part: the matrix is this part of a larger one there.
    """
    rows = math.prod(part.shape if part else out)
    return Param(
        (*into, *out),
        axes,
        name,
        hf_shape or (rows, math.prod(into)),
        transpose=True,
        part=part,
        **kw,
    )


def vector(
    name: str,
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    init: str = "zeros",
    *,
    hf_shape: tuple[int, ...] | None = None,
    part: Part | None = None,
) -> Param:
    """A vector [prod(shape)] there (or `hf_shape`, or a part of a longer one), `shape` here."""
    default = (math.prod(part.shape if part else shape),)
    return Param(shape, axes, name, hf_shape or default, init=init, part=part)


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
    """Random parameters, each drawn from (seed, its path): a new tensor changes no other.

    A fused Hugging Face tensor is drawn whole, so that its values do not depend on how it is cut
    into entries.

    Returns:
      The parameter tree in `dtype`, placed on `mesh`.
    """
    flat = {}
    for path, p in table.items():
        if p.init in DRAWS:
            host = _draw(path, p, seed)
        else:
            host = np.full(p.shape, 1.0 if p.init == "ones" else 0.0, np.float32)
        flat[path] = put(host.astype(jnp.dtype(dtype)), sharding(mesh, p.axes, p.shape, rules))
    return nest(flat)


def _draw(path: str, p: Param, seed: int) -> np.ndarray:
    """Random values of one entry: its own, or its part of the fused tensor that holds it."""
    if p.part is None:
        return draw(path, p, seed)
    lead = (*p.shape[: 1 if p.layers else 0], *p.hf_shape[1:])
    fused = f"{path.rpartition('/')[0]}/{p.name.split('.')[-2]}"  # "vision/blocks/qkv"
    drawn = DRAWS[p.init](fused, (*lead, *p.part.shape), seed, p.scale)
    cut = [slice(None)] * (len(lead) + p.part.axis) + [slice(p.part.start, p.part.stop)]
    return drawn[tuple(cut)].reshape(p.shape)


def draw_normal(path: str, shape: tuple[int, ...], seed: int, scale: float) -> np.ndarray:
    """float32 normal values of standard deviation `scale`, a function of (seed, path)."""
    rng = np.random.default_rng([seed, zlib.crc32(path.encode())])
    return rng.standard_normal(shape, np.float32) * np.float32(scale)


def draw_uniform(path: str, shape: tuple[int, ...], seed: int, scale: float) -> np.ndarray:
    """As `draw_normal`, evenly between -sqrt(3) and sqrt(3) x scale: of the same deviation."""
    rng = np.random.default_rng([seed, zlib.crc32(path.encode())])
    bound = np.float32(scale * math.sqrt(3))
    return (2 * rng.random(shape, np.float32) - 1) * bound


DRAWS = {"normal": draw_normal, "uniform": draw_uniform}


def draw(path: str, p: Param, seed: int) -> np.ndarray:
    """float32 values of an entry whose `init` is one of `DRAWS`, a function of (seed, path)."""
    return DRAWS[p.init](path, p.shape, seed, p.scale)


def count(table: Table) -> int:
    """Number of parameters."""
    return sum(math.prod(p.shape) for p in table.values())
