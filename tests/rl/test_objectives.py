"""Terms and weights against float64 numpy written from the formulas.

A new term joins with one row of `TERMS`.
"""

import inspect
import typing
from types import SimpleNamespace

import formulas as f
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from formulas import Numbers
from pairs import PAIR_TERMS
from reference import given

from jaxr1.rl import objectives
from jaxr1.rl.controllers import AdaptiveEntropy, AdaptiveKl
from jaxr1.rl.objectives import (
    Cispo,
    ClipCov,
    Cpgd,
    CrossEntropy,
    Dppo,
    Dro,
    Entropy,
    Gmpo,
    Gpg,
    Gspo,
    Kl,
    KlCov,
    Luspo,
    PolicyStats,
    Ppo,
    Reinforce,
    Sapo,
    ValueLoss,
    Vespo,
    clipped_surrogate,
    kl_estimate,
)
from jaxr1.rl.optimizer import Optimizer
from jaxr1.rl.terms import Objective, Term, Tokens
from jaxr1.rl.weights import Aggregation, Weighting, token_weights

TERMS = [
    (Ppo(0.2, 0.28), f.ppo),
    (Ppo(0.1, 0.1, dual_clip=1.2), lambda n: f.ppo(n, 0.1, 0.1, dual=1.2)),
    (Ppo(0.1, 0.1, ratio_limit=1.2), lambda n: f.ppo(n, 0.1, 0.1, limit=1.2)),
    (Ppo(ratio_cap=1.1), lambda n: f.ppo(n, 0.2, 0.2, cap=1.1)),
    (Reinforce(), f.reinforce),
    (Gpg(), lambda n: -n.advantage * n.logp),
    (Cispo(clip_high=1.3), lambda n: f.cispo(n, -np.inf, 1.3)),
    (Cispo("interval", 0.1, 0.2), lambda n: f.cispo(n, 0.9, 1.2)),
    (Sapo(), f.sapo),
    (Sapo(2.0, 3.0), lambda n: f.sapo(n, 2.0, 3.0)),
    (Cpgd(), lambda n: f.cpgd(n, 0.2, 0.2, 0.01, 2.0)),
    (Cpgd(0.1, 0.3, 0.5, 0.2), lambda n: f.cpgd(n, 0.1, 0.3, 0.5, 0.2)),
    (Dppo("tv", 0.02, 0.03), lambda n: f.dppo_tv(n, 0.02, 0.03)),
    (Dppo("kl", 0.002, 0.003, 1.2), lambda n: f.dppo_kl(n, 0.002, 0.003, 1.2)),
    (Dppo(), lambda n: f.dppo_tv(n, 0.15, 0.15)),
    (Dppo("kl"), lambda n: f.dppo_kl(n, 0.05, 0.05)),
    (Dro(0.3), lambda n: f.dro(n, 0.3)),
    (Gspo(), lambda n: f.gspo(n, 3e-4, 4e-4)),
    (Gspo(0.1, 0.2), lambda n: f.gspo(n, 0.1, 0.2)),
    (Gspo(0.1, 0.2, token=True), lambda n: f.gspo_token(n, 0.1, 0.2)),
    (Luspo(0.1, 0.2), lambda n: f.luspo(n, 0.1, 0.2)),
    (Gmpo(), lambda n: f.gmpo(n, 0.4, 0.4)),
    (Gmpo(0.1, 0.2), lambda n: f.gmpo(n, 0.1, 0.2)),
    (Vespo(), lambda n: f.vespo(n, False)),
    (Vespo(is_corrected=True), lambda n: f.vespo(n, True)),
    (ClipCov(0.1, 0.2), lambda n: f.clip_cov(n, 0.1, 0.2)),
    (KlCov(beta=0.7), lambda n: f.kl_cov(n, 0.7)),
    (Kl(0.3, "k1"), lambda n: 0.3 * f.k1(n)),
    (Kl(0.3, "abs"), lambda n: 0.3 * np.abs(f.k1(n))),
    (Kl(0.3, "k2"), lambda n: 0.3 * f.k2(n)),
    (Kl(0.3, "k3"), lambda n: 0.3 * f.k3(n)),
    (Kl(0.3, "k1+"), lambda n: 0.3 * (f.k1(n.sg) + f.k2(n) - f.k2(n.sg))),
    (Kl(0.3, "abs+"), lambda n: 0.3 * (np.abs(f.k1(n.sg)) + f.k2(n) - f.k2(n.sg))),
    (Kl(0.3, "k3+"), lambda n: 0.3 * (f.k3(n.sg) + f.k2(n) - f.k2(n.sg))),
    (Kl(0.3, "k3", is_corrected=True), lambda n: 0.3 * f.k3(n) * f.ratio(n)),
    (Kl(0.3, "k1", is_corrected=True), lambda n: 0.3 * f.k1(n) * f.ratio(n)),
    (Kl(0.3, target=0.1), lambda n: 0.3 * f.k3(n)),
    (Kl(0.3, "full"), lambda n: 0.3 * n.kl_full),
    (ValueLoss(), lambda n: f.value_loss(n, 0.2)),
    (ValueLoss(0.0), lambda n: f.value_loss(n, np.inf)),
    (Entropy(0.1), lambda n: -0.1 * n.entropy),
    (Entropy(0.1, adaptive=True), lambda n: 0.0 * n.entropy),
    (CrossEntropy(), lambda n: -n.logp),
    (PolicyStats(), lambda n: 0.0 * n.logp),
]
conformance = pytest.mark.parametrize(
    ("term", "formula"), TERMS, ids=lambda x: str(x) if isinstance(x, Term) else ""
)


