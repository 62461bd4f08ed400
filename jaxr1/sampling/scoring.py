"""`score`: log-probs of given responses, by the function that training differentiates."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxr1.inputs.ahead import in_batches
from jaxr1.inputs.batch import fitting_buckets
from jaxr1.inputs.placed import PlacedRows
from jaxr1.inputs.planning import plan_strips
from jaxr1.inputs.processor import Processor
from jaxr1.inputs.sizes import Buckets
from jaxr1.inputs.strips import Plan, Prompts, Strips, gather, make_strips, map_chunks
from jaxr1.inputs.template import Prompt
from jaxr1.models import vlm
from jaxr1.models.said import HIDDEN, said
from jaxr1.models.vlm import Model
from jaxr1.parallel import batch_hosts, batch_multiple, fetch, mesh_of, place_rows
from jaxr1.sampling.generate import Asked

READS = ("logp",)


@functools.partial(jax.jit, static_argnames=("model", "reads", "forbidden", "at_once"))
def score_batch(
    model: Model,
    params: dict,
    batch,
    strips: Strips,
    temperature,
    reads: tuple[str, ...],
    forbidden: tuple[int, ...],
    at_once: int,
) -> dict[str, jax.Array]:
    """What the model says of packed responses, {name: [B, S, T]}; see `models.said`.

    Args:
      at_once: strips of a row that are computed together (`Plan.at_once`).
    """
    params = vlm.cast(model, params)
    asked = dict(temperature=temperature, forbidden=forbidden)
    with vlm.exactly(model, "score"):
        prompt = vlm.prefill(model, params, batch)
        ask = lambda some: said(model, params, prompt, some, reads, **asked)
        if at_once >= strips.token_bst.shape[1]:
            return ask(strips)
        return map_chunks(ask, strips, strips, at_once)


def score_plans(
    model: Model,
    params: dict,
    prompts: Prompts,
    plans: Sequence[Plan],
    token_n: np.ndarray,
    buckets: Buckets,
    *,
    temperature: float,
    forbidden: tuple[int, ...],
    reads: tuple[str, ...] = READS,
    check: Callable[[], None] = lambda: None,
    placed: PlacedRows | None = None,
) -> dict[str, np.ndarray]:
    """Columns of what the model says of the responses that the plans place; 0 for all others.

    Args:
      prompts: the prompts that the plans' numbers refer to.
      token_n: int32[N], the tokens of all responses.
      reads: names of the columns; see `models.said`.
      check: called before each micro-batch; what it raises ends the scoring.
      placed: the plans' prompt rows that are on the devices already, and where they are kept for
        the next pass; None keeps none.

    Returns:
      {name: float32[N]}; "hidden" is bfloat16[N, D].
    """
    mesh, placed = mesh_of(params), PlacedRows(0) if placed is None else placed
    columns = {name: np.zeros(len(token_n), np.float32) for name in reads}
    if HIDDEN in reads:
        columns[HIDDEN] = np.zeros((len(token_n), model.text.width), jnp.bfloat16)
    for plan in plans:
        check()
        strips = make_strips(plan, prompts, token_n)
        with jax.set_mesh(mesh):
            batch = placed.rows(plan, prompts, buckets, model.media, mesh, model.rules).batch
            strips = place_rows(strips, mesh, model.rules)
            heat, at_once = np.float32(temperature), plan.at_once
            found = score_batch(model, params, batch, strips, heat, reads, forbidden, at_once)
        for name, array_bst in found.items():
            gather(plan, fetch(array_bst), columns[name])
    return columns


def score(
    model: Model,
    params: dict,
    processor: Processor,
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[np.ndarray]],
    temperature: float = 1.0,
    *,
    token_budget: int = 8192,
) -> list[list[np.ndarray]]:
    """log p(token | prompt, earlier tokens) of responses, without media ids in the normaliser.

    Media are decoded a micro-batch at a time, while the one before is scored; all headers are read
    first.

    Args:
      responses: for each prompt, a list of responses, each int[n] token ids.
      temperature: of the distribution, > 0.
      token_budget: padded tokens that are computed at once.

    Returns:
      For each prompt, for each response, float32[n].

    Raises:
      ValueError: an empty response, a media id, or an id outside the vocabulary; names prompt,
        response and position.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be over 0, got {temperature}")
    if len(prompts) != len(responses):
        raise ValueError(f"{len(prompts)} prompts but {len(responses)} lists of responses")
    counts: list[list[int]] = []
    tokens: list[np.ndarray] = []
    for i, group in enumerate(responses):
        checked = [
            check_ids(response, f"response {j} of prompt {i}", model.text.vocab, processor)
            for j, response in enumerate(group)
        ]
        counts.append([len(ids) for ids in checked])
        tokens += checked
    asked = Asked(processor, prompts)
    longest = max((len(ids) for ids in tokens), default=1)
    buckets = fitting_buckets(asked.measured, longest)
    plans = plan_strips(
        [len(p) for p in asked.measured],
        counts,
        buckets,
        token_budget=token_budget,
        multiple=batch_multiple(mesh_of(params), model.rules),
        hosts=batch_hosts(mesh_of(params), model.rules),
        owners=[prompt.host for prompt in asked.measured],
    )
    token_n = np.concatenate([np.zeros(0, np.int32), *tokens])
    column = np.zeros(len(token_n), np.float32)
    chosen = [plan.prompts for plan in plans]
    for plan, encoded in zip(plans, in_batches(asked.encode, chosen), strict=True):
        found = score_plans(
            model,
            params,
            dict(zip(plan.prompts, encoded, strict=True)),
            [plan],
            token_n,
            buckets,
            temperature=temperature,
            forbidden=processor.media_token_ids,
        )
        column += found["logp"]  # 0 for what another plan places
    each = iter(np.split(column, np.cumsum([len(ids) for ids in tokens])))
    return [list(itertools.islice(each, len(group))) for group in counts]


def check_ids(
    response: Sequence[int] | np.ndarray, name: str, vocab: int, processor: Processor
) -> np.ndarray:
    """int32[n]: the token ids of a response.

    Raises:
      ValueError: as `score`; the message begins with `name`.
    """
    ids = np.asarray(response)
    if ids.ndim != 1 or ids.size == 0 or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"{name} must be a non-empty list of token ids")
    outside, media = (ids < 0) | (ids >= vocab), np.isin(ids, processor.media_token_ids)
    for what, bad in (("outside the vocabulary", outside), ("a media id", media)):
        if bad.any():
            at = int(np.flatnonzero(bad)[0])
            raise ValueError(f"{name}: id {ids[at]} at position {at} is {what}")
    return ids.astype(np.int32)
