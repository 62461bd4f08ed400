"""From encoded prompts to arrays of static shape: prompt rows and patch rows."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import struct

from jaxr1.inputs.arrangement import PatchGeometry, block_size
from jaxr1.inputs.levels import Levels
from jaxr1.inputs.patches import (
    Held,
    PatchRows,
    make_rows,
)
from jaxr1.inputs.room import arrange_in_room, rows_waste
from jaxr1.inputs.sizes import Buckets, bucket, power_of_two, rows_for
from jaxr1.parallel import slots

PATCHES = "patches"
"""The kind of media that images and videos are."""


@dataclasses.dataclass(frozen=True)
class EncodedPrompt:
    """A prompt in numbers; made by the processor.

    Attributes:
      token_ids: int32[P].
      media_index: int32[P], -1 for a token, else the running number of the merged media token in
        this prompt.
      position: int32[P, 3], M-RoPE positions; three times the same where the model has ordinary
        ones.
      next_position: the position of the first response token (it is not P: an image takes fewer
        positions than tokens).
      patches: for each image, tile or frame pair of a video uint8[n, C * T * H * W] in merge-block
        order; T = 1 where all frames of a patch are the same picture, as an image's are.
      grids: for each of them (t, h, w) in patches, t = 1.
      levels: for each of them what its pixels stand for.
      spans: for each run of media tokens (start, end) in `token_ids`.
      hashes: for each image or video a short hash of its pixels.
      prefix: the text that opens the response; it is part of the prompt, and of what rewards read.
      held: what `patches` are: "pixels", or the output of a frozen "tower" or "merger"
        (`sampling.features`).
      host: the one whose rows hold it, where there are several: the others have `blank` patches.
      sizes: for each image (not video) its width and height, and those that it was resized to for
        the tower, in pixels.
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
    held: Held = "pixels"
    levels: tuple[Levels, ...] = ()
    host: int = 0
    sizes: tuple[tuple[int, int, int, int], ...] = ()

    def __len__(self) -> int:
        return len(self.token_ids)

    def parted(self, media_ids: Sequence[int]) -> tuple[EncodedPrompt, np.ndarray]:
        """The prompt up to its last medium (or its first token), and int32[n], the tokens behind.

        Said as the beginning of a response, these have the same log-probs: positions go on.

        Args:
          media_ids: tokens that stand for media or around them, which nobody says.
        """
        media = np.flatnonzero(np.isin(self.token_ids, list(media_ids)))
        cut = int(media[-1]) + 1 if len(media) else 1
        if cut == len(self):
            return self, self.token_ids[cut:]
        head = dataclasses.replace(
            self,
            token_ids=self.token_ids[:cut],
            media_index=self.media_index[:cut],
            position=self.position[:cut],
            next_position=int(self.position[cut, 0]),
        )
        return head, self.token_ids[cut:]


@struct.dataclass
class PromptBatch:
    """B prompt rows and the rows of their media, by kind.

    prompt row   [ v v v v t t t . . ]        media_index  [ 0 1 2 3 -1 -1 -1 -1 -1 ]
    """

    token_bp: Any  # int32[B, P]
    media_index_bp: Any  # int32[B, P], -1 = a token, else the number of an embedding (`PatchRows`)
    position_bp3: Any  # int32[B, P, 3]
    length_b: Any  # int32[B]; 0 = a row added to fill the batch
    next_position_b: Any  # int32[B]
    media: dict[str, PatchRows]  # by kind; {} for a model without a tower


def fitting_buckets(prompts: Sequence[EncodedPrompt], response: int) -> Buckets:
    """Geometric buckets that hold these prompts and responses of up to `response` tokens."""
    longest = max((len(prompt) for prompt in prompts), default=1)
    grids = itertools.chain.from_iterable(prompt.grids for prompt in prompts)
    largest = max((t * h * w for t, h, w in grids), default=1)
    return Buckets.up_to(power_of_two(longest), response, power_of_two(largest))


