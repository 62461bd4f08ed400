"""The vision-language model: tower, merger and decoder, joined by four functions."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxr1.checkpoints.tensors import CheckpointError
from jaxr1.inputs.batch import PATCHES, PromptBatch
from jaxr1.inputs.patches import PatchGeometry, PatchRows
from jaxr1.inputs.strips import Strips
from jaxr1.models import text, vit
from jaxr1.models.families.table import FAMILIES
from jaxr1.models.spare import where_used
from jaxr1.nn.logprob import tempered_logits
from jaxr1.nn.lora import ADAPTERS, Lora, adapter_table, attach
from jaxr1.nn.params import Table, flatten, nest
from jaxr1.parallel import DEFAULT_RULES, Rules, constrain, map_rows

DTYPES = ("float32", "bfloat16", "float16")


DECODER = "decoder"  # the part of a model that reads tokens; others are those of its towers
VALUE = "value"  # the part of a critic that makes a number of a hidden state


@dataclasses.dataclass(frozen=True)
class Tower:
    """What makes embeddings of one kind of media: two parts of the parameter tree.

    Attributes:
      kind: of media, the key of its rows in `PromptBatch.media`.
      part: the tower.
      merger: what brings its output to the decoder's width.
      geometry: what batches must know of it.
    """

    kind: str
    part: str
    merger: str
    geometry: PatchGeometry


@dataclasses.dataclass(frozen=True)
class Model:
    """A frozen, hashable description; parameters are a tree {vision, merger, decoder} apart.

    Attributes:
      family: the `model_type` of its config.json.
      text, vision: sizes and options; a text-only model has no vision (and no parts vision and
        merger).
      dtype: of the computation ("float32", "bfloat16"); reductions are float32.
      rules: logical axes to mesh axes.
      remat: rematerialise layers in the backward pass.
      lora: the adapters that the parameters hold, if any.
      has_value: a critic: it has a value head in place of an output matrix of its own.
      raw_config: the text of its config.json, to write it back; takes no part in comparisons.
    """

    family: str
    text: text.TextConfig
    vision: vit.VisionConfig | None
    dtype: str = "float32"
    rules: Rules = DEFAULT_RULES
    remat: bool = False
    lora: Lora | None = None
    has_value: bool = False
    raw_config: str = dataclasses.field(default="{}", compare=False, repr=False)

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of the parameter tree, in the order of the computation."""
        return tuple(dict.fromkeys(path.partition("/")[0] for path in self.table()))

    @property
    def towers(self) -> tuple[Tower, ...]:
        """One for each kind of media that the model takes."""
        if self.vision is None:
            return ()
        return (Tower(PATCHES, "vision", "merger", self.vision.geometry),)

    @property
    def media(self) -> dict[str, PatchGeometry]:
        """What batches must know of each kind of media."""
        return {tower.kind: tower.geometry for tower in self.towers}

    def table(self, names: str = "") -> Table:
        """The parameter table, every tensor under its part: vision/..., merger/..., decoder/...

        Args:
          names: the file layout whose Hugging Face names it holds; "" is the one that is saved.
        """
        family = FAMILIES[self.family]
        named = family.names(names or family.layouts[0], json.loads(self.raw_config))
        parts: dict[str, Table] = {}
        if self.vision is not None:
            assert named.vision is not None
            parts["vision"], parts["merger"] = vit.vision_table(self.vision, named.vision)
        parts["decoder"] = text.text_table(self.text, named.text)
        table: Table = {}
        for part, entries in parts.items():
            table |= {f"{part}/{path}": param for path, param in entries.items()}
        if self.has_value:
            table.pop("decoder/head", None)
            table[f"{VALUE}/kernel"] = text.value_kernel(self.text.width)
        return table

    def axes(self) -> dict[str, tuple[str | None, ...]]:
        """The logical axes of every parameter by its path, of adapters too ("lora/...")."""
        table = self.table()
        adapters = adapter_table(table, self.lora) if self.lora is not None else {}
        return {path: p.axes for path, p in table.items()} | {
            f"{ADAPTERS}/{path}": p.axes for path, p in adapters.items()
        }


