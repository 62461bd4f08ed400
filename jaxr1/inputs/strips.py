"""Responses in strips: which response lies where, and the arrays that say so.

    prompt row     [ v v v v t t t t . . ]                  one of B rows
    its strips     [ a a a a a a a a a a . . ]              S strips of T tokens
                   [ b b b b c c c d d d d d ]
    segments       [ 1 1 1 1 1 1 1 1 1 1 0 0 ]
                   [ 1 1 1 1 2 2 2 3 3 3 3 3 ]

A plan fixes sizes and places on the host; arrays are then filled from columns, which hold one
number for each token of each response. A prompt is computed once: all of its responses are in its
row, whose strips are computed some at a time (`inputs.shapes`).

    column  [ a a a a b b c c c d d d d d ]       start of d: 9
"""

from __future__ import annotations

import dataclasses
import itertools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxr1.inputs.batch import EncodedPrompt, PromptBatch, make_batch
from jaxr1.inputs.patches import PatchGeometry
from jaxr1.inputs.shapes import CELL, LAUNCH, Limits, Shape, list_shapes
from jaxr1.inputs.sizes import Buckets, bucket, pack_first_fit

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


def used_chunks(strips: Strips, size: int) -> Any:
    """int32 scalar: chunks of `cut_strips` up to the last one that holds a token."""
    is_used_s = (strips.segment_bst > 0).any((0, 2))
    last = jnp.where(is_used_s, jnp.arange(1, len(is_used_s) + 1), 0).max()
    return -(-last // size)


def map_chunks(function: Callable[[Strips], Any], strips: Strips, size: int) -> Any:
    """`function` of some strips of each row after the others, up to the last used one; 0 behind it.

    Args:
      function: of strips; gives arrays [B, size, T, ...].
      size: strips of a row at once; divides S.

    Returns:
      Arrays [B, S, T, ...].
    """
    chunks = cut_strips(strips, size)
    like = jax.eval_shape(function, jax.tree.map(operator.itemgetter(0), chunks))
    count = strips.token_bst.shape[1] // size
    out = jax.tree.map(lambda x: jnp.zeros((count, *x.shape), x.dtype), like)

    def one(i: jax.Array, out: Any) -> Any:
        found = function(jax.tree.map(operator.itemgetter(i), chunks))
        return jax.tree.map(lambda out, x: out.at[i].set(x), out, found)

    return join_strips(jax.lax.fori_loop(0, used_chunks(strips, size), one, out))


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
    """A micro-batch: `rows` padded rows, the real ones in `prompts`; S strips of T tokens.

    `at_once` of a row's strips are computed together; it divides S. Those behind `used`, a multiple
    of it, are not computed.
    """

    prompts: tuple[int, ...]
    rows: int
    prompt_len: int
    strips: int
    strip_len: int
    at_once: int
    used: int
    places: tuple[Place, ...]

    @property
    def tokens(self) -> int:
        """Padded tokens that are computed."""
        return self.rows * (self.prompt_len + self.used * self.strip_len)


def plan_strips(
    prompt_lens: Sequence[int],
    counts: Sequence[Sequence[int]],
    buckets: Buckets,
    *,
    token_budget: int,
    strips_at_once: int = 0,
    multiple: int = 1,
    placed: np.ndarray | None = None,
) -> list[Plan]:
    """Packs responses into micro-batches, each prompt and its responses in one row.

    Micro-batches have the shapes of `list_shapes`. Rows are sorted by size and cut so that as
    little as possible is padding: with log-normal lengths most of a batch in arrival order would
    be. Every device has a row before one has two. What a device computes at once stays within the
    budget, but for a single row of which no strip would fit beside its prompt.

    Args:
      prompt_lens: length of each prompt.
      counts: for each prompt, the tokens of each of its responses; a column holds them in this
        order.
      buckets: the sizes that P and T may have.
      token_budget: padded tokens of prompts and strips that a device computes at once.
      strips_at_once: most strips of a row that are computed at once; 0 is no bound but the budget.
      multiple: devices that share a batch; rows are a multiple of it.
      placed: bool[B, G], responses to place; None is all. Those without a token have no place.

    Returns:
      Plans, which place every such response once.

    Raises:
      TooLong: a prompt or a response is over the largest bucket.
    """
    lengths = [list(map(int, group)) for group in counts]
    starts = _starts(lengths)
    if placed is not None:
        lengths = np.where(placed, counts, 0).tolist()
    limits = Limits(
        token_budget,
        strips_at_once or token_budget,
        multiple,
        prompts=max(1, len(counts)),
        group=max(map(len, counts), default=1) or 1,
    )
    rows = []
    for prompt, group in enumerate(lengths):
        if sum(group):
            rows.append(_Row(prompt, prompt_lens[prompt], tuple(group), buckets))
    cells = [_Cell(shapes, rows, multiple) for shapes in list_shapes(buckets, limits)]
    return [_plan(shape, own, starts) for shape, own in _micro_batches(rows, cells)]


def _starts(lengths: list[list[int]]) -> list[list[int]]:
    """Where the tokens of each response begin in a column."""
    starts: list[list[int]] = []
    at = 0
    for group in lengths:
        ends = np.cumsum([at, *group]).tolist()
        starts.append(ends[:-1])
        at = ends[-1]
    return starts


class _Row:
    """The responses of one prompt; the smallest sizes that hold them are P and T."""

    def __init__(self, prompt: int, prompt_len: int, lengths: tuple[int, ...], buckets: Buckets):
        self.prompt, self.lengths = prompt, lengths
        self.prompt_len = bucket(prompt_len, buckets.prompt, "a prompt")
        self.strip_len = bucket(max(lengths), buckets.response, "a response")
        self.samples = [j for j, length in enumerate(lengths) if length > 0]
        self._packed: dict[int, list[list[int]]] = {}
        # What decides between equals makes the order a function of the lengths alone.
        self.order = (-sum(lengths), -prompt_len, prompt)

    def packed(self, size: int) -> list[list[int]]:
        """The samples in each strip of `size` tokens."""
        if size not in self._packed:
            strips = pack_first_fit([self.lengths[j] for j in self.samples], size)
            self._packed[size] = [[self.samples[k] for k in members] for members in strips]
        return self._packed[size]


_Cut = list[tuple[Shape, list[_Row]]]


class _Cell:
    """The shapes of one cell, most rows first, and what the rows that fit cost there."""

    def __init__(self, shapes: Sequence[Shape], rows: Sequence[_Row], devices: int):
        self.shapes, self.devices = shapes, devices
        self.cost: dict[int, int] = {}
        largest = shapes[0]
        for i, row in enumerate(rows):
            if row.prompt_len <= largest.prompt_len and row.strip_len <= largest.strip_len:
                self.cost[i] = largest.tokens(len(row.packed(largest.strip_len))) // largest.rows

    def cut(self, rows: Sequence[_Row]) -> tuple[int, _Cut]:
        """These rows, the longest first, cut where least is padded; and what a device pays.

        cheapest[i]    of the rows from block i on: what they cost, their first shape
        """
        size = self.shapes[0].strip_len
        ordered = sorted(rows, key=lambda row: (-len(row.packed(size)), *row.order))
        blocks = [ordered[i : i + self.devices] for i in range(0, len(rows), self.devices)]
        cheapest: list[tuple[int, Shape]] = [(0, self.shapes[0])] * (len(blocks) + 1)
        for i, block in reversed(list(enumerate(blocks))):
            options = []
            for shape in self.shapes:
                rest = cheapest[min(len(blocks), i + shape.rows // self.devices)][0]
                tokens = shape.tokens(len(block[0].packed(size))) // self.devices
                options.append((tokens + LAUNCH + rest, shape))
            cheapest[i] = min(options, key=lambda option: option[0])
        cut: _Cut = []
        i = 0
        while i < len(blocks):
            shape = cheapest[i][1]
            count = shape.rows // self.devices
            cut.append((shape, list(itertools.chain(*blocks[i : i + count]))))
            i += count
        return cheapest[0][0], cut


def _micro_batches(rows: Sequence[_Row], cells: Sequence[_Cell]) -> _Cut:
    """The rows in micro-batches of listed shapes.

    It begins with the one cell that costs least for all rows, and adds the cell that saves most,
    until none saves as much as a shape costs to have.
    """
    if not rows:
        return []
    whole = [(cell,) for cell in cells if len(cell.cost) == len(rows)]
    chosen, (cost, cut) = _cheapest(rows, whole)
    while True:
        wider = [(*chosen, cell) for cell in cells if cell not in chosen]
        if not wider:
            return cut
        others, (less, found) = _cheapest(rows, wider)
        if less >= cost:
            return cut
        chosen, cost, cut = others, less, found


def _cheapest(
    rows: Sequence[_Row], choices: Iterable[tuple[_Cell, ...]]
) -> tuple[tuple[_Cell, ...], tuple[int, _Cut]]:
    """The cells, of several choices, in which the rows cost least; and their micro-batches."""
    cuts = [(cells, _cut(rows, cells)) for cells in choices]
    return min(cuts, key=lambda option: option[1][0])


def _cut(rows: Sequence[_Row], cells: Sequence[_Cell]) -> tuple[int, _Cut]:
    """Each row in the cell where it costs least: what a device pays, and the micro-batches."""
    members: dict[int, list[_Row]] = {}
    for i, row in enumerate(rows):
        costs = [(cell.cost[i], number) for number, cell in enumerate(cells) if i in cell.cost]
        members.setdefault(min(costs)[1], []).append(row)
    total, cut = CELL * len(members), []
    for number, own in sorted(members.items()):
        cost, found = cells[number].cut(own)
        total += cost
        cut += found
    return total, cut


def _plan(shape: Shape, rows: Sequence[_Row], starts: Sequence[Sequence[int]]) -> Plan:
    """The micro-batch of these rows, every response in its place."""
    places: list[Place] = []
    for number, row in enumerate(rows):
        for s, members in enumerate(row.packed(shape.strip_len)):
            offset = 0
            for segment, j in enumerate(members, 1):
                start, length = starts[row.prompt][j], row.lengths[j]
                places.append(Place(row.prompt, j, start, number, s, offset, length, segment))
                offset += length
    prompts = tuple(row.prompt for row in rows)
    used = max(len(row.packed(shape.strip_len)) for row in rows)
    used = shape.chunks(used) * shape.at_once
    return Plan(prompts, **dataclasses.asdict(shape), used=used, places=tuple(places))


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
) -> PromptBatch:
    """The prompt rows of a plan."""
    chosen = [prompts[i] for i in plan.prompts]
    return make_batch(
        chosen,
        buckets,
        media,
        rows=plan.rows,
        width=plan.prompt_len,
        multiple=multiple,
        room=True,
    )
