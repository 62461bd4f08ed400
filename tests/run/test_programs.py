"""Invariant 5: few programs, all of them on a list that is known before the run."""

import dataclasses
import types
from pathlib import Path

import numpy as np
import pytest
from reference import learner, one_stage

import jaxr1
from jaxr1.data import Arithmetic
from jaxr1.inputs.arrangement import PatchGeometry
from jaxr1.inputs.batch import PATCHES, EncodedPrompt
from jaxr1.inputs.levels import Levels
from jaxr1.inputs.sizes import Buckets
from jaxr1.inputs.strips import plan_prompts
from jaxr1.models.vlm import Model
from jaxr1.nn.lora import ADAPTERS, Lora, init_adapters
from jaxr1.parallel import mesh_of
from jaxr1.rl import Kl, Ppo, update
from jaxr1.run import BucketOptions, Evaluation, Rl
from jaxr1.run.opening import Opened
from jaxr1.sampling import decode, sampler, scoring
from jaxr1.sampling.sampler import Drawn, Sampler, SamplingOptions
from jaxr1.stages import Context
from jaxr1.stages.learners import policy_learner
from jaxr1.stages.programs import list_learning, list_programs

LIMIT, PROMPTS, GROUP, DEVICES = 2048, 32, 8, 1
GEOMETRY = PatchGeometry(merge=2, values=6, frames=2)  # Qwen2-VL's, with small patches


def media_of(batch) -> tuple[int, ...]:
    """Sizes of the media rows."""
    return tuple(size for rows in batch.media.values() for size in rows.segment_rm.shape)


def cache_of(state, cache) -> tuple[int, ...]:
    """Rows and samples, cache slots, P."""
    return (*state.done_bs.shape, state.token_bsc.shape[2], cache.kv[0][0].shape[2])


KEYS = {
    "run_prefill": lambda model, params, batch, at_once: (*batch.token_bp.shape, *media_of(batch)),
    "start": lambda model, prompt, key, done, samples, slots, greedy: (
        *prompt.kv[0].shape[1:3],
        samples,
        slots,
    ),
    "decode_until": lambda model, weights, cache, state, *rest: cache_of(state, cache),
    "grow": lambda model, state, slots: (*state.done_bs.shape, state.token_bsc.shape[2], slots),
    "select": lambda model, state, cache, row, slot, done: (*cache_of(state, cache), *slot.shape),
    "score_batch": lambda model, params, batch, strips, temperature, reads, forbidden, at_once: (
        *batch.token_bp.shape,
        *strips.token_bst.shape[1:],
        at_once,
        *media_of(batch),
    ),
    "accumulate": lambda model, objective, trainable, frozen, sums, batch, scalars, at_once: (
        *batch.prompt.token_bp.shape,
        *batch.strips.token_bst.shape[1:],
        at_once,
        *media_of(batch.prompt),
    ),
}
"""What a call is compiled for, by the name of the function."""


def recorded(module, name: str, seen: list, monkeypatch, instead=None) -> None:
    """Notes the sizes of each call of a function, or of what stands for it."""
    real = instead or getattr(module, name)

    def call(*args):
        seen.append((name, KEYS[name](*args)))
        return real(*args)

    monkeypatch.setattr(module, name, call)


# --- a run that is only planned -----------------------------------------------------------------
def natural(rng, limit: int, shape=None):
    """Log-normal lengths, median 0.4 of the limit."""
    drawn = rng.lognormal(np.log(0.4 * limit), 0.6, shape)
    return np.clip(np.round(drawn), 1, limit).astype(int)


