"""Invariant 1: every family equals Hugging Face transformers."""

import dataclasses

import numpy as np
import pytest
from reference import Checkpoint, mixed_prompts, pixels_of, torch_inputs

import jaxr1
from jaxr1.inputs.batch import fitting_buckets, make_batch
from jaxr1.models import vit
from jaxr1.models.flops import forward_flops
from jaxr1.models.vlm import prompt_logits

# Of unmasked float32 logits (invariant 1).
TOLERANCE = 1e-4
# Families, and changes of the sizes of a random model.
CASES = {
    "qwen2_vl": ("qwen2_vl", {}),
    "qwen2_vl-odd-heads-untied": (
        "qwen2_vl",
        dict(hidden=56, heads=7, kv_heads=1, tied=False, layers=2),
    ),
    "qwen2_vl-merge1": (
        "qwen2_vl",
        dict(hidden=40, heads=5, kv_heads=5, merge=1, patch=8, vision_heads=4),
    ),
    "qwen2_5_vl": ("qwen2_5_vl", dict(depth=3, full=(1,))),
    "qwen2_5_vl-odd-heads-untied": (
        "qwen2_5_vl",
        dict(hidden=56, heads=7, kv_heads=7, tied=False)
        | dict(window=2, vision_width=36, vision_heads=3, full=(0,)),
    ),
    "qwen3_vl": ("qwen3_vl", dict(depth=3, deep=(0, 2))),
    "qwen3_vl-odd-heads-untied": (
        "qwen3_vl",
        dict(hidden=60, heads=5, kv_heads=1, tied=False, layers=2)
        | dict(patch=8, depth=4, deep=(1,)),
    ),
    "internvl-qwen2": ("internvl", {}),
    "internvl-6B-qwen3": (
        "internvl",
        dict(decoder="qwen3", qk_norm=True, norm="rms_norm", bias=False, tied=False),
    ),
    "internvl-llama": ("internvl", dict(decoder="llama", tile=28, heads=3, kv_heads=3)),
    "qwen2": ("qwen2", dict(tied=False)),
    "qwen3": ("qwen3", dict(heads=3, kv_heads=1)),
    "llama": ("llama", {}),
}


@pytest.fixture(scope="module", params=CASES, ids=list(CASES))
def case(request, tmp_path_factory, module_seed):
    family, size = CASES[request.param]
    directory = tmp_path_factory.mktemp("parity") / "m"
    return Checkpoint.make(directory, module_seed, family, **size)


def images_for(model):
    return (0,) if model.vision is None else (0, 1, 5, 2)


def logits(model, params, encoded, **options):
    buckets = fitting_buckets(encoded, 8)
    batch = make_batch(encoded, buckets, model.media, rows=4, **options)
    return np.asarray(prompt_logits(model, params, batch))


def test_logits_equal_transformers(case, rng):
    import torch

    reference, model, params, processor = case.reference, case.model, case.params, case.processor
    encoded = [processor.encode(p) for p in mixed_prompts(rng, 4, images_for(model))]
    ours = logits(model, params, encoded)
    for i, prompt in enumerate(encoded):
        with torch.no_grad():
            theirs = reference(**torch_inputs(prompt, model)).logits[0].numpy()
        assert np.abs(theirs).max() > 1  # a random model with dead outputs would prove nothing
        np.testing.assert_allclose(ours[i, : len(prompt)], theirs, atol=TOLERANCE, rtol=0)


