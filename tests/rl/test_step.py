"""Invariants 4 and 8: one gradient however a batch is laid out; frozen parts do not move."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import given, hf_arrays, learner, make_checkpoint, mixed_prompts, torch_inputs

import jaxr1
from jaxr1.inputs.sizes import Buckets
from jaxr1.inputs.strips import make_strips, plan_prompts
from jaxr1.models.vlm import cast
from jaxr1.nn.params import flatten
from jaxr1.parallel import make_mesh
from jaxr1.rl import Kl, PolicyStats, Ppo, token_weights
from jaxr1.rl.learner import init_state, split_params
from jaxr1.rl.step import apply
from jaxr1.rl.update import gradients, plan_episodes
from jaxr1.rl.work import Work

GRAD = 1e-6  # times the global norm (invariant 4)


class Batch:
    """Random prompts, responses and per-token numbers, and their gradient under any layout."""

    def __init__(self, processor, rng, prompts=4, group=4, longest=12):
        self.prompts = [processor.encode(p) for p in mixed_prompts(rng, prompts)]
        lengths = rng.integers(1, longest, (prompts, group))

        def of_length(draw):
            """`draw(length)` for each response."""
            return [list(map(draw, row)) for row in lengths]

        self.tokens = of_length(lambda n: rng.integers(20, 500, n).astype(np.int32))
        columns = {
            "advantage": of_length(lambda n: rng.normal(0.0, 1.0, n)),
            # Log-probs around those of a random model.
            "old_logp": of_length(lambda n: rng.normal(-6.0, 0.3, n)),
            "ref_logp": of_length(lambda n: rng.normal(-6.0, 0.3, n)),
        }
        self.weight = token_weights(lengths, "token-mean")
        self.episodes = given(self.prompts, self.tokens, **columns, weight=self.weight)
        self.episodes.columns["sampled_logp"] = self.episodes.columns["old_logp"]

    def of(self, name):
        """A column as [b][g] arrays."""
        column, found = self.episodes.columns[name], []
        for lengths in self.episodes.counts_bg:
            *row, column = np.split(column, np.cumsum(lengths))
            found.append(row)
        return found

    def sums(
        self, model, params, processor, buckets, *, budget=10**6, freeze=(), only=None, **objective
    ):
        terms = (Ppo(), Kl(0.1, "k3"), PolicyStats())
        options = dict(budget=budget, freeze=freeze, on_policy=False)
        policy = learner(model, processor, terms, buckets, **options | objective)
        episodes, work = self.episodes, Work()
        if only is not None:
            valid_bg = np.zeros_like(episodes.valid_bg)
            valid_bg[only] = True
            episodes = dataclasses.replace(episodes, valid_bg=valid_bg)
        return gradients(policy, policy.init(params), episodes, work), work


@dataclasses.dataclass
class World:
    """A random model, a batch, and the gradient of all of it at once."""

    folder: Path
    reference: Any
    model: Any
    params: dict
    processor: Any
    batch: Batch
    buckets: Buckets
    whole: Any

    def plan(self, buckets=None):
        """The one micro-batch that all of it makes."""
        policy = learner(self.model, self.processor, (Ppo(), Kl(0.1)), buckets or self.buckets)
        episodes = self.batch.episodes
        [plan] = plan_episodes(policy, self.params, episodes, episodes.valid_bg)
        return plan

    def sums(self, params=None, model=None, buckets=None, **options):
        args = (model or self.model, params or self.params, self.processor, buckets or self.buckets)
        return self.batch.sums(*args, **options)


@pytest.fixture(scope="module")
def world(tmp_path_factory, module_seed):
    folder = tmp_path_factory.mktemp("model") / "m"
    reference = make_checkpoint(folder, module_seed, layers=2, tied=False)
    model, params = jaxr1.load_model(folder)
    processor = jaxr1.load_processor(folder)
    batch = Batch(processor, np.random.default_rng(module_seed))
    buckets = Buckets((96,), (16,), (64,))
    made = World(folder, reference, model, params, processor, batch, buckets, None)
    made.whole, work = made.sums()
    assert len(work.padding) == 1 and made.plan().strips < 4 * 4
    return made


def close(a, b, tolerance=GRAD):
    """Gradients equal within `tolerance` x the global norm; metrics to rounding."""
    norm = float(optax.tree.norm(a.grads))
    assert norm > 1e-3
    for (path, x), y in zip(flatten(a.grads).items(), flatten(b.grads).values(), strict=True):
        worst = float(np.abs(np.asarray(x) - np.asarray(y)).max())
        assert worst <= tolerance * norm, (path, worst / norm)
    np.testing.assert_allclose(a.loss, b.loss, rtol=1e-4, atol=1e-6)
    assert a.metrics.keys() == b.metrics.keys()
    for name, found in a.metrics.items():
        np.testing.assert_allclose(found.result(), b.metrics[name].result(), rtol=1e-4, atol=1e-4)
        assert float(found.weight) == float(b.metrics[name].weight)


def test_gradient_equals_torch(world):
    """d loss / d parameters of tower, merger and decoder, as torch has it response by response."""
    import torch

    batch, forbidden = world.batch, list(world.processor.media_token_ids)
    world.reference.zero_grad()
    total = 0.0
    given = [batch.of(name) for name in ("advantage", "old_logp", "ref_logp")]
    for b, prompt in enumerate(batch.prompts):
        for g, response in enumerate(batch.tokens[b]):
            whole = world.reference(**torch_inputs(prompt, response=response)).logits[0]
            logits = whole[len(prompt) - 1 : -1].clone()
            logits[:, forbidden] = -1e30
            ids = torch.tensor(response.astype(np.int64))
            logp = torch.log_softmax(logits, -1).gather(1, ids[:, None])[:, 0]
            advantage, old, ref = (torch.tensor(x[b][g]) for x in given)
            ratio = torch.exp(torch.clamp(logp - old, -20, 20))
            loss = -torch.minimum(ratio * advantage, torch.clamp(ratio, 0.8, 1.2) * advantage)
            d = logp - ref
            loss = loss + 0.1 * torch.clamp(torch.exp(torch.clamp(-d, -20, 20)) - 1 + d, -10, 10)
            total = total + batch.weight[b][g] * loss.sum()
    total.backward()
    assert total.item() == pytest.approx(float(world.whole.loss), rel=1e-4, abs=1e-5)
    theirs = {name: p.grad.numpy() for name, p in world.reference.named_parameters()}
    norm = float(optax.tree.norm(world.whole.grads))
    for name, ours in hf_arrays(world.model.table("v5"), flatten(world.whole.grads)).items():
        worst = np.abs(ours - theirs[name]).max()
        assert worst <= 2e-5 * norm, (name, worst / norm)  # two libraries' float32 rounding


def test_packed_equals_separate_rows(world):
    """Strips with several responses give what one response per program gives, gradients too."""
    added = None
    for only in np.ndindex(world.batch.episodes.counts_bg.shape):
        one, _ = world.sums(only=only)
        if added is None:
            added = one
            continue
        metrics = {name: value.add(one.metrics[name]) for name, value in added.metrics.items()}
        grads = jax.tree.map(jnp.add, added.grads, one.grads)
        added = added.replace(grads=grads, loss=added.loss + one.loss, metrics=metrics)
    close(world.whole, added)


def test_micro_batches_equal_whole(world):
    small, work = world.sums(budget=150)
    assert len(work.padding) >= 3
    close(world.whole, small)


def test_larger_buckets_change_nothing(world):
    close(world.whole, world.sums(buckets=Buckets((160,), (40,), (128,)))[0])


def test_room_for_media_changes_nothing(world):
    """Pictures alone in rows of one size, and all in one long row of which a part is computed."""
    close(world.whole, world.sums(buckets=Buckets((96,), (16,), (16, 32, 64)))[0])


@pytest.mark.parametrize("change", ["remat", "chunked strips"])
def test_memory_switches_change_nothing(world, change):
    buckets = Buckets((96,), (14,), (64,))  # short strips: a power of two of them to cut
    whole, _ = world.sums(buckets=buckets)
    assert world.plan(buckets).strips >= 2
    if change == "remat":
        changed, _ = world.sums(buckets=buckets, model=dataclasses.replace(world.model, remat=True))
    else:
        changed, _ = world.sums(buckets=buckets, strips_at_once=1)
    close(whole, changed)


@pytest.mark.parametrize("sizes", [(4, 1, 1), (1, 4, 1), (1, 2, 2)])
def test_meshes_train_the_same(world, sizes):
    """Gradients, and parameters after one SGD step, on four devices and on one."""
    model, sharded = jaxr1.load_model(world.folder, mesh=make_mesh(sizes, jax.devices()[:4]))
    four, _ = world.sums(model=model, params=sharded)
    close(world.whole, four)
    roomy, _ = world.sums(model=model, params=sharded, buckets=Buckets((96,), (16,), (16, 32, 64)))
    close(world.whole, roomy)
    tx, rate = optax.sgd(0.1), optax.constant_schedule(0.1)
    params = jax.tree.map(jnp.copy, world.params)
    one_state, one_metrics = apply(tx, rate, init_state(params, tx), world.whole)
    four_state, four_metrics = apply(tx, rate, init_state(sharded, tx), four)
    norm = float(one_metrics["policy/grad_norm"])
    assert norm == pytest.approx(float(four_metrics["policy/grad_norm"]), rel=1e-5)
    ones, fours = (jax.tree.leaves(state.trainable) for state in (one_state, four_state))
    for a, b in zip(ones, fours, strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=0.1 * GRAD * norm + 1e-7)


@pytest.mark.parametrize("freeze", [("vision",), ("vision", "merger"), ("decoder",)])
def test_frozen_means_frozen(world, freeze):
    """Bit for bit unchanged, no optimiser state; every trainable tensor moves."""
    params = jax.tree.map(jnp.copy, world.params)
    before = jax.tree.map(np.asarray, params)
    tx = optax.adamw(1e-2, weight_decay=0.1)
    state = init_state(params, tx, freeze)
    moments = [x.shape for x in jax.tree.leaves(state.opt) if x.ndim]
    trained = [x.shape for x in jax.tree.leaves(state.trainable) if x.ndim]
    assert set(moments) <= set(trained) and len(moments) == 2 * len(trained)
    sums, _ = world.sums(params=params, freeze=freeze)
    state, _ = apply(tx, lambda _: 0.0, state, sums)
    for part, tree in state.params.items():
        for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(before[part]), strict=True):
            assert np.array_equal(np.asarray(a), b) == (part in freeze)


def test_freeze_refuses_nonsense(world):
    said = "'tower' is none of the model's parts: vision, merger, decoder"
    with pytest.raises(ValueError, match=said):
        split_params(world.params, ("tower",))
    with pytest.raises(ValueError, match="nothing is left"):
        split_params(world.params, ("vision", "merger", "decoder"))


def test_a_step_that_is_not_finite_is_skipped_and_counted(world):
    params = jax.tree.map(jnp.copy, world.params)
    tx = optax.adamw(1e-2)
    before = jax.tree.map(np.asarray, params)
    poisoned = world.whole.replace(grads=jax.tree.map(lambda g: g * jnp.nan, world.whole.grads))
    state, metrics = apply(tx, lambda _: 0.0, init_state(params, tx), poisoned)
    assert metrics["policy/skipped"] == 1
    assert all(map(np.array_equal, jax.tree.leaves(state.params), jax.tree.leaves(before)))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.opt))


def test_a_token_sees_only_what_came_before(world, rng):
    """Causality by gradient: d log p(token t) / d what comes after, or other responses, is 0."""
    from jaxr1.models import text, vlm

    model, params, batch, plan = world.model, world.params, world.batch, world.plan()
    rows = plan_prompts(plan, batch.prompts, world.buckets, model.media)
    prompt = vlm.prefill(model, cast(model, params), rows)
    strips = make_strips(plan, batch.prompts, batch.episodes.token_n)
    shared = [p for p in plan.places if p.length > 2 and p.segment > 1]
    place = shared[0] if shared else next(p for p in plan.places if p.length > 2)
    t = place.offset + place.length - 2
    x = params["decoder"]["embed"][strips.token_bst]

    def probe(x):
        where = (strips.position_bst3, strips.segment_bst, model.rules)
        decoder = params["decoder"]
        hidden = text.extend(model.text, decoder, prompt.kv, prompt.length_b, x, *where)
        return hidden[place.row, place.strip, t].sum()

    moved = np.abs(np.asarray(jax.grad(probe)(x))).sum(-1) > 0
    allowed = np.zeros_like(moved)
    allowed[place.row, place.strip, place.offset : t + 1] = True
    assert (moved <= allowed).all() and moved[place.row, place.strip, place.offset : t + 1].all()
