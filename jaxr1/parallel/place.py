"""A batch on the mesh."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxr1.parallel.mesh import Rules, sharding


def place_rows(tree: Any, mesh: Mesh, rules: Rules) -> Any:
    """Host arrays [rows, ...] split over the devices that share a batch."""

    def place(x: np.ndarray) -> jax.Array:
        axes = ("batch", *(None,) * (x.ndim - 1))
        return jax.device_put(x, sharding(mesh, axes, x.shape, rules))

    return jax.tree.map(place, tree)
