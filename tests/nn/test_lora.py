"""Adapters: the base is frozen, the reference is free, and the merged export is the same model."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from reference import Checkpoint, mixed_prompts

import jaxr1
from jaxr1.nn.lora import ADAPTERS, Lora, adapter_table, init_adapters, merged
from jaxr1.nn.params import flatten
from jaxr1.parallel import mesh_of
from jaxr1.rl.learner import init_state
from jaxr1.rl.optimizer import Optimizer


@dataclasses.dataclass
class World:
    """A model with adapters, which are apart from its parameters."""

    model: Any
    params: dict
    adapters: dict
    processor: Any

    @property
    def whole(self) -> dict:
        return {**self.params, ADAPTERS: self.adapters}


@pytest.fixture(scope="module", params=["qwen2_5_vl", "internvl"])
def world(request, tmp_path_factory, module_seed):
    base = Checkpoint.make(tmp_path_factory.mktemp("lora") / "m", module_seed, request.param)
    lora = Lora(
        rank=3,
        alpha=6.0,
        targets="decoder/layers/(q|o|down)|vision/blocks/(v|proj)|merger/fc1",
        layers=(0, 1),
    )
    model, params = base.model, base.params
    adapters = init_adapters(model.table(), lora, module_seed, mesh_of(params), model.rules)
    return World(dataclasses.replace(model, lora=lora), params, adapters, base.processor)


def filled(adapters, rng):
    """Adapters as after training: B is not zero any more."""
    noise = lambda x: rng.standard_normal(x.shape).astype(np.float32) * 0.1
    return jax.tree.map(lambda x: x + noise(x), adapters)


def responses(rng):
    return [[rng.integers(20, 300, 7), rng.integers(20, 300, 4)] for _ in range(2)]


def test_fresh_adapters_change_nothing(world, rng):
    model, params, processor = world.model, world.params, world.processor
    prompts, tokens = mixed_prompts(rng, 2, (1, 2)), responses(rng)
    base = jaxr1.score(dataclasses.replace(model, lora=None), params, processor, prompts, tokens)
    ours = jaxr1.score(model, world.whole, processor, prompts, tokens)
    for a, b in zip(base, ours, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_allclose(x, y, atol=1e-5)


def test_merged_is_the_same_model(world, rng, tmp_path):
    model, params, processor = world.model, world.params, world.processor
    trained = {**params, ADAPTERS: filled(world.adapters, rng)}
    prompts, tokens = mixed_prompts(rng, 2, (1, 2)), responses(rng)
    plain = dataclasses.replace(model, lora=None)
    ours = jaxr1.score(model, trained, processor, prompts, tokens)
    whole = merged(trained, model.table(), model.lora)
    out = jaxr1.save_model(plain, whole, processor, tmp_path / "out")
    again = jaxr1.score(*jaxr1.load_model(out), processor, prompts, tokens)
    base = jaxr1.score(plain, params, processor, prompts, tokens)
    for a, b, c in zip(ours, again, base, strict=True):
        for x, y, z in zip(a, b, c, strict=True):
            np.testing.assert_allclose(x, y, atol=2e-5)
            assert np.abs(x - z).max() > 1e-3
    # Layers outside the range stay as they are.
    before, after = flatten(params), flatten(whole)
    for path in ("decoder/layers/q", "decoder/layers/down"):
        assert (np.asarray(before[path][2]) == np.asarray(after[path][2])).all()
        assert (np.asarray(before[path][1]) != np.asarray(after[path][1])).any()
    assert (np.asarray(before["decoder/layers/k"]) == np.asarray(after["decoder/layers/k"])).all()


def test_adapters_are_drawn_as_peft_draws_them(world):
    """Evenly within 1 / sqrt(in): `kaiming_uniform_` with a = sqrt(5), beside torch's own draw."""
    torch = pytest.importorskip("torch")
    adapters = flatten(world.adapters)
    assert any(path.endswith("/a") for path in adapters)
    for path, values in adapters.items():
        matrix = path.removesuffix("/a")
        if matrix == path:
            assert not np.any(values)
            continue
        p, x = world.model.table()[matrix], np.asarray(values)
        width = np.prod(x.shape[1:-1] if p.layers else x.shape[:-1])
        theirs = torch.empty(1000, int(width))
        torch.nn.init.kaiming_uniform_(theirs, a=5**0.5)
        bound = width**-0.5
        assert np.abs(x).max() <= bound and float(theirs.abs().max()) <= bound * (1 + 1e-6)
        # the deviation of n even draws is itself known to 1 in 2 sqrt(n) or so
        error = 3 / np.sqrt(x.size)
        assert x.std() == pytest.approx(float(theirs.std()), rel=error + 0.02)
        assert np.abs(x).max() > 0.8 * bound


def test_only_adapters_have_optimiser_state(world):
    params, adapters = world.params, world.adapters
    state = init_state(world.whole, Optimizer().build(10))
    assert set(state.trainable) == {ADAPTERS} and set(state.frozen) == set(params)
    sizes = {x.shape for x in jax.tree.leaves(state.opt) if x.ndim}
    assert sizes == {x.shape for x in jax.tree.leaves(adapters)}


def test_what_is_refused(world):
    model = world.model
    said = r"no matrix matches targets 'decoder/q'; there are .*decoder/layers/q"
    with pytest.raises(ValueError, match=said):
        init_adapters(model.table(), Lora(targets="decoder/q"), 0, None, model.rules)
    with pytest.raises(ValueError, match="not inside the 3 layers"):
        init_adapters(model.table(), Lora(layers=(1, 3)), 0, None, model.rules)
    # A range may reach beyond the shallower of two stacks: there it ends with the stack.
    both = Lora(targets="(decoder/layers|vision/blocks)/(q|proj)", layers=(1, 2))
    table = model.table()
    assert (table["vision/blocks/proj"].layers, table["decoder/layers/q"].layers) == (2, 3)
    assert {"decoder/layers/q/a", "vision/blocks/proj/a"} <= adapter_table(table, both).keys()
    deep = Lora(targets=both.targets, layers=(2, 2))
    assert not [path for path in adapter_table(table, deep) if path.startswith("vision")]
    single = Lora(targets="merger/fc1", layers=(0, 9))
    assert set(adapter_table(table, single)) == {"merger/fc1/a", "merger/fc1/b"}
    with pytest.raises(ValueError, match="no range"):
        Lora(layers=(2, 1))
    with pytest.raises(ValueError, match="rank"):
        Lora(rank=0)
    with pytest.raises(ValueError, match="no regular expression"):
        Lora(targets="(")
