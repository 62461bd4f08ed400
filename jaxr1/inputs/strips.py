"""Responses in strips: which response lies where, and the arrays that say so.

    prompt row     [ v v v v t t t t . . ]                  one of B rows
    its strips     [ a a a a a a a a a a . . ]              S strips of T tokens
                   [ b b b b c c c d d d d d ]
    segments       [ 1 1 1 1 1 1 1 1 1 1 0 0 ]
                   [ 1 1 1 1 2 2 2 3 3 3 3 3 ]

A plan fixes sizes and places on the host; arrays are then filled from it. Rows are copies of prompts: a group whose
strips do not fit one row gets two.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from flax import struct

from jaxr1.inputs.batch import (
    Buckets,
    EncodedPrompt,
    PromptBatch,
    bucket,
    make_batch,
)
from jaxr1.inputs.patches import PatchLayout, pack_first_fit, power_of_two, rows_for


@struct.dataclass
class Strips:
    """Packed responses of B prompt rows.

    `weight_bst` is what a token counts in the loss: aggregation, group sizes and masks of tokens that the policy did
    not produce are all decided on the host, so that an objective is one sum.
    """

    token_bst: Any  # int32[B, S, T]
    media_index_bst: Any  # int32[B, S, T], -1 = a token; None = tokens only
    position_bst3: Any  # int32[B, S, T, 3]
    segment_bst: Any  # int32[B, S, T], 0 = padding
    target_bst: Any  # int32[B, S, T], the token whose log-prob stands at this place
    weight_bst: Any  # float32[B, S, T]


@dataclasses.dataclass(frozen=True)
class Place:
    """Where one response lies: row b, strip s, tokens offset .. offset + length, segment number."""

    prompt: int
    sample: int
    row: int
    strip: int
    offset: int
    length: int
    segment: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """One micro-batch: `rows` padded rows, of which `prompts` lists the real ones; S strips of T tokens each."""

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


def plan_strips(
    prompt_lens: Sequence[int],
    response_lens: Sequence[Sequence[int]],
    buckets: Buckets,
    *,
    token_budget: int,
    multiple: int = 1,
) -> list[Plan]:
    """Packs all responses into micro-batches of at most `token_budget` padded tokens (one row may exceed it).

    Rows are sorted by size, so that a micro-batch holds rows of like length: with log-normal lengths most of a
    batch in arrival order would be padding.

    Args:
      prompt_lens: length of each prompt.
      response_lens: for each prompt, the lengths of its responses; 0 leaves one out.
      buckets: the sizes that P and T may have.
      token_budget: padded tokens of prompts and strips per micro-batch.
      multiple: rows are a multiple of it.

    Returns:
      Plans, which place every response of non-zero length once.
    """
    rows: list[tuple[int, int, list[int]]] = []  # (strip length, prompt, samples)
    for i, lengths in enumerate(response_lens):
        samples = [j for j, n in enumerate(lengths) if n > 0]
        if not samples:
            continue
        size = bucket(max(lengths[j] for j in samples), buckets.response, "a response")
        bins = pack_first_fit([lengths[j] for j in samples], size)
        room = token_budget // multiple - bucket(prompt_lens[i], buckets.prompt, "a prompt")
        # A plan rounds its strips up to a power of two, so only that many fit.
        most = 1 << (max(1, room // size).bit_length() - 1)
        for first in range(0, len(bins), most):
            rows.append((size, i, [samples[k] for b in bins[first : first + most] for k in b]))
    rows.sort(key=lambda row: (-row[0], -sum(response_lens[row[1]][j] for j in row[2]), -prompt_lens[row[1]], row[1]))

    plans: list[Plan] = []
    current: list[tuple[int, int, list[int]]] = []
    best: Plan | None = None
    for row in rows:
        candidate = _plan([*current, row], prompt_lens, response_lens, buckets, multiple)
        if best is not None and candidate.tokens > token_budget:
            plans.append(best)
            current, candidate = [], _plan([row], prompt_lens, response_lens, buckets, multiple)
        current.append(row)
        best = candidate
    return [*plans, best] if best is not None else plans


def _plan(rows, prompt_lens, response_lens, buckets: Buckets, multiple: int) -> Plan:
    size = max(row[0] for row in rows)
    places, strips = [], 1
    for b, (_, i, samples) in enumerate(rows):
        bins = pack_first_fit([response_lens[i][j] for j in samples], size)
        strips = max(strips, len(bins))
        for s, members in enumerate(bins):
            offset = 0
            for number, k in enumerate(members):
                length = response_lens[i][samples[k]]
                places.append(Place(i, samples[k], b, s, offset, length, number + 1))
                offset += length
    return Plan(
        prompts=tuple(row[1] for row in rows),
        rows=rows_for(len(rows), multiple),
        prompt_len=bucket(max(prompt_lens[row[1]] for row in rows), buckets.prompt, "a prompt"),
        strips=power_of_two(strips),
        strip_len=size,
        places=tuple(places),
    )


def fill(plan: Plan, values: Sequence[Sequence[Any]], dtype=np.float32) -> np.ndarray:
    """[B, S, T]: values[prompt][sample] (an array of the response's length, or a scalar) at each response's place."""
    out = np.zeros((plan.rows, plan.strips, plan.strip_len), dtype)
    for p in plan.places:
        out[p.row, p.strip, p.offset : p.offset + p.length] = values[p.prompt][p.sample]
    return out


def gather(plan: Plan, array_bst: np.ndarray) -> dict[tuple[int, int], np.ndarray]:
    """The inverse of `fill`: {(prompt, sample): values of its tokens}."""
    return {
        (p.prompt, p.sample): np.asarray(array_bst[p.row, p.strip, p.offset : p.offset + p.length]) for p in plan.places
    }


def make_strips(
    plan: Plan, prompts: Sequence[EncodedPrompt], tokens: Sequence[Sequence[np.ndarray]], weights
) -> Strips:
    """The arrays of a plan.

    Args:
      prompts: all prompts that the plan's numbers refer to.
      tokens: tokens[prompt][sample], int32[n].
      weights: weights[prompt][sample], float32[n] or a scalar.
    """
    token = fill(plan, tokens, np.int32)
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
        weight_bst=fill(plan, weights),
    )


def plan_prompts(
    plan: Plan,
    prompts: Sequence[EncodedPrompt],
    buckets: Buckets,
    layout: PatchLayout | None,
    *,
    multiple: int = 1,
) -> PromptBatch:
    """The prompt rows of a plan."""
    chosen = [prompts[i] for i in plan.prompts]
    return make_batch(chosen, buckets, layout, rows=plan.rows, multiple=multiple)