def describe(
    raw: dict, *, dtype: str = "float32", rules: Rules = DEFAULT_RULES, remat: bool = False
) -> Model:
    """The model that a parsed config.json describes.

    Raises:
      CheckpointError: a model_type that is not supported (says which are), a setting that the
        family's decoder does not have, or a missing one.
      ValueError: an unknown dtype.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if raw["model_type"] not in FAMILIES:
        raise CheckpointError(
            f"model_type {raw['model_type']!r} is not supported; supported: {', '.join(FAMILIES)}"
        )
    family = FAMILIES[raw["model_type"]]
    try:
        text = family.text(raw)
        vision = family.vision(raw, text) if family.vision is not None else None
    except KeyError as e:
        raise CheckpointError(f"config.json has no {e.args[0]!r}") from e
    except ValueError as e:
        raise CheckpointError(str(e)) from e
    return Model(
        family=raw["model_type"],
        text=text,
        vision=vision,
        dtype=dtype,
        rules=rules,
        remat=remat,
        raw_config=json.dumps(raw),
    )


def cast(model: Model, params: dict) -> dict:
    """The parameters as they are computed with: matrices in the compute dtype, adapters beside
    them, the rest in float32.

    The rest is norms, biases and tables of embeddings, cheap to compute with and with gradients
    that are sums over all tokens (`nn.layers.add`). The output matrix is cast where it is used
    (`nn.logprob`).
    """
    table = model.table()
    if ADAPTERS in params:
        assert model.lora is not None
        params = attach(params, table, model.lora)
    is_matrix = lambda path: path not in table or table[path].transpose  # adapters are in no table
    return nest(
        {
            path: x.astype(model.dtype if is_matrix(path) else jnp.float32)
            for path, x in flatten(params).items()
        }
    )


def exactly(model: Model, scope: str) -> contextlib.ExitStack:
    """The context of tracing: a name for profiles, products as exact as the compute dtype.

    Accelerators multiply float32 in TensorFloat-32 or in bfloat16 passes unless they are told
    otherwise.
    """
    stack = contextlib.ExitStack()
    stack.enter_context(jax.named_scope(scope))
    if model.dtype == "float32":
        stack.enter_context(jax.default_matmul_precision("float32"))
    return stack


def tower(model: Model, params: dict, rows: PatchRows) -> jax.Array:
    """The tower's output [R, M, C] on patch rows, before the merger."""
    assert model.vision is not None
    return vit.tower(model.vision, params["vision"], rows, model.rules, remat=model.remat)


def encode_patches(model: Model, params: dict, rows: PatchRows) -> jax.Array:
    """Embeddings [R * M / merge^2, (1 + deep) * D] of patch rows.

    Rows may hold what a frozen tower or merger gave (`PatchRows.held`): then only the rest is
    computed.
    """
    assert model.vision is not None
    if rows.held == "pixels":
        out = tower(model, params, rows)
    else:
        out = rows.patch_rmc.astype(model.dtype)
    if rows.held != "merger":
        out = vit.merge(model.vision, params["merger"], out)
    return out.reshape(-1, out.shape[-1])


ENCODERS = {PATCHES: encode_patches}


