"""Every correction against float64 loops written from its formula.

A new correction joins with one row of `CORRECTIONS`. The formulas see a step as a list of responses
that count, each with its own tokens alone.
"""

import dataclasses
import inspect
from types import SimpleNamespace

import numpy as np
import pytest
from reference import given

from jaxr1.rl import corrections
from jaxr1.rl.corrections import (
    Correction,
    OffPolicyMask,
    OverlongFilter,
    Reject,
    SeqMaskTis,
    SequenceMask,
    SequenceTruncate,
    TokenMask,
    TokenTruncate,
    TopEntropy,
    correct,
    mismatch_metrics,
)

LOGPS = ("old_logp", "sampled_logp", "now_logp", "now_entropy", "old_entropy")


def step(rng, prompts=5, samples=4, spread=0.5):
    """Random lengths (none, too), unscored responses and tokens of an environment."""
    lengths = rng.integers(0, 9, (prompts, samples))
    lengths.flat[0], lengths.flat[-1] = 0, 1
    responses = [[np.ones(n, np.int32) for n in row] for row in lengths]
    episodes = given([SimpleNamespace(prefix="")] * prompts, responses)
    n = len(episodes.token_n)
    said = -rng.exponential(1.0, n)
    columns = {
        "sampled_logp": said,
        "old_logp": said + rng.normal(size=n) * spread,
        "now_logp": said + rng.normal(size=n) * spread,
        "now_entropy": rng.exponential(1.0, n),
        "old_entropy": rng.exponential(1.0, n),
        "own": rng.random(n) < 0.8,
    }
    episodes.columns |= {name: x.astype(np.float32) for name, x in columns.items()}
    episodes.columns["advantage"] = episodes.spread(rng.normal(size=lengths.shape))
    episodes.valid_bg = rng.random(lengths.shape) < 0.85
    reasons = rng.choice(["stop", "length"], lengths.shape)
    episodes.groups = [[SimpleNamespace(finish_reason=str(r)) for r in row] for row in reasons]
    # What is not known may be anything: it must not get into a mean.
    unknown = np.repeat(~episodes.valid_bg.ravel(), lengths.ravel()) | (
        episodes.columns["own"] == 0
    )
    for name in LOGPS:
        episodes.columns[name][unknown] = np.nan
    return episodes


@dataclasses.dataclass
class Response:
    places: list  # of its own tokens in columns
    columns: dict
    cut: bool

    @property
    def x(self):
        old, said = self.columns["old_logp"], self.columns["sampled_logp"]
        return [float(np.clip(a - b, -20, 20)) for a, b in zip(old, said, strict=True)]

    @property
    def w(self):
        return [np.exp(x) for x in self.x]

    @property
    def product(self):
        return float(np.exp(np.clip(sum(self.x), -20, 20)))


def lists(episodes):
    """The responses that count."""
    found, at = [], 0
    names = (*LOGPS, "advantage")
    for b, row in enumerate(episodes.counts_bg):
        for g, count in enumerate(row):
            own = [n for n in range(at, at + count) if episodes.columns["own"][n]]
            columns = {name: [float(episodes.columns[name][n]) for n in own] for name in names}
            if episodes.valid_bg[b, g]:
                cut = episodes.groups[b][g].finish_reason == "length"
                found.append(Response(own, columns, cut))
            at += count
    return found


def tokens(formula):
    return lambda responses: [[formula(w) for w in r.w] for r in responses]


def whole(formula):
    """One number of a response, at each of its tokens."""
    return lambda responses: [[formula(r) if r.x else 1.0] * len(r.x) for r in responses]


def over_mean(formula, by_response=False):
    def normalised(responses):
        values = formula(responses)
        flat = [v[:1] if by_response else v for v in values]
        mean = np.concatenate(flat).mean()
        return [[x / mean for x in v] for v in values]

    return normalised


def inside(value, low, high):
    return value if low <= value <= high else 0.0


STATISTICS = {
    "k1": lambda x: -x,
    "k2": lambda x: x * x / 2,
    "k3": lambda x: np.exp(x) - 1 - x,
}


def kept(statistic, level, most, least=0.0):
    low, high = -np.inf, most
    if statistic == "k1":
        low, high = np.log(least) if least else -np.inf, np.log(most)
    of = STATISTICS[statistic]
    if level == "token":
        return lambda rs: [[float(low <= of(x) <= high) for x in r.x] for r in rs]
    join = {"seq_sum": np.sum, "seq_mean": np.mean, "seq_max": np.max}[level]
    return whole(lambda r: float(low <= join([of(x) for x in r.x]) <= high))


def off_policy(r, delta, name):
    far = np.mean(np.subtract(r.columns["sampled_logp"], r.columns[name])) > delta
    return 0.0 if far and np.mean(r.columns["advantage"]) < 0 else 1.0


