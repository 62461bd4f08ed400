"""The vision-language model: a tower, a merger and a decoder joined by `encode`, `prefill`, `extend` and `decode`."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from jaxr1.inputs.batch import PromptBatch
from jaxr1.inputs.strips import Strips
from jaxr1.models import qwen2_vl, text
from jaxr1.nn.logprob import token_logp
from jaxr1.nn.params import Table
from jaxr1.parallel import DEFAULT_RULES, Rules, constrain

PARTS = ("vision", "merger", "decoder")


@dataclasses.dataclass(frozen=True)
class Model:
    """A frozen, hashable description of a model; the parameters are a separate tree {vision, merger, decoder}.

    Attributes:
      family: the `model_type` of its config.json.
      text, vision: sizes and options.
      dtype: of the computation ("float32", "bfloat16"); reductions are float32.
      rules: logical axes to mesh axes.
      remat: rematerialise layers in the backward pass.
      raw_config: the config.json it came from, as text, to write it back; takes no part in comparisons.
    """

    family: str
    text: text.TextConfig
    vision: qwen2_vl.VisionConfig
    dtype: str = "float32"
    rules: Rules = DEFAULT_RULES
    remat: bool = False
    raw_config: str = dataclasses.field(default="{}", compare=False, repr=False)

    def table(self, layout: str = "v5") -> Table:
        """The parameter table under the Hugging Face names of a file layout: "v5" or "hub"."""
        visual, language = {"v5": ("model.visual.", "model.language_model."), "hub": ("visual.", "model.")}[layout]
        return qwen2_vl.table(self.text, self.vision, visual, language, "lm_head.weight")


def cast(model: Model, params):
    """The parameters in the compute dtype (the identity where they are stored in it)."""
    return jax.tree.map(lambda x: x.astype(model.dtype), params)


def encode(model: Model, params: dict, batch: PromptBatch) -> jax.Array:
    """Media embeddings [R * M / merge^2, D] of a batch, in the order that `media_index` counts."""
    feature = qwen2_vl.tower(
        model.vision,
        params["vision"],
        batch.patch_rmc.astype(model.dtype),
        batch.place_rm2,
        batch.segment_rm,
        model.rules,
        remat=model.remat,
    )
    merged = qwen2_vl.merge(model.vision, params["merger"], feature)
    return merged.reshape(-1, merged.shape[-1])


def embed(model: Model, params: dict, token: jax.Array, media_index: jax.Array | None, media: jax.Array | None):
    """Token embeddings, with media embeddings in the places that `media_index` (-1 = a token) names."""
    x = params["decoder"]["embed"][token]
    if media is None or media_index is None:
        return x
    found = media[jnp.maximum(media_index, 0)].astype(x.dtype)
    return jnp.where((media_index >= 0)[..., None], found, x)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prefilled:
    """What responses need of their prompts: keys and values [L, B, P, K, H], lengths [B], the last hidden state [B, D],
    the position of the first response token [B], and the batch's media embeddings [N, D]."""

    kv: tuple[jax.Array, jax.Array]
    length_b: jax.Array
    last_bd: jax.Array
    next_position_b: jax.Array
    media_nd: jax.Array


def prefill_hidden(model: Model, params: dict, batch: PromptBatch):
    """Hidden states [B, P, D] of prompt rows, their keys and values, and the media embeddings."""
    media = encode(model, params, batch)
    x = constrain(embed(model, params, batch.token_bp, batch.media_index_bp, media), model.rules, "batch", None, None)
    hidden, kv = text.prefill(
        model.text, params["decoder"], x, batch.position_3bp, batch.length_b, model.rules, remat=model.remat
    )
    return hidden, kv, media


def prefill(model: Model, params: dict, batch: PromptBatch) -> Prefilled:
    """Runs the prompts, images included. `params` are in the compute dtype."""
    hidden, kv, media = prefill_hidden(model, params, batch)
    last = jnp.maximum(batch.length_b - 1, 0)
    last_bd = jnp.take_along_axis(hidden, last[:, None, None], 1)[:, 0]
    return Prefilled(kv, batch.length_b, last_bd, batch.next_position_b, media)


def extend(model: Model, params: dict, prompt: Prefilled, strips: Strips) -> jax.Array:
    """Hidden states that predict each response token, aligned with the token they predict.

        token      a0 a1 a2 b0 b1        segment  1 1 1 2 2
        predicted  p  a0 a1 p  b0        p = the prompt's last hidden state

    Returns:
      [B, S, T, D].
    """
    x = embed(model, params, strips.token_bst, strips.media_index_bst, prompt.media_nd)
    hidden = text.extend(
        model.text,
        params["decoder"],
        prompt.kv,
        prompt.length_b,
        constrain(x, model.rules, "batch", None, None, None),
        strips.position_3bst,
        strips.segment_bst,
        model.rules,
        remat=model.remat,
    )
    before = jnp.pad(hidden, ((0, 0), (0, 0), (1, 0), (0, 0)))[:, :, :-1]
    segment = strips.segment_bst
    first = segment != jnp.pad(segment, ((0, 0), (0, 0), (1, 0)))[:, :, :-1]
    return jnp.where(first[..., None], prompt.last_bd[:, None, None], before)


def response_logp(
    model: Model, params: dict, prompt: Prefilled, strips: Strips, *, temperature, forbidden: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """log p(target) and entropy of every strip position, float32[B, S, T] each; 0 at padding.

    `params` are in the compute dtype. Sampling reports the same numbers from its cache (design, invariant 2).
    """
    hidden = extend(model, params, prompt, strips)
    shape = strips.target_bst.shape
    logp, entropy = token_logp(
        hidden.reshape(-1, hidden.shape[-1]),
        head(params),
        strips.target_bst.reshape(-1),
        temperature=temperature,
        forbidden=forbidden,
    )
    real = strips.segment_bst > 0
    return jnp.where(real, logp.reshape(shape), 0.0), jnp.where(real, entropy.reshape(shape), 0.0)


def head(params: dict) -> jax.Array:
    """[V, D]: the output matrix."""
    return text.head_matrix(params["decoder"])


@functools.partial(jax.jit, static_argnames="model")
def prompt_logits(model: Model, params: dict, batch: PromptBatch) -> jax.Array:
    """float32[B, P, V]: all logits of prompt rows, for comparisons on small models."""
    params = cast(model, params)
    hidden, _, _ = prefill_hidden(model, params, batch)
    return jnp.einsum("bpd,vd->bpv", hidden, head(params), preferred_element_type=jnp.float32)
