"""The schedule of the learning rate, at its ends."""

import numpy as np
import pytest

from jaxr1.rl import Optimizer


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
