"""The shapes that micro-batches may have: few, and known from the options alone.

    cell       prompts of up to P tokens, strips of T          from the buckets
    its rows   R, R / 4, R / 16, ... on each device             what the budget holds of them
    at once    strips of each row                              so many that it has enough to do

How many strips a row has is no part of a shape: programs loop over them, some at once, and stop
behind the last one that holds a token (`Plan.used`).

    R rows of P    [ p p p p p . . ]  [ a a ] [ b c ] | [ d . ] [ . . ]
                   [ p p p . . . . ]  [ e e ] [ f f ] | [ . . ] [ . . ]
                                       first two      | second two: the loop ends here
"""

from __future__ import annotations

import dataclasses
import functools

from jaxr1.inputs.sizes import Buckets, power_of_two

LAUNCH = 512
"""Padded tokens on a device that cost as much as one more micro-batch."""

CELL = 1024
"""Padded tokens on a device that a further cell must save in a step: a shape that is needed once
in a hundred steps costs more to compile than it ever saves.
"""

FEWER = 4
"""Between the numbers of rows that a cell may have."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What bounds the shapes, besides the buckets.

    Attributes:
      tokens: padded tokens that a device computes at once.
      strips: of a row that are computed at once.
      devices: that share a batch; rows are a multiple of it.
      prompts: most that an optimiser step (or a call) has.
      group: responses of a prompt, the most that there are.
    """

    tokens: int
    strips: int
    devices: int
    prompts: int
    group: int


@dataclasses.dataclass(frozen=True)
class Shape:
    """The sizes of a micro-batch: what its programs are compiled for.

    Attributes:
      rows: B, of all devices.
      prompt_len: P.
      strips: S, of the arrays; a multiple of `at_once` that holds each response alone.
      strip_len: T.
      at_once: strips of a row that are computed together.
    """

    rows: int
    prompt_len: int
    strips: int
    strip_len: int
    at_once: int

    def tokens(self, used: int) -> int:
        """Padded tokens that are computed where the fullest row has `used` strips."""
        return self.rows * (self.prompt_len + self.chunks(used) * self.at_once * self.strip_len)

    def chunks(self, used: int) -> int:
        """Turns of the loop over strips."""
        return -(-used // self.at_once)


@functools.lru_cache(maxsize=256)
def list_shapes(buckets: Buckets, limits: Limits) -> tuple[tuple[Shape, ...], ...]:
    """All shapes, those of a cell together, most rows first."""
    cells = []
    for prompt_len in buckets.prompt:
        for strip_len in buckets.response:
            cells.append(_cell(prompt_len, strip_len, limits))
    return tuple(cells)


def _cell(prompt_len: int, strip_len: int, limits: Limits) -> tuple[Shape, ...]:
    """The shapes for prompts of up to P tokens and strips of T."""
    most = min(limits.group, limits.strips)
    fits = lambda rows, at_once: rows * (prompt_len + at_once * strip_len) <= limits.tokens

    # A sixteenth of the budget for the strips of a row: the fewer there are at once, the less of
    # the last turn is padding.
    few = max(1, min(most, limits.tokens // 16 // strip_len))
    while few > 1 and not fits(1, few):
        few -= 1
    rows, needed = 1, power_of_two(-(-limits.prompts // limits.devices))
    while rows < needed and fits(2 * rows, few):
        rows *= 2

    found = []
    while rows:
        # Few rows take more strips each: a turn should be large, for it adds a whole gradient.
        at_once = few
        while at_once < most and rows * at_once * strip_len < limits.tokens // 8:
            if not fits(rows, min(2 * at_once, most)):
                break
            at_once = min(2 * at_once, most)
        strips = -(-limits.group // at_once) * at_once
        shape = Shape(rows * limits.devices, prompt_len, strips, strip_len, at_once)
        found.append(shape)
        rows //= FEWER
    return tuple(found)
