"""Norms, activations, rotary positions: pure functions on arrays."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


def dense(x: jax.Array, w: dict, key: str, inputs: int = 1) -> jax.Array:
    """x [..., *in] @ w[key] [*in, *out], plus adapter (`nn.lora`) and bias where there are any."""
    y = jnp.tensordot(x, w[key], inputs)
    if f"{key}_a" in w:
        y += jnp.tensordot(jnp.tensordot(x, w[f"{key}_a"], inputs), w[f"{key}_b"], 1)
    return add(y, w[f"{key}_bias"]) if f"{key}_bias" in w else y


def add(x: jax.Array, vector: jax.Array) -> jax.Array:
    """x + vector in float32, returned in x's dtype.

    Vectors stay in float32 where the rest is bfloat16: the gradient of one is a sum over all
    tokens, of which bfloat16 keeps only the first few hundred.
    """
    return (x + vector).astype(x.dtype)


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """Root-mean-square norm (arXiv:1910.07467), computed in float32, returned in x's dtype."""
    wide = x.astype(jnp.float32)
    normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + eps)
    return (scale * normed).astype(x.dtype)


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float) -> jax.Array:
    """Layer norm over the last axis, computed in float32, returned in x's dtype."""
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, -1, keepdims=True)
    normed = centred * jax.lax.rsqrt(jnp.mean(centred * centred, -1, keepdims=True) + eps)
    return (normed * scale + bias).astype(x.dtype)


def quick_gelu(x: jax.Array) -> jax.Array:
    """x * sigmoid(1.702 x), the CLIP approximation of GELU."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS = {
    "silu": jax.nn.silu,
    "quick_gelu": quick_gelu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched for contexts longer than the pre-trained one.

    Attributes:
      kind: "linear" (all by `factor`, arXiv:2306.15595) or "llama3" (low frequencies by `factor`,
        high ones not, a ramp between; Llama 3.1).
      factor: of the stretch.
      low, high: wavelengths over original / low are stretched, under original / high kept.
      original: the pre-trained context, in tokens.
    """

    kind: str
    factor: float
    low: float = 1.0
    high: float = 4.0
    original: int = 8192


def inverse_frequencies(size: int, theta: float, scaling: RopeScaling | None = None) -> np.ndarray:
    """float32[size / 2]: theta^(-2i / size) (arXiv:2104.09864), stretched by `scaling`."""
    inverse = (1.0 / (theta ** (np.arange(0, size, 2, dtype=np.float32) / size))).astype(np.float32)
    if scaling is None:
        return inverse
    if scaling.kind == "linear":
        return inverse / np.float32(scaling.factor)
    ramp = (scaling.original * inverse / (2 * np.pi) - scaling.low) / (scaling.high - scaling.low)
    keep = np.clip(ramp, 0.0, 1.0)
    return (keep * inverse + (1 - keep) * inverse / scaling.factor).astype(np.float32)


def mrope_angles(
    position_bt3: jax.Array,
    inverse: np.ndarray,
    sections: tuple[int, ...],
    *,
    interleaved: bool = False,
) -> jax.Array:
    """Angles of multimodal rotary positions (Qwen2-VL, arXiv:2409.12191 §2.1).

    Frequency i turns with the temporal, the height or the width position, by the section that holds
    i:

        sections (2, 3, 3):   i = 0 1 | 2 3 4 | 5 6 7
                              t t | h h h | w w w
        interleaved, (4, 2, 2):   t h w t h w t t

    Qwen3-VL interleaves, so that each axis has high and low frequencies.

    Text tokens carry three equal positions, for which this is ordinary RoPE. An empty `sections`
    means ordinary RoPE.

    Args:
      position_bt3: int32[..., 3]: time, row, column.
      inverse: float32[H / 2].
      sections: three sizes that add up to H / 2, or ().

    Returns:
      float32[..., H / 2].
    """
    if not sections:
        return position_bt3[..., :1].astype(jnp.float32) * inverse
    if interleaved:
        axis = np.zeros(len(inverse), np.int64)
        axis[1 : 3 * sections[1] : 3], axis[2 : 3 * sections[2] : 3] = 1, 2
    else:
        axis = np.repeat(np.arange(len(sections)) % 3, sections)
    return position_bt3.astype(jnp.float32)[..., axis] * inverse


def rotate(x: jax.Array, angle: jax.Array) -> jax.Array:
    """Rotates the pairs (x_i, x_{i + H/2}) by `angle`; computed in float32.

    Args:
      x: [..., n, H].
      angle: float32[..., H / 2], broadcast over the head axis n.
    """
    cos, sin = jnp.cos(angle)[..., None, :], jnp.sin(angle)[..., None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, -1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype(
        x.dtype
    )
