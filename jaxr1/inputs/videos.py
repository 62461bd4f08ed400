"""Videos to vision-tower input: which frames, what size, which patches, shown when."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from jaxr1.inputs.images import (
    MAX_ASPECT_RATIO,
    PatchOptions,
    first_given,
    smart_resize,
    split_patches,
)
from jaxr1.media.frames import FrameChoice, Sampling, sample_indices
from jaxr1.media.images import MAX_PIXELS_DECODED, MediaError
from jaxr1.media.videos import Video, VideoSource, describe_video, load_video, probe_video


@dataclass(frozen=True)
class VideoRules:
    """What the video processors of transformers differ in.

    Attributes:
      sampling: where the frames taken lie in the clip, see `jaxr1.media.frames.Sampling`.
      whole_clip: bounds of pixels are of all frames together, else of one frame.
      says_times: the time of each pair of frames is written into the text.
      defaults: (option, value) where a checkpoint says nothing, besides those of `VideoOptions`.
    """

    sampling: Sampling
    whole_clip: bool
    says_times: bool
    defaults: tuple[tuple[str, Any], ...] = ()


PER_FRAME = VideoRules("stride", whole_clip=False, says_times=False)
"""Those of Qwen2-VL and Qwen2.5-VL (arXiv:2409.12191)."""

PER_CLIP = VideoRules(
    "ends",
    whole_clip=True,
    says_times=True,
    defaults=(
        ("patch_size", 16),
        ("min_pixels", 128 * 32 * 32),
        ("max_pixels", 768 * 32 * 32),
        ("max_video_tokens", 768),
        ("image_mean", (0.5, 0.5, 0.5)),
        ("image_std", (0.5, 0.5, 0.5)),
    ),
)
"""Those of Qwen3-VL (arXiv:2511.21631)."""


@dataclass(frozen=True)
class VideoOptions(PatchOptions):
    """How a checkpoint wants its videos; the defaults are those of Qwen2-VL.

    Attributes:
      min_pixels: lower bound of the resized area, in pixels: of a frame, or of all frames together
        (`VideoRules.whole_clip`).
      max_pixels: upper bound, likewise.
      rules: how frames are sampled and sized.
      cap_pixels_per_frame: whether `max_video_tokens` bounds the area of a frame further, see
        `video_size`.
      max_video_tokens: with it, tokens of a whole clip that 90 % of may be used; tokens of a frame
        where bounds are of the whole clip.
      fps: frames taken for a second; None takes all, up to `max_frames`.
      num_frames: frames taken whatever the length; where it is given, `fps` is not looked at.
      min_frames: least number of frames taken at `fps`.
      max_frames: largest number of frames taken, unless by `num_frames`.
    """

    min_pixels: int = 128 * 28 * 28
    max_pixels: int = 768 * 28 * 28
    rules: VideoRules = PER_FRAME
    cap_pixels_per_frame: bool = False
    max_video_tokens: int = 128_000
    fps: float | None = 2.0
    num_frames: int | None = None
    min_frames: int = 4
    max_frames: int = 768

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_counts("max_video_tokens", "min_frames", "max_frames")
        if self.num_frames is not None and self.num_frames < 1:
            raise ValueError(f"num_frames must be at least 1, got {self.num_frames}")
        if self.fps is not None and not (self.fps > 0 and math.isfinite(self.fps)):
            raise ValueError(f"fps must be a positive number of frames a second, got {self.fps}")

    @classmethod
    def from_config(cls, config: Mapping[str, Any], rules: VideoRules) -> "VideoOptions":
        """Options from the `(video_)preprocessor_config.json` or `processor_config.json`.

        transformers looks for them in this order: `video_processor` in `processor_config.json`,
        then `video_preprocessor_config.json`, then `preprocessor_config.json`, whose bounds are
        those of images. Reads `min_pixels`/`max_pixels` and `size: {shortest_edge, longest_edge}`
        (all in pixels of area). Where both are given the former wins, but for bounds of the whole
        clip, whose processor knows only the latter. Absent or null keys keep the default of the
        rules; `fps` is then 2, as the tools of these models have it. `do_sample_frames` is not
        read: clips are sampled always.

        Args:
          config: the parsed file; a `video_processor` object inside it is used where there is one.
          rules: of the family.

        Raises:
          ValueError: resizing is switched off, or a value is out of range.
        """
        config = config.get("video_processor") or config
        if config.get("do_resize") is False:
            raise ValueError("do_resize is false: frames of any size would not divide into patches")
        size = config.get("size") or {}
        if not isinstance(size, Mapping):
            raise ValueError(
                f"size must be an object with shortest_edge and longest_edge, got {size!r}"
            )
        said: dict[str, Any] = {"rules": rules}
        for name, edge in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
            own, sizes = config.get(name), (size.get(edge), size.get(name))
            said[name] = first_given(*sizes, own) if rules.whole_clip else first_given(own, *sizes)
        for field in dataclasses.fields(cls):
            if field.name not in said:
                value = config.get(field.name)
                said[field.name] = tuple(value) if isinstance(value, list) else value
        given = {name: value for name, value in said.items() if value is not None}
        return cls(**dict(rules.defaults) | given)


def video_size(frames: int, height: int, width: int, options: VideoOptions) -> tuple[int, int]:
    """The size of a clip's frames: multiples of `options.factor`, aspect ratio nearly kept.

    Bounds of a frame (arXiv:2409.12191) size it as an image. With `cap_pixels_per_frame`, it may
    have no more pixels than its share of a clip of 0.9 * `max_video_tokens` tokens, but 1.05 *
    `min_pixels` in any case. Bounds of the whole clip (arXiv:2511.21631) are for frames * height *
    width, so that a longer clip has smaller frames. With `cap_pixels_per_frame`, a frame may have
    no more than its share of `max_pixels` and no more than `max_video_tokens` tokens, but 1.05 *
    `min_pixels` in any case.

    Args:
      frames: number of frames taken; fewer than `options.temporal_patch_size` count as so many.
      height: pixels.
      width: pixels.
      options: bounds.

    Returns:
      (height, width) in pixels.

    Raises:
      MediaError: no frames or empty ones, or one side more than 200 times the other.
    """
    if frames < 1:
        raise MediaError("the video has no frames")
    factor, pair = options.factor, options.temporal_patch_size
    low, high = options.min_pixels, options.max_pixels
    floor = int(low * 1.05)
    if not options.rules.whole_clip:
        if options.cap_pixels_per_frame:
            budget = int(options.max_video_tokens * factor * factor * 0.9)
            high = max(min(high, budget * pair // frames), floor)
        return smart_resize(height, width, factor=factor, min_pixels=low, max_pixels=high)
    frames = max(frames, pair)
    if options.cap_pixels_per_frame:
        high = max(min(options.max_video_tokens * factor * factor, high // frames), floor) * frames
    return _clip_resize(
        frames, height, width, factor=factor, pair=pair, min_pixels=low, max_pixels=high
    )


def _clip_resize(
    frames: int,
    height: int,
    width: int,
    *,
    factor: int,
    pair: int,
    min_pixels: int,
    max_pixels: int,
) -> tuple[int, int]:
    """`smart_resize` over time and space: bounds are for frames * height * width.

    A frame smaller than `factor` on a side is scaled up first. Whether a bound is broken is asked
    for a whole number of temporal patches, by how much for the frames there are; both as the
    reference does.
    """
    if height < 1 or width < 1:
        raise MediaError(f"the frames are empty ({width}x{height})")
    if min(height, width) < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise MediaError(
            f"one side of {width}x{height} is more than {MAX_ASPECT_RATIO} times the other"
        )
    new_height, new_width = round(height / factor) * factor, round(width / factor) * factor
    volume = round(frames / pair) * pair * new_height * new_width
    if volume > max_pixels:
        shrink = math.sqrt(frames * height * width / max_pixels)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif volume < min_pixels:
        grow = math.sqrt(min_pixels / (frames * height * width))
        new_height = math.ceil(height * grow / factor) * factor
        new_width = math.ceil(width * grow / factor) * factor
    return new_height, new_width


def video_grid(frames: int, height: int, width: int, options: VideoOptions) -> tuple[int, int, int]:
    """The (t, h, w) grid of a clip's patches; it becomes t * h * w / merge_size**2 tokens.

    Raises:
      MediaError: as `video_size`.
    """
    new_height, new_width = video_size(frames, height, width, options)
    return (
        math.ceil(frames / options.temporal_patch_size),
        new_height // options.patch_size,
        new_width // options.patch_size,
    )


def frame_choice(options: VideoOptions, sample: bool = True) -> FrameChoice:
    """Which frames of a clip the options ask for; see `open_video`."""
    by_rate = sample and options.num_frames is None
    return FrameChoice(
        fps=options.fps if by_rate else None,
        num_frames=options.num_frames if sample else None,
        min_frames=options.min_frames,
        max_frames=options.max_frames,
        frame_factor=options.temporal_patch_size,
        sampling=options.rules.sampling,
    )


def measure_video(
    source: VideoSource, options: VideoOptions, *, source_fps: float | None = None
) -> tuple[Video, tuple[int, int, int]]:
    """What `open_video` and `preprocess_video` would make of a clip, from its header alone.

    A container that is to be turned gives a grid whose sides are exchanged, and one that counts
    frames which are never shown a few too many.

    Returns:
      The clip without its frames, and the (t, h, w) grid of its patches.

    Raises:
      MediaError: as `open_video`, except for damage and truncation.
      ImportError: a file is given and PyAV is not installed.
    """
    name, info = describe_video(source), probe_video(source, source_fps=source_fps)
    try:
        indices = sample_indices(info.total, info.fps, frame_choice(options))
        grid = video_grid(len(indices), info.height, info.width, options)
    except MediaError as error:
        raise MediaError(f"{name}: {error}") from error
    return Video(np.empty((0, 0, 0, 3), np.uint8), indices, info.total, info.fps, name), grid


def open_video(
    source: VideoSource,
    options: VideoOptions,
    *,
    source_fps: float | None = None,
    sample: bool = True,
    max_pixels_decoded: int = MAX_PIXELS_DECODED,
) -> Video:
    """The frames of a clip that the options ask for, resized as soon as they are decoded.

    The frames go to `preprocess_video` with `resize=False`; the result is that of `load_video` and
    `preprocess_video`, but a long clip is never held at its full size.

    Args:
      source: see `load_video`.
      options: sampling and sizes.
      source_fps: frames a second of a list or an array; for a file it replaces the container's
        rate.
      sample: False takes the frames as they are, for frames sampled before; still no more than
        `max_frames`.
      max_pixels_decoded: clips with more pixels in one frame are refused before decoding.

    Raises:
      MediaError: as `load_video` and `video_size`; the message names the clip.
      ImportError: a file is given and PyAV is not installed.
    """
    return load_video(
        source,
        frame_choice(options, sample),
        source_fps=source_fps,
        resize=lambda frames, height, width: video_size(frames, height, width, options),
        resample=options.resample,
        max_pixels_decoded=max_pixels_decoded,
    )


def preprocess_video(
    frames: np.ndarray, options: VideoOptions, *, resize: bool = True
) -> tuple[list[np.ndarray], tuple[int, int, int]]:
    """A clip as flat patches, those of each temporal patch apart.

    A patch spans `temporal_patch_size` frames; an odd last frame is repeated. Patches come temporal
    patch by temporal patch, and within one as those of an image, merge block by merge block, so an
    image is a clip of one frame:

        grid 2 x 2 x 4, merge_size 2       t = 0   0  1 | 4  5       t = 1    8  9 | 12 13
                                                   2  3 | 6  7               10 11 | 14 15

    With `options.levels` equal to `Qwen2VLVideoProcessor` and `Qwen3VLVideoProcessor` of
    transformers but for the resizing, which is theirs with torchvision (antialiased bicubic on a
    tensor of 8-bit values) and ours with Pillow, as for images. The filter is the same. Both round
    to 8 bits after each of its two passes, Pillow with finer weights, so values differ by one or
    two levels of 255, but by more at hard edges between black and white, where each pass cuts off
    its overshoot. Frames that have their size already give equal patches.

    Args:
      frames: uint8[T, H, W, 3], upright RGB.
      options: sizes and statistics.
      resize: False: the frames come from `open_video`, and have their size already.

    Returns:
      patches: t times uint8[h * w, C * T * P * P]; a patch is laid out channel, frame, row, column.
        Where its frames are one and the same picture that is there once: uint8[h * w, C * P * P].
      grid: (t, h, w) in patches.

    Raises:
      MediaError: no frames or empty ones, or an aspect ratio beyond 200.
      ValueError: an array of another type or shape; with `resize=False`, a size that does not
        divide into patches.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(
            f"frames must be uint8[T, H, W, 3], got {frames.dtype}{list(frames.shape)}"
        )
    count, height, width = frames.shape[:3]
    if resize:
        new_height, new_width = video_size(count, height, width, options)
    else:
        new_height, new_width = height, width
        if min(frames.shape) < 1 or height % options.factor or width % options.factor:
            raise ValueError(
                f"{count} frames of {width}x{height} do not divide into blocks of side "
                f"{options.factor}"
            )
    side, span = options.patch_size, options.temporal_patch_size
    grid = _, rows, columns = math.ceil(count / span), new_height // side, new_width // side
    patches = []
    for first in range(0, count, span):
        shown = frames[first : first + span]
        if (shown == shown[:1]).all():  # a still, or the odd last frame
            shown = shown[:1]
        elif len(shown) < span:
            shown = np.concatenate([shown, np.repeat(shown[-1:], span - len(shown), 0)])
        cut = np.empty((rows * columns, 3, len(shown), side, side), np.uint8)
        for place, pixel_hwc in enumerate(shown):
            if (height, width) != (new_height, new_width):
                picture = Image.fromarray(np.ascontiguousarray(pixel_hwc))
                pixel_hwc = np.asarray(
                    picture.resize((new_width, new_height), Image.Resampling(options.resample))
                )
            cut[:, :, place] = split_patches(pixel_hwc, side, options.merge_size)
        patches.append(cut.reshape(rows * columns, -1))
    return patches, grid


def seconds_per_grid(video: Video, options: VideoOptions) -> float:
    """Seconds between temporal patches: temporal_patch_size / sampled frames a second.

    Raises:
      MediaError: the rate of the clip is unknown.
    """
    return options.temporal_patch_size / video.sampled_fps


def timestamps(video: Video, options: VideoOptions) -> list[float]:
    """Seconds from the start for each temporal patch: the mean of its first and last frame.

    Qwen3-VL writes them before the patches, see `timestamp_text`. An odd last frame is repeated, so
    its patch has its own time. The time of a frame is its index / the clip's average rate.

    Raises:
      MediaError: the rate of the clip is unknown.
    """
    span, fps, last = options.temporal_patch_size, video.known_fps, len(video.indices) - 1
    second = [float(index) / fps for index in video.indices]
    return [
        (second[first] + second[min(first + span - 1, last)]) / 2
        for first in range(0, last + 1, span)
    ]


def timestamp_text(seconds: float) -> str:
    """How Qwen3-VL writes a time before the patches shown then."""
    return f"<{seconds:.1f} seconds>"
