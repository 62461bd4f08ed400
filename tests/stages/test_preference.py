"""The preference stage: its first step by its formula, its pairs, its answers, what it drops."""

import dataclasses
import itertools
import json
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image
from reference import Given

import jaxr1
from jaxr1.base.jsonl import read_jsonl
from jaxr1.data import Arithmetic, DataError, Files
from jaxr1.inputs.draws import Draws
from jaxr1.nn.lora import ADAPTERS, Lora, init_adapters
from jaxr1.nn.params import flatten
from jaxr1.parallel import make_mesh, mesh_of
from jaxr1.rewards import Reward
from jaxr1.rl import MPO, AotUnpaired, Dpo, Optimizer
from jaxr1.rl.learner import Learner
from jaxr1.rl.update import gradients
from jaxr1.rl.work import Work
from jaxr1.run import Answers, BucketOptions, Preference
from jaxr1.sampling.sampler import Sampler
from jaxr1.stages import POLICY, Context, preference
from jaxr1.stages.answers import Answer, answers
from jaxr1.stages.pairs import Sorted

GRAD = 1e-6  # times the global norm (invariant 4)
SIZES = BucketOptions(prompt=(32,), response=(16,), patches=(16,))
LIMITS = dict(max_prompt_tokens=32, max_response_tokens=16)
COMMON = dict(**LIMITS, buckets=SIZES, optimizer=Optimizer(learning_rate=1e-2))
BETA = 0.1
D = Arithmetic(count=8)  # in options; a stage takes the data of its context
WORDS = "red green blue star circle left right three four".split()


@dataclasses.dataclass
class World:
    model: object
    params: dict
    processor: object

    def context(self, folder, dataset, dropped=None, **fields):
        """What a run would give; what is left out is added to `dropped`."""
        drop = lambda source, reason: None if dropped is None else dropped.append((source, reason))
        return Context(
            model=fields.pop("model", self.model),
            processor=self.processor,
            buckets=self.processor.buckets(SIZES, 32, 16, videos=False),
            folder=folder,
            examples=len(dataset),
            dataset=dataset,
            **dict(drop=drop, snapshot=lambda tree: jax.tree.map(jnp.copy, tree), **fields),
        )

    def draws(self, options, dataset, dropped=None, **fields):
        return Draws(
            dataset,
            self.processor,
            seed=1,
            with_response=options.reads_response,
            with_rejected=options.reads_rejected,
            on_drop=lambda *found: None if dropped is None else dropped.append(found),
            **LIMITS,
            **fields,
        )

    def moved(self, rng, params=None):
        """Parameters near the given ones."""
        noisy = lambda x: x + 0.01 * rng.normal(size=x.shape).astype(np.float32)
        return jax.tree.map(noisy, self.params if params is None else params)

    def copy(self):
        return jax.tree.map(jnp.copy, self.params)


@pytest.fixture(scope="module")
def world():
    return World(*jaxr1.load_model("tiny"), jaxr1.load_processor("tiny"))


def text(rng):
    return " ".join(rng.choice(WORDS, rng.integers(1, 5)))


