"""Losses and estimators of a user's own, without a change to the package: what the house promises.

Each probe was a case that an earlier design could not carry.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import Checkpoint, given, learner, mixed_prompts, one_stage

import jaxr1
from jaxr1.inputs.sizes import Buckets
from jaxr1.nn.params import flatten
from jaxr1.rl import Credit, Estimator, Mean, Ppo, Term, Weighting, group_advantage, token_weights
from jaxr1.rl.step import accumulate
from jaxr1.rl.terms import Objective
from jaxr1.rl.update import gradients, score
from jaxr1.rl.work import Work

SIZES = Buckets((96,), (16,), (64,))
GRAD = 1e-6  # times the global norm (invariant 4)


@dataclasses.dataclass
class World:
    """Two random models with one tokenizer and different towers, and one batch of responses."""

    qwen: Checkpoint
    internvl: Checkpoint
    prompts: list
    tokens: list[list[np.ndarray]]

    @property
    def counts(self) -> np.ndarray:
        return np.array([[len(ids) for ids in group] for group in self.tokens])

    def encoded(self, checkpoint: Checkpoint) -> list:
        return [checkpoint.processor.encode(prompt) for prompt in self.prompts]

    def episodes(self, **columns):
        """The batch as the Qwen model sees it; a column is numbers [B, G]."""
        return given(self.encoded(self.qwen), self.tokens, **columns)


@pytest.fixture(scope="module")
def world(tmp_path_factory, module_seed):
    folder = tmp_path_factory.mktemp("models")
    qwen = Checkpoint.make(folder / "qwen", module_seed, "qwen2_vl", layers=2)
    internvl = Checkpoint.make(folder / "internvl", module_seed, "internvl", layers=2)
    rng = np.random.default_rng(module_seed)
    lengths = rng.integers(1, 12, (3, 4))
    tokens = [[rng.integers(20, 500, n).astype(np.int32) for n in row] for row in lengths]
    return World(qwen, internvl, mixed_prompts(rng, 3), tokens)


def policy_of(checkpoint, *terms, **options):
    return learner(
        checkpoint.model, checkpoint.processor, terms, SIZES, **({"on_policy": False} | options)
    )


def sums_of(policy, checkpoint, episodes, **options):
    work = Work()
    return gradients(policy, policy.init(checkpoint.params), episodes, work, **options), work


def assert_equal(a, b):
    """Gradients equal within `GRAD` x the global norm."""
    norm = float(optax.tree.norm(a.grads))
    assert norm > 1e-4
    for x, y in zip(flatten(a.grads).values(), flatten(b.grads).values(), strict=True):
        assert float(jnp.abs(x - y).max()) <= GRAD * norm
    np.testing.assert_allclose(a.loss, b.loss, rtol=1e-5)


# --- a loss of pairs ---------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class PairLoss(Term):
    """-log sigmoid(beta * (log p(chosen) - log p(rejected))), the same at all tokens of a pair."""

    beta: float = 0.1

    needs: ClassVar[tuple[str, ...]] = ("pair", "sign")
    weight: ClassVar[str] = "pair_weight"

    def __call__(self, tokens):
        margin = tokens.sum_by(tokens.pair.astype(jnp.int32), tokens.sign * tokens.logp)
        return -jax.nn.log_sigmoid(self.beta * margin), {"margin": Mean.of(margin, tokens.own)}


def test_a_pair_loss_is_the_same_strip_by_strip(world):
    """What a term sums over two responses is not cut where strips are differentiated one by one."""
    counts = world.counts
    pair = np.broadcast_to([1, 1, 2, 2], counts.shape)
    sign = np.broadcast_to([1.0, -1.0, 1.0, -1.0], counts.shape)
    # The mean over pairs; a pair's number stands at each of its tokens.
    size = np.repeat(counts.reshape(3, 2, 2).sum(-1), 2, axis=1)
    episodes = world.episodes(pair=pair, sign=sign, pair_weight=1 / size / 6)

    whole, work = sums_of(policy_of(world.qwen, PairLoss()), world.qwen, episodes)
    one, _ = sums_of(policy_of(world.qwen, PairLoss(), strips_at_once=1), world.qwen, episodes)

    assert len(work.padding) == 1
    assert_equal(whole, one)
    logp = score(
        policy_of(world.qwen, PairLoss()), world.qwen.params, episodes, episodes.valid_bg, Work()
    )
    margin = (episodes.sums(logp["logp"]) * sign).reshape(6, 2).sum(-1)
    np.testing.assert_allclose(whole.loss, np.log1p(np.exp(-0.1 * margin)).mean(), rtol=1e-5)


def test_a_term_says_itself_that_strips_may_be_taken_one_by_one():
    """Where its text is another than its parent's, what the parent said of itself does not hold."""

    class Same(Ppo):
        pass

    class Other(Ppo):
        def __call__(self, tokens):
            return PairLoss()(tokens)

    class Alike(Ppo):
        whole_rows: ClassVar[bool] = False

        def __call__(self, tokens):
            return super().__call__(tokens)

    assert [term().whole_rows for term in (Ppo, Same, Other, Alike)] == [False, False, True, False]
    assert PairLoss().whole_rows
    assert Objective((Ppo(), PairLoss())).whole_rows and not Objective((Ppo(),)).whole_rows


# --- two denominators --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Likelihood(Term):
    """Cross-entropy with a weight column of its own."""

    weight: ClassVar[str] = "per_response"
    needs_zero_advantage: ClassVar[bool] = True

    def __call__(self, tokens):
        return -tokens.logp, {"nll": Mean.of(-tokens.logp, tokens.own)}


