"""What devices send each other in the compiled programs: parameters and activations.

Never logits, and no parameter once per token. What is stored is split as the parameters are.
"""

import dataclasses
import itertools
import math
import re
from typing import Any

import jax
import numpy as np
import optax
import pytest
from reference import given, learner, make_checkpoint, mixed_prompts

import jaxr1
from jaxr1.inputs.sizes import Buckets
from jaxr1.inputs.strips import plan_prompts
from jaxr1.parallel import batch_multiple, make_mesh, place_rows
from jaxr1.rl import Optimizer, PolicyStats, Ppo
from jaxr1.rl.learner import init_state
from jaxr1.rl.step import accumulate, apply, zero_sums
from jaxr1.rl.update import make_batch, plan_episodes
from jaxr1.sampling import decode
from jaxr1.sampling.draw import Filters
from jaxr1.sampling.scoring import score_batch

ROWS, GROUP, TOKENS, VOCAB = 8, 4, 24, 512
WIDTH = 48


OPERATION = re.compile(
    r" = (.*?) (all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute)(-start)?\("
)


def collectives(compiled) -> list[tuple[str, tuple[int, ...], str]]:
    """(kind, shape, name of the operation) of everything that devices exchange."""
    found = []
    for line in compiled.as_text().splitlines():
        match = OPERATION.search(line)
        if match:
            name = re.search(r'op_name="([^"]*)"', line)
            for dims in re.findall(r"\w+\[([0-9,]*)\]", match.group(1)):
                shape = tuple(int(d) for d in dims.split(",") if d)
                found.append((match.group(2), shape, name.group(1) if name else ""))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory, module_seed):
    out = tmp_path_factory.mktemp("m") / "m"
    make_checkpoint(out, module_seed, hidden=WIDTH, heads=6, kv_heads=2, layers=2, tied=False)
    return out


@dataclasses.dataclass
class Programs:
    """Compiled programs on a mesh, and what they are given."""

    mesh: Any
    model: Any
    policy: Any
    state: Any
    placed: Any
    cache: Any
    decoding: Any
    compiled: dict


@pytest.fixture(scope="module", params=[(4, 1, 1), (1, 4, 1), (1, 2, 2)], ids=str)
def programs(request, folder):
    """Compiled scoring, update and decoding on four devices, and the states that they are given."""
    mesh = make_mesh(request.param, jax.devices()[:4])
    model, params = jaxr1.load_model(folder, mesh=mesh)
    processor, rng = jaxr1.load_processor(folder), np.random.default_rng(0)
    prompts = [processor.encode(p) for p in mixed_prompts(rng, ROWS)]
    buckets = Buckets((192,), (TOKENS,), (64,))
    tokens = [list(group) for group in rng.integers(20, 500, (ROWS, GROUP, TOKENS), np.int32)]
    optimizer = Optimizer(1e-3, clip_norm=0)
    policy = learner(model, processor, (Ppo(), PolicyStats()), buckets, optimizer=optimizer)
    numbers = dict.fromkeys(policy.objective.columns, [[1.0] * GROUP] * ROWS)
    episodes = given(prompts, tokens, **numbers)
    [plan] = plan_episodes(policy, params, episodes, episodes.valid_bg)
    multiple = batch_multiple(mesh, model.rules)
    batch = make_batch(policy, plan, prompts, episodes, multiple=multiple)
    state = policy.init(params)
    sums = zero_sums(policy.objective, state.trainable)
    with jax.set_mesh(mesh):
        placed = place_rows(batch, mesh, model.rules)
        asked = (np.float32(1), ("logp",), processor.media_token_ids, plan.at_once)
        score = score_batch.lower(model, params, placed.prompt, placed.strips, *asked).compile()
        whole = (
            model,
            policy.objective,
            state.trainable,
            state.frozen,
            sums,
            placed,
            {},
            plan.at_once,
        )
        update = accumulate.lower(*whole).compile()
        rows = plan_prompts(plan, prompts, buckets, model.media, multiple=multiple)
        keys, done = np.zeros((ROWS, GROUP, 2), np.uint32), np.zeros((ROWS, GROUP), bool)
        keys = jax.device_put(keys, placed.strips.token_bst.sharding)
        done = jax.device_put(done, placed.prompt.token_bp.sharding)
        prefilled = decode.run_prefill(model, params, place_rows(rows, mesh, model.rules), 0)
        decoding, cache = decode.start(model, prefilled, keys, done, GROUP, 32)
        static = decode.Static(Filters(), processor.media_token_ids, (2,))
        weights = decode.weights(model, params)
        args = (model, weights, cache, decoding, np.int32(9), np.float32(1), static)
        steps = decode.decode_until.lower(*args).compile()
    compiled = {"score": score, "update": update, "decode": steps}
    return Programs(mesh, model, policy, state, placed, cache, decoding, compiled)


