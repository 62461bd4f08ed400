"""Image and video patches in rows of static shape, and which of them attend to which.

Three arrangements, chosen by the host from what a batch holds:

    rows     every image alone (or with a few like it) in a row of the size of the largest; plain attention in rows
    packed   all images one after the other in one long row; attention over the listed pairs of blocks
    tiles    towers with tiles of one size: a row is a tile

Rows are simplest and fastest where images are of like size; a mix of sizes would be mostly padding,
and is packed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from flax import struct

from jaxr1.inputs.sizes import TooLong, finely, pack_first_fit, power_of_two, rows_for

Held = Literal["pixels", "tower", "merger"]
"""What stands in the place of patches: pixels, or what was computed of them."""


@dataclasses.dataclass(frozen=True)
class PatchGeometry:
    """What batches must know of a vision tower.

    Attributes:
      merge: side, in patches, of the block that becomes one token of the decoder.
      values: numbers in one patch.
      tile: patches of a tile where the tower has tiles of one size, else 0.
      window: side, in patches, of an attention window, 0 for none.
    """

    merge: int
    values: int
    tile: int = 0
    window: int = 0


@struct.dataclass
class Windows:
    """Attention windows of patch rows, packed into W rows of K places; see
    `nn.attention.window_attention`.
    """

    index_rwk: Any  # int32[R, W, K]
    segment_rwk: Any  # int32[R, W, K]; 0 = empty place
    slot_rm: Any  # int32[R, M]


@struct.dataclass
class PatchRows:
    """R patch rows of M patches.

        patch row    [ a a a a a a a a b b b b . . . . ]      two images; merge^2 patches make one media embedding
        segment      [ 1 1 1 1 1 1 1 1 2 2 2 2 0 0 0 0 ]      frames of a video are segments of their own

    Row r, embedding j is the batch's embedding number r * M / merge^2 + j. What is frozen may be
    computed once: then `patch_rmc` holds the output of the last frozen computation instead of
    pixels, and `held` says which.
    """

    patch_rmc: Any  # float32[R, M, C]; [R, M / merge^2, C] after the merger
    place_rm2: Any  # int32[R, M, 2], row and column of each patch in its image
    size_rm2: Any  # int32[R, M, 2], rows and columns of that image
    segment_rm: Any  # int32[R, M]; 0 = padding
    pair_rp2: Any = (
        None  # int32[R, P, 2], pairs of blocks that attend; None = plain attention in rows
    )
    windows: Windows | None = None
    held: Held = struct.field(pytree_node=False, default="pixels")
    block: int = struct.field(pytree_node=False, default=0)


def patch_places(grid: tuple[int, int, int], merge: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of each patch in merge-block order, and its frame.

    The order of a 4 x 4 grid with merge 2 (numbers are positions in the sequence):

         0  1  4  5
         2  3  6  7
         8  9 12 13
        10 11 14 15

    Returns:
      int32[t * h * w, 2] and int32[t * h * w].
    """
    t, h, w = grid
    blocks = np.stack(np.meshgrid(np.arange(h), np.arange(w), indexing="ij"), -1)
    blocks = (
        blocks.reshape(h // merge, merge, w // merge, merge, 2)
        .transpose(0, 2, 1, 3, 4)
        .reshape(-1, 2)
    )
    return np.tile(blocks, (t, 1)).astype(np.int32), np.repeat(np.arange(t, dtype=np.int32), h * w)


# ---------------------------------------------------------------- arrangement

# Rows are kept while padding and attention stay under these; past them images are packed.
MOST_PADDING = 0.15
MOST_PAIRS = 2.0


def block_size(largest: int) -> int:
    """Patches of an attention block for images of up to `largest`: small images want small blocks,
    16 to 128.
    """
    return min(128, max(16, power_of_two(largest) // 16))


def arrange(
    sizes: Sequence[int], allowed: Sequence[int], geometry: PatchGeometry, multiple: int, block: int
) -> tuple[list[list[int]], int, int, bool]:
    """Which image goes into which row.

    Args:
      sizes: patches of each image.
      allowed: row lengths M.
      multiple: R is a multiple of it.
      block: of paired attention.

    Returns:
      Image numbers of each row, R, M, and whether the rows are packed ones.

    Raises:
      TooLong: an image is over the largest row.
      ValueError: a row length does not hold whole merge blocks.
    """
    if bad := [m for m in allowed if m % geometry.merge**2]:
        raise ValueError(
            f"patch buckets must be multiples of {geometry.merge**2} (one merge block), got {bad[0]}"
        )
    if geometry.tile:
        return (
            [[i] for i in range(len(sizes))],
            finely(max(1, len(sizes)), multiple),
            geometry.tile,
            False,
        )
    largest = max(sizes, default=1)
    length = next((m for m in sorted(allowed) if m >= largest), None)
    if length is None:
        raise TooLong(f"an image's patches of {largest} is over the limit of {max(allowed)}")
    bins = pack_first_fit(sizes, length)
    rows = rows_for(max(1, len(bins)), multiple)
    # Judged by the rows that hold something: the prompts' own rows are rounded up in the same way,
    # so that images of like size add no shapes to those that the prompts have.
    used = len(bins) * length
    padding, pairs = (
        1 - sum(sizes) / max(1, used),
        used * length / max(1, sum(n * n for n in sizes)),
    )
    if len(sizes) <= 1 or (padding <= MOST_PADDING and pairs <= MOST_PAIRS):
        return bins, rows, length, False
    unit = math.lcm(block, geometry.merge**2)
    long = finely(max(largest, -(-sum(sizes) // multiple)), unit)
    while len(bins := pack_first_fit(sizes, long)) > multiple:
        long = finely(long + 1, unit)
    if multiple * long >= rows * length and pairs <= MOST_PAIRS:
        return pack_first_fit(sizes, length), rows, length, False
    return bins, multiple, long, True


def block_pairs(segment_rm: np.ndarray, block: int) -> np.ndarray:
    """int32[R, P, 2]: (query block, key block) of blocks that share a segment, sorted; -1 fills the
    list up.
    """
    found = []
    for row in segment_rm:
        blocks = [set(b[b > 0].tolist()) for b in row.reshape(-1, block)]
        first: dict[int, list[int]] = {}
        for i, inside in enumerate(blocks):
            for s in inside:
                first.setdefault(s, []).append(i)
        found.append(
            sorted({(i, j) for members in first.values() for i in members for j in members})
        )
    size = finely(max(1, *(len(p) for p in found)), 1, 1.5)
    last = segment_rm.shape[1] // block - 1
    out = np.tile(np.array([last, -1], np.int32), (len(found), size, 1))
    for r, pairs in enumerate(found):
        if pairs:
            out[r, : len(pairs)] = pairs
    return out


def make_windows(place_rm2: np.ndarray, segment_rm: np.ndarray, side: int) -> Windows:
    """Windows of side x side patches inside each segment, several small ones in one row of side^2
    places.
    """
    rows, length = segment_rm.shape
    size = min(side * side, length)
    binned, members = [], []
    for place, segment in zip(place_rm2, segment_rm, strict=True):
        at = np.flatnonzero(segment)
        key = np.stack([segment[at], place[at, 0] // side, place[at, 1] // side], 1)
        _, window = np.unique(key, axis=0, return_inverse=True)
        window = window.reshape(-1)
        order = np.argsort(window, kind="stable")
        counts = np.bincount(window) if len(at) else np.zeros(0, int)
        members.append(np.split(at[order], np.cumsum(counts)[:-1]) if len(at) else [])
        binned.append(pack_first_fit(counts.tolist(), size))
    # Two sizes only: most batches fit a quarter more than full windows would need; twice as many
    # always suffice.
    full = -(-length // size)
    most = max(1, *(len(b) for b in binned))
    width = next(w for w in (-(-5 * full // 4), max(2 * full, most)) if w >= most)
    index = np.zeros((rows, width, size), np.int32)
    segment_rwk = np.zeros((rows, width, size), np.int32)
    slot = np.zeros((rows, length), np.int32)
    for r, (bins, patches) in enumerate(zip(binned, members, strict=True)):
        for w, inside in enumerate(bins):
            offset = 0
            for number, i in enumerate(inside):
                inside_window, end = patches[i], offset + len(patches[i])
                index[r, w, offset:end], segment_rwk[r, w, offset:end] = inside_window, number + 1
                slot[r, inside_window] = w * size + np.arange(offset, end)
                offset = end
    return Windows(index, segment_rwk, slot)


def make_rows(
    patches: Sequence[np.ndarray],
    grids: Sequence[tuple[int, int, int]],
    allowed: Sequence[int],
    geometry: PatchGeometry,
    *,
    multiple: int = 1,
    block: int = 16,
    held: Held = "pixels",
) -> tuple[PatchRows, np.ndarray]:
    """Patch rows of some images, and the number of each image's first embedding.

    Args:
      patches: float32[n, C] of each image (or what was computed of it; [n / merge^2, C] after the
        merger).
      grids: (t, h, w) of each image.
      allowed: row lengths M.
      multiple: R is a multiple of it.
      block: of paired attention.
      held: what `patches` are; see `PatchRows`.

    Returns:
      The rows, and int[images].

    Raises:
      TooLong: an image is over the largest row.
      ValueError: a row length does not hold whole merge blocks.
    """
    unit = geometry.merge**2
    sizes = [t * h * w for t, h, w in grids]
    bins, rows, length, packed = arrange(sizes, allowed, geometry, multiple, block)
    shrink = unit if held == "merger" else 1
    values = patches[0].shape[1] if len(patches) else geometry.values
    patch = np.zeros(
        (rows, length // shrink, values), patches[0].dtype if len(patches) else np.float32
    )
    place, size = np.zeros((rows, length, 2), np.int32), np.ones((rows, length, 2), np.int32)
    segment = np.zeros((rows, length), np.int32)
    start = np.zeros(len(sizes), np.int64)
    for r, members in enumerate(bins):
        offset, number = 0, 0
        for i in members:
            end = offset + sizes[i]
            patch[r, offset // shrink : end // shrink] = patches[i]
            place[r, offset:end], frame = patch_places(grids[i], geometry.merge)
            size[r, offset:end] = grids[i][1:]
            segment[r, offset:end] = number + 1 + frame
            number += grids[i][0]
            start[i] = (r * length + offset) // unit
            offset = end
    pairs = block_pairs(segment, block) if packed else None
    windows = make_windows(place, segment, geometry.window) if geometry.window else None
    if held != "pixels":  # attention is over; only the shape is left to know
        pairs = windows = None
    found = PatchRows(
        patch, place, size, segment, pairs, windows, held, block if pairs is not None else 0
    )
    return found, start


def rows_waste(rows: PatchRows | None) -> dict[str, float]:
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
    computed = segment.shape[0] * segment.shape[1] ** 2
    if rows.held != "pixels":
        computed = needed  # the tower's attention is computed already
    elif rows.pair_rp2 is not None:
        computed = rows.pair_rp2.shape[0] * rows.pair_rp2.shape[1] * rows.block**2
    return {"patches": 1.0 - float((segment > 0).mean()), "vision_pairs": computed / needed}
