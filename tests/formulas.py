"""What terms see, in float64; policy losses written from their formulas in numpy; and the checks
that hold a term to its formula.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxr1.rl.terms import Objective, Tokens

SHAPE = (3, 2, 10)  # rows, strips, tokens


@dataclasses.dataclass
class Numbers:
    """Responses of random lengths in strips, [B, S, T] each; the end of a strip is padding.

    One has one token, one none of its own (all masked), one no reward (weight 0); others have own
    tokens with foreign ones between them. A formula calls `sg` for what has no gradient.
    """

    segment: np.ndarray
    own: np.ndarray
    values: dict
    fixed: dict

    @classmethod
    def draw(cls, rng):
        segment = np.zeros(SHAPE, int)
        for strip in segment.reshape(-1, SHAPE[2]):
            lengths = np.add([1, 1, 2], rng.multinomial(rng.integers(0, 6), [1 / 3] * 3))
            strip[: lengths.sum()] = np.repeat([1, 2, 3], lengths)[: SHAPE[2]]
        segment[0, 0] = [1, 2, 2, 2, 3, 3, 0, 0, 0, 0]
        real = segment > 0
        own = real & (rng.random(SHAPE) < 0.8)
        own[0, 0, :4] = [True, True, False, True]
        own[1, 1, segment[1, 1] == 3] = False
        logp = rng.normal(-2.0, 0.5, SHAPE)
        numbers = cls(segment, own, {}, {})
        scored = numbers.spread(rng.random(100) < 0.8)
        scored[0, 1, segment[0, 1] == 1] = False
        values = {
            "logp": logp,
            "entropy": rng.uniform(0.1, 3.0, SHAPE),
            "old_logp": logp + rng.normal(0.0, 0.4, SHAPE),
            "ref_logp": logp + rng.normal(0.0, 0.4, SHAPE),
            "sampled_logp": logp + rng.normal(0.0, 0.3, SHAPE),
            "advantage": numbers.spread(rng.normal(size=100)),
            "kl_full": rng.uniform(0.0, 1.0, SHAPE),
            "ref_hidden": np.zeros(SHAPE),  # read by the model, not by the term
            "cov_mask": (rng.random(SHAPE) < 0.3) * own,
            "value": rng.normal(size=SHAPE),
            "old_value": rng.normal(size=SHAPE),
            "return": rng.normal(size=SHAPE),
            "weight": rng.uniform(0.0, 1.0, SHAPE) * own * scored,
            "token_weight": rng.uniform(0.0, 1.0, SHAPE) * own * scored,
            "response_weight": numbers.spread(rng.uniform(size=100)) * own * scored,
        }
        numbers.values = {name: np.where(real, x, 0.0) for name, x in values.items()}
        numbers.fixed = numbers.values
        return numbers

    @property
    def label(self):
        """A number for each response, from 1, over all rows; 0 is padding."""
        rows, strips, _ = self.segment.shape
        first = 10 * np.arange(rows * strips).reshape(rows, strips, 1)
        return np.where(self.segment > 0, first + self.segment, 0)

    def spread(self, value):
        """value[i] at each token of the response of number i."""
        return np.take(value, self.label, mode="wrap")

    def each(self, make):
        """make(where own) of each response, at each of its tokens."""
        found = np.zeros(self.segment.shape)
        for label in np.unique(self.label[self.segment > 0]):
            of = self.label == label
            found[of] = make(of & self.own)
        return found

    def sum(self, x):
        """Of a response's own tokens."""
        return self.each(lambda of: x[of].sum())

    def mean(self, x):
        """Of a response's own tokens; 0 where it has none."""
        return self.each(lambda of: x[of].mean() if of.any() else 0.0)

    @property
    def sg(self):
        """The numbers as they were before one was moved."""
        return dataclasses.replace(self, values=self.fixed)

    def moved(self, name, at, by):
        values = dict(self.values)
        values[name] = values[name].copy()
        values[name][at] += by
        return dataclasses.replace(self, values=values)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self.values[name]

    def tokens(self, term, scalars=None, **said):
        """The arguments of `Objective.__call__`: only what the term asks for."""
        given = {name: jnp.float32(self.values[name]) for name in term.reads} | said
        columns = {name: jnp.float32(self.values[name]) for name in (*term.needs, term.weight)}
        columns["own"] = jnp.float32(self.own)
        scalars = {name: jnp.float32(x) for name, x in (scalars or term.scalars).items()}
        return given, columns, jnp.int32(self.segment), scalars


