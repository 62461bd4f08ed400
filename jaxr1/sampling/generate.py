"""`generate`: n responses per prompt, which share one pass over their prompt."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jaxr1.inputs.ahead import in_batches
from jaxr1.inputs.batch import EncodedPrompt, fitting_buckets
from jaxr1.inputs.processor import Processor
from jaxr1.inputs.template import Prompt, PromptError
from jaxr1.media.images import MediaError
from jaxr1.models.vlm import Model
from jaxr1.parallel import owner
from jaxr1.sampling.draw import RandomStream, prompt_key
from jaxr1.sampling.sampler import Completion, OnTokens, Sampler, SamplingOptions


class Asked:
    """A list of prompts, of which few are encoded at a time: their pictures may be many.

    Attributes:
      measured: the prompts in numbers but for their media, of which only headers were read.
    """

    def __init__(self, processor: Processor, prompts: Sequence[Prompt]):
        """Measures all prompts.

        Raises:
          TypeError: no list of prompts.
          PromptError, MediaError: as `Processor.encode`, with the prompt's place in the list.
        """
        if isinstance(prompts, Prompt):
            raise TypeError("expected a list of prompts, got one Prompt: write [prompt]")
        for i, prompt in enumerate(prompts):
            if not isinstance(prompt, Prompt):
                raise TypeError(f"prompt {i} must be a jaxr1.Prompt, got {type(prompt).__name__}")
        self.processor, self.prompts = processor, prompts
        self.measured = [self._encoded(i, decode=False) for i in range(len(prompts))]

    def encode(self, number: int) -> EncodedPrompt:
        """A prompt in numbers, its media among them.

        Raises:
          PromptError, MediaError: as `Processor.encode`, with the prompt's place in the list.
        """
        measured = self.measured[number]
        return self._encoded(number, decode=True) if measured.grids else measured

    def _encoded(self, number: int, *, decode: bool) -> EncodedPrompt:
        try:
            encoded = self.processor.encode(self.prompts[number], decode=decode)
            return dataclasses.replace(encoded, host=owner(number))
        except (PromptError, MediaError) as e:
            raise type(e)(f"prompt {number}: {e}") from e


def generate(
    model: Model,
    params: dict,
    processor: Processor,
    prompts: Sequence[Prompt],
    n: int = 1,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    stop: str | Sequence[str] = (),
    stop_token_ids: Sequence[int] = (),
    seed: int = 0,
    *,
    on_tokens: OnTokens | None = None,
    stream_every: int = 0,
    batch_rows: int = 64,
) -> list[list[Completion]]:
    """Samples n responses for each prompt.

    Media are decoded a batch of prompts at a time, while the batch before is sampled: memory does
    not grow with the list. All headers are read first.

    The draw of a token depends on (seed, prompt id, sample, position) alone, not on the other
    prompts, their order or the devices. With temperature 0 the n responses of a prompt are equal.

    Args:
      n: responses per prompt.
      stop: a string that ends a response (and is left out of its text), or several; names of
        special tokens may be in them.
      stop_token_ids: ids that end a response, besides those of the generation config and the
        tokenizer.
      on_tokens: called with the token ids so far of every prompt and sample, every `stream_every`
        tokens.
      batch_rows: prompts that are in flight together.

    Returns:
      n completions for each prompt, in order.

    Raises:
      ValueError: options out of range.
      TypeError, PromptError, MediaError: a prompt that cannot be encoded; names its place.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    vocab = model.text.vocab
    if outside := [i for i in stop_token_ids if not 0 <= i < vocab]:
        raise ValueError(f"stop_token_ids: {outside[0]} is outside the vocabulary of {vocab}")
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    options = SamplingOptions(
        max_new_tokens, temperature, top_p, top_k, stops, tuple(stop_token_ids)
    )
    asked = Asked(processor, prompts)
    if not prompts:
        return []

    # A draw is keyed by the prompt's id, so that it does not depend on the company it is in.
    ids = [i if prompt.id is None else prompt.id for i, prompt in enumerate(prompts)]
    keys = [prompt_key(seed, RandomStream.GENERATE, draw_id) for draw_id in ids]
    buckets = fitting_buckets(asked.measured, max_new_tokens)
    sampler = Sampler(model, processor, options, buckets)
    drawn = 1 if temperature == 0 else n  # greedy responses of a prompt are all equal

    # Neighbours in length share a bucket.
    order = sorted(range(len(prompts)), key=lambda i: len(asked.measured[i]))
    batches = [order[first : first + batch_rows] for first in range(0, len(order), batch_rows)]
    groups: dict[int, list[Completion]] = {}
    for chosen, batch in zip(batches, in_batches(asked.encode, batches), strict=True):
        batch_keys = [keys[i] for i in chosen]
        found = sampler(params, batch, batch_keys, drawn, on_tokens=on_tokens, every=stream_every)
        for i, group in zip(chosen, found, strict=True):
            groups[i] = group * (n // drawn)
    return [groups[i] for i in range(len(prompts))]
