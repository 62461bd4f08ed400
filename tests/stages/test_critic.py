"""The critic of PPO: what its values are read from, what it learns, what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import Checkpoint, given, learner, mixed_prompts

import jaxr1
from jaxr1.data import Arithmetic
from jaxr1.inputs.batch import make_batch
from jaxr1.inputs.sizes import Buckets
from jaxr1.models import vlm
from jaxr1.nn.lora import ADAPTERS, Lora
from jaxr1.nn.params import flatten
from jaxr1.parallel import make_mesh
from jaxr1.rl import MPO, Dpo, Gae, Kl, KlReward, Optimizer, Ppo, Reference, TokenTruncate
from jaxr1.rl.update import gradients, score, update
from jaxr1.rl.work import Work
from jaxr1.run import Critic, Preference, Rl
from jaxr1.stages.critic import check_critic, critic_learner, critic_params

SIZES = Buckets((128,), (16,), (128,))
GRAD = 1e-6  # times the global norm (invariant 4)


@dataclasses.dataclass
class World:
    """A random policy, prompts with pictures, and responses of unequal lengths to them."""

    policy: Checkpoint
    other: Checkpoint  # the same sizes and tokenizer, other weights
    prompts: list
    tokens: list

    def learner(self, terms=(Ppo(),), **options):
        model, processor = self.policy.model, self.policy.processor
        return learner(model, processor, terms, SIZES, on_policy=False, **options)

    def episodes(self, rng, order_b=None, order_g=None):
        """The batch, perhaps in another order, with columns that go with each response."""
        order_b = range(len(self.prompts)) if order_b is None else order_b
        order_g = range(len(self.tokens[0])) if order_g is None else order_g
        tokens = [[self.tokens[b][g] for g in order_g] for b in order_b]
        columns = {}
        for name in ("return", "old_value"):
            numbers = self.numbers(name)
            columns[name] = [[numbers[b][g] for g in order_g] for b in order_b]
        episodes = given([self.prompts[b] for b in order_b], tokens, **columns)
        return episodes

    def numbers(self, name):
        drawn = np.random.default_rng([len(name), len(self.tokens[0][0])])
        return [[drawn.normal(size=len(ids)).tolist() for ids in group] for group in self.tokens]


@pytest.fixture(scope="module")
def world(tmp_path_factory, module_seed):
    folder = tmp_path_factory.mktemp("models")
    policy = Checkpoint.make(folder / "policy", module_seed, "qwen2_vl", layers=2)
    other = Checkpoint.make(folder / "other", module_seed + 1, "qwen2_vl", layers=2)
    rng = np.random.default_rng(module_seed)
    lengths = rng.integers(1, 12, (4, 3))
    tokens = [[rng.integers(20, 500, n).astype(np.int32) for n in row] for row in lengths]
    prompts = [policy.processor.encode(p) for p in mixed_prompts(rng, 4)]
    return World(policy, other, prompts, tokens)


def made(world, options=Critic(), seed=3, params=None, **changes):
    """(critic, its parameters)."""
    critic = critic_learner(options, world.learner(**changes), updates=10)
    params = world.policy.params if params is None else params
    return critic, critic_params(options, critic, params, seed)


def values(critic, params, episodes):
    return score(critic, params, episodes, episodes.valid_bg, Work(), reads=("value",))["value"]


# --- values -------------------------------------------------------------------------------------
def test_a_value_is_of_the_state_that_predicts_its_token(rng, world):
    """The first one's is the prompt's last state: as a plain pass over all of the text says."""
    critic, params = made(world)
    episodes = world.episodes(rng)
    found = iter(values(critic, params, episodes))
    kernel = np.asarray(params["value"]["kernel"], np.float64)
    for prompt, group in zip(world.prompts, world.tokens, strict=True):
        for ids in group:
            n = len(ids)
            place = prompt.next_position + np.arange(n)
            whole = dataclasses.replace(
                prompt,
                token_ids=np.concatenate([prompt.token_ids, ids]),
                media_index=np.concatenate([prompt.media_index, np.full(n, -1)]),
                position=np.concatenate([prompt.position, np.repeat(place[:, None], 3, 1)]),
            )
            batch = make_batch([whole], Buckets((160,), (16,), (128,)), critic.model.media, rows=1)
            hidden, _, _ = vlm.prefill_hidden(critic.model, vlm.cast(critic.model, params), batch)
            first = len(prompt) - 1
            want = np.asarray(hidden[0, first : first + n], np.float64) @ kernel
            np.testing.assert_allclose([next(found) for _ in range(n)], want, atol=1e-5)


def test_a_value_head_is_drawn_and_takes_the_place_of_the_output_matrix(world):
    critic, params = made(world)
    width = critic.model.text.width
    kernel = np.asarray(params["value"]["kernel"])
    assert kernel.shape == (width,) and "head" not in params["decoder"]
    assert 0.5 / (width + 1) < kernel.std() < 2 / (width + 1)
    again, other = made(world)[1], made(world, seed=4)[1]
    assert (kernel == np.asarray(again["value"]["kernel"])).all()
    assert (kernel != np.asarray(other["value"]["kernel"])).any()


def test_a_critic_of_another_directory_sees_with_its_own_tower(rng, world):
    """Both towers are frozen: features are cached for each learner, and give what pixels give."""
    options = Critic(model=str(world.other.folder), freeze=("vision", "merger"))
    critic, params = made(world, options)
    policy = world.learner(freeze=("vision", "merger"))
    states = {"policy": policy.init(world.policy.params), "critic": critic.init(params)}
    episodes = world.episodes(rng)
    by_pixels = values(critic, params, episodes)
    for name, one in (("policy", policy), ("critic", critic)):
        episodes.views[name] = one.see(states[name], world.prompts, Work())
        held = {prompt.held for prompt in episodes.views[name] if prompt.grids}
        assert held == {"merger"}
    np.testing.assert_allclose(values(critic, params, episodes), by_pixels, atol=1e-5)
    episodes.views["critic"] = episodes.views["policy"]
    assert np.abs(values(critic, params, episodes) - by_pixels).max() > 1e-3


# --- gradients ----------------------------------------------------------------------------------
def gradient(critic, params, episodes):
    episodes.columns |= critic.weights(episodes)
    return gradients(critic, critic.init(params), episodes, Work())


def assert_equal(a, b):
    norm = float(optax.tree.norm(a.grads))
    assert norm > 1e-4
    pairs = zip(flatten(a.grads).values(), flatten(b.grads).values(), strict=True)
    worst = max(float(jnp.abs(x - np.asarray(y)).max()) for x, y in pairs)
    assert worst <= GRAD * norm, worst / norm
    np.testing.assert_allclose(a.loss, b.loss, rtol=1e-5)


@pytest.mark.parametrize("how", ["order", "micro-batches", "strips", "devices"])
def test_a_critics_gradient_is_the_same_however_it_is_computed(rng, world, how):
    critic, params = made(world)
    whole = gradient(critic, params, world.episodes(rng))
    episodes = world.episodes(rng)
    if how == "order":
        episodes = world.episodes(rng, rng.permutation(4), rng.permutation(3))
    elif how == "micro-batches":
        critic = dataclasses.replace(critic, micro_batch_tokens=160)
    elif how == "strips":
        critic = dataclasses.replace(critic, strips_at_once=1)
    else:
        mesh = make_mesh((2, 2, 1), jax.devices()[:4])
        _, placed = jaxr1.load_model(world.policy.folder, mesh=mesh)
        critic, params = made(world, params=placed)
    assert_equal(whole, gradient(critic, params, episodes))


def test_adapters_of_a_critic_learn_with_its_value_head(rng, world):
    options = Critic(lora=Lora(rank=2), optimizer=Optimizer(learning_rate=1e-2))
    critic, params = made(world, options)
    state = critic.init(params)
    assert set(state.trainable) == {ADAPTERS, "value"}
    before = {path: np.array(x) for path, x in flatten(state.params).items()}
    episodes = world.episodes(rng)
    episodes.columns |= critic.weights(episodes)
    state, _ = update(critic, state, episodes, Work())
    for path, x in flatten(state.params).items():
        moved = (before[path] != np.asarray(x)).any()
        assert moved == path.startswith(("value", f"{ADAPTERS}/")) or path.endswith("/a"), path


# --- what is refused ----------------------------------------------------------------------------
D = Arithmetic(count=8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rl(D, advantage=Gae()), "advantage Gae needs a critic"),
        (lambda: Rl(D, critic=Critic()), "critic is not read by Advantage: take Gae"),
        (
            lambda: Rl(D, steps=5, advantage=Gae(), critic=Critic(warmup=5)),
            r"critic\.warmup leaves no step of 5 for the policy",
        ),
        (lambda: Critic(freeze=("value",)), "a value head that stays as it is drawn"),
        (
            lambda: Rl(D, prompts_per_step=1, group_size=1, advantage=Gae(), critic=Critic()),
            r"advantage\.whiten needs more than one response in a step",
        ),
        (lambda: KlReward(target=0.1), r"KlReward\.target .* needs a coef over 0 .* reference"),
        (lambda: Kl(target=0.1), r"Kl\.target moves a weight: it needs a coef over 0"),
        (
            lambda: Rl(D, reference=Reference(every=2)),
            r"reference\.every moves a reference that nothing",
        ),
        (lambda: Rl(D, kl_stop=0.1), "kl_stop has nothing to stop: one update"),
        (
            lambda: Rl(D, old_logp="sampler", corrections=(TokenTruncate(),)),
            "corrections compare sampler and trainer, but old_logp is the sampler's",
        ),
        (lambda: Rl(D, length_norm=8.0), "length_norm is not read with aggregation 'token-mean'"),
        (lambda: Preference(D, bco_momentum=0.9), "bco_momentum moves the shift of BcoPair"),
        (lambda: Preference(D, pairs=2), "pairs is of pairs that are made of answers"),
        (
            lambda: Preference(D, losses=(Dpo(),), chosen_average="seq-mean-token-mean"),
            "chosen_average is that of ChosenNll",
        ),
        (lambda: Preference(D, losses=()), "no losses"),
    ],
)
def test_options_that_another_one_makes_meaningless_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
    assert Preference(D, losses=MPO, chosen_average="seq-mean-token-mean").losses


def test_a_critic_of_another_tokenizer_is_refused(world, tmp_path, module_seed):
    other = Checkpoint.make(tmp_path / "internvl", module_seed, "internvl", layers=2)
    policy, processor = world.policy.model, world.policy.processor
    with pytest.raises(ValueError, match="takes other media than the policy"):
        check_critic(Critic(model=str(other.folder)), policy, processor)
    folder = world.other.folder
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for file in folder.iterdir():
        (renamed / file.name).write_bytes(file.read_bytes())
    text = (renamed / "tokenizer.json").read_text()
    (renamed / "tokenizer.json").write_text(text.replace("<|im_end|>", "<|im_over|>"))
    with pytest.raises(ValueError, match="has another tokenizer than the policy"):
        check_critic(Critic(model=str(renamed)), policy, processor)
    check_critic(Critic(model=str(folder)), policy, processor)


# --- what is shared -----------------------------------------------------------------------------
@pytest.mark.parametrize("policy_freezes", [(), ("vision", "merger")])
def test_an_update_of_one_learner_leaves_the_other_as_it_is(rng, world, policy_freezes):
    """What both keep frozen is one array; what the policy trains is the critic's own copy."""
    policy = world.learner(freeze=policy_freezes, optimizer=Optimizer(learning_rate=1e-2))
    params = jax.tree.map(jnp.copy, world.policy.params)
    state = policy.init(params)
    options = Critic(freeze=("vision", "merger"))
    critic = critic_learner(options, policy, updates=10)
    own = critic.init(critic_params(options, critic, params, 0, state.frozen))
    for part in ("vision", "merger"):
        same = jax.tree.leaves(own.frozen[part])[0] is jax.tree.leaves(state.params[part])[0]
        assert same == (part in policy_freezes)
    before = values(critic, own.params, world.episodes(rng))
    episodes = world.episodes(rng)
    for name in ("advantage", "old_logp"):
        episodes.columns[name] = rng.normal(size=len(episodes.token_n)).astype(np.float32)
    episodes.columns |= policy.weights(episodes)
    for _ in range(2):
        state, _ = update(policy, state, episodes, Work())
    np.testing.assert_array_equal(values(critic, own.params, world.episodes(rng)), before)
