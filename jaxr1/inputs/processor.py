"""The processor of a model: prompts in, numbers out; token ids in, text out."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxr1.checkpoints.tensors import CheckpointError
from jaxr1.inputs.batch import EncodedPrompt, TooLong
from jaxr1.inputs.images import ImageOptions, load_image, media_hash, preprocess_image
from jaxr1.inputs.template import (
    R1_ZERO_PREFIX,
    SENTINEL_PATTERN,
    TEMPLATES,
    Prompt,
    PromptError,
    content_parts,
    render,
)

MEDIA_NAMES = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id", "vision_token_id")


def load_tokenizer(directory: Path):
    """The tokenizer of a directory. transformers is told not to look for torch, which jaxr1 does not use."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as e:  # transformers raises whatever its parsers do
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise CheckpointError(f"{directory}: no tokenizer that transformers can read ({reason:.200})") from e


def _read(file: Path) -> dict:
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text())
    except ValueError as e:
        raise CheckpointError(f"{file}: not valid JSON: {e}") from e
    if not isinstance(found, dict):
        raise CheckpointError(f"{file}: not a JSON object")
    return found


@dataclasses.dataclass(frozen=True, eq=False)
class Processor:
    """Tokenizer, template and image settings of one model.

    Attributes:
      directory: where it came from.
      tokenizer: the transformers tokenizer.
      images: how images are resized and normalised.
      media_token_ids: ids that stand for media (pads, vision start and end): never sampled, outside the normaliser.
      stop_token_ids: ids that end a response: the generation config's and the tokenizer's.
      image_token_id: the placeholder that an image's embeddings replace.
      template: None or a name of `TEMPLATES`.
    """

    directory: Path
    tokenizer: Any  # transformers.PreTrainedTokenizerFast
    images: ImageOptions
    media_token_ids: tuple[int, ...]
    stop_token_ids: tuple[int, ...]
    image_token_id: int
    template: str | None = None

    @classmethod
    def from_directory(
        cls, directory: Path, raw: dict, *, min_pixels: int | None, max_pixels: int | None, template: str | None
    ) -> Processor:
        """Reads a Hugging Face directory whose parsed config.json is `raw`."""
        if template is not None and template not in TEMPLATES:
            raise ValueError(f"template {template!r} is none of {', '.join(TEMPLATES)}")
        tokenizer = load_tokenizer(directory)
        settings = _read(directory / "preprocessor_config.json") or _read(directory / "processor_config.json")
        settings = settings.get("image_processor", settings)
        images = ImageOptions.from_preprocessor_config(settings)
        vision = raw.get("vision_config", {})
        changes = {
            "patch_size": vision.get("patch_size", images.patch_size),
            "temporal_patch_size": vision.get("temporal_patch_size", images.temporal_patch_size),
            "merge_size": vision.get("spatial_merge_size", images.merge_size),
        }
        if min_pixels is not None:
            changes["min_pixels"] = min_pixels
        if max_pixels is not None:
            changes["max_pixels"] = max_pixels
        images = dataclasses.replace(images, **changes)
        media = {raw.get(name) for name in MEDIA_NAMES} - {None}
        known = tokenizer.get_vocab()
        media |= {known[t] for t in ("<|vision_pad|>", "<|vision_start|>", "<|vision_end|>") if t in known}
        said = _read(directory / "generation_config.json").get("eos_token_id")
        stops = [*(said if isinstance(said, list) else [said]), tokenizer.eos_token_id]
        return cls(
            directory=directory,
            tokenizer=tokenizer,
            images=images,
            media_token_ids=tuple(sorted(int(i) for i in media if i is not None)),
            stop_token_ids=tuple(sorted({int(i) for i in stops if i is not None})),
            image_token_id=int(raw.get("image_token_id", 151655)),
            template=template,
        )

    def changed_files(self) -> dict[str, str]:
        """Texts of the directory's files that a saved copy must have anew: image bounds that were given on loading.

        Without them an exported model would be asked about images of another size than it was trained on.
        """
        for name in ("preprocessor_config.json", "processor_config.json"):
            raw = _read(self.directory / name)
            settings = raw.get("image_processor", raw)
            if not settings:
                continue
            said = ImageOptions.from_preprocessor_config(settings)
            if (said.min_pixels, said.max_pixels) == (self.images.min_pixels, self.images.max_pixels):
                return {}
            settings |= {"min_pixels": self.images.min_pixels, "max_pixels": self.images.max_pixels}
            if "size" in settings:
                settings["size"] = {"shortest_edge": self.images.min_pixels, "longest_edge": self.images.max_pixels}
            return {name: json.dumps(raw, indent=2)}
        return {}

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
    def image_pad(self) -> str:
        """One image in rendered text: start, placeholder, end."""
        name = self.tokenizer.convert_ids_to_tokens
        return "<|vision_start|>" + name(self.image_token_id) + "<|vision_end|>"

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
        sources = [p["image"] for _, parts in content_parts(prompt) for p in parts if p["type"] == "image"]
        images = [load_image(s) for s in sources]
        loaded = [preprocess_image(image, self.images) for image in images]
        rendered, texts = render(prompt, self.tokenizer, self.template, self.image_pad)
        prefix = self.prefix if prompt.prefix is None else prompt.prefix
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        k = 0
        merge = self.images.merge_size**2
        for piece in [*self._special.split(rendered)]:
            if not piece:
                continue
            if not self._special.fullmatch(piece):
                ids += self.text_ids(SENTINEL_PATTERN.sub(lambda m: texts[int(m.group(1))], piece))
                continue
            token = self.tokenizer.convert_tokens_to_ids(piece)
            if token != self.image_token_id:
                ids.append(token)
                continue
            if k >= len(loaded):
                raise PromptError(f"the template has more image places than the prompt's {len(loaded)} images")
            n = len(loaded[k][0]) // merge
            spans.append((len(ids), len(ids) + n))
            ids += [token] * n
            k += 1
        if k != len(loaded):
            raise PromptError(f"the prompt has {len(loaded)} images, but the template has a place for {k}")
        ids += self.text_ids(prefix)
        if max_tokens is not None and len(ids) > max_tokens:
            raise TooLong(f"the prompt has {len(ids)} tokens, over the limit of {max_tokens}")
        media_index = np.full(len(ids), -1, np.int32)
        seen = 0
        for start, end in spans:
            media_index[start:end] = np.arange(seen, seen + end - start)
            seen += end - start
        grids = tuple(grid for _, grid in loaded)
        position, following = mrope_positions(len(ids), spans, grids, self.images.merge_size)
        return EncodedPrompt(
            token_ids=np.asarray(ids, np.int32),
            media_index=media_index,
            position=position,
            next_position=following,
            patches=tuple(patches for patches, _ in loaded),
            grids=grids,
            spans=tuple(spans),
            hashes=tuple(media_hash(image) for image in images),
            prefix=prefix,
        )

    def decode(self, token_ids: Sequence[int] | np.ndarray) -> str:
        """Text of token ids, special tokens left out."""
        return self.tokenizer.decode([int(i) for i in token_ids], skip_special_tokens=True)


