"""bfloat16: sums over many tokens, large scores, sampler against trainer, stored parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import Checkpoint, given, learner, mixed_prompts

import jaxr1
from jaxr1.inputs.batch import fitting_buckets
from jaxr1.nn.attention import (
    causal_attention,
    decode_attention,
    segment_attention,
    strip_attention,
)
from jaxr1.nn.params import flatten
from jaxr1.rl import CrossEntropy, Objective
from jaxr1.rl.learner import init_state
from jaxr1.rl.step import apply, round_stochastically, zero_sums
from jaxr1.rl.update import gradients
from jaxr1.rl.work import Work

EPSILON = 2.0**-8  # half of the last digit of a bfloat16, relative


@pytest.fixture(scope="module", params=["qwen2_vl", "qwen3_vl", "internvl"])
def world(request, tmp_path_factory, module_seed):
    folder = tmp_path_factory.mktemp("m") / "m"
    return Checkpoint.make(folder, module_seed, request.param, layers=2, tied=False)


@pytest.mark.parametrize("strips_at_once", [0, 1])
def test_gradients_add_up_over_thousands_of_tokens(world, rng, strips_at_once):
    """Every tensor of the bfloat16 gradient is that of float32: norms, biases and matrices alike.

    Summed in bfloat16, a norm's gradient over these 8192 tokens is wrong by half of it.
    """
    folder, processor = world.folder, world.processor
    rows, group, length = 16, 8, 64
    prompts = [processor.encode(p) for p in mixed_prompts(rng, rows)]
    # Four tokens make up half of the text.
    common = rng.integers(20, 24, (rows, group, length))
    others = rng.integers(20, 500, common.shape)
    mixed = np.where(rng.random(common.shape) < 0.5, common, others).astype(np.int32)
    tokens = [list(row) for row in mixed]
    buckets = fitting_buckets(prompts, length)

    def gradient(dtype):
        model, params = jaxr1.load_model(folder, dtype=dtype)
        policy = learner(
            model, processor, (CrossEntropy(),), buckets, strips_at_once=strips_at_once
        )
        episodes = given(prompts, tokens)
        episodes.columns |= policy.weights(episodes)
        sums = gradients(policy, policy.init(params), episodes, Work())
        return {path: np.asarray(g, np.float64) for path, g in flatten(sums.grads).items()}

    exact, found = gradient("float32"), gradient("bfloat16")
    whole = np.sqrt(sum((g**2).sum() for g in exact.values()))
    compared = 0
    for path, g in exact.items():
        # Smaller ones are rounding of the activations, not of the sums.
        if np.linalg.norm(g) > 1e-3 * whole:
            compared += 1
            error = np.linalg.norm(found[path] - g) / np.linalg.norm(g)
            assert error < 16 * EPSILON, (path, error)
    assert compared > 0.6 * len(exact)


@pytest.mark.parametrize("size", [1.0, 6.0])
def test_large_scores_keep_their_digits(rng, size):
    """Scores up to 70, as the key biases of Qwen2 make them, are not rounded.

    The error is that of the rounded inputs' values alone.
    """
    rows, length, heads, width = 2, 48, 4, 128
    narrow = lambda x: jnp.asarray(x, jnp.bfloat16)
    q, k, v = rng.standard_normal((3, rows, length, heads, width))
    q, k = (x + size * rng.standard_normal((1, 1, heads, width)) for x in (q, k))
    q, k, v = map(narrow, (q, k, v))
    wide = [np.asarray(x.astype(jnp.float32), np.float64) for x in (q, k, v)]

    def exact(seen):
        score = np.where(seen, np.einsum("rmnh,runh->rnmu", *wide[:2]) * width**-0.5, -np.inf)
        weight = np.exp(score - score.max(-1, keepdims=True))
        return np.einsum("rnmu,runh->rmnh", weight / weight.sum(-1, keepdims=True), wide[2])

    def close(found, expected):
        error = np.asarray(found.astype(jnp.float32), np.float64) - expected
        # No more than the weights' own rounding.
        assert np.sqrt((error**2).mean() / (expected**2).mean()) < EPSILON

    full, causal = np.ones((length, length), bool), np.tril(np.ones((length, length), bool))
    close(segment_attention(q, k, v, jnp.ones((rows, length), int)), exact(full))
    close(causal_attention(q, k, v, jnp.full(rows, length)), exact(causal))
    half = length // 2
    own = tuple(x[:, None, half:] for x in (k, v))
    prompt = tuple(x[:, :half] for x in (k, v))
    ones = jnp.ones((rows, 1, half), int)
    lengths = jnp.full(rows, half)
    strip = strip_attention(q[:, None, half:], prompt, lengths, own, ones)
    close(strip[:, 0], exact(causal)[:, half:])
    prompt_cache = tuple(jnp.swapaxes(x, 1, 2) for x in prompt)
    own_cache = tuple(jnp.swapaxes(x, 2, 3) for x in own)
    last = decode_attention(q[:, -1:], prompt_cache, lengths, own_cache, jnp.int32(half - 1))
    close(last[:, 0], exact(causal)[:, -1])


def test_sampler_and_trainer_agree(world, rng):
    """Invariant 2 in bfloat16: within 8 x 2^-8 x the largest logit.

    That is a few roundings of the last hidden state.
    """
    folder = world.folder
    model, params = jaxr1.load_model(folder, dtype="bfloat16")
    processor = jaxr1.load_processor(folder)
    prompts = mixed_prompts(rng, 4)
    groups = jaxr1.generate(
        model, params, processor, prompts, n=4, max_new_tokens=24, seed=int(rng.integers(1000))
    )
    tokens = [[c.token_ids for c in group] for group in groups]
    scored = jaxr1.score(model, params, processor, prompts, tokens)
    worst, largest = 0.0, 1.0
    for group, row in zip(groups, scored, strict=True):
        for completion, logp in zip(group, row, strict=True):
            worst = max(worst, float(np.abs(completion.logprobs - logp).max()))
            # Logits differ by as much as this at least.
            largest = max(largest, float(-completion.logprobs.min()))
    assert 0 < worst <= 8 * EPSILON * largest, worst / EPSILON / largest


def test_parameters_in_bfloat16_move(world):
    """Updates far smaller than the last digit arrive on average; moments and sums are float32."""
    folder = world.folder
    _, params = jaxr1.load_model(folder, param_dtype="bfloat16")
    before = jax.tree.map(lambda x: np.asarray(x.astype(jnp.float32)), params)
    rate, steps = 1e-5, 50
    tx, schedule = optax.adamw(rate), optax.constant_schedule(rate)
    objective = Objective((CrossEntropy(),))
    state = init_state(params, tx)
    assert {x.dtype for x in jax.tree.leaves(state.opt) if x.ndim} == {jnp.dtype("float32")}
    for _ in range(steps):
        sums = zero_sums(objective, state.trainable)
        ones = sums.replace(grads=jax.tree.map(jnp.ones_like, sums.grads))
        state, _ = apply(tx, schedule, state, ones)
    assert {x.dtype for x in jax.tree.leaves(state.trainable)} == {jnp.dtype("bfloat16")}
    for path, x in flatten(state.trainable).items():
        moved = np.asarray(x.astype(jnp.float32)) - flatten(before)[path]
        if x.size > 2000:  # enough draws for a mean
            assert np.mean(moved) == pytest.approx(-steps * rate, rel=0.2), path


def test_stochastic_rounding(rng):
    """Only to one of two neighbours, exact where there is nothing to round, right on average."""
    x = rng.standard_normal(400).astype(np.float32)
    draws = jnp.stack([round_stochastically(jnp.asarray(x), jax.random.key(i)) for i in range(500)])
    found = np.asarray(draws.astype(jnp.float32), np.float64)
    gap = np.abs(x) * 2 * EPSILON
    assert (np.abs(found - x) <= gap).all() and (found.max(0) - found.min(0) <= gap).all()
    assert np.abs((found.mean(0) - x) / gap).max() < 0.12  # 5 standard errors of a coin of width 1
    exact = jnp.asarray(x, jnp.bfloat16)
    assert (round_stochastically(exact.astype(jnp.float32), jax.random.key(1)) == exact).all()