def test_every_tower_block_equals_transformers(case, rng):
    import torch

    reference, model, params, processor = case.reference, case.model, case.params, case.processor
    if model.vision is None:
        pytest.skip("no tower")
    [encoded] = [processor.encode(p) for p in mixed_prompts(rng, 1, (2,))]
    batch = make_batch([encoded], fitting_buckets([encoded], 8), model.media, rows=1)
    rows = batch.media["patches"]
    ours = np.asarray(
        vit.tower(model.vision, params["vision"], rows, model.rules, every_block=True)
    )
    kept = []

    def keep(block, inputs, out):
        kept.append((out[0] if isinstance(out, tuple) else out).numpy())

    inputs = torch_inputs(encoded, model)
    pixels = inputs["pixel_values"]
    with torch.no_grad():
        if model.family == "internvl":
            visual = reference.model.vision_tower
            for block in visual.encoder.layer:
                block.register_forward_hook(keep)
            visual(pixels)
        else:
            visual = reference.model.visual
            for block in visual.blocks:
                block.register_forward_hook(keep)
            visual(pixels, grid_thw=inputs["image_grid_thw"])
    segment = rows.segment_rm
    for mine, theirs in zip(ours, kept, strict=True):
        if model.family == "internvl":  # theirs is a CLS token and then patches row by row
            side = model.vision.tile_side
            number = np.repeat(np.arange(side**2)[:, None], 3, 1)
            order = pixels_of(number, (1, side, side), 2, 1)[0].reshape(-1).astype(int)
            mine, theirs = mine[segment[:, 0] > 0][:, order], theirs[:, 1:]
        else:
            mine = np.concatenate([row[real] for row, real in zip(mine, segment > 0, strict=True)])
            theirs = theirs.reshape(-1, theirs.shape[-1])
            # Windows reorder theirs, rows sort ours by size: every vector of one has its like in
            # the other.
            apart = np.abs(mine[:, None] - theirs[None]).max(-1)
            assert mine.shape == theirs.shape
            assert max(apart.min(0).max(), apart.min(1).max()) <= TOLERANCE
            continue
        np.testing.assert_allclose(mine, theirs, atol=TOLERANCE, rtol=0)


def test_counted_operations_are_those_that_torch_counts(case, rng):
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    reference, model, processor = case.reference, case.model, case.processor
    [encoded] = [processor.encode(p) for p in mixed_prompts(rng, 1, images_for(model)[-1:])]
    usual = reference.config._attn_implementation
    reference.set_attn_implementation("eager")  # products that the counter sees
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        reference(**torch_inputs(encoded, model))
    reference.set_attn_implementation(usual)
    ours, p, cfg = forward_flops(model, encoded, ()), len(encoded), model.text
    # Theirs multiply the whole square of a causal attention, and predict after every token of the
    # prompt.
    unseen = 4 * cfg.layers * cfg.heads * cfg.head_size * (p * (p - 1) // 2)
    head = 2 * cfg.vocab * cfg.width
    assert sum(ours.values()) + unseen + head * p == counter.get_total_flops()
    # A response costs what its tokens cost at the end of a longer prompt, and its output matrix.
    t = int(rng.integers(1, 9))
    longer = dataclasses.replace(encoded, token_ids=np.zeros(p + t, np.int32))
    one, two = (forward_flops(model, encoded, [t] * n)["decoder"] - n * t * head for n in (1, 2))
    assert one == forward_flops(model, longer, ())["decoder"]
    assert two - one == one - ours["decoder"]


def test_saved_directory_is_read_by_transformers(case, rng, tmp_path):
    import torch

    reference, model, params, processor = case.reference, case.model, case.params, case.processor
    saved = jaxr1.save_model(model, params, processor, tmp_path / "out")
    again = type(reference).from_pretrained(saved).eval()
    [encoded] = [processor.encode(p) for p in mixed_prompts(rng, 1, images_for(model)[1:2] or (0,))]
    inputs = torch_inputs(encoded, model)
    theirs = reference.state_dict()
    assert again.state_dict().keys() == theirs.keys()
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name
    # Of equal weights torch's products differ by where they lie in memory: 3.2e-6 in 1 of 60 loads
    # of this very file.
    with torch.no_grad():
        torch.testing.assert_close(
            again(**inputs).logits, reference(**inputs).logits, atol=1e-5, rtol=0
        )
