"""Invariant 1: the model equals Hugging Face transformers."""

import numpy as np
import pytest
from reference import make_checkpoint, mixed_prompts, torch_inputs

import jaxr1
from jaxr1.inputs.batch import Buckets, make_batch
from jaxr1.models.vlm import prompt_logits

TOLERANCE = 1e-4  # design, invariant 1: float32, unmasked logits
SIZES = [
    dict(),
    dict(hidden=56, heads=7, kv_heads=1, tied=False, layers=2),
    dict(hidden=40, heads=5, kv_heads=5, merge=1, patch=8, vision_heads=4),
]


@pytest.mark.parametrize("size", SIZES, ids=["gqa-tied", "odd-heads-untied", "merge1"])
def test_logits_equal_transformers(tmp_path, seed, rng, size):
    import torch

    reference = make_checkpoint(tmp_path / "m", seed, **size)
    model, params = jaxr1.load_model(tmp_path / "m")
    processor = jaxr1.load_processor(tmp_path / "m")
    encoded = [processor.encode(p) for p in mixed_prompts(rng, 4)]
    batch = make_batch(
        encoded, Buckets.fitting(encoded, 8), merge=model.vision.merge_size,
        patch_values=model.vision.patch_values, rows=4,
    )  # fmt: skip
    ours = np.asarray(prompt_logits(model, params, batch))
    for i, prompt in enumerate(encoded):
        with torch.no_grad():
            theirs = reference(**torch_inputs(prompt)).logits[0].numpy()
        assert np.abs(theirs).max() > 1  # a random model with dead outputs would prove nothing
        np.testing.assert_allclose(ours[i, : len(prompt)], theirs, atol=TOLERANCE, rtol=0)
