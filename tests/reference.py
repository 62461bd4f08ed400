"""Independent references: random small Qwen2-VL checkpoints of transformers, and their outputs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from jaxr1.models.presets import CHAT_TEMPLATE, make_tokenizer

VOCAB = 512


def make_checkpoint(out: Path, seed: int, **changes):
    """Saves a random Qwen2-VL with the presets' tokenizer; returns the torch model."""
    import torch
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    size = dict(
        hidden=48, layers=3, heads=6, kv_heads=2, mlp=80, vision_width=32, depth=2, vision_heads=2, patch=14, merge=2,
        tied=True,
    )  # fmt: skip
    size.update(changes)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(VOCAB)
    tokenizer.save_pretrained(out)
    ident = tokenizer.convert_tokens_to_ids
    half = size["hidden"] // size["heads"] // 2
    config = Qwen2VLConfig(
        text_config=dict(
            vocab_size=VOCAB, hidden_size=size["hidden"], intermediate_size=size["mlp"],
            num_hidden_layers=size["layers"], num_attention_heads=size["heads"],
            num_key_value_heads=size["kv_heads"], max_position_embeddings=4096, tie_word_embeddings=size["tied"],
            rope_parameters={"rope_type": "default", "rope_theta": 1e4,
                             "mrope_section": [half - 2 * (half // 3), half // 3, half // 3]},
            bos_token_id=ident("<|endoftext|>"), eos_token_id=ident("<|im_end|>"), pad_token_id=ident("<|endoftext|>"),
            initializer_range=0.15,
        ),
        vision_config=dict(
            depth=size["depth"], embed_dim=size["vision_width"], hidden_size=size["hidden"], num_heads=size["vision_heads"],
            patch_size=size["patch"], spatial_merge_size=size["merge"], temporal_patch_size=2, mlp_ratio=3,
            initializer_range=0.15,
        ),
        image_token_id=ident("<|image_pad|>"), video_token_id=ident("<|video_pad|>"),
        vision_start_token_id=ident("<|vision_start|>"), vision_end_token_id=ident("<|vision_end|>"),
        tie_word_embeddings=size["tied"],
    )  # fmt: skip
    torch.manual_seed(seed)
    model = Qwen2VLForConditionalGeneration(config).eval()
    with torch.no_grad():  # biases and norms start at 0 and 1, which would hide a wrong use of them
        for _, p in model.named_parameters():
            if p.ndim == 1:
                p.add_(torch.randn_like(p) * 0.1)
    model.save_pretrained(out)
    image = {"image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 28 * 28, "max_pixels": 112 * 112,
             "patch_size": size["patch"], "temporal_patch_size": 2, "merge_size": size["merge"],
             "image_mean": [0.48145466, 0.4578275, 0.40821073],
             "image_std": [0.26862954, 0.26130258, 0.27577711]}  # fmt: skip
    (out / "preprocessor_config.json").write_text(json.dumps(image))
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return model


def random_image(rng, low=20, high=150) -> Image.Image:
    h, w = rng.integers(low, high, 2)
    return Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8))


def torch_inputs(encoded) -> dict:
    """The keyword arguments of the transformers model for one encoded prompt."""
    import torch

    ids = torch.tensor(encoded.token_ids[None].astype(np.int64))
    out = {"input_ids": ids, "mm_token_type_ids": torch.tensor((encoded.media_index >= 0)[None].astype(np.int32))}
    if encoded.patches:
        out["pixel_values"] = torch.tensor(np.concatenate(encoded.patches))
        out["image_grid_thw"] = torch.tensor(np.asarray(encoded.grids, np.int64))
    return out


def mixed_prompts(rng, count: int) -> list:
    """Prompts of text only, one image and several images, in random order of sizes."""
    from jaxr1.inputs.template import Prompt

    words = "What is the sum of the digits in the picture which object is closer red green blue star".split()
    prompts = []
    for i in range(count):
        text = " ".join(rng.choice(words, rng.integers(2, 12)))
        images = [{"type": "image", "image": random_image(rng)} for _ in range((0, 1, 3, 1)[i % 4])]
        prompts.append(Prompt([{"role": "user", "content": [*images, {"type": "text", "text": text}]}]))
    return prompts
