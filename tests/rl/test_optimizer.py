"""The schedule of the learning rate, at its ends; what decays; what is told of a rate."""

import dataclasses
import re

import jax
import numpy as np
import pytest

import jaxr1
from jaxr1.data import Arithmetic
from jaxr1.inputs.sizes import Buckets
from jaxr1.models.presets import PRESETS
from jaxr1.nn.lora import ADAPTERS, Lora
from jaxr1.nn.params import flatten
from jaxr1.rl import Optimizer
from jaxr1.rl.learner import Learner
from jaxr1.rl.objectives import CrossEntropy
from jaxr1.rl.optimizer import vectors_of
from jaxr1.rl.terms import Objective
from jaxr1.stages import Rl


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 5.0])
def test_the_end_of_the_decay_is_one_step_after_the_last(rng, schedule, warmup):
    """With `final` 0 the last step still moves; the first one after it would not."""
    steps, peak = int(rng.integers(20, 400)), float(rng.uniform(1e-6, 1e-2))
    rate = Optimizer(learning_rate=peak, schedule=schedule, warmup=warmup).rate(steps)
    rates = np.array([float(rate(step)) for step in range(steps + 1)])
    # float32: products of a few numbers, each rounded to 6e-8.
    assert rates.max() == pytest.approx(peak, rel=1e-6)
    assert rates[-1] == pytest.approx(0.0, abs=1e-7 * peak) and rates[-2] > 1e-6 * peak
    last = Optimizer(learning_rate=peak, schedule=schedule, warmup=warmup, final=0.25).rate(steps)
    assert float(last(steps)) == pytest.approx(0.25 * peak, rel=1e-6)
    assert float(last(steps - 1)) > float(last(steps))


@pytest.mark.parametrize("name", PRESETS)
def test_weight_decay_leaves_vectors_alone(name, rng):
    """Without a gradient AdamW is its decay: p (1 - rate x decay), for what is no norm or bias.

    The names are those of the checkpoint, where transformers' Trainer looks for them.
    """
    model, params = jaxr1.load_model(name)
    rate, decay = float(rng.uniform(0.01, 0.1)), float(rng.uniform(0.1, 0.5))
    options = Optimizer(learning_rate=rate, weight_decay=decay)
    objective = Objective((CrossEntropy(),), "policy")
    learner = Learner(model, objective, Buckets((8,), (8,), (8,)), options, updates=3)
    table = model.table()
    # a norm that is all ones, or a bias of zeros, could hide a decay
    noise = lambda x: np.asarray(x) + rng.standard_normal(x.shape).astype(np.float32)
    params = jax.tree.map(noise, params)
    none = jax.tree.map(np.zeros_like, params)
    updates, _ = learner.tx.update(none, learner.tx.init(params), params)
    spared = set()
    for path, change in flatten(updates).items():
        old = flatten(params)[path]
        if not np.any(change):
            spared.add(path)
        else:
            np.testing.assert_allclose(change, -rate * decay * old, rtol=1e-5)
    named = {
        path for path, p in table.items() if re.search(r"norm|\bln|bias|\.ls\d|lambda", p.name)
    }
    assert named <= spared and spared < table.keys()
    assert {"decoder/embed", "decoder/layers/q"} <= table.keys() - spared
    assert all(len(table[path].hf_shape) == 1 for path in spared)


def test_adapters_decay_and_no_decay_has_no_mask():
    model, params = jaxr1.load_model("tiny")
    vectors = vectors_of(model.table())
    one = np.ones(3, np.float32)
    adapters = {ADAPTERS: {"decoder": {"layers": {"q": {"a": one, "b": one}}}}}
    tx = Optimizer(learning_rate=0.1, weight_decay=0.5).build(1, vectors)
    changed, _ = tx.update(jax.tree.map(np.zeros_like, adapters), tx.init(adapters), adapters)
    assert all(np.allclose(x, -0.05) for x in jax.tree.leaves(changed))
    plain = Optimizer(learning_rate=0.1)
    state = lambda tx: jax.tree.structure(tx.init(params))
    assert state(plain.build(1)) == state(plain.build(1, vectors))


def test_a_rate_that_hardly_moves_adapters_is_told():
    model, _ = jaxr1.load_model("tiny")
    stage = Rl(Arithmetic(count=8), lora=Lora(rank=4))
    [said] = stage.warnings(model)
    assert "optimizer.learning_rate is 1e-06" in said and "1e-05 to 1e-4" in said
    for fine in (dict(optimizer=Optimizer(learning_rate=2e-5)), dict(lora=None)):
        assert dataclasses.replace(stage, **fine).warnings(model) == []
