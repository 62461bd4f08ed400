"""Images as tiles of one size (InternVL, arXiv:2404.16821 §3.3): the picture is cut into a grid of
squares that fits its shape best, and a thumbnail of the whole picture follows.

    wide picture, max_tiles 6     ->   | 0 | 1 | 2 |     3
                                                         thumbnail
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from jaxr1.inputs.images import ImageOptions, check_shape, preprocess_image
from jaxr1.media.images import to_rgb

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class TileOptions:
    """How a checkpoint wants its tiles; the defaults are those of InternVL2.5.

    Attributes:
      size: side of a tile, in pixels.
      patch_size: side of a patch, in pixels.
      merge_size: side, in patches, of the block that becomes one token.
      min_tiles: fewest tiles of a picture, the thumbnail not counted.
      max_tiles: most tiles of a picture, the thumbnail not counted; 1 is no cutting.
      thumbnail: add one where there is more than one tile.
      image_mean, image_std: of each RGB channel.
      resample: filter of the resizing, a number of `PIL.Image.Resampling`.

    Raises:
      ValueError: a number out of range.
    """

    size: int = 448
    patch_size: int = 14
    merge_size: int = 2
    min_tiles: int = 1
    max_tiles: int = 12
    thumbnail: bool = True
    image_mean: tuple[float, float, float] = IMAGENET_MEAN
    image_std: tuple[float, float, float] = IMAGENET_STD
    resample: int = int(Image.Resampling.BICUBIC)

    def __post_init__(self) -> None:
        if not 1 <= self.min_tiles <= self.max_tiles:
            raise ValueError(
                f"tiles must be 1 <= min <= max, got {self.min_tiles} and {self.max_tiles}"
            )
        if self.max_tiles > MAX_TILES:
            raise ValueError(f"max_tiles {self.max_tiles} is over the limit of {MAX_TILES}")
        if self.size % (self.patch_size * self.merge_size):
            raise ValueError(
                f"a tile of {self.size} pixels does not divide into tokens of {self.token_side}"
            )

    @property
    def token_side(self) -> int:
        """Side in pixels of one token of the decoder."""
        return self.patch_size * self.merge_size

    @property
    def max_patches(self) -> int:
        """Most patches of a unit that attends to itself: a tile."""
        return (self.size // self.patch_size) ** 2

    @property
    def patch_options(self) -> ImageOptions:
        """How a tile is cut into patches."""
        return ImageOptions(
            patch_size=self.patch_size,
            temporal_patch_size=1,
            merge_size=self.merge_size,
            min_pixels=self.size**2,
            max_pixels=self.size**2,
            image_mean=self.image_mean,
            image_std=self.image_std,
            resample=self.resample,
        )

    def with_pixels(self, min_pixels: int | None, max_pixels: int | None) -> TileOptions:
        """The same with bounds in pixels, as other families have them; thumbnails do not count.

        Raises:
          ValueError: less than one tile.
        """
        if max_pixels is not None and max_pixels < self.size**2:
            raise ValueError(
                f"max_pixels {max_pixels} is less than one tile of {self.size} x {self.size}"
            )
        most = self.max_tiles if max_pixels is None else max_pixels // self.size**2
        least = self.min_tiles if min_pixels is None else -(-min_pixels // self.size**2)
        return dataclasses.replace(
            self, max_tiles=most, min_tiles=min(least, most) if min_pixels is None else least
        )

    @classmethod
    def from_configs(
        cls,
        config: Mapping[str, Any],
        settings: Mapping[str, Any],
        *,
        size: int,
        patch_size: int,
        merge_size: int,
    ) -> TileOptions:
        """Options from a config.json and a preprocessor_config.json.

        The hub's original files keep the tiling in config.json (`max_dynamic_patch`,
        `use_thumbnail`), those of transformers in the preprocessor's (`max_patches`,
        `crop_to_patches`).

        Args:
          size, patch_size, merge_size: the tower's, see above.
        """
        found: dict[str, Any] = {
            "image_mean": settings.get("image_mean"),
            "image_std": settings.get("image_std"),
        }
        for field, (original, own) in TILE_KEYS.items():
            found[field] = config.get(original, settings.get(own))
        found["thumbnail"] = config.get("use_thumbnail")
        if config.get("dynamic_image_size") is False:
            found |= {"min_tiles": 1, "max_tiles": 1}
        found["resample"] = settings.get("resample")
        changes: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in found.items() if v is not None
        }
        return cls(size=size, patch_size=patch_size, merge_size=merge_size, **changes)

    def changed(self, config: Mapping[str, Any], settings: Mapping[str, Any]) -> tuple[dict, dict]:
        """The keys of the two files that must change for `from_configs` to read these bounds."""
        said = self.from_configs(
            config, settings, size=self.size, patch_size=self.patch_size, merge_size=self.merge_size
        )
        if (said.min_tiles, said.max_tiles) == (self.min_tiles, self.max_tiles):
            return {}, {}
        if any(original in config for original, _ in TILE_KEYS.values()):
            values = {original: getattr(self, field) for field, (original, _) in TILE_KEYS.items()}
            return values | {"dynamic_image_size": self.max_tiles > 1}, {}
        values = {own: getattr(self, field) for field, (_, own) in TILE_KEYS.items()}
        return {}, values | {"crop_to_patches": self.max_tiles > 1}


TILE_KEYS = {
    "min_tiles": ("min_dynamic_patch", "min_patches"),
    "max_tiles": ("max_dynamic_patch", "max_patches"),
}
"""Names of the bounds in the config.json of the hub's original files, and in the preprocessor's of
transformers.
"""

MAX_TILES = 128
"""Most tiles of a picture: 128 of 448 x 448 are 25 million pixels and 32768 tokens."""


@functools.lru_cache(maxsize=64)
def tile_shapes(least: int, most: int) -> tuple[tuple[int, int], ...]:
    """(columns, rows) of all grids of `least` to `most` tiles, sorted by tiles, then columns."""
    pairs = itertools.product(range(1, most + 1), repeat=2)
    grids = [(columns, rows) for columns, rows in pairs if least <= columns * rows <= most]
    return tuple(sorted(grids, key=lambda grid: (grid[0] * grid[1], grid[0])))


def tile_grid(height: int, width: int, options: TileOptions) -> tuple[int, int]:
    """(columns, rows) of the grid whose shape is nearest to the picture's.

    Of equally near grids the larger one wins where the picture has more than half of its pixels.

    Raises:
      MediaError: an empty picture, or one side more than 200 times the other.
    """
    check_shape(height, width)
    best, nearest = (1, 1), float("inf")
    for columns, rows in tile_shapes(options.min_tiles, options.max_tiles):
        distance = abs(width / height - columns / rows)
        roomy = height * width > 0.5 * options.size**2 * columns * rows
        if distance < nearest or (distance == nearest and roomy):
            best, nearest = (columns, rows), distance
    return best


def tile_grids(height: int, width: int, options: TileOptions) -> tuple[tuple[int, int, int], ...]:
    """The (t, h, w) grids of the tiles of a picture and of its thumbnail.

    Raises:
      MediaError: as `tile_grid`.
    """
    columns, rows = tile_grid(height, width, options) if options.max_tiles > 1 else (1, 1)
    count = columns * rows + (options.thumbnail and columns * rows > 1)
    side = options.size // options.patch_size
    return ((1, side, side),) * count


def cut_tiles(image: Image.Image, options: TileOptions) -> list[Image.Image]:
    """RGB tiles of `options.size`, row by row, and the thumbnail."""
    rgb, side = to_rgb(image), options.size
    columns, rows = tile_grid(rgb.height, rgb.width, options) if options.max_tiles > 1 else (1, 1)
    resample = Image.Resampling(options.resample)
    whole = rgb.resize((columns * side, rows * side), resample=resample)
    tiles = []
    for top, left in itertools.product(range(0, whole.height, side), range(0, whole.width, side)):
        tiles.append(whole.crop((left, top, left + side, top + side)))
    if options.thumbnail and len(tiles) > 1:
        tiles.append(rgb.resize((side, side), resample=resample))
    return tiles


def preprocess_tiles(
    image: Image.Image, options: TileOptions
) -> tuple[list[np.ndarray], list[tuple[int, int, int]]]:
    """The patches of each tile in merge-block order, and their grids.

    `options.patch_options.levels` makes of them what `GotOcr2ImageProcessorPil` of transformers
    does with `crop_to_patches`, cut into patches.

    Returns:
      For each tile uint8[n, 3 * P * P], and (1, n_rows, n_columns).

    Raises:
      MediaError: as `tile_grid`.
    """
    done = [preprocess_image(tile, options.patch_options) for tile in cut_tiles(image, options)]
    return [patches for patches, _ in done], [grid for _, grid in done]