def test_terms_with_different_denominators_add_up_over_micro_batches(world, rng):
    """One term averages over tokens, the other over responses, of the whole optimiser step."""
    advantage = rng.normal(size=world.counts.shape)
    episodes = world.episodes(advantage=advantage, old_logp=np.full_like(advantage, -6.0))
    averaged = (
        ("weight", Weighting("token-mean")),
        ("per_response", Weighting("seq-mean-token-mean")),
    )

    def sums(budget):
        policy = policy_of(world.qwen, Ppo(), Likelihood(), budget=budget)
        policy = dataclasses.replace(policy, weightings=averaged)
        weighed = dataclasses.replace(episodes, columns=episodes.columns | policy.weights(episodes))
        return sums_of(policy, world.qwen, weighed)

    whole, one = sums(10**6)
    parts, three = sums(96 + 4 * 16)  # a prompt with its four strips
    assert (len(one.padding), len(three.padding)) == (1, 3)
    assert_equal(whole, parts)

    # The same from each term alone, with the denominators written out.
    both = 0.0
    for term, name, aggregation in (
        (Ppo(), "weight", "token-mean"),
        (Likelihood(), "per_response", "seq-mean-token-mean"),
    ):
        alone = dict(episodes.columns)
        alone[name] = episodes.spread(token_weights(world.counts, aggregation))
        found, _ = sums_of(
            policy_of(world.qwen, term), world.qwen, dataclasses.replace(episodes, columns=alone)
        )
        both += float(found.loss)
    np.testing.assert_allclose(whole.loss, both, rtol=1e-5)


# --- an estimator with two columns -------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class TwoColumns(Estimator):
    """The usual advantage, and how far each prompt is from being solved."""

    def __call__(self, episodes):
        advantage_bg = group_advantage(episodes.reward_bg, episodes.valid_bg)
        missing_bg = np.broadcast_to(
            1 - episodes.reward_bg.mean(-1, keepdims=True), advantage_bg.shape
        )
        columns = {"advantage": advantage_bg, "missing": missing_bg}
        return Credit(
            {name: episodes.spread(values) for name, values in columns.items()},
            {"rollout/missing": float(missing_bg.mean())},
        )


@dataclasses.dataclass(frozen=True)
class Focused(Term):
    """A policy gradient on the advantage times the second column."""

    needs: ClassVar[tuple[str, ...]] = ("advantage", "missing")

    def __call__(self, tokens):
        scale = 1 + tokens.missing
        loss = -jnp.exp(tokens.logp - jax.lax.stop_gradient(tokens.logp)) * tokens.advantage * scale
        return loss, {"scale": Mean.of(scale, tokens.own)}


def test_an_estimator_gives_two_columns(tmp_path):
    """In a real run: the second column reaches the term, and both leave their metrics."""
    config = one_stage(tmp_path / "run", advantage=TwoColumns(), surrogate=Focused(), steps=1)
    result = jaxr1.train(config)
    (line,) = (line for line in result.metrics if "policy/loss" in line)
    assert line["policy/grad_norm"] > 0
    # Responses of advantage 0 are not computed, so the means may differ where a group is even.
    assert 0 <= line["rollout/missing"] <= 1
    assert 1 <= line["policy/scale"] <= 2
    np.testing.assert_allclose(line["policy/scale"], 1 + line["rollout/missing"], atol=0.5)


# --- a coefficient that moves ------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Annealed(Term):
    """The entropy bonus with a coefficient that is set anew for each step."""

    reads: ClassVar[tuple[str, ...]] = ("entropy",)

    def __call__(self, tokens):
        return -tokens.scalars["bonus"] * tokens.entropy, {}


def test_a_coefficient_moves_without_a_new_program(world):
    episodes = world.episodes(weight=token_weights(world.counts, "token-mean"))
    policy = policy_of(world.qwen, Annealed())
    before, losses = accumulate._cache_size(), []
    for i in range(10):
        found, _ = sums_of(policy, world.qwen, episodes, scalars={"bonus": 0.1 * (i + 1)})
        losses.append(float(found.loss))
    assert accumulate._cache_size() == before + 1
    np.testing.assert_allclose(losses, losses[0] * np.arange(1, 11), rtol=1e-5)


# --- a second learner --------------------------------------------------------------------------


def test_a_second_learner_has_its_own_tower(world):
    """Each learner sees the prompts as its own processor makes them; responses are shared."""
    weight = token_weights(world.counts, "token-mean")
    episodes = world.episodes(weight=weight)
    episodes.views["critic"] = world.encoded(world.internvl)
    other = given(world.encoded(world.internvl), world.tokens, weight=weight)

    first = policy_of(world.qwen, Likelihood())
    second = policy_of(world.internvl, Likelihood(), name="critic")
    episodes.columns["per_response"] = other.columns["per_response"] = episodes.columns["weight"]
    policy, _ = sums_of(first, world.qwen, episodes)
    critic, _ = sums_of(second, world.internvl, episodes)
    alone, _ = sums_of(policy_of(world.internvl, Likelihood()), world.internvl, other)

    assert set(critic.metrics) == {"critic/nll"} and set(policy.metrics) == {"policy/nll"}
    assert_equal(critic, alone)
    assert policy.grads.keys() == critic.grads.keys() == {"vision", "merger", "decoder"}
    shapes = lambda sums: {path: x.shape for path, x in flatten(sums.grads).items()}
    assert shapes(policy) != shapes(critic)
