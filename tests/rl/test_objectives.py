"""Advantages, surrogate, KL and weights against float64 numpy written from the formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxr1.rl.advantages import Advantage, group_advantage, zero_std
from jaxr1.rl.objectives import clipped_surrogate, kl_estimate, token_weights
from jaxr1.rl.optimizer import Optimizer


@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
@pytest.mark.parametrize("scale", ["std", "none"])
def test_group_advantage_equals_the_formulas(rng, baseline, scale):
    reward = rng.normal(size=(6, 8))
    valid = rng.random((6, 8)) < 0.8
    valid[0], valid[1, 1:], reward[2] = False, False, 0.3
    eps = float(rng.choice([1e-4, 1e-6, 1e-9]))
    ours = group_advantage(reward, valid, Advantage(baseline, scale, eps))
    for b in range(6):
        r = reward[b, valid[b]]
        if len(r) < 2 or np.ptp(r) == 0:
            assert (ours[b] == 0).all()
            continue
        for i, g in enumerate(np.flatnonzero(valid[b])):
            base = r.mean() if baseline == "mean" else np.delete(r, i).mean()
            want = (r[i] - base) / (r.std(ddof=1) + eps if scale == "std" else 1.0)
            assert ours[b, g] == pytest.approx(want, abs=1e-5)
        assert (ours[b, ~valid[b]] == 0).all()
    assert ours.dtype == np.float32


def test_permuting_prompts_and_samples_permutes_advantages(rng):
    reward, valid = rng.normal(size=(5, 4)), np.ones((5, 4), bool)
    rows, columns = rng.permutation(5), rng.permutation(4)
    whole = group_advantage(reward, valid)
    np.testing.assert_allclose(group_advantage(reward[rows][:, columns], valid), whole[rows][:, columns], atol=1e-6)


def test_equal_rewards_have_exactly_no_advantage():
    """0.1 three times has a mean that is not 0.1: the difference must not be blown up by a tiny deviation."""
    reward = np.full((1, 3), 0.1)
    assert (group_advantage(reward, np.ones((1, 3), bool), Advantage(eps=1e-9)) == 0).all()
    assert zero_std(reward, np.ones((1, 3), bool)).all()


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="baseline"):
        group_advantage(np.zeros((1, 2)), np.ones((1, 2), bool), Advantage(baseline="median"))
    with pytest.raises(ValueError, match="scale"):
        group_advantage(np.zeros((1, 2)), np.ones((1, 2), bool), Advantage(scale="max"))
    with pytest.raises(ValueError, match="estimator"):
        kl_estimate(jnp.zeros(1), jnp.zeros(1), "k4")
    with pytest.raises(ValueError, match="aggregation"):
        token_weights([[1]], "mean")
    with pytest.raises(ValueError, match="schedule"):
        Optimizer(schedule="step").rate(10)


def test_clipped_surrogate_and_its_gradient(rng):
    logp = rng.normal(size=500) * 0.5
    old, advantage = logp + rng.normal(size=500) * 0.4, rng.normal(size=500)
    low, high = 0.2, 0.28
    loss, ratio, clipped = clipped_surrogate(jnp.float32(logp), jnp.float32(old), jnp.float32(advantage), low, high)
    true = np.exp(logp - old)
    np.testing.assert_allclose(ratio, true, rtol=1e-5)
    want = -np.minimum(true * advantage, np.clip(true, 1 - low, 1 + high) * advantage)
    np.testing.assert_allclose(loss, want, rtol=1e-4, atol=1e-6)
    outside = ((true > 1 + high) & (advantage > 0)) | ((true < 1 - low) & (advantage < 0))
    assert (np.asarray(clipped) == outside).all() and outside.any() and not outside.all()
    grad = jax.grad(lambda x: clipped_surrogate(x, jnp.float32(old), jnp.float32(advantage), low, high)[0].sum())
    np.testing.assert_allclose(grad(jnp.float32(logp)), np.where(outside, 0, -true * advantage), rtol=1e-4, atol=1e-6)


def test_on_policy_ratio_is_exactly_one(rng):
    logp = jnp.float32(rng.normal(size=50))
    advantage = jnp.float32(rng.normal(size=50))
    loss, ratio, clipped = clipped_surrogate(logp, jax.lax.stop_gradient(logp), advantage, 0.2, 0.2)
    assert (ratio == 1).all() and (clipped == 0).all() and (loss == -advantage).all()
    grad = jax.grad(lambda x: clipped_surrogate(x, jax.lax.stop_gradient(x), advantage, 0.2, 0.2)[0].sum())(logp)
    np.testing.assert_allclose(grad, -advantage, rtol=1e-6)


def test_a_stale_ratio_stays_finite():
    loss, ratio, _ = clipped_surrogate(jnp.float32([0.0]), jnp.float32([-500.0]), jnp.float32([-1.0]), 0.2, 0.2)
    assert np.isfinite(loss).all() and np.isfinite(ratio).all()


def test_kl_estimates(rng):
    p, q = rng.normal(size=200), rng.normal(size=200)
    d = p - q
    for name, want in (("k1", d), ("k2", d * d / 2), ("k3", np.exp(-d) - 1 + d)):
        got = kl_estimate(jnp.float32(p), jnp.float32(q), name)
        np.testing.assert_allclose(got, np.clip(want, -10, 10) if name == "k3" else want, rtol=1e-4, atol=1e-5)
    assert (kl_estimate(jnp.float32(p), jnp.float32(q), "k3") >= 0).all()
    assert np.isfinite(kl_estimate(jnp.float32([-300.0]), jnp.float32([0.0]), "k3")).all()


def test_k1_and_k3_are_unbiased(rng):
    """Means over draws of the policy approach the true KL of two categorical distributions."""
    # Half uniform: q / p stays below 12, where k3 (8.5) is under its clamp of 10, which would bias it.
    p, q = 0.5 * rng.dirichlet(np.ones(6)) + 0.5 / 6, rng.dirichlet(np.ones(6) * 3)
    x = rng.choice(6, 400_000, p=p)
    true = (p * np.log(p / q)).sum()
    for name in ("k1", "k3"):
        got = np.asarray(kl_estimate(jnp.log(jnp.float32(p))[x], jnp.log(jnp.float32(q))[x], name), np.float64)
        assert got.mean() == pytest.approx(true, abs=6 * got.std() / np.sqrt(len(x)) + 1e-4)


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"])
def test_token_weights_equal_their_definition(rng, mode):
    counts = rng.integers(0, 9, (4, 5)).tolist()
    losses = [[rng.normal(size=n) for n in group] for group in counts]
    got = sum(
        w * x.sum() for ws, xs in zip(token_weights(counts, mode, 7.0), losses, strict=True)
        for w, x in zip(ws, xs, strict=True)
    )  # fmt: skip
    flat = [x for group in losses for x in group if len(x)]
    want = {
        "token-mean": np.concatenate(flat).mean(),
        "seq-mean-token-mean": np.mean([x.mean() for x in flat]),
        "seq-mean-token-sum": np.mean([x.sum() for x in flat]),
        "seq-mean-token-sum-norm": np.mean([x.sum() / 7.0 for x in flat]),
    }[mode]
    assert got == pytest.approx(want, rel=1e-9)
    assert token_weights([[0, 0]], mode, 7.0) == [[0.0, 0.0]]


def test_schedules():
    rate = Optimizer(learning_rate=2.0, schedule="cosine", warmup=4, final=0.1).rate(20)
    got = np.array([float(rate(i)) for i in range(21)])
    np.testing.assert_allclose(got[:4], [0.5, 1.0, 1.5, 2.0], rtol=1e-6)
    want = 2.0 * (0.9 * (1 + np.cos(np.pi * np.arange(17) / 16)) / 2 + 0.1)
    np.testing.assert_allclose(got[4:], want, rtol=1e-5)
    assert float(Optimizer(learning_rate=3.0, warmup=0.25).rate(8)(1)) == pytest.approx(3.0)
    assert float(Optimizer(learning_rate=3.0, schedule="linear").rate(10)(5)) == pytest.approx(1.5)
    assert float(Optimizer(learning_rate=3.0, warmup=1).rate(10)(0)) == pytest.approx(3.0)
