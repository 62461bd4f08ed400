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
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxr1.inputs.arrangement import PatchGeometry
from jaxr1.inputs.batch import EncodedPrompt, PromptBatch, make_batch
from jaxr1.inputs.sizes import Buckets

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


def map_chunks(function: Callable[[Any], Any], whole: Any, strips: Strips, size: int) -> Any:
    """`function` of some strips of each row after the others, up to the last used one; 0 behind it.

    Args:
      function: of arrays [B, size, T, ...] as `whole` has them of all strips; gives such arrays.
      whole: the strips themselves, or what lies in them.
      strips: say which are used.
      size: strips of a row at once; divides S.

    Returns:
      Arrays [B, S, T, ...].
    """
    chunks = cut_strips(whole, size)
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
    """A micro-batch: `rows` padded rows, S strips of T tokens; `prompts` lie in the rows `at`.

    `at_once` of a row's strips are computed together; it divides S. Those behind `used`, a multiple
    of it, are not computed.
    """

    prompts: tuple[int, ...]
    at: tuple[int, ...]
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


def fill(plan: Plan, column: np.ndarray) -> np.ndarray:
    """[B, S, T, ...]: the tokens' numbers of a column [N, ...], each at its response's place; 0 at
    padding.
    """
    out = np.zeros((plan.rows, plan.strips, plan.strip_len, *column.shape[1:]), column.dtype)
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
    return make_batch(
        chosen,
        buckets,
        media,
        rows=plan.rows,
        width=plan.prompt_len,
        multiple=multiple,
        hosts=hosts,
    )