@conformance
def test_a_term_equals_its_formula(rng, term, formula):
    numbers = Numbers.draw(rng)
    f.check_term(rng, numbers, term, formula, numbers.own.sum())


@conformance
def test_a_term_stays_finite_where_policies_are_far_apart(rng, term, formula):
    f.check_far_apart(rng, Numbers.draw(rng), term, formula)


@conformance
def test_a_term_of_no_tokens_is_zero(rng, term, formula):
    f.check_no_tokens(Numbers.draw(rng), term)


def test_every_term_is_in_the_list():
    classes = [cls for _, cls in inspect.getmembers(objectives, inspect.isclass)]
    defined = {cls for cls in classes if issubclass(cls, Term) and cls is not Term}
    assert {type(row[0]) for row in (*TERMS, *PAIR_TERMS)} == defined


def test_a_term_that_reads_what_it_did_not_name_says_so(rng):
    class Careless(Ppo):
        needs = ("advantage",)

    with pytest.raises(
        AttributeError,
        match=r"reads 'old_logp': name it in `needs` or `reads`; given: logp, advantage",
    ):
        Objective((Careless(),), on_policy=False)(*Numbers.draw(rng).tokens(Careless()))


def test_what_an_objective_asks_for():
    grpo = Objective((Ppo(), PolicyStats()))
    assert grpo.reads == ("entropy", "logp") and grpo.needs == ("advantage", "sampled_logp")
    assert (
        grpo.columns == ("advantage", "own", "sampled_logp", "weight")
        and not grpo.needs_zero_advantage
    )
    assert Objective((Ppo(), PolicyStats()), on_policy=False).needs == (
        "advantage",
        "old_logp",
        "sampled_logp",
    )
    assert (
        Objective((Ppo(), Kl(0.1))).needs_zero_advantage
        and Objective((Ppo(), Entropy(0.1))).needs_zero_advantage
    )
    assert Objective((CrossEntropy(),)).needs_zero_advantage and Objective(
        (CrossEntropy(),)
    ).reads == ("logp",)


def test_sums_over_responses_and_labels(rng):
    """The drawing of `sum_by`; a sum over a response is over that of one strip only."""
    segment = np.int32([[[1, 1, 1, 2, 2, 2, 0], [1, 1, 2, 2, 2, 0, 0]]])
    x = rng.normal(size=segment.shape).astype(np.float32)
    tokens = Tokens({}, {"own": jnp.ones(segment.shape)}, jnp.asarray(segment), {})
    found = np.asarray(tokens.sum_by(tokens.response, jnp.asarray(x)))
    for strip, at in ((0, slice(0, 3)), (0, slice(3, 6)), (1, slice(0, 2)), (1, slice(2, 5))):
        np.testing.assert_allclose(found[0, strip, at], x[0, strip, at].sum(), rtol=1e-5)
    label = np.int32([[[1, 1, 1, 2, 2, 2, 0], [2, 2, 1, 1, 1, 0, 0]]])
    found = np.asarray(tokens.sum_by(jnp.asarray(label), jnp.asarray(x)))
    np.testing.assert_allclose(found[label == 1], x[label == 1].sum(), rtol=1e-5)


# ---------------------------------------------------------------- scalars


