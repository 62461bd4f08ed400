"""Independent references: small random checkpoints of transformers, their inputs, a small run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxr1.data import Arithmetic
from jaxr1.models.presets import CHAT_TEMPLATE, PRESETS, SPECIAL, make_tokenizer
from jaxr1.rewards import Reward
from jaxr1.rl import Optimizer
from jaxr1.run import BucketOptions, Config, Rl

VOCAB = 512
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl")
TEXT_ONLY = ("qwen2", "qwen3", "llama")


@dataclasses.dataclass(frozen=True)
class Size:
    """The sizes of a random model; a family reads those that it has."""

    # The decoder; `decoder` names that of InternVL.
    decoder: str = "qwen2"
    hidden: int = 48
    layers: int = 3
    heads: int = 6
    kv_heads: int = 2
    mlp: int = 80
    tied: bool = True
    # The tower.
    vision_width: int = 32
    depth: int = 2
    vision_heads: int = 2
    patch: int = 14
    merge: int = 2
    # Qwen2.5-VL: the side of a window in merged patches, and the blocks that see everything.
    window: int = 3
    full: tuple[int, ...] = (1,)
    # Qwen3-VL: the blocks whose features go to the decoder's layers.
    deep: tuple[int, ...] = (0, 1)
    # InternVL.
    tile: int = 56
    max_tiles: int = 4
    norm: str = "layer_norm"
    qk_norm: bool = False
    bias: bool = True

    @property
    def head(self) -> int:
        """The width of a decoder head."""
        return self.hidden // self.heads


def make_checkpoint(out: Path, seed: int, family: str = "qwen2_vl", **changes):
    """Saves a random model of a family with the presets' tokenizer; returns the torch model.

    `changes` are fields of `Size`.
    """
    import torch

    size = Size(**changes)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(VOCAB, (*SPECIAL, *PRESETS["tiny-internvl"].tokens))
    tokenizer.save_pretrained(out)
    config, kind = torch_config(family, size, tokenizer.convert_tokens_to_ids)
    torch.manual_seed(seed)
    model = kind(config).eval()
    # Biases, norms and some tables start at 0 and 1, which would hide a wrong use of them.
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1 or "cls_token" in name or "position_embeddings" in name:
                p.add_(torch.randn_like(p) * 0.1)
    model.save_pretrained(out)
    if family not in TEXT_ONLY:
        settings = image_settings(family, size)
        (out / "preprocessor_config.json").write_text(json.dumps(settings))
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return model


def image_settings(family: str, size: Size) -> dict:
    """A preprocessor_config.json."""
    statistics = {
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    if family == "internvl":
        return {
            "image_processor_type": "GotOcr2ImageProcessor",
            "crop_to_patches": True,
            "min_patches": 1,
            "max_patches": size.max_tiles,
            "size": {"height": size.tile, "width": size.tile},
            **statistics,
        }
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "min_pixels": (size.patch * size.merge) ** 2,
        "max_pixels": 112 * 112,
        "patch_size": size.patch,
        "temporal_patch_size": 2,
        "merge_size": size.merge,
        **statistics,
    }


@dataclasses.dataclass
class Checkpoint:
    """A random checkpoint: its directory, the torch model, and what is loaded from it."""

    folder: Path
    reference: Any
    model: Any
    params: dict
    processor: Any

    @classmethod
    def make(cls, folder: Path, seed: int, family: str = "qwen2_vl", **changes) -> Checkpoint:
        """As `make_checkpoint`, and loads it."""
        import jaxr1

        reference = make_checkpoint(folder, seed, family, **changes)
        model, params = jaxr1.load_model(folder)
        return cls(folder, reference, model, params, jaxr1.load_processor(folder))


def torch_config(family: str, size: Size, ident):
    """(config, model class) of transformers; `ident` gives the id of a token."""
    import transformers as hf

    rope = {"rope_type": "default", "rope_theta": 1e4}
    text = text_settings(size, ident) | {"rope_parameters": rope}
    if family == "qwen2":
        return hf.Qwen2Config(**text), hf.Qwen2ForCausalLM
    if family == "qwen3":
        return hf.Qwen3Config(**text), hf.Qwen3ForCausalLM
    if family == "llama":
        return hf.LlamaConfig(**text), hf.LlamaForCausalLM
    vision = vision_settings(family, size)
    if family == "internvl":
        config = hf.InternVLConfig(
            text_config=text | {"model_type": size.decoder},
            vision_config=vision,
            image_token_id=ident("<IMG_CONTEXT>"),
            image_seq_length=(size.tile // size.patch // 2) ** 2,
            tie_word_embeddings=size.tied,
        )
        return config, hf.InternVLForConditionalGeneration
    third = size.head // 2 // 3
    rope["mrope_section"] = [size.head // 2 - 2 * third, third, third]
    if family == "qwen3_vl":
        rope["mrope_interleaved"] = True
    settings = dict(
        text_config=text | {"rope_parameters": rope},
        vision_config=vision,
        image_token_id=ident("<|image_pad|>"),
        video_token_id=ident("<|video_pad|>"),
        vision_start_token_id=ident("<|vision_start|>"),
        vision_end_token_id=ident("<|vision_end|>"),
        tie_word_embeddings=size.tied,
    )
    if family == "qwen2_vl":
        return hf.Qwen2VLConfig(**settings), hf.Qwen2VLForConditionalGeneration
    if family == "qwen2_5_vl":
        return hf.Qwen2_5_VLConfig(**settings), hf.Qwen2_5_VLForConditionalGeneration
    return hf.Qwen3VLConfig(**settings), hf.Qwen3VLForConditionalGeneration


def text_settings(size: Size, ident) -> dict:
    """The settings of a decoder, whatever its family."""
    return dict(
        vocab_size=VOCAB,
        hidden_size=size.hidden,
        intermediate_size=size.mlp,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        head_dim=size.head,
        max_position_embeddings=4096,
        tie_word_embeddings=size.tied,
        bos_token_id=ident("<|endoftext|>"),
        eos_token_id=ident("<|im_end|>"),
        pad_token_id=ident("<|endoftext|>"),
        initializer_range=0.15,
    )


def vision_settings(family: str, size: Size) -> dict:
    """The settings of a family's tower."""
    if family == "internvl":
        return dict(
            initializer_range=0.15,
            hidden_size=size.vision_width,
            num_hidden_layers=size.depth,
            num_attention_heads=size.vision_heads,
            intermediate_size=3 * size.vision_width,
            image_size=[size.tile] * 2,
            patch_size=[size.patch] * 2,
            attention_bias=size.bias,
            use_qk_norm=size.qk_norm,
            norm_type=size.norm,
        )
    common = dict(
        initializer_range=0.15,
        depth=size.depth,
        num_heads=size.vision_heads,
        patch_size=size.patch,
        spatial_merge_size=size.merge,
        temporal_patch_size=2,
    )
    if family == "qwen2_vl":
        return common | dict(embed_dim=size.vision_width, hidden_size=size.hidden, mlp_ratio=3)
    common |= dict(
        hidden_size=size.vision_width,
        out_hidden_size=size.hidden,
        intermediate_size=3 * size.vision_width,
    )
    if family == "qwen2_5_vl":
        return common | dict(
            window_size=size.window * size.patch * size.merge,
            fullatt_block_indexes=list(size.full),
            tokens_per_second=2,
        )
    return common | dict(
        num_position_embeddings=36,
        deepstack_visual_indexes=list(size.deep),
    )


