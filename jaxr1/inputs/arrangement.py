"""Which image goes into which patch row."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from jaxr1.inputs.sizes import power_of_two

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
