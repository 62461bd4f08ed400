"""Responses in strips: which response lies where, and the arrays that say so.

    prompt row     [ v v v v t t t t . . ]                  one of B rows
    its strips     [ a a a a a a a a a a . . ]              S strips of T tokens
                   [ b b b b c c c d d d d d ]
    segments       [ 1 1 1 1 1 1 1 1 1 1 0 0 ]
                   [ 1 1 1 1 2 2 2 3 3 3 3 3 ]

A plan fixes sizes and places on the host; arrays are then filled from columns, which hold one
number for each token of each response. Rows are copies of prompts: a group whose strips do not fit
one row gets two.

    column  [ a a a a b b c c c d d d d d ]       start of d: 9
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import struct

from jaxr1.inputs.batch import EncodedPrompt, PromptBatch, make_batch
from jaxr1.inputs.patches import PatchGeometry
from jaxr1.inputs.sizes import Buckets, bucket, pack_first_fit, power_of_two, rows_for


@struct.dataclass
class Strips:
    """Packed responses of B prompt rows."""

    token_bst: Any  # int32[B, S, T]
    media_index_bst: Any  # int32[B, S, T], -1 = a token; None = tokens only
    position_bst3: Any  # int32[B, S, T, 3]
    segment_bst: Any  # int32[B, S, T], 0 = padding
    target_bst: Any  # int32[B, S, T], the token whose log-prob stands at this place


@dataclasses.dataclass(frozen=True)
class Place:
    """Where one response lies: row b, strip s, tokens offset .. offset + length, segment number.

    `start` is where its tokens begin in a column.
    """

    prompt: int
    sample: int
    start: int
    row: int
    strip: int
    offset: int
    length: int
    segment: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """A micro-batch: `rows` padded rows, the real ones in `prompts`; S strips of T tokens."""

    prompts: tuple[int, ...]
    rows: int
    prompt_len: int
    strips: int
    strip_len: int
    places: tuple[Place, ...]

    @property
    def tokens(self) -> int:
        """Padded tokens."""
        return self.rows * (self.prompt_len + self.strips * self.strip_len)


@dataclasses.dataclass(frozen=True)
class _Row:
    """Responses of one prompt that share a row, in strips of `size` tokens."""

    prompt: int
    samples: tuple[int, ...]
    size: int


def plan_strips(
    prompt_lens: Sequence[int],
    counts: Sequence[Sequence[int]],
    buckets: Buckets,
    *,
    token_budget: int,
    multiple: int = 1,
    placed: np.ndarray | None = None,
) -> list[Plan]:
    """Packs responses into micro-batches of at most `token_budget` padded tokens.

    Rows are sorted by size, so that a micro-batch holds rows of like length: with log-normal
    lengths most of a batch in arrival order would be padding.

    Args:
      prompt_lens: length of each prompt.
      counts: for each prompt, the tokens of each of its responses; a column holds them in this
        order.
      buckets: the sizes that P and T may have.
      token_budget: padded tokens of prompts and strips per micro-batch.
      multiple: rows are a multiple of it.
      placed: bool[B, G], responses to place; None is all. Those without a token have no place.

    Returns:
      Plans, which place every such response once.
    """
    lengths = [list(map(int, group)) for group in counts]
    starts = _starts(lengths)
    if placed is not None:
        lengths = np.where(placed, counts, 0).tolist()
    rows: list[_Row] = []
    for prompt, group in enumerate(lengths):
        room = token_budget // multiple - bucket(prompt_lens[prompt], buckets.prompt, "a prompt")
        rows += _rows_of(prompt, group, buckets, room)
    # The longest first; what decides between equals makes the order a function of the lengths
    # alone.
    tokens = lambda row: sum(lengths[row.prompt][j] for j in row.samples)
    rows.sort(key=lambda row: (-row.size, -tokens(row), -prompt_lens[row.prompt], row.prompt))

    plans: list[Plan] = []
    current: list[_Row] = []
    best: Plan | None = None
    for row in rows:
        candidate = _plan([*current, row], prompt_lens, lengths, starts, buckets, multiple)
        if best is not None and candidate.tokens > token_budget:
            plans.append(best)
            current = []
            candidate = _plan([row], prompt_lens, lengths, starts, buckets, multiple)
        current.append(row)
        best = candidate
    return [*plans, best] if best is not None else plans


def _starts(lengths: list[list[int]]) -> list[list[int]]:
    """Where the tokens of each response begin in a column."""
    starts: list[list[int]] = []
    at = 0
    for group in lengths:
        ends = np.cumsum([at, *group]).tolist()
        starts.append(ends[:-1])
        at = ends[-1]
    return starts


def _rows_of(prompt: int, group: Sequence[int], buckets: Buckets, room: int) -> list[_Row]:
    """The rows of one prompt's responses: as many strips in each as fit `room` tokens."""
    samples = [j for j, n in enumerate(group) if n > 0]
    if not samples:
        return []
    size = bucket(max(group), buckets.response, "a response")
    strips = pack_first_fit([group[j] for j in samples], size)
    # A plan rounds its strips up to a power of two, so only that many fit.
    most = 1 << (max(1, room // size).bit_length() - 1)
    rows = []
    for first in range(0, len(strips), most):
        packed = itertools.chain.from_iterable(strips[first : first + most])
        rows.append(_Row(prompt, tuple(samples[k] for k in packed), size))
    return rows


def _plan(
    rows: Sequence[_Row],
    prompt_lens: Sequence[int],
    lengths: Sequence[Sequence[int]],
    starts: Sequence[Sequence[int]],
    buckets: Buckets,
    multiple: int,
) -> Plan:
    """The micro-batch of these rows."""
    size = max(row.size for row in rows)
    places: list[Place] = []
    strips = 1
    for number, row in enumerate(rows):
        length, start = lengths[row.prompt], starts[row.prompt]
        packed = pack_first_fit([length[j] for j in row.samples], size)
        strips = max(strips, len(packed))
        for s, members in enumerate(packed):
            offset = 0
            for segment, k in enumerate(members, 1):
                j = row.samples[k]
                places.append(Place(row.prompt, j, start[j], number, s, offset, length[j], segment))
                offset += length[j]
    return Plan(
        prompts=tuple(row.prompt for row in rows),
        rows=rows_for(len(rows), multiple),
        prompt_len=bucket(max(prompt_lens[r.prompt] for r in rows), buckets.prompt, "a prompt"),
        strips=power_of_two(strips),
        strip_len=size,
        places=tuple(places),
    )


def fill(plan: Plan, column: np.ndarray) -> np.ndarray:
    """[B, S, T]: the tokens' numbers of a column, each at its response's place; 0 at padding."""
    out = np.zeros((plan.rows, plan.strips, plan.strip_len), column.dtype)
    for p in plan.places:
        out[p.row, p.strip, p.offset : p.offset + p.length] = column[p.start : p.start + p.length]
    return out


def gather(plan: Plan, array_bst: np.ndarray, column: np.ndarray) -> None:
    """The inverse of `fill`: writes the numbers of the plan's responses into `column`."""
    for p in plan.places:
        found = array_bst[p.row, p.strip, p.offset : p.offset + p.length]
        column[p.start : p.start + p.length] = found


def make_strips(plan: Plan, prompts: Sequence[EncodedPrompt], token_n: np.ndarray) -> Strips:
    """The arrays of a plan.

    Args:
      prompts: all prompts that the plan's numbers refer to.
      token_n: int32[N], the tokens of all responses.
    """
    token = fill(plan, token_n)
    position = np.zeros(token.shape, np.int32)
    segment = np.zeros(token.shape, np.int32)
    for p in plan.places:
        at = (p.row, p.strip, slice(p.offset, p.offset + p.length))
        position[at] = prompts[p.prompt].next_position + np.arange(p.length)
        segment[at] = p.segment
    return Strips(
        token_bst=token,
        media_index_bst=None,
        position_bst3=np.broadcast_to(position[..., None], (*token.shape, 3)),
        segment_bst=segment,
        target_bst=token,
    )


def plan_prompts(
    plan: Plan,
    prompts: Sequence[EncodedPrompt],
    buckets: Buckets,
    media: Mapping[str, PatchGeometry],
    *,
    multiple: int = 1,
) -> PromptBatch:
    """The prompt rows of a plan."""
    chosen = [prompts[i] for i in plan.prompts]
    return make_batch(chosen, buckets, media, rows=plan.rows, multiple=multiple)
