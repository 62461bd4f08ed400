"""The order in which a stage meets its examples, and what becomes of those that cannot be used."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import grain
import numpy as np

from jaxr1.data.example import DataError, Dataset, Example, refusal
from jaxr1.inputs.batch import EncodedPrompt
from jaxr1.inputs.processor import Processor
from jaxr1.inputs.sizes import TooLong
from jaxr1.inputs.template import Prompt, PromptError, check_text
from jaxr1.media.images import MediaError


@dataclasses.dataclass(frozen=True)
class Draw:
    """One draw of an example.

    Attributes:
      position: in the order of draws; it keys the random draws of this prompt, so that a row met
        again is drawn anew.
      row: in the data set.
    """

    position: int
    row: int
    example: Example
    prompt: EncodedPrompt
    response: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))


class Draws:
    """A data set in a seeded order without end; position i is a function of (seed, i).

    Rows that cannot be used are passed over and reported once: `on_drop(source, reason)`.
    """

    def __init__(
        self,
        dataset: Dataset,
        processor: Processor,
        *,
        seed: int,
        max_prompt_tokens: int,
        max_response_tokens: int = 0,
        max_patches: int | None = None,
        with_response: bool = False,
        on_drop: Callable[[str, str], None],
        unusable: frozenset[int] = frozenset(),
    ):
        self.dataset, self.processor, self.with_response = dataset, processor, with_response
        self.limits, self.on_drop = (max_prompt_tokens, max_response_tokens), on_drop
        self.unusable = set(unusable)
        self.max_patches, self.last_drop = max_patches, ""
        self.order = grain.MapDataset.range(len(dataset)).seed(seed % 2**32).shuffle().repeat()

    def take(self, position: int, count: int) -> tuple[int, list[Draw]]:
        """`count` draws from `position` on, and the position after them.

        Raises:
          DataError: a row that cannot be read, or no usable row left.
        """
        out: list[Draw] = []
        while len(out) < count:
            if len(self.unusable) >= len(self.dataset):
                why = f"; the last one: {self.last_drop}" if self.last_drop else ""
                raise DataError(
                    f"{self.dataset.name}: none of its {len(self.dataset)} rows can be used{why}"
                )
            row = int(self.order[position])
            if row not in self.unusable:
                example = self.dataset[row]
                try:
                    prompt, response = self.encode(example)
                    out.append(Draw(position, row, example, prompt, response))
                except (TooLong, MediaError, PromptError) as e:
                    refused = None if isinstance(e, TooLong) else refusal(self.dataset, example, e)
                    if refused is not None:
                        raise refused from e
                    self.unusable.add(row)
                    self.last_drop = f"{example.source}: {e}"
                    self.on_drop(example.source, str(e))
            position += 1
        return position, out

    def encode(self, example: Example) -> tuple[EncodedPrompt, np.ndarray]:
        """The prompt of an example, and its response's token ids where the stage trains on it."""
        prompt = self.processor.encode(Prompt(example.messages), self.limits[0])
        largest = max((len(p) for p in prompt.patches), default=0)
        # A very long, thin image keeps a side of one token and so may exceed max_pixels.
        if self.max_patches is not None and largest > self.max_patches:
            what = "an image" if example.holds("image") else "a frame of a video"
            raise TooLong(
                f"{what} has {largest} patches, over the limit of {self.max_patches} "
                "(buckets.patches)"
            )
        if not self.with_response:
            return prompt, np.zeros(0, np.int32)
        if example.response is None:
            raise PromptError(
                "field 'response': a supervised stage needs "
                "one (or a final assistant turn) in every row"
            )
        text = example.response
        check_text(text, "field 'response'")
        if text.startswith(prompt.prefix.strip()):  # the prompt has opened it already
            text = text.removeprefix(prompt.prefix.strip())
            text = text.lstrip() if prompt.prefix[-1:].isspace() else text
        ids = [*self.processor.spoken_ids(text), self.processor.turn_end_id]
        if len(ids) > self.limits[1]:
            raise TooLong(f"the response has {len(ids)} tokens, over the limit of {self.limits[1]}")
        return prompt, np.asarray(ids, np.int32)