def test_an_adaptive_coefficient_is_a_scalar(rng):
    """What a controller says is what multiplies; the term itself stays the same."""
    numbers = Numbers.draw(rng)
    for term, scalars, coef in (
        (Entropy(0.1, adaptive=True), {"entropy_coef": 0.7, "entropy_on": 1.0}, -0.7),
        (Entropy(0.1, adaptive=True), {"entropy_coef": 0.7, "entropy_on": 0.0}, 0.0),
        (Kl(0.1, "k2", target=0.3), {"kl_coef": 0.7}, 0.7),
    ):
        assert term.scalars.keys() == scalars.keys()
        loss = term(Tokens(*numbers.tokens(term, scalars)))[0]
        one = numbers.entropy if isinstance(term, Entropy) else f.k2(numbers)
        np.testing.assert_allclose(loss, coef * one, rtol=1e-4, atol=1e-6)


def test_adaptive_entropy_moves_to_its_target_and_is_on_under_it():
    control = AdaptiveEntropy(step=0.3, target=0.2, low=0.1, high=0.5)
    scalars, seen = {"entropy_coef": 0.2, "entropy_on": 0.0, "kl_coef": 3.0}, []
    for entropy in (0.2, 0.1, float("nan"), 0.3, 0.9):
        scalars = control(scalars, {"policy/entropy": entropy})
        seen.append((round(scalars["entropy_coef"], 9), scalars["entropy_on"]))
    assert seen == [(0.5, 1.0), (0.5, 1.0), (0.5, 1.0), (0.2, 0.0), (0.1, 0.0)]
    assert scalars["kl_coef"] == 3.0 and control(scalars, {}) == scalars
    with pytest.raises(ValueError, match=r"AdaptiveEntropy\.high must be at least 0.6, got 0.5"):
        AdaptiveEntropy(low=0.6, high=0.5)


def test_adaptive_kl_moves_with_a_bounded_error(rng):
    control = AdaptiveKl(target=0.1, samples=500, horizon=10000)
    for kl, error in ((0.11, 0.1), (0.1, 0.0), (5.0, 0.2), (0.0, -0.2), (-1.0, -0.2)):
        coef = float(rng.uniform(1e-3, 1))
        after = control({"kl_coef": coef, "entropy_on": 1.0}, {"policy/kl": kl})
        assert after == {"kl_coef": pytest.approx(coef * (1 + error * 0.05)), "entropy_on": 1.0}
    assert control({"kl_coef": 0.3}, {"policy/kl": float("nan")}) == {"kl_coef": 0.3}
    with pytest.raises(ValueError, match=r"AdaptiveKl\.target must be over 0, got 0"):
        AdaptiveKl(target=0.0, samples=8)


# ---------------------------------------------------------------- covariances


def scored(rng, prompts=4, group=5, policy_moved=True):
    """Episodes with every column that a covariance reads: some responses have no reward, some no
    token, and some tokens are not the policy's.
    """
    responses = [[np.ones(n, np.int32) for n in rng.integers(0, 9, group)] for _ in range(prompts)]
    episodes = given([SimpleNamespace(prefix="")] * prompts, responses)
    episodes.valid_bg = rng.random((prompts, group)) < 0.7
    count = len(episodes.token_n)
    now = rng.normal(-2, 1, count).astype(np.float32)
    episodes.columns |= {
        "own": (rng.random(count) < 0.8).astype(np.float32),
        "advantage": episodes.spread(rng.normal(size=(prompts, group)) * 3),
        "now_logp": now,
    }
    if policy_moved:
        far = rng.choice([0, 200], count, p=[0.9, 0.1])
        episodes.columns["old_logp"] = now - far + rng.normal(0, 0.4, count).astype(np.float32)
    return episodes, rng.random(count)


def true_covariance(episodes):
    """Tokens that count, and (A - mean A) (l - mean l) over them."""
    c = episodes.columns
    where = (c["own"] > 0) & np.repeat(episodes.valid_bg.ravel(), episodes.counts_bg.ravel())
    a, now = c["advantage"].astype(float), c["now_logp"].astype(float)
    return where, (a - a[where].mean()) * (now - now[where].mean())


@pytest.mark.parametrize("policy_moved", [False, True])
def test_clip_cov_draws_among_tokens_between_its_bounds(rng, policy_moved):
    episodes, noise = scored(rng, policy_moved=policy_moved)
    term = ClipCov(0.1, 0.2, share=0.1, cov_low=0.2, cov_high=4.0)
    where, cov = true_covariance(episodes)
    c = episodes.columns
    ratio = f.exp(c["now_logp"] - c.get("old_logp", c["now_logp"]))
    clipped = np.where(c["advantage"] > 0, ratio > 1.2, (ratio < 0.9) & (c["advantage"] < 0))
    among = np.flatnonzero(where & ~clipped & (cov > 0.2) & (cov < 4.0))
    want = np.zeros(len(noise))
    want[among[np.argsort(noise[among])][: max(1, int(0.1 * where.sum()))]] = 1
    mask = term.prepare(episodes, lambda: noise)["cov_mask"]
    assert mask.dtype == np.float32 and (mask == want).all()
    # A bound that nothing meets leaves every loss as it was; no token at all is no error.
    far = ClipCov(cov_low=1e6, cov_high=1e7).prepare(episodes, lambda: noise)["cov_mask"]
    episodes.valid_bg[:] = False
    assert not far.any() and not term.prepare(episodes, lambda: noise)["cov_mask"].any()