def encode(
    model: Model, params: dict, media: Mapping[str, PatchRows], at_once: int = 0
) -> jax.Array | None:
    """Embeddings of all media in the order that `media_index` counts; None of none.

    Args:
      at_once: places of media rows that a device computes at once; 0 is all.
    """
    found = []
    for kind, rows in media.items():
        count, length = rows.segment_rm.shape

        def run(rows, kind=kind):
            made = ENCODERS[kind](model, params, rows)
            return made.reshape(rows.segment_rm.shape[0], -1, made.shape[-1])

        def some(rows, run=run, most=at_once // length if at_once else count):
            return map_rows(run, rows, most, model.rules)

        made = where_used(some, rows, model.rules) if rows.spare else some(rows)
        found.append(made.reshape(-1, made.shape[-1]))
    return jnp.concatenate(found) if found else None


def embed(
    model: Model,
    params: dict,
    token: jax.Array,
    media_index: jax.Array | None,
    media: jax.Array | None,
) -> tuple[jax.Array, jax.Array | None]:
    """Token embeddings [..., D], media where `media_index` names them (-1 = a token).

    Returns:
      The embeddings, and what DeepStack adds to the output of the first K layers, [K, ..., D] (0 at
      tokens), or None.
    """
    # Looked up where each part of the table is: else devices would bring it together.
    everywhere = constrain(token, model.rules, *[None] * token.ndim)
    x = params["decoder"]["embed"][everywhere]
    x = constrain(x, model.rules, *[None] * token.ndim, "embed").astype(model.dtype)
    x = constrain(x, model.rules, "batch", *[None] * token.ndim)
    if media is None or media_index is None:
        return x, None
    is_media = (media_index >= 0)[..., None]
    found = media[jnp.maximum(media_index, 0)].astype(x.dtype)
    own, *deep = jnp.split(found, media.shape[-1] // x.shape[-1], -1)
    added = jnp.stack([jnp.where(is_media, d, 0) for d in deep]) if deep else None
    return jnp.where(is_media, own, x), added


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prefilled:
    """What responses need of their prompts: keys and values [L, B, P, K, H], lengths [B], the last
    hidden state [B, D], the position of the first response token [B], and the batch's media
    embeddings [N, ...] or None.
    """

    kv: tuple[jax.Array, jax.Array]
    length_b: jax.Array
    last_bd: jax.Array
    next_position_b: jax.Array
    media_nd: jax.Array | None


def prefill_hidden(model: Model, params: dict, batch: PromptBatch, tokens_at_once: int = 0):
    """Hidden states [B, P, D] of prompt rows, their keys and values, and the media embeddings.

    Args:
      tokens_at_once: padded tokens that a device computes at once, and four times as many patches;
        0 is all.
    """
    media = encode(model, params, batch.media, 4 * tokens_at_once)
    x, deep = embed(model, params, batch.token_bp, batch.media_index_bp, media)
    first = lambda a: None if a is None else jnp.moveaxis(a, 0, 1)

    def run(rows):
        x, position, length, deep = rows
        hidden, kv = text.prefill(
            model.text,
            params["decoder"],
            constrain(x, model.rules, "batch", None, None),
            position,
            length,
            model.rules,
            deep_kbpd=first(deep),
            remat=model.remat,
        )
        return hidden, jax.tree.map(first, kv)

    rows = (x, batch.position_bp3, batch.length_b, first(deep))
    count, width = batch.token_bp.shape
    at_once = tokens_at_once // width if tokens_at_once else count
    hidden, kv = map_rows(run, rows, at_once, model.rules)
    return hidden, jax.tree.map(first, kv), media


def prefill(model: Model, params: dict, batch: PromptBatch, tokens_at_once: int = 0) -> Prefilled:
    """Runs the prompts, images included. `params` are from `cast`; see also `prefill_hidden`."""
    hidden, kv, media = prefill_hidden(model, params, batch, tokens_at_once)
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
    x, deep = embed(model, params, strips.token_bst, strips.media_index_bst, prompt.media_nd)
    hidden = text.extend(
        model.text,
        params["decoder"],
        prompt.kv,
        prompt.length_b,
        constrain(x, model.rules, "batch", None, None, None),
        strips.position_bst3,
        strips.segment_bst,
        model.rules,
        deep_kbstd=deep,
        remat=model.remat,
    )
    before = jnp.pad(hidden, ((0, 0), (0, 0), (1, 0), (0, 0)))[:, :, :-1]
    segment = strips.segment_bst
    first = segment != jnp.pad(segment, ((0, 0), (0, 0), (1, 0)))[:, :, :-1]
    return jnp.where(first[..., None], prompt.last_bd[:, None, None], before)


def head(params: dict) -> jax.Array:
    """[V, D]: the output matrix, in the dtype of its storage or float32."""
    return text.head_matrix(params["decoder"])


@functools.partial(jax.jit, static_argnames="model")
def prompt_logits(model: Model, params: dict, batch: PromptBatch) -> jax.Array:
    """float32[B, P, V]: all logits of prompt rows, for comparisons on small models."""
    params = cast(model, params)
    with exactly(model, "logits"):
        hidden, _, _ = prefill_hidden(model, params, batch)
        return tempered_logits(hidden, head(params).astype(model.dtype), 1.0, ())
