"""Images: equal to the reference processor; every mode opens, every bad input is refused."""

import base64
import dataclasses
import io
import os
import random
import struct
import time
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile
from reference import pixel_values
from transformers import Qwen2VLImageProcessorPil

from jaxr1.inputs.images import ImageOptions, image_grid, preprocess_image, smart_resize
from jaxr1.media.images import MediaError, load_image, media_hash, probe_image

SEED = int(os.environ.get("JAXR1_TEST_SEED", random.SystemRandom().randrange(2**31)))
MODES = (
    "RGB",
    "RGBA",
    "L",
    "LA",
    "P",
    "P+transparency",
    "1",
    "CMYK",
    "YCbCr",
    "L+transparency",
    "RGB+transparency",
)


@pytest.fixture
def rng(request):
    print(f"JAXR1_TEST_SEED={SEED}")
    return np.random.default_rng([SEED, zlib.crc32(request.node.name.encode())])


def picture(rng, height, width, mode="RGB"):
    """A random picture: coarse blobs with fine noise, so that resizing has something to do."""
    mode, _, transparency = mode.partition("+")
    small = rng.integers(0, 256, (max(1, height // 9), max(1, width // 9), 4), np.uint8)
    blobs = Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR)
    noise = rng.integers(-20, 21, (height, width, 4))
    image = Image.fromarray(np.clip(np.asarray(blobs) + noise, 0, 255).astype(np.uint8))
    if mode not in ("RGBA", "LA"):
        image = image.convert("RGB")
    image = image.convert(mode)
    if transparency:
        image.info["transparency"] = image.getpixel((0, 0))
    return image


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def blank_png(height, width):
    """A whole 1-bit PNG, written row by row; the picture never exists in memory."""

    def chunk(kind, data):
        length, checksum = struct.pack(">I", len(data)), struct.pack(">I", zlib.crc32(kind + data))
        return length + kind + data + checksum

    packer, row = zlib.compressobj(1), bytes(1 + (width + 7) // 8)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize("mode", MODES)
def test_equals_the_reference_processor(mode, rng):
    reference = Qwen2VLImageProcessorPil(min_pixels=4 * 28 * 28, max_pixels=100 * 28 * 28)
    options = ImageOptions(min_pixels=4 * 28 * 28, max_pixels=100 * 28 * 28)
    for _ in range(19):  # 11 modes: 209 pictures
        height, width = (int(2 ** rng.uniform(2, 9)) for _ in range(2))
        image = picture(rng, height, width, mode)
        expected = reference(images=[image], return_tensors="np")
        patches, grid = preprocess_image(image, options)
        assert patches.nbytes == 3 * options.patch_size**2 * len(patches), "8 bits, one frame"
        assert grid == tuple(expected["image_grid_thw"][0]) == image_grid(height, width, options)
        # Both round once per operation in float32; 1e-5 leaves room for another numpy.
        np.testing.assert_allclose(
            pixel_values([patches], [options.levels], options.patch_dim),
            expected["pixel_values"],
            rtol=0,
            atol=1e-5,
            err_msg=f"{height}x{width}",
        )
        loaded, _ = preprocess_image(load_image(image), options)
        np.testing.assert_array_equal(loaded, patches)


def test_equals_the_reference_with_other_options(rng):
    config = {
        "patch_size": 16,
        "merge_size": 2,
        "temporal_patch_size": 1,
        "size": {"shortest_edge": 64 * 64, "longest_edge": 256 * 256},
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.5, 0.25, 0.2],
        "resample": 2,
    }
    image = picture(rng, 300, 211)
    expected = Qwen2VLImageProcessorPil(**config)(images=[image], return_tensors="np")
    options = ImageOptions.from_preprocessor_config(config)
    patches, grid = preprocess_image(image, options)
    values = pixel_values([patches], [options.levels], options.patch_dim)
    assert grid == tuple(expected["image_grid_thw"][0])
    np.testing.assert_allclose(values, expected["pixel_values"], rtol=0, atol=1e-5)


def test_drawn_patch_order():
    """Patch k of the drawing in `preprocess_image` is the k-th row of a grid of flat colours."""
    drawn = np.array([[0, 1, 4, 5], [2, 3, 6, 7]], np.uint8)
    grey = np.kron(drawn, np.ones((14, 14), np.uint8))
    image = Image.fromarray(np.repeat(grey[..., None], 3, axis=-1))
    options = ImageOptions(min_pixels=28 * 28, do_rescale=False, do_normalize=False)
    patches, grid = preprocess_image(image, options)
    assert grid == (1, 2, 4) and patches.shape == (8, options.patch_dim // 2)
    values = pixel_values([patches], [options.levels], options.patch_dim)
    expected = np.repeat(np.arange(8.0)[:, None], options.patch_dim, axis=1)
    np.testing.assert_array_equal(values, expected)


def test_options_from_both_spellings():
    hub = {
        "min_pixels": 3136,
        "max_pixels": 12845056,
        "patch_size": 14,
        "image_processor_type": "Qwen2VLImageProcessor",
    }
    newer = {"size": {"shortest_edge": 3136, "longest_edge": 12845056}, "max_pixels": None}
    expected = ImageOptions(min_pixels=3136, max_pixels=12845056)
    assert ImageOptions.from_preprocessor_config(hub) == expected
    assert ImageOptions.from_preprocessor_config(newer) == expected
    assert ImageOptions.from_preprocessor_config({"image_processor": newer}) == expected
    assert ImageOptions.from_preprocessor_config({}) == ImageOptions()
    theirs = Qwen2VLImageProcessorPil().to_dict()
    assert ImageOptions.from_preprocessor_config(theirs) == ImageOptions()
    assert expected.replace(max_pixels=4000).max_pixels == 4000
    with pytest.raises(ValueError, match="min_pixels 5000 is above max_pixels 4000"):
        dataclasses.replace(expected, min_pixels=5000, max_pixels=4000)
    with pytest.raises(ValueError, match="do_resize"):
        ImageOptions.from_preprocessor_config({"do_resize": False})


def test_smart_resize_bounds(rng):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as reference

    for _ in range(500):
        height, width = (int(2 ** rng.uniform(0, 12)) for _ in range(2))
        bounds = {"factor": 28, "min_pixels": 56 * 56, "max_pixels": 28 * 28 * 1280}
        if max(height, width) > 200 * min(height, width):
            with pytest.raises(MediaError, match="200"):
                smart_resize(height, width, **bounds)
        else:
            assert smart_resize(height, width, **bounds) == reference(height, width, **bounds)
    with pytest.raises(MediaError, match="empty"):
        smart_resize(0, 5, **bounds)


def test_every_kind_of_source_gives_the_same_picture(tmp_path, rng):
    image = picture(rng, 20, 30)
    data = encoded(image)
    path = tmp_path / "a.png"
    path.write_bytes(data)
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    for source in (path, str(path), data, bytearray(data), uri, image, np.asarray(image)):
        loaded = load_image(source)
        assert loaded.mode == "RGB" and loaded.info == {}
        np.testing.assert_array_equal(np.asarray(loaded), np.asarray(image))
        assert probe_image(source) == (20, 30)
        assert media_hash(loaded) == media_hash(image)
    assert media_hash(image) != media_hash(image.transpose(Image.Transpose.ROTATE_90))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_orientation(orientation, kind, rng):
    upright = picture(rng, 16, 48)
    to_stored = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(to_stored[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, kind, exif=exif)
    loaded = load_image(data)
    assert loaded.size == upright.size and probe_image(data) == (16, 48)
    error = np.abs(np.asarray(loaded).astype(int) - np.asarray(upright)).mean()
    assert error == 0 if kind == "PNG" else error < 40  # noise does not survive JPEG, its blobs do
    if kind == "JPEG":
        pillow = np.asarray(Image.open(io.BytesIO(data)))
        assert np.asarray(loaded).astype(int).sum() == pillow.astype(int).sum()


def test_transparency_is_composited_onto_white():
    for clear in (Image.new("RGBA", (2, 2), (10, 20, 30, 0)), Image.new("LA", (2, 2), (10, 0))):
        assert load_image(clear).getpixel((0, 0)) == (255, 255, 255)
    half = load_image(encoded(Image.new("RGBA", (2, 2), (0, 0, 0, 128)))).getpixel((0, 0))
    assert all(abs(value - 127) <= 1 for value in half)
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putdata([0, 1])
    loaded = load_image(encoded(palette, transparency=0))
    assert [loaded.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 0, 255)]


def test_sixteen_bits_are_scaled_not_clipped():
    value_hw = np.array([[0, 257, 32896, 65535]], np.uint16)
    for source in (encoded(Image.fromarray(value_hw)), encoded(Image.fromarray(value_hw), "TIFF")):
        np.testing.assert_array_equal(np.asarray(load_image(source))[0, :, 0], [0, 1, 128, 255])
    keyed = load_image(encoded(Image.fromarray(value_hw), transparency=257))
    np.testing.assert_array_equal(np.asarray(keyed)[0, :, 0], [0, 255, 128, 255])
    wide = load_image(Image.fromarray(value_hw.astype(np.int32)))
    np.testing.assert_array_equal(np.asarray(wide)[0, :, 0], [0, 1, 128, 255])
    floats = Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32))
    np.testing.assert_array_equal(np.asarray(load_image(floats))[0, :, 0], [0, 128, 255])
    with pytest.raises(MediaError, match="expected 0 to"):
        load_image(Image.fromarray(np.array([[-1.0, 0.5]], np.float32)))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animation_gives_its_first_frame(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert load_image(data).getpixel((3, 3)) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["JPEG", "MPO", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000"])
def test_formats(kind, rng):
    image = picture(rng, 24, 40)
    data = encoded(image, kind)
    assert load_image(data).size == (40, 24) and probe_image(data) == (24, 40)


def test_cmyk_jpeg():
    data = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")
    red, green, blue = load_image(data).getpixel((4, 4))
    assert red > 200 and green < 60 and blue < 60


def test_missing_empty_and_foreign_files(tmp_path, rng):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("hello, I am no image " * 10)
    page = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n"
    (tmp_path / "page.eps").write_text(page)
    cases = {
        "absent.png": "no such file",
        "empty.png": "empty",
        "text.png": "not an image",
        "page.eps": "not an image",  # Pillow would hand it to an interpreter
        ".": "not a file",
    }
    for name, reason in cases.items():
        for function in (load_image, probe_image):
            with pytest.raises(MediaError, match=reason) as caught:
                function(tmp_path / name)
            assert str(tmp_path / name) in str(caught.value)
    for source, reason in (
        (b"", "no bytes"),
        (b"nonsense", "not an image"),
        (3, "expected a path"),
        (None, "expected"),
    ):
        for function in (load_image, probe_image):
            with pytest.raises(MediaError, match=reason):
                function(source)
    for uri in ("data:image/png,plain", "data:image/png;base64,%%%"):
        with pytest.raises(MediaError, match="base64"):
            load_image(uri)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_truncated_files(kind, tmp_path, rng):
    data = encoded(picture(rng, 64, 64), kind)
    path = tmp_path / "cut"
    for length in range(1, len(data) // 2, max(1, len(data) // 40)):
        path.write_bytes(data[:length])
        with pytest.raises(MediaError, match="cut"):
            load_image(path)


def test_arrays():
    cases = [
        (np.zeros((0, 5, 3), np.uint8), "empty"),
        (np.zeros((5, 0, 3), np.uint8), "empty"),
        (np.zeros((5, 5, 3), np.float32), "expected uint8"),
        (np.zeros((5, 5), np.uint8), "expected uint8"),
        (np.zeros((3, 5, 5), np.uint8), "expected uint8"),
        (np.zeros((5, 5, 4), np.uint8), "expected uint8"),
    ]
    for array, reason in cases:
        for function in (load_image, probe_image):
            with pytest.raises(MediaError, match=reason):
                function(array)
    array = np.zeros((5, 5, 3), np.uint8)
    load_image(array).putpixel((0, 0), (9, 9, 9))
    assert array.sum() == 0


def test_huge_images_are_refused_from_the_header(tmp_path, monkeypatch):
    path = tmp_path / "huge.png"
    path.write_bytes(blank_png(30_000, 30_000))
    between = blank_png(10_000, 9_000)  # where Pillow warns but does not refuse

    def load(self):
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for function in (load_image, probe_image):
            with pytest.raises(MediaError, match=r"huge\.png.*30000x30000"):
                function(path)
            with pytest.raises(MediaError, match="9000x10000"):
                function(between)
            with pytest.raises(MediaError, match="10x10 pixels are more than the 99"):
                function(blank_png(10, 10), max_pixels_decoded=99)
    assert time.perf_counter() - start < 2
    assert Image.MAX_IMAGE_PIXELS is not None
