"""The processor of a model: prompts in, numbers out; token ids in, text out."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxr1.checkpoints.tensors import CheckpointError, read_json
from jaxr1.checkpoints.tokenizers import internlm2_tokenizer
from jaxr1.inputs.batch import EncodedPrompt
from jaxr1.inputs.images import ImageOptions, preprocess_image
from jaxr1.inputs.positions import Span, mrope_positions
from jaxr1.inputs.sizes import BucketOptions, Buckets, TooLong
from jaxr1.inputs.template import (
    R1_ZERO_PREFIX,
    SENTINEL_PATTERN,
    TEMPLATES,
    Prompt,
    PromptError,
    content_parts,
    end_of_turn,
    render,
)
from jaxr1.inputs.tiles import TileOptions, preprocess_tiles
from jaxr1.inputs.videos import VideoOptions, open_video, preprocess_video, seconds_per_grid, timestamp_text, timestamps
from jaxr1.media.images import MediaError, describe, load_image, media_hash
from jaxr1.media.videos import video_hash

QWEN_MEDIA = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>")
INTERN_MEDIA = ("<IMG_CONTEXT>", "<img>", "</img>", "<video>")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")
_THOUGHT_OPENED = re.compile(r"<think>\s*\Z")
CONFIG_MEDIA = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id", "vision_token_id")


def load_tokenizer(directory: Path):
    """The tokenizer of a directory. transformers is told not to look for torch, which jaxr1 does not use."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if _read(directory / "tokenizer_config.json").get("tokenizer_class") == "InternLM2Tokenizer":
        return internlm2_tokenizer(directory)  # its own code is remote, and never run
    if not any((directory / name).is_file() for name in TOKENIZER_FILES):
        # transformers would make one without a vocabulary
        raise CheckpointError(f"{directory}: no tokenizer (expected one of {', '.join(TOKENIZER_FILES)})")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as e:  # transformers raises whatever its parsers do
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise CheckpointError(f"{directory}: no tokenizer that transformers can read ({reason:.200})") from e


def _read(file: Path) -> dict:
    return read_json(file, missing={})


def _processor_template(directory: Path) -> str | None:
    """The chat template of a directory's processor, where it is not the tokenizer's own file.

    That of a tokenizer may know text only: Qwen2.5-VL's is the one of Qwen2.5, and `chat_template.json` beside it has
    the places of images.
    """
    if (
        directory / "chat_template.jinja"
    ).is_file():  # newer files: one template for both, which the tokenizer has read
        return None
    for name in ("chat_template.json", "processor_config.json"):
        found = _read(directory / name).get("chat_template")
        if isinstance(found, str):
            return found
    return None


