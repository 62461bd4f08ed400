"""What a processor is told: by the user, by the model's family, by the files of its directory."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from jaxr1.base.checks import check_types, option
from jaxr1.checkpoints.tensors import read_json
from jaxr1.inputs.images import ImageOptions
from jaxr1.inputs.tiles import TileOptions
from jaxr1.inputs.videos import VideoOptions, VideoRules
from jaxr1.inputs.wording import Wording

IMAGE_FILES = ("preprocessor_config.json", "processor_config.json")
VIDEO_FILE = "video_preprocessor_config.json"
STATISTICS = ("image_mean", "image_std", "rescale_factor")


@dataclasses.dataclass(frozen=True)
class ProcessorOptions:
    """What the processor does other than the model directory says; None leaves it.

    Attributes:
      min_pixels: lower bound of the area of a resized image.
      max_pixels: upper bound of the area of a resized image.
      template: "r1_zero" for base models; "chatml" or "internvl2_5" for directories without a chat
        template of their own.
      system: a system prompt for all conversations without one: a text, or the name of a known one
        ("r1", "boxed"); "" is none.
      question_template: words around the question: a text with {question} in it, or the name of a
        known one ("think_answer", "boxed", "short", "letter"). Training, held-out sets and the
        exported model are asked with both.
      video_fps: frames taken for a second of video.
      video_max_frames: most frames taken of a video.
      video_max_pixels: upper bound of the area of a resized frame (of all frames together for
        Qwen3-VL).
    """

    min_pixels: int | None = None
    max_pixels: int | None = None
    template: Literal["r1_zero", "chatml", "internvl2_5"] | None = None
    system: str | None = None
    question_template: str | None = None
    video_fps: float | None = None
    video_max_frames: int | None = None
    video_max_pixels: int | None = None

    def __post_init__(self):
        check_types(self)
        with option("processor"):
            Wording().given(self.template, self.system, self.question_template)


@dataclasses.dataclass(frozen=True)
class MediaRules:
    """What a family makes of media; filled in by `models.families`.

    Attributes:
      patch_size: side of a patch, in pixels.
      temporal_patch_size: frames in a patch.
      merge_size: side, in patches, of the block that becomes one token.
      tokens: strings that stand for media, which are never sampled; the first one is the place of
        an image's embeddings.
      token_keys: keys of config.json that hold the ids of such tokens.
      image_pad: one image in rendered text, "{}" its place.
      tile_side: side, in patches, of tiles of one size; 0 for images of any size.
      video_pad: one video in rendered text.
      video: how clips are sampled and sized; None for a model that takes none.
      tokens_per_second: positions in a second of video, 0 where frames count one by one.
      mrope: positions have a time, a row and a column.
      flat: the chat template takes strings only.
    """

    patch_size: int
    temporal_patch_size: int
    merge_size: int
    tokens: tuple[str, ...]
    token_keys: tuple[str, ...]
    image_pad: str
    tile_side: int = 0
    video_pad: str = ""
    video: VideoRules | None = None
    tokens_per_second: float = 0.0
    mrope: bool = False
    flat: bool = False


# --- files of a directory -----------------------------------------------------------------------
def image_options(directory: Path, raw: Mapping, rules: MediaRules) -> ImageOptions | TileOptions:
    """Image settings of a directory; sizes of patches are the tower's.

    Args:
      raw: its parsed config.json.
    """
    _, settings = _image_settings(directory)
    if rules.tile_side:
        return TileOptions.from_configs(
            raw,
            settings,
            size=rules.tile_side * rules.patch_size,
            patch_size=rules.patch_size,
            merge_size=rules.merge_size,
        )
    options = ImageOptions.from_preprocessor_config(settings)
    return options.replace(**_patch_sizes(rules))


def video_options(directory: Path, rules: MediaRules) -> VideoOptions:
    """Video settings of a directory; sizes of patches are the tower's."""
    assert rules.video is not None
    options = VideoOptions.from_config(_video_settings(directory)[1], rules.video)
    return options.replace(**_patch_sizes(rules))


def changed_files(
    directory: Path, images: ImageOptions | TileOptions | None, videos: VideoOptions | None
) -> dict[str, dict]:
    """{name: keys to set} of the files that a saved copy must have anew: bounds given on loading.

    Without them an exported model would be asked about images of another size than it was trained
    on.
    """
    found: dict[str, dict] = {}
    for name, keys in [*_changed_images(directory, images), *_changed_videos(directory, videos)]:
        found[name] = found.get(name, {}) | keys
    return {name: keys for name, keys in found.items() if keys}


def _changed_images(
    directory: Path, images: ImageOptions | TileOptions | None
) -> list[tuple[str, dict]]:
    if images is None:
        return []
    name, settings = _image_settings(directory)
    config: dict = {}
    changes: dict = {}
    if isinstance(images, TileOptions):
        config, changes = images.changed(_read(directory / "config.json"), settings)
    else:
        said, bounds = ImageOptions.from_preprocessor_config(settings), _bounds(images)
        if _bounds(said) != bounds:
            changes = dict(zip(("min_pixels", "max_pixels"), bounds, strict=True))
            if "size" in settings:
                changes["size"] = dict(zip(("shortest_edge", "longest_edge"), bounds, strict=True))
    if changes and "image_processor" in _read(directory / name):
        changes = {"image_processor": settings | changes}
    return [("config.json", config), (name, changes)]


def _changed_videos(directory: Path, videos: VideoOptions | None) -> list[tuple[str, dict]]:
    if videos is None:
        return []
    name, whole = _video_settings(directory)
    said = VideoOptions.from_config(whole, videos.rules)
    fields = ("fps", "max_frames", "min_pixels", "max_pixels")
    if all(getattr(said, field) == getattr(videos, field) for field in fields):
        return []
    settings = dict(whole.get("video_processor", whole))
    settings |= {field: getattr(videos, field) for field in fields}
    settings["size"] = dict(zip(("shortest_edge", "longest_edge"), _bounds(videos), strict=True))
    return [(name, {"video_processor": settings} if "video_processor" in whole else settings)]


def _bounds(options: ImageOptions | VideoOptions) -> tuple[int, int]:
    return options.min_pixels, options.max_pixels


def _patch_sizes(rules: MediaRules) -> dict[str, int]:
    sizes = ("patch_size", "temporal_patch_size", "merge_size")
    return {name: getattr(rules, name) for name in sizes}


def _image_settings(directory: Path) -> tuple[str, dict]:
    """The file that holds the settings of images (or would), and these."""
    for name in IMAGE_FILES:
        if found := _read(directory / name):
            return name, found.get("image_processor", found)
    return IMAGE_FILES[0], {}


def _video_settings(directory: Path) -> tuple[str, dict]:
    """The file that holds the settings of videos (or would), and what it holds."""
    whole = _read(directory / "processor_config.json")
    if "video_processor" in whole:
        return "processor_config.json", whole
    settings = _read(directory / VIDEO_FILE)
    if settings:
        return VIDEO_FILE, settings
    # Bounds of images are not those of videos: only the statistics carry over.
    images = _read(directory / "preprocessor_config.json")
    return VIDEO_FILE, {name: images[name] for name in STATISTICS if name in images}


def _read(file: Path) -> dict:
    return read_json(file, missing={})