def write(folder, rows):
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def pair_rows(rng, folder):
    """Rows of every form, and {source: (chosen, rejected)}; half of them ask about a picture."""
    rows, said = [], {}
    for number in range(6):
        chosen, rejected = f"good {text(rng)}", f"bad {text(rng)}"
        row = {"prompt": f"what is {text(rng)}?", "chosen": chosen, "rejected": rejected}
        if number % 2:
            pixels = rng.integers(0, 256, (28, 28, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
            row |= {"prompt": f"<image> {row['prompt']}", "images": [f"{number}.png"]}
        turn = lambda content: {"role": "assistant", "content": content}
        asked = {"role": "user", "content": row["prompt"]}
        if number == 1:
            row |= {"chosen": [turn(chosen)], "rejected": [asked, turn(rejected)]}
        if number == 2:
            row["chosen"] = [turn([{"type": "text", "text": chosen}])]
        if number == 3:
            row |= {"messages": [asked, turn(chosen)], "prompt": None, "chosen": None}
        rows.append(row)
        said[f"{folder / 'pairs.jsonl'}:{number + 1}"] = (chosen, rejected)
    return rows, said


class Seen:
    """A stage whose updates are looked at: their gradients, and the columns that they read."""

    def __init__(self, monkeypatch, options, context):
        self.stage = preference.PreferenceStage(options, context)
        self.sums, self.episodes = [], []
        inner = preference.update

        def looked(learner, state, episodes, work, *, scalars, check):
            self.episodes.append(episodes)
            self.sums.append(gradients(learner, state, episodes, Work(), scalars=scalars))
            return inner(learner, state, episodes, work, scalars=scalars, check=check)

        monkeypatch.setattr(preference, "update", looked)

    def step(self, states, draws, number=1):
        return self.stage.step(states, Given(draws), number)


def close(one, other):
    norm = float(optax.tree.norm(one.grads))
    assert norm > 1e-3
    pairs = zip(flatten(one.grads).values(), flatten(other.grads).values(), strict=True)
    worst = max(float(jnp.abs(x - np.asarray(y)).max()) for x, y in pairs)
    assert worst <= GRAD * norm, worst / norm
    np.testing.assert_allclose(one.loss, other.loss, rtol=1e-5)


# --- a step by its formula ----------------------------------------------------------------------
def test_the_first_steps_equal_the_formula_on_scored_log_probs(tmp_path, world, rng, monkeypatch):
    """DPO on a file: in the first step of a policy and its reference, in the second of two."""
    rows, said = pair_rows(rng, tmp_path)
    dataset = Files(write(tmp_path, rows)).load()
    options = Preference(D, losses=(Dpo(beta=BETA),), batch_size=6, epochs=2, **COMMON)
    seen = Seen(monkeypatch, options, world.context(tmp_path, dataset))
    states = seen.stage.init(world.copy())
    seen.stage.begin(states)
    with world.draws(options, dataset) as draws:
        _, drawn = draws.take(0, 6)
    assert sorted(draw.example.source for draw in drawn) == sorted(said)

    end = world.processor.turn_end_id
    ids = lambda one: np.array([*world.processor.spoken_ids(one), end], np.int32)
    responses = [[ids(one) for one in said[draw.example.source]] for draw in drawn]
    prompts = [jaxr1.Prompt(draw.example.messages) for draw in drawn]

    def sums(params):
        """float64[prompts, 2]: log-probs of chosen and rejected responses."""
        scored = jaxr1.score(world.model, params, world.processor, prompts, responses)
        return np.array([[one.astype(np.float64).sum() for one in pair] for pair in scored])

    def margins(params):
        return BETA * ((sums(params) - reference) @ [1.0, -1.0])

    reference = sums(world.params)
    loss = lambda params: np.logaddexp(0, -margins(params)).mean()
    for number in (1, 2):
        before = jax.tree.map(jnp.copy, states[POLICY].params)
        states, metrics = seen.step(states, drawn, number)
        h = margins(before)
        np.testing.assert_allclose(metrics["policy/loss"], loss(before), rtol=1e-5)
        np.testing.assert_allclose(metrics["policy/margin"], h.mean(), rtol=1e-3, atol=2e-5)
        assert metrics["preference/pairs"] == 6
        if number == 1:
            assert abs(metrics["policy/margin"]) < 2e-5
            np.testing.assert_allclose(metrics["policy/loss"], np.log(2), rtol=1e-5)
        else:
            share = metrics["policy/accuracy"] + np.array([1e-5, -1e-5])
            assert share[0] >= (h > 1e-4).mean() and share[1] <= (h > -1e-4).mean()

        # Along the gradient the loss rises as steeply as it is long.
        grads = seen.sums[-1].grads
        norm = float(optax.tree.norm(grads))
        ahead, behind = (
            jax.tree.map(lambda x, g, t=t: x + t * g, before, grads)
            for t in (2e-3 / norm, -2e-3 / norm)
        )
        slope = (loss(ahead) - loss(behind)) / 4e-3
        np.testing.assert_allclose(slope, norm, rtol=1e-3)
        assert norm > 1e-2
    assert loss(states[POLICY].params) < np.log(2) - 1e-2


# --- one gradient however it is computed --------------------------------------------------------
@dataclasses.dataclass
class Many:
    """Prompts with up to three pairs each, a policy that has moved, and its whole gradient."""

    drawn: list
    pairs: dict  # of rows
    moved: dict  # parameters
    gradient: Callable
    whole: object


@pytest.fixture(scope="module")
def many(world, module_seed, tmp_path_factory):
    rng = np.random.default_rng(module_seed)
    folder = tmp_path_factory.mktemp("many")
    rows, _ = pair_rows(rng, folder)
    dataset = Files(write(folder, rows)).load()
    options = Preference(D, losses=(*MPO, AotUnpaired()), batch_size=4, **COMMON)
    with world.draws(options, dataset) as draws:
        _, drawn = draws.take(0, 4)
    said = lambda: rng.integers(20, 500, rng.integers(1, 12)).astype(np.int32)
    pairs = {
        draw.row: [(said(), said()) for _ in range(count)]
        for draw, count in zip(drawn, (3, 1, 2, 3), strict=True)
    }
    moved = world.moved(rng)

    def gradient(monkeypatch, *, drawn=drawn, pairs=pairs, mesh=None, freeze=(), **changes):
        fields = {k: changes.pop(k) for k in ("micro_batch_tokens",) if k in changes}
        of = dataclasses.replace(options, freeze=freeze, **fields)
        seen = Seen(monkeypatch, of, world.context(folder, dataset))
        stage = seen.stage
        stage.policy = dataclasses.replace(stage.policy, **changes)
        first, now = world.copy(), jax.tree.map(jnp.copy, moved)
        if mesh is not None:
            _, placed = jaxr1.load_model("tiny", mesh=mesh)
            like = jax.tree.map(lambda x: x.sharding, placed)
            first, now = jax.device_put((first, now), (like, like))
        if freeze:
            now = {**now, **{part: first[part] for part in freeze}}
        stage.begin(stage.init(first))
        stage.scalars, stage.pairs = {"bco_shift": 0.1}, pairs
        states, _ = seen.step(stage.init(now), drawn)
        return seen, states

    whole = gradient(pytest.MonkeyPatch(), drawn=drawn)[0].sums[0]
    return Many(drawn, pairs, moved, gradient, whole)


def test_a_mix_of_losses_equals_its_formula_for_several_pairs_of_a_prompt(many, world):
    """MPO with a shift of 0.1, and sorted sums."""
    asked = [jaxr1.Prompt(draw.example.messages) for draw in many.drawn]
    said = [list(itertools.chain(*many.pairs[draw.row])) for draw in many.drawn]

    def log_probs(params):
        groups = jaxr1.score(world.model, params, world.processor, asked, said)
        return [one.astype(np.float64) for one in itertools.chain(*groups)]

    now, reference = log_probs(many.moved), log_probs(world.params)
    sums = np.array([(a - b).sum() for a, b in zip(now, reference, strict=True)])
    c, r = sums[::2], sums[1::2]
    softplus = lambda x: np.logaddexp(0, x)
    loss = 0.8 * softplus(BETA * (r - c)) + softplus(BETA * (np.sort(r) - np.sort(c)))
    loss += 0.2 * (softplus(0.1 - BETA * c) + softplus(BETA * r - 0.1))
    whole = loss.mean() - np.concatenate(now[::2]).mean()
    assert len(c) == 9
    np.testing.assert_allclose(many.whole.loss, whole, rtol=1e-5)


@pytest.mark.parametrize("how", ["prompts", "pairs", "micro-batches", "strips", "devices"])
def test_a_gradient_is_the_same_however_it_is_computed(many, rng, monkeypatch, how):
    drawn, pairs = many.drawn, many.pairs
    if how == "prompts":
        changes = dict(drawn=[drawn[i] for i in rng.permutation(4)])
    elif how == "pairs":
        order = {row: rng.permutation(len(own)) for row, own in pairs.items()}
        changes = dict(pairs={row: [own[i] for i in order[row]] for row, own in pairs.items()})
    elif how == "micro-batches":
        changes = dict(micro_batch_tokens=96)
    elif how == "strips":
        changes = dict(strips_at_once=1)
    else:
        changes = dict(mesh=make_mesh((2, 2, 1), jax.devices()[:4]))
    close(many.whole, many.gradient(monkeypatch, **changes)[0].sums[0])


def test_features_of_frozen_parts_are_computed_once(many, monkeypatch):
    """The step sees them in the place of pixels, and has the gradient that pixels give."""
    frozen = ("vision", "merger")
    cached, states = many.gradient(monkeypatch, freeze=frozen)
    held = {prompt.held for prompt in cached.episodes[0].views[POLICY] if prompt.grids}
    assert held == {"merger"} and set(states[POLICY].trainable) == {"decoder"}
    monkeypatch.setattr(Learner, "see", lambda self, state, prompts, work: list(prompts))
    plain, _ = many.gradient(monkeypatch, freeze=frozen)
    assert {prompt.held for prompt in plain.episodes[0].views[POLICY]} == {"pixels"}
    close(plain.sums[0], cached.sums[0])


# --- the reference ------------------------------------------------------------------------------
def test_adapters_are_held_to_their_base_which_stays(world, tmp_path, monkeypatch, rng):
    """Nothing is snapshot; the reference is the same when the adapters have moved."""
    rows, _ = pair_rows(rng, tmp_path)
    dataset = Files(write(tmp_path, rows)).load()
    lora = Lora(rank=2, targets="decoder/layers/(q|v)")
    options = Preference(D, losses=MPO, batch_size=3, lora=lora, **COMMON)

    def never(tree):
        raise AssertionError("the base is the reference")

    model = dataclasses.replace(world.model, lora=lora)
    context = world.context(tmp_path, dataset, model=model)
    seen = Seen(monkeypatch, options, dataclasses.replace(context, snapshot=never))
    base = {path: np.array(x) for path, x in flatten(world.params).items()}
    params = world.copy()
    adapters = init_adapters(model.table(), lora, 3, mesh_of(params), model.rules)
    states = seen.stage.init({**params, ADAPTERS: adapters})
    seen.stage.begin(states)
    with world.draws(options, dataset) as draws:
        _, drawn = draws.take(0, 3)
    for number in (1, 2):
        states, metrics = seen.step(states, drawn, number)
    first, second = (episodes.columns["ref_logp"] for episodes in seen.episodes)
    assert (first == second).all() and abs(metrics["policy/margin"]) > 1e-4
    kept = flatten(states[POLICY].base)
    assert all((np.asarray(kept[path]) == x).all() for path, x in base.items())
    assert set(states[POLICY].trainable) == {ADAPTERS}


def test_a_shift_goes_on_where_it_was(many, world, tmp_path, monkeypatch):
    """As a resume gives it back, before the stage begins; after a step it has moved."""
    dataset = [draw.example for draw in many.drawn]
    options = Preference(D, losses=MPO, bco_momentum=0.5, batch_size=4, **COMMON)
    seen = Seen(monkeypatch, options, world.context(tmp_path, dataset))
    states = seen.stage.init(world.copy())
    seen.stage.resume(0, {"bco_shift": 0.25}, 0)
    seen.stage.begin(states)
    states, metrics = seen.step(states, many.drawn)
    assert metrics["policy/bco_shift"] == 0.25
    mean = (metrics["policy/chosen_reward"] + metrics["policy/rejected_reward"]) / 2
    np.testing.assert_allclose(seen.stage.scalars["bco_shift"], 0.125 + mean / 2, rtol=1e-6)


# --- pairs of answers ---------------------------------------------------------------------------
def answer(*ids, reward=None, **rewards):
    return Answer(ids, reward, rewards, " ".join(map(str, ids)))


def test_each_answer_is_in_one_pair_and_equal_ones_are_there_once(rng):
    group = [answer(i, 1, reward=float(i % 2)) for i in rng.permutation(9)]
    group += [*group[:3], answer(50, reward=None), answer(reward=1.0)]
    sides = Sorted.of(group, "", 0.5)
    assert sides.problem is None
    assert {a.token_ids for a in sides.right} == {(i, 1) for i in (1, 3, 5, 7)}
    assert {a.token_ids for a in sides.wrong} == {(i, 1) for i in (0, 2, 4, 6, 8)}
    assert len(sides.right) == 4 and len(sides.wrong) == 5
    for most, count in ((1, 1), (3, 3), (9, 4)):
        made = sides.pairs(most, [7, 1, 3])
        assert len(made) == count
        chosen, rejected = ([tuple(pair[side].tolist()) for pair in made] for side in (0, 1))
        assert len({*chosen, *rejected}) == 2 * count
        assert all(ids[0] % 2 for ids in chosen) and not any(ids[0] % 2 for ids in rejected)
    plain = lambda pairs: [[side.tolist() for side in pair] for pair in pairs]
    drawn = [plain(sides.pairs(2, [7, 1, row])) for row in range(12)]
    assert drawn[3] == plain(sides.pairs(2, [7, 1, 3]))
    assert len({str(one) for one in drawn}) > 3


def test_an_answer_that_was_graded_twice_is_not_paired_with_itself():
    """A grader may say something else of the same text: its first grade counts."""
    twice = [answer(5, 6, reward=1.0), answer(5, 6, reward=0.0)]
    assert Sorted.of(twice, "", 0.5).problem == "no wrong answer: there is nothing to reject"
    assert Sorted.of(twice[::-1], "", 0.5).problem == "no right answer: there is nothing to choose"


def test_a_reward_by_name_says_which_answers_are_right():
    """The whole reward, or its absence, says nothing then."""
    group = [answer(1, reward=0.0, a=1.0), answer(2, reward=9.0, a=0.5), answer(3, a=0.7)]
    sides = Sorted.of([*group, answer(4, reward=1.0, a=None)], "a", 0.5)
    assert [a.token_ids for a in sides.right] == [(1,), (3,)]
    assert [a.token_ids for a in sides.wrong] == [(2,)]
    unscored = Sorted.of([answer(1, a=None), answer(2, b=1.0)], "a", 0.5)
    assert unscored.problem == "no answer was scored: there is nothing to compare"


REWARDS = """
def rate(completion, example):
    row = int(example.source.rpartition(":")[2])
    fixed = {2: 1.0, 3: 0.0, 4: None}
    if row == 5:
        raise ValueError("not this one")
    if row == 6 and len(completion.text) % 2:
        return None
    return fixed[row] if row in fixed else (sum(map(ord, completion.text)) % 17) / 17.0
"""


@dataclasses.dataclass
class Asked:
    """A stage that makes its pairs of answers to ten rows, of which some lack one."""

    world: World
    folder: object

    def __post_init__(self):
        (self.folder / "rate.py").write_text(REWARDS)
        self.dataset = Arithmetic(count=10).load()
        self.dropped, self.file = [], self.folder / "answers" / "preference.jsonl"

    def begin(self, samples=6, batch_rows=4, stream=0, dataset=None, **fields):
        self.dropped.clear()
        rewards = (Reward(f"{self.folder / 'rate.py'}:rate"),)
        asked = Answers(samples=samples, batch_rows=batch_rows, rewards=rewards)
        dataset = dataset or self.dataset
        options = Preference(D, answers=asked, pairs=2, batch_size=3, **COMMON, **fields)
        context = self.world.context(self.folder, dataset, self.dropped, stream=stream)
        stage = preference.PreferenceStage(options, context)
        stage.begin(stage.init(self.world.copy()))
        return stage


@pytest.fixture(scope="module")
def asked(world, tmp_path_factory):
    return Asked(world, tmp_path_factory.mktemp("asked"))


def plain(stage):
    return {row: [[x.tolist() for x in p] for p in own] for row, own in stage.pairs.items()}


def test_rows_without_a_right_or_a_wrong_answer_are_dropped_and_not_drawn(asked):
    stage = asked.begin()
    found = {source.rpartition(":")[2]: [] for source, _ in asked.dropped}
    for source, reason in asked.dropped:
        found[source.rpartition(":")[2]].append(reason)
    assert found["2"] == ["no wrong answer: there is nothing to reject"]
    assert found["3"] == ["no right answer: there is nothing to choose"]
    assert len(found["4"]) == 7 and len(found["5"]) == 7
    assert found["4"][0] == "answer 0 is not scored: ok: no reward"
    assert found["4"][-1] == "no answer was scored: there is nothing to compare"
    assert "answer 5 is not scored: error: " in found["5"][5] and "not this one" in found["5"][5]
    assert {1, 2, 3, 4} <= stage.unusable and stage.pairs.keys() == {*range(10)} - stage.unusable
    assert len(stage.pairs) >= 3

    kept = {row["row"]: row["answers"] for row in read_jsonl(asked.file)}
    for row, own in stage.pairs.items():
        reward = {tuple(one["token_ids"]): one["reward"] for one in kept[row]}
        assert 1 <= len(own) <= 2
        for chosen, rejected in own:
            assert reward[tuple(chosen.tolist())] > 0.5 >= reward[tuple(rejected.tolist())]
    with asked.world.draws(stage.options, asked.dataset, unusable=stage.unusable) as draws:
        _, drawn = draws.take(0, 30)
    assert {draw.row for draw in drawn} == stage.pairs.keys()


def test_answers_are_kept_and_a_torn_file_is_completed_with_the_same(asked, monkeypatch):
    stage = asked.begin()
    whole, pairs, dropped = asked.file.read_bytes(), plain(stage), list(asked.dropped)

    # In a line of the first batch, and inside a letter of more than one byte.
    letters = [i for i, byte in enumerate(whole) if byte >= 0xC0]
    lines = whole.count(b"\n", 0, letters[len(letters) // 3])
    assert 0 < lines < 9
    for cut in (letters[len(letters) // 3] + 1, whole.index(b"\n", len(whole) // 2), 0):
        asked.file.write_bytes(whole[:cut])
        again = asked.begin(batch_rows=3)
        assert asked.file.read_bytes() == whole
        assert plain(again) == pairs and asked.dropped == dropped

    def never(*args, **kwargs):
        raise AssertionError("sampled")

    monkeypatch.setattr(Sampler, "__call__", never)
    assert plain(asked.begin()) == pairs and asked.dropped == dropped
    other = asked.begin(stream=1)
    assert plain(other).keys() == pairs.keys() and plain(other) != pairs


def test_rows_that_cannot_be_asked_or_graded_are_named(asked, tmp_path):
    rows = [
        {"prompt": "how many?", "answer": "3"},
        {"prompt": "red " * 60, "answer": "3"},
        {"prompt": "how many?", "answer": "\\frac{"},
        {"prompt": "which?", "answer": "?!"},
    ]
    dataset = Files(write(tmp_path, rows)).load()
    dropped = []
    context = asked.world.context(tmp_path, dataset, dropped)
    options = Preference(D, answers=Answers(samples=2), **COMMON)
    stage = preference.PreferenceStage(options, context)
    with pytest.raises(DataError, match="none of its 4 rows has a right answer and a wrong one"):
        stage.begin(stage.init(asked.world.copy()))
    found = {source.rpartition(":")[2]: reason for source, reason in dropped}
    assert found["1"] == "no right answer: there is nothing to choose"
    assert "over the limit of 32" in found["2"]
    assert "answer '\\\\frac{'" in found["3"] and "answer '?!'" in found["4"]
    assert [row["row"] for row in read_jsonl(tmp_path / "answers" / "preference.jsonl")] == [0]


def test_answers_do_not_depend_on_what_is_asked_beside_them(asked, tmp_path):
    """Nor does a row get those of another one that asks the same."""
    world = asked.world
    dataset = Files(write(tmp_path, 10 * [{"prompt": "how many?", "answer": "3"}])).load()
    options = Answers(samples=2, rewards=(Reward("format"),), batch_rows=2)
    found = []
    for name, unusable in (("all", frozenset()), ("some", frozenset({0, 1, 2, 4, 7, 8, 9}))):
        context = world.context(tmp_path, dataset)
        asks = (dataset, context, name, (32, 16), unusable)
        found.append(answers(options, world.params, *asks))
    assert found[1].keys() == {3, 5, 6}
    assert found[1] == {row: found[0][row] for row in (3, 5, 6)}
    assert len({one.token_ids for group in found[0].values() for one in group}) == 20


# --- rows of a file -----------------------------------------------------------------------------
def test_bad_rows_are_dropped_by_name(world, tmp_path):
    good = {"prompt": "which?", "chosen": "red", "rejected": "blue", "answer": "red"}
    turn = {"role": "assistant", "content": "red"}
    parts = [{"type": "text", "text": "red"}, {"type": "image", "image": "x.png"}]
    rows = {
        "equal": {"rejected": "red"},
        "no rejected": {"rejected": None},
        "no chosen": {"chosen": None},
        "prompt": {"prompt": "red " * 60},
        "chosen": {"chosen": "red " * 60},
        "rejected": {"rejected": "red " * 60},
        "response": {"response": "red"},
        "user": {"chosen": [turn, {"role": "user", "content": "red"}]},
        "number": {"rejected": 3},
        "none": {"chosen": [{**turn, "content": None}]},
        "picture": {"chosen": [{**turn, "content": parts}]},
        "text": {"rejected": [{**turn, "content": ["blue"]}]},
    }
    file = write(tmp_path, [good, *({**good, **row} for row in rows.values())])
    dataset = Files(file, bad_rows="drop").load()
    reasons = {row["source"]: row["reason"] for row in dataset.dropped}
    dropped = []
    options = Preference(D, **COMMON)
    with world.draws(options, dataset, dropped) as draws:
        _, drawn = draws.take(0, 20)
    assert {draw.example.source for draw in drawn} == {f"{file}:1"}
    assert len(dropped) == len({source for source, _ in dropped})
    reasons |= dict(dropped)
    found = {name: reasons[f"{file}:{i}"] for i, name in enumerate(rows, 2)}
    for name, said in {
        "equal": "fields 'chosen' and 'rejected' are equal",
        "no rejected": "field 'rejected': a preference stage needs one in every row",
        "no chosen": "field 'chosen': a preference stage needs one",
        "prompt": "over the limit of 32",
        "chosen": "the chosen has 63 tokens, over the limit of 16",
        "rejected": "the rejected has 63 tokens, over the limit of 16",
        "response": "'chosen': the row has a 'response' too",
        "user": "'chosen': expected text or turns that end with the model's",
        "number": "'rejected': expected text or turns that end with the model's, got 3",
        "none": "'chosen[0].content': expected text or a list of parts, got None",
        "picture": "'chosen[0].content[1]': a response is text",
        "text": "'rejected[0].content[0]': a response is text",
    }.items():
        assert said in found[name], (name, found[name])
    with pytest.raises(DataError, match=r"pairs\.jsonl:8: .*'chosen'"):
        Files(file).load()
