"""Image and video patches in rows of static shape, and which of them attend to which.

Three arrangements, chosen by the host from what a batch holds:

    rows     every image alone (or with a few like it) in a row of the size of the largest;
             plain attention in rows
    packed   all images one after the other in one long row;
             attention over the listed pairs of blocks
    tiles    towers with tiles of one size: a row is a tile

Rows are simplest and fastest where images are of like size; a mix of sizes would be mostly padding,
and is packed. In a run the choice follows from the options, and so does the size (`inputs.room`).

Pixels stay the 8 bits that they are until the tower reads them (`models.pixels`), and a picture
that fills all frames of its patches is there once.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from flax import struct

from jaxr1.inputs.arrangement import Arrangement, PatchGeometry, Spare
from jaxr1.inputs.levels import CHANNELS, Levels
from jaxr1.inputs.sizes import finely, pack_first_fit

Held = Literal["pixels", "tower", "merger"]
"""What stands in the place of patches: pixels, or what was computed of them."""


MOST_LEVELS = 2
"""Normalisations in one batch: that of images and that of videos."""


@struct.dataclass
class Windows:
    """Windows of patch rows, packed in W rows of K places (`nn.attention.window_attention`)."""

    index_rwk: Any  # int32[R, W, K]
    segment_rwk: Any  # int32[R, W, K]; 0 = empty place
    slot_rm: Any  # int32[R, M]


@struct.dataclass
class PatchRows:
    """R patch rows of M patches.

        patch row    [ a a a a a a a a b b b b . . . . ]   two images; merge^2 patches make one
                                                           media embedding
        segment      [ 1 1 1 1 1 1 1 1 2 2 2 2 0 0 0 0 ]   frames of a video are segments of
                                                           their own

    Row r, embedding j is the batch's embedding number r * M / merge^2 + j. What is frozen may be
    computed once: then `patch_rmc` holds the output of the last frozen computation instead of
    pixels, and `held` says which. Pixels are 8 bits, laid out channel, frame, row, column; with one
    frame in a patch the picture fills all of them. Their normalisation is data, and no constant of
    the programs: images and videos, or prompts of text only, share them.
    """

    patch_rmc: Any  # uint8[R, M, C]; float32 of what was computed, [R, M / merge^2, C] of a merger
    place_rm2: Any  # int32[R, M, 2], row and column of each patch in its image
    size_rm2: Any  # int32[R, M, 2], rows and columns of that image
    segment_rm: Any  # int32[R, M]; 0 = padding
    pair_rp2: Any = None  # int32[R, P, 2], blocks that attend; None = plain attention in rows
    windows: Windows | None = None
    level_rm: Any = None  # uint8[R, M], number of the patch's normalisation; None = no 8-bit pixels
    affine_rk23: Any = None  # float32[R, K, 2, 3], scale and shift of each normalisation
    held: Held = struct.field(pytree_node=False, default="pixels")
    block: int = struct.field(pytree_node=False, default=0)
    unit: int = struct.field(pytree_node=False, default=1)  # patches of an embedding
    spare: Spare = struct.field(pytree_node=False, default="")


def blank(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Zeros that take no memory, in the place of patches that another host has."""
    return np.broadcast_to(np.zeros((), dtype), tuple(shape))


def is_blank(patches: np.ndarray) -> bool:
    """Whether these are `blank`."""
    return not any(patches.strides)


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


