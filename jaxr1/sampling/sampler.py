"""The engine's host side: between chunks it decides which responses go on."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import numpy as np

from jaxr1.base.checks import check_least
from jaxr1.base.errors import UserError
from jaxr1.inputs.batch import EncodedPrompt, make_batch
from jaxr1.inputs.processor import Processor
from jaxr1.inputs.sizes import Buckets, falling, roomy, rows_for
from jaxr1.models.vlm import Model
from jaxr1.parallel import agree, batch_multiple, mesh_of, on_device, place_rows
from jaxr1.sampling import decode
from jaxr1.sampling.decode import DecodeState, PromptCache, Weights
from jaxr1.sampling.draw import Filters, sample_keys
from jaxr1.sampling.stops import StopStrings

# Cache slots of the first chunk, at least: so many tokens are drawn before the host looks at the
# responses.
FIRST_SLOTS = 128
# Finished responses are dropped before the cache grows to its last sizes: dropping costs programs,
# and few end before.
LAST_SLOTS = 2
# Tokens between two looks for a stop string.
LOOK_EVERY = 16
# Longest time between two looks for a signal, about; and tokens before it is known what one takes.
LOOK_SECONDS = 4.0
FIRST_LOOK = 8

OnTokens = Callable[[list[list[np.ndarray]]], None]
"""Called with the token ids so far of every prompt and sample."""

Check = Callable[[], None]
"""Raises where the drawing is to be given up."""


class NotFiniteError(UserError):
    """A model that computes NaN or infinite log-probs."""


@dataclasses.dataclass(frozen=True)
class Completion:
    """One response.

    Attributes:
      text: without the stop token, other special tokens (but for those in the form of a tag, such
        as <think>) and the stop string.
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
      stop: strings that end a response; names of special tokens may be in them.
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
        check_least(self, "", max_new_tokens=1)
        if not self.temperature >= 0:
            raise ValueError(f"temperature must be 0 (greedy) or more, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (off) or more, got {self.top_k}")
        if not all(self.stop):
            raise ValueError("stop: an empty string would end every response at once")


@dataclasses.dataclass(frozen=True)
class Drawn:
    """The tokens of one response, as they were when it left the state.

    Attributes:
      token_ids: int32[n].
      logprobs: float32[n].
      entropy: float32[n], of each distribution.
      done: it ended, and was not cut.
    """

    token_ids: np.ndarray
    logprobs: np.ndarray
    entropy: np.ndarray
    done: bool