def make_batch(
    prompts: Sequence[EncodedPrompt],
    buckets: Buckets,
    media: Mapping[str, PatchGeometry],
    *,
    rows: int,
    width: int = 0,
    multiple: int = 1,
    hosts: Sequence[int] = (),
) -> PromptBatch:
    """Packs prompts into `rows` rows (`rows_of`), their media into patch rows.

    Empty rows fill the batch.

    A batch without media still has media rows, all padding, so that text and image prompts share
    programs and may be mixed.

    Args:
      media: the kinds that the model takes, and what to know of each; {} for text only.
      rows: B.
      width: P; 0 is the smallest bucket that holds the prompts.
      multiple: of media rows (devices that share a batch).
      hosts: of each share of the batch, where there are several: a prompt and its media lie in rows
        of its own host.

    Raises:
      TooLong: a prompt or an image is over the largest bucket.
      ValueError: a patch bucket does not hold whole merge blocks.
    """
    width = width or bucket(max(len(p) for p in prompts), buckets.prompt, "a prompt")
    token = np.zeros((rows, width), np.int32)
    media_index = np.full((rows, width), -1, np.int32)
    position = np.zeros((rows, width, 3), np.int32)
    length, following = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
    shares = tuple(hosts) or (0,) * multiple
    each, at = rows // multiple, rows_of(prompts, rows, shares)
    given = Given([row // each for row in at], each * width, hosts)
    packed = {
        kind: ROWS[kind](prompts, buckets, geometry, multiple, given)
        for kind, geometry in media.items()
    }
    for i, (b, p) in enumerate(zip(at, prompts, strict=True)):
        n = len(p)
        token[b, :n], position[b, :n] = p.token_ids, p.position
        length[b], following[b] = n, p.next_position
        for _, numbers in packed.values():
            real = p.media_index >= 0
            media_index[b, :n][real] = numbers[i][p.media_index[real]]
    media_rows = {kind: made for kind, (made, _) in packed.items()}
    return PromptBatch(token, media_index, position, length, following, media_rows)


@dataclasses.dataclass(frozen=True)
class Given:
    """The prompt rows that media have room for.

    Attributes:
      devices: that of each prompt.
      tokens: of a device's rows.
      hosts: of each device's share, where there are several.
    """

    devices: Sequence[int]
    tokens: int
    hosts: Sequence[int]


def count_rows(prompts: Sequence[EncodedPrompt], multiple: int, hosts: Sequence[int] = ()) -> int:
    """Rows of a batch of these prompts; each host has as many as the one with the most prompts."""
    if not hosts:
        return rows_for(len(prompts), multiple)
    count = len(set(hosts))
    most = max(Counter(prompt.host for prompt in prompts).values())
    return count * rows_for(most, multiple // count)


def rows_of(prompts: Sequence[EncodedPrompt], rows: int, shares: Sequence[int]) -> list[int]:
    """The row of each prompt in a batch: the next one of its host (`slots`)."""
    free = [iter(own) for own in slots(shares, rows)]
    return [next(free[prompt.host]) for prompt in prompts]


def _patch_rows(
    prompts: Sequence[EncodedPrompt],
    buckets: Buckets,
    geometry: PatchGeometry,
    multiple: int,
    given: Given,
) -> tuple[PatchRows, list[np.ndarray]]:
    """Patch rows of all images, and for each prompt the numbers of its embeddings, in order."""
    units: list[tuple[int, int]] = []
    for b, prompt in enumerate(prompts):
        units += [(b, i) for i in range(len(prompt.grids))]
    block = block_size(buckets.patches[-1])
    grids = [prompts[b].grids[i] for b, i in units]
    arranged = arrange_in_room(
        list(map(math.prod, grids)),
        [given.devices[b] for b, _ in units],
        buckets.patches,
        geometry,
        patches=given.tokens * geometry.merge**2,
        devices=multiple,
        block=block,
        hosts=given.hosts,
    )
    rows, start = make_rows(
        [prompts[b].patches[i] for b, i in units],
        grids,
        buckets.patches,
        geometry,
        levels=list(itertools.chain.from_iterable(prompt.levels for prompt in prompts)),
        block=block,
        arranged=arranged,
        held=next((p.held for p in prompts if p.grids), "pixels"),
    )
    numbers: list[list[np.ndarray]] = [[np.zeros(0, np.int64)] for _ in prompts]
    for (b, i), first in zip(units, start.tolist(), strict=True):
        t, h, w = prompts[b].grids[i]
        numbers[b].append(first + np.arange(t * h * w // geometry.merge**2))
    return rows, [np.concatenate(found) for found in numbers]


ROWS = {PATCHES: _patch_rows}


def batch_waste(batch: PromptBatch, multiple: int = 1) -> dict[str, float]:
    """Fractions of padded positions, and attention pairs computed / needed.

    Args:
      multiple: devices that share the batch.
    """
    waste = {"prompt": 1.0 - float(np.asarray(batch.length_b).sum()) / batch.token_bp.size}
    return waste | rows_waste(batch.media.get(PATCHES), multiple)
