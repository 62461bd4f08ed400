"""Mesh, sharding rules, agreement between hosts."""

from jaxr1.parallel.hosts import agree
from jaxr1.parallel.mesh import (
    AXES,
    DEFAULT_RULES,
    MeshOptions,
    Rules,
    axis_shards,
    batch_multiple,
    constrain,
    make_mesh,
    mesh_of,
    partition,
    sharding,
    single_device_mesh,
)
from jaxr1.parallel.place import map_rows, on_device, place_rows

__all__ = [
    "AXES",
    "DEFAULT_RULES",
    "MeshOptions",
    "Rules",
    "agree",
    "axis_shards",
    "batch_multiple",
    "constrain",
    "make_mesh",
    "map_rows",
    "mesh_of",
    "on_device",
    "partition",
    "place_rows",
    "sharding",
    "single_device_mesh",
]