def test_kl_cov_takes_the_tokens_of_highest_covariance(rng):
    episodes, noise = scored(rng)
    where, cov = true_covariance(episodes)
    for share in (0.1, 0.0):
        most = max(1, int(share * where.sum()))
        want = where & (cov >= np.sort(cov[where])[-most])
        assert (KlCov(share).prepare(episodes, lambda: noise)["cov_mask"] == want).all()
    episodes.valid_bg[:] = False
    assert not KlCov().prepare(episodes, lambda: noise)["cov_mask"].any()


def test_which_policy_losses_have_a_gradient_without_an_advantage():
    """A stage does not compute responses of advantage 0 for the others."""
    having = (Dro(1.0), KlCov(), Cpgd(), Kl(0.1), Entropy(0.1))
    assert all(term.needs_zero_advantage for term in having)
    lacking = (Ppo(), Gspo(), Vespo(), ClipCov(), Cpgd(drift=0.0), Cispo(), Sapo())
    assert not any(term.needs_zero_advantage for term in lacking)
    assert all(term.corrected for term in (*lacking, Dro(1.0), KlCov()))
    assert not Vespo(is_corrected=True).corrected and not Kl(0.1).corrected


# ---------------------------------------------------------------- options


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"Kl\.estimator"):
        Kl(0.1, "k4")
    with pytest.raises(ValueError, match="estimator must be"):
        kl_estimate(jnp.zeros(1), jnp.zeros(1), "k4")
    with pytest.raises(ValueError, match="aggregation"):
        token_weights([[1]], "mean")
    with pytest.raises(ValueError, match=r"Optimizer\.schedule"):
        Optimizer(schedule="step")
    with pytest.raises(ValueError, match=r"Ppo\.clip_low must be at least 0, got -1"):
        Ppo(-1.0)
    with pytest.raises(ValueError, match=r"Ppo\.dual_clip must be 0 \(off\) or over 1, got 0.5"):
        Ppo(dual_clip=0.5)
    with pytest.raises(
        ValueError, match=r"Ppo\.ratio_limit must be 0 \(off\) or over 1.2, got 1.1"
    ):
        Ppo(ratio_limit=1.1)
    with pytest.raises(ValueError, match=r"Cpgd\.clip_low must be under 1, got 1"):
        Cpgd(clip_low=1.0)
    with pytest.raises(ValueError, match=r"Dro\.beta must be over 0, got 0"):
        Dro(0.0)
    with pytest.raises(ValueError, match=r"Dppo\.kind must be 'tv' \| 'kl', got 'js'"):
        Dppo("js")
    with pytest.raises(ValueError, match=r"Kl\.is_corrected goes with .*, got 'k3\+'"):
        Kl(0.1, "k3+", is_corrected=True)


# ---------------------------------------------------------------- losses


def test_clipped_surrogate_and_its_gradient(rng):
    logp = rng.normal(size=500) * 0.5
    old, advantage = logp + rng.normal(size=500) * 0.4, rng.normal(size=500)
    low, high = 0.2, 0.28
    loss, ratio, clipped = clipped_surrogate(
        jnp.float32(logp), jnp.float32(old), jnp.float32(advantage), low, high
    )
    true = np.exp(logp - old)
    np.testing.assert_allclose(ratio, true, rtol=1e-5)
    want = -np.minimum(true * advantage, np.clip(true, 1 - low, 1 + high) * advantage)
    np.testing.assert_allclose(loss, want, rtol=1e-4, atol=1e-6)
    outside = ((true > 1 + high) & (advantage > 0)) | ((true < 1 - low) & (advantage < 0))
    assert (np.asarray(clipped) == outside).all() and outside.any() and not outside.all()
    grad = jax.grad(
        lambda x: clipped_surrogate(x, jnp.float32(old), jnp.float32(advantage), low, high)[0].sum()
    )
    np.testing.assert_allclose(
        grad(jnp.float32(logp)), np.where(outside, 0, -true * advantage), rtol=1e-4, atol=1e-6
    )


