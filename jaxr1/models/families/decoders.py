"""Text decoders, alone or behind a tower: Qwen2, Qwen3, Llama, InternLM2.

model_type    decoder               file layouts
qwen2         biases of q, k, v     hub
qwen3         norms of q and k      hub
llama                               hub
"""

from __future__ import annotations

import dataclasses

from jaxr1.models.families.family import Family, FileNames, activation
from jaxr1.models.text import TextConfig, TextNames
from jaxr1.nn.layers import RopeScaling

UNSUPPORTED = (
    "use_sliding_window",
    "attention_bias",
    "mlp_bias",
    "bias",
    "dual_chunk_attention_config",
)


@dataclasses.dataclass(frozen=True)
class Decoder:
    """What distinguishes one kind of decoder.

    Attributes:
      qkv_bias: q, k and v have biases.
      qk_norm: q and k are normed over each head.
      fused: files hold q, k and v in one matrix, under InternLM2's names.
      sections: shares of the rotary frequencies for time, rows and columns, behind a tower.
      interleaved: the shares alternate.
    """

    qkv_bias: bool = False
    qk_norm: bool = False
    fused: bool = False
    sections: tuple[int, ...] = (16, 24, 24)
    interleaved: bool = False

    def names(self, prefix: str, head: str) -> TextNames:
        """Hugging Face names, given the decoder's prefix and the name of the output matrix."""
        make = TextNames.internlm2 if self.fused else TextNames.llama
        return make(prefix, head)


DECODERS = {
    "qwen2": Decoder(qkv_bias=True),
    "qwen3": Decoder(qk_norm=True, sections=(24, 20, 20), interleaved=True),
    "llama": Decoder(),
    "internlm2": Decoder(fused=True),
}


@dataclasses.dataclass(frozen=True)
class Defaults:
    """What settings mean where they say nothing, as the classes of transformers have them."""

    norm_eps: float = 1e-6
    rope_theta: float = 1e4


def decoder_of(settings: dict) -> Decoder:
    """The decoder that settings name by their `model_type`.

    Raises:
      ValueError: one that is not supported.
    """
    kind = settings.get("model_type")
    if kind not in DECODERS:
        known = ", ".join(DECODERS)
        raise ValueError(f"config.json: the decoder {kind!r} is not supported; supported: {known}")
    return DECODERS[kind]


def text_config(
    text: dict,
    decoder: Decoder,
    defaults: Defaults = Defaults(),
    *,
    tied: bool | None = None,
    mrope: bool = False,
) -> TextConfig:
    """Sizes and options of a decoder.

    Args:
      text: its settings.
      tied: whether the output matrix is the embedding; None is what `text` says.
      mrope: positions have a time, a row and a column.

    Raises:
      KeyError: a size is missing.
      ValueError: a setting that the decoder does not have.
    """
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    for key in UNSUPPORTED:
        if text.get(key):
            raise ValueError(f"config.json: {key} is not supported")
    if "sliding_attention" in (text.get("layer_types") or ()):
        raise ValueError("config.json: layer_types with sliding_attention is not supported")
    if (rope.get("partial_rotary_factor") or text.get("partial_rotary_factor") or 1.0) != 1.0:
        raise ValueError("config.json: a partial_rotary_factor other than 1 is not supported")
    heads, width = text["num_attention_heads"], text["hidden_size"]
    size = text.get("head_dim") or width // heads
    sections: tuple[int, ...] = ()
    if mrope:
        sections = tuple(rope.get("mrope_section", decoder.sections))
        if sum(sections) != size // 2:
            raise ValueError(
                f"config.json: mrope_section {sections} must "
                f"add up to half the head size, {size // 2}"
            )
    theta = rope.get("rope_theta", text.get("rope_theta", defaults.rope_theta))
    return TextConfig(
        vocab=text["vocab_size"],
        width=width,
        mlp=text["intermediate_size"],
        layers=text["num_hidden_layers"],
        heads=heads,
        kv_heads=text.get("num_key_value_heads") or heads,
        head_size=size,
        norm_eps=text.get("rms_norm_eps", defaults.norm_eps),
        rope_theta=float(theta),
        rope_scaling=_rope_scaling(rope),
        mrope_sections=sections,
        mrope_interleaved=mrope and decoder.interleaved,
        qkv_bias=decoder.qkv_bias,
        qk_norm=decoder.qk_norm,
        tied=bool(text.get("tie_word_embeddings") if tied is None else tied),
        activation=activation(text, "silu"),
        init_scale=text.get("initializer_range", 0.02),
        context=text.get("max_position_embeddings") or 0,
    )


def _rope_scaling(rope: dict) -> RopeScaling | None:
    """Raises ValueError for a kind of scaling that is not supported."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind in ("default", "mrope"):
        return None
    if kind == "dynamic":
        # Dynamic NTK stretches the frequencies of texts past the configured maximum. Here they are
        # fixed at that maximum, where they are still the plain ones: cached keys could not be
        # turned again.
        return None
    if kind == "linear":
        return RopeScaling("linear", float(rope["factor"]))
    if kind == "llama3":
        return RopeScaling(
            "llama3",
            float(rope["factor"]),
            float(rope["low_freq_factor"]),
            float(rope["high_freq_factor"]),
            int(rope["original_max_position_embeddings"]),
        )
    raise ValueError(
        f"config.json: rope type {kind!r} is not supported "
        "(default, mrope, dynamic, linear or llama3)"
    )


def _text_only(decoder: Decoder) -> Family:
    return Family(
        layouts=("hub",),
        text=lambda raw: text_config(raw, decoder),
        names=lambda layout, raw: FileNames(decoder.names("model.", "lm_head")),
    )


FAMILIES = {kind: _text_only(DECODERS[kind]) for kind in ("qwen2", "qwen3", "llama")}
