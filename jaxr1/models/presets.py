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
from jaxr1.models import qwen2_vl
from jaxr1.nn.params import count, flatten, init_params
from jaxr1.parallel import DEFAULT_RULES, single_device_mesh

SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
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
    rope_theta: float = 10.0
    image_mean: float = 0.97
    image_std: float = 0.5
    seed: int = 0


PRESETS = {"tiny": Preset()}


def cache_folder() -> Path:
    """Where presets are kept: $JAXR1_CACHE, or jaxr1 in the user's cache folder."""
    if os.environ.get("JAXR1_CACHE"):
        return Path(os.environ["JAXR1_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxr1"


def make_tokenizer(vocab: int):
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
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator([CORPUS], trainer)
    core.add_tokens([AddedToken(t, special=False, normalized=False) for t in TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHAT_TEMPLATE
    )


def raw_config(preset: Preset, token_id) -> dict:
    """The config.json of a preset, in the spelling of the hub's Qwen2-VL files."""
    half = preset.width // preset.heads // 2
    space = 7 * half // 16  # of the rotary frequencies for rows, as many for columns, the rest for time
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        "vocab_size": preset.vocab,
        "hidden_size": preset.width,
        "intermediate_size": preset.mlp,
        "num_hidden_layers": preset.layers,
        "num_attention_heads": preset.heads,
        "num_key_value_heads": preset.kv_heads,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "rope_theta": preset.rope_theta,
        "rope_scaling": {"type": "mrope", "mrope_section": [half - 2 * space, space, space]},
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "torch_dtype": "float32",
        "initializer_range": 0.05,
        "bos_token_id": token_id("<|endoftext|>"),
        "eos_token_id": token_id("<|im_end|>"),
        "image_token_id": token_id("<|image_pad|>"),
        "video_token_id": token_id("<|video_pad|>"),
        "vision_start_token_id": token_id("<|vision_start|>"),
        "vision_end_token_id": token_id("<|vision_end|>"),
        "vision_token_id": token_id("<|vision_pad|>"),
        "vision_config": {
            "depth": preset.vision_depth,
            "embed_dim": preset.vision_width,
            "hidden_size": preset.width,
            "mlp_ratio": preset.vision_mlp_ratio,
            "num_heads": preset.vision_heads,
            "in_chans": 3,
            "patch_size": preset.patch_size,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "hidden_act": "quick_gelu",
            "initializer_range": 0.05,
            "model_type": "qwen2_vl",
        },
    }


def preset_directory(name: str) -> Path:
    """The directory of a preset, made by atomic rename when it is not in the cache (two processes may race)."""
    preset = PRESETS[name]
    recipe = json.dumps([dataclasses.asdict(preset), CHAT_TEMPLATE, CORPUS, raw_config(preset, str)], sort_keys=True)
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
    tokenizer = make_tokenizer(preset.vocab)
    tokenizer.save_pretrained(out)
    raw = raw_config(preset, tokenizer.convert_tokens_to_ids)
    (out / "config.json").write_text(json.dumps(raw, indent=2))
    (out / "generation_config.json").write_text(json.dumps({"eos_token_id": [raw["eos_token_id"]]}))
    image = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "min_pixels": preset.min_pixels,
        "max_pixels": preset.max_pixels,
        "patch_size": preset.patch_size,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [preset.image_mean] * 3,
        "image_std": [preset.image_std] * 3,
    }
    (out / "preprocessor_config.json").write_text(json.dumps(image, indent=2))
    text, vision = qwen2_vl.text_config(raw), qwen2_vl.vision_config(raw["vision_config"])
    table = qwen2_vl.table(text, vision, "visual.", "model.", "lm_head.weight")
    params = init_params(table, preset.seed, "float32", single_device_mesh(), DEFAULT_RULES)
    tensors.write_checkpoint(out, hf_tensors(flatten(params), table, jnp.dtype("float32")))


def preset_parameters(name: str) -> int:
    """Number of parameters of a preset."""
    raw = raw_config(PRESETS[name], lambda _: 0)
    text, vision = qwen2_vl.text_config(raw), qwen2_vl.vision_config(raw["vision_config"])
    return count(qwen2_vl.table(text, vision, "", "", ""))