@dataclasses.dataclass(frozen=True)
class Unit:
    """What one placeholder of the rendered template stands for: an image (or a tile, a frame), or a video.

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


@dataclasses.dataclass(frozen=True, eq=False)
class Processor:
    """Tokenizer, template and media settings of one model.

    Attributes:
      directory: where it came from.
      family: the `model_type` of its config.json.
      tokenizer: the transformers tokenizer.
      images: how images are resized and normalised; None for a model of text only.
      media_token_ids: ids that stand for media (pads, vision start and end): never sampled, outside the normaliser.
      stop_token_ids: ids that end a response: the generation config's, the tokenizer's and the template's.
      turn_end_id: the one that the template ends an answer with; supervised stages train on it.
      image_token_id: the placeholder that an image's embeddings replace; -1 for a model of text only.
      template: None or a name of `TEMPLATES`.
      videos: how videos are sampled and resized; None for a model that takes none.
      video_token_id: the placeholder of a video; -1 for a model that takes none.
      tokens_per_second: M-RoPE positions in a second of video (Qwen2.5-VL), 0 where frames count one by one.
    """

    directory: Path
    family: str
    tokenizer: Any  # transformers.PreTrainedTokenizerFast
    images: ImageOptions | TileOptions | None
    media_token_ids: tuple[int, ...]
    stop_token_ids: tuple[int, ...]
    turn_end_id: int
    image_token_id: int
    template: str | None = None
    videos: VideoOptions | None = None
    video_token_id: int = -1
    tokens_per_second: float = 0.0

    @classmethod
    def from_directory(
        cls,
        directory: Path,
        raw: dict,
        vision: Any,
        *,
        min_pixels: int | None,
        max_pixels: int | None,
        template: str | None,
    ) -> Processor:
        """Reads a Hugging Face directory whose parsed config.json is `raw`, and whose tower is `vision` (or None)."""
        if template is not None and template not in TEMPLATES:
            raise ValueError(f"template {template!r} is none of {', '.join(TEMPLATES)}")
        tokenizer = load_tokenizer(directory)
        if vision is not None:
            tokenizer.chat_template = _processor_template(directory) or tokenizer.chat_template
        known = tokenizer.get_vocab()
        said = _read(directory / "generation_config.json").get("eos_token_id")
        turn_end = end_of_turn(tokenizer, template)
        stops = [*(said if isinstance(said, list) else [said]), tokenizer.eos_token_id, turn_end]
        images, media, image_token = None, set(), None
        videos, video_token = None, raw.get("video_token_id")
        if vision is not None:
            try:
                images = image_options(directory, raw, vision)
            except ValueError as e:
                raise CheckpointError(f"{directory}: image settings: {e}") from e
            if min_pixels is not None or max_pixels is not None:
                images = images.with_pixels(min_pixels, max_pixels)
            names = INTERN_MEDIA if isinstance(images, TileOptions) else QWEN_MEDIA
            media = {raw.get(name) for name in CONFIG_MEDIA} | {known.get(name) for name in names}
            image_token = raw.get("image_token_id", known.get(names[0]))
            if image_token is None:
                raise CheckpointError(
                    f"{directory}: neither config.json nor the tokenizer has a placeholder for images"
                )
            if not vision.tile_side and video_token is not None:
                videos = video_options(directory, raw, vision)
        return cls(
            directory=directory,
            family=raw["model_type"],
            tokenizer=tokenizer,
            images=images,
            media_token_ids=tuple(sorted(int(i) for i in media if i is not None)),
            stop_token_ids=tuple(sorted({int(i) for i in stops if i is not None})),
            turn_end_id=tokenizer.eos_token_id if turn_end is None else turn_end,
            image_token_id=-1 if image_token is None else int(image_token),
            template=template,
            videos=videos,
            video_token_id=-1 if videos is None or video_token is None else int(video_token),
            tokens_per_second=raw["vision_config"].get("tokens_per_second", 4)
            if raw["model_type"] == "qwen2_5_vl"
            else 0,
        )

    @property
    def max_patches(self) -> int:
        """Most patches of one image (or tile), the bound of a patch row; 0 for a model of text only."""
        return 0 if self.images is None else self.images.max_patches

    @property
    def max_frame_patches(self) -> int:
        """As `max_patches`, with the frames of videos counted among the images."""
        frame = 0 if self.videos is None else self.videos.max_pixels // self.videos.patch_size**2
        return max(self.max_patches, frame)

    def buckets(self, options: BucketOptions, prompt: int, response: int, *, videos: bool) -> Buckets:
        """Static sizes: those of the options, and geometric series up to the limits.

        Args:
          prompt: most tokens of a prompt.
          response: most tokens of a response.
          videos: whether frames of videos are to be counted among the images.
        """
        if self.tiles:
            options = dataclasses.replace(options, patches=(self.max_patches,))
        return options.build(prompt, response, self.max_frame_patches if videos else self.max_patches)

    @property
    def tiles(self) -> bool:
        """Whether images are cut into tiles (InternVL)."""
        return isinstance(self.images, TileOptions)

    def changed_files(self) -> dict[str, dict]:
        """{name: keys to set} of the directory's files that a saved copy must have anew: bounds given on loading.

        Without them an exported model would be asked about images of another size than it was trained on.
        """
        if self.images is None:
            return {}
        name = next((n for n in PREPROCESSORS if _read(self.directory / n)), PREPROCESSORS[0])
        raw = _read(self.directory / name)
        settings = raw.get("image_processor", raw)
        if isinstance(self.images, TileOptions):
            config, changes = self.images.changed(_read(self.directory / "config.json"), settings)
        else:
            config, changes, bounds = {}, {}, (self.images.min_pixels, self.images.max_pixels)
            before = ImageOptions.from_preprocessor_config(settings)
            if (before.min_pixels, before.max_pixels) != bounds:
                changes = dict(zip(("min_pixels", "max_pixels"), bounds, strict=True))
                if "size" in settings:
                    changes["size"] = dict(zip(("shortest_edge", "longest_edge"), bounds, strict=True))
        if changes and "image_processor" in raw:
            changes = {"image_processor": settings | changes}
        found: dict[str, dict] = {}
        for file, keys in (("config.json", config), (name, changes), self._changed_videos()):
            found[file] = found.get(file, {}) | keys
        return {file: keys for file, keys in found.items() if keys}

    def _changed_videos(self) -> tuple[str, dict]:
        """As `changed_files`, of the settings of videos."""
        if self.videos is None:
            return "", {}
        file, settings = video_settings(self.directory)
        said = VideoOptions.from_config(settings, variant=self.videos.variant)
        bounds = ("fps", "max_frames", "min_pixels", "max_pixels")
        if all(getattr(said, name) == getattr(self.videos, name) for name in bounds):
            return file, {}
        inner = dict(settings.get("video_processor", settings)) | {name: getattr(self.videos, name) for name in bounds}
        inner["size"] = {"shortest_edge": self.videos.min_pixels, "longest_edge": self.videos.max_pixels}
        return file, {"video_processor": inner} if "video_processor" in settings else inner

    @property
    def prefix(self) -> str:
        """What the template opens a response with when the prompt does not say."""
        return R1_ZERO_PREFIX if self.template == "r1_zero" else ""

    @functools.cached_property
    def _special(self) -> re.Pattern:
        added = self.tokenizer.added_tokens_decoder
        names = [t.content for i, t in added.items() if t.special or i in self.media_token_ids]
        return re.compile("(" + "|".join(re.escape(n) for n in sorted(names, key=len, reverse=True)) + ")")

    @functools.cached_property
    def _bos(self) -> tuple[int, ...]:
        """What goes before a rendered prompt that does not open with it.

        As in transformers, where a processor tokenizes its rendered text like any other: with the `<s>` that the
        tokenizer (InternLM2's, Llama's) puts before texts. A text-only chat template is taken to say all itself.
        """
        if self.images is None and self.template is None:
            return ()
        with_bos, without = (self.tokenizer.encode("a", add_special_tokens=given) for given in (True, False))
        bos = self.tokenizer.bos_token_id
        return (bos,) if bos is not None and with_bos == [bos, *without] else ()

    @functools.cached_property
    def video_pad(self) -> str:
        """One video in rendered text."""
        if self.videos is None:
            return ""
        return f"<|vision_start|>{self.tokenizer.convert_ids_to_tokens(self.video_token_id)}<|vision_end|>"

    @functools.cached_property
    def image_pad(self) -> str:
        """One image in rendered text: start, placeholder, end."""
        name = self.tokenizer.convert_ids_to_tokens(self.image_token_id)
        return f"<img>{name}</img>\n" if self.tiles else f"<|vision_start|>{name}<|vision_end|>"

    def text_ids(self, text: str) -> list[int]:
        """Token ids of user text: every special string in it is spelled out."""
        if not text:
            return []
        if any(i in self.media_token_ids or t.special for i, t in self._named(text)):
            pieces = self._special.split(text)
            # A string that names a special token is cut after its first character, so that no piece of it matches.
            broken = [part for p in pieces for part in ((p[:1], p[1:]) if self._special.fullmatch(p) else (p,))]
            return [i for part in broken if part for i in self._encode(part)]
        return self._encode(text)

    def _named(self, text: str):
        return [(i, t) for i, t in self.tokenizer.added_tokens_decoder.items() if t.content in text]

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def encode(self, prompt: Prompt, max_tokens: int | None = None) -> EncodedPrompt:
        """A prompt in numbers.

        Raises:
          PromptError: malformed messages, or a template that does not place every image.
          MediaError: an image that cannot be read.
          TooLong: more than `max_tokens` tokens (a media span is never cut).
        """
        parts = [p for _, turn in content_parts(prompt) for p in turn if p["type"] != "text"]
        if parts and self.images is None:
            kind = parts[0]["type"]
            raise PromptError(f"the prompt has a part {kind!r}, but a model of type {self.family!r} takes text only")
        units = [self._unit(part) for part in parts]
        pads = [self.video_pad if p["type"] == "video" else self.image_pad for p in parts]
        rendered, hidden = render(prompt, self.tokenizer, self.template, pads, self._special, flat=self.tiles)
        prefix = self.prefix if prompt.prefix is None else prompt.prefix
        opened = _THOUGHT_OPENED.search(rendered)  # a template may begin the answer itself
        ids = [] if self._bos and rendered.startswith(self.tokenizer.bos_token) else list(self._bos)
        spans: list[Span] = []
        rendered, waiting = self._with_times(rendered, units)
        waiting.reverse()
        for piece in self._special.split(rendered):
            if not piece:
                continue
            if not self._special.fullmatch(piece):
                ids += self.text_ids(SENTINEL_PATTERN.sub(lambda m: hidden[int(m.group(1))], piece))
                continue
            token = self.tokenizer.convert_tokens_to_ids(piece)
            if token not in (self.image_token_id, self.video_token_id):
                ids.append(token)
                continue
            if not waiting:
                raise PromptError(f"the template has more image places than the prompt's {len(units)} images")
            ids = self._place(waiting.pop(), ids, spans, token)
        if waiting:
            placed = len(units) - len(waiting)
            raise PromptError(f"the prompt has {len(units)} images, but the template has a place for {placed}")
        ids += self.text_ids(prefix)
        if max_tokens is not None and len(ids) > max_tokens:
            media = sum(s.end - s.start for s in spans)
            share = f" ({media} of them for {len(units)} images)" if units else ""
            raise TooLong(f"the prompt has {len(ids)} tokens{share}, over the limit of {max_tokens}")
        media_index = np.full(len(ids), -1, np.int32)
        seen = 0
        for span in spans:
            size = span.end - span.start
            media_index[span.start : span.end] = np.arange(seen, seen + size)
            seen += size
        if self.tiles or self.images is None:
            position, following = np.tile(np.arange(len(ids), dtype=np.int32)[:, None], 3), len(ids)
        else:
            position, following = mrope_positions(len(ids), spans)
        return EncodedPrompt(
            token_ids=np.asarray(ids, np.int32),
            media_index=media_index,
            position=position,
            next_position=following,
            patches=tuple(p for unit in units for p in unit.patches),
            grids=tuple(g for unit in units for g in unit.grids),
            spans=tuple((s.start, s.end) for s in spans),
            hashes=tuple(unit.hash for unit in units),
            prefix=(opened.group() if opened else "") + prefix,
        )

    def _unit(self, part: dict) -> Unit:
        """An image or video of the prompt, cut into patches."""
        if part["type"] == "video":
            return self._video(part)
        image = load_image(part["image"])
        try:
            if isinstance(self.images, TileOptions):
                patches, grids = preprocess_tiles(image, self.images)
                return Unit(tuple(patches), tuple(grids), media_hash(image))
            assert self.images is not None
            found, grid = preprocess_image(image, self.images)
        except MediaError as e:
            raise MediaError(f"{describe(part['image'])}: {e}") from e
        return Unit((found,), (grid,), media_hash(image))

    def _video(self, part: dict) -> Unit:
        if self.videos is None:
            raise PromptError(f"the prompt has a video, but a model of type {self.family!r} takes none")
        video = open_video(part["video"], self.videos, source_fps=part.get("fps"))
        patches, (t, h, w) = preprocess_video(video.frames, self.videos, resize=False)
        step = 1.0
        times: tuple[float, ...] = ()
        if self.tokens_per_second:
            step = self.tokens_per_second * seconds_per_grid(video, self.videos)
        if self.videos.variant == "qwen3_vl":
            times = tuple(timestamps(video, self.videos))
        frames = tuple(patches.reshape(t, h * w, -1))
        return Unit(frames, ((1, h, w),) * t, video_hash(video.frames), times, step)

    def _with_times(self, rendered: str, units: Sequence[Unit]) -> tuple[str, list[Unit]]:
        """The rendered text and its units, a video with times (Qwen3-VL) taken apart into its frame pairs:

        <|vision_start|><|video_pad|><|vision_end|>
        <0.2 seconds><|vision_start|><|video_pad|><|vision_end|><1.2 seconds><|vision_start|><|video_pad|>...
        """
        clips, apart = [u for u in units if u.times], []
        for unit in units:
            pair = zip(unit.patches, unit.grids, strict=True)
            apart += [Unit((p,), (g,), unit.hash) for p, g in pair] if unit.times else [unit]
        if not clips:
            return rendered, apart
        first, *rest = rendered.split(self.video_pad)
        if len(rest) != len(clips):
            raise PromptError(f"the prompt has {len(clips)} videos, but the template has a place for {len(rest)}")
        said = ["".join(timestamp_text(t) + self.video_pad for t in clip.times) for clip in clips]
        return first + "".join(a + b for a, b in zip(said, rest, strict=True)), apart

    def _place(self, unit: Unit, ids: list[int], spans: list[Span], token: int) -> list[int]:
        """`ids` with the media tokens of a unit behind them; its span is added to `spans`."""
        merge = self.images.merge_size  # type: ignore[union-attr]  # a unit exists only where the model takes media
        _, h, w = unit.grids[0]
        grid = (len(unit.grids), h // merge, w // merge)
        size = len(unit.grids) * grid[1] * grid[2]
        spans.append(Span(len(ids), len(ids) + size, grid, unit.step))
        return [*ids, *[token] * size]

    def decode(self, token_ids: Sequence[int] | np.ndarray) -> str:
        """Text of token ids, special tokens left out."""
        return self.tokenizer.decode([int(i) for i in token_ids], skip_special_tokens=True)


def video_settings(directory: Path) -> tuple[str, dict]:
    """The file of a directory that holds the settings of videos (or would), and these."""
    whole = _read(directory / "processor_config.json")
    if "video_processor" in whole:
        return "processor_config.json", whole
    name = "video_preprocessor_config.json"
    settings = _read(directory / name)
    if not settings:  # bounds of images are not those of videos: only the statistics carry over
        images = _read(directory / "preprocessor_config.json")
        settings = {k: images[k] for k in ("image_mean", "image_std", "rescale_factor") if k in images}
    return name, settings


def video_options(directory: Path, raw: dict, vision: Any) -> VideoOptions:
    """Video settings of a directory; sizes of patches are the tower's."""
    variant = "qwen3_vl" if raw["model_type"] == "qwen3_vl" else "qwen2_vl"
    return dataclasses.replace(
        VideoOptions.from_config(video_settings(directory)[1], variant=variant),
        patch_size=vision.patch_size,
        temporal_patch_size=vision.temporal_patch_size,
        merge_size=vision.merge_size,
    )


def image_options(directory: Path, raw: dict, vision: Any) -> ImageOptions | TileOptions:
    """Image settings of a directory; sizes of patches are the tower's."""
    settings = next((found for name in PREPROCESSORS if (found := _read(directory / name))), {})
    settings = settings.get("image_processor", settings)
    if vision.tile_side:
        return TileOptions.from_configs(
            raw,
            settings,
            size=vision.tile_side * vision.patch_size,
            patch_size=vision.patch_size,
            merge_size=vision.merge_size,
        )
    return dataclasses.replace(
        ImageOptions.from_preprocessor_config(settings),
        patch_size=vision.patch_size,
        temporal_patch_size=vision.temporal_patch_size,
        merge_size=vision.merge_size,
    )