# --- checks -------------------------------------------------------------------------------------
def check_term(rng, numbers, term, formula, counted):
    """The loss, its gradient by finite differences in float64, and that metrics count `counted`."""
    objective = Objective((term,), on_policy=False)
    total, metrics = objective(*numbers.tokens(term))
    weight = numbers.values[term.weight]
    want = (formula(numbers) * weight).sum()
    assert float(total) == pytest.approx(want, rel=1e-5, abs=1e-5)
    assert metrics.keys() == objective.no_metrics(tuple(term.scalars)).keys()
    for metric in metrics.values():
        assert float(metric.weight) == pytest.approx(counted, rel=1e-6)

    read, step = term.reads[0], 1e-6
    grad = jax.grad(lambda x: objective(*numbers.tokens(term, **{read: x}))[0])
    found = np.asarray(grad(jnp.float32(numbers.values[read])))
    for at in map(tuple, rng.integers(0, SHAPE, (20, 3))):
        ends = [(formula(numbers.moved(read, at, by)) * weight).sum() for by in (step, -step)]
        assert found[at] == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-3, abs=1e-4)


def check_far_apart(rng, numbers, term, formula):
    """Log ratios of +-50 at some tokens: the loss is that of its formula, the gradient finite."""
    far = np.where(rng.random(SHAPE) < 0.2, rng.choice([-50.0, 50.0], SHAPE), 0.0)
    for name in ("old_logp", "ref_logp"):
        numbers.values[name] = np.minimum(numbers.values[name] + far, -1e-3)
    loss, _ = term(Tokens(*numbers.tokens(term)))
    if loss is not None:
        where = numbers.values[term.weight] > 0
        np.testing.assert_allclose(loss[where], formula(numbers)[where], rtol=1e-4, atol=1e-5)
    objective, read = Objective((term,), on_policy=False), term.reads[0]
    grad = jax.grad(lambda x: objective(*numbers.tokens(term, **{read: x}))[0])
    assert np.isfinite(grad(jnp.float32(numbers.values[read]))).all()


def check_no_tokens(numbers, term):
    """Everything is masked, or padding: no loss, no gradient, and metrics that count nothing."""
    numbers.own[:] = False
    numbers.values[term.weight] = np.zeros(SHAPE)
    objective, read = Objective((term,), on_policy=False), term.reads[0]
    loss = lambda x: objective(*numbers.tokens(term, **{read: x}))
    for segment in (numbers.segment, np.zeros(SHAPE, int)):
        numbers.segment = segment
        value = jax.value_and_grad(loss, has_aux=True)
        (total, metrics), grad = value(jnp.float32(numbers.values[read]))
        assert total == 0 and (grad == 0).all()
        assert all(metric.weight == 0 for metric in metrics.values())


# --- parts of formulas --------------------------------------------------------------------------
def exp(x):
    return np.exp(np.clip(x, -20, 20))


def sigmoid(x):
    return 1 / (1 + np.exp(-np.clip(x, -500, 500)))


def ratio(n):
    return exp(n.logp - n.old_logp)


def clip_loss(r, a, low, high):
    return -np.minimum(r * a, np.clip(r, 1 - low, 1 + high) * a)


# --- of tokens ----------------------------------------------------------------------------------
def ppo(n, low=0.2, high=0.28, dual=None, limit=np.inf, cap=np.inf):
    r, a = np.minimum(ratio(n), cap), n.advantage
    loss = -np.minimum(np.minimum(r, limit) * a, np.clip(r, 1 - low, 1 + high) * a)
    return loss if dual is None else np.where(a < 0, np.minimum(loss, -dual * a), loss)