def top_entropy(share, name):
    def formula(responses):
        every = np.concatenate([r.columns[name] for r in responses])
        bound = np.quantile(every, 1 - share)
        return [[float(h >= bound) for h in r.columns[name]] for r in responses]

    return formula


CORRECTIONS = [
    (TokenTruncate(), tokens(lambda w: min(w, 2.0))),
    (TokenTruncate(1.3, 0.6), tokens(lambda w: min(max(w, 0.6), 1.3))),
    (TokenTruncate(batch_normalise=True), over_mean(tokens(lambda w: min(w, 2.0)))),
    (SequenceTruncate(), whole(lambda r: min(r.product, 2.0))),
    (
        SequenceTruncate(3.0, 0.5, True),
        over_mean(whole(lambda r: min(max(r.product, 0.5), 3.0)), by_response=True),
    ),
    (TokenMask(), tokens(lambda w: inside(w, 0.5, 5.0))),
    (TokenMask(1.2, 0.8, True), over_mean(tokens(lambda w: inside(w, 0.8, 1.2)))),
    (SequenceMask(), whole(lambda r: inside(r.product, 0.0, 3.0))),
    (
        SequenceMask(2.0, 0.4, True),
        over_mean(whole(lambda r: inside(r.product, 0.4, 2.0)), by_response=True),
    ),
    (
        SeqMaskTis(1.1, 0.9),
        lambda rs: [[w if 0.9 <= np.exp(np.mean(r.x)) <= 1.1 else 0.0 for w in r.w] for r in rs],
    ),
    (
        SeqMaskTis(1.1, 0.9, token_most=1.2),
        lambda rs: [
            [min(w, 1.2) if 0.9 <= np.exp(np.mean(r.x)) <= 1.1 else 0.0 for w in r.w] for r in rs
        ],
    ),
    (Reject("k1", "token", 1.4, 0.7), kept("k1", "token", 1.4, 0.7)),
    (Reject("k1", "seq_sum", 1.4, 0.7), kept("k1", "seq_sum", 1.4, 0.7)),
    (Reject("k1", "seq_mean", 1.1), kept("k1", "seq_mean", 1.1)),
    *(
        (Reject(statistic, level, 0.15), kept(statistic, level, 0.15))
        for statistic in ("k2", "k3")
        for level in ("token", "seq_sum", "seq_mean", "seq_max")
    ),
    (OffPolicyMask(0.1), whole(lambda r: off_policy(r, 0.1, "now_logp"))),
    (OffPolicyMask(0.2, "old_logp"), whole(lambda r: off_policy(r, 0.2, "old_logp"))),
    (OverlongFilter(), whole(lambda r: float(not r.cut))),
    (TopEntropy(), top_entropy(0.2, "now_entropy")),
    (TopEntropy(0.6, "old_entropy"), top_entropy(0.6, "old_entropy")),
]

rows = pytest.mark.parametrize(
    ("correction", "formula"),
    CORRECTIONS,
    ids=[f"{i} {row[0].name}" for i, row in enumerate(CORRECTIONS)],
)


@rows
def test_a_correction_equals_its_formula(rng, correction, formula):
    """And says what it did; what does not count is multiplied by 1."""
    episodes = step(rng)
    found, responses = correction(episodes), lists(episodes)
    want = np.ones(len(episodes.token_n))
    for r, values in zip(responses, formula(responses), strict=True):
        want[r.places] = values
    np.testing.assert_allclose(found.column, want, rtol=1e-6, atol=1e-9)
    assert found.column.dtype == np.float64
    among = np.concatenate([want[r.places] for r in responses])
    prefix = f"correction/{correction.name}_"
    assert found.metrics == pytest.approx(
        {
            prefix + "mean": among.mean(),
            prefix + "min": among.min(),
            prefix + "max": among.max(),
            prefix + "frac_masked": (among == 0).mean(),
        },
        rel=1e-6,
    )


@rows
def test_a_correction_reads_what_it_names(rng, correction, formula):
    episodes = step(rng)
    episodes.columns = {name: episodes.columns[name] for name in ("own", *correction.needs)}
    correction(episodes)


@rows
def test_steps_that_hold_next_to_nothing(rng, correction, formula):
    """Nothing scored, nothing own, no tokens, a single token: finite, and 1 where unknown."""
    unscored = step(rng)
    unscored.valid_bg[:] = False
    strangers = step(rng)
    strangers.columns["own"] *= 0
    for episodes in (unscored, strangers):
        found = correction(episodes)
        assert (found.column == 1).all() and all(map(np.isnan, found.metrics.values()))

    empty = step(rng, 2, 2)
    empty.columns = {name: column[:0] for name, column in empty.columns.items()}
    empty.token_n, empty.counts_bg = empty.token_n[:0], np.zeros_like(empty.counts_bg)
    assert correction(empty).column.shape == (0,)

    one = step(rng, 1, 1)
    one.valid_bg[:] = True
    one.columns |= {name: np.float32([rng.normal()]) for name in LOGPS} | {"own": np.ones(1)}
    assert len(one.token_n) == 1 and np.isfinite(correction(one).column).all()


