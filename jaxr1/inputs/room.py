"""Room for media: as much as prompt rows can ask for, so that media add no shapes to theirs.

Every embedding of a picture has a token of its prompt, and merge^2 patches. Rows of P tokens have
room for that many patches, and a device for those of its own prompts:

    prompts of device 0   [ v v v v t t . . . . ]     media   [ a a a a a a a a b b b b . . . . . ]
                          [ t v v t . . . . . . ]
                                                      levels  |     |           |                 |
    of device 1           [ t t t t . . . . . . ]             [ . . . . . . . . . . . . . . . . . ]

Only the part up to the next level behind the last patch is computed (`models.spare`): the largest
of all devices', and nothing where all prompts are text. Towers with tiles have rows of tiles
instead of one long row a device. Where pictures have one size that is given, rows have that size,
and there are as many of them as a power of two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from jaxr1.inputs.arrangement import Arrangement, PatchGeometry, block_size, check_rows
from jaxr1.inputs.patches import PatchRows
from jaxr1.inputs.sizes import bucket, pack_first_fit, power_of_two, rows_for
from jaxr1.parallel import slots

LEVELS = (1, 5 / 8, 3 / 8, 3 / 16, 1 / 16)
"""Parts of the room that may be computed; each is one more copy of the tower in a program."""


def arrange_in_room(
    sizes: Sequence[int],
    device: Sequence[int],
    allowed: Sequence[int],
    geometry: PatchGeometry,
    *,
    patches: int,
    devices: int,
    block: int,
    hosts: Sequence[int] = (),
) -> Arrangement:
    """Which image goes into which row.

    Args:
      sizes: patches of each image.
      device: of each image; those of one device are no more than `patches` together.
      allowed: row lengths M, where pictures are alike; else the last one bounds an image.
      patches: room of a device.
      devices: that share the batch.
      block: of paired attention.
      hosts: of each device's share, where there are several: alike pictures, too, lie in rows of
        their own.

    Raises:
      TooLong: an image is over the last row length.
      ValueError: a row length does not hold whole merge blocks, where pictures are alike.
    """
    if geometry.tile:
        each = max(1, patches // geometry.tile)
        members: list[list[int]] = [[] for _ in range(each * devices)]
        filled = [0] * devices
        for i, d in enumerate(device):
            members[d * each + filled[d]].append(i)
            filled[d] += 1
        return Arrangement(members, len(members), geometry.tile, spare="rows")
    bucket(max(sizes, default=1), allowed, "an image's patches")
    if len(allowed) == 1:
        check_rows(allowed, geometry)
        return _alike(sizes, [hosts[d] if hosts else 0 for d in device], allowed[0], devices, hosts)
    step = math.lcm(block, geometry.merge**2)
    own = [[i for i, d in enumerate(device) if d == number] for number in range(devices)]
    return Arrangement(own, devices, -(-patches // step) * step, packed=True, spare="places")


def _alike(
    sizes: Sequence[int], owners: Sequence[int], length: int, devices: int, hosts: Sequence[int]
) -> Arrangement:
    """Rows of one length, as many on each host as on the one with the most."""
    count = len(set(hosts)) or 1
    own = [[i for i, owner in enumerate(owners) if owner == host] for host in range(count)]
    packed = [pack_first_fit([sizes[i] for i in mine], length) for mine in own]
    rows = count * rows_for(max(1, *map(len, packed)), devices // count)
    members: list[list[int]] = [[] for _ in range(rows)]
    for mine, bins, free in zip(
        own, packed, slots(tuple(hosts) or (0,) * devices, rows), strict=True
    ):
        for row, inside in zip(free, bins, strict=False):
            members[row] = [mine[i] for i in inside]
    return Arrangement(members, rows, length)


def list_rooms(
    allowed: Sequence[int], geometry: PatchGeometry, *, patches: int, devices: int
) -> list[tuple[int, int]]:
    """Rows and their length that `arrange_in_room` may choose: one, or where a size is given few.

    Args:
      allowed, geometry, patches, devices: as there.
    """
    if geometry.tile or len(allowed) > 1:
        block = block_size(allowed[-1])
        made = arrange_in_room(
            [], [], allowed, geometry, patches=patches, devices=devices, block=block
        )
        return [(made.rows, made.length)]
    # Of two rows at most one is half empty.
    most = power_of_two(2 * patches // allowed[0] + 1)
    return [(devices << i, allowed[0]) for i in range(most.bit_length())]


def levels_of(rows: PatchRows, devices: int) -> list[int]:
    """Places of a row, or rows of a device, that may be computed; from all to none."""
    if rows.spare == "rows":
        whole, step = rows.segment_rm.shape[0] // devices, 1
    else:
        whole, step = rows.segment_rm.shape[1], math.lcm(rows.block, rows.unit)
    return [*dict.fromkeys(math.ceil(whole * part / step) * step for part in LEVELS), 0]


def level_used(rows: PatchRows, devices: int) -> int:
    """The level that is computed."""
    segment = np.asarray(rows.segment_rm)
    if rows.spare == "rows":
        is_used = (segment > 0).any(1).reshape(devices, -1).any(0)
    else:
        is_used = (segment > 0).any(0)
    used = int(np.flatnonzero(is_used).max(initial=-1)) + 1
    return min(level for level in levels_of(rows, devices) if level >= used)


def rows_waste(rows: PatchRows | None, devices: int = 1) -> dict[str, float]:
    """Padding of patch rows, and attention pairs computed / needed (full attention)."""
    nothing = {"patches": 0.0, "vision_pairs": 1.0}
    if rows is None:
        return nothing
    segment = np.asarray(rows.segment_rm)
    needed = 0
    for row in segment:
        _, sizes = np.unique(row[row > 0], return_counts=True)
        needed += int(np.sum(sizes**2))
    if not needed:
        return nothing
    length = segment.shape[1]
    count = segment.shape[0]
    if rows.spare == "rows":
        count = devices * level_used(rows, devices)
    elif rows.spare == "places":
        length = level_used(rows, devices)
    computed = count * length**2
    if rows.held != "pixels":
        computed = needed  # the tower's attention is computed already
    elif rows.pair_rp2 is not None:
        pairs = np.asarray(rows.pair_rp2)
        listed = (pairs[..., 1] >= 0).sum() if rows.spare else pairs.shape[0] * pairs.shape[1]
        computed = int(listed) * rows.block**2
    padding = 1.0 - float((segment > 0).sum()) / (count * length)
    return {"patches": padding, "vision_pairs": computed / needed}
