"""Terms and weights against float64 numpy written from the formulas.

A new term joins with one row of `TERMS`.
"""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxr1.rl import objectives
from jaxr1.rl.objectives import (
    CrossEntropy,
    Entropy,
    Kl,
    PolicyStats,
    Ppo,
    clipped_surrogate,
    kl_estimate,
)
from jaxr1.rl.optimizer import Optimizer
from jaxr1.rl.terms import Objective, Term, Tokens
from jaxr1.rl.weights import token_weights

SHAPE = (3, 2, 8)  # rows, strips, tokens


@dataclasses.dataclass
class Numbers:
    """What a term may see, in float64: [B, S, T] each; two responses in every strip, the end is
    padding.
    """

    segment: np.ndarray
    own: np.ndarray
    values: dict

    @classmethod
    def draw(cls, rng):
        segment = np.tile([1, 1, 1, 2, 2, 2, 2, 0], (*SHAPE[:2], 1))
        real = segment > 0
        own = real & (rng.random(SHAPE) < 0.9)
        logp = rng.normal(-2.0, 0.5, SHAPE)
        values = {
            "logp": logp,
            "entropy": rng.uniform(0.1, 3.0, SHAPE),
            "old_logp": logp + rng.normal(0.0, 0.4, SHAPE),
            "ref_logp": logp + rng.normal(0.0, 0.4, SHAPE),
            "sampled_logp": logp + rng.normal(0.0, 0.01, SHAPE),
            "advantage": rng.normal(size=SHAPE),
            "weight": rng.uniform(0.0, 1.0, SHAPE) * own,
        }
        return cls(segment, own, {name: np.where(real, x, 0.0) for name, x in values.items()})

    def __getattr__(self, name):
        return self.values[name]

    def tokens(self, term, **said):
        """The arguments of `Objective.__call__`: only what the term asks for."""
        given = {name: jnp.float32(self.values[name]) for name in term.reads} | said
        columns = {name: jnp.float32(self.values[name]) for name in (*term.needs, term.weight)}
        columns["own"] = jnp.float32(self.own)
        return given, columns, jnp.int32(self.segment), {}


def ppo(n, low=0.2, high=0.28):
    ratio = np.exp(n.logp - n.old_logp)
    return -np.minimum(ratio * n.advantage, np.clip(ratio, 1 - low, 1 + high) * n.advantage)


def k3(n):
    d = n.logp - n.ref_logp
    return np.clip(np.exp(-d) - 1 + d, -10, 10)


TERMS = [
    (Ppo(0.2, 0.28), ppo),
    (Kl(0.3, "k1"), lambda n: 0.3 * (n.logp - n.ref_logp)),
    (Kl(0.3, "k2"), lambda n: 0.3 * (n.logp - n.ref_logp) ** 2 / 2),
    (Kl(0.3, "k3"), lambda n: 0.3 * k3(n)),
    (Entropy(0.1), lambda n: -0.1 * n.entropy),
    (CrossEntropy(), lambda n: -n.logp),
    (PolicyStats(), lambda n: 0.0 * n.logp),
]


@pytest.mark.parametrize(
    ("term", "formula"), TERMS, ids=lambda x: str(x) if isinstance(x, Term) else ""
)
def test_a_term_equals_its_formula(rng, term, formula):
    """The loss, its metrics' weights, and its gradient by finite differences in float64."""
    numbers = Numbers.draw(rng)
    objective = Objective((term,), on_policy=False)
    total, metrics = objective(*numbers.tokens(term))
    want = (formula(numbers) * numbers.weight).sum()
    assert float(total) == pytest.approx(want, rel=1e-5, abs=1e-5)
    assert metrics.keys() == objective.no_metrics(()).keys()
    for metric in metrics.values():
        assert float(metric.weight) == numbers.own.sum()

    read = term.reads[0]
    grad = jax.grad(lambda x: objective(*numbers.tokens(term, **{read: x}))[0])
    found, step = np.asarray(grad(jnp.float32(numbers.values[read]))), 1e-6
    for at in map(tuple, rng.integers(0, SHAPE, (20, 3))):
        ends = []
        for sign in (1, -1):
            moved = dict(numbers.values)
            moved[read] = moved[read].copy()
            moved[read][at] += sign * step
            ends.append(
                (formula(dataclasses.replace(numbers, values=moved)) * numbers.weight).sum()
            )
        assert found[at] == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-3, abs=1e-4)


def test_every_term_is_in_the_list():
    classes = [cls for _, cls in inspect.getmembers(objectives, inspect.isclass)]
    defined = {cls for cls in classes if issubclass(cls, Term) and cls is not Term}
    assert {type(row[0]) for row in TERMS} == defined


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
    for name, want in (("k1", d), ("k2", d * d / 2), ("k3", np.exp(-d) - 1 + d)):
        got = kl_estimate(jnp.float32(p), jnp.float32(q), name)
        np.testing.assert_allclose(
            got, np.clip(want, -10, 10) if name == "k3" else want, rtol=1e-4, atol=1e-5
        )
    assert (kl_estimate(jnp.float32(p), jnp.float32(q), "k3") >= 0).all()
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


@pytest.mark.parametrize(
    "mode", ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"]
)
def test_token_weights_equal_their_definition(rng, mode):
    counts = rng.integers(0, 9, (4, 5))
    losses = [rng.normal(size=n) for n in counts.ravel()]
    weights = token_weights(counts, mode, 7.0)
    got = sum(w * x.sum() for w, x in zip(weights.ravel(), losses, strict=True))
    flat = [x for x in losses if len(x)]
    want = {
        "token-mean": np.concatenate(flat).mean(),
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
