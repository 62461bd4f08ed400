"""Micro-batches planned: which prompts and responses lie together, in which listed shape."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from jaxr1.inputs.shapes import CELL, LAUNCH, Limits, Shape, list_shapes
from jaxr1.inputs.sizes import Buckets, bucket, pack_first_fit
from jaxr1.inputs.strips import Place, Plan
from jaxr1.parallel import slots


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
            host = owners[prompt] if hosts else 0
            rows.append(_Row(prompt, prompt_lens[prompt], tuple(group), buckets, host))
    shares = tuple(hosts) or (0,) * multiple
    cells = [_Cell(shapes, rows, shares) for shapes in list_shapes(buckets, limits)]
    return [_plan(shape, own, starts, shares) for shape, own in _micro_batches(rows, cells)]


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

    def __init__(
        self,
        prompt: int,
        prompt_len: int,
        lengths: tuple[int, ...],
        buckets: Buckets,
        host: int = 0,
    ):
        self.prompt, self.lengths, self.host = prompt, lengths, host
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

    def __init__(self, shapes: Sequence[Shape], rows: Sequence[_Row], shares: Sequence[int]):
        self.shapes, self.shares, self.devices = shapes, shares, len(shares)
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
        blocks = _blocks(ordered, self.shares)
        cheapest: list[tuple[int, Shape]] = [(0, self.shapes[0])] * (len(blocks) + 1)
        for i, block in reversed(list(enumerate(blocks))):
            options = []
            fullest = max(len(row.packed(size)) for row in block)
            for shape in self.shapes:
                rest = cheapest[min(len(blocks), i + shape.rows // self.devices)][0]
                tokens = shape.tokens(fullest) // self.devices
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


def _blocks(rows: Sequence[_Row], shares: Sequence[int]) -> list[list[_Row]]:
    """The rows, in order, in blocks of one for each device, as far as its host has any.

        rows of host 0   a b c d e       [ a b A B ]  [ c d C . ]  [ e . . . ]
        rows of host 1   A B C

    Args:
      shares: host of each device.
    """
    hosts = sorted(set(shares))
    own = [[row for row in rows if row.host == host] for host in hosts]
    each = len(shares) // len(hosts)
    count = max(-(-len(mine) // each) for mine in own)
    parts = [[mine[i * each : (i + 1) * each] for mine in own] for i in range(count)]
    return [list(itertools.chain.from_iterable(part)) for part in parts]


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


def _plan(
    shape: Shape,
    rows: Sequence[_Row],
    starts: Sequence[Sequence[int]],
    shares: Sequence[int],
) -> Plan:
    """The micro-batch of these rows, every response in its place."""
    places: list[Place] = []
    free = [iter(own) for own in slots(shares, shape.rows)]
    at = tuple(next(free[row.host]) for row in rows)
    for number, row in zip(at, rows, strict=True):
        for s, members in enumerate(row.packed(shape.strip_len)):
            offset = 0
            for segment, j in enumerate(members, 1):
                start, length = starts[row.prompt][j], row.lengths[j]
                places.append(Place(row.prompt, j, start, number, s, offset, length, segment))
                offset += length
    prompts = tuple(row.prompt for row in rows)
    used = max(len(row.packed(shape.strip_len)) for row in rows)
    used = shape.chunks(used) * shape.at_once
    return Plan(prompts, at, **dataclasses.asdict(shape), used=used, places=tuple(places))
