"""Built-in models, made on first use as Hugging Face directories, loaded like real ones."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path

import jax.numpy as jnp

from jaxr1.base.files import cache_folder
from jaxr1.checkpoints.tensors import write_checkpoint
from jaxr1.checkpoints.weights import hf_tensors
from jaxr1.models.families.family import Preset, PresetFiles
from jaxr1.models.families.table import FAMILIES
from jaxr1.models.vlm import describe
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
    "user assistant system What is the sum of the digits in the picture product difference largest "
    "smallest? A conversation between User and Assistant. The user asks a question about the "
    "image, and the Assistant solves it. The assistant first thinks about the reasoning process in "
    "the mind and then provides the user with the answer. User: Assistant: Let me solve this step "
    "by step. How many Which object is left right above below behind in front of closer to farther "
    "from camera than red green blue yellow orange purple black white circle square triangle star "
    "diamond shapes are there relation count depth distance options answer with letter (A) (B) (C) "
    "(D) one two three four five six seven eight nine "
)


PRESETS = {family.preset.name: family.preset for family in FAMILIES.values() if family.preset}
DRAWING = 2  # counts changes of how parameters are drawn, so that a cache of older ones is not used


def make_tokenizer(vocab: int, special: tuple[str, ...] = SPECIAL):
    """A byte-level BPE tokenizer of the built-in data's words; digits stay single tokens."""
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
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
    )


def preset_directory(name: str) -> Path:
    """The directory of a preset in the cache, made by an atomic rename (two may race)."""
    files, sizes = PRESETS[name], Preset()
    written = [files.config(sizes, str), files.images(sizes), files.tokens]
    parts = [dataclasses.asdict(sizes), CHAT_TEMPLATE, CORPUS, written, DRAWING]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    out = cache_folder() / f"{name}-{digest[:12]}"
    if (out / "config.json").is_file():
        return out
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    write_preset(files, sizes, partial)
    try:
        os.replace(partial, out)
    except OSError:  # another process was first: its directory is the same
        shutil.rmtree(partial, ignore_errors=True)
    return out


def write_preset(files: PresetFiles, sizes: Preset, out: Path) -> None:
    """Writes a built-in model as a complete Hugging Face directory."""
    out.mkdir(parents=True)
    tokenizer = make_tokenizer(sizes.vocab, (*SPECIAL, *files.tokens))
    tokenizer.save_pretrained(out)
    raw = files.config(sizes, tokenizer.convert_tokens_to_ids)
    statistics = {"image_mean": [sizes.image_mean] * 3, "image_std": [sizes.image_std] * 3}
    written = {
        "config.json": raw,
        "generation_config.json": {"eos_token_id": [raw["eos_token_id"]]},
        "preprocessor_config.json": statistics | files.images(sizes),
    }
    for name, values in written.items():
        (out / name).write_text(json.dumps(values, indent=2))
    table = describe(raw).table()
    params = init_params(table, sizes.seed, "float32", single_device_mesh(), DEFAULT_RULES)
    write_checkpoint(out, hf_tensors(flatten(params), table, jnp.dtype("float32")))


def preset_parameters(name: str) -> int:
    """Number of parameters of a preset."""
    return count(describe(PRESETS[name].config(Preset(), lambda _: 0)).table())
