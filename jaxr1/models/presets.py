"""Built-in models: made on first use as Hugging Face directories, so that they go through the same loader as real ones."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path

import jax.numpy as jnp

from jaxr1.checkpoints import tensors
from jaxr1.checkpoints.huggingface import hf_tensors
from jaxr1.models import families
from jaxr1.nn.params import count, flatten, init_params
from jaxr1.parallel import DEFAULT_RULES, single_device_mesh

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
INTERN = ("<img>", "<IMG_CONTEXT>", "</img>")  # fmt: skip
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif c['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# The words of the built-in data; other text falls back to single bytes.
CORPUS = (
    "user assistant system What is the sum of the digits in the picture product difference largest smallest? "
    "A conversation between User and Assistant. The user asks a question about the image, and the Assistant solves it. "
    "The assistant first thinks about the reasoning process in the mind and then provides the user with the answer. "
    "User: Assistant: Let me solve this step by step. "
    "How many Which object is left right above below behind in front of closer to farther from camera than "
    "red green blue yellow orange purple black white circle square triangle star diamond shapes are there relation "
    "count depth distance options answer with letter (A) (B) (C) (D) one two three four five six seven eight nine "
)


@dataclasses.dataclass(frozen=True)
class Preset:
    """Sizes of a built-in model.

    With the hub's rotary base (10000) and sections, neighbouring columns of so small a head differ by a thousandth of
    a radian: the decoder could not tell the left digit from the right one. Hence the small base and the wide sections.
    Likewise `image_mean` is the grey of paper, so that what is left of a patch is ink.
    """

    family: str = "qwen2_vl"
    width: int = 128
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    mlp: int = 384
    vision_width: int = 128
    vision_depth: int = 2
    vision_heads: int = 4
    vision_mlp_ratio: int = 4
    patch_size: int = 14
    vocab: int = 512
    min_pixels: int = 28 * 28
    max_pixels: int = 224 * 224
    tile: int = 56
    max_tiles: int = 1
    rope_theta: float = 10.0
    image_mean: float = 0.97
    image_std: float = 0.5
    seed: int = 0


PRESETS = {
    "tiny": Preset(),
    "tiny-qwen2_5_vl": Preset("qwen2_5_vl"),
    "tiny-qwen3_vl": Preset("qwen3_vl"),
    "tiny-internvl": Preset("internvl"),
}
DRAWING = 2  # counts changes of how parameters are drawn, so that a cache of older ones is not used
ARCHITECTURES = {
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "internvl": "InternVLForConditionalGeneration",
}


def cache_folder() -> Path:
    """Where presets are kept: $JAXR1_CACHE, or jaxr1 in the user's cache folder."""
    if os.environ.get("JAXR1_CACHE"):
        return Path(os.environ["JAXR1_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxr1"


def make_tokenizer(vocab: int, special: tuple[str, ...] = SPECIAL):
    """A byte-level BPE tokenizer trained on the words of the built-in data; digits stay single tokens."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    split = Regex(r"[0-9]| ?[A-Za-z]+| ?[^\sA-Za-z0-9]|\s+")
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(split, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab - len(TAGS),
        special_tokens=list(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator([CORPUS], trainer)
    core.add_tokens([AddedToken(t, special=False, normalized=False) for t in TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHAT_TEMPLATE
    )


def raw_config(preset: Preset, token_id) -> dict:
    """The config.json of a preset, in the spelling of its family's files on the hub."""
    half = preset.width // preset.heads // 2
    # Of the rotary frequencies, shares for rows and columns; time gets the rest.
    space = half // 3 if preset.family == "qwen3_vl" else 7 * half // 16
    mrope = {"mrope_section": [half - 2 * space, space, space]}
    text = {
        "vocab_size": preset.vocab,
        "hidden_size": preset.width,
        "intermediate_size": preset.mlp,
        "num_hidden_layers": preset.layers,
        "num_attention_heads": preset.heads,
        "num_key_value_heads": preset.kv_heads,
        "head_dim": preset.width // preset.heads,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "rope_theta": preset.rope_theta,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "initializer_range": 0.05,
    }
    media = {
        "image_token_id": token_id("<|image_pad|>"),
        "video_token_id": token_id("<|video_pad|>"),
        "vision_start_token_id": token_id("<|vision_start|>"),
        "vision_end_token_id": token_id("<|vision_end|>"),
        "vision_token_id": token_id("<|vision_pad|>"),
    }
    common = {
        "architectures": [ARCHITECTURES[preset.family]],
        "model_type": preset.family,
        "torch_dtype": "float32",
        "tie_word_embeddings": True,
        "bos_token_id": token_id("<|endoftext|>"),
        "eos_token_id": token_id("<|im_end|>"),
    }
    vision: dict = {"initializer_range": 0.05}
    mlp = preset.vision_width * preset.vision_mlp_ratio
    if preset.family == "internvl":
        vision |= {
            "hidden_size": preset.vision_width,
            "num_hidden_layers": preset.vision_depth,
            "num_attention_heads": preset.vision_heads,
            "intermediate_size": mlp,
            "image_size": [preset.tile, preset.tile],
            "patch_size": [preset.patch_size, preset.patch_size],
            "attention_bias": True,
            "model_type": "internvl_vision",
        }
        inner = {
            **text,
            "model_type": "qwen2",
            "rope_parameters": {"rope_type": "default", "rope_theta": preset.rope_theta},
        }
        sizes = {
            "image_token_id": token_id("<IMG_CONTEXT>"),
            "image_seq_length": (preset.tile // preset.patch_size // 2) ** 2,
            "downsample_ratio": 0.5,
        }
        return {**common, **sizes, "text_config": inner, "vision_config": vision}
    vision |= {
        "depth": preset.vision_depth,
        "num_heads": preset.vision_heads,
        "patch_size": preset.patch_size,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "model_type": preset.family,
    }
    if preset.family == "qwen2_vl":
        vision |= {
            "embed_dim": preset.vision_width,
            "hidden_size": preset.width,
            "mlp_ratio": preset.vision_mlp_ratio,
            "in_chans": 3,
            "hidden_act": "quick_gelu",
        }
        return {**common, **text, **media, "rope_scaling": {"type": "mrope", **mrope}, "vision_config": vision}
    vision |= {
        "hidden_size": preset.vision_width,
        "out_hidden_size": preset.width,
        "intermediate_size": mlp,
        "in_channels": 3,
    }
    if preset.family == "qwen2_5_vl":
        vision |= {"window_size": 4 * preset.patch_size, "fullatt_block_indexes": [preset.vision_depth - 1],
                   "tokens_per_second": 2, "hidden_act": "silu"}  # fmt: skip
        return {**common, **text, **media, "rope_scaling": {"type": "mrope", **mrope}, "vision_config": vision}
    side = -(-int(preset.max_pixels**0.5) // preset.patch_size)
    vision |= {"num_position_embeddings": side**2, "deepstack_visual_indexes": [0], "hidden_act": "gelu_pytorch_tanh"}
    rope = {"rope_type": "default", "mrope_interleaved": True, "rope_theta": preset.rope_theta, **mrope}
    inner = {**text, "model_type": "qwen3_vl_text", "rope_parameters": rope}
    return {**common, **media, "text_config": inner, "vision_config": vision}


def preset_directory(name: str) -> Path:
    """The directory of a preset, made by atomic rename when it is not in the cache (two processes may race)."""
    preset = PRESETS[name]
    parts = [dataclasses.asdict(preset), CHAT_TEMPLATE, CORPUS, raw_config(preset, str), DRAWING]
    recipe = json.dumps(parts, sort_keys=True)
    out = cache_folder() / f"{name}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    if (out / "config.json").is_file():
        return out
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    write_preset(preset, partial)
    try:
        os.replace(partial, out)
    except OSError:  # another process was first: its directory is the same
        shutil.rmtree(partial, ignore_errors=True)
    return out


def write_preset(preset: Preset, out: Path) -> None:
    """Writes a preset as a complete Hugging Face directory."""
    out.mkdir(parents=True)
    tokenizer = make_tokenizer(preset.vocab, SPECIAL + INTERN if preset.family == "internvl" else SPECIAL)
    tokenizer.save_pretrained(out)
    raw = raw_config(preset, tokenizer.convert_tokens_to_ids)
    (out / "config.json").write_text(json.dumps(raw, indent=2))
    (out / "generation_config.json").write_text(json.dumps({"eos_token_id": [raw["eos_token_id"]]}))
    image: dict = {"image_mean": [preset.image_mean] * 3, "image_std": [preset.image_std] * 3}
    if preset.family == "internvl":
        image |= {
            "image_processor_type": "GotOcr2ImageProcessor",
            "crop_to_patches": True,
            "min_patches": 1,
            "max_patches": preset.max_tiles,
            "size": {"height": preset.tile, "width": preset.tile},
        }
    else:
        image |= {
            "image_processor_type": "Qwen2VLImageProcessor",
            "min_pixels": preset.min_pixels,
            "max_pixels": preset.max_pixels,
            "patch_size": preset.patch_size,
            "temporal_patch_size": 2,
            "merge_size": 2,
        }
    (out / "preprocessor_config.json").write_text(json.dumps(image, indent=2))
    table = preset_table(raw)
    params = init_params(table, preset.seed, "float32", single_device_mesh(), DEFAULT_RULES)
    tensors.write_checkpoint(out, hf_tensors(flatten(params), table, jnp.dtype("float32")))


def preset_table(raw: dict):
    """The parameter table of a preset, under the names that its files have."""
    family = raw["model_type"]
    return families.table(family, raw, *families.configs(raw), families.LAYOUTS[family][0])


def preset_parameters(name: str) -> int:
    """Number of parameters of a preset."""
    return count(preset_table(raw_config(PRESETS[name], lambda _: 0)))
