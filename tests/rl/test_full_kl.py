"""KL over the whole vocabulary, from the reference's kept states, in the compiled programs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import given, learner, mixed_prompts

import jaxr1
from jaxr1.data import Arithmetic
from jaxr1.inputs.sizes import Buckets
from jaxr1.models import vlm
from jaxr1.nn.params import flatten
from jaxr1.parallel import make_mesh
from jaxr1.rl import Kl
from jaxr1.rl.update import gradients, score
from jaxr1.rl.work import Work
from jaxr1.run import Rl

SIZES = Buckets((128,), (16,), (128,))


@dataclasses.dataclass
class World:
    policy: object
    params: dict
    other: dict  # the reference: another draw of the same model
    prompts: list
    tokens: list

    def gradient(self, params=None, **options):
        params = params or self.params
        policy = dataclasses.replace(self.policy, **options)
        episodes = given(self.prompts, self.tokens)
        asked = (episodes, episodes.valid_bg, Work())
        episodes.columns["ref_hidden"] = score(policy, self.other, *asked, reads=("hidden",))[
            "hidden"
        ]
        episodes.columns |= policy.weights(episodes)
        head = vlm.head(self.other)
        return episodes, gradients(policy, policy.init(params), episodes, Work(), ref_head=head)


@pytest.fixture(scope="module")
def world(module_seed):
    rng = np.random.default_rng(module_seed)
    model, params = jaxr1.load_model("tiny")
    processor = jaxr1.load_processor("tiny")
    nudge = lambda x: x + 0.02 * jnp.asarray(rng.normal(size=x.shape), jnp.float32)
    other = jax.tree.map(nudge, params)
    prompts = [processor.encode(p) for p in mixed_prompts(rng, 3)]
    lengths = rng.integers(1, 9, (3, 2))
    tokens = [[rng.integers(20, 500, n).astype(np.int32) for n in row] for row in lengths]
    policy = learner(model, processor, (Kl(1.0, "full"),), SIZES, on_policy=False)
    return World(policy, params, other, prompts, tokens)


def hidden_of(world, params):
    episodes = given(world.prompts, world.tokens)
    every = episodes.valid_bg
    return score(world.policy, params, episodes, every, Work(), reads=("hidden",))["hidden"]


def test_it_is_the_kl_of_both_distributions(world):
    """Mean over tokens, in float64 from the states that `score` gives and both output matrices."""
    _, sums = world.gradient()
    log_p, log_q = [], []
    for params, out in ((world.params, log_p), (world.other, log_q)):
        states = hidden_of(world, params)
        assert states.dtype == jnp.bfloat16
        logit = states.astype(np.float64) @ np.asarray(vlm.head(params), np.float64).T
        logit[:, list(world.policy.objective.forbidden)] = -np.inf
        out.append(logit - np.logaddexp.reduce(logit, -1, keepdims=True))
    [log_p], [log_q] = log_p, log_q
    allowed = np.isfinite(log_p[0])
    log_p, log_q = log_p[:, allowed], log_q[:, allowed]
    kl = (np.exp(log_p) * (log_p - log_q)).sum(-1)
    # The policy's own states are not rounded there: bfloat16 has 8 bits.
    assert float(sums.loss) == pytest.approx(kl.mean(), rel=2e-2)
    assert float(sums.metrics["policy/kl"].result()) == pytest.approx(float(sums.loss), rel=1e-5)


def test_it_is_nothing_for_the_same_model_but_for_rounding(world):
    same = dataclasses.replace(world, other=world.params)
    _, sums = same.gradient()
    _, moved = world.gradient()
    assert 0 <= float(sums.loss) < 1e-2 * float(moved.loss)


@pytest.mark.parametrize("how", [{"strips_at_once": 1}, {"micro_batch_tokens": 160}, {}])
def test_its_gradient_is_the_same_however_it_is_computed(world, how):
    """Strip by strip, in micro-batches, and on four devices that share the vocabulary."""
    _, whole = world.gradient()
    params = None
    if not how:
        mesh = make_mesh((1, 2, 2), jax.devices()[:4])
        _, params = jaxr1.load_model("tiny", mesh=mesh)
        place = lambda x, like: jax.device_put(np.asarray(x), like.sharding)
        world = dataclasses.replace(world, other=jax.tree.map(place, world.other, params))
    _, parts = world.gradient(params, **how)
    norm = float(optax.tree.norm(whole.grads))
    assert norm > 1e-4
    for x, y in zip(flatten(whole.grads).values(), flatten(parts.grads).values(), strict=True):
        assert float(np.abs(np.asarray(x) - np.asarray(y)).max()) <= 1e-6 * norm


def test_how_much_memory_it_takes_is_said_before(world):
    stage = Rl(Arithmetic(count=8), kl=Kl(0.1, "full"), max_response_tokens=4096)
    tokens = stage.prompts_per_step * stage.group_size * 4096
    gib = 2 * tokens * world.policy.model.text.width / 2**30
    [line] = [x for x in stage.warnings(world.policy.model) if "full" in x]
    assert f"up to {gib:.3g} GiB in a step" in line
