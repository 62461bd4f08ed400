"""Media of a prompt, cut into patches: what each placeholder of the rendered text stands for."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from jaxr1.inputs.images import ImageOptions, preprocess_image
from jaxr1.inputs.tiles import TileOptions, preprocess_tiles
from jaxr1.inputs.videos import (
    VideoOptions,
    open_video,
    preprocess_video,
    seconds_per_grid,
    timestamps,
)
from jaxr1.media.images import MediaError, describe, load_image, media_hash
from jaxr1.media.videos import video_hash


@dataclasses.dataclass(frozen=True)
class Unit:
    """What one placeholder stands for: an image (of one or more tiles), a video or a frame pair.

    Attributes:
      patches, grids: one entry per tile, or per frame pair of a video; see `EncodedPrompt`.
      hash: of the pixels.
      times: seconds of each frame pair where the text says them (Qwen3-VL's videos), else ().
      step: M-RoPE positions from one frame pair to the next.
    """

    patches: tuple[np.ndarray, ...]
    grids: tuple[tuple[int, int, int], ...]
    hash: str
    times: tuple[float, ...] = ()
    step: float = 1.0

    def apart(self) -> list[Unit]:
        """A unit for each frame pair of a video whose times the text says; else the unit itself."""
        if not self.times:
            return [self]
        pairs = zip(self.patches, self.grids, strict=True)
        return [Unit((patches,), (grid,), self.hash) for patches, grid in pairs]


def image_unit(source: Any, options: ImageOptions | TileOptions) -> Unit:
    """An image of a prompt.

    Args:
      source: as `load_image` takes it.

    Raises:
      MediaError: the image cannot be read, or not be resized within the bounds.
    """
    image = load_image(source)
    try:
        if isinstance(options, TileOptions):
            patches, grids = preprocess_tiles(image, options)
            return Unit(tuple(patches), tuple(grids), media_hash(image))
        found, grid = preprocess_image(image, options)
    except MediaError as e:
        raise MediaError(f"{describe(source)}: {e}") from e
    return Unit((found,), (grid,), media_hash(image))


def video_unit(
    source: Any, fps: float | None, options: VideoOptions, tokens_per_second: float
) -> Unit:
    """A video of a prompt, its frames sampled.

    Args:
      source: as `open_video` takes it.
      fps: of the source, where it does not say itself.
      tokens_per_second: M-RoPE positions of a second; 0 where a frame pair takes one.

    Raises:
      MediaError: the video cannot be read.
    """
    video = open_video(source, options, source_fps=fps)
    patches, (t, h, w) = preprocess_video(video.frames, options, resize=False)
    return Unit(
        patches=tuple(patches.reshape(t, h * w, -1)),
        grids=((1, h, w),) * t,
        hash=video_hash(video.frames),
        times=tuple(timestamps(video, options)) if options.rules.says_times else (),
        step=tokens_per_second * seconds_per_grid(video, options) if tokens_per_second else 1.0,
    )
