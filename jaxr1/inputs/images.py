"""Images to vision-tower input: smart resize, patches in merge-block order, what levels mean."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from PIL import Image

from jaxr1.inputs.levels import Levels
from jaxr1.media.images import MediaError, to_rgb

MAX_ASPECT_RATIO = 200


def check_shape(height: int, width: int) -> None:
    """Refuses pictures that no grid of patches or tiles fits.

    Raises:
      MediaError: an empty picture, or one side more than 200 times the other.
    """
    if height < 1 or width < 1:
        raise MediaError(f"the image is empty ({width}x{height})")
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise MediaError(
            f"one side of {width}x{height} is more than {MAX_ASPECT_RATIO} times the other"
        )


@dataclass(frozen=True)
class PatchOptions:
    """What images and frames share: how they are resized, normalised and cut into patches.

    Attributes:
      patch_size: side of a patch, in pixels (P).
      temporal_patch_size: frames in a patch (T); an image, or the last frame of a clip, is repeated
        to fill them.
      merge_size: side, in patches, of the block that becomes one token of the language model.
      min_pixels: lower bound of the resized area, in pixels.
      max_pixels: upper bound of the resized area, in pixels.
      image_mean: mean of each RGB channel, after rescaling.
      image_std: standard deviation of each RGB channel, after rescaling.
      rescale_factor: what 8-bit values are multiplied with.
      do_rescale: whether they are.
      do_normalize: whether mean and standard deviation are applied.
      resample: filter of the resizing, a number of `PIL.Image.Resampling`.
    """

    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2
    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    rescale_factor: float = 1 / 255
    do_rescale: bool = True
    do_normalize: bool = True
    resample: int = int(Image.Resampling.BICUBIC)

    def __post_init__(self) -> None:
        self.check_counts(
            "patch_size", "temporal_patch_size", "merge_size", "min_pixels", "max_pixels"
        )
        if self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels {self.min_pixels} is above max_pixels {self.max_pixels}")
        for name in ("image_mean", "image_std"):
            if len(getattr(self, name)) != 3:
                raise ValueError(f"{name} must hold 3 values, got {getattr(self, name)}")
        if self.do_normalize and min(self.image_std) <= 0:
            raise ValueError(f"image_std must be positive, got {self.image_std}")
        Image.Resampling(self.resample)

    def check_counts(self, *names: str) -> None:
        """Raises ValueError where one of these fields is below 1."""
        for name in names:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def factor(self) -> int:
        """Pixels on the side of one token: resized heights and widths are multiples of it."""
        return self.patch_size * self.merge_size

    @property
    def patch_dim(self) -> int:
        """Values in a flattened patch: C * T * P * P."""
        return 3 * self.temporal_patch_size * self.patch_size**2

    @property
    def levels(self) -> Levels:
        """What 8-bit pixels stand for: (level * rescale_factor - mean) / std."""
        factor = self.rescale_factor if self.do_rescale else 1.0
        if not self.do_normalize:
            return Levels((factor,) * 3, (0.0,) * 3)
        red, green, blue = self.image_std
        scale = (factor / red, factor / green, factor / blue)
        shift = [-mean / std for mean, std in zip(self.image_mean, self.image_std, strict=True)]
        return Levels(scale, (shift[0], shift[1], shift[2]))

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True)
class ImageOptions(PatchOptions):
    """How a checkpoint wants its images; the defaults are those of Qwen2-VL."""

    @property
    def max_patches(self) -> int:
        """Most patches of an image within `max_pixels`."""
        return self.max_pixels // self.patch_size**2

    def with_pixels(self, min_pixels: int | None, max_pixels: int | None) -> "ImageOptions":
        """The same with other bounds of the resized area; None leaves one.

        Raises:
          ValueError: the lower bound is above the upper one.
        """
        given = {"min_pixels": min_pixels, "max_pixels": max_pixels}
        return self.replace(**{k: v for k, v in given.items() if v is not None})

    @classmethod
    def from_preprocessor_config(cls, config: Mapping[str, Any]) -> "ImageOptions":
        """Options from a `preprocessor_config.json` or a `processor_config.json`.

        Reads `min_pixels`/`max_pixels` and the newer `size: {shortest_edge, longest_edge}` (both in
        pixels of area); where both are given the former wins, as in transformers. Absent or null
        keys keep their default.

        Args:
          config: the parsed file; an `image_processor` object inside it is used where there is one.

        Raises:
          ValueError: resizing is switched off, or a value is out of range.
        """
        config = config.get("image_processor") or config
        if config.get("do_resize") is False:
            raise ValueError("do_resize is false: images of any size would not divide into patches")
        size = config.get("size") or {}
        if not isinstance(size, Mapping):
            raise ValueError(
                f"size must be an object with shortest_edge and longest_edge, got {size!r}"
            )
        changes: dict[str, Any] = {
            "min_pixels": first_given(
                config.get("min_pixels"), size.get("shortest_edge"), size.get("min_pixels")
            ),
            "max_pixels": first_given(
                config.get("max_pixels"), size.get("longest_edge"), size.get("max_pixels")
            ),
        }
        for field in dataclasses.fields(cls):
            if field.name not in changes:
                value = config.get(field.name)
                changes[field.name] = tuple(value) if isinstance(value, list) else value
        return cls(**{name: value for name, value in changes.items() if value is not None})


def smart_resize(
    height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """An image's new size: multiples of `factor`, area within bounds, aspect nearly kept.

    As Qwen2-VL (arXiv:2409.12191, section 2.1) has it: round each side, and only where the area is
    then out of bounds scale both sides first, rounding towards the inside. An image narrower than
    `factor` can end above `max_pixels`.

    Args:
      height: pixels.
      width: pixels.
      factor: both results are multiples of it, in pixels.
      min_pixels: least area.
      max_pixels: largest area.

    Returns:
      (height, width) in pixels.

    Raises:
      MediaError: an empty image, or one side more than 200 times the other.
    """
    check_shape(height, width)
    new_height, new_width = round(height / factor) * factor, round(width / factor) * factor
    if new_height * new_width > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif new_height * new_width < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        new_height = math.ceil(height * grow / factor) * factor
        new_width = math.ceil(width * grow / factor) * factor
    return new_height, new_width


def image_grid(height: int, width: int, options: ImageOptions) -> tuple[int, int, int]:
    """The (t, h, w) grid of an image's patches; it becomes t * h * w / merge_size**2 tokens.

    Raises:
      MediaError: as `smart_resize`.
    """
    new_height, new_width = smart_resize(
        height,
        width,
        factor=options.factor,
        min_pixels=options.min_pixels,
        max_pixels=options.max_pixels,
    )
    return 1, new_height // options.patch_size, new_width // options.patch_size


def preprocess_image(
    image: Image.Image, options: ImageOptions
) -> tuple[np.ndarray, tuple[int, int, int]]:
    """One image as flat patches; `options.levels` makes of them what transformers does.

    That is `Qwen2VLImageProcessorPil`, which resizes in 8 bits too. An image fills all frames of
    its patches, and is here once.

    Patches come merge block by merge block, so that the four of a 2x2 block are neighbours:

        grid 2 x 4, merge_size 2        order   0  1 | 4  5
                                                2  3 | 6  7

    Args:
      image: any mode; converted by `to_rgb`. EXIF orientation is `load_image`'s business.
      options: sizes and statistics.

    Returns:
      patches: uint8[n, C * P * P], n = t * h * w; a patch is laid out channel, row, column.
      grid: (t, h, w) in patches; t is 1.

    Raises:
      MediaError: an aspect ratio beyond 200.
    """
    rgb = to_rgb(image)
    grid = _, rows, columns = image_grid(rgb.height, rgb.width, options)
    side = options.patch_size
    resized = rgb.resize((columns * side, rows * side), resample=Image.Resampling(options.resample))
    pixel_ncpp = split_patches(np.asarray(resized), side, options.merge_size)
    return pixel_ncpp.reshape(rows * columns, -1), grid


def split_patches(pixel_hwc: np.ndarray, side: int, merge: int) -> np.ndarray:
    """A resized picture cut into patches, merge block by merge block.

    Args:
      pixel_hwc: uint8[H, W, 3]; both sides are multiples of side * merge.
      side: of a patch, in pixels.
      merge: side of a block, in patches.

    Returns:
      uint8[n, 3, side, side].
    """
    rows, columns = pixel_hwc.shape[0] // side, pixel_hwc.shape[1] // side
    pixel = pixel_hwc.reshape(rows // merge, merge, side, columns // merge, merge, side, 3)
    # [block row, block column, row in block, column in block, C, P, P]
    return pixel.transpose(0, 3, 1, 4, 6, 2, 5).reshape(rows * columns, 3, side, side)


def first_given(*values: Any) -> Any:
    """The first value that is not None."""
    return next((value for value in values if value is not None), None)
