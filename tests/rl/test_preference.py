"""Losses of pairs against float64 numpy: at each token, and over a whole batch in micro-batches."""

from types import SimpleNamespace

import formulas as f
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pairs import PAIR_LOSSES, PAIR_TERMS, Sums, draw_pairs, log_sigmoid, pairs, smooth
from reference import given

from jaxr1.rl.controllers import BcoShift
from jaxr1.rl.objectives import (
    MPO,
    Aot,
    AotUnpaired,
    BcoPair,
    ChosenNll,
    DiscoPop,
    Dpo,
    ExoPair,
    RobustDpo,
)
from jaxr1.rl.terms import Objective, Term, Tokens
from jaxr1.rl.weights import Weighting, chosen_weights, pair_weights

named = lambda x: str(x) if isinstance(x, Term) else ""
conformance = pytest.mark.parametrize(("term", "formula"), PAIR_TERMS, ids=named)


@conformance
def test_a_term_equals_its_formula(rng, term, formula):
    n = draw_pairs(rng)
    counted = (n.own & (n.sign > 0)).sum() if isinstance(term, ChosenNll) else pairs(n)
    f.check_term(rng, n, term, formula, counted)


@conformance
def test_a_term_stays_finite_where_policies_are_far_apart(rng, term, formula):
    f.check_far_apart(rng, draw_pairs(rng), term, formula)


@conformance
def test_a_term_of_no_tokens_is_zero(rng, term, formula):
    f.check_no_tokens(draw_pairs(rng), term)


# ---------------------------------------------------------------- whole batches


class Batch:
    """Pairs of random prompts: responses of random lengths, some of none, some in no pair, and
    tokens that are not the policy's.
    """

    def __init__(self, rng, prompts=6, group=5, longest=6):
        counts = rng.integers(0, longest, (prompts, group))
        counts[0, :2] = [0, 3]  # a pair of which one has no token
        counts[1, :2] = 0  # and one of which none has
        self.pair = np.stack([rng.permutation([1, 1, 2, 2, 0]) for _ in range(prompts)])
        self.pair[:2] = [1, 1, 2, 2, 0]
        self.sign = np.zeros((prompts, group), int)
        for row in range(prompts):
            for number in (1, 2):
                self.sign[row, self.pair[row] == number] = rng.permutation([1, -1])
        responses = [[np.ones(n, np.int32) for n in row] for row in counts]
        self.episodes = given([SimpleNamespace(prefix="")] * prompts, responses)
        size = len(self.episodes.token_n)
        self.logp = rng.normal(-2, 1, size)
        self.own = rng.random(size) < 0.8
        self.columns = self.episodes.columns
        self.columns |= {
            "own": self.own.astype(np.float32),
            "pair": self.episodes.spread(self.pair),
            "sign": self.episodes.spread(self.sign),
            "ref_logp": (self.logp + rng.normal(size=size)).astype(np.float32),
            "now_logp": self.logp.astype(np.float32),
        }
        self.counted = self.episodes.sums(self.own).astype(int)
        own = self.columns["own"]
        self.columns["pair_weight"] = (
            self.episodes.spread(pair_weights(self.counted, self.pair)) * own
        )
        self.columns["chosen_weight"] = (
            self.episodes.spread(
                chosen_weights(self.counted, self.sign, Weighting("seq-mean-token-mean"))
            )
            * own
        )

    def sums(self, logp):
        """Of pairs with a token: those of the policy, and those of the reference."""
        by = [self.episodes.sums(x * self.own) for x in (logp, self.columns["ref_logp"])]
        found = []
        for row in range(len(self.pair)):
            for number in (1, 2):
                c, r = (
                    np.flatnonzero((self.pair[row] == number) & (self.sign[row] == sign))[0]
                    for sign in (1, -1)
                )
                counts = self.counted[row, [c, r]]
                if counts.any():
                    found.append([x[row, i] for x in by for i in (c, r)] + counts.tolist())
        c, r, ref_c, ref_r, c_count, r_count = np.transpose(found)
        return Sums(c, r, c_count, r_count), Sums(ref_c, ref_r, c_count, r_count)

    def rows(self, column):
        """[prompts, group, longest]: a strip for each response."""
        counts = self.episodes.counts_bg
        out = np.zeros((*counts.shape, max(1, counts.max())), np.float32)
        ends = np.cumsum(counts.ravel())
        for i, (count, end) in enumerate(zip(counts.ravel(), ends, strict=True)):
            out.reshape(-1, out.shape[-1])[i, :count] = column[end - count : end]
        return out

    def learn(self, terms, scalars=None, at_once=2):
        """Loss and gradient of all prompts, `at_once` to a micro-batch."""
        objective = Objective(terms, on_policy=False)
        for term in terms:
            self.columns |= term.prepare(self.episodes, lambda: np.zeros(len(self.own)))
        columns = {name: self.rows(self.columns[name]) for name in objective.columns}
        segment, logp = self.rows(np.ones(len(self.own))).astype(np.int32), self.rows(self.logp)
        scalars = {n: jnp.float32(x) for n, x in (scalars or objective.scalars).items()}
        loss, grads = 0.0, []
        for first in range(0, len(logp), at_once):
            part = slice(first, first + at_once)
            some = {name: jnp.asarray(x[part]) for name, x in columns.items()}
            others = (some, jnp.asarray(segment[part]), scalars)
            of = lambda x, others: objective({"logp": x}, *others)[0]
            value, grad = jax.value_and_grad(of)(jnp.asarray(logp[part]), others)
            loss, grads = loss + float(value), [*grads, np.asarray(grad)]
        return loss, np.concatenate(grads)[segment > 0]

    def check(self, rng, terms, formula, sizes=(1, 4), **kwargs):
        """Against formula(log-probs float64[N]), in micro-batches of so many prompts."""
        for at_once in sizes:
            loss, grad = self.learn(terms, at_once=at_once, **kwargs)
            assert loss == pytest.approx(formula(self.logp), rel=1e-4, abs=1e-5)
            for at in rng.integers(0, len(self.logp), 15):
                ends = []
                for by in (1e-6, -1e-6):
                    moved = self.logp.copy()
                    moved[at] += by
                    ends.append(formula(moved))
                assert grad[at] == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-3, abs=1e-5)


