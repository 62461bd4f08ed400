"""Which image goes into which patch row."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

from jaxr1.inputs.sizes import bucket, finely, pack_first_fit, power_of_two, rows_for

Spare = Literal["", "rows", "places"]
"""Of what there may be more than media need (`inputs.room`): rows of a device, places of a row."""


@dataclasses.dataclass(frozen=True)
class PatchGeometry:
    """What batches must know of a vision tower.

    Attributes:
      merge: side, in patches, of the block that becomes one token of the decoder.
      values: numbers in one patch, all its frames counted.
      frames: in a patch.
      tile: patches of a tile where the tower has tiles of one size, else 0.
      window: side, in patches, of an attention window, 0 for none.
    """

    merge: int
    values: int
    tile: int = 0
    window: int = 0
    frames: int = 1


# Rows are kept while padding and attention stay under these; past them images are packed.
MOST_PADDING = 0.15
MOST_PAIRS = 2.0


def block_size(largest: int) -> int:
    """Patches of an attention block, 16 to 128: small images want small blocks."""
    return min(128, max(16, power_of_two(largest) // 16))


@dataclasses.dataclass(frozen=True)
class Arrangement:
    """Which image goes into which row.

    Attributes:
      members: image numbers of each row that holds something.
      rows: R.
      length: M.
      packed: whether rows are long ones, with attention over pairs of blocks.
      spare: of what there may be more than is needed.
    """

    members: list[list[int]]
    rows: int
    length: int
    packed: bool = False
    spare: Spare = ""


def check_rows(allowed: Sequence[int], geometry: PatchGeometry) -> None:
    """Raises ValueError for a row length that does not hold whole merge blocks."""
    unit = geometry.merge**2
    if bad := [m for m in allowed if m % unit]:
        raise ValueError(
            f"patch buckets must be multiples of {unit} (one merge block), got {bad[0]}"
        )


def arrange(
    sizes: Sequence[int],
    allowed: Sequence[int],
    geometry: PatchGeometry,
    multiple: int,
    block: int,
) -> Arrangement:
    """Which image goes into which row.

    Args:
      sizes: patches of each image.
      allowed: row lengths M.
      multiple: R is a multiple of it.
      block: of paired attention.

    Raises:
      TooLong: an image is over the largest row.
      ValueError: a row length does not hold whole merge blocks.
    """
    check_rows(allowed, geometry)
    unit = geometry.merge**2
    if geometry.tile:
        rows = finely(max(1, len(sizes)), multiple)
        return Arrangement([[i] for i in range(len(sizes))], rows, geometry.tile)

    # Rows of the size of the largest image.
    length = bucket(max(sizes, default=1), sorted(allowed), "an image's patches")
    members = pack_first_fit(sizes, length)
    rows = rows_for(max(1, len(members)), multiple)
    in_rows = Arrangement(members, rows, length)

    # Judged by the rows that hold something: the prompts' own rows are rounded up in the same way,
    # so that images of like size add no shapes to those that the prompts have.
    used = len(members) * length
    padding = 1 - sum(sizes) / max(1, used)
    pairs = used * length / max(1, sum(n * n for n in sizes))
    if len(sizes) <= 1 or (padding <= MOST_PADDING and pairs <= MOST_PAIRS):
        return in_rows

    # One long row a device.
    step = math.lcm(block, unit)
    long = finely(max(*sizes, -(-sum(sizes) // multiple)), step)
    while len(members := pack_first_fit(sizes, long)) > multiple:
        long = finely(long + 1, step)
    if multiple * long >= rows * length and pairs <= MOST_PAIRS:
        return in_rows
    return Arrangement(members, multiple, long, packed=True)
