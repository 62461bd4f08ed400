"""Where pixels enter a tower: 8 bits until here, numbers from here on."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxr1.inputs.levels import CHANNELS
from jaxr1.inputs.patches import PatchRows


def pixel_values(rows: PatchRows, values: int) -> jax.Array:
    """The numbers of all patches, as transformers' processors give them.

    Pixels cross to the devices as the 8 bits that they are, a quarter of their floats; scaling and
    shifting them costs less there than moving floats. A picture that fills all frames of its
    patches is repeated here.

    Args:
      rows: patches, their normalisation with them. Numbers that are no 8-bit pixels stay as they
        are.
      values: numbers in one patch, all its frames counted.

    Returns:
      float32[R, M, values].
    """
    if rows.level_rm is None:
        return rows.patch_rmc
    count, length, stored = rows.patch_rmc.shape
    level = rows.patch_rmc.reshape(count, length, CHANNELS, stored // CHANNELS)
    # [R, M, 2, 3]: scale and shift of each patch, by channel; a choice of two is no gather
    is_first = rows.level_rm[..., None, None] == 0
    affine = jnp.where(is_first, rows.affine_rk23[:, :1], rows.affine_rk23[:, 1:])
    value = level.astype(jnp.float32) * affine[:, :, 0, :, None] + affine[:, :, 1, :, None]
    return jnp.tile(value, (1, 1, 1, values // stored)).reshape(count, length, values)