def reinforce(n):
    return -np.exp(n.logp - n.sg.logp) * n.advantage


def cispo(n, least, most):
    return -np.clip(ratio(n.sg), least, most) * n.advantage * n.logp


def sapo(n, positive=1.0, negative=1.05):
    tau = np.where(n.advantage > 0, positive, negative)
    return -4 / tau * sigmoid(tau * (ratio(n) - 1)) * n.advantage


def cpgd(n, low, high, drift, cap):
    most = np.minimum(n.logp, np.log(1 + high) + n.old_logp)
    least = np.maximum(n.logp, np.log(1 - low) + n.old_logp)
    clipped = np.where(n.advantage > 0, most, least)
    return -clipped * n.advantage + drift * np.minimum(ratio(n.sg) - 1, cap) * n.logp


def dppo_tv(n, low, high, cap=20.0):
    p, old = np.exp(n.sg.logp), np.exp(n.old_logp)
    valid = np.where(n.advantage > 0, p - old <= high, p - old >= -low)
    return -n.advantage * np.minimum(ratio(n.sg), cap) * n.logp * valid


def dppo_kl(n, low, high, cap=20.0):
    p, old = np.exp(n.sg.logp), np.exp(n.old_logp)
    rest, old_rest = np.maximum(1 - p, 1e-8), np.maximum(1 - old, 1e-8)
    b = old * (n.old_logp - n.sg.logp) + old_rest * np.log(old_rest / rest)
    valid = np.where(n.advantage > 0, (b <= high) | (p <= old), (b <= low) | (p >= old))
    return -n.advantage * np.minimum(ratio(n.sg), cap) * n.logp * valid


def dro(n, beta):
    return -(n.advantage * n.logp - beta / 2 * (n.logp - n.old_logp) ** 2)


# --- of responses -------------------------------------------------------------------------------
def gspo(n, low, high):
    return clip_loss(exp(n.mean(n.logp - n.old_logp)), n.advantage, low, high)


def gspo_token(n, low, high):
    s = exp(n.sg.mean(n.sg.logp - n.old_logp)) * np.exp(n.logp - n.sg.logp)
    return clip_loss(s, n.advantage, low, high)


def luspo(n, low, high):
    return gspo(n, low, high) * np.maximum(n.sum(np.ones(n.segment.shape)), 1)


def gmpo(n, low, high):
    sign, z = np.sign(n.advantage), n.logp - n.old_logp
    u = sign * np.minimum(sign * z, sign * np.clip(z, -low, high))
    return -n.mean(n.advantage) * exp(n.mean(u))


def vespo(n, is_corrected):
    z = np.clip(n.sg.logp - n.old_logp, -20, 20)
    if is_corrected:
        z = z + np.clip(n.old_logp - n.sampled_logp, np.log(1e-8), 20)
    log_w = np.clip(n.sum(z), np.log(1e-8), 20)
    k, bend = np.where(n.advantage >= 0, 2, 3), np.where(n.advantage >= 0, 3, 2)
    return -np.exp(bend + k * log_w - bend * np.exp(log_w)) * n.advantage * n.logp


# --- of covariances -----------------------------------------------------------------------------
def clip_cov(n, low, high):
    return clip_loss(ratio(n), n.advantage, low, high) * (1 - n.cov_mask)


def kl_cov(n, beta):
    return -ratio(n) * n.advantage + beta * n.cov_mask * np.abs(n.logp - n.old_logp)


# --- of a reference, and of a critic ------------------------------------------------------------
def k1(n):
    return n.logp - n.ref_logp


def k2(n):
    return k1(n) ** 2 / 2


def k3(n):
    bounded = np.clip(-k1(n), -20, 20)
    return np.clip(np.exp(bounded) - 1 - bounded, -10, 10)


def value_loss(n, clip):
    aim = n.values["return"]
    near = np.clip(n.value, n.old_value - clip, n.old_value + clip)
    return 0.5 * np.maximum((n.value - aim) ** 2, (near - aim) ** 2)
