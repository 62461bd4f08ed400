"""Where pixels enter the tower: 8 bits on the way, transformers' numbers in the end."""

import dataclasses

import jax
import numpy as np
import pytest
from reference import pixel_values as in_numpy
from reference import random_image

import jaxr1
from jaxr1.inputs.arrangement import Arrangement
from jaxr1.inputs.batch import PATCHES, fitting_buckets, make_batch
from jaxr1.inputs.levels import Levels
from jaxr1.inputs.patches import PatchGeometry, make_rows
from jaxr1.models import vlm
from jaxr1.models.pixels import pixel_values


def prompts_of_pixels(rng, processor) -> list:
    """A picture, a clip with stills and an odd last frame, and text, in this order."""
    frames = rng.integers(0, 256, (5, 56, 84, 3), dtype=np.uint8)
    frames[3] = frames[2]
    asked = [
        {"type": "image", "image": random_image(rng)},
        {"type": "video", "video": frames, "fps": 2.0},
        {"type": "text", "text": "What?"},
    ]
    return [processor.encode(jaxr1.Prompt([{"role": "user", "content": [a]}])) for a in asked]


def with_own_levels(processor):
    """The same with other statistics for videos than for images."""
    videos = processor.videos.replace(
        image_mean=(0.1, 0.2, 0.3),
        image_std=(0.9, 0.8, 0.7),
        fps=None,
        min_pixels=28 * 28,
        max_pixels=84 * 84,
    )
    return dataclasses.replace(processor, videos=videos)


def test_pixels_are_uploaded_as_8_bits_and_a_still_once(rng):
    """And the tower reads what transformers' processors give, each kind with its statistics."""
    model, _ = jaxr1.load_model("tiny")
    processor = with_own_levels(jaxr1.load_processor("tiny"))
    picture, clip, text = prompts_of_pixels(rng, processor)
    size = model.vision.patch_values
    assert [p.shape[1] for p in picture.patches] == [size // 2]
    assert [p.shape[1] for p in clip.patches] == [size, size // 2, size // 2]
    assert picture.levels != clip.levels[:1] and not text.levels

    shapes = {}
    for name, prompts in {
        "image": [picture],
        "both": [picture, clip, text],
        "text": [text],
    }.items():
        buckets = dataclasses.replace(fitting_buckets([picture, clip], 8), patches=(256,))
        batch = make_batch(prompts, buckets, model.media, rows=4)
        rows = batch.media[PATCHES]
        assert rows.patch_rmc.dtype == np.uint8
        assert rows.patch_rmc.shape[2] == (size if name == "both" else size // 2)
        values = np.asarray(pixel_values(rows, size)).reshape(-1, 4, size)
        assert np.isfinite(values).all()
        shapes[name] = jax.tree.structure(rows), [x.dtype for x in jax.tree.leaves(rows)]
        for b, prompt in enumerate(prompts):
            real = prompt.media_index >= 0
            at = batch.media_index_bp[b, : len(prompt)][real]
            expected = np.zeros((0, size), np.float32)
            if prompt.patches:
                expected = in_numpy(prompt.patches, prompt.levels, size)
            np.testing.assert_allclose(values[at].reshape(-1, size), expected, rtol=0, atol=1e-5)
    assert shapes["image"] == shapes["text"], "prompts of text only share the programs of pictures"


def test_a_picture_is_the_same_beside_a_clip(rng):
    """Where frames of a clip make the patches of a batch wider, a picture stands for both."""
    model, params = jaxr1.load_model("tiny-qwen2_5_vl")
    processor = with_own_levels(jaxr1.load_processor("tiny-qwen2_5_vl"))
    picture, clip, _ = prompts_of_pixels(rng, processor)
    found = []
    for prompts in ([picture], [picture, clip]):
        buckets = fitting_buckets(prompts, 8)
        batch = make_batch(prompts, buckets, model.media, rows=2)
        out = np.asarray(vlm.encode_patches(model, params, batch.media[PATCHES]))
        at = batch.media_index_bp[0, : len(picture)]
        found.append(out[at[at >= 0]])
    bound = 1e-5 * max(1.0, float(np.abs(found[0]).max()))
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=bound)


def test_more_normalisations_than_a_batch_may_mix(rng):
    patches = [rng.integers(0, 256, (4, 588), dtype=np.uint8) for _ in range(3)]
    levels = [Levels((scale, 1.0, 1.0), (0.0, 0.0, 0.0)) for scale in (1.0, 2.0, 3.0)]
    geometry = PatchGeometry(2, 1176, frames=2)
    grids = [(1, 2, 2)] * 3
    one_row = Arrangement([[0, 1, 2]], 1, 16)
    with pytest.raises(ValueError, match="may mix 2 normalisations"):
        make_rows(patches, grids, (16,), geometry, levels=levels, arranged=one_row)
    with pytest.raises(ValueError, match="3 images of 8-bit pixels, but 0 normalisations"):
        make_rows(patches, grids, (16,), geometry, arranged=one_row)


@pytest.mark.parametrize("name", ["tiny", "tiny-qwen3_vl", "tiny-internvl"])
def test_an_exported_model_normalises_as_before(name, rng, tmp_path):
    """Statistics are the processor's, and go with its files."""
    model, params = jaxr1.load_model(name)
    processor = jaxr1.load_processor(name)
    jaxr1.save_model(model, params, processor, tmp_path / "out")
    again = jaxr1.load_processor(tmp_path / "out")
    content = [{"type": "image", "image": random_image(rng)}, {"type": "text", "text": "What?"}]
    prompt = jaxr1.Prompt([{"role": "user", "content": content}])
    before, after = processor.encode(prompt), again.encode(prompt)
    assert before.levels == after.levels and before.levels[0].shift != (0.0, 0.0, 0.0)
    found = []
    for encoded, loaded in ((before, model), (after, jaxr1.load_model(tmp_path / "out")[0])):
        batch = make_batch([encoded], fitting_buckets([encoded], 8), loaded.media, rows=1)
        found.append(np.asarray(vlm.prompt_logits(loaded, params, batch)))
    np.testing.assert_array_equal(*found)
