"""GGUF files of llama.cpp, turned into complete Hugging Face directories.

Reading and dequantising are the `gguf` package's. Nothing here needs torch.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxr1.checkpoints.huggingface import replacing
from jaxr1.checkpoints.tensors import (
    CheckpointError,
    LazyTensor,
    itemised,
    listed,
    write_checkpoint,
)
from jaxr1.checkpoints.tokenizers import (
    BYTE,
    UNKNOWN,
    Piece,
    byte_level_pipeline,
    sentencepiece_pipeline,
)

# Settings of files whose computation the plain models do not do.
REFUSED = (
    "expert_count",
    "attention.sliding_window",
    "rope.scaling.factor",
    "rope.scale_linear",
    "logit_scale",
    "residual_scale",
    "embedding_scale",
    "attention.scale",
)
# Per tensor the Hugging Face name and the sizes of its dimensions: vocabulary v, width d,
# feed-forward f, n = heads * head size, k = key/value heads * head size.
TOP = {
    "token_embd.weight": ("model.embed_tokens.weight", "vd"),
    "output_norm.weight": ("model.norm.weight", "d"),
    "output.weight": ("lm_head.weight", "vd"),
}
LAYER = {
    "attn_norm": ("input_layernorm", "d"),
    "attn_q": ("self_attn.q_proj", "nd"),
    "attn_k": ("self_attn.k_proj", "kd"),
    "attn_v": ("self_attn.v_proj", "kd"),
    "attn_output": ("self_attn.o_proj", "dn"),
    "ffn_norm": ("post_attention_layernorm", "d"),
    "ffn_gate": ("mlp.gate_proj", "fd"),
    "ffn_up": ("mlp.up_proj", "fd"),
    "ffn_down": ("mlp.down_proj", "df"),
}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """How the files of one llama.cpp architecture become a Hugging Face model.

    Attributes:
      model: Hugging Face's class.
      biased: blocks that have a bias beside their weight.
      permuted: blocks whose rows llama.cpp orders by rotated pairs (see `_unpermute`).
    """

    model: str
    biased: tuple[str, ...] = ()
    permuted: tuple[str, ...] = ()


ARCHITECTURES = {
    "llama": Architecture("LlamaForCausalLM", permuted=("attn_q", "attn_k")),
    "qwen2": Architecture("Qwen2ForCausalLM", biased=("attn_q", "attn_k", "attn_v")),
}


@dataclasses.dataclass(frozen=True)
class GgufFile:
    """An opened file.

    Attributes:
      path: the file.
      values: its metadata, by key.
      tensors: the `gguf` package's tensors by name, mapped.
      dequantize: of the `gguf` package.
    """

    path: Path
    values: dict[str, Any]
    tensors: dict[str, Any]
    dequantize: Callable

    def get(self, key: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        """A value of the metadata; a list where `kind` is list.

        Raises:
          CheckpointError: it is missing and has no default, or is of another type.
        """
        value = self.values.get(key, default)
        if value is None:
            raise CheckpointError(f"{self.path}: {key} is missing")
        if not isinstance(value, kind):
            raise CheckpointError(f"{self.path}: {key} is {value!r:.80}")
        return value


def open_gguf(path: Path) -> GgufFile:
    """Opens a file.

    Raises:
      CheckpointError: the `gguf` package is not installed, or the file is none that it can read.
    """
    try:
        import gguf
    except ImportError as e:
        raise CheckpointError("GGUF files need the gguf package: pip install gguf") from e
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        reader = gguf.GGUFReader(path)
        values = {key: field.contents() for key, field in reader.fields.items()}
        tensors = {tensor.name: tensor for tensor in reader.tensors}
    except Exception as e:  # whatever the parser meets in a damaged file
        raise CheckpointError(
            f"{path}: not a GGUF file, or damaged ({type(e).__name__}: {e!s:.200})"
        ) from e
    return GgufFile(path, values, tensors, gguf.dequantize)


def convert_gguf(path: Path, out: Path, dtype: str = "bfloat16") -> Path:
    """Writes the Hugging Face directory of a GGUF file of the Llama or Qwen2 architecture.

    Args:
      path: the file, quantised or not.
      out: the directory; what stood there before is replaced.
      dtype: of the weights.

    Returns:
      The directory.

    Raises:
      CheckpointError: the file is damaged, of another architecture, has tensors, settings or a
        tokenizer that are not supported, or lacks some; the message names the file and what is
        wrong.
    """
    file = open_gguf(path)
    config = _config(file, dtype)
    tensors = _tensors(file, config, dtype)
    tokenizer = _tokenizer(file)
    with replacing(Path(out)) as partial:
        (partial / "config.json").write_text(json.dumps(config, indent=2))
        (partial / "generation_config.json").write_text(json.dumps(_generation(file), indent=2))
        tokenizer.save_pretrained(partial)
        settings = json.loads((partial / "tokenizer_config.json").read_text())
        # the name that transformers 4 knows too
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        (partial / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
        write_checkpoint(partial, tensors)
    return Path(out)


def _real(value: float) -> float:
    """The shortest number that is this float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _config(file: GgufFile, dtype: str) -> dict:
    """The config.json."""
    kind = file.get("general.architecture", str)
    if kind not in ARCHITECTURES:
        raise CheckpointError(
            f"{file.path}: architecture {kind!r} is not supported; supported: "
            f"{', '.join(ARCHITECTURES)}"
        )
    said = {key: file.values.get(f"{kind}.{key}") for key in REFUSED}
    refused = [f"{key} = {value}" for key, value in said.items() if value not in (None, 0, 1)]
    if file.get(f"{kind}.rope.scaling.type", str, "none") != "none":
        refused.append(f"rope.scaling.type = {file.values[f'{kind}.rope.scaling.type']}")
    if refused:
        raise CheckpointError(f"{file.path}: settings that are not supported: {listed(refused)}")
    width = file.get(f"{kind}.embedding_length", int)
    heads = file.get(f"{kind}.attention.head_count", int)
    embed = file.tensors.get("token_embd.weight")
    if embed is None:
        raise CheckpointError(f"{file.path}: tensor token_embd.weight is missing")
    sizes = {
        file.get(f"{kind}.{key}", int, width // heads)
        for key in ("attention.key_length", "attention.value_length", "rope.dimension_count")
    }
    if len(sizes) != 1:
        raise CheckpointError(
            f"{file.path}: heads whose keys, values and rotary part differ in size: {sorted(sizes)}"
        )
    return {
        "architectures": [ARCHITECTURES[kind].model],
        "model_type": kind,
        # the file's order of dimensions is the reverse of Hugging Face's
        "vocab_size": int(embed.shape[1]),
        "hidden_size": width,
        "intermediate_size": file.get(f"{kind}.feed_forward_length", int),
        "num_hidden_layers": file.get(f"{kind}.block_count", int),
        "num_attention_heads": heads,
        "num_key_value_heads": file.get(f"{kind}.attention.head_count_kv", int, heads),
        "head_dim": sizes.pop(),
        "hidden_act": "silu",
        "max_position_embeddings": file.get(f"{kind}.context_length", int),
        "rms_norm_eps": _real(file.get(f"{kind}.attention.layer_norm_rms_epsilon", float)),
        "rope_theta": _real(file.get(f"{kind}.rope.freq_base", float, 10000.0)),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": False,
        "mlp_bias": False,
        **{key: value for key, value in _generation(file).items() if key != "do_sample"},
        "torch_dtype": dtype,
    }


def _ids(file: GgufFile) -> dict[str, int]:
    """Ids of the special tokens that the file names: {"bos": 1, ...}."""
    names = {"bos": "bos", "eos": "eos", "eot": "eot", "unk": "unknown", "pad": "padding"}
    found = {name: file.values.get(f"tokenizer.ggml.{key}_token_id") for name, key in names.items()}
    size = len(file.get("tokenizer.ggml.tokens", list))
    ids = {name: int(i) for name, i in found.items() if i is not None and i >= 0}
    wrong = [f"{name} {i}" for name, i in ids.items() if i >= size]
    if wrong:
        raise CheckpointError(
            f"{file.path}: special tokens outside the vocabulary of {size}: {listed(wrong)}"
        )
    return ids


def _generation(file: GgufFile) -> dict:
    """The generation_config.json."""
    ids = _ids(file)
    stops = list(dict.fromkeys(ids[name] for name in ("eos", "eot") if name in ids))
    said: dict[str, Any] = {"do_sample": False}
    if "bos" in ids:
        said["bos_token_id"] = ids["bos"]
    if stops:
        said["eos_token_id"] = stops[0] if len(stops) == 1 else stops
    if "pad" in ids:
        said["pad_token_id"] = ids["pad"]
    return said


def _tensors(file: GgufFile, config: dict, dtype: str) -> list[tuple[str, LazyTensor]]:
    """Every tensor under its Hugging Face name, dequantised when it is written."""
    wanted = _wanted(config, headless="output.weight" not in file.tensors)
    stored = {name: tuple(map(int, reversed(t.shape))) for name, t in file.tensors.items()}
    _check_tensors(file, wanted, stored)
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    permuted = ARCHITECTURES[config["model_type"]].permuted

    def make(name: str) -> np.ndarray:
        tensor = file.tensors[name]
        try:
            array = file.dequantize(tensor.data, tensor.tensor_type).reshape(stored[name])
        except NotImplementedError as e:
            raise CheckpointError(
                f"{file.path}: tensor {name} is quantised as {tensor.tensor_type.name}"
            ) from e
        block = name.split(".")[-2]
        if block in permuted:
            array = _unpermute(array, heads[block])
        return array.astype(jnp.dtype(dtype))

    return [
        (hf_name, LazyTensor(shape, jnp.dtype(dtype), functools.partial(make, name)))
        for name, (hf_name, shape) in wanted.items()
    ]


def _wanted(config: dict, headless: bool) -> dict[str, tuple[str, tuple[int, ...]]]:
    """{the file's name: (Hugging Face name, shape)} of all tensors that the settings ask for."""
    size = {
        "v": config["vocab_size"],
        "d": config["hidden_size"],
        "f": config["intermediate_size"],
        "n": config["num_attention_heads"] * config["head_dim"],
        "k": config["num_key_value_heads"] * config["head_dim"],
    }
    biased = ARCHITECTURES[config["model_type"]].biased
    wanted: dict[str, tuple[str, tuple[int, ...]]] = {}
    for own, (name, sizes) in TOP.items():
        if not (headless and own == "output.weight"):
            wanted[own] = name, tuple(size[letter] for letter in sizes)
    for block, (name, sizes) in LAYER.items():
        shape = tuple(size[letter] for letter in sizes)
        for i in range(config["num_hidden_layers"]):
            wanted[f"blk.{i}.{block}.weight"] = f"model.layers.{i}.{name}.weight", shape
            if block in biased:
                wanted[f"blk.{i}.{block}.bias"] = f"model.layers.{i}.{name}.bias", shape[:1]
    return wanted


def _check_tensors(
    file: GgufFile,
    wanted: dict[str, tuple[str, tuple[int, ...]]],
    stored: dict[str, tuple[int, ...]],
) -> None:
    """Refuses a file with tensors that are missing, unknown or of another shape."""
    wrong = [
        f"{name} is {list(stored[name])}, the settings say {list(shape)}"
        for name, (_, shape) in wanted.items()
        if name in stored and stored[name] != shape
    ]
    problems = {
        "missing tensors": [name for name in wanted if name not in stored],
        "tensors of another shape": wrong,
        "unexpected tensors": [name for name in stored if name not in wanted],
    }
    if any(problems.values()):
        raise CheckpointError(
            f"{file.path}: the tensors do not fit the settings{itemised(problems)}"
        )


def _unpermute(array: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys [heads * H, D] as Hugging Face orders them.

    llama.cpp rotates neighbouring pairs, Hugging Face a row of the first half of a head with one of
    the second:

      file            a0 b0 a1 b1 a2 b2
      Hugging Face    a0 a1 a2 b0 b1 b2
    """
    return array.reshape(heads, -1, 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def _tokenizer(file: GgufFile):
    """The tokenizer, with the file's chat template."""
    from transformers import PreTrainedTokenizerFast

    tokens = file.get("tokenizer.ggml.tokens", list)
    kinds = file.get("tokenizer.ggml.token_type", list)
    model = file.get("tokenizer.ggml.model", str)
    scores = file.get("tokenizer.ggml.scores", list, [0.0] * len(tokens))
    if not len(tokens) == len(kinds) == len(scores):
        raise CheckpointError(
            f"{file.path}: {len(tokens)} tokens, {len(kinds)} token types, {len(scores)} scores"
        )
    pieces = [Piece(*entry) for entry in zip(tokens, scores, kinds, strict=True)]
    ids = _ids(file)
    split = file.get("tokenizer.ggml.pre", str, "default") if model == "gpt2" else ""
    try:
        if model == "llama":
            if "unk" in ids:
                pieces[ids["unk"]] = pieces[ids["unk"]]._replace(kind=UNKNOWN)
            prefix = file.get("tokenizer.ggml.add_space_prefix", bool, True)
            pipeline = sentencepiece_pipeline(pieces, byte_fallback=BYTE in kinds, prefix=prefix)
        elif model == "gpt2":
            pipeline = byte_level_pipeline(pieces, file.get("tokenizer.ggml.merges", list), split)
        else:
            raise CheckpointError(
                f"a tokenizer of the kind {model!r} is not supported; supported: llama, gpt2"
            )
    except CheckpointError as e:
        raise CheckpointError(f"{file.path}: {e}") from e
    special = {
        f"{name}_token": tokens[ids[name]] for name in ("bos", "eos", "unk", "pad") if name in ids
    }
    # llama.cpp puts the first token in front where a file of these two kinds does not say
    first = model == "llama" or split == "llama-bpe"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=pipeline,
        **special,
        add_bos_token=file.get("tokenizer.ggml.add_bos_token", bool, first) and "bos" in ids,
        add_eos_token=file.get("tokenizer.ggml.add_eos_token", bool, False) and "eos" in ids,
        clean_up_tokenization_spaces=False,
        model_max_length=file.get(f"{file.values['general.architecture']}.context_length", int),
    )
    template = file.values.get("tokenizer.chat_template")
    if template:
        tokenizer.chat_template = template
    return tokenizer
