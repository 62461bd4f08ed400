"""Reductions over the vocabulary against float64 numpy, in one chunk and in chunks that do not
divide it.
"""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxr1.nn import logprob
from jaxr1.nn.logprob import REDUCTIONS, reduce_tokens
from jaxr1.parallel import make_mesh

FORBIDDEN = (3, 17)


class World:
    """Hidden states and output matrices of a policy and of a reference of another width."""

    def __init__(self, rng, vocab=37, far=1.0):
        self.hidden, self.head = rng.normal(size=(2, 5, 8)), rng.normal(size=(vocab, 8))
        self.reference = (rng.normal(size=(2, 5, 6)), far * rng.normal(size=(vocab, 6)))
        self.target = rng.choice(np.delete(np.arange(vocab), FORBIDDEN), (2, 5))
        self.temperature = float(rng.uniform(0.5, 2.0))

    def log_p(self, hidden, head):
        logit = hidden @ head.T / self.temperature
        logit[..., list(FORBIDDEN)] = -np.inf
        top = logit.max(-1, keepdims=True)
        return logit - top - np.log(np.exp(logit - top).sum(-1, keepdims=True))

    def formula(self, hidden, head):
        log_p = self.log_p(hidden, head)
        some_p, some_q = (np.delete(x, FORBIDDEN, -1) for x in (log_p, self.log_p(*self.reference)))
        p = np.exp(some_p)
        return {
            "logp": np.take_along_axis(log_p, self.target[..., None], -1)[..., 0],
            "entropy": -(p * some_p).sum(-1),
            "sum_sq": (p**2).sum(-1),
            "kl_full": (p * (some_p - some_q)).sum(-1),
        }

    def reduce(self, hidden, head, reference, reads=tuple(REDUCTIONS)):
        return reduce_tokens(
            hidden,
            head,
            jnp.asarray(self.target),
            reads,
            temperature=self.temperature,
            forbidden=FORBIDDEN,
            reference=reference,
        )


@pytest.mark.parametrize("at_once", [2**25, 37 * 10, 7 * 10, 10])
def test_reductions_equal_their_formulas(rng, monkeypatch, at_once):
    """Value, and gradient by finite differences, for hidden states and for the output matrix."""
    monkeypatch.setattr(logprob, "LOGITS", at_once)
    world = World(rng)
    hidden, head = jnp.float32(world.hidden), jnp.float32(world.head)
    reference = tuple(map(jnp.float32, world.reference))
    found = world.reduce(hidden, head, reference)
    want = world.formula(world.hidden, world.head)
    assert found.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=2e-5)

    mix = {name: rng.normal(size=(2, 5)) for name in want}
    total = lambda h, w: sum(
        (jnp.float32(mix[name]) * x).sum() for name, x in world.reduce(h, w, reference).items()
    )
    grads = jax.grad(total, (0, 1))(hidden, head)
    of = (world.hidden, world.head)
    for side in (0, 1):
        for at in [tuple(rng.integers(0, of[side].shape)) for _ in range(20)]:
            ends = []
            for by in (1e-6, -1e-6):
                moved = [x.copy() for x in of]
                moved[side][at] += by
                made = world.formula(*moved)
                ends.append(sum((mix[name] * made[name]).sum() for name in mix))
            slope = (ends[0] - ends[1]) / 2e-6
            assert grads[side][at] == pytest.approx(slope, rel=1e-3, abs=1e-4)


def test_a_reference_has_no_gradient(rng):
    world = World(rng)
    hidden, head = jnp.float32(world.hidden), jnp.float32(world.head)
    total = lambda reference: world.reduce(hidden, head, reference)["kl_full"].sum()
    grads = jax.grad(total)(tuple(map(jnp.float32, world.reference)))
    assert all((g == 0).all() for g in grads)


def test_the_distance_to_itself_is_zero_and_far_ones_are_finite(rng):
    world = World(rng, far=100.0)
    hidden, head = jnp.float32(world.hidden), jnp.float32(world.head)
    assert np.abs(world.reduce(hidden, head, (hidden, head), ("kl_full",))["kl_full"]).max() < 1e-6
    far = world.reduce(hidden, head, tuple(map(jnp.float32, world.reference)), ("kl_full",))
    want = world.formula(world.hidden, world.head)["kl_full"]
    np.testing.assert_allclose(far["kl_full"], want, rtol=1e-3)


def test_a_distance_without_a_reference_is_refused(rng):
    world = World(rng)
    with pytest.raises(ValueError, match="'kl_full' compares with a reference, and none is given"):
        world.reduce(jnp.float32(world.hidden), jnp.float32(world.head), None)


def test_no_logits_of_all_tokens_exist_at_once(rng, monkeypatch):
    """With a reference too: the largest array of the gradient's program is one chunk's."""
    monkeypatch.setattr(logprob, "LOGITS", 37 * 10 // 4)
    world = World(rng)
    hidden, head = jnp.float32(world.hidden), jnp.float32(world.head)
    reference = tuple(map(jnp.float32, world.reference))
    total = lambda hidden: world.reduce(hidden, head, reference)["kl_full"].sum()
    text = jax.jit(jax.grad(total)).lower(hidden).as_text()
    assert "2x5x5x" in text and "2x5x37x" not in text


def test_a_vocabulary_in_parts_on_devices_gives_the_same(rng, monkeypatch):
    """Rows of a batch over devices, and ids of both output matrices; in chunks of these."""
    monkeypatch.setattr(logprob, "LOGITS", 40)
    mesh = make_mesh((2, 1, 2), jax.devices())
    world = World(rng, vocab=38)
    arrays = jax.tree.map(jnp.float32, (world.hidden, world.head, world.reference))
    total = lambda *given: sum(x.sum() for x in world.reduce(*given).values())
    found = {}
    for where in (None, mesh):
        with jax.set_mesh(where) if where else contextlib.nullcontext():
            found[where] = jax.jit(jax.value_and_grad(total, (0, 1)))(*arrays)
    for one, many in zip(*map(jax.tree.leaves, found.values()), strict=True):
        np.testing.assert_allclose(many, one, rtol=1e-4, atol=1e-4)
    want = sum(x.sum() for x in world.formula(world.hidden, world.head).values())
    assert float(found[mesh][0]) == pytest.approx(want, rel=1e-4)
