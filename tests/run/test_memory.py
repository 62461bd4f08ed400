"""What a run holds in memory: as much after a resume as before it."""

import gc

import jax
import pytest
from reference import one_stage

from jaxr1.nn.lora import Lora
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
def test_a_resumed_run_holds_what_a_fresh_one_holds(tmp_path, held, variant):
    changes = dict(lora=Lora()) if variant == "adapters" else {}
    make = lambda name, steps: one_stage(tmp_path / name, steps=steps, **changes)
    train(make("fresh", 3))
    fresh = dict(held)
    train(make("stopped", 2))
    held.clear()
    train(make("stopped", 3), override_resume=True)
    print(fresh, held)
    assert list(held) == [3] and held[3] == fresh[3] > 0
