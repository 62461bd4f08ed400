"""What a run holds in memory: as much after a resume as before it."""

import gc

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp
from reference import one_stage

from jaxr1.nn.lora import Lora
from jaxr1.rl import update
from jaxr1.run import machine, state
from jaxr1.run.loop import Run, train


def live() -> int:
    """Bytes of all arrays."""
    gc.collect()
    return sum(x.nbytes for x in jax.live_arrays())


@pytest.fixture
def held(monkeypatch):
    """{total step: bytes held when it began, beyond those before the run}."""
    seen: dict[int, int] = {}
    before = live()
    step = Run._step

    def watched(self, *args):
        seen[self.progress.total_step + 1] = live() - before
        return step(self, *args)

    monkeypatch.setattr(Run, "_step", watched)
    return seen


@pytest.mark.parametrize("variant", ["whole", "adapters"])
def test_a_resumed_run_holds_what_a_fresh_one_holds(tmp_path, held, variant, monkeypatch):
    changes = dict(lora=Lora()) if variant == "adapters" else {}
    monkeypatch.setattr(state, "READ_BYTES", 1 << 20)  # many parts, as of a large model
    make = lambda name, steps: one_stage(tmp_path / name, steps=steps, **changes)
    whole = train(make("fresh", 3)).params
    whole = jax.tree.map(np.asarray, whole)
    fresh = dict(held)
    train(make("stopped", 2))
    held.clear()
    resumed = train(make("stopped", 3), override_resume=True).params
    print(fresh, held)
    assert list(held) == [3] and held[3] == fresh[3] > 0
    assert jax.tree.all(jax.tree.map(np.array_equal, resumed, whole))


def test_few_arrays_are_read_at_the_same_time(monkeypatch, rng):
    """As many as `READ_BYTES` hold, or the largest one; placeholders are never asked for."""
    shapes = [(int(n), int(m)) for n, m in rng.integers(1, 20, (30, 2))]
    stored = {f"a{i:02}": rng.standard_normal(shape).astype("f4") for i, shape in enumerate(shapes)}
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
        for name, x in stored.items()
    }
    left = {name for name in like if rng.random() < 0.2}
    like |= dict.fromkeys(left, ocp.PLACEHOLDER)
    asked: list[list[str]] = []

    def read(tree):
        asked.append([name for name, x in tree.items() if x is not ocp.PLACEHOLDER])
        return tree | {name: jax.numpy.asarray(stored[name]) for name in asked[-1]}

    most = int(rng.integers(1, 3000))
    monkeypatch.setattr(state, "READ_BYTES", most)
    found = state.read_in_parts(read, like)
    assert [name for part in asked for name in part] == [n for n in like if n not in left]
    largest = max(x.nbytes for x in stored.values())
    assert max(sum(stored[n].nbytes for n in part) for part in asked) <= max(most, largest)
    for name, x in found.items():
        assert x is ocp.PLACEHOLDER if name in left else np.array_equal(x, stored[name])


def test_activations_are_the_temporaries_of_the_update_as_it_is_compiled(tmp_path, monkeypatch):
    """By the compiler's account of the very program, asked again here; nothing is compiled twice.

    That program has the most of them: it differentiates.
    """
    jax.clear_caches()  # another test's programs may be larger
    gc.collect()
    asked, accumulate = [], update.accumulate

    def watched(*inputs):
        asked.append(accumulate.lower(*inputs))  # before they are donated
        return accumulate(*inputs)

    monkeypatch.setattr(update, "accumulate", watched)
    found = train(one_stage(tmp_path / "run", steps=3)).metrics
    bytes_of = [one.compile().memory_analysis().temp_size_in_bytes for one in asked]
    print(bytes_of)
    assert len(bytes_of) == 3 and found[-1]["memory/activations_gib"] == max(bytes_of) / 2**30 > 0
    # Asking compiles nothing, and is not done again while nothing is compiled.
    with machine.CompileCounter() as compiles:
        first = compiles.metrics(since=0)
        assert first == {"perf/compiles": 0, "memory/activations_gib": max(bytes_of) / 2**30}
        monkeypatch.setattr(machine, "planned_temporaries", pytest.fail)
        assert compiles.metrics(since=0) == first


@pytest.mark.parametrize("error", [AttributeError, NotImplementedError, jax.errors.JaxRuntimeError])
def test_activations_are_absent_where_the_backend_does_not_tell(monkeypatch, error):
    class Device:
        @property
        def client(self):
            raise error("no such thing here")

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    with machine.CompileCounter() as compiles:
        assert compiles.metrics(since=0) == {"perf/compiles": 0}
