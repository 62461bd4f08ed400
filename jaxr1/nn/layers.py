"""Norms, activations, rotary positions: pure functions on arrays."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """Root-mean-square norm over the last axis (arXiv:1910.07467), computed in float32, returned in x's dtype."""
    wide = x.astype(jnp.float32)
    normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + eps)
    return scale * normed.astype(x.dtype)


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


def inverse_frequencies(size: int, theta: float) -> np.ndarray:
    """float32[size / 2]: theta^(-2i / size) (arXiv:2104.09864)."""
    return (1.0 / (theta ** (np.arange(0, size, 2, dtype=np.float32) / size))).astype(np.float32)


def mrope_angles(position_3bt: jax.Array, inverse: np.ndarray, sections: tuple[int, ...]) -> jax.Array:
    """Angles of multimodal rotary positions (Qwen2-VL, arXiv:2409.12191 §2.1).

    Frequency i turns with the temporal, the height or the width position, by the section that holds i:

        sections (2, 3, 3):   i = 0 1 | 2 3 4 | 5 6 7
                              t t | h h h | w w w

    Text tokens carry three equal positions, for which this is ordinary RoPE. An empty `sections` means ordinary RoPE.

    Args:
      position_3bt: int32[3, ...].
      inverse: float32[H / 2].
      sections: three sizes that add up to H / 2, or ().

    Returns:
      float32[..., H / 2].
    """
    if not sections:
        return position_3bt[0][..., None].astype(jnp.float32) * inverse
    axis = np.repeat(np.arange(len(sections)) % 3, sections)
    turned = jnp.moveaxis(position_3bt.astype(jnp.float32), 0, -1)[..., axis]
    return turned * inverse


def rotate(x: jax.Array, angle: jax.Array) -> jax.Array:
    """Rotates the pairs (x_i, x_{i + H/2}) by `angle`; computed in float32.

    Args:
      x: [..., n, H].
      angle: float32[..., H / 2], broadcast over the head axis n.
    """
    cos, sin = jnp.cos(angle)[..., None, :], jnp.sin(angle)[..., None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, -1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype(x.dtype)