def natural_prompt(rng) -> EncodedPrompt:
    """A picture of any shape, its long side 200 to 1500 pixels, and text for the rest."""
    length = max(16, int(natural(rng, LIMIT)))
    long, aspect = rng.uniform(200, 1500), rng.uniform(0.4, 1.0)
    sides = np.maximum(1, np.round(np.array([long, long * aspect]) / 28)).astype(int)
    while sides.prod() > length - 8:
        sides = np.maximum(1, sides * 9 // 10)
    count = int(sides.prod())
    index = np.where(np.arange(length) < count, np.arange(length), -1)
    patches = np.zeros((4 * count, 3), np.uint8)
    grid = (1, 2 * int(sides[0]), 2 * int(sides[1]))
    position = np.zeros((length, 3), np.int32)
    ids = np.zeros(length, np.int32)
    levels = (Levels((1.0,) * 3, (0.0,) * 3),)
    return EncodedPrompt(ids, index, position, length, (patches,), (grid,), levels=levels)


class Pretended:
    """Stands for the functions of `sampling.decode`: states without numbers, ends known before."""

    def __init__(self, lengths_bs: np.ndarray):
        self.lengths_bs = lengths_bs

    def run_prefill(self, model, params, batch, at_once):
        rows, width = batch.token_bp.shape
        return types.SimpleNamespace(kv=(np.zeros((1, rows, width)),))

    def start(self, model, prompt, key, done, samples, slots, greedy):
        rows, width = prompt.kv[0].shape[1:3]
        length = np.full((rows, samples), 0)
        length[: len(self.lengths_bs)] = self.lengths_bs
        cache = types.SimpleNamespace(kv=[(np.zeros((rows, 1, width)),)])
        done = np.array(done)
        return self.state(0, length, done, slots), cache

    def state(self, step, length, done, slots):
        empty = np.zeros((*length.shape, slots), np.int8)
        fields = dict(token_bsc=empty, logp_bsc=empty, entropy_bsc=empty)
        return types.SimpleNamespace(
            step=step, ends=length, done_bs=done, length_bs=np.minimum(length, step), **fields
        )

    def decode_until(self, model, weights, cache, state, limit, temperature, static):
        ended = state.done_bs | (state.ends <= limit)
        return self.state(int(limit), state.ends, ended, state.token_bsc.shape[2])

    def grow(self, model, state, slots):
        return self.state(state.step, state.ends, state.done_bs, slots)

    def select(self, model, state, cache, row, slot, filler):
        pick = lambda x: np.take_along_axis(x[row], slot, 1)
        done, slots = pick(state.done_bs) | filler, state.token_bsc.shape[2]
        width = cache.kv[0][0].shape[2]
        smaller = types.SimpleNamespace(kv=[(np.zeros((len(row), 1, width)),)])
        return self.state(state.step, pick(state.ends), done, slots), smaller


@pytest.fixture(scope="module")
def tiny():
    return *jaxr1.load_model("tiny"), jaxr1.load_processor("tiny")


def test_a_run_of_natural_sizes_has_few_programs(tiny, monkeypatch):
    """Two passes over 1600 prompts: at most 32 programs, as listed, and none new in the second."""
    model, params, processor = tiny
    monkeypatch.setattr(Model, "media", {PATCHES: GEOMETRY})
    buckets = Buckets.up_to(LIMIT, LIMIT, 4 * LIMIT)
    options = Rl(
        data=Arithmetic(count=1),
        prompts_per_step=PROMPTS,
        group_size=GROUP,
        max_prompt_tokens=LIMIT,
        max_response_tokens=LIMIT,
        kl=Kl(0.1),
    )
    policy = policy_learner(options, Context(model, processor, buckets, Path()))
    listed = list_programs(options, {"policy": policy}, DEVICES)
    print(f"{len(listed)} programs listed")

    seen: list = []
    pretended = Pretended(np.zeros((0, GROUP), int))
    for name in ("run_prefill", "start", "decode_until", "grow", "select"):
        recorded(decode, name, seen, monkeypatch, getattr(pretended, name))
    monkeypatch.setattr(sampler, "place_rows", lambda tree, *_: tree)
    monkeypatch.setattr(Sampler, "note_cache", lambda *_: None)
    monkeypatch.setattr(Sampler, "_completion", lambda self, drawn: drawn)
    draw = Sampler(model, processor, SamplingOptions(LIMIT), buckets)
    weights = draw.weights(params)

    seed = int(np.random.default_rng().integers(2**32))
    print("seed", seed)
    rng = np.random.default_rng(seed)
    data = [natural_prompt(rng) for _ in range(50 * PROMPTS)]
    passes = []
    for _ in range(2):
        before = set(seen)
        order = rng.permutation(len(data))
        for first in range(0, len(data), PROMPTS):
            prompts = [data[i] for i in order[first : first + PROMPTS]]
            lengths = natural(rng, LIMIT, (PROMPTS, GROUP))
            half = PROMPTS // options.waves
            for wave in (slice(0, half), slice(half, None)):
                pretended.lengths_bs = lengths[wave]
                keys = [np.zeros(2, np.uint32)] * half
                drawn = draw(params, prompts[wave], keys, GROUP, weights=weights)
                assert all(isinstance(one, Drawn) for group in drawn for one in group)
            counts = types.SimpleNamespace(
                counts_bg=lengths, draws=[types.SimpleNamespace(prompt=p) for p in prompts]
            )
            # All responses have a reference's log-probs; those of equal rewards are not trained.
            placed = np.ones(lengths.shape, bool)
            placed[rng.random(PROMPTS) < 0.3] = False
            for name, chosen in (("score_batch", placed | True), ("accumulate", placed)):
                for plan in update.plan_episodes(policy, params, counts, chosen):
                    batch = plan_prompts(plan, prompts, buckets, {PATCHES: GEOMETRY})
                    sizes = (plan.strips, plan.strip_len, plan.at_once)
                    seen.append((name, (*batch.token_bp.shape, *sizes, *media_of(batch))))
        passes.append(set(seen) - before)
    everything = set(seen) | {("weights", ()), ("zeros", ()), ("_apply", ())}
    print(f"{len(everything)} programs used:", *sorted(everything), sep="\n")
    assert everything <= listed
    assert len(everything) <= 32
    assert not passes[1]


# --- a run --------------------------------------------------------------------------------------
def test_what_a_run_compiles_is_listed(tmp_path, monkeypatch, capsys):
    """A small run with pictures, a reference and held-out questions; nothing from step 3 on."""
    config = one_stage(
        tmp_path / "run",
        data=Arithmetic(count=8),
        steps=4,
        prompts_per_step=4,
        waves=2,
        kl=Kl(0.1),
        buckets=BucketOptions(prompt=(32,), response=(16,), patches=(16,)),
    )
    held_out = Evaluation(
        data=Arithmetic(count=6, split="test"),
        max_prompt_tokens=32,
        max_response_tokens=16,
        batch_rows=4,
    )
    config = dataclasses.replace(config, evaluations=(held_out,))
    seen: list = []
    for name in ("run_prefill", "start", "decode_until", "grow", "select"):
        recorded(decode, name, seen, monkeypatch)
    recorded(scoring, "score_batch", seen, monkeypatch)
    recorded(update, "accumulate", seen, monkeypatch)
    listed = []
    real = Opened.programs

    def programs(self, *stage):
        listed.append(real(self, *stage))
        return listed[-1]

    monkeypatch.setattr(Opened, "programs", programs)
    metrics = jaxr1.train(config).metrics
    assert set(seen) <= {*listed[0]}, set(seen) - {*listed[0]}
    assert {name for name, _ in seen} >= {"run_prefill", "decode_until", "score_batch"}
    compiles = [row["perf/compiles"] for row in metrics if "perf/compiles" in row]
    assert len(compiles) == 4 and compiles[2:] == [0, 0]
    text = capsys.readouterr().out
    assert f"of at most {len(listed[0])} programs" in text


@pytest.mark.parametrize("targets", ["decoder/layers/(q|v)", "(decoder/layers|vision/blocks)/.*"])
def test_what_adapters_leave_as_it_is_is_known_before_there_is_a_state(targets):
    """A tower without adapters is computed once, and what does so is on the list."""
    model, params = jaxr1.load_model("tiny")
    lora = Lora(rank=2, targets=targets)
    adapters = init_adapters(model.table(), lora, 0, mesh_of(params), model.rules)
    model = dataclasses.replace(model, lora=lora)
    policy = learner(model, jaxr1.load_processor("tiny"), [Ppo()], Buckets((32,), (16,), (8, 16)))
    state = policy.init({**params, ADAPTERS: adapters})
    assert {*policy.unchanging} == {*state.unchanging} and policy.unchanging
    listed = {name for name, _ in list_learning(policy, 4, 2, 1)}
    assert ("_compute" in listed) == ("vision" in policy.unchanging)