@pytest.mark.parametrize("name", ["score", "update", "decode"])
def test_logits_stay_on_their_device(programs, name):
    """Over the vocabulary only single numbers per token are added up.

    The output matrix is brought together.
    """
    mesh, compiled = programs.mesh, programs.compiled
    share = VOCAB // mesh.shape["tensor"]
    sides = (VOCAB, share), (WIDTH, WIDTH // 2, WIDTH // 4)
    matrices = {*itertools.product(*sides), *itertools.product(*reversed(sides))}
    for kind, shape, where in collectives(compiled[name]):
        if VOCAB in shape or (share in shape and share != WIDTH):
            assert shape[-2:] in matrices and math.prod(shape[:-2]) == 1, (kind, shape, where)


def test_no_parameter_is_gathered_for_every_token(programs):
    model, compiled = programs.model, programs.compiled
    inside = [c for c in collectives(compiled["decode"]) if "while/body" in c[2]]
    activations = ROWS * GROUP * max(WIDTH, model.text.mlp)
    smallest = min(math.prod(p.layer_shape) for p in model.table().values() if p.transpose)
    for kind, shape, where in inside:
        assert kind != "all-gather" or math.prod(shape) <= ROWS * GROUP, (kind, shape, where)
        assert math.prod(shape) <= activations, (kind, shape, where)
    assert smallest > ROWS * GROUP, "sizes at which a gathered parameter would be seen"


def test_states_are_split_as_the_parameters_are(programs):
    """Moments, gradient sums, and all of them again after a step."""
    mesh, model, placed = programs.mesh, programs.model, programs.placed
    objective = programs.policy.objective
    tx, rate = optax.adamw(1e-3), optax.constant_schedule(1e-3)
    state = init_state(jax.tree.map(lambda x: x.copy(), programs.state.params), tx)
    wanted = [x.sharding for x in jax.tree.leaves(state.trainable)]
    assert any(not s.is_fully_replicated for s in wanted) == (mesh.shape["data"] == 1)

    def check(state, sums):
        trees = [state.trainable, sums.grads, state.opt[0].mu, state.opt[0].nu]
        for tree in trees:
            for x, sharding in zip(jax.tree.leaves(tree), wanted, strict=True):
                said = (x.shape, x.sharding, sharding)
                assert x.sharding.is_equivalent_to(sharding, x.ndim), said
        for x in jax.tree.leaves((state, sums)):
            assert x.sharding.device_set == set(mesh.devices.flat)

    sums = zero_sums(objective, state.trainable)
    check(state, sums)
    with jax.set_mesh(mesh):
        for _ in range(2):
            given = (model, objective, state.trainable, state.frozen, sums, placed, {}, GROUP)
            sums = accumulate(*given)
        grads = jax.tree.map(lambda x: x.copy(), sums)
        state, _ = apply(tx, rate, state, sums)
    check(state, grads)


def test_compaction_and_growth_keep_rows_apart(programs):
    mesh, model, cache, decoding = programs.mesh, programs.model, programs.cache, programs.decoding
    multiple = batch_multiple(mesh, model.rules)
    with jax.set_mesh(mesh):
        wide = decode.grow(model, decoding, 64)
        row = np.arange(multiple, dtype=np.int32)
        slot = np.tile(np.arange(2, dtype=np.int32), (multiple, 1))
        small, kept = decode.select(model, wide, cache, row, slot, np.zeros((multiple, 2), bool))
    for tree in (cache, decoding, wide, small, kept):
        for x in jax.tree.leaves(tree):
            if x.ndim:
                rows = x.addressable_shards[0].data.shape[0]
                assert rows == x.shape[0] // multiple, (x.shape, x.sharding)
