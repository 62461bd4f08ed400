"""Attention in blocks against a float64 softmax over each query's keys: values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxr1.inputs.patches import block_pairs
from jaxr1.nn import attention, blocked

B, S, T, P, K, G, H = 2, 3, 37, 21, 2, 3, 8


def segments(rng) -> np.ndarray:
    """int32[B, S, T]: up to four responses a strip, padding behind them; one strip is empty."""
    out = np.zeros((B, S, T), np.int32)
    for strip in out.reshape(-1, T)[1:]:
        cuts = np.sort(rng.choice(np.arange(1, T), 4, replace=False))
        for number, (a, b) in enumerate(zip([0, *cuts], cuts, strict=False), 1):
            strip[a:b] = number
    return out


def exact_strips(q, prompt_k, prompt_v, own_k, own_v, length, segment):
    """float64, query by query, head by head."""
    q, prompt_k, prompt_v, own_k, own_v = (
        np.asarray(x, np.float64) for x in (q, prompt_k, prompt_v, own_k, own_v)
    )
    out = np.zeros(q.shape)
    for b, s, t, n in np.ndindex(*q.shape[:4]):
        if not segment[b, s, t]:
            continue
        k, seen = n // G, np.flatnonzero(segment[b, s, : t + 1] == segment[b, s, t])
        keys = np.concatenate([prompt_k[b, : length[b], k], own_k[b, s, seen, k]])
        values = np.concatenate([prompt_v[b, : length[b], k], own_v[b, s, seen, k]])
        score = keys @ q[b, s, t, n] / np.sqrt(H)
        weight = np.exp(score - score.max())
        out[b, s, t, n] = weight @ values / weight.sum()
    return out


def loss_and_gradients(function, arrays, cotangent):
    """The value of sum(function * cotangent), and its gradient for each array."""
    given = [jnp.asarray(x) for x in arrays]
    loss = jax.jit(lambda *x: (function(*x) * cotangent).sum())
    return loss(*given), jax.grad(loss, tuple(range(len(given))))(*given)


def in_blocks(monkeypatch, scores: int):
    monkeypatch.setattr(blocked, "SCORES", scores)
    monkeypatch.setattr(blocked, "LEAST", 4)


@pytest.mark.parametrize("scores", [1, 20_000])  # 4 and 8 queries at once; neither divides T
def test_strips(rng, monkeypatch, scores):
    segment, length = segments(rng), np.array([P, 5], np.int32)
    q = rng.standard_normal((B, S, T, K * G, H)).astype(np.float32)
    prompt = rng.standard_normal((2, B, P, K, H)).astype(np.float32)
    own = rng.standard_normal((2, B, S, T, K, H)).astype(np.float32)
    arrays = (q, *prompt, *own)
    attend = lambda q, pk, pv, k, v: attention.strip_attention(q, (pk, pv), length, (k, v), segment)
    real = (segment > 0)[..., None, None]
    cotangent = rng.standard_normal(q.shape).astype(np.float32) * real
    whole = loss_and_gradients(attend, arrays, cotangent)
    in_blocks(monkeypatch, scores)
    out = np.asarray(attend(*arrays))
    np.testing.assert_allclose(out * real, exact_strips(*arrays, length, segment), atol=1e-5)
    assert np.isfinite(out).all(), "padding, too"
    found = loss_and_gradients(attend, arrays, cotangent)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, atol=3e-5, rtol=1e-5)


def test_prompts(rng, monkeypatch):
    length = np.array([P, 5], np.int32)
    q = rng.standard_normal((B, P, K * G, H)).astype(np.float32)
    k, v = rng.standard_normal((2, B, P, K, H)).astype(np.float32)
    attend = lambda q, k, v: attention.causal_attention(q, k, v, length)
    real = (np.arange(P) < length[:, None])[..., None, None]
    cotangent = rng.standard_normal(q.shape).astype(np.float32) * real
    whole = loss_and_gradients(attend, (q, k, v), cotangent)
    in_blocks(monkeypatch, 1)
    found = loss_and_gradients(attend, (q, k, v), cotangent)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, atol=3e-5, rtol=1e-5)


def test_images(rng, monkeypatch):
    """Full attention inside images: in rows of one image each, and over pairs of blocks."""
    segment = np.repeat([[1, 2, 3, 0], [4, 4, 5, 5]], 16, axis=1).astype(np.int32)
    q, k, v = rng.standard_normal((3, 2, 64, 3, H)).astype(np.float32)
    real = (segment > 0)[..., None, None]
    cotangent = rng.standard_normal(q.shape).astype(np.float32) * real
    in_rows = lambda q, k, v: attention.segment_attention(q, k, v, segment)
    pairs = block_pairs(segment, 8)
    in_pairs = lambda q, k, v: attention.paired_attention(q, k, v, segment, pairs, 8)
    whole = loss_and_gradients(in_rows, (q, k, v), cotangent)
    in_blocks(monkeypatch, 2 * 3 * 8 * 8 * 3)  # three pairs at once
    for attend in (in_rows, in_pairs):
        found = loss_and_gradients(attend, (q, k, v), cotangent)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True):
            np.testing.assert_allclose(a, b, atol=3e-5, rtol=1e-5)


@pytest.mark.parametrize("length", [64, 256])
def test_memory_is_linear(monkeypatch, length):
    """No array has the scores of more than a block."""
    in_blocks(monkeypatch, 4 * 16 * 64)
    shape = jax.ShapeDtypeStruct((1, length, 4, 8), jnp.float32)
    lengths = jax.ShapeDtypeStruct((1,), jnp.int32)
    loss = lambda q, k, v, n: attention.causal_attention(q, k, v, n).sum()
    compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(shape, shape, shape, lengths).compile()
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    print(f"{length} tokens: {temporaries} bytes; all scores {4 * 4 * length**2}")
    assert temporaries < 4 * length * (40 * 4 * 8 + 4 * 64)
