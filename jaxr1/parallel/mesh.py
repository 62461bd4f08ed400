"""The device mesh, and the one table that says which logical axis lies on which mesh axis.

Every tensor names its dimensions by logical axes ("batch", "embed", "heads", ...). A `Rules` table
maps them to the mesh axes ('data', 'fsdp', 'tensor'); training, scoring and sampling all derive
their shardings from it. One device is the mesh (1, 1, 1), so there is no second code path.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

log = logging.getLogger(__name__)

AXES = ("data", "fsdp", "tensor")
Rules = tuple[tuple[str, tuple[str, ...]], ...]

# Parameters are split over `fsdp` along the model width and over `tensor` along heads, MLP and
# vocabulary; rows of a batch (prompts, patch rows) over data and fsdp together, which is what makes
# `fsdp` data parallelism with split state.
DEFAULT_RULES: Rules = (
    ("batch", ("data", "fsdp")),
    ("embed", ("fsdp",)),
    ("heads", ("tensor",)),
    ("kv_heads", ("tensor",)),
    ("mlp", ("tensor",)),
    ("vocab", ("tensor",)),
)


@dataclasses.dataclass(frozen=True)
class MeshOptions:
    """Sizes of the mesh axes; -1 (at most once) takes what the devices leave.

    Attributes:
      data: replicas of the parameters.
      fsdp: shards of parameters, gradients and optimiser state; batches are split over data x fsdp.
      tensor: shards of heads, MLP and vocabulary inside one replica.
    """

    data: int = 1
    fsdp: int = -1
    tensor: int = 1

    def build(self, devices: Sequence[jax.Device] | None = None) -> Mesh:
        """The mesh over `devices` (default: all of them).

        Raises:
          ValueError: a size is 0 or negative, or the sizes do not multiply to the number of
            devices.
        """
        devices = list(devices if devices is not None else jax.devices())
        sizes = [self.data, self.fsdp, self.tensor]
        if any(s < 1 and s != -1 for s in sizes):
            raise ValueError(
                f"mesh {dict(zip(AXES, sizes, strict=True))}: "
                "sizes are positive, or -1 for the rest"
            )
        if sizes.count(-1) > 1:
            raise ValueError(f"mesh {tuple(sizes)}: at most one axis may be -1")
        fixed = int(np.prod([s for s in sizes if s != -1]))
        if -1 in sizes and len(devices) % fixed == 0:
            sizes[sizes.index(-1)] = len(devices) // fixed
        if int(np.prod(sizes)) != len(devices):
            raise ValueError(
                f"mesh {dict(zip(AXES, sizes, strict=True))} does not fit {len(devices)} devices"
            )
        mesh = make_mesh(sizes, devices)
        batch_hosts(mesh)
        return mesh


def make_mesh(sizes: Sequence[int], devices: Sequence[jax.Device]) -> Mesh:
    """A mesh with the axes `AXES`, type Auto: explicit axes refuse the sampler's gathers."""
    return jax.make_mesh(
        tuple(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices
    )


def single_device_mesh(device: jax.Device | None = None) -> Mesh:
    return make_mesh((1, 1, 1), [device or jax.local_devices()[0]])


def batch_multiple(mesh: Mesh, rules: Rules = DEFAULT_RULES) -> int:
    """Rows of a batch must be a multiple of this; missing ones are added with weight 0."""
    return int(np.prod([mesh.shape[a] for a in dict(rules)["batch"]]))


def batch_hosts(mesh: Mesh, rules: Rules = DEFAULT_RULES) -> tuple[int, ...]:
    """The host of each share of a batch: rows are split over the shares, in their order.

    () where all devices are of one host.

    Raises:
      ValueError: devices of several hosts have one share, so that none could read its rows alone;
        or hosts have unequal numbers of shares.
    """
    # Devices as [shares, all others], the axes of a batch first.
    batch = [AXES.index(axis) for axis in dict(rules)["batch"]]
    others = [i for i in range(len(AXES)) if i not in batch]
    devices = mesh.devices.transpose(*batch, *others).reshape(batch_multiple(mesh, rules), -1)
    found = []
    for share in devices:
        hosts = sorted({device.process_index for device in share})
        if len(hosts) > 1:
            raise ValueError(
                f"mesh: rows of a batch would lie on hosts {hosts} at once; an axis that does not "
                "split a batch (tensor) must lie inside a host"
            )
        found += hosts
    if len(set(np.bincount(found, minlength=1)[list(set(found))].tolist())) > 1:
        raise ValueError(f"mesh: hosts have unequal shares of a batch: {found}")
    return tuple(found) if len(set(found)) > 1 else ()


def axis_shards(axis: str, rules: Rules = DEFAULT_RULES) -> int:
    """Devices that share a logical axis under the mesh that is set (inside jit); 1 without one."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else int(np.prod([mesh.shape[a] for a in dict(rules)[axis]]))


_replicated: set[tuple[str, int]] = set()  # what was reported already


def partition(
    axes: Sequence[str | None], shape: Sequence[int], mesh_shape: dict[str, int], rules: Rules
) -> PartitionSpec:
    """The PartitionSpec of a tensor with these logical axes.

    What a mesh axis does not divide is replicated, and logged once.
    """
    table = dict(rules)
    split = {name for name, size in mesh_shape.items() if size > 1}
    spec: list[str | tuple[str, ...] | None] = []
    for axis, size in zip(axes, shape, strict=True):
        # An axis of the mesh splits a tensor once.
        names = tuple(name for name in table.get(axis or "", ()) if name in split)
        ways = math.prod(mesh_shape[name] for name in names)
        if size % ways:
            _log_replicated(axis or "", size, ways, names)
            names = ()
        split -= set(names)
        spec.append(names[0] if len(names) == 1 else names or None)
    return PartitionSpec(*spec)


def _log_replicated(axis: str, size: int, ways: int, names: tuple[str, ...]) -> None:
    if (axis, size) not in _replicated:
        _replicated.add((axis, size))
        log.warning(
            "axis %r of size %d is not divisible by %d (%s): replicated",
            *(axis, size, ways, ", ".join(names)),
        )


def sharding(
    mesh: Mesh, axes: Sequence[str | None], shape: Sequence[int], rules: Rules
) -> NamedSharding:
    return NamedSharding(mesh, partition(axes, shape, dict(mesh.shape), rules))


def constrain(x: jax.Array, rules: Rules, *axes: str | None) -> jax.Array:
    """`x` with its sharding fixed inside jit; the identity without a mesh or on one device."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, partition(axes, x.shape, dict(mesh.shape), rules))


def mesh_of(params) -> Mesh:
    """The mesh that a parameter tree lives on."""
    found = jax.tree.leaves(params)[0].sharding
    if isinstance(found, NamedSharding) and isinstance(found.mesh, Mesh):
        return found.mesh
    return single_device_mesh(next(iter(found.device_set)))