@rows
def test_the_same_log_probs_need_no_correction(rng, correction, formula):
    """Where trainer and sampler say the same, every weight is exactly 1 and nothing is rejected."""
    if "sampled_logp" not in correction.needs:
        return
    episodes = step(rng)
    for name in ("old_logp", "now_logp"):
        episodes.columns[name] = episodes.columns["sampled_logp"]
    assert (correction(episodes).column == 1).all()


def test_a_stale_ratio_stays_finite(rng):
    episodes = step(rng)
    for sign in (1, -1):
        episodes.columns["old_logp"] = episodes.columns["sampled_logp"] + np.float32(sign * 500)
        for correction, _ in CORRECTIONS:
            assert np.isfinite(correction(episodes).column).all()
        metrics = mismatch_metrics(episodes)
        assert all(map(np.isfinite, metrics.values())) and metrics["mismatch/max_abs"] > 400


def test_several_are_multiplied(rng):
    """Each is made as if it were alone, so that their order is nothing."""
    episodes = step(rng)
    chosen = [
        TokenTruncate(1.2, batch_normalise=True),
        Reject("k3", "token", 0.1),
        OverlongFilter(),
    ]
    found, turned = correct(chosen, episodes), correct(chosen[::-1], episodes)
    want = np.prod([c(episodes).column for c in chosen], axis=0)
    np.testing.assert_allclose(found.column, want, rtol=1e-12)
    np.testing.assert_allclose(turned.column, want, rtol=1e-12)
    assert len(found.metrics) == 12 and found.metrics == turned.metrics
    assert (correct((), episodes).column == 1).all()


def test_mismatch_metrics(rng):
    episodes = step(rng)
    responses = [r for r in lists(episodes) if r.x]
    x = np.concatenate([r.x for r in responses])
    w = np.exp(x)
    said = [
        np.mean(np.subtract(r.columns["sampled_logp"], r.columns["old_logp"])) for r in responses
    ]
    want = {
        "max_abs": np.abs(x).max(),
        "mean_abs": np.abs(x).mean(),
        "kl": -x.mean(),
        "k3": (w - 1 - x).mean(),
        "perplexity_ratio": np.mean(np.exp(said)),
        "chi2_token": (w**2).mean() - 1,
        "chi2_sequence": np.mean([r.product**2 for r in responses]) - 1,
        "effective_sample_size": 1 / np.mean((w / w.mean()) ** 2),
        "frac_above": np.mean(w > 1.5),
        "frac_below": np.mean(w < 0.7),
    }
    found = mismatch_metrics(episodes, 0.7, 1.5)
    assert found == pytest.approx({f"mismatch/{k}": v for k, v in want.items()}, rel=1e-6)
    episodes.valid_bg[:] = False
    assert all(map(np.isnan, mismatch_metrics(episodes).values()))


def test_the_bound_of_top_entropy_is_of_the_whole_step(rng):
    """Not of a response: one with low entropies may have no token in it."""
    episodes = given([SimpleNamespace(prefix="")], [[np.ones(4), np.ones(6)]])
    episodes.columns["now_entropy"] = np.float32([0, 0, 0, 0, 1, 2, 3, 4, 5, 6])
    assert TopEntropy(0.2)(episodes).column.tolist() == [0.0] * 8 + [1.0] * 2


def test_every_correction_is_in_the_list():
    classes = [cls for _, cls in inspect.getmembers(corrections, inspect.isclass)]
    own = {cls for cls in classes if issubclass(cls, Correction) and cls is not Correction}
    assert {type(row[0]) for row in CORRECTIONS} == own


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TokenTruncate(0.5, 0.5), r"TokenTruncate\.most must be over least \(0\.5\)"),
        (lambda: TokenMask(least=-1.0), r"TokenMask\.least must be at least 0, got -1"),
        (lambda: SeqMaskTis(token_most=-1.0), r"SeqMaskTis\.token_most must be at least 0"),
        (lambda: Reject("k4", "token", 1.0), r"Reject\.statistic must be 'k1' \| 'k2' \| 'k3'"),
        (lambda: Reject("k1", "seq_max", 1.0), r"Reject\.level of 'k1'"),
        (lambda: Reject("k3", "token", 1.0, 0.5), r"Reject\.least must be 0 for 'k3'"),
        (lambda: OffPolicyMask(-0.5), r"OffPolicyMask\.delta must be at least 0"),
        (lambda: TopEntropy(0.0), r"TopEntropy\.quantile must be in \(0, 1\], got 0"),
        (lambda: TopEntropy(entropy="entropy"), r"TopEntropy\.entropy must be 'now_entropy'"),
    ],
)
def test_what_options_do_not_take(make, message):
    with pytest.raises(ValueError, match=message):
        make()
