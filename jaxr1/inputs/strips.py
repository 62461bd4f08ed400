"""Responses in strips: which response lies where, and the arrays that say so.

    prompt row     [ v v v v t t t t . . ]                  one of B rows
    its strips     [ a a a a a a a a a a . . ]              S strips of T tokens
                   [ b b b b c c c d d d d d ]
    segments       [ 1 1 1 1 1 1 1 1 1 1 0 0 ]
                   [ 1 1 1 1 2 2 2 3 3 3 3 3 ]

A plan fixes sizes and places on the host; arrays are then filled from columns, which hold one
number for each token of each response. A prompt is computed once: all of its responses are in its
row, and where that is too much for a device, fewer of the row's strips are computed at once.

    column  [ a a a a b b c c c d d d d d ]       start of d: 9
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxr1.inputs.arrangement import PatchGeometry
from jaxr1.inputs.batch import EncodedPrompt, PromptBatch, make_batch
from jaxr1.inputs.sizes import Buckets, bucket, pack_first_fit, rows_for, strips_for
from jaxr1.parallel import slots

Prompts = Sequence[EncodedPrompt] | Mapping[int, EncodedPrompt]
"""Prompts by their numbers in a plan."""


@struct.dataclass
class Strips:
    """Packed responses of B prompt rows."""

    token_bst: Any  # int32[B, S, T]
    media_index_bst: Any  # int32[B, S, T], -1 = a token; None = tokens only
    position_bst3: Any  # int32[B, S, T, 3]
    segment_bst: Any  # int32[B, S, T], 0 = padding
    target_bst: Any  # int32[B, S, T], the token whose log-prob stands at this place


def cut_strips(tree: Any, size: int) -> Any:
    """Arrays [B, S, T, ...] as [S / size, B, size, T, ...]: some strips of each row at once."""

    def cut(x):
        rows, count, *rest = x.shape
        return jnp.moveaxis(x.reshape(rows, count // size, size, *rest), 1, 0)

    return jax.tree.map(cut, tree)


def join_strips(tree: Any) -> Any:
    """The inverse of `cut_strips`."""

    def join(x):
        moved = jnp.moveaxis(x, 0, 1)
        return moved.reshape(moved.shape[0], -1, *moved.shape[3:])

    return jax.tree.map(join, tree)


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
    """A micro-batch: `rows` padded rows, S strips of T tokens; `prompts` lie in the rows `at`.

    `at_once` of a row's strips are computed together; it divides S.
    """

    prompts: tuple[int, ...]
    at: tuple[int, ...]
    rows: int
    prompt_len: int
    strips: int
    strip_len: int
    at_once: int
    places: tuple[Place, ...]

    @property
    def tokens(self) -> int:
        """Padded tokens."""
        return self.rows * (self.prompt_len + self.strips * self.strip_len)


LAUNCH = 1024
"""Padded tokens on a device that cost as much as one more micro-batch."""


def plan_strips(
    prompt_lens: Sequence[int],
    counts: Sequence[Sequence[int]],
    buckets: Buckets,
    *,
    token_budget: int,
    strips_at_once: int = 0,
    multiple: int = 1,
    placed: np.ndarray | None = None,
    hosts: Sequence[int] = (),
    owners: Sequence[int] = (),
) -> list[Plan]:
    """Packs responses into micro-batches, each prompt and its responses in one row.

    Rows are sorted by size and cut into micro-batches so that as little as possible is padding:
    with log-normal lengths most of a batch in arrival order would be. Every device has a row before
    one has two. A device's rows stay within the budget; where a single one does not, fewer of its
    strips are computed at once.

    Args:
      prompt_lens: length of each prompt.
      counts: for each prompt, the tokens of each of its responses; a column holds them in this
        order.
      buckets: the sizes that P and T may have.
      token_budget: padded tokens of prompts and strips that a device computes at once.
      strips_at_once: most strips of a row that are computed at once; 0 is no bound but the budget.
      multiple: devices that share a batch; rows are a multiple of it.
      placed: bool[B, G], responses to place; None is all. Those without a token have no place.
      hosts: of each of these devices' shares, where there are several (`batch_hosts`): a prompt
        lies in a row of its own host, and each has as many rows as the others.
      owners: the host of each prompt.

    Returns:
      Plans, which place every such response once.

    Raises:
      TooLong: a prompt or a response is over the largest bucket.
    """
    lengths = [list(map(int, group)) for group in counts]
    starts = _starts(lengths)
    if placed is not None:
        lengths = np.where(placed, counts, 0).tolist()
    limits = _Limits(token_budget, strips_at_once or token_budget, multiple)
    rows: list[list[_Row]] = [[] for _ in sorted({0, *hosts})]
    for prompt, group in enumerate(lengths):
        if sum(group):
            host = owners[prompt] if hosts else 0
            rows[host].append(_Row(prompt, prompt_lens[prompt], tuple(group), buckets))
    for own in rows:
        # The longest first; what decides between equals makes the order a function of the lengths
        # alone.
        own.sort(key=lambda row: (-row.size, -sum(row.lengths), -row.prompt_len, row.prompt))
    blocks = _blocks(rows, multiple // len(rows))
    cut = _micro_batches(blocks, buckets, limits)
    return [_plan(shape, own, starts, hosts) for shape, own in cut]


_Block = list[list["_Row"]]
"""A row for each device, as far as there are any; by host."""


def _blocks(rows: Sequence[Sequence[_Row]], each: int) -> list[_Block]:
    """The rows of all hosts in blocks, `each` of a host.

    host 0   a b c d e          [ a b ] [ c d ] [ e . ]
    host 1   A B C              [ A B ] [ C . ] [ . . ]
    """
    count = max(-(-len(own) // each) for own in rows)
    return [[list(own[i * each : (i + 1) * each]) for own in rows] for i in range(count)]


def _starts(lengths: list[list[int]]) -> list[list[int]]:
    """Where the tokens of each response begin in a column."""
    starts: list[list[int]] = []
    at = 0
    for group in lengths:
        ends = np.cumsum([at, *group]).tolist()
        starts.append(ends[:-1])
        at = ends[-1]
    return starts


@dataclasses.dataclass(frozen=True)
class _Limits:
    """Of a device: padded tokens and strips of a row at once; and how many share a batch."""

    tokens: int
    strips: int
    devices: int


class _Row:
    """The responses of one prompt, whose row needs strips of at least `size` tokens."""

    def __init__(self, prompt: int, prompt_len: int, lengths: tuple[int, ...], buckets: Buckets):
        self.prompt, self.prompt_len, self.lengths = prompt, prompt_len, lengths
        self.size = bucket(max(lengths), buckets.response, "a response")
        self.samples = [j for j, length in enumerate(lengths) if length > 0]
        self._packed: dict[int, list[list[int]]] = {}

    def packed(self, size: int) -> list[list[int]]:
        """The samples in each strip of `size` tokens."""
        if size not in self._packed:
            strips = pack_first_fit([self.lengths[j] for j in self.samples], size)
            self._packed[size] = [[self.samples[k] for k in members] for members in strips]
        return self._packed[size]


@dataclasses.dataclass(frozen=True)
class _Shape:
    """The sizes of a micro-batch."""

    rows: int
    prompt_len: int
    strips: int
    strip_len: int
    at_once: int

    @property
    def tokens(self) -> int:
        return self.rows * (self.prompt_len + self.strips * self.strip_len)


def _shape(blocks: Sequence[_Block], buckets: Buckets, limits: _Limits) -> _Shape | None:
    """The sizes of a micro-batch of these blocks; None where a device would have too much."""
    rows = _rows(blocks)
    strip_len = max(row.size for row in rows)
    prompt_len = bucket(max(row.prompt_len for row in rows), buckets.prompt, "a prompt")
    strips = strips_for(max(len(row.packed(strip_len)) for row in rows))
    padded = rows_for(len(blocks) * limits.devices, limits.devices)
    each = padded // limits.devices
    shares = [n for n in range(1, strips + 1) if strips % n == 0 and n <= limits.strips]
    fit = [n for n in shares if each * (prompt_len + n * strip_len) <= limits.tokens]
    # Several rows are computed together, or not at all; a single one may have to take longer.
    if each > 1 and shares[-1] not in fit:
        return None
    return _Shape(padded, prompt_len, strips, strip_len, at_once=max(fit, default=1))


def _rows(blocks: Sequence[_Block]) -> list[_Row]:
    """The rows of some blocks, host by host."""
    by_host = zip(*blocks, strict=True)
    joined = itertools.chain.from_iterable
    return list(joined(joined(own) for own in by_host))


def _micro_batches(
    blocks: Sequence[_Block], buckets: Buckets, limits: _Limits
) -> list[tuple[_Shape, Sequence[_Block]]]:
    """The blocks, in order, cut where least is padded.

    cheapest[i]    of the first i blocks: what they cost, where the last cut is
    """
    launch = LAUNCH * limits.devices
    cheapest: list[tuple[int, int, _Shape | None]] = [(0, 0, None)]
    for end in range(1, len(blocks) + 1):
        options = []
        for first in reversed(range(end)):
            shape = _shape(blocks[first:end], buckets, limits)
            if shape is None:
                break
            options.append((cheapest[first][0] + shape.tokens + launch, first, shape))
        cheapest.append(min(options, key=lambda option: option[:2]))
    cut: list[tuple[_Shape, Sequence[_Block]]] = []
    end = len(blocks)
    while end:
        _, first, shape = cheapest[end]
        assert shape is not None
        cut.append((shape, blocks[first:end]))
        end = first
    return cut[::-1]


def _plan(
    shape: _Shape,
    blocks: Sequence[_Block],
    starts: Sequence[Sequence[int]],
    hosts: Sequence[int],
) -> Plan:
    """The micro-batch of these blocks, every response in its place."""
    places: list[Place] = []
    rows, at = _rows(blocks), []
    for own, free in zip(zip(*blocks, strict=True), slots(hosts, shape.rows), strict=True):
        at += free[: sum(map(len, own))]
    for number, row in zip(at, rows, strict=True):
        for s, members in enumerate(row.packed(shape.strip_len)):
            offset = 0
            for segment, j in enumerate(members, 1):
                start, length = starts[row.prompt][j], row.lengths[j]
                places.append(Place(row.prompt, j, start, number, s, offset, length, segment))
                offset += length
    prompts = tuple(row.prompt for row in rows)
    return Plan(prompts, tuple(at), **dataclasses.asdict(shape), places=tuple(places))


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


def make_strips(plan: Plan, prompts: Prompts, token_n: np.ndarray) -> Strips:
    """The arrays of a plan.

    Args:
      prompts: the prompts that the plan's numbers refer to.
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
    prompts: Prompts,
    buckets: Buckets,
    media: Mapping[str, PatchGeometry],
    *,
    multiple: int = 1,
    hosts: Sequence[int] = (),
) -> PromptBatch:
    """The prompt rows of a plan; `multiple` and `hosts` as of `make_batch`."""
    chosen = [prompts[i] for i in plan.prompts]
    return make_batch(chosen, buckets, media, rows=plan.rows, multiple=multiple, hosts=hosts)
