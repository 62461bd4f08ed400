"""From encoded prompts to arrays of static shape: prompt rows, patch rows, and the buckets their sizes come from."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from flax import struct


class TooLong(ValueError):
    """A sequence is longer than the largest bucket."""


@dataclasses.dataclass(frozen=True)
class EncodedPrompt:
    """A prompt in numbers; made by the processor.

    Attributes:
      token_ids: int32[P].
      media_index: int32[P], -1 for a token, else the running number of the merged media token in this prompt.
      position: int32[3, P], M-RoPE positions.
      next_position: the position of the first response token (it is not P: an image takes fewer positions than tokens).
      patches: for each image float32[n, C * T * H * W] in merge-block order.
      grids: for each image (t, h, w) in patches.
      spans: for each image (start, end) in `token_ids`.
      hashes: for each image a short hash of its pixels.
      prefix: the text that opens the response; it is part of the prompt, and of what rewards read.
    """

    token_ids: np.ndarray
    media_index: np.ndarray
    position: np.ndarray
    next_position: int
    patches: tuple[np.ndarray, ...] = ()
    grids: tuple[tuple[int, int, int], ...] = ()
    spans: tuple[tuple[int, int], ...] = ()
    hashes: tuple[str, ...] = ()
    prefix: str = ""

    def __len__(self) -> int:
        return len(self.token_ids)


@struct.dataclass
class PromptBatch:
    """B prompt rows and their R patch rows.

        prompt row   [ v v v v t t t . . ]        media_index  [ 0 1 2 3 -1 -1 -1 -1 -1 ]
        patch row    [ a a a a a a a a b b b b . . . . ]      two images; 4 patches make one media embedding

    `media_index` counts embeddings through all patch rows: row r, embedding j has number r * M / merge^2 + j.
    """

    token_bp: Any  # int32[B, P]
    media_index_bp: Any  # int32[B, P], -1 = a token
    position_3bp: Any  # int32[3, B, P]
    length_b: Any  # int32[B]; 0 = a row added to fill the batch
    next_position_b: Any  # int32[B]
    patch_rmc: Any  # float32[R, M, C]
    place_rm2: Any  # int32[R, M, 2]
    segment_rm: Any  # int32[R, M]; 0 = padding


def geometric(low: int, high: int, ratio: float = 2.0, multiple: int = 8) -> tuple[int, ...]:
    """Bucket sizes from `low` to `high`, each about `ratio` times the one before, rounded up to `multiple`."""
    sizes, size = [], float(min(low, high))
    while size < high:
        sizes.append(int(-(-size // multiple) * multiple))
        size *= ratio
    sizes.append(int(-(-high // multiple) * multiple))
    return tuple(sorted(set(sizes)))


def bucket(size: int, sizes: Sequence[int], what: str) -> int:
    """The smallest bucket that holds `size`.

    Raises:
      TooLong: none does.
    """
    for candidate in sizes:
        if size <= candidate:
            return candidate
    raise TooLong(f"{what} of {size} is over the limit of {max(sizes)}")


def power_of_two(size: int) -> int:
    return 1 << max(0, size - 1).bit_length()


def rows_for(count: int, multiple: int) -> int:
    """Rows of a batch for `count` real ones: `multiple` times a power of two, so that few shapes exist."""
    return multiple * power_of_two(-(-count // multiple))


def pack_first_fit(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of `sizes` in bins of `capacity`, largest first, each in the first bin with room (deterministic)."""
    bins: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        for b, free in enumerate(room):
            if sizes[i] <= free:
                bins[b].append(i)
                room[b] -= sizes[i]
                break
        else:
            bins.append([i])
            room.append(capacity - sizes[i])
    return bins


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
    blocks = blocks.reshape(h // merge, merge, w // merge, merge, 2).transpose(0, 2, 1, 3, 4).reshape(-1, 2)
    return np.tile(blocks, (t, 1)).astype(np.int32), np.repeat(np.arange(t, dtype=np.int32), h * w)


@dataclasses.dataclass(frozen=True)
class Buckets:
    """The static sizes that arrays may have. Everything that compiles, compiles for sizes from here.

    Attributes:
      prompt: prompt lengths P in tokens.
      response: strip lengths T (and decode cache sizes) in tokens.
      patches: patch-row lengths M in patches.
    """

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    patches: tuple[int, ...]

    @classmethod
    def up_to(cls, prompt: int, response: int, patches: int) -> Buckets:
        """Geometric buckets from small to the limits."""
        return cls(geometric(32, prompt), geometric(16, response), geometric(16, patches, multiple=16))

    @classmethod
    def fitting(cls, prompts: Sequence[EncodedPrompt], response: int) -> Buckets:
        """Geometric buckets that hold these prompts."""
        longest = max((len(p) for p in prompts), default=1)
        largest = max((len(x) for p in prompts for x in p.patches), default=1)
        return cls.up_to(power_of_two(longest), response, power_of_two(largest))


def make_batch(
    prompts: Sequence[EncodedPrompt], buckets: Buckets, *, merge: int, patch_values: int, rows: int, multiple: int = 1
) -> PromptBatch:
    """Packs prompts into `rows` rows (the rest is filled with empty ones) and their images into patch rows.

    Each image lies inside one patch row. A batch without images still has patch rows, all padding, so that text and
    image prompts share programs and may be mixed.

    Args:
      merge: merge size of the tower.
      patch_values: numbers in one patch.
      rows: B.
      multiple: R is a multiple of it (devices that share a batch).

    Raises:
      TooLong: a prompt or an image is over the largest bucket.
      ValueError: a patch bucket does not hold whole merge blocks.
    """
    width = bucket(max(len(p) for p in prompts), buckets.prompt, "a prompt")
    token = np.zeros((rows, width), np.int32)
    media = np.full((rows, width), -1, np.int32)
    position = np.zeros((3, rows, width), np.int32)
    length, following = np.zeros(rows, np.int32), np.zeros(rows, np.int32)

    images = [(b, i) for b, p in enumerate(prompts) for i in range(len(p.patches))]
    sizes = [len(prompts[b].patches[i]) for b, i in images]
    row_size = bucket(max(sizes, default=1), buckets.patches, "an image's patches")
    if row_size % merge**2:
        raise ValueError(f"patch buckets must be multiples of {merge**2} (one merge block), got {row_size}")
    bins = pack_first_fit(sizes, row_size)
    patch_rows = rows_for(max(1, len(bins)), multiple)
    patch = np.zeros((patch_rows, row_size, patch_values), np.float32)
    place = np.zeros((patch_rows, row_size, 2), np.int32)
    segment = np.zeros((patch_rows, row_size), np.int32)
    start: dict[tuple[int, int], int] = {}
    for r, members in enumerate(bins):
        offset, number = 0, 0
        for j in members:
            b, i = images[j]
            grid, end = prompts[b].grids[i], offset + sizes[j]
            patch[r, offset:end] = prompts[b].patches[i]
            place[r, offset:end], frame = patch_places(grid, merge)
            segment[r, offset:end] = number + 1 + frame
            number += grid[0]
            start[b, i] = (r * row_size + offset) // merge**2
            offset = end

    for b, p in enumerate(prompts):
        n = len(p)
        token[b, :n], position[:, b, :n] = p.token_ids, p.position
        length[b], following[b] = n, p.next_position
        if p.grids:
            merged = [g[0] * g[1] * g[2] // merge**2 for g in p.grids]
            table = np.concatenate([start[b, i] + np.arange(k) for i, k in enumerate(merged)])
            real = p.media_index >= 0
            media[b, :n][real] = table[p.media_index[real]]
    return PromptBatch(token, media, position, length, following, patch, place, segment)


def batch_waste(batch: PromptBatch) -> dict[str, float]:
    """Padding and attention of a batch: fractions of padded positions, and attention pairs computed / needed."""
    length, segment = np.asarray(batch.length_b), np.asarray(batch.segment_rm)
    needed = sum(int(np.sum(np.unique(row[row > 0], return_counts=True)[1] ** 2)) for row in segment)
    return {
        "prompt": 1.0 - length.sum() / batch.token_bp.size,
        "patches": 1.0 - (segment > 0).mean() if needed else 0.0,
        "vision_pairs": segment.shape[0] * segment.shape[1] ** 2 / needed if needed else 1.0,
    }
