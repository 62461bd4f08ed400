"""The processor of a model: prompts in, numbers out; token ids in, text out."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxr1.checkpoints.tensors import CheckpointError, read_json
from jaxr1.checkpoints.tokenizers import load_tokenizer
from jaxr1.inputs.batch import EncodedPrompt
from jaxr1.inputs.images import ImageOptions
from jaxr1.inputs.positions import Span, mrope_positions, numbered_media
from jaxr1.inputs.settings import MediaRules, changed_files, image_options, video_options
from jaxr1.inputs.sizes import BucketOptions, Buckets
from jaxr1.inputs.specials import SENTINEL_PATTERN, Specials
from jaxr1.inputs.template import (
    R1_ZERO_PREFIX,
    Prompt,
    PromptError,
    content_parts,
    end_of_turn,
    render,
)
from jaxr1.inputs.tiles import TileOptions
from jaxr1.inputs.units import (
    Unit,
    at_hand,
    check_size,
    image_unit,
    media_fields,
    video_unit,
    with_times,
)
from jaxr1.inputs.videos import VideoOptions
from jaxr1.inputs.wording import Wording

_THOUGHT_OPENED = re.compile(r"<think>\s*\Z")


@dataclasses.dataclass(frozen=True, eq=False)
class Processor:
    """Tokenizer, template and media settings of one model.

    Attributes:
      directory: where it came from.
      family: the `model_type` of its config.json, for messages.
      tokenizer: the transformers tokenizer.
      rules: what its family makes of media; None for a model of text only.
      images: how images are resized and normalised; None for a model of text only.
      media_token_ids: ids that stand for media (pads, vision start and end): never sampled, outside
        the normaliser.
      stop_token_ids: ids that end a response: the generation config's, the tokenizer's and the
        template's.
      turn_end_id: the one that the template ends an answer with; supervised stages train on it.
      image_token_id: the placeholder that an image's embeddings replace; -1 for text only.
      template: None or a name of `TEMPLATES`.
      videos: how videos are sampled and resized; None for a model that takes none.
      video_token_id: the placeholder of a video; -1 for a model that takes none.
      wording: what every prompt is asked with.
    """

    directory: Path
    family: str
    tokenizer: Any  # transformers.PreTrainedTokenizerFast
    rules: MediaRules | None
    images: ImageOptions | TileOptions | None
    media_token_ids: tuple[int, ...]
    stop_token_ids: tuple[int, ...]
    turn_end_id: int
    image_token_id: int
    template: str | None = None
    videos: VideoOptions | None = None
    video_token_id: int = -1
    wording: Wording = Wording()

    @classmethod
    def from_directory(
        cls,
        directory: Path,
        raw: dict,
        rules: MediaRules | None,
        *,
        min_pixels: int | None,
        max_pixels: int | None,
        template: str | None,
        wording: Wording,
    ) -> Processor:
        """Reads a Hugging Face directory.

        Args:
          raw: its parsed config.json.
          rules: of its family; None for a model of text only.
          min_pixels, max_pixels: bounds of images other than its own.
          template: a name of `TEMPLATES`, or None for its own.
          wording: what every prompt is asked with.

        Raises:
          CheckpointError: a file is missing or holds what is not supported.
          ValueError: a bound out of range, or a system prompt that its template has no place for.
        """
        tokenizer = load_tokenizer(directory, with_media=rules is not None)
        tokenizer.encode("")  # settles what later calls would change: threads share it
        generation = read_json(directory / "generation_config.json", missing={})
        said = generation.get("eos_token_id")
        turn_end = end_of_turn(tokenizer, template)
        stops = [*(said if isinstance(said, list) else [said]), tokenizer.eos_token_id, turn_end]
        text_only = cls(
            directory=directory,
            family=raw["model_type"],
            tokenizer=tokenizer,
            rules=rules,
            images=None,
            media_token_ids=(),
            stop_token_ids=tuple(sorted({int(i) for i in stops if i is not None})),
            turn_end_id=tokenizer.eos_token_id if turn_end is None else turn_end,
            image_token_id=-1,
            template=template,
            wording=wording,
        )
        flat = rules is not None and rules.flat
        wording.check(tokenizer, template, text_only._special, flat=flat)
        return text_only if rules is None else text_only._with_media(raw, min_pixels, max_pixels)

    def _with_media(self, raw: dict, min_pixels: int | None, max_pixels: int | None) -> Processor:
        """The processor of a model that takes pictures."""
        rules, known = self.rules, self.tokenizer.get_vocab()
        assert rules is not None
        try:
            images = image_options(self.directory, raw, rules)
        except ValueError as e:
            raise CheckpointError(f"{self.directory}: image settings: {e}") from e
        if min_pixels is not None or max_pixels is not None:
            images = images.with_pixels(min_pixels, max_pixels)
        image_token = raw.get("image_token_id", known.get(rules.tokens[0]))
        if image_token is None:
            raise CheckpointError(
                f"{self.directory}: neither config.json nor "
                "the tokenizer has a placeholder for images"
            )
        media = {raw.get(key) for key in rules.token_keys}
        media |= {known.get(name) for name in rules.tokens}
        video_token = raw.get("video_token_id") if rules.video is not None else None
        return dataclasses.replace(
            self,
            images=images,
            media_token_ids=tuple(sorted(int(i) for i in media if i is not None)),
            image_token_id=int(image_token),
            videos=None if video_token is None else video_options(self.directory, rules),
            video_token_id=-1 if video_token is None else int(video_token),
        )

    @property
    def max_patches(self) -> int:
        """Most patches of one image or tile, the bound of a patch row; 0 without a tower."""
        return 0 if self.images is None else self.images.max_patches

    @property
    def max_frame_patches(self) -> int:
        """As `max_patches`, with the frames of videos counted among the images."""
        frame = 0 if self.videos is None else self.videos.max_pixels // self.videos.patch_size**2
        return max(self.max_patches, frame)

    def buckets(
        self, options: BucketOptions, prompt: int, response: int, *, videos: bool
    ) -> Buckets:
        """Static sizes: those of the options, and a few up to the limits.

        Args:
          prompt: most tokens of a prompt.
          response: most tokens of a response.
          videos: whether frames of videos are to be counted among the images.
        """
        if isinstance(self.images, TileOptions):  # of one size
            options = dataclasses.replace(options, patches=(self.max_patches,))
        return options.build(
            prompt, response, self.max_frame_patches if videos else self.max_patches
        )

    def changed_files(self) -> dict[str, dict]:
        """{name: keys to set} of the directory's files that a saved copy must have anew."""
        asked = self.wording.changed_file(self.directory)
        return changed_files(self.directory, self.images, self.videos) | asked

    @property
    def prefix(self) -> str:
        """What the template opens a response with when the prompt does not say."""
        return R1_ZERO_PREFIX if self.template == "r1_zero" else ""

    @functools.cached_property
    def _special(self) -> Specials:
        return Specials.of(self.tokenizer, self.stop_token_ids, self.media_token_ids)

    @functools.cached_property
    def _bos(self) -> tuple[int, ...]:
        """What goes before a rendered prompt that does not open with it.

        As in transformers, where a processor tokenizes its rendered text like any other: with the
        `<s>` that the tokenizer (InternLM2's, Llama's) puts before texts. A text-only chat template
        is taken to say all itself.
        """
        if self.images is None and self.template is None:
            return ()
        with_bos, without = (
            self.tokenizer.encode("a", add_special_tokens=given) for given in (True, False)
        )
        bos = self.tokenizer.bos_token_id
        return (bos,) if bos is not None and with_bos == [bos, *without] else ()

    @functools.cached_property
    def video_pad(self) -> str:
        """One video in rendered text."""
        if self.rules is None or self.videos is None:
            return ""
        name = self.tokenizer.convert_ids_to_tokens(self.video_token_id)
        return self.rules.video_pad.format(name)

    @functools.cached_property
    def image_pad(self) -> str:
        """One image in rendered text: start, placeholder, end."""
        if self.rules is None:
            return ""
        name = self.tokenizer.convert_ids_to_tokens(self.image_token_id)
        return self.rules.image_pad.format(name)

    def text_ids(self, text: str) -> list[int]:
        """Token ids of user text: every special string in it is spelled out."""
        if not text:
            return []
        if any(i in self.media_token_ids or t.special for i, t in self._named(text)):
            pieces = map(self._encode, self._special.pieces(text))
            return list(itertools.chain.from_iterable(pieces))
        return self._encode(text)

    def spoken_ids(self, text: str) -> list[int]:
        """Token ids of what the model itself is to say: its tags are the tokens of their names."""
        ids: list[int] = []
        for piece in self._special.spoken(text):
            is_tag = piece in self._special.tags
            ids += self._encode(piece) if is_tag else self.text_ids(piece)
        return ids

    def _named(self, text: str):
        return [(i, t) for i, t in self.tokenizer.added_tokens_decoder.items() if t.content in text]

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def encode(
        self,
        prompt: Prompt,
        max_tokens: int | None = None,
        max_patches: int | None = None,
        *,
        decode: bool = True,
    ) -> EncodedPrompt:
        """A prompt in numbers. Its media are decoded only where their headers say that it fits.

        Args:
          max_tokens, max_patches: most tokens; most patches of one image, tile or frame.
          decode: False leaves it at the headers: no patches, no hashes, all else as they say.

        Raises:
          PromptError: malformed messages, or a template that does not place every image.
          MediaError: an image that cannot be read.
          TooLong: more than `max_tokens` tokens (a media span is never cut) or `max_patches`.
        """
        prompt = self.wording.asked(prompt)
        everything = itertools.chain.from_iterable(turn for _, turn in content_parts(prompt))
        parts = [part for part in everything if part["type"] != "text"]
        if parts and self.images is None:
            kind = parts[0]["type"]
            raise PromptError(
                f"the prompt has a part {kind!r}, but a "
                f"model of type {self.family!r} takes text only"
            )
        parts = [at_hand(part) for part in parts]
        units = [self._unit(part, decode=False) for part in parts]
        pads = [self.video_pad if p["type"] == "video" else self.image_pad for p in parts]
        flat = self.rules is not None and self.rules.flat
        rendered, hidden = render(
            prompt, self.tokenizer, self.template, pads, self._special, flat=flat
        )
        prefix = self.prefix if prompt.prefix is None else prompt.prefix
        opened = _THOUGHT_OPENED.search(rendered)  # a template may begin the answer itself
        spoken = self.spoken_ids(prefix)

        def fitted(units: Sequence[Unit]) -> tuple[list[int], list[Span]]:
            ids, spans = self._tokens(rendered, units, hidden)
            check_size(len(ids) + len(spoken), spans, units, max_tokens, max_patches)
            return ids + spoken, spans

        ids, spans = fitted(units)
        if decode:
            decoded = [self._unit(part, decode=True) for part in parts]
            if [unit.layout for unit in decoded] != [unit.layout for unit in units]:
                ids, spans = fitted(decoded)  # a clip is not always what its header says
            units = decoded
        position, following = np.tile(np.arange(len(ids), dtype=np.int32)[:, None], 3), len(ids)
        if self.rules is not None and self.rules.mrope:
            position, following = mrope_positions(len(ids), spans)
        return EncodedPrompt(
            token_ids=np.asarray(ids, np.int32),
            media_index=numbered_media(len(ids), spans),
            position=position,
            next_position=following,
            spans=tuple((s.start, s.end) for s in spans),
            **media_fields(units),
            prefix=(opened.group() if opened else "") + prefix,
        )

    def _tokens(
        self, rendered: str, units: Sequence[Unit], hidden: Sequence[str]
    ) -> tuple[list[int], list[Span]]:
        """Token ids of rendered text, and the spans that its units take.

        Args:
          hidden: the special strings of user text, by the numbers of their sentinels.

        Raises:
          PromptError: the text has more places for media than there are units, or fewer.
        """
        ids = [] if self._bos and rendered.startswith(self.tokenizer.bos_token) else list(self._bos)
        spans: list[Span] = []
        rendered, waiting = with_times(rendered, units, self.video_pad)
        waiting.reverse()
        for piece in self._special.pattern.split(rendered):
            if not piece:
                continue
            if not self._special.pattern.fullmatch(piece):
                told = SENTINEL_PATTERN.sub(lambda m: hidden[int(m.group(1))], piece)
                ids += self.text_ids(told)
                continue
            token = self.tokenizer.convert_tokens_to_ids(piece)
            if token not in (self.image_token_id, self.video_token_id):
                ids.append(token)
                continue
            if not waiting:
                raise PromptError(
                    f"the template has more image places than the prompt's {len(units)} images"
                )
            ids = self._place(waiting.pop(), ids, spans, token)
        if waiting:
            given, placed = len(units), len(units) - len(waiting)
            raise PromptError(
                f"the prompt has {given} images, but the template has a place for {placed}"
            )
        return ids, spans

    def _unit(self, part: dict, *, decode: bool) -> Unit:
        """An image or video of the prompt, cut into patches, or measured only."""
        assert self.rules is not None and self.images is not None  # `encode` has looked
        if part["type"] == "image":
            return image_unit(part["image"], self.images, decode=decode)
        if self.videos is None:
            raise PromptError(
                f"the prompt has a video, but a model of type {self.family!r} takes none"
            )
        rate, step = part.get("fps"), self.rules.tokens_per_second
        return video_unit(part["video"], rate, self.videos, step, decode=decode)

    def _place(self, unit: Unit, ids: list[int], spans: list[Span], token: int) -> list[int]:
        """`ids` with the media tokens of a unit behind them; its span is added to `spans`."""
        assert self.rules is not None  # a unit exists only where the model takes media
        merge = self.rules.merge_size
        _, h, w = unit.grids[0]
        grid = (len(unit.grids), h // merge, w // merge)
        size = math.prod(grid)
        spans.append(Span(len(ids), len(ids) + size, grid, unit.step))
        return [*ids, *[token] * size]

    def decode(self, token_ids: Sequence[int] | np.ndarray, *, special: bool = False) -> str:
        """Text of token ids.

        Args:
          special: write all special tokens. Otherwise they are left out, but for those in the form
            of a tag, such as <think>, which answers are read by.
        """
        silent = () if special else self._special.silent
        ids = [int(i) for i in token_ids if int(i) not in silent]
        return self.tokenizer.decode(ids, skip_special_tokens=False)
