"""Low-rank adapters (LoRA, arXiv:2106.09685): x W + s (x A) B, with only A and B trained.

    x [.., in] --- W [in, out] (frozen) ----------------+--> y
              \\-- A [in, r] -- B [r, out] -- s = alpha/r -/

Adapters are a tree of their own beside the parameters, params[ADAPTERS] = {path in the table: {"a",
"b"}}, so that the base stays as it is: it is frozen, has no optimiser state, and without the
adapters it is the reference model.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np

from jaxr1.nn.params import DRAWS, Param, Table, draw, flatten, nest
from jaxr1.parallel import Rules, put, sharding

ADAPTERS = "lora"
"""The part of a parameter tree that holds the adapters."""


@dataclasses.dataclass(frozen=True)
class Lora:
    """Which matrices get adapters.

    Attributes:
      rank: r.
      alpha: the update is scaled by alpha / rank.
      targets: regular expression; a matrix whose path in the parameter table ("decoder/layers/q",
        "merger/fc1", "vision/blocks/proj") it matches from beginning to end gets an adapter.
      layers: first and last layer (counted from 0) of stacked matrices that are adapted, None for
        all. The deepest stack that matches must have them; in a shallower one the range ends with
        the stack.

    Raises:
      ValueError: a rank under 1, no range of layers, or no regular expression.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: str = "decoder/layers/(q|k|v|o|gate|up|down)"
    layers: tuple[int, int] | None = None

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"lora: rank must be at least 1, got {self.rank}")
        if self.layers and not 0 <= self.layers[0] <= self.layers[1]:
            raise ValueError(f"lora: layers {self.layers} are no range")
        try:
            re.compile(self.targets)
        except re.error as e:
            raise ValueError(f"lora: targets {self.targets!r} is no regular expression: {e}") from e


def inputs(p: Param) -> int:
    """How many of a matrix's dimensions (without the layer's) are inputs."""
    rows = math.prod(p.part.own_shape) if p.part else p.hf_shape[0]
    shape = p.layer_shape
    return next(k for k in range(1, len(shape)) if math.prod(shape[k:]) == rows)


def _adapter(path: str, p: Param, rank: int) -> Table:
    """The two entries of one matrix: a [in..., rank], uniform, and b [rank, out...], zero.

    A is drawn as PEFT draws it (`kaiming_uniform_` with a = sqrt(5)): evenly between the two of
    +-1 / sqrt(in), which is a deviation of 1 / sqrt(3 in).
    """
    lead, lead_axes = (p.shape[:1], p.axes[:1]) if p.layers else ((), ())
    shape, axes, k = p.layer_shape, p.axes[len(lead) :], inputs(p)
    a, b = (*shape[:k], rank), (rank, *shape[k:])
    return {
        f"{path}/a": Param(
            shape=(*lead, *a),
            axes=(*lead_axes, *axes[:k], None),
            name=f"{path}.lora_a",
            hf_shape=a,
            init="uniform",
            scale=(3 * math.prod(shape[:k])) ** -0.5,
            layers=p.layers,
        ),
        f"{path}/b": Param(
            shape=(*lead, *b),
            axes=(*lead_axes, None, *axes[k:]),
            name=f"{path}.lora_b",
            hf_shape=b,
            init="zeros",
            layers=p.layers,
        ),
    }


def adapter_table(table: Table, options: Lora) -> Table:
    """Entries "decoder/layers/q/a" and ".../b" for every target.

    Raises:
      ValueError: nothing matches, or a range outside the layers.
    """
    found: Table = {}
    deepest = 0
    for path, p in table.items():
        if not p.transpose or not re.fullmatch(options.targets, path):
            continue
        deepest = max(deepest, p.layers)
        if p.layers and options.layers and options.layers[0] >= p.layers:
            continue  # a shallower stack: a tower beside a decoder
        found |= _adapter(path, p, options.rank)
    if options.layers and 0 < deepest <= options.layers[1]:
        raise ValueError(
            f"lora: layers {options.layers} are not inside "
            f"the {deepest} layers of any stack that matches"
        )
    if not found:
        known = ", ".join(path for path, p in table.items() if p.transpose)
        raise ValueError(f"lora: no matrix matches targets {options.targets!r}; there are {known}")
    return found


def init_adapters(table: Table, options: Lora, seed: int, mesh, rules: Rules) -> dict:
    """Fresh adapters, float32: A uniform within 1 / sqrt(in), as in PEFT, B zero: no change yet."""
    flat = {}
    for path, p in adapter_table(table, options).items():
        host = np.zeros(p.shape, np.float32)
        if p.init in DRAWS:
            host = draw(path, p, seed)
        flat[path] = put(host, sharding(mesh, p.axes, p.shape, rules))
    return nest(flat)


def without_adapters(params: dict) -> dict:
    """The parameter tree of the base."""
    return {part: tree for part, tree in params.items() if part != ADAPTERS}


def _scales(options: Lora, b: jax.Array, layers: int) -> np.ndarray | float:
    """alpha / r, or one number per layer, 0 outside the range (no gradient there)."""
    scale = options.alpha / options.rank
    if not layers or options.layers is None:
        return scale
    first, last = options.layers
    inside = (np.arange(layers) >= first) & (np.arange(layers) <= last)
    return (inside * np.float32(scale)).reshape(-1, *(1,) * (b.ndim - 1))


def _adapters(lora: dict) -> dict[str, dict]:
    """{path: {"a", "b"}}."""
    found: dict[str, dict] = {}
    for path, x in flatten(lora).items():
        base, _, leaf = path.rpartition("/")
        found.setdefault(base, {})[leaf] = x
    return found


def attach(params: dict, table: Table, options: Lora) -> dict:
    """The parameters, adapters beside their matrices: "q", "q_a", "q_b" (`nn.layers.dense`)."""
    base = flatten(without_adapters(params))
    for path, pair in _adapters(params[ADAPTERS]).items():
        scale = _scales(options, pair["b"], table[path].layers)
        base[f"{path}_a"] = pair["a"]
        base[f"{path}_b"] = pair["b"] * jnp.asarray(scale, pair["b"].dtype)
    return nest(base)


def merged(params: dict, table: Table, options: Lora) -> dict:
    """The base with the adapters added: W + s A B, in the base's dtype; without them."""
    base = flatten(without_adapters(params))
    for path, pair in _adapters(params[ADAPTERS]).items():
        layers = table[path].layers
        scale = jnp.asarray(_scales(options, pair["b"], layers), pair["b"].dtype)
        base[path] = _merged(base[path], pair["a"], pair["b"] * scale, bool(layers))
    return nest(base)


@functools.partial(jax.jit, static_argnames="stacked")
def _merged(w: jax.Array, a: jax.Array, b: jax.Array, stacked: bool) -> jax.Array:
    """W + A B of a matrix, or of a stack of them, one after the other: one is wide at a time."""

    def one(both):
        w, a, b = both
        rank = b.shape[0]
        update = jnp.matmul(a.reshape(-1, rank), b.reshape(rank, -1), precision="highest")
        return (w.astype(jnp.float32) + update.reshape(w.shape)).astype(w.dtype)

    return jax.lax.map(one, (w, a, b)) if stacked else one((w, a, b))