class Sampler:
    """Samples groups of responses; holds what stays the same from call to call.

    Args:
      tokens_at_once: padded tokens of prompts that a device computes at once.
    """

    def __init__(
        self,
        model: Model,
        processor: Processor,
        options: SamplingOptions,
        buckets: Buckets,
        tokens_at_once: int = 8192,
    ):
        self.tokens_at_once = tokens_at_once
        self.model, self.processor, self.options, self.buckets = model, processor, options, buckets
        greedy = options.temperature == 0
        self.temperature = np.float32(1.0 if greedy else options.temperature)
        filters = Filters(greedy, options.top_k, options.top_p)
        self.stops = StopStrings(options.stop, processor)
        stops = {*processor.stop_token_ids, *options.stop_token_ids, *self.stops.ids}
        self.slots = falling(options.max_new_tokens, (2, 4), FIRST_SLOTS)
        if options.ignore_stops:
            # Every response takes all its slots: growing the cache would only copy it.
            stops, self.slots = set(), self.slots[-1:]
        added = processor.tokenizer.added_tokens_decoder
        self.ends = {i for i in stops if i in added and added[i].special}
        self.static = decode.Static(filters, processor.media_token_ids, tuple(sorted(stops)))
        self.seconds_per_token: float | None = None  # of the last chunk
        self.cache_gib = 0.0  # keys and values on a device, the most that there were

    def weights(self, params: dict) -> Weights:
        """The parameters as decoding reads them: a copy, to be made once for several calls."""
        with jax.set_mesh(mesh_of(params)):
            return decode.weights(self.model, params)

    def __call__(
        self,
        params: dict,
        prompts: Sequence[EncodedPrompt],
        keys: Sequence[np.ndarray],
        n: int,
        *,
        weights: Weights | None = None,
        on_tokens: OnTokens | None = None,
        every: int = 0,
        check: Check | None = None,
    ) -> list[list[Completion]]:
        """n completions for each prompt.

        Args:
          keys: of the prompts, from `prompt_key`.
          weights: what `weights` made of the parameters, where several calls share it.
          on_tokens: called every `every` tokens, and at the end of each chunk.
          check: called every few seconds; what it raises ends the drawing.

        Raises:
          NotFiniteError: a token has a log-prob that is no number.
        """
        if check is not None:
            check()
        # Prompt rows are rounded up; those that fill the shape are done before they begin.
        mesh, rules = mesh_of(params), self.model.rules
        multiple = batch_multiple(mesh, rules)
        rows = agree([rows_for(len(prompts), multiple)])[0]
        kinds, width = self.model.media, roomy(max(map(len, prompts)), self.buckets.prompt)
        sizes = dict(rows=rows, width=width, multiple=multiple)
        batch = make_batch(prompts, self.buckets, kinds, **sizes, room=True)
        key_b2 = np.zeros((rows, 2), np.uint32)
        key_b2[: len(keys)] = np.stack(keys)
        done = np.zeros((rows, n), bool)
        done[len(prompts) :] = True

        with jax.set_mesh(mesh):
            # The prompt once for its whole group, then a cache for each response.
            placed = place_rows(batch, mesh, rules)
            prompt = decode.run_prefill(self.model, params, placed, self.tokens_at_once)
            key = sample_keys(key_b2, np.tile(np.arange(n), (rows, 1)))
            key, done = place_rows((key, done), mesh, rules)
            state, cache = decode.start(self.model, prompt, key, done, n, self.slots[0])
            self.note_cache(state, cache)
            del prompt  # its keys live on in the cache's layout
            flight = InFlight(self, state, cache, len(prompts), n, multiple, check)
            flight.run(weights or self.weights(params), on_tokens, every)

        groups = [flight.group(prompt) for prompt in range(len(prompts))]
        return [list(map(self._completion, group)) for group in groups]

    def note_cache(self, state: DecodeState, cache: PromptCache) -> None:
        """Takes down how large the caches are."""
        self.cache_gib = max(self.cache_gib, on_device((state.own_kv, cache.kv)))

    def _completion(self, drawn: Drawn) -> Completion:
        """The response as text, cut behind the token that completed a stop string."""
        if not np.isfinite(drawn.logprobs).all():
            at = int(np.flatnonzero(~np.isfinite(drawn.logprobs))[0])
            raise NotFiniteError(
                f"token {at} of a response has the log-prob {drawn.logprobs[at]}: the model's "
                "numbers are no longer finite, and nothing can be learned from what it says"
            )
        ids, cut = drawn.token_ids, self.stops.cut(drawn.token_ids)
        size = cut.size if cut else len(ids)
        # A special token that ends a response is no part of its text, even in the form of a tag.
        ends = drawn.done and size and int(ids[-1]) in self.ends
        told = ids[:-1] if ends else ids
        return Completion(
            cut.text if cut else self.processor.decode(told),
            ids[:size],
            drawn.logprobs[:size],
            "stop" if drawn.done or cut else "length",
            float(drawn.entropy[:size].mean()) if size else 0.0,
        )