def differences(batch, logp):
    own, ref = batch.sums(logp)
    return Sums(own.c - ref.c, own.r - ref.r, own.c_count, own.r_count)


@pytest.mark.parametrize(("term", "loss"), PAIR_LOSSES, ids=named)
def test_the_loss_of_a_batch_is_the_mean_over_its_pairs(rng, term, loss):
    """However it is cut into micro-batches."""
    batch = Batch(rng)
    batch.check(rng, (term,), lambda logp: loss(differences(batch, logp)).mean(), (2,))


def test_aot_compares_what_has_the_same_rank_in_the_whole_batch(rng):
    batch = Batch(rng)

    def formula(logp):
        own, ref = batch.sums(logp)
        d = np.sort(own.c - own.r) - np.sort(ref.c - ref.r)
        return smooth(0.5 * d, 0.1).mean()

    batch.check(rng, (Aot(beta=0.5, smoothing=0.1),), formula)


def test_unpaired_aot_has_a_gradient_for_both_members(rng):
    """A chosen response and a rejected one of the same rank are of different prompts as a rule."""
    batch = Batch(rng)

    def formula(logp):
        p = differences(batch, logp)
        return smooth(0.5 * (np.sort(p.c) - np.sort(p.r)), 0.2).mean()

    batch.check(rng, (AotUnpaired(beta=0.5, smoothing=0.2),), formula)


def test_mpo_is_the_sum_of_its_losses(rng):
    batch = Batch(rng)

    def formula(logp):
        p = differences(batch, logp)
        bco = -log_sigmoid(0.1 * p.c - 0.3) - log_sigmoid(0.3 - 0.1 * p.r)
        chosen = (batch.sign > 0) & (batch.counted > 0)
        nll = -(batch.episodes.sums(logp * batch.own) / np.maximum(batch.counted, 1))[chosen]
        return (-0.8 * log_sigmoid(0.1 * (p.c - p.r)) + 0.2 * bco).mean() + nll.mean()

    batch.check(rng, MPO, formula, scalars={"bco_shift": 0.3})