def block_pairs(segment_rm: np.ndarray, block: int, longest: int = 0) -> np.ndarray:
    """int32[R, P, 2]: (query block, key block) of blocks that share a segment, sorted.

    -1 as key block fills the list up.

    Args:
      longest: patches of the largest segment that there may be; the list holds whatever pairs there
        may be then. 0 is a list for those that there are.
    """
    found = []
    for row in segment_rm:
        # Which blocks each segment lies in.
        blocks: dict[int, list[int]] = {}
        for i, inside in enumerate(row.reshape(-1, block)):
            for segment in np.unique(inside[inside > 0]).tolist():
                blocks.setdefault(segment, []).append(i)
        pairs: set[tuple[int, int]] = set()
        for members in blocks.values():
            pairs.update((query, key) for query, key in itertools.product(members, members))
        found.append(sorted(pairs))
    size = finely(max(1, *(len(pairs) for pairs in found)), 1, 1.5)
    last = segment_rm.shape[1] // block - 1
    if longest:  # a block in the middle of it shares it with all others that it touches
        size = (last + 1) * min(last + 1, 2 * (-(-longest // block) + 1))
    pair_rp2 = np.tile(np.array([last, -1], np.int32), (len(found), size, 1))
    for r, listed in enumerate(found):
        if listed:
            pair_rp2[r, : len(listed)] = listed
    return pair_rp2


def make_windows(
    place_rm2: np.ndarray, segment_rm: np.ndarray, side: int, *, most: bool = False
) -> Windows:
    """Windows of side x side patches inside each segment, small ones packed in rows of side^2.

    Args:
      most: make as many rows as may be needed, and not only as are.
    """
    rows, length = segment_rm.shape
    size = min(side * side, length)
    windows = [_windows_of(*row, side) for row in zip(place_rm2, segment_rm, strict=True)]
    packed = [pack_first_fit(list(map(len, row)), size) for row in windows]
    # Two sizes only: most batches fit a quarter more than full windows would need; twice as many
    # always suffice.
    full = -(-length // size)
    used = max(1, *(len(bins) for bins in packed))
    few = -(-5 * full // 4)
    width = few if few >= used and not most else max(2 * full, used)
    index = np.zeros((rows, width, size), np.int32)
    segment_rwk = np.zeros((rows, width, size), np.int32)
    slot = np.zeros((rows, length), np.int32)
    for r, bins in enumerate(packed):
        for w, inside in enumerate(bins):
            offset = 0
            for number, i in enumerate(inside, 1):
                window = windows[r][i]
                end = offset + len(window)
                index[r, w, offset:end], segment_rwk[r, w, offset:end] = window, number
                slot[r, window] = w * size + np.arange(offset, end)
                offset = end
    return Windows(index, segment_rwk, slot)


def _windows_of(place_m2: np.ndarray, segment_m: np.ndarray, side: int) -> list[np.ndarray]:
    """The patches of each window of a row."""
    at = np.flatnonzero(segment_m)
    if not len(at):
        return []
    key = np.stack([segment_m[at], *(place_m2[at] // side).T], 1)
    _, window = np.unique(key, axis=0, return_inverse=True)
    window = window.reshape(-1)
    order = np.argsort(window, kind="stable")
    ends = np.cumsum(np.bincount(window))[:-1]
    return np.split(at[order], ends)


def make_rows(
    patches: Sequence[np.ndarray],
    grids: Sequence[tuple[int, int, int]],
    allowed: Sequence[int],
    geometry: PatchGeometry,
    *,
    levels: Sequence[Levels] = (),
    block: int = 16,
    held: Held = "pixels",
    arranged: Arrangement,
) -> tuple[PatchRows, np.ndarray]:
    """Patch rows of some images, and the number of each image's first embedding.

    Args:
      patches: uint8[n, C] of each image, with one frame or all of a patch's (or float32 of what was
        computed of it; [n / merge^2, C] after the merger).
      grids: (t, h, w) of each image.
      allowed: row lengths M.
      levels: what the pixels of each image stand for, where they are 8 bits.
      block: of paired attention.
      held: what `patches` are; see `PatchRows`.
      arranged: which image goes into which row (`inputs.room`).

    Returns:
      The rows, and int[images].

    Raises:
      ValueError: images are normalised in more than `MOST_LEVELS` ways.
    """
    unit = geometry.merge**2
    sizes = [t * h * w for t, h, w in grids]
    rows, length = arranged.rows, arranged.length
    shrink = unit if held == "merger" else 1
    blank = np.zeros((0, geometry.values // geometry.frames), np.uint8)
    like = max(patches, key=lambda found: found.shape[1], default=blank)
    patch = np.zeros((rows, length // shrink, like.shape[1]), like.dtype)
    place, size = np.zeros((rows, length, 2), np.int32), np.ones((rows, length, 2), np.int32)
    segment = np.zeros((rows, length), np.int32)
    start = np.zeros(len(sizes), np.int64)
    for r, members in enumerate(arranged.members):
        offset, number = 0, 0
        for i in members:
            end = offset + sizes[i]
            if not is_blank(patches[i]):  # else the row stays untouched: it takes no memory
                patch[r, offset // shrink : end // shrink] = _widened(patches[i], like.shape[1])
            place[r, offset:end], frame = patch_places(grids[i], geometry.merge)
            size[r, offset:end] = grids[i][1:]
            segment[r, offset:end] = number + 1 + frame
            number += grids[i][0]
            start[i] = (r * length + offset) // unit
            offset = end
    made = PatchRows(
        patch,
        place,
        size,
        segment,
        held=held,
        block=block if arranged.packed else 0,
        unit=unit,
        spare=arranged.spare,
    )
    if held != "pixels":  # attention is over; only the shape is left to know
        return made, start
    if geometry.window:
        windows = make_windows(place, segment, geometry.window, most=bool(arranged.spare))
        made = dataclasses.replace(made, windows=windows)
    if like.dtype == np.uint8:
        made = _normalised(made, arranged.members, sizes, levels)
    if arranged.packed:
        longest = max(allowed) if arranged.spare else 0
        made = dataclasses.replace(made, pair_rp2=block_pairs(segment, block, longest))
    return made, start


def _widened(patches: np.ndarray, width: int) -> np.ndarray:
    """Patches of `width` numbers: one frame is repeated where others in the batch have several."""
    if patches.shape[1] == width:
        return patches
    channels = patches.reshape(len(patches), CHANNELS, 1, -1)
    return np.tile(channels, (1, 1, width // patches.shape[1], 1)).reshape(len(patches), width)


def _normalised(
    made: PatchRows,
    members: Sequence[Sequence[int]],
    sizes: Sequence[int],
    levels: Sequence[Levels],
) -> PatchRows:
    """The rows with the normalisation of each patch."""
    if len(levels) != len(sizes):
        raise ValueError(f"{len(sizes)} images of 8-bit pixels, but {len(levels)} normalisations")
    known = list(dict.fromkeys(levels))
    if len(known) > MOST_LEVELS:
        raise ValueError(f"a batch may mix {MOST_LEVELS} normalisations of pixels, not {known}")
    rows, length = made.segment_rm.shape
    level = np.zeros((rows, length), np.uint8)
    for r, inside in enumerate(members):
        numbers = [known.index(levels[i]) for i in inside]
        real = np.repeat(np.asarray(numbers, np.uint8), [sizes[i] for i in inside])
        level[r, : len(real)] = real
    affine = np.zeros((rows, MOST_LEVELS, 2, CHANNELS), np.float32)
    for k, one in enumerate(known):
        affine[:, k] = one.scale, one.shift
    return dataclasses.replace(made, level_rm=level, affine_rk23=affine)
