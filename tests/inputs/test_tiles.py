"""Tiles: equal to transformers' numpy processor on random sizes and modes, once put together."""

import numpy as np
import pytest
from PIL import Image
from reference import pixel_values, pixels_of

from jaxr1.inputs.images import ImageOptions
from jaxr1.inputs.tiles import TileOptions, cut_tiles, preprocess_tiles, tile_grid, tile_grids
from jaxr1.inputs.units import image_unit
from jaxr1.media.images import MediaError, load_image


def random_picture(rng) -> Image.Image:
    h, w = np.exp(rng.uniform(np.log(8), np.log(400), 2)).astype(int)
    mode = rng.choice(["RGB", "L", "RGBA", "P", "CMYK"])
    picture = Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)).convert(mode)
    if mode == "RGBA":
        picture.putalpha(Image.fromarray(rng.integers(0, 256, (h, w), dtype=np.uint8)))
    return picture


def test_equal_to_transformers(rng):
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    most, least = int(rng.integers(2, 13)), int(rng.integers(1, 3))
    options = TileOptions(size=56, patch_size=14, max_tiles=most, min_tiles=least)
    theirs = GotOcr2ImageProcessorPil(
        size={"height": 56, "width": 56},
        crop_to_patches=True,
        min_patches=least,
        max_patches=most,
        image_mean=list(options.image_mean),
        image_std=list(options.image_std),
    )
    for _ in range(200):
        picture = load_image(random_picture(rng))
        if max(picture.size) > 200 * min(picture.size):
            continue
        expected = theirs([picture], return_tensors="np")["pixel_values"]
        patches, grids = preprocess_tiles(picture, options)
        assert grids == list(tile_grids(picture.height, picture.width, options))
        levels, size = [options.patch_options.levels], options.patch_options.patch_dim
        values = [pixel_values([p], levels, size) for p in patches]
        ours = np.stack([pixels_of(v, g, 2, 14) for v, g in zip(values, grids, strict=True)])
        assert ours.shape == expected.shape
        np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_the_drawing():
    options = TileOptions(size=28, max_tiles=6)
    assert tile_grid(100, 300, options) == (3, 1)
    assert len(cut_tiles(Image.new("RGB", (300, 100)), options)) == 4
    assert len(cut_tiles(Image.new("RGB", (30, 30)), options)) == 1, "one tile is its own thumbnail"
    assert len(cut_tiles(Image.new("RGB", (300, 100)), TileOptions(size=28, max_tiles=1))) == 1


def test_the_size_that_is_seen(rng):
    """Of all tiles together, or of the one picture that patches are cut from."""
    tiles, patches = TileOptions(size=28, max_tiles=6, thumbnail=False), ImageOptions()
    for _ in range(30):
        height, width = (int(side) for side in rng.integers(20, 600, 2))
        picture = Image.new("RGB", (width, height))
        for decode in (True, False):
            one = image_unit(picture, tiles, decode=decode)
            w, h, seen_width, seen_height = one.size
            assert (w, h) == (width, height)
            columns, rows = tile_grid(height, width, tiles)
            assert (seen_width, seen_height) == (28 * columns, 28 * rows)
            assert columns * rows == len(one.grids)
            one = image_unit(picture, patches, decode=decode)
            _, rows, columns = one.grids[0]
            assert one.size == (width, height, columns * 14, rows * 14)


def test_what_is_refused():
    with pytest.raises(ValueError, match="over the limit of 128"):
        TileOptions(max_tiles=1000)
    with pytest.raises(ValueError, match="1 <= min <= max"):
        TileOptions(min_tiles=3, max_tiles=2)
    with pytest.raises(ValueError, match="less than one tile"):
        TileOptions().with_pixels(None, 100)
    with pytest.raises(MediaError, match="more than 200 times"):
        preprocess_tiles(Image.new("RGB", (3000, 10)), TileOptions())
    assert TileOptions().with_pixels(None, 6 * 448**2).max_tiles == 6