def test_what_a_batch_without_pairs_prepares(rng):
    batch = Batch(rng)
    batch.columns["pair"][:] = 0
    for term in (Aot(), AotUnpaired()):
        made = term.prepare(batch.episodes, lambda: np.zeros(len(batch.own)))
        assert set(made) <= set(term.needs) and not any(x.any() for x in made.values())


def test_metrics_are_means_over_pairs(rng):
    """A long pair counts as much as a short one."""
    batch = Batch(rng)
    columns = {name: jnp.asarray(batch.rows(batch.columns[name])) for name in (*Dpo().needs, "own")}
    segment = jnp.asarray(batch.rows(np.ones(len(batch.own))).astype(np.int32))
    tokens = Tokens({"logp": jnp.asarray(batch.rows(batch.logp))}, columns, segment, {})
    found = {name: float(x.result()) for name, x in Dpo(beta=0.5)(tokens)[1].items()}
    p = differences(batch, batch.logp)
    assert found == pytest.approx(
        {
            "accuracy": (p.c > p.r).mean(),
            "margin": 0.5 * (p.c - p.r).mean(),
            "chosen_reward": 0.5 * p.c.mean(),
            "rejected_reward": 0.5 * p.r.mean(),
        },
        rel=1e-4,
        abs=1e-5,
    )


# ---------------------------------------------------------------- weights, scalars, options


def test_weights_of_pairs_and_of_chosen_responses():
    counts, pair = [[3, 1, 4, 0], [0, 0, 2, 5]], [[1, 2, 1, 2], [1, 1, 2, 0]]
    want = [[1 / 21, 1 / 3, 1 / 21, 1 / 3], [0, 0, 1 / 6, 0]]
    np.testing.assert_allclose(pair_weights(counts, pair), want)
    assert not pair_weights([[3, 2]], [[0, 0]]).any()
    sign = [[1, -1, -1, 1], [1, -1, 1, 0]]
    by_token = chosen_weights(counts, sign, Weighting("token-mean"))
    np.testing.assert_allclose(by_token, [[1 / 5, 0, 0, 0], [0, 0, 1 / 5, 0]])
    by_response = chosen_weights(counts, sign, Weighting("seq-mean-token-mean"))
    np.testing.assert_allclose(by_response, [[1 / 6, 0, 0, 0], [0, 0, 1 / 4, 0]])


def test_the_shift_of_bco_is_a_running_mean_of_rewards():
    metrics = {"policy/bco_chosen_reward": 0.7, "policy/bco_rejected_reward": -0.3}
    assert BcoPair().scalars == {"bco_shift": 0.0}
    assert BcoShift(0.9)({"bco_shift": 1.0}, metrics) == {"bco_shift": pytest.approx(0.92)}
    for control, seen in ((BcoShift(), metrics), (BcoShift(0.9), {})):
        assert control({"bco_shift": 0.5}, seen) == {"bco_shift": 0.5}
    with pytest.raises(ValueError, match=r"BcoShift\.momentum must be under 1, got 1"):
        BcoShift(1.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Dpo(beta=0.0), r"Dpo\.beta must be over 0, got 0"),
        (lambda: Dpo(coef=-1.0), r"Dpo\.coef must be at least 0, got -1"),
        (lambda: RobustDpo(smoothing=0.5), r"smoothing must be at least 0 and under 0.5, got 0.5"),
        (lambda: ExoPair(smoothing=0.0), r"ExoPair\.smoothing must be over 0, got 0"),
        (lambda: Aot(smoothing=-0.1), r"Aot\.smoothing must be at least 0 and under 0.5, got -0.1"),
        (lambda: DiscoPop(tau=1.5), r"DiscoPop\.tau must be over 0 and at most 1, got 1.5"),
    ],
)
def test_options_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
