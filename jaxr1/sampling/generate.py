"""`generate`: n responses per prompt, which share one pass over their prompt."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import numpy as np

from jaxr1.inputs.batch import EncodedPrompt, fitting_buckets, make_batch
from jaxr1.inputs.processor import Processor
from jaxr1.inputs.sizes import Buckets, geometric, rows_for
from jaxr1.inputs.template import Prompt, PromptError
from jaxr1.media.images import MediaError
from jaxr1.models.vlm import Model
from jaxr1.parallel import agree, batch_multiple, mesh_of, place_rows
from jaxr1.sampling import decode as loop
from jaxr1.sampling.draw import Filters, RandomStream, prompt_key, sample_keys

# Cache slots added before the host looks at the responses again (stop strings, compaction).
FIRST_SLOTS = 32
# Tokens between two looks for a stop string.
LOOK_EVERY = 16


@dataclasses.dataclass(frozen=True)
class Completion:
    """One response.

    Attributes:
      text: without the stop token, other special tokens and the stop string.
      token_ids: int32[n], the stop token included.
      logprobs: float32[n], at the sampling temperature (1 for greedy), media ids outside the
        normaliser.
      finish_reason: "stop" or "length".
      entropy: mean entropy of the n distributions, nats.
    """

    text: str
    token_ids: np.ndarray
    logprobs: np.ndarray
    finish_reason: Literal["stop", "length"]
    entropy: float = 0.0


@dataclasses.dataclass(frozen=True)
class SamplingOptions:
    """How responses are drawn.

    Attributes:
      max_new_tokens: limit of a response.
      temperature: 0 is greedy.
      top_p, top_k: filters of the draw; 1.0 and 0 keep everything. Reported log-probs are from
        before them.
      stop: strings that end a response.
      stop_token_ids: ids that end it, besides the processor's.
      ignore_stops: never end before max_new_tokens (benchmarks).
    """

    max_new_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_stops: bool = False

    def __post_init__(self):
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if not self.temperature >= 0:
            raise ValueError(f"temperature must be 0 (greedy) or more, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (off) or more, got {self.top_k}")
        if not all(self.stop):
            raise ValueError("stop: an empty string would end every response at once")


def encode_all(processor: Processor, prompts: Sequence[Prompt]) -> list[EncodedPrompt]:
    """The prompts in numbers.

    Raises:
      TypeError: no list of prompts.
      PromptError, MediaError: as `Processor.encode`, with the prompt's place in the list.
    """
    if isinstance(prompts, Prompt):
        raise TypeError("expected a list of prompts, got one Prompt: write [prompt]")
    encoded = []
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, Prompt):
            raise TypeError(f"prompt {i} must be a jaxr1.Prompt, got {type(prompt).__name__}")
        try:
            encoded.append(processor.encode(prompt))
        except (PromptError, MediaError) as e:
            raise type(e)(f"prompt {i}: {e}") from e
    return encoded


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
    on_tokens: Callable[[list[list[np.ndarray]]], None] | None = None,
    stream_every: int = 0,
    batch_rows: int = 64,
) -> list[list[Completion]]:
    """Samples n responses for each prompt.

    The draw of a token depends on (seed, prompt id, sample, position) alone, not on the other
    prompts, their order or the devices. With temperature 0 the n responses of a prompt are equal.

    Args:
      n: responses per prompt.
      stop: a string that ends a response (and is left out of its text), or several.
      stop_token_ids: ids that end a response, besides those of the generation config and the
        tokenizer.
      on_tokens: called with the token ids so far of every prompt and sample, every `stream_every`
        tokens.
      batch_rows: prompts that are in flight together.

    Returns:
      n completions for each prompt, in order.

    Raises:
      ValueError: options out of range.
      TypeError, PromptError, MediaError: prompts that cannot be encoded; names the first one's
        place.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    if outside := [i for i in stop_token_ids if not 0 <= i < model.text.vocab]:
        raise ValueError(
            f"stop_token_ids: {outside[0]} is outside the vocabulary of {model.text.vocab}"
        )
    options = SamplingOptions(
        max_new_tokens, temperature, top_p, top_k, stops, tuple(stop_token_ids)
    )
    encoded = encode_all(processor, prompts)
    if not encoded:
        return []
    keys = [
        prompt_key(seed, RandomStream.GENERATE, i if p.id is None else p.id)
        for i, p in enumerate(prompts)
    ]
    buckets = fitting_buckets(encoded, max_new_tokens)
    sampler = Sampler(model, processor, options, buckets)
    drawn = 1 if temperature == 0 else n
    out: list[list[Completion] | None] = [None] * len(prompts)
    order = sorted(
        range(len(prompts)), key=lambda i: len(encoded[i])
    )  # neighbours in length share a bucket
    for first in range(0, len(order), batch_rows):
        chosen = order[first : first + batch_rows]
        groups = sampler(
            params,
            [encoded[i] for i in chosen],
            [keys[i] for i in chosen],
            drawn,
            on_tokens=on_tokens,
            every=stream_every,
        )
        for i, group in zip(chosen, groups, strict=True):
            out[i] = group * (n // drawn)
    return [group for group in out if group is not None]


class Sampler:
    """Samples groups of responses for encoded prompts; holds what stays the same from call to call."""

    def __init__(
        self, model: Model, processor: Processor, options: SamplingOptions, buckets: Buckets
    ):
        self.model, self.processor, self.options, self.buckets = model, processor, options, buckets
        greedy = options.temperature == 0
        self.temperature = np.float32(1.0 if greedy else options.temperature)
        stops = (
            ()
            if options.ignore_stops
            else tuple(sorted({*processor.stop_token_ids, *options.stop_token_ids}))
        )
        self.static = loop.Static(
            Filters(greedy, options.top_k, options.top_p), processor.media_token_ids, stops
        )
        self.slots = geometric(FIRST_SLOTS, options.max_new_tokens)
        if options.ignore_stops:  # every response takes all its slots: growing would only copy
            self.slots = self.slots[-1:]

    def __call__(
        self,
        params: dict,
        prompts: Sequence[EncodedPrompt],
        keys: Sequence[np.ndarray],
        n: int,
        *,
        on_tokens: Callable | None = None,
        every: int = 0,
    ) -> list[list[Completion]]:
        """n completions for each prompt; `keys` from `prompt_key`."""
        mesh = mesh_of(params)
        multiple = batch_multiple(mesh, self.model.rules)
        rows = agree([rows_for(len(prompts), multiple)])[0]
        batch = make_batch(prompts, self.buckets, self.model.media, rows=rows, multiple=multiple)
        key_b2 = np.zeros((rows, 2), np.uint32)
        key_b2[: len(keys)] = np.stack(keys)
        done = np.zeros((rows, n), bool)
        done[len(prompts) :] = True
        with jax.set_mesh(mesh):
            prompt = loop.run_prefill(self.model, params, place_rows(batch, mesh, self.model.rules))
            key = sample_keys(key_b2, np.tile(np.arange(n), (rows, 1)))
            key, done = place_rows((key, done), mesh, self.model.rules)
            state, cache = loop.start(self.model, prompt, key, done, n, self.slots[0])
            del prompt
            result = self._decode(params, state, cache, len(prompts), n, multiple, on_tokens, every)
        return result

    def _decode(
        self, params, state, cache, count, n, multiple, on_tokens, every
    ) -> list[list[Completion]]:
        finished: dict[tuple[int, int], tuple] = {}
        # Where each place of the state came from, as compaction moves responses.
        origin = np.stack(
            np.meshgrid(np.arange(state.done_bs.shape[0]), np.arange(n), indexing="ij"), -1
        )
        step, limit_all = 0, self.options.max_new_tokens
        texts_stop = self.options.stop
        for slots in self.slots:
            if slots > state.token_bsc.shape[2]:
                state = loop.grow(self.model, state, slots)
            end = min(slots, limit_all)
            while step < end:
                limit = end if not (every or texts_stop) else min(end, step + (every or LOOK_EVERY))
                state = loop.decode_until(
                    self.model, params, cache, state, np.int32(limit), self.temperature, self.static
                )
                step, done = int(state.step), np.array(state.done_bs)
                if on_tokens or texts_stop:
                    token, length = np.asarray(state.token_bsc), np.asarray(state.length_bs)
                    if texts_stop:
                        done = self._stop_strings(token, length, done, every or LOOK_EVERY)
                        state = state.replace(done_bs=jax.device_put(done, state.done_bs.sharding))
                    if on_tokens:
                        on_tokens(self._so_far(finished, origin, token, length, count, n))
                if agree([int(done.all())])[0]:
                    break
            if done.all() or step >= limit_all:
                break
            chosen = compaction_of(done, multiple)
            if chosen is not None:
                self._collect(finished, state, origin, only_done=True)
                row, slot, filler = chosen
                state, cache = loop.select(self.model, state, cache, row, slot, filler)
                origin = np.take_along_axis(origin[row], slot[..., None], 1)
                origin[filler] = -1
        self._collect(finished, state, origin, only_done=False)
        return [[self._completion(*finished[b, s]) for s in range(n)] for b in range(count)]

    @staticmethod
    def _collect(finished, state, origin, only_done: bool) -> None:
        """Copies responses out of the state; places that fill a shape, or were copied before, are
        passed over.
        """
        arrays = jax.device_get(
            (state.token_bsc, state.logp_bsc, state.entropy_bsc, state.length_bs, state.done_bs)
        )
        token, logp, entropy, length, done = arrays
        for place in np.ndindex(done.shape):
            b, s = origin[place]
            if b < 0 or (only_done and not done[place]) or (b, s) in finished:
                continue
            size = length[place]
            finished[int(b), int(s)] = (
                token[place][:size].copy(),
                logp[place][:size].copy(),
                entropy[place][:size].copy(),
                bool(done[place]),
            )

    def _stop_strings(self, token, length, done, drawn: int) -> np.ndarray:
        """`done`, and what holds a stop string that ends in its last `drawn` tokens: only as much
        text is made anew.
        """
        window = (
            drawn + 8 + max(len(s.encode()) for s in self.options.stop)
        )  # a token is at least a byte
        for place in zip(*np.nonzero(~done), strict=True):
            done[place] = self._stops_in(token[place][: length[place]][-window:])
        return done

    def _stops_in(self, ids: np.ndarray) -> bool:
        text = self.processor.decode(ids)
        return any(s in text for s in self.options.stop)

    @staticmethod
    def _so_far(finished, origin, token, length, count, n) -> list[list[np.ndarray]]:
        out = [[np.zeros(0, np.int32)] * n for _ in range(count)]
        for (b, s), (ids, *_) in finished.items():
            if b < count:
                out[b][s] = ids
        for place in np.ndindex(length.shape):
            b, s = origin[place]
            if 0 <= b < count and (b, s) not in finished:
                out[b][s] = token[place][: length[place]]
        return out

    def _completion(
        self, ids: np.ndarray, logp: np.ndarray, entropy: np.ndarray, done: bool
    ) -> Completion:
        text = self.processor.decode(ids)
        cut = min((text.find(s) for s in self.options.stop if s in text), default=None)
        if cut is not None:
            # Tokens after the one that completed the stop string were drawn only because the host
            # looks in chunks.
            size = 1 + bisect.bisect_left(
                range(1, len(ids) + 1), True, key=lambda k: self._stops_in(ids[:k])
            )
            ids, logp, entropy, text = ids[:size], logp[:size], entropy[:size], text[:cut]
        mean = float(entropy.mean()) if len(ids) else 0.0
        return Completion(text, ids, logp, "stop" if done or cut is not None else "length", mean)


def compaction_of(done: np.ndarray, multiple: int):
    """`decode.compaction`, agreed between hosts."""
    chosen = loop.compaction(done, multiple)
    shape = agree([0, 0] if chosen is None else list(chosen[1].shape))
    return None if shape[0] == 0 else chosen
