"""The tower: position tables resampled as torch does it, and how many programs sizes compile."""

import itertools

import jax
import numpy as np
import pytest

import jaxr1
from jaxr1.inputs.arrangement import block_size
from jaxr1.inputs.patches import make_rows
from jaxr1.inputs.room import arrange_in_room
from jaxr1.inputs.sizes import geometric
from jaxr1.models import vlm
from jaxr1.models.vit import bicubic


@pytest.mark.parametrize("to", [3, 8, 13])
def test_bicubic_equals_torch(rng, to):
    import torch

    table = rng.standard_normal((8, 8, 5)).astype(np.float32)
    grid = torch.tensor(table).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(
        grid, size=(to, to), mode="bicubic", align_corners=False
    )
    ours = (bicubic(8, to) @ table.reshape(64, 5)).reshape(to, to, 5)
    np.testing.assert_allclose(ours, expected[0].permute(1, 2, 0).numpy(), atol=1e-5)


def test_same_size_is_the_identity():
    np.testing.assert_allclose(bicubic(6, 6), np.eye(36), atol=1e-7)


@pytest.mark.parametrize("at_once", [1, 4])
def test_twenty_sizes_compile_one_program(rng, at_once):
    """An epoch of images of 20 sizes, in the room of one cell, then the same again."""
    model, params = jaxr1.load_model("tiny-qwen2_5_vl")
    buckets = geometric(16, 1024, multiple=4)
    sides = list(itertools.product(range(4, 34, 2), repeat=2))
    sizes = [sides[i] for i in rng.permutation(len(sides))[:20]]
    # A function of its own has a cache of its own.
    encode = jax.jit(lambda *args: vlm.encode_patches(*args), static_argnums=0)
    geometry, block = model.vision.geometry, block_size(buckets[-1])
    counts = []
    for _ in range(2):
        for i in range(0, 20, at_once):
            grids = [(1, h, w) for h, w in sizes[i : i + at_once]]
            shapes = [(h * w, geometry.values) for _, h, w in grids]
            patches = [rng.standard_normal(shape, np.float32) for shape in shapes]
            arranged = arrange_in_room(
                [len(p) for p in patches],
                [0] * at_once,
                buckets,
                geometry,
                patches=at_once * buckets[-1],
                devices=1,
                block=block,
            )
            rows, _ = make_rows(patches, grids, buckets, geometry, block=block, arranged=arranged)
            encode(model, params, rows)
        counts.append(encode._cache_size())
    assert counts == [1, 1]
