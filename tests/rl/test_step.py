"""Invariants 4 and 8: however a batch is laid out, the gradient is the same; frozen parts do not move."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import hf_arrays, make_checkpoint, mixed_prompts, torch_inputs

import jaxr1
from jaxr1.inputs.sizes import Buckets
from jaxr1.inputs.strips import fill, make_strips, plan_prompts, plan_strips
from jaxr1.models.vlm import cast
from jaxr1.nn.params import flatten
from jaxr1.parallel import batch_multiple, make_mesh, mesh_of, place_rows
from jaxr1.rl import step as rl
from jaxr1.rl.objectives import Kl, Surrogate, token_weights

GRAD = 1e-6  # times the global norm (design, invariant 4)


class Batch:
    """Random prompts, responses and per-token numbers, and their gradient under any layout."""

    def __init__(self, processor, rng, prompts=4, group=4, longest=12):
        self.prompts = [processor.encode(p) for p in mixed_prompts(rng, prompts)]
        lengths = rng.integers(1, longest, (prompts, group))
        self.tokens = [[rng.integers(20, 500, n).astype(np.int32) for n in row] for row in lengths]
        number = lambda scale: [[rng.normal(size=n).astype(np.float32) * scale for n in row] for row in lengths]
        self.advantage, self.old, self.ref = number(1.0), number(0.3), number(0.3)
        for name in ("old", "ref"):  # around the log-probs of a random model
            setattr(self, name, [[x - 6.0 for x in row] for row in getattr(self, name)])
        self.weights = token_weights(lengths.tolist(), "token-mean")
        self.rows = [list(range(group)) for _ in range(prompts)]

    def sums(self, model, params, objective, buckets, *, budget, freeze=(), only=None):
        trainable, frozen = rl.split_params(params, freeze)
        mesh = mesh_of(params)
        multiple = batch_multiple(mesh, model.rules)
        lengths = [[len(t) if only is None or (b, g) in only else 0 for g, t in enumerate(row)]
                   for b, row in enumerate(self.tokens)]  # fmt: skip
        plans = plan_strips([len(p) for p in self.prompts], lengths, buckets, token_budget=budget, multiple=multiple)
        sums = rl.zero_sums(objective, trainable)
        for plan in plans:
            batch = rl.TrainBatch(
                prompt=plan_prompts(plan, self.prompts, buckets, model.layout, multiple=multiple),
                strips=make_strips(plan, self.prompts, self.tokens, self.weights),
                advantage_bst=fill(plan, self.advantage),
                old_logp_bst=fill(plan, self.old),
                ref_logp_bst=fill(plan, self.ref),
                sampled_logp_bst=fill(plan, self.old),
            )
            with jax.set_mesh(mesh):
                sums = rl.accumulate(model, objective, trainable, frozen, sums, place_rows(batch, mesh, model.rules))
        return sums, plans


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    seed = int(np.random.SeedSequence().entropy % 2**31)
    print(f"world seed {seed}")
    folder = tmp_path_factory.mktemp("model") / "m"
    reference = make_checkpoint(folder, seed, layers=2, tied=False)
    model, params = jaxr1.load_model(folder)
    processor = jaxr1.load_processor(folder)
    batch = Batch(processor, np.random.default_rng(seed))
    objective = rl.Objective(
        surrogate=Surrogate(), kl=Kl(0.1, "k3"), on_policy=False, forbidden=processor.media_token_ids
    )
    buckets = Buckets((96,), (16,), (64,))
    whole, plans = batch.sums(model, params, objective, buckets, budget=10**6)
    assert len(plans) == 1 and any(p.segment > 1 for p in plans[0].places)
    return folder, reference, model, params, processor, batch, objective, buckets, whole


def close(a, b, tolerance=GRAD):
    """Gradients equal within `tolerance` x the global norm; metrics to rounding."""
    norm = float(optax.tree.norm(a.grads))
    assert norm > 1e-3
    for (path, x), y in zip(flatten(a.grads).items(), flatten(b.grads).values(), strict=True):
        worst = float(np.abs(np.asarray(x) - np.asarray(y)).max())
        assert worst <= tolerance * norm, (path, worst / norm)
    np.testing.assert_allclose(a.loss, b.loss, rtol=1e-4, atol=1e-6)
    for key, ratio in a.means.items():
        np.testing.assert_allclose(ratio.total, b.means[key].total, rtol=1e-4, atol=1e-4)
        assert float(ratio.weight) == float(b.means[key].weight)


def test_gradient_equals_torch(world):
    """d loss / d parameters of tower, merger and decoder against torch autograd, response by response."""
    import torch

    folder, reference, model, params, processor, batch, objective, buckets, whole = world
    reference.zero_grad()
    total = 0.0
    for b, prompt in enumerate(batch.prompts):
        for g, response in enumerate(batch.tokens[b]):
            inputs = torch_inputs(prompt)
            ids = torch.tensor(response[None].astype(np.int64))
            inputs["input_ids"] = torch.cat([inputs["input_ids"], ids], 1)
            kinds = torch.zeros(1, len(response), dtype=inputs["mm_token_type_ids"].dtype)
            inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], kinds], 1)
            logits = reference(**inputs).logits[0, len(prompt) - 1 : -1].clone()
            logits[:, list(processor.media_token_ids)] = -1e30
            logp = torch.log_softmax(logits, -1).gather(1, ids[0, :, None])[:, 0]
            advantage, old, ref = (torch.tensor(x[b][g]) for x in (batch.advantage, batch.old, batch.ref))
            ratio = torch.exp(torch.clamp(logp - old, -20, 20))
            loss = -torch.minimum(ratio * advantage, torch.clamp(ratio, 0.8, 1.2) * advantage)
            d = logp - ref
            loss = loss + 0.1 * torch.clamp(torch.exp(torch.clamp(-d, -20, 20)) - 1 + d, -10, 10)
            total = total + batch.weights[b][g] * loss.sum()
    total.backward()
    assert total.item() == pytest.approx(float(whole.loss), rel=1e-4, abs=1e-5)
    theirs = {name: p.grad.numpy() for name, p in reference.named_parameters()}
    norm = float(optax.tree.norm(whole.grads))
    for name, ours in hf_arrays(model.table("v5"), flatten(whole.grads)).items():
        worst = np.abs(ours - theirs[name]).max()
        assert worst <= 2e-5 * norm, (name, worst / norm)  # two libraries' float32 rounding


def test_packed_equals_separate_rows(world):
    """Strips with several responses give what one response per program gives, gradients included."""
    *_, model, params, _, batch, objective, buckets, whole = world
    trainable, _ = rl.split_params(params, ())
    added = rl.zero_sums(objective, trainable)
    for b, row in enumerate(batch.tokens):
        for g in range(len(row)):
            one, _ = batch.sums(model, params, objective, buckets, budget=10**6, only={(b, g)})
            largest = {k: jnp.maximum(added.largest[k], v) for k, v in one.largest.items()}
            added = jax.tree.map(jnp.add, added, one.replace(largest=added.largest)).replace(largest=largest)
    close(whole, added)


def test_micro_batches_equal_whole(world):
    *_, model, params, _, batch, objective, buckets, whole = world
    small, plans = batch.sums(model, params, objective, buckets, budget=150)
    assert len(plans) >= 3
    close(whole, small)


def test_larger_buckets_change_nothing(world):
    *_, model, params, _, batch, objective, _, whole = world
    close(whole, batch.sums(model, params, objective, Buckets((160,), (40,), (128,)), budget=10**6)[0])


@pytest.mark.parametrize("change", ["remat", "chunked strips"])
def test_memory_switches_change_nothing(world, change):
    *_, model, params, _, batch, objective, _, _ = world
    buckets = Buckets((96,), (14,), (64,))  # short strips: a power of two of them to cut
    whole, plans = batch.sums(model, params, objective, buckets, budget=10**6)
    assert plans[0].strips >= 2
    if change == "remat":
        model = dataclasses.replace(model, remat=True)
    else:
        objective = dataclasses.replace(objective, strips_at_once=1)
    close(whole, batch.sums(model, params, objective, buckets, budget=10**6)[0])


@pytest.mark.parametrize("sizes", [(4, 1, 1), (1, 4, 1), (1, 2, 2)])
def test_meshes_train_the_same(world, sizes):
    """Gradients, and parameters after one SGD step, on four devices and on one."""
    folder, _, _, params, _, batch, objective, buckets, whole = world
    model, sharded = jaxr1.load_model(folder, mesh=make_mesh(sizes, jax.devices()[:4]))
    four, _ = batch.sums(model, sharded, objective, buckets, budget=10**6)
    close(whole, four)
    tx = optax.sgd(0.1)
    rate = optax.constant_schedule(0.1)
    one_state, one_metrics = rl.apply(tx, rate, rl.init_state(jax.tree.map(jnp.copy, params), tx), whole)
    four_state, four_metrics = rl.apply(tx, rate, rl.init_state(sharded, tx), four)
    norm = float(one_metrics["policy/grad_norm"])
    assert norm == pytest.approx(float(four_metrics["policy/grad_norm"]), rel=1e-5)
    for a, b in zip(jax.tree.leaves(one_state.trainable), jax.tree.leaves(four_state.trainable), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=0.1 * GRAD * norm + 1e-7)


@pytest.mark.parametrize("freeze", [("vision",), ("vision", "merger"), ("decoder",)])
def test_frozen_means_frozen(world, freeze):
    """Bit for bit unchanged, no optimiser state; every trainable tensor moves."""
    *_, model, params, _, batch, objective, buckets, _ = world
    params = jax.tree.map(jnp.copy, params)
    before = jax.tree.map(np.asarray, params)
    tx = optax.adamw(1e-2, weight_decay=0.1)
    state = rl.init_state(params, tx, freeze)
    assert {p.shape for p in jax.tree.leaves(state.opt) if p.ndim} <= {
        p.shape for p in jax.tree.leaves(state.trainable)
    }
    moments = [x for x in jax.tree.leaves(state.opt) if x.ndim]
    assert len(moments) == 2 * len([x for x in jax.tree.leaves(state.trainable) if x.ndim])
    sums, _ = batch.sums(model, params, objective, buckets, budget=10**6, freeze=freeze)
    state, _ = rl.apply(tx, lambda _: 0.0, state, sums)
    for part, tree in state.params.items():
        for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(before[part]), strict=True):
            assert np.array_equal(np.asarray(a), b) == (part in freeze)


def test_freeze_refuses_nonsense(world):
    params = world[3]
    with pytest.raises(ValueError, match="'tower' is none of"):
        rl.split_params(params, ("tower",))
    with pytest.raises(ValueError, match="nothing is left"):
        rl.split_params(params, ("vision", "merger", "decoder"))


def test_a_step_that_is_not_finite_is_skipped_and_counted(world):
    *_, params, _, _, objective, _, whole = world
    params = jax.tree.map(jnp.copy, params)
    tx = optax.adamw(1e-2)
    before = jax.tree.map(np.asarray, params)
    poisoned = whole.replace(grads=jax.tree.map(lambda g: g * jnp.nan, whole.grads))
    state, metrics = rl.apply(tx, lambda _: 0.0, rl.init_state(params, tx), poisoned)
    assert metrics["policy/skipped"] == 1
    assert all(map(np.array_equal, jax.tree.leaves(state.params), jax.tree.leaves(before)))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.opt))


def test_a_token_sees_only_what_came_before(world, rng):
    """Causality by gradient: d log p(token t of a) / d everything after t, and of other responses, is exactly 0."""
    from jaxr1.models import text, vlm

    *_, model, params, _, batch, _, buckets, _ = world
    lengths = [[len(t) for t in row] for row in batch.tokens]
    plan = plan_strips([len(p) for p in batch.prompts], lengths, buckets, token_budget=10**6)[0]
    prompt = vlm.prefill(model, cast(model, params), plan_prompts(plan, batch.prompts, buckets, model.layout))
    strips = make_strips(plan, batch.prompts, batch.tokens, batch.weights)
    shared = [p for p in plan.places if p.length > 2 and p.segment > 1]
    place = shared[0] if shared else next(p for p in plan.places if p.length > 2)
    t = place.offset + place.length - 2
    x = params["decoder"]["embed"][strips.token_bst]

    def probe(x):
        hidden = text.extend(
            model.text, params["decoder"], prompt.kv, prompt.length_b, x, strips.position_bst3, strips.segment_bst,
            model.rules,
        )  # fmt: skip
        return hidden[place.row, place.strip, t].sum()

    moved = np.abs(np.asarray(jax.grad(probe)(x))).sum(-1) > 0
    allowed = np.zeros_like(moved)
    allowed[place.row, place.strip, place.offset : t + 1] = True
    assert (moved <= allowed).all() and moved[place.row, place.strip, place.offset : t + 1].all()
