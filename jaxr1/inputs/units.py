"""Media of a prompt: what each placeholder of the rendered text stands for.

How many tokens a medium becomes is known from its header. So it is measured first, and decoded only
when the whole prompt is known to fit.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxr1.inputs.images import ImageOptions, image_grid, preprocess_image
from jaxr1.inputs.levels import Levels
from jaxr1.inputs.positions import Span
from jaxr1.inputs.sizes import TooLong
from jaxr1.inputs.template import PromptError
from jaxr1.inputs.tiles import TileOptions, preprocess_tiles, tile_grid, tile_grids
from jaxr1.inputs.videos import (
    VideoOptions,
    measure_video,
    open_video,
    preprocess_video,
    seconds_per_grid,
    timestamp_text,
    timestamps,
)
from jaxr1.media.images import MediaError, describe, load_image, media_hash, probe_image
from jaxr1.media.references import StoredMedia, media_reference
from jaxr1.media.videos import Video, describe_video, video_hash

Grid = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Unit:
    """What one placeholder stands for: an image (of one or more tiles), a video or a frame pair.

    Attributes:
      grids: one entry per tile, or per frame pair of a video; see `EncodedPrompt`.
      patches: likewise; () of what is measured and not decoded.
      levels: what its pixels stand for; None of what is not decoded.
      hash: of the pixels.
      times: seconds of each frame pair where the text says them (Qwen3-VL's videos), else ().
      step: M-RoPE positions from one frame pair to the next.
      is_video: for messages.
      size: of an image, see `EncodedPrompt.sizes`.
    """

    grids: tuple[Grid, ...]
    patches: tuple[np.ndarray, ...] = ()
    levels: Levels | None = None
    hash: str = ""
    times: tuple[float, ...] = ()
    step: float = 1.0
    is_video: bool = False
    size: tuple[int, int, int, int] | None = None

    @property
    def layout(self) -> tuple[tuple[Grid, ...], tuple[float, ...], float]:
        """All that text and positions of a prompt depend on."""
        return self.grids, self.times, self.step

    def apart(self) -> list[Unit]:
        """A unit for each frame pair of a video whose times the text says; else the unit itself.

        They are for placing only, and hold no patches.
        """
        return [Unit((grid,)) for grid in self.grids] if self.times else [self]


@dataclasses.dataclass(frozen=True, slots=True)
class AtHand(StoredMedia):
    """Encoded bytes that were read, or unspelled, and are looked at more than once."""

    encoded: bytes
    title: str

    @property
    def name(self) -> str:
        return self.title

    def read(self) -> bytes:
        return self.encoded


def at_hand(part: dict) -> dict:
    """A part of a prompt whose bytes are read once, for its header and its pixels."""
    kind = part["type"]
    source = part[kind]
    try:
        found = media_reference(source)
    except MediaError:  # frames, arrays and pictures; what cannot be opened says so when it is
        return part
    if not isinstance(found, bytes):
        return part
    name = describe_video(source) if kind == "video" else describe(source)
    return {**part, kind: AtHand(found, name)}


def image_unit(source: Any, options: ImageOptions | TileOptions, *, decode: bool) -> Unit:
    """An image of a prompt.

    Args:
      source: as `load_image` takes it.
      decode: False is a look at its header only.

    Raises:
      MediaError: the image cannot be read, not be resized within the bounds, or is of another size
        than its header says.
    """
    name = describe(source)
    height, width = probe_image(source)
    try:
        grids = _image_grids(height, width, options)
        size = (width, height, *_seen_size(height, width, options))
    except MediaError as e:
        raise MediaError(f"{name}: {e}") from e
    if not decode:
        return Unit(grids, size=size)
    image = load_image(source)
    if image.size != (width, height):
        raise MediaError(
            f"{name}: decodes to {image.width}x{image.height} pixels, but its header says "
            f"{width}x{height}"
        )
    if isinstance(options, TileOptions):
        tiles, _ = preprocess_tiles(image, options)
        patches, levels = tuple(tiles), options.patch_options.levels
    else:
        found, _ = preprocess_image(image, options)
        patches, levels = (found,), options.levels
    return Unit(grids, patches, levels, media_hash(image), size=size)


def _image_grids(height: int, width: int, options: ImageOptions | TileOptions) -> tuple[Grid, ...]:
    if isinstance(options, TileOptions):
        return tile_grids(height, width, options)
    return (image_grid(height, width, options),)


def _seen_size(height: int, width: int, options: ImageOptions | TileOptions) -> tuple[int, int]:
    """The width and height that an image is resized to, all tiles together."""
    if isinstance(options, TileOptions):
        columns, rows = tile_grid(height, width, options) if options.max_tiles > 1 else (1, 1)
        return columns * options.size, rows * options.size
    _, rows, columns = image_grid(height, width, options)
    return columns * options.patch_size, rows * options.patch_size


def video_unit(
    source: Any,
    fps: float | None,
    options: VideoOptions,
    tokens_per_second: float,
    *,
    decode: bool,
) -> Unit:
    """A video of a prompt, its frames sampled.

    A container may count frames that are never shown, or be turned: then the clip differs from what
    its header says.

    Args:
      source: as `open_video` takes it.
      fps: of the source, where it does not say itself.
      tokens_per_second: M-RoPE positions of a second; 0 where a frame pair takes one.
      decode: False is a look at its header only.

    Raises:
      MediaError: the video cannot be read.
    """
    if not decode:
        video, grid = measure_video(source, options, source_fps=fps)
        return _clip(video, grid, options, tokens_per_second)
    video = open_video(source, options, source_fps=fps)
    patches, grid = preprocess_video(video.frames, options, resize=False)
    return dataclasses.replace(
        _clip(video, grid, options, tokens_per_second),
        patches=tuple(patches),
        levels=options.levels,
        hash=video_hash(video.frames),
    )


def _clip(video: Video, grid: Grid, options: VideoOptions, tokens_per_second: float) -> Unit:
    """The unit of a clip, without its pixels."""
    t, h, w = grid
    return Unit(
        grids=((1, h, w),) * t,
        times=tuple(timestamps(video, options)) if options.rules.says_times else (),
        step=tokens_per_second * seconds_per_grid(video, options) if tokens_per_second else 1.0,
        is_video=True,
    )


def check_size(
    tokens: int,
    spans: Sequence[Span],
    units: Sequence[Unit],
    max_tokens: int | None,
    max_patches: int | None,
) -> None:
    """Refuses a prompt that is too long, or whose media are over the largest patch row.

    A very long, thin image keeps a side of one token and so may exceed `max_pixels`.

    Args:
      tokens: of the prompt.
      spans: those of its media.
      max_tokens, max_patches: limits; None for none.

    Raises:
      TooLong: it is.
    """
    if max_tokens is not None and tokens > max_tokens:
        inside = sum(span.end - span.start for span in spans)
        share = f" ({inside} of them for {len(units)} images)" if units else ""
        raise TooLong(f"the prompt has {tokens} tokens{share}, over the limit of {max_tokens}")
    for unit in units:
        largest = max(t * h * w for t, h, w in unit.grids)
        if max_patches is not None and largest > max_patches:
            what = "a frame of a video" if unit.is_video else "an image"
            raise TooLong(
                f"{what} has {largest} patches, over the limit of {max_patches} (buckets.patches)"
            )


def media_fields(units: Sequence[Unit]) -> dict[str, Any]:
    """The fields of an `EncodedPrompt` that its units fill."""
    joined = itertools.chain.from_iterable
    return {
        "grids": tuple(joined(unit.grids for unit in units)),
        "patches": tuple(joined(unit.patches for unit in units)),
        "levels": tuple(joined((unit.levels,) * len(unit.patches) for unit in units)),
        "hashes": tuple(unit.hash for unit in units if unit.hash),
        "sizes": tuple(unit.size for unit in units if unit.size is not None),
    }


def with_times(rendered: str, units: Sequence[Unit], video_pad: str) -> tuple[str, list[Unit]]:
    """The rendered text and its units, with a timed video taken apart into frame pairs.

    <|vision_start|><|video_pad|><|vision_end|>

    <0.2 seconds><|vision_start|><|video_pad|><|vision_end|>
    <1.2 seconds><|vision_start|><|video_pad|><|vision_end|> ...       on one line
    """
    clips = [unit for unit in units if unit.times]
    if not clips:
        return rendered, list(units)
    first, *rest = rendered.split(video_pad)
    if len(rest) != len(clips):
        raise PromptError(
            f"the prompt has {len(clips)} videos, but the template has a place for {len(rest)}"
        )
    text = first
    for clip, after in zip(clips, rest, strict=True):
        said = [timestamp_text(time) + video_pad for time in clip.times]
        text += "".join(said) + after
    return text, list(itertools.chain.from_iterable(unit.apart() for unit in units))
