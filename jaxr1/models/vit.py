"""The vision transformer and the merger behind it; one function serves all towers through options.

                 Qwen2-VL      Qwen2.5-VL          Qwen3-VL              InternViT
    norm         layer         rms                 layer                 layer (300M), rms (6B)
    MLP          2 layers      gated               2 layers              2 layers
    positions    rotary        rotary              rotary + learned      learned
    attention    per frame     windows, some full  per frame             per tile, with a CLS token
    extras                                         deep features         layer scale, q/k norm (6B)

The merger turns each block of merge_size^2 neighbouring patches into one token of the decoder.
InternVL calls the same step pixel shuffle and projector: with patches in merge-block order, pixel
shuffle is a reshape.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxr1.inputs.patches import PatchGeometry, PatchRows
from jaxr1.models.pixels import pixel_values
from jaxr1.nn.attention import paired_attention, segment_attention, window_attention
from jaxr1.nn.layers import (
    ACTIVATIONS,
    add,
    dense,
    inverse_frequencies,
    layer_norm,
    rms_norm,
    rotate,
)
from jaxr1.nn.params import Param, Part, Table, linear, stack, vector
from jaxr1.parallel import Rules, constrain


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """Sizes and options of a tower and its merger.

    Attributes:
      out_width: width of the decoder.
      merge_width: inner width of the merger.
      norm: "layer" or "rms"; `norm_eps` its epsilon.
      gated: SwiGLU MLP instead of two layers.
      qkv_bias, patch_bias: these layers have biases.
      rotary_theta: base of the 2-D rotary positions, None for none.
      position_side: side of the learned position table, 0 for none.
      tile_side: side, in patches, of the one tile size of a tower with a CLS token, 0 for images of
        any size.
      layer_scale: two learned vectors scale what a block adds.
      qk_norm: RMS norm of queries and keys over all heads.
      window: side, in patches, of attention windows, 0 for none; `full` lists the blocks that see
        the whole frame.
      deep: blocks whose output goes to the first decoder layers (DeepStack, arXiv:2406.04334).
      merger_norm: "layer" or "rms"; `merger_eps` its epsilon.
      merger_norm_last: the merger's norm comes after the blocks are joined (over merge_size^2
        patches).
    """

    depth: int
    width: int
    mlp: int
    heads: int
    patch_size: int
    temporal_patch_size: int
    merge_size: int
    channels: int
    activation: str
    out_width: int
    merge_width: int
    norm: str = "layer"
    norm_eps: float = 1e-6
    gated: bool = False
    qkv_bias: bool = True
    patch_bias: bool = False
    rotary_theta: float | None = 10000.0
    position_side: int = 0
    tile_side: int = 0
    layer_scale: bool = False
    qk_norm: bool = False
    window: int = 0
    full: tuple[int, ...] = ()
    deep: tuple[int, ...] = ()
    merger_norm: str = "layer"
    merger_eps: float = 1e-6
    merger_norm_last: bool = False
    init_scale: float = 0.02

    @property
    def patch_values(self) -> int:
        """Numbers in one patch: channels x frames x height x width."""
        return self.channels * self.temporal_patch_size * self.patch_size**2

    @property
    def geometry(self) -> PatchGeometry:
        """What batches must know."""
        sides = (self.tile_side**2, self.window)
        return PatchGeometry(
            self.merge_size, self.patch_values, *sides, frames=self.temporal_patch_size
        )


# --- parameters ---------------------------------------------------------------------------------
VisionNames = Mapping[str, str]
"""Hugging Face names by role, without ".weight" and ".bias"; "{}" stands for the block. A role
ending in "=" is the full name of a tensor that is neither. Where "qkv" is given, q, k and v are
parts of it.
"""


def _norm(name: str, size: int, kind: str) -> dict[str, Param]:
    group = {"": vector(name + ".weight", (size,), (None,), "ones")}
    if kind == "layer":
        group["_bias"] = vector(name + ".bias", (size,), (None,))
    return group


def _dense(
    name: str, out: int, into: int, axes: tuple, bias_axes: tuple = (None,)
) -> dict[str, Param]:
    return {
        "": linear(name + ".weight", (out,), (into,), axes),
        "_bias": vector(name + ".bias", (out,), bias_axes),
    }


def _named(**groups: dict[str, Param]) -> Table:
    """{"fc1": {"": weight, "_bias": bias}} -> {"fc1": weight, "fc1_bias": bias}."""
    table: Table = {}
    for key, group in groups.items():
        table |= {key + suffix: p for suffix, p in group.items()}
    return table


def _attention_table(cfg: VisionConfig, n: VisionNames) -> Table:
    d, heads, size = cfg.width, cfg.heads, cfg.width // cfg.heads
    table: Table = {}
    for i, key in enumerate("qkv"):
        part = Part((3, heads, size), 0, i, i + 1) if "qkv" in n else None
        name = n["qkv"] if part else n[key]
        table[key] = linear(
            name + ".weight", (heads, size), (d,), ("embed", "heads", None), part=part
        )
        if cfg.qkv_bias:
            table[key + "_bias"] = vector(name + ".bias", (heads, size), ("heads", None), part=part)
    table["proj"] = linear(n["proj"] + ".weight", (d,), (heads, size), ("heads", None, "embed"))
    table["proj_bias"] = vector(n["proj"] + ".bias", (d,), (None,))
    if cfg.qk_norm:
        for key in ("q_norm", "k_norm"):
            table[key] = vector(n[key] + ".weight", (heads, size), ("heads", None), "ones")
    return table


def _merger_table(cfg: VisionConfig, n: VisionNames, prefix: str, *, norm_last: bool) -> Table:
    joined = cfg.width * cfg.merge_size**2
    return _named(
        norm=_norm(n[prefix + "norm"], joined if norm_last else cfg.width, cfg.merger_norm),
        fc1=_dense(n[prefix + "fc1"], cfg.merge_width, joined, ("embed", "mlp"), ("mlp",)),
        fc2=_dense(n[prefix + "fc2"], cfg.out_width, cfg.merge_width, ("mlp", "embed")),
    )


def vision_table(cfg: VisionConfig, n: VisionNames) -> tuple[Table, Table]:
    """The tensors of the tower and of the merger (two parts, frozen apart)."""
    d = cfg.width
    block = _attention_table(cfg, n) | _named(
        norm1=_norm(n["norm1"], d, cfg.norm), norm2=_norm(n["norm2"], d, cfg.norm)
    )
    if cfg.gated:
        block |= _named(
            gate=_dense(n["gate"], cfg.mlp, d, ("embed", "mlp"), ("mlp",)),
            up=_dense(n["up"], cfg.mlp, d, ("embed", "mlp"), ("mlp",)),
            down=_dense(n["down"], d, cfg.mlp, ("mlp", "embed")),
        )
    else:
        block |= _named(
            fc1=_dense(n["fc1"], cfg.mlp, d, ("embed", "mlp"), ("mlp",)),
            fc2=_dense(n["fc2"], d, cfg.mlp, ("mlp", "embed")),
        )
    if cfg.layer_scale:
        block |= {key: vector(n[key + "="], (d,), (None,), "ones") for key in ("scale1", "scale2")}

    tower = {f"blocks/{key}": p for key, p in stack(block, cfg.depth).items()}
    # Tiles are pictures: their convolution has no dimension of time.
    time = () if cfg.tile_side else (cfg.temporal_patch_size,)
    pixels = (cfg.channels, *time, cfg.patch_size, cfg.patch_size)
    tower["patch"] = linear(
        n["patch"] + ".weight", (d,), (math.prod(pixels),), (None, "embed"), hf_shape=(d, *pixels)
    )
    if cfg.patch_bias:
        tower["patch_bias"] = vector(n["patch"] + ".bias", (d,), (None,))
    if cfg.tile_side:
        tower["cls"] = vector(n["cls="], (d,), (None,), "normal", hf_shape=(1, 1, d))
    if cfg.position_side:
        shape = (cfg.position_side**2 + bool(cfg.tile_side), d)
        hf_shape = (1, *shape) if cfg.tile_side else shape
        tower["position"] = Param(
            shape, (None, None), n["position="], hf_shape, scale=cfg.init_scale
        )

    merger = _merger_table(cfg, n, "merger_", norm_last=cfg.merger_norm_last)
    if cfg.deep:
        deep = stack(_merger_table(cfg, n, "deep_", norm_last=True), len(cfg.deep))
        merger |= {f"deep/{key}": p for key, p in deep.items()}
    return _scaled(tower, cfg.init_scale), _scaled(merger, cfg.init_scale)


def _scaled(table: Table, scale: float) -> Table:
    """The same entries, random ones with this standard deviation."""
    normal = {key: p for key, p in table.items() if p.init == "normal"}
    return table | {key: dataclasses.replace(p, scale=scale) for key, p in normal.items()}


# --- computation --------------------------------------------------------------------------------
def _normed(w: dict, key: str, x: jax.Array, kind: str, eps: float) -> jax.Array:
    if kind == "layer":
        return layer_norm(x, w[key], w[key + "_bias"], eps)
    return rms_norm(x, w[key], eps)


def _block(
    cfg: VisionConfig, w: dict, x: jax.Array, angle: jax.Array | None, attend: Callable
) -> jax.Array:
    """One block on x [R, M, D]; `attend(q, k, v)` decides who sees whom."""
    h = _normed(w, "norm1", x, cfg.norm, cfg.norm_eps)
    q, k, v = (dense(h, w, key) for key in "qkv")
    if cfg.qk_norm:
        q, k = (_norm_heads(x, w[f"{key}_norm"], cfg.norm_eps) for x, key in ((q, "q"), (k, "k")))
    if angle is not None:
        q, k = rotate(q, angle), rotate(k, angle)
    scaled = lambda y, key: (y * w[key]).astype(y.dtype) if cfg.layer_scale else y
    x = x + scaled(dense(attend(q, k, v), w, "proj", 2), "scale1")
    h, act = _normed(w, "norm2", x, cfg.norm, cfg.norm_eps), ACTIVATIONS[cfg.activation]
    if cfg.gated:
        out = dense(act(dense(h, w, "gate")) * dense(h, w, "up"), w, "down")
    else:
        out = dense(act(dense(h, w, "fc1")), w, "fc2")
    return x + scaled(out, "scale2")


def _norm_heads(x_rmnh: jax.Array, scale_nh: jax.Array, eps: float) -> jax.Array:
    """RMS norm over all heads together."""
    flat = x_rmnh.reshape(*x_rmnh.shape[:2], -1)
    return rms_norm(flat, scale_nh.reshape(-1), eps).reshape(x_rmnh.shape)


def learned_positions(
    table_vd: jax.Array, side: int, place_rm2: jax.Array, size_rm2: jax.Array
) -> jax.Array:
    """A position table, interpolated bilinearly to each image's grid, corners on corners.

    Returns:
      [R, M, D].
    """
    last = jnp.maximum(size_rm2 - 1, 1).astype(jnp.float32)
    at = place_rm2.astype(jnp.float32) * (side - 1) / last
    low = jnp.floor(at)
    part = at - low
    low = low.astype(jnp.int32)
    high = jnp.minimum(low + 1, side - 1)
    out = jnp.zeros((*place_rm2.shape[:2], table_vd.shape[1]), jnp.float32)
    for row, row_weight in ((low[..., 0], 1 - part[..., 0]), (high[..., 0], part[..., 0])):
        for column, weight in ((low[..., 1], 1 - part[..., 1]), (high[..., 1], part[..., 1])):
            out += table_vd[row * side + column] * (row_weight * weight)[..., None]
    return out


@functools.lru_cache
def bicubic(side: int, to: int) -> np.ndarray:
    """float32[to^2, side^2]: bicubic resampling of a square table.

    The kernel has a = -0.75; centres are half-pixel; there is no antialiasing.
    """
    at = (np.arange(to) + 0.5) * side / to - 0.5
    low, a = np.floor(at).astype(int), -0.75
    axis = np.zeros((to, side))
    for tap in range(-1, 3):
        x = np.abs(at - low - tap)
        near = ((a + 2) * x - (a + 3)) * x * x + 1
        far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
        place = np.clip(low + tap, 0, side - 1)
        np.add.at(axis, (np.arange(to), place), np.where(x <= 1, near, far))
    return np.kron(axis, axis).astype(np.float32)


def _tile_positions(cfg: VisionConfig, params: dict, place_rm2: jax.Array) -> jax.Array:
    """Positions [R, M, D] of the patches of tiles; a table of another side is resampled."""
    table = params["position"][1:]
    if cfg.position_side != cfg.tile_side:
        table = bicubic(cfg.position_side, cfg.tile_side) @ table
    return table[place_rm2[..., 0] * cfg.tile_side + place_rm2[..., 1]]


def tower(
    cfg: VisionConfig,
    params: dict,
    rows: PatchRows,
    rules: Rules,
    *,
    remat: bool = False,
    every_block: bool = False,
):
    """The vision tower on patch rows.

    Args:
      rows: patches in merge-block order.
      remat: rematerialise each block in the backward pass.
      every_block: return the output of every block, for comparisons.

    Returns:
      [R, M, (1 + deep) * D_vision]: the last block's output, then those of the blocks in
      `cfg.deep`; with `every_block` [depth, R, M, D_vision].
    """
    dtype = params["patch"].dtype
    x = dense(pixel_values(rows, cfg.patch_values).astype(dtype), params, "patch")
    angle = None
    if cfg.rotary_theta is not None:
        inverse = inverse_frequencies(cfg.width // cfg.heads // 2, cfg.rotary_theta)
        # [R, M, 2, H / 4]: rows, then columns
        turned = rows.place_rm2.astype(jnp.float32)[..., None] * inverse
        angle = turned.reshape(*turned.shape[:2], -1)
    segment = rows.segment_rm
    if cfg.tile_side:
        x = add(x, _tile_positions(cfg, params, rows.place_rm2))
        first = jnp.broadcast_to(params["cls"] + params["position"][0], (x.shape[0], 1, x.shape[2]))
        x = jnp.concatenate([first.astype(dtype), x], 1)
        segment = jnp.pad(segment, ((0, 0), (1, 0)), mode="edge")
    elif cfg.position_side:
        table, side = params["position"], cfg.position_side
        x = add(x, learned_positions(table, side, rows.place_rm2, rows.size_rm2))

    def whole(q, k, v):
        if rows.pair_rp2 is None:
            return segment_attention(q, k, v, segment)
        return paired_attention(q, k, v, segment, rows.pair_rp2, rows.block)

    def in_windows(q, k, v):
        w = rows.windows
        return window_attention(q, k, v, w.index_rwk, w.segment_rwk, w.slot_rm)

    def block(x, layer):
        w, sees_all = layer
        attend: Callable = whole
        if cfg.window:
            # Rematerialised: both branches then keep q, k and v only, not each its own scores.
            attend = lambda *qkv: jax.lax.cond(
                sees_all, jax.checkpoint(whole), jax.checkpoint(in_windows), *qkv
            )
        return constrain(_block(cfg, w, x, angle, attend), rules, "batch", None, None), None

    # One scan; a scan up to each block whose output is wanted would copy the blocks.
    numbers = np.arange(cfg.depth)
    step = jax.checkpoint(block) if remat else block

    def numbered(carried, layer):
        x, found = carried
        number, *layer = layer
        x, _ = step(x, layer)
        found = [jnp.where(number == i, x, kept) for i, kept in found.items()]
        return (x, dict(zip(cfg.deep, found, strict=True))), x if every_block else None

    layers = (numbers, params["blocks"], np.isin(numbers, cfg.full))
    (x, found), every = jax.lax.scan(numbered, (x, dict.fromkeys(cfg.deep, x)), layers)
    if every_block:
        return every[:, :, 1:] if cfg.tile_side else every
    outputs = [x, *(found[i] for i in cfg.deep)]
    return jnp.concatenate([out[:, 1:] if cfg.tile_side else out for out in outputs], -1)


def _merge(cfg: VisionConfig, w: dict, x_rmd: jax.Array, *, norm_last: bool) -> jax.Array:
    joined = (x_rmd.shape[0], x_rmd.shape[1] // cfg.merge_size**2, -1)
    if norm_last:
        h = _normed(w, "norm", x_rmd.reshape(joined), cfg.merger_norm, cfg.merger_eps)
    else:
        h = _normed(w, "norm", x_rmd, cfg.merger_norm, cfg.merger_eps).reshape(joined)
    return dense(jax.nn.gelu(dense(h, w, "fc1"), approximate=False), w, "fc2")


def merge(cfg: VisionConfig, params: dict, feature_rmd: jax.Array) -> jax.Array:
    """The merger (and those of the deep features) on what `tower` returns.

    Returns:
      [R, M / merge_size^2, (1 + deep) * D].
    """
    own = {k: v for k, v in params.items() if k != "deep"}
    last, *deep = jnp.split(feature_rmd, 1 + len(cfg.deep), -1)
    out = [_merge(cfg, own, last, norm_last=cfg.merger_norm_last)]
    for i, x in enumerate(deep):
        w = jax.tree.map(operator.itemgetter(i), params["deep"])
        out.append(_merge(cfg, w, x, norm_last=True))
    return jnp.concatenate(out, -1)
