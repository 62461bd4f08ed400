"""Videos as patches: equal to a reference written frame by frame, to the rules of transformers, and
to images.
"""

import importlib.util
import io
import math
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image
from reference import pixel_values

from jaxr1.inputs.images import ImageOptions, image_grid, preprocess_image
from jaxr1.inputs.videos import (
    PER_CLIP,
    PER_FRAME,
    VideoOptions,
    open_video,
    preprocess_video,
    seconds_per_grid,
    timestamp_text,
    timestamps,
    video_grid,
    video_size,
)
from jaxr1.media.frames import FrameChoice, sample_indices
from jaxr1.media.images import MediaError
from jaxr1.media.videos import Video, load_video


def noise(rng, frames, height, width):
    """A random clip, uint8[T, H, W, 3]: blobs that move, with fine noise."""
    small = rng.integers(0, 256, (max(1, height // 9), max(1, width // 9), 3), np.uint8)
    base = np.asarray(
        Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR)
    ).astype(np.int16)
    clip = np.stack([np.roll(base, 3 * k, axis=1) for k in range(frames)])
    return np.clip(clip + rng.integers(-20, 21, clip.shape), 0, 255).astype(np.uint8)


VARIANTS = {"qwen2_vl": PER_FRAME, "qwen3_vl": PER_CLIP}


def options_for(variant, **changes):
    return VideoOptions.from_config({}, VARIANTS[variant]).replace(**changes)


def reference_size(frames, height, width, o):
    """Heights and widths as the two processors have them, written out again."""
    unit = o.patch_size * o.merge_size
    clip = o.rules.whole_clip
    if clip:
        frames = max(frames, o.temporal_patch_size)
        if height < unit or width < unit:
            scale = max(unit / height, unit / width)
            height, width = int(height * scale), int(width * scale)
    times = frames if clip else 1
    cells = [round(side / unit) for side in (height, width)]
    paired = round(frames / o.temporal_patch_size) * o.temporal_patch_size if clip else 1
    area = paired * cells[0] * cells[1] * unit * unit
    if area > o.max_pixels:
        ratio = math.sqrt(times * height * width / o.max_pixels)
        cells = [max(1, math.floor(side / ratio / unit)) for side in (height, width)]
    elif area < o.min_pixels:
        ratio = math.sqrt(o.min_pixels / (times * height * width))
        cells = [math.ceil(side * ratio / unit) for side in (height, width)]
    return cells[0] * unit, cells[1] * unit


def reference_patches(frames, o):
    """One patch after the other, each cut out of frames that were resized on their own."""
    height, width = reference_size(*frames.shape[:3], o)
    pictures = [
        Image.fromarray(f).resize((width, height), Image.Resampling.BICUBIC) for f in frames
    ]
    values = [
        (np.asarray(p) / 255.0 - np.array(o.image_mean)) / np.array(o.image_std) for p in pictures
    ]
    while len(values) % o.temporal_patch_size:
        values.append(values[-1])
    side, merge, rows = o.patch_size, o.merge_size, []
    for start in range(0, len(values), o.temporal_patch_size):
        for block_y in range(0, height, side * merge):
            for block_x in range(0, width, side * merge):
                for y in range(block_y, block_y + side * merge, side):
                    for x in range(block_x, block_x + side * merge, side):
                        span = [
                            v[y : y + side, x : x + side]
                            for v in values[start : start + o.temporal_patch_size]
                        ]
                        rows.append(
                            np.concatenate([v[..., c].ravel() for c in range(3) for v in span])
                        )
    return np.array(rows), (len(values) // o.temporal_patch_size, height // side, width // side)


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_a_reference_written_frame_by_frame(variant, rng):
    resized = 0
    for _ in range(200):
        low = int(rng.integers(1, 12)) * 1000
        o = options_for(
            variant,
            patch_size=int(rng.choice([4, 14, 16])),
            temporal_patch_size=int(rng.choice([1, 2, 2, 2, 3])),
            merge_size=int(rng.choice([1, 2, 2, 3])),
            min_pixels=low,
            max_pixels=low + int(rng.integers(0, 80)) * 1000,
        )
        frames, height, width = (
            int(rng.integers(1, 10)),
            *(int(2 ** rng.uniform(2, 8)) for _ in range(2)),
        )
        clip = noise(rng, frames, height, width)
        expected, shape = reference_patches(clip, o)
        patches, grid = preprocess_video(clip, o)
        assert grid == shape == video_grid(frames, height, width, o)
        values = pixel_values(patches, [o.levels] * len(patches), o.patch_dim)
        assert values.shape == (math.prod(grid), o.patch_dim)
        # One rounding an operation in float32, on values up to 2.7.
        np.testing.assert_allclose(
            values, expected, rtol=0, atol=1e-5, err_msg=f"{frames}x{height}x{width} {o}"
        )
        resized += (height, width) != video_size(frames, height, width, o)
    assert resized > 100


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_image_is_a_video_of_one_frame(variant, rng):
    """Alone or repeated to fill its patch; qwen3_vl bounds the clip, so twice the pixels of an
    image's bounds.
    """
    for _ in range(60):
        span = int(rng.choice([1, 2, 3]))
        images = ImageOptions(
            min_pixels=4 * 28 * 28,
            max_pixels=int(rng.integers(4, 100)) * 28 * 28,
            temporal_patch_size=span,
        )
        times = span if variant == "qwen3_vl" else 1
        o = options_for(
            variant,
            patch_size=14,
            min_pixels=times * images.min_pixels,
            max_pixels=times * images.max_pixels,
            temporal_patch_size=span,
            image_mean=images.image_mean,
            image_std=images.image_std,
        )
        # qwen3_vl scales a frame narrower than a token before it bounds it, an image it does not
        height, width = (int(2 ** rng.uniform(5, 8)) for _ in range(2))
        picture = noise(rng, 1, height, width)[0]
        expected, grid = preprocess_image(Image.fromarray(picture), images)
        for count in {1, span}:
            [patches], found = preprocess_video(np.stack([picture] * count), o)
            assert found == grid == image_grid(height, width, images)
            assert o.levels == images.levels
            np.testing.assert_array_equal(patches, expected)


def test_drawn_patch_order():
    """Patch k of the drawing in `preprocess_video` is the k-th row: flat colours, the last frame
    repeated.
    """
    drawn = np.array([[0, 1, 4, 5], [2, 3, 6, 7]], np.uint8)
    frames = np.stack([drawn, drawn, drawn + 8])
    clip = np.repeat(np.kron(frames, np.ones((1, 14, 14), np.uint8))[..., None], 3, axis=-1)
    options = VideoOptions(min_pixels=28 * 28, do_rescale=False, do_normalize=False)
    patches, grid = preprocess_video(clip, options)
    frame = options.patch_dim // 2
    assert grid == (2, 2, 4) and [p.shape for p in patches] == [(8, frame)] * 2, "stills"
    values = pixel_values(patches, [options.levels] * 2, options.patch_dim)
    np.testing.assert_array_equal(
        values, np.repeat(np.arange(16.0)[:, None], options.patch_dim, axis=1)
    )


def test_frames_of_a_patch_stand_channel_by_channel():
    """A patch is laid out channel, frame, row, column."""
    clip = np.zeros((2, 28, 28, 3), np.uint8)
    clip[..., 0] = np.array([1, 2])[:, None, None]
    clip[..., 2] = np.array([3, 4])[:, None, None]
    [patches], _ = preprocess_video(
        clip, VideoOptions(min_pixels=28 * 28, do_rescale=False, do_normalize=False)
    )
    area = 14 * 14
    np.testing.assert_array_equal(patches[0], np.repeat([1, 2, 0, 0, 3, 4], area))


@pytest.fixture(scope="module")
def processors():
    """The two video processor classes of transformers. torchvision, which only their resizing
    needs, is stood in for.
    """
    # Loaded first: what they find out about the machine is remembered, and must not be the
    # stand-in.
    importlib.import_module("transformers.video_processing_utils")
    importlib.import_module("transformers.utils").is_torchvision_available()
    names = {
        variant: f"transformers.models.{variant}.video_processing_{variant}" for variant in VARIANTS
    }
    functional = types.ModuleType("torchvision.transforms.v2.functional")
    functional.InterpolationMode = types.SimpleNamespace()
    parts = ("torchvision", "torchvision.transforms", "torchvision.transforms.v2")
    stand_in = {name: types.ModuleType(name) for name in parts} | {functional.__name__: functional}
    stand_in[parts[-1]].functional = functional
    with pytest.MonkeyPatch.context() as patch:
        for name, stub in (
            stand_in.items() if importlib.util.find_spec("torchvision") is None else ()
        ):
            patch.setitem(sys.modules, name, stub)
        modules = {variant: importlib.import_module(name) for variant, name in names.items()}
    for name in names.values():
        sys.modules.pop(name, None)  # nobody else is to find what was given a stand-in
    return modules


def bare(processors, variant):
    """A processor object with its class's defaults, without the constructor, which asks for
    torchvision.
    """
    kind = {"qwen2_vl": "Qwen2VLVideoProcessor", "qwen3_vl": "Qwen3VLVideoProcessor"}[variant]
    cls = getattr(processors[variant], kind)
    found = object.__new__(cls)
    found.fps, found.num_frames = getattr(cls, "fps", None), getattr(cls, "num_frames", None)
    return found


def test_defaults_are_those_of_transformers(processors):
    for variant in VARIANTS:
        theirs, ours = bare(processors, variant), options_for(variant)
        assert theirs.size == {"shortest_edge": ours.min_pixels, "longest_edge": ours.max_pixels}
        for name in (
            "patch_size",
            "temporal_patch_size",
            "merge_size",
            "min_frames",
            "max_frames",
            "max_video_tokens",
        ):
            assert getattr(theirs, name) == getattr(ours, name), name
        assert (
            tuple(theirs.image_mean) == ours.image_mean
            and tuple(theirs.image_std) == ours.image_std
        )
        assert bool(theirs.cap_pixels_per_frame) == ours.cap_pixels_per_frame
        assert (
            theirs.rescale_factor == ours.rescale_factor and int(theirs.resample) == ours.resample
        )
    assert bare(processors, "qwen3_vl").fps == options_for("qwen3_vl").fps


@pytest.mark.parametrize("variant", VARIANTS)
def test_sampling_equals_transformers(variant, processors, rng):
    from transformers.video_utils import VideoMetadata

    theirs = bare(processors, variant)
    for _ in range(3000):
        total = int(2 ** rng.uniform(1, 15))
        rate = float(rng.choice([1, 5, 12.5, 24, 25, 24000 / 1001, 30000 / 1001, 30, 60]))
        theirs.min_frames, theirs.max_frames = int(rng.integers(2, 9)), int(rng.integers(9, 800))
        bounds = {"min_frames": theirs.min_frames, "max_frames": theirs.max_frames}
        if rng.random() < 0.7:
            how = {"fps": float(rng.choice([0.5, 1, 2, 4, rng.uniform(0.1, 30)]))}
        else:
            how = {"num_frames": int(rng.integers(2, min(total, 64) + 1))}
            if variant == "qwen2_vl" and round(how["num_frames"] / 2) * 2 > total:
                continue
        expected = theirs.sample_frames(
            VideoMetadata(total_num_frames=total, fps=rate), temporal_patch_size=2, **how
        )
        sampling = VARIANTS[variant].sampling
        choice = FrameChoice(sampling=sampling, frame_factor=2, **bounds, **how)
        found = sample_indices(total, rate, choice)
        expected = np.asarray(expected)
        # torch.arange rounds its end up: where n steps of total / n fall short of it, there is one
        # frame too many.
        expected = expected[: len(found)] if len(expected) == len(found) + 1 else expected
        # From there on 1 / 768 of a frame is less than float32 can tell from the next whole one.
        tolerance = int(variant == "qwen2_vl" and total > 16384)
        np.testing.assert_allclose(
            found, expected, rtol=0, atol=tolerance, err_msg=f"{total} {rate} {bounds} {how}"
        )


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("cap", [False, True])
def test_sizes_equal_transformers(variant, cap, processors, rng):
    theirs = bare(processors, variant)
    seen = []
    base = importlib.import_module("transformers.video_processing_utils").BaseVideoProcessor
    resize = type(theirs).resize
    for _ in range(1000):
        low = int(rng.integers(1, 200)) * 1000
        o = options_for(
            variant,
            min_pixels=low,
            max_pixels=low + int(rng.integers(0, 4000)) * 1000,
            cap_pixels_per_frame=cap,
            max_video_tokens=int(rng.integers(10, 2000)),
        )
        theirs.max_video_tokens = o.max_video_tokens
        frames = int(rng.integers(2, 60))
        height, width = (int(2 ** rng.uniform(3, 11)) for _ in range(2))
        if max(height, width) > 150 * min(height, width):
            continue
        # What their `resize` hands on to the filter, which is not called.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                base.__mro__[2],
                "resize",
                lambda self, image, size, resample: seen.append(size),
                raising=False,
            )
            patch.setattr(
                base, "resize", lambda self, image, size, resample: seen.append(size), raising=False
            )
            resize(
                theirs,
                torch.empty(1, frames, 3, height, width, device="meta"),
                types.SimpleNamespace(shortest_edge=o.min_pixels, longest_edge=o.max_pixels),
                3,
                o.factor,
                temporal_factor=o.temporal_patch_size,
                cap_pixels_per_frame=cap,
            )
        size = seen.pop()
        assert video_size(frames, height, width, o) == (size.height, size.width), (
            f"{frames}x{height}x{width} {o}"
        )


@pytest.mark.parametrize("variant", VARIANTS)
def test_patches_equal_transformers(variant, processors, rng):
    """Their own `patchify` on normalised frames that need no resizing."""
    theirs = bare(processors, variant)
    for _ in range(40):
        o = options_for(variant, min_pixels=1)
        frames, rows, columns = (int(rng.integers(1, 6)) for _ in range(3))
        frames += variant == "qwen3_vl"
        clip = noise(rng, frames, rows * o.factor, columns * o.factor)
        value = torch.from_numpy(clip).permute(0, 3, 1, 2).to(torch.float32) / 255
        value = (value - torch.tensor(o.image_mean)[:, None, None]) / torch.tensor(o.image_std)[
            :, None, None
        ]
        flat, *grid = theirs.patchify(
            value[None], o.patch_size, o.merge_size, o.temporal_patch_size
        )
        patches, found = preprocess_video(clip, o)
        assert found == tuple(grid)
        values = pixel_values(patches, [o.levels] * len(patches), o.patch_dim)
        np.testing.assert_allclose(values, flat[0].numpy(), rtol=0, atol=1e-5)


def test_the_other_resizing_differs_by_rounding(rng):
    """As the docstring says: their filter, on pictures whose values it does not carry beyond black
    or white.
    """
    worst, off = 0, []
    for _ in range(60):
        (height, width), size = rng.integers(10, 300, 2).tolist(), rng.integers(10, 300, 2).tolist()
        clip = (60 + noise(rng, 1, height, width).astype(int) * 135 // 255).astype(np.uint8)
        ours = np.asarray(
            Image.fromarray(clip[0]).resize(size[::-1], Image.Resampling.BICUBIC)
        ).astype(int)
        tensor = torch.from_numpy(clip).permute(0, 3, 1, 2)
        theirs = torch.nn.functional.interpolate(
            tensor, size, mode="bicubic", antialias=True, align_corners=False
        )
        theirs = theirs[0].permute(1, 2, 0).numpy().astype(int)
        worst = max(worst, np.abs(ours - theirs).max())
        off.append((ours != theirs).mean())
    print(f"largest difference {worst} levels, {np.mean(off):.1%} of the values differ")
    assert worst <= 2 and np.mean(off) < 0.3


def test_times_equal_transformers(rng):
    from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
    from transformers.video_utils import VideoMetadata

    for _ in range(300):
        total = int(rng.integers(1, 400))
        indices = np.sort(
            rng.choice(total, size=int(rng.integers(1, min(total, 30) + 1)), replace=False)
        )
        fps, span = float(rng.uniform(1, 60)), int(rng.choice([1, 2, 3]))
        o = options_for("qwen3_vl", temporal_patch_size=span)
        video = Video(np.zeros((len(indices), 1, 1, 3), np.uint8), indices, total, fps)
        expected = Qwen3VLProcessor._calculate_timestamps(None, indices, fps, span)
        assert timestamps(video, o) == pytest.approx(expected, abs=1e-12)
        assert len(expected) == video_grid(len(indices), 64, 64, o)[0]
        metadata = VideoMetadata(total_num_frames=total, fps=fps, frames_indices=indices)
        assert seconds_per_grid(video, o) == pytest.approx(span / metadata.sampled_fps, rel=1e-12)
    assert timestamp_text(0) == "<0.0 seconds>" and timestamp_text(12.3456) == "<12.3 seconds>"


def test_times_of_a_clip_whose_rate_is_unknown():
    video = load_video([np.zeros((8, 8, 3), np.uint8)] * 3)
    for function in (timestamps, seconds_per_grid):
        with pytest.raises(MediaError, match=r"list of 3 frames.*give fps"):
            function(video, VideoOptions())


def encoded(rng, frames, height, width, fps):
    """An mp4 file in memory."""
    av = pytest.importorskip("av")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for picture in noise(rng, frames, height, width):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


@pytest.mark.parametrize("variant", VARIANTS)
def test_opening_at_size_equals_resizing_later(variant, rng):
    for _ in range(8):
        frames, height, width = (
            int(rng.integers(3, 40)),
            *(2 * int(rng.integers(16, 100)) for _ in range(2)),
        )
        data = encoded(rng, frames, height, width, 10)
        low = int(rng.integers(1, 30)) * 1000
        o = options_for(
            variant,
            fps=float(rng.uniform(1, 10)),
            min_pixels=low,
            max_pixels=low + int(rng.integers(0, 90)) * 1000,
        )
        choice = FrameChoice(
            fps=o.fps,
            min_frames=o.min_frames,
            max_frames=o.max_frames,
            sampling=o.rules.sampling,
            frame_factor=2,
        )
        whole = load_video(data, choice)
        expected, grid = preprocess_video(whole.frames, o)
        small = open_video(data, o)
        assert small.frames.shape[1:3] == video_size(len(whole.frames), height, width, o)
        np.testing.assert_array_equal(small.indices, whole.indices)
        patches, found = preprocess_video(small.frames, o, resize=False)
        assert found == grid
        for mine, theirs in zip(patches, expected, strict=True):
            np.testing.assert_array_equal(mine, theirs)
        assert seconds_per_grid(small, o) == seconds_per_grid(whole, o)


def test_open_video_follows_its_options():
    clip = np.zeros((40, 30, 30, 3), np.uint8)
    o = VideoOptions()
    assert open_video(clip, o, source_fps=10).indices.tolist() == [0, 5, 10, 15, 20, 25, 30, 35]
    assert open_video(clip, o.replace(num_frames=4)).indices.tolist() == [0, 10, 20, 30]
    assert len(open_video(clip, o, sample=False).indices) == 40
    assert len(open_video(clip, o.replace(max_frames=10), sample=False).indices) == 10
    assert len(open_video(clip, o.replace(fps=None)).indices) == 40
    ends = options_for("qwen3_vl")
    assert open_video(clip, ends.replace(num_frames=4)).indices.tolist() == [0, 13, 26, 39]
    with pytest.raises(MediaError, match="give fps"):
        open_video(clip, o)
    with pytest.raises(MediaError, match=r"array uint8\[40, 3, 900, 3\].*200 times"):
        open_video(np.zeros((40, 3, 900, 3), np.uint8), o, sample=False)


def test_options_from_configs():
    # preprocessor_config.json of a Qwen2.5-VL checkpoint, whose bounds are those of images
    qwen2_5 = {
        "min_pixels": 3136,
        "max_pixels": 12845056,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
    }
    assert VideoOptions.from_config(qwen2_5, PER_FRAME) == VideoOptions(
        min_pixels=3136, max_pixels=12845056
    )
    qwen3 = {  # video_preprocessor_config.json of a Qwen3-VL checkpoint
        "size": {"longest_edge": 25165824, "shortest_edge": 4096},
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "fps": 2,
        "num_frames": None,
        "processor_class": "Qwen3VLProcessor",
        "video_processor_type": "Qwen3VLVideoProcessor",
    }
    expected = options_for("qwen3_vl", min_pixels=4096, max_pixels=25165824)
    assert VideoOptions.from_config(qwen3, PER_CLIP) == expected
    assert VideoOptions.from_config({"video_processor": qwen3}, PER_CLIP) == expected
    stale = {**qwen3, "min_pixels": 1, "max_pixels": 2}
    assert (
        VideoOptions.from_config(stale, PER_CLIP) == expected
    )  # keys that its processor does not know
    both = {"min_pixels": 1000, "size": {"shortest_edge": 2000, "longest_edge": 9000}}
    assert VideoOptions.from_config(both, PER_FRAME) == VideoOptions(
        min_pixels=1000, max_pixels=9000
    )
    assert VideoOptions.from_config({}, PER_FRAME) == VideoOptions()
    assert VideoOptions.from_config({"num_frames": 8}, PER_FRAME).num_frames == 8
    for config, rules, reason in (
        ({"do_resize": False}, PER_FRAME, "do_resize"),
        ({"size": 448}, PER_FRAME, "size must be an object"),
        ({"fps": 0}, PER_FRAME, "fps must be"),
        ({"image_std": [0, 1, 1]}, PER_FRAME, "image_std"),
        ({"min_frames": 0}, PER_CLIP, "min_frames"),
        (
            {"size": {"shortest_edge": 9, "longest_edge": 8}},
            PER_CLIP,
            "min_pixels 9 is above max_pixels 8",
        ),
    ):
        with pytest.raises(ValueError, match=reason):
            VideoOptions.from_config(config, rules)
    with pytest.raises(ValueError, match="num_frames"):
        VideoOptions(num_frames=0)
    with pytest.raises(ValueError, match="9 is not a valid Resampling"):
        VideoOptions(resample=9)


def test_clips_that_are_no_clips():
    o = VideoOptions()
    for clip in (
        np.zeros((2, 8, 8, 3)),
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((2, 3, 8, 8), np.uint8),
    ):
        with pytest.raises(ValueError, match="uint8"):
            preprocess_video(clip, o)
    for variant in VARIANTS:
        o = options_for(variant)
        with pytest.raises(MediaError, match="no frames"):
            preprocess_video(np.zeros((0, 8, 8, 3), np.uint8), o)
        with pytest.raises(MediaError, match="empty"):
            preprocess_video(np.zeros((2, 0, 8, 3), np.uint8), o)
        with pytest.raises(MediaError, match="200"):
            preprocess_video(np.zeros((2, 40, 8400, 3), np.uint8), o)
        for shape in ((2, 30, 28, 3), (0, 64, 64, 3)):
            with pytest.raises(ValueError, match="do not divide"):
                preprocess_video(np.zeros(shape, np.uint8), o, resize=False)