def random_image(rng, low=20, high=150) -> Image.Image:
    h, w = rng.integers(low, high, 2)
    return Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8))


def pixels_of(patches: np.ndarray, grid, merge: int, patch: int) -> np.ndarray:
    """[3, H, W]: an image put together again from its patches in merge-block order (one frame)."""
    _, rows, columns = grid
    out = np.zeros((3, rows * patch, columns * patch), np.float32)
    number = 0
    for r in range(0, rows, merge):
        for c in range(0, columns, merge):
            for i in range(merge):
                for j in range(merge):
                    at = (
                        slice(None),
                        slice((r + i) * patch, (r + i + 1) * patch),
                        slice((c + j) * patch, (c + j + 1) * patch),
                    )
                    out[at] = patches[number].reshape(3, -1, patch, patch)[:, 0]
                    number += 1
    return out


def pixel_values(patches, levels, size: int) -> np.ndarray:
    """float32[n, size]: what 8-bit patches stand for, in the arithmetic of transformers' float32.

    `patches` are arrays, `levels` what the pixels of each stand for; a picture that is there once
    is repeated to fill the frames of a patch of `size` numbers.
    """
    made = []
    for found, level in zip(patches, levels, strict=True):
        assert found.dtype == np.uint8 and found.flags.c_contiguous
        scale, shift = (np.array(part)[:, None] for part in (level.scale, level.shift))
        value = found.reshape(len(found), 3, -1) * scale + shift
        value = np.tile(value, (1, 1, size // found.shape[1]))
        made.append(value.astype(np.float32).reshape(len(found), size))
    return np.concatenate(made)


def torch_inputs(encoded, model=None, response=()) -> dict:
    """The keyword arguments of the transformers model for one encoded prompt; `model` is ours.

    `response` are the token ids after the prompt, if any.
    """
    import torch

    ids = np.concatenate([encoded.token_ids, response]).astype(np.int64)
    family = "qwen2_vl" if model is None else model.family
    out = {"input_ids": torch.tensor(ids[None])}
    if family in TEXT_ONLY:
        return out
    if family == "internvl":
        if encoded.patches:
            size = model.vision.patch_values
            tiles = []
            for p, level, grid in zip(encoded.patches, encoded.levels, encoded.grids, strict=True):
                values = pixel_values([p], [level], size)
                tiles.append(pixels_of(values, grid, 2, model.vision.patch_size))
            out["pixel_values"] = torch.tensor(np.stack(tiles))
        return out
    kinds = np.zeros((1, len(ids)), np.int32)
    kinds[0, : len(encoded)] = encoded.media_index >= 0
    out["mm_token_type_ids"] = torch.tensor(kinds)
    if encoded.patches:
        size = 2 * 3 * 14 * 14 if model is None else model.vision.patch_values
        values = pixel_values(encoded.patches, encoded.levels, size)
        out["pixel_values"] = torch.tensor(values)
        out["image_grid_thw"] = torch.tensor(np.asarray(encoded.grids, np.int64))
    return out


def mixed_prompts(rng, count: int, images: tuple[int, ...] = (0, 1, 3, 1)) -> list:
    """Prompts of text only, one image and several images, in random order of sizes."""
    from jaxr1.inputs.template import Prompt

    words = (
        "What is the sum of the digits in the picture which object is closer red green blue star"
    ).split()
    prompts = []
    for i in range(count):
        text = " ".join(rng.choice(words, rng.integers(2, 12)))
        pictures = [random_image(rng) for _ in range(images[i % len(images)])]
        content = [{"type": "image", "image": picture} for picture in pictures]
        content.append({"type": "text", "text": text})
        prompts.append(Prompt([{"role": "user", "content": content}]))
    return prompts


def hf_arrays(table, flat: dict) -> dict[str, np.ndarray]:
    """{Hugging Face name: array} of a flat parameter (or gradient) tree, fused tensors whole."""
    out: dict[str, np.ndarray] = {}
    for path, p in table.items():
        for i, name in enumerate(p.names()):
            whole = out.setdefault(name, np.zeros(p.hf_shape, np.float32))
            p.of(whole)[...] = p.to_hf(np.asarray(flat[path][i] if p.layers else flat[path]))
    return out


def given(prompts, responses, **columns):
    """Episodes of prompts and responses[b][g]; a column is values[b][g], arrays or numbers."""
    from jaxr1.data import Example
    from jaxr1.inputs.exchange import Draw
    from jaxr1.rl.episodes import Episodes

    draws = [Draw(b, b, Example((), None), prompt) for b, prompt in enumerate(prompts)]
    episodes = Episodes.given(draws, responses)
    for name, values in columns.items():
        parts = []
        for group, row in zip(responses, values, strict=True):
            parts += [np.broadcast_to(x, len(t)) for t, x in zip(group, row, strict=True)]
        episodes.columns[name] = np.concatenate(parts).astype(np.float32)
    return episodes


def learner(
    model,
    processor,
    terms,
    buckets,
    *,
    budget=10**6,
    strips_at_once=0,
    freeze=(),
    optimizer=None,
    **objective,
):
    """A policy with these terms."""
    from jaxr1.rl.learner import Learner
    from jaxr1.rl.terms import Objective

    made = Objective(tuple(terms), forbidden=processor.media_token_ids, **objective)
    optimizer = optimizer or Optimizer()
    at_once = dict(micro_batch_tokens=budget, strips_at_once=strips_at_once)
    return Learner(model, made, buckets, optimizer, 10, freeze, **at_once)


BUCKETS = BucketOptions(prompt=(32,), response=(16,), patches=(16,))


class Given:
    """Draws that a step takes, all at once, as it does from a `Feed`."""

    def __init__(self, draws):
        self.draws = draws

    def take(self, count, turns=()):
        return self.draws


def one_stage(folder, **changes) -> Config:
    """The smallest RL run, in the project's root folder; `changes` are fields of its stage."""
    fields = dict(
        data=Arithmetic(count=32),
        steps=2,
        prompts_per_step=2,
        group_size=4,
        max_prompt_tokens=32,
        max_response_tokens=16,
        waves=1,
        rewards=(Reward("tests/run/small_rewards.py:spread"),),
        buckets=BUCKETS,
        optimizer=Optimizer(learning_rate=1e-3),
    )
    return Config(
        model="tiny",
        run_dir=str(folder),
        stages=(Rl(**(fields | changes)),),
        tensorboard=False,
        report=False,
    )
