"""Losses of responses and of pairs through the compiled programs."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import given, learner, mixed_prompts

import jaxr1
from jaxr1.inputs.sizes import Buckets
from jaxr1.nn.params import flatten
from jaxr1.rl.objectives import MPO, AotUnpaired, ClipCov, Gspo, Vespo
from jaxr1.rl.update import gradients
from jaxr1.rl.weights import WEIGHTINGS, Weighting, chosen_weights, pair_weights
from jaxr1.rl.work import Work

SIZES = Buckets((64,), (16,), (64,))


@pytest.fixture(scope="module")
def model():
    return (*jaxr1.load_model("tiny"), jaxr1.load_processor("tiny"))


@pytest.mark.parametrize(
    "terms",
    [(Gspo(0.1, 0.2), Vespo(), ClipCov(share=0.1, cov_low=0.1)), (*MPO, AotUnpaired())],
    ids=["responses", "pairs"],
)
def test_a_loss_is_the_same_however_a_batch_is_cut(model, rng, terms):
    """All rows at once, and strip by strip in micro-batches of few tokens."""
    description, params, processor = model
    prompts = [processor.encode(p) for p in mixed_prompts(rng, 4, (0,))]
    lengths = rng.integers(1, 12, (4, 4))
    tokens = [[rng.integers(20, 500, n).astype(np.int32) for n in row] for row in lengths]
    pair = np.stack([rng.permutation([1, 1, 2, 0]) for _ in prompts])
    sign = np.array([np.where(np.cumsum(row == 1) == 1, 1, -1) for row in pair])
    sign[pair == 2] = 1
    each = {name: rng.normal(size=(4, 4)) for name in ("advantage", "old_logp", "ref_logp")}
    episodes = given(prompts, tokens, **each, pair=pair, sign=sign * (pair > 0))
    columns = episodes.columns
    columns["weight"] = episodes.spread(Weighting()(lengths))
    columns["pair_weight"] = episodes.spread(pair_weights(lengths, pair))
    chosen = chosen_weights(lengths, sign * (pair > 0), Weighting("seq-mean-token-mean"))
    columns["chosen_weight"] = episodes.spread(chosen)
    for name, weighting in WEIGHTINGS.items():
        columns[name] = episodes.spread(weighting(lengths))

    # Near what an untrained model says, so that not everything is clipped.
    now = rng.normal(-np.log(512), 0.1, len(episodes.token_n)).astype(np.float32)
    for name in ("old_logp", "ref_logp"):
        columns[name] = now + 0.1 * columns[name]
    columns["now_logp"], noise = now, rng.random(len(now))
    for term in terms:
        columns |= term.prepare(episodes, lambda: noise)

    found, parts = [], []
    for options in ({}, {"strips_at_once": 1, "budget": 128}):
        policy = learner(description, processor, terms, SIZES, on_policy=False, **options)
        work, state = Work(), policy.init(params)
        found.append(gradients(policy, state, episodes, work, scalars=policy.objective.scalars))
        parts.append(len(work.padding))
    assert parts[0] == 1 and parts[1] > 1
    norm = float(optax.tree.norm(found[0].grads))
    assert norm > 1e-4
    whole, cut = found
    np.testing.assert_allclose(whole.loss, cut.loss, rtol=1e-5, atol=1e-6)
    for x, y in zip(flatten(whole.grads).values(), flatten(cut.grads).values(), strict=True):
        assert float(jnp.abs(x - y).max()) <= 1e-6 * norm
    for name, metric in whole.metrics.items():
        want = cut.metrics[name].result()
        np.testing.assert_allclose(metric.result(), want, rtol=1e-4, atol=1e-5)