def test_on_policy_ratio_is_exactly_one(rng):
    logp = jnp.float32(rng.normal(size=50))
    advantage = jnp.float32(rng.normal(size=50))
    loss, ratio, clipped = clipped_surrogate(logp, jax.lax.stop_gradient(logp), advantage, 0.2, 0.2)
    assert (ratio == 1).all() and (clipped == 0).all() and (loss == -advantage).all()
    grad = jax.grad(
        lambda x: clipped_surrogate(x, jax.lax.stop_gradient(x), advantage, 0.2, 0.2)[0].sum()
    )(logp)
    np.testing.assert_allclose(grad, -advantage, rtol=1e-6)


def test_a_stale_ratio_stays_finite():
    loss, ratio, _ = clipped_surrogate(
        jnp.float32([0.0]), jnp.float32([-500.0]), jnp.float32([-1.0]), 0.2, 0.2
    )
    assert np.isfinite(loss).all() and np.isfinite(ratio).all()


def test_kl_estimates(rng):
    p, q = rng.normal(size=200), rng.normal(size=200)
    d = p - q
    k3 = np.exp(-d) - 1 + d
    for name, want in (("k1", d), ("abs", abs(d)), ("k2", d * d / 2), ("k3", k3), ("abs+", abs(d))):
        got = kl_estimate(jnp.float32(p), jnp.float32(q), name)
        np.testing.assert_allclose(
            got, np.clip(want, -10, 10) if name == "k3" else want, rtol=1e-4, atol=1e-5
        )
    # Never negative, but for the rounding of exp(-d) - 1.
    assert (kl_estimate(jnp.float32(p), jnp.float32(q), "k3") >= -1e-6).all()
    assert np.isfinite(kl_estimate(jnp.float32([-300.0]), jnp.float32([0.0]), "k3")).all()


def test_k1_and_k3_are_unbiased(rng):
    """Means over draws of the policy approach the true KL of two categorical distributions."""
    # Half uniform: q / p stays below 12, where k3 (8.5) is under its clamp of 10, which would bias
    # it.
    p, q = 0.5 * rng.dirichlet(np.ones(6)) + 0.5 / 6, rng.dirichlet(np.ones(6) * 3)
    x = rng.choice(6, 400_000, p=p)
    true = (p * np.log(p / q)).sum()
    for name in ("k1", "k3"):
        got = np.asarray(
            kl_estimate(jnp.log(jnp.float32(p))[x], jnp.log(jnp.float32(q))[x], name), np.float64
        )
        assert got.mean() == pytest.approx(true, abs=6 * got.std() / np.sqrt(len(x)) + 1e-4)


@pytest.mark.parametrize("count_empty", [False, True])
@pytest.mark.parametrize("mode", typing.get_args(Aggregation))
def test_token_weights_equal_their_definition(rng, mode, count_empty):
    counts = rng.integers(0, 9, (4, 5))
    counts[0, 0] = 0
    losses = [rng.normal(size=n) for n in counts.ravel()]
    weights = Weighting(mode, 7.0, count_empty)(counts)
    got = sum(w * x.sum() for w, x in zip(weights.ravel(), losses, strict=True))
    flat = [x if len(x) else np.zeros(1) for x in losses if len(x) or count_empty]
    want = {
        "token-mean": np.concatenate(losses).mean(),
        "token-sum": np.concatenate(losses).sum(),
        "seq-mean-token-mean": np.mean([x.mean() for x in flat]),
        "seq-mean-token-sum": np.mean([x.sum() for x in flat]),
        "seq-mean-token-sum-norm": np.mean([x.sum() / 7.0 for x in flat]),
    }[mode]
    assert got == pytest.approx(want, rel=1e-9)
    assert token_weights([[0, 0]], mode, 7.0).tolist() == [[0.0, 0.0]]


def test_schedules():
    rate = Optimizer(learning_rate=2.0, schedule="cosine", warmup=4, final=0.1).rate(20)
    got = np.array([float(rate(i)) for i in range(21)])
    np.testing.assert_allclose(got[:4], [0.5, 1.0, 1.5, 2.0], rtol=1e-6)
    want = 2.0 * (0.9 * (1 + np.cos(np.pi * np.arange(17) / 16)) / 2 + 0.1)
    np.testing.assert_allclose(got[4:], want, rtol=1e-5)
    assert float(Optimizer(learning_rate=3.0, warmup=0.25).rate(8)(1)) == pytest.approx(3.0)
    assert float(Optimizer(learning_rate=3.0, schedule="linear").rate(10)(5)) == pytest.approx(1.5)
    assert float(Optimizer(learning_rate=3.0, warmup=1).rate(10)(0)) == pytest.approx(3.0)
