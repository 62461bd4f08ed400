"""Perceptual hashes: pictures that look alike have hashes that differ in few of their 128 bits.

    picture -> grey 32 x 32 -> DCT -> its 8 x 8 lowest frequencies: each over their median?  64 bits
            -> grey 8 x 9   -> each pixel: darker than the one to its right?                 64 bits

A copy in another size, format, quality or brightness differs in 0 to 12 bits, another picture in
about 60. Pictures of one simple kind (digits on black) come as near as 14.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

SIDE, LOW = 32, 8
NEAR = 12
"""Bits that hashes of one picture may differ in."""

PLAIN = 4.0
"""Standard deviation of grey values, of 255, under which a picture has nothing to be known by."""

Hash = tuple[int, int]
"""The two halves of a hash."""

_ANGLE = np.pi / SIDE * (np.arange(SIDE) + 0.5)
_DCT = np.cos(np.arange(LOW)[:, None] * _ANGLE[None, :])


def perceptual_hash(image: Image.Image) -> Hash | None:
    """The hash of a picture; None for one that is nearly of one colour."""
    grey = image.convert("L")
    pixels = np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.LANCZOS), np.float64)
    if pixels.std() < PLAIN:
        return None
    low = (_DCT @ pixels @ _DCT.T).ravel()
    waves = low > np.median(low[1:])
    waves[0] = False  # the mean: how bright it is says nothing
    small = np.asarray(grey.resize((LOW + 1, LOW), Image.Resampling.LANCZOS), np.float64)
    return _number(waves), _number(small[:, 1:] > small[:, :-1])


def _number(bits: np.ndarray) -> int:
    return int.from_bytes(np.packbits(bits.ravel()).tobytes(), "big")


class Hashes:
    """The hashes of a set, to find those near one."""

    def __init__(self, hashes: Mapping[int, Sequence[Hash]]):
        """Takes {row: hashes of its pictures}."""
        rows, halves = list[int](), list[Hash]()
        for row, some in hashes.items():
            rows += [row] * len(some)
            halves += some
        self._rows = np.array(rows, np.int64)
        self._halves = np.array(halves, np.uint64).reshape(-1, 2)

    def near(self, one: Hash) -> list[int]:
        """Rows with a hash that differs in at most `NEAR` bits, ascending; each once."""
        differing = np.bitwise_count(self._halves ^ np.array(one, np.uint64)).sum(1, dtype=np.int64)
        return sorted({*self._rows[differing <= NEAR].tolist()})
