"""`score`: log-probs of given responses, by the function that training differentiates."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import numpy as np

from jaxr1.inputs.batch import Buckets, EncodedPrompt
from jaxr1.inputs.processor import Processor
from jaxr1.inputs.strips import Plan, gather, make_strips, plan_prompts, plan_strips
from jaxr1.inputs.template import Prompt
from jaxr1.models import vlm
from jaxr1.models.vlm import Model
from jaxr1.parallel import batch_multiple, mesh_of, place_rows
from jaxr1.sampling.generate import encode_all


@functools.partial(jax.jit, static_argnames=("model", "forbidden"))
def score_batch(model: Model, params: dict, batch, strips, temperature, forbidden: tuple[int, ...]):
    """Log-probs and entropies float32[B, S, T] of packed responses."""
    params = vlm.cast(model, params)
    with vlm.exactly(model, "score"):
        prompt = vlm.prefill(model, params, batch)
        return vlm.response_logp(model, params, prompt, strips, temperature=temperature, forbidden=forbidden)


def score_plans(
    model: Model,
    params: dict,
    prompts: Sequence[EncodedPrompt],
    tokens: Sequence[Sequence[np.ndarray]],
    plans: Sequence[Plan],
    buckets: Buckets,
    *,
    temperature: float,
    forbidden: tuple[int, ...],
) -> dict[tuple[int, int], np.ndarray]:
    """{(prompt, sample): float32 log-probs} of the responses that the plans place."""
    mesh, out = mesh_of(params), {}
    ones = [[1.0] * len(t) for t in tokens]
    with jax.set_mesh(mesh):
        for plan in plans:
            batch = plan_prompts(plan, prompts, buckets, model.layout, multiple=batch_multiple(mesh, model.rules))
            strips = make_strips(plan, prompts, tokens, ones)
            logp, _ = score_batch(
                model,
                params,
                place_rows(batch, mesh, model.rules),
                place_rows(strips, mesh, model.rules),
                np.float32(temperature),
                forbidden,
            )
            out.update(gather(plan, np.asarray(logp)))
    return out


def score(
    model: Model,
    params: dict,
    processor: Processor,
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[np.ndarray]],
    temperature: float = 1.0,
    *,
    token_budget: int = 16384,
) -> list[list[np.ndarray]]:
    """log p(token | prompt, earlier tokens) of every response, with the media ids out of the normaliser.

    Args:
      responses: for each prompt, a list of responses, each int[n] token ids.
      temperature: of the distribution, > 0.
      token_budget: padded tokens that are computed at once.

    Returns:
      For each prompt, for each response, float32[n].

    Raises:
      ValueError: an empty response, a media id, or an id outside the vocabulary; names prompt, response and position.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be over 0, got {temperature}")
    if len(prompts) != len(responses):
        raise ValueError(f"{len(prompts)} prompts but {len(responses)} lists of responses")
    tokens: list[list[np.ndarray]] = []
    for i, group in enumerate(responses):
        tokens.append([])
        for j, response in enumerate(group):
            ids = np.asarray(response)
            if ids.ndim != 1 or ids.size == 0 or not np.issubdtype(ids.dtype, np.integer):
                raise ValueError(f"response {j} of prompt {i} must be a non-empty list of token ids")
            for what, bad in (
                ("outside the vocabulary", (ids < 0) | (ids >= model.text.vocab)),
                ("a media id", np.isin(ids, processor.media_token_ids)),
            ):
                if bad.any():
                    at = int(np.flatnonzero(bad)[0])
                    raise ValueError(f"response {j} of prompt {i}: id {ids[at]} at position {at} is {what}")
            tokens[-1].append(ids.astype(np.int32))
    encoded = encode_all(processor, prompts)
    longest = max((len(t) for group in tokens for t in group), default=1)
    buckets = Buckets.fitting(encoded, longest)
    lengths = [[len(t) for t in group] for group in tokens]
    plans = plan_strips(
        [len(p) for p in encoded],
        lengths,
        buckets,
        token_budget=token_budget,
        multiple=batch_multiple(mesh_of(params), model.rules),
    )
    found = score_plans(
        model, params, encoded, tokens, plans, buckets, temperature=temperature, forbidden=processor.media_token_ids
    )
    return [[found[i, j] for j in range(len(group))] for i, group in enumerate(tokens)]