class InFlight:
    """Responses that are being drawn.

    The device draws in chunks; between them the host ends responses (stop strings), drops finished
    ones and grows the cache. Dropping moves responses: `origin` says whose each place is.

        place in the state   (0,0) (0,1) (1,0) (1,1)      after row 0 is done   (0,0) (0,1)
        origin               (0,0) (0,1) (1,0) (1,1)                            (1,0) (1,1)

    Attributes:
      finished: {(prompt, sample): what was drawn} of responses that have left the state.
      origin: int[B, S, 2], (prompt, sample) of each place; -1 only fills the shape.
    """

    def __init__(
        self,
        sampler: Sampler,
        state: DecodeState,
        cache: PromptCache,
        prompts: int,
        samples: int,
        multiple: int,
        check: Check | None = None,
    ):
        self.sampler, self.state, self.cache, self.check = sampler, state, cache, check
        self.prompts, self.samples, self.multiple = prompts, samples, multiple
        self.finished: dict[tuple[int, int], Drawn] = {}
        self.whole = (state.done_bs.shape[0], samples)
        rows = np.arange(self.whole[0])
        self.origin = np.stack(np.meshgrid(rows, np.arange(samples), indexing="ij"), -1)

    def group(self, prompt: int) -> list[Drawn]:
        """All responses of a prompt, when they are finished."""
        return [self.finished[prompt, sample] for sample in range(self.samples)]

    def run(self, weights: Weights, on_tokens: OnTokens | None, every: int) -> None:
        """Draws until every response is done, or has as many tokens as it may."""
        sampler, limit = self.sampler, self.sampler.options.max_new_tokens
        late = len(sampler.slots) - LAST_SLOTS - 1
        for number, slots in enumerate(sampler.slots):
            # The cache grows geometrically: short responses never pay for a long one.
            if slots > self.state.token_bsc.shape[2]:
                self.state = decode.grow(sampler.model, self.state, slots)
                sampler.note_cache(self.state, self.cache)
            done = self._chunk(weights, min(slots, limit), on_tokens, every)
            if done.all() or int(self.state.step) >= limit:
                break
            if number >= late:
                self._drop_finished(done)
        self._collect(only_done=False)

    def _chunk(
        self, weights: Weights, end: int, on_tokens: OnTokens | None, every: int
    ) -> np.ndarray:
        """Draws up to slot `end`, looking at the responses on the way; bool[B, S]: done."""
        sampler, stops = self.sampler, self.sampler.options.stop
        stride = every or (LOOK_EVERY if stops else end)
        while True:
            began, step = time.perf_counter(), int(self.state.step)
            limit = min(end, step + self._until_look(stride))
            self.state = decode.decode_until(
                sampler.model,
                weights,
                self.cache,
                self.state,
                np.int32(limit),
                sampler.temperature,
                sampler.static,
            )
            done = np.array(self.state.done_bs)
            drawn = max(1, int(self.state.step) - step)
            sampler.seconds_per_token = (time.perf_counter() - began) / drawn
            if self.check is not None:
                self.check()
            if stops:
                done = self._end_at_stop_strings(done, stride)
            if on_tokens:
                on_tokens(self._so_far())
            if agree([int(done.all())])[0] or int(self.state.step) >= end:
                return done

    def _until_look(self, stride: int) -> int:
        """Tokens until the next look: the stride, or fewer where a signal would wait too long."""
        if self.check is None:
            return stride
        seconds = self.sampler.seconds_per_token
        tokens = FIRST_LOOK if seconds is None else int(LOOK_SECONDS / max(seconds, 1e-9))
        return agree([max(1, min(stride, tokens))])[0]

    def _end_at_stop_strings(self, done: np.ndarray, drawn: int) -> np.ndarray:
        """Ends responses that hold a stop string which ends in their last `drawn` tokens."""
        token, length = np.asarray(self.state.token_bsc), np.asarray(self.state.length_bs)
        # Only as much text is made anew as may hold one: a token is at least a byte.
        stops = self.sampler.stops
        window = drawn + 8 + stops.longest
        for place in zip(*np.nonzero(~done), strict=True):
            done[place] = stops.found(token[place][: length[place]][-window:])
        placed = jax.device_put(done, self.state.done_bs.sharding)
        self.state = dataclasses.replace(self.state, done_bs=placed)
        return done

    def _drop_finished(self, done: np.ndarray) -> None:
        """Makes the state smaller where half of its work can go."""
        chosen = compaction_of(done, self.multiple, self.whole)
        if chosen is None:
            return
        self._collect(only_done=True)
        row, slot, filler = chosen
        model = self.sampler.model
        self.state, self.cache = decode.select(model, self.state, self.cache, row, slot, filler)
        self.origin = np.take_along_axis(self.origin[row], slot[..., None], 1)
        self.origin[filler] = -1

    def _collect(self, only_done: bool) -> None:
        """Copies responses out of the state, those that were not copied before."""
        state = self.state
        token, logp, entropy, length, done = jax.device_get(
            (state.token_bsc, state.logp_bsc, state.entropy_bsc, state.length_bs, state.done_bs)
        )
        for place, (b, s) in self._places():
            if (only_done and not done[place]) or (b, s) in self.finished:
                continue
            size = length[place]
            self.finished[b, s] = Drawn(
                token[place][:size].copy(),
                logp[place][:size].copy(),
                entropy[place][:size].copy(),
                bool(done[place]),
            )

    def _so_far(self) -> list[list[np.ndarray]]:
        """The tokens of every prompt and sample."""
        token, length = np.asarray(self.state.token_bsc), np.asarray(self.state.length_bs)
        none = np.zeros(0, np.int32)
        tokens = [[none] * self.samples for _ in range(self.prompts)]
        for place, (b, s) in self._places():
            if b < self.prompts:
                tokens[b][s] = token[place][: length[place]]
        for (b, s), drawn in self.finished.items():
            if b < self.prompts:
                tokens[b][s] = drawn.token_ids
        return tokens

    def _places(self) -> list[tuple[tuple[int, ...], tuple[int, int]]]:
        """Every place of the state that holds a response, and whose it is."""
        found = []
        for place in np.ndindex(self.origin.shape[:2]):
            b, s = (int(i) for i in self.origin[place])
            if b >= 0:
                found.append((place, (b, s)))
        return found


def compaction_of(
    done: np.ndarray, multiple: int, whole: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """`decode.compaction`, agreed between hosts."""
    chosen = decode.compaction(done, multiple, whole)
    shape = agree([0, 0] if chosen is None else list(chosen[1].shape))
    return None if shape[0] == 0 else chosen
