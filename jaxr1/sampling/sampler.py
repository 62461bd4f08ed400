"""The engine's host side: between chunks it decides which responses go on."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import numpy as np

from jaxr1.base.errors import UserError
from jaxr1.inputs.batch import EncodedPrompt, count_rows, make_batch, rows_of
from jaxr1.inputs.processor import Processor
from jaxr1.inputs.sizes import Buckets, falling, roomy
from jaxr1.models.vlm import Model
from jaxr1.parallel import (
    agree,
    batch_hosts,
    batch_multiple,
    fetch,
    gather,
    host_index,
    mesh_of,
    on_device,
    place_rows,
    put,
)
from jaxr1.sampling import decode
from jaxr1.sampling.decode import DecodeState, PromptCache, Weights
from jaxr1.sampling.draw import Filters, sample_keys
from jaxr1.sampling.options import SamplingOptions
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
        greedy: int = 0,
        weights: Weights | None = None,
        on_tokens: OnTokens | None = None,
        every: int = 0,
        check: Check | None = None,
    ) -> list[list[Completion]]:
        """n completions for each prompt.

        Args:
          keys: of the prompts, from `prompt_key`.
          greedy: so many more for each prompt, the last ones, take the likeliest token.
          weights: what `weights` made of the parameters, where several calls share it.
          on_tokens: called every `every` tokens, and at the end of each chunk.
          check: called every few seconds; what it raises ends the drawing.

        Raises:
          NotFiniteError: a token has a log-prob that is no number.
        """
        if check is not None:
            check()
        n += greedy
        # Prompt rows are rounded up; those that fill the shape are done before they begin.
        mesh, rules = mesh_of(params), self.model.rules
        multiple, hosts = batch_multiple(mesh, rules), batch_hosts(mesh, rules)
        rows = count_rows(prompts, multiple, hosts)
        at = rows_of(prompts, rows, hosts or (0,) * multiple)
        kinds, width = self.model.media, roomy(max(map(len, prompts)), self.buckets.prompt)
        batch = make_batch(
            prompts,
            self.buckets,
            kinds,
            rows=rows,
            width=width,
            multiple=multiple,
            hosts=hosts,
        )
        key_b2, done = np.zeros((rows, 2), np.uint32), np.ones((rows, n), bool)
        key_b2[at], done[at] = np.stack(keys), False

        with jax.set_mesh(mesh):
            # The prompt once for its whole group, then a cache for each response.
            placed = place_rows(batch, mesh, rules)
            prompt = decode.run_prefill(self.model, params, placed, self.tokens_at_once)
            key = sample_keys(key_b2, np.tile(np.arange(n), (rows, 1)))
            key, done = place_rows((key, done), mesh, rules)
            state, cache = decode.start(self.model, prompt, key, done, n, self.slots[0], greedy)
            self.note_cache(state, cache)
            del prompt  # its keys live on in the cache's layout
            static = dataclasses.replace(self.static, mixes_greedy=greedy > 0)
            flight = InFlight(self, state, cache, at, n, multiple, check, static)
            flight.run(weights or self.weights(params), on_tokens, every)
        return self._completions(prompts, [flight.group(i) for i in range(len(prompts))])

    def _completions(
        self, prompts: Sequence[EncodedPrompt], groups: Sequence[Sequence[Drawn]]
    ) -> list[list[Completion]]:
        """The responses as text, those of each prompt from its own host."""

        def own() -> dict[int, list[Completion]]:
            mine = [i for i, prompt in enumerate(prompts) if prompt.host == host_index()]
            return {i: list(map(self._completion, groups[i])) for i in mine}

        found: dict[int, list[Completion]] = {}
        for some in gather(own, Completion):
            found |= some
        return [found[i] for i in range(len(prompts))]

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
        at: Sequence[int],
        samples: int,
        multiple: int,
        check: Check | None = None,
        static: decode.Static | None = None,
    ):
        self.static = static or sampler.static
        self.sampler, self.state, self.cache, self.check = sampler, state, cache, check
        self.prompts, self.samples, self.multiple = len(at), samples, multiple
        self.finished: dict[tuple[int, int], Drawn] = {}
        self.whole = (state.done_bs.shape[0], samples)
        self.origin = np.full((*self.whole, 2), -1)
        whose = np.meshgrid(np.arange(len(at)), np.arange(samples), indexing="ij")
        self.origin[np.asarray(at, int)] = np.stack(whose, -1)

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
                self.static,
            )
            done = fetch(self.state.done_bs).copy()
            drawn = max(1, int(self.state.step) - step)
            sampler.seconds_per_token = (time.perf_counter() - began) / drawn
            if self.check is not None:
                self.check()
            if stops:
                done = self._end_at_stop_strings(done, stride)
            if on_tokens:
                on_tokens(self._so_far())
            if done.all() or int(self.state.step) >= end:
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
        token, length = fetch((self.state.token_bsc, self.state.length_bs))
        # Only as much text is made anew as may hold one: a token is at least a byte.
        stops = self.sampler.stops
        window = drawn + 8 + stops.longest
        for at in zip(*np.nonzero(~done), strict=True):
            done[at] = stops.found(token[at][: length[at]][-window:])
        placed = put(done, self.state.done_bs.sharding)
        self.state = dataclasses.replace(self.state, done_bs=placed)
        return done

    def _drop_finished(self, done: np.ndarray) -> None:
        """Makes the state smaller where half of its work can go."""
        chosen = decode.compaction(done, self.multiple, self.whole)
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
        token, logp, entropy, length, done = fetch(
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
        token, length = fetch((self.state.token_bsc, self.state.length_bs))
        none = np.zeros(0, np.int32)
        tokens = [[none] * self.samples for _ in range(self.prompts)]
        for place, (b, s) in self._places():
            tokens[b][s] = token[place][: length[place]]
        for (b, s), drawn in self.finished.items():
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