def mrope_positions(
    length: int, spans: Sequence[tuple[int, int]], grids: Sequence[tuple[int, int, int]], merge: int
) -> tuple[np.ndarray, int]:
    """M-RoPE positions of a prompt (arXiv:2409.12191 §2.1): text counts on, an image counts in time, rows and columns.

        tokens    x x v v v v v v x x          an image of 2 x 3 merged patches
        time      0 1 2 2 2 2 2 2 5 6
        row       0 1 2 2 2 3 3 3 5 6
        column    0 1 2 3 4 2 3 4 5 6          the text goes on after the largest of rows and columns

    Returns:
      int32[3, length] and the position of the next token.
    """
    position = np.zeros((3, length), np.int32)
    at = current = 0
    for (start, end), (t, h, w) in zip(spans, grids, strict=True):
        position[:, at:start] = current + np.arange(start - at)
        current += start - at
        rows, columns = h // merge, w // merge
        place = np.stack(np.meshgrid(np.arange(t), np.arange(rows), np.arange(columns), indexing="ij"))
        position[:, start:end] = current + place.reshape(3, -1)
        current += max(rows, columns)
        at = end
    position[:, at:] = current + np.arange(length - at)
    return position, current + length - at


__all__ = ["EncodedPrompt", "Processor", "Prompt", "PromptError", "TooLong", "mrope_positions"]
