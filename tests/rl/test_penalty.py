"""KL as a part of the reward."""

import numpy as np
import pytest
from reference import given

from jaxr1.rl import KlReward, kl_estimate, penalty


@pytest.mark.parametrize("estimator", ["k1", "abs", "k2", "k3"])
@pytest.mark.parametrize("scored", [False, True])
def test_a_penalty_is_the_estimate_of_each_own_token(rng, estimator, scored):
    """That of the loss, clamped as OpenRLHF clamps all, of own tokens; the mean over responses."""
    lengths = rng.integers(1, 7, (3, 4))
    lengths[0, 0] = 0
    tokens = [[np.ones(n, np.int32) for n in row] for row in lengths]
    episodes = given([None] * 3, tokens)
    count = lengths.sum()
    logp = rng.normal(-2.0, 0.5, (2, count)).astype(np.float32)
    ref = logp[0] + rng.normal(0.0, 1.0, count) + rng.choice([-50.0, 0.0, 50.0], count)
    episodes.columns |= {"sampled_logp": logp[0], "ref_logp": ref.astype(np.float32)}
    if scored:
        episodes.columns["old_logp"] = logp[1]
    own = (rng.random(count) < 0.8).astype(np.float32)
    episodes.columns["own"] = own
    episodes.valid_bg[1, 1] = False

    column, metrics = penalty(episodes, KlReward(0.1, estimator), 0.3)
    kl = np.asarray(kl_estimate(logp[int(scored)], np.float32(ref), estimator), np.float64)
    kl = np.clip(kl, -10, 10) * own
    np.testing.assert_allclose(column, -0.3 * kl, rtol=1e-4, atol=1e-5)
    assert column.dtype == np.float32
    parts = np.split(np.arange(count), np.cumsum(lengths.ravel()))[:-1]
    among = zip(parts, episodes.valid_bg.ravel(), strict=True)
    means = [kl[at].sum() / own[at].sum() for at, valid in among if valid and own[at].any()]
    assert metrics["reward/kl"] == pytest.approx(np.mean(means), rel=1e-4)
    assert metrics["reward/kl_coef"] == 0.3


def test_no_response_has_no_kl():
    episodes = given([None], [[np.ones(2, np.int32)]])
    episodes.columns |= dict.fromkeys(("sampled_logp", "ref_logp"), np.zeros(2, np.float32))
    episodes.valid_bg[:] = False
    assert penalty(episodes, KlReward(0.1), 0.1)[1]["reward/kl"] == 0
