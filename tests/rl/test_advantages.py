"""Every estimator against float64 loops written from its formula.

A new estimator joins with one row of `ESTIMATORS`. The formulas see a step as lists: a response is
its own tokens alone, one after the other.
"""

import dataclasses
import inspect
from types import SimpleNamespace

import numpy as np
import pytest
from reference import given

from jaxr1.base.errors import UserError
from jaxr1.inputs.exchange import Draw
from jaxr1.rewards.grades import Grade
from jaxr1.rl import advantages
from jaxr1.rl.advantages import (
    Advantage,
    CpgdAdvantage,
    DrGrpo,
    Estimator,
    Gae,
    Gdpo,
    GpgAdvantage,
    LitePpo,
    Opo,
    Otb,
    PassK,
    ReinforceAdvantage,
    ReinforcePlusPlus,
    ReinforcePlusPlusBaseline,
    ReMax,
    RewardEstimator,
    Rloo,
    group_advantage,
)

# --- a step, and the same as lists ---------------------------------------------------------------

COLUMNS = ("penalty", "old_value", "old_logp", "sampled_logp", "old_sum_sq")
REWARDS = {"right": 1.0, "form": 0.25}


def step(rng, prompts=5, samples=4, penalty=True):
    """Random lengths (none, too), rewards, unscored responses and tokens of an environment."""
    prompt = SimpleNamespace(prefix="")
    lengths = rng.integers(0, 9, (prompts, samples))
    lengths.flat[0], lengths.flat[-1] = 0, 1
    responses = [[np.ones(n, np.int32) for n in row] for row in lengths]
    episodes = given([prompt] * prompts, responses)
    assert all(isinstance(draw, Draw) for draw in episodes.draws)
    n = len(episodes.token_n)
    columns = {
        "penalty": rng.normal(size=n) * 0.2,
        "old_value": rng.normal(size=n),
        "old_logp": -rng.exponential(1.0, n),
        "sampled_logp": -rng.exponential(1.0, n),
        "old_sum_sq": rng.uniform(0.1, 1.0, n),
        "own": rng.random(n) < 0.75,
    }
    if not penalty:
        del columns["penalty"]
    episodes.columns |= {name: x.astype(np.float32) for name, x in columns.items()}
    episodes.reward_weights = dict(REWARDS)
    parts = rng.integers(0, 3, (prompts, samples, 2)) / 2
    episodes.grade([grade_of(right, form) for right, form in parts.reshape(-1, 2)])
    episodes.baseline_b = rng.integers(0, 3, prompts) / 2
    return episodes


def grade_of(right, form):
    parts = {"right": right, "form": form}
    return Grade(sum(REWARDS[name] * value for name, value in parts.items()), parts)


def ragged(rng, **options):
    """As `step`, with what may go wrong in it: unscored ones, equal groups, no baseline."""
    episodes = step(rng, 8, **options)
    lost = rng.random((8, 4)) < 0.15
    lost[2], lost[3, 1:], lost[3, 0] = True, True, False  # none, and one
    grades = [list(group) for group in episodes.grades]
    for b, g in np.argwhere(lost):
        grades[b][g] = Grade(None, {"right": None, "form": None}, "timeout")
    grades[4] = [grade_of(0.1, 0.3)] * 4
    grades[5][2] = Grade(0.7, {"right": 0.7, "form": None})
    grades[5][0] = Grade(0.1, {"right": None, "form": 0.4})
    grades[7][:2] = [Grade(0.1, {"right": None, "form": 0.4}), grade_of(1.0, 0.0)]
    episodes.grade([grade for group in grades for grade in group])
    episodes.baseline_b[6] = np.nan
    # What is not known may be anything: it must not get into a sum.
    for name in set(COLUMNS) & set(episodes.columns):
        episodes.columns[name][episodes.spread(~episodes.valid_bg) > 0] = np.nan
    return episodes


@dataclasses.dataclass
class Response:
    reward: float | None
    by_name: dict
    greedy: float
    columns: dict  # {name: list of the values at its own tokens}
    length: int


def lists(episodes):
    """[b][g] -> Response."""
    groups, at = [], 0
    for b, row in enumerate(episodes.counts_bg):
        group = []
        for g, count in enumerate(row):
            own = [n for n in range(at, at + count) if episodes.columns["own"][n]]
            names = [name for name in COLUMNS if name in episodes.columns]
            columns = {name: [float(episodes.columns[name][n]) for n in own] for name in names}
            columns.setdefault("penalty", [0.0] * len(own))
            grade = episodes.grades[b][g]
            greedy = float(episodes.baseline_b[b])
            group.append(Response(grade.total, grade.by_name, greedy, columns, len(own)))
            at += count
        groups.append(group)
    return groups


def column_of(episodes, values):
    """float64[N] of values[b][g], a list for each response's own tokens; None is zeros."""
    out, at = np.zeros(len(episodes.token_n)), 0
    for b, row in enumerate(episodes.counts_bg):
        for g, count in enumerate(row):
            own = [n for n in range(at, at + count) if episodes.columns["own"][n]]
            if values[b][g] is not None:
                out[own] = values[b][g]
            at += count
    return out


# --- formulas ------------------------------------------------------------------------------------


def scored(group):
    return [r for r in group if r.reward is not None]


def to_go(values, decay=1.0):
    return [
        sum(decay ** (s - t) * v for s, v in enumerate(values) if s >= t)
        for t in range(len(values))
    ]


def responsewise(formula, gamma=1.0):
    """From formula(rewards of a group, the groups, its responses) -> a number for each."""

    def of_step(groups):
        values = []
        for group in groups:
            known = scored(group)
            numbers = iter(formula([r.reward for r in known], groups, known)) if known else iter(())
            values.append([None if r.reward is None else next(numbers) for r in group])
        return with_penalties(groups, values, gamma)

    return of_step


def with_penalties(groups, values, gamma):
    out = []
    for group, row in zip(groups, values, strict=True):
        add = lambda r, a: (
            None if a is None else [a + x for x in to_go(r.columns["penalty"], gamma)]
        )
        out.append([add(r, a) for r, a in zip(group, row, strict=True)])
    return out


def whitened(values, ddof, by_response=False, divide=True):
    known = [v for row in values for v in row if v]
    weights = [[1 / len(v)] * len(v) if by_response else [1.0] * len(v) for v in known]
    flat, weight = np.concatenate(known), np.concatenate(weights)
    mean = (weight * flat).sum() / weight.sum()
    std = np.sqrt((weight * (flat - mean) ** 2).sum() / (weight.sum() - ddof)) if divide else 1.0
    return [[None if v is None else [(x - mean) / std for x in v] for v in row] for row in values]


def even(rewards):
    return len(rewards) < 2 or max(rewards) == min(rewards)


def grpo_under_root(eps):
    """The place of eps that no system has, and papers leave open."""

    def of_group(r, *rest):
        if len(r) < 2 or np.ptp(r) == 0:
            return [0.0] * len(r)
        return [(x - np.mean(r)) / np.sqrt(np.var(r, ddof=1) + eps) for x in r]

    return of_group


def grpo(eps, ddof=1):
    def formula(r, *_):
        if even(r):
            return [0.0] * len(r)
        return [(x - np.mean(r)) / (np.std(r, ddof=ddof) + eps) for x in r]

    return formula


def dr_grpo(r, *_):
    return [0.0 if even(r) else x - np.mean(r) for x in r]


def rloo(r, *_):
    return [0.0 if even(r) else x - np.mean(np.delete(r, i)) for i, x in enumerate(r)]


def lite(r, groups, _):
    every = [x.reward for group in groups for x in scored(group)]
    return [x / (np.std(every, ddof=1) + 1e-4) for x in dr_grpo(r)]


def opo(r, _, known):
    lengths = [x.length for x in known]
    if even(r):
        return [0.0] * len(r)
    return [x - np.dot(lengths, r) / sum(lengths) if sum(lengths) else 0.0 for x in r]


def gpg(r, groups, _):
    every = [x.reward for group in groups for x in scored(group)]
    return [len(every) / max(1, np.count_nonzero(every)) * x / 2.0 for x in dr_grpo(r)]


def pass_k(r, *_):
    if len(r) < 2:
        return [0.0]
    first, second = sorted(r)[-1], sorted(r)[-2]
    return [first - second if x == first else 0.0 for x in r]


def pass_k_std(r, *_):
    return [0.0 if even(r) else x / (np.std(r, ddof=1) + 1e-6) for x in pass_k(r)]


def clip_filter(r, groups, _):
    rewards = [[x.reward for x in scored(group)] for group in groups]
    some, differ = sum(map(bool, rewards)), sum(not even(r) for r in rewards)
    return [x * min(some / max(1, differ), 1.3) for x in dr_grpo(r)]


def gdpo(groups):
    values = [[None if r.reward is None else [0.0] * r.length for r in group] for group in groups]
    for name, weight in REWARDS.items():
        for group, row in zip(groups, values, strict=True):
            known = [i for i, r in enumerate(group) if r.by_name.get(name) is not None]
            of_one = grpo(1e-6)([group[i].by_name[name] for i in known])
            for i, value in zip(known, of_one, strict=True):
                row[i] = [x + weight * value for x in row[i]]
    later = [[to_go(r.columns["penalty"]) for r in group] for group in groups]
    for row, more in zip(values, later, strict=True):
        for i, value in enumerate(row):
            if value is not None:
                row[i] = [a + b for a, b in zip(value, more[i], strict=True)]
    return whitened(values, 1, by_response=True)


def returns(groups, gamma=1.0, lost=lambda r: r.reward is None):
    values = []
    for group in groups:
        row = []
        for r in group:
            rewards = list(r.columns["penalty"])
            if rewards and r.reward is not None:
                rewards[-1] += r.reward
            row.append(None if lost(r) else to_go(rewards, gamma))
        values.append(row)
    return values


def remax(groups):
    lost = lambda r: r.reward is None or np.isnan(r.greedy)
    values = returns(groups, lost=lost)
    minus = lambda r, v: None if v is None else [x - r.greedy for x in v]
    return [
        [minus(r, v) for r, v in zip(group, row, strict=True)]
        for group, row in zip(groups, values, strict=True)
    ]


def gae(gamma, lam):
    """By the definition: the sum of discounted differences that lie ahead."""

    def of_step(groups):
        out = []
        for group in groups:
            row = []
            for r in group:
                rewards, value = list(r.columns["penalty"]), [*r.columns["old_value"], 0.0]
                if rewards and r.reward is not None:
                    rewards[-1] += r.reward
                delta = [x + gamma * value[t + 1] - value[t] for t, x in enumerate(rewards)]
                row.append(None if r.reward is None else to_go(delta, gamma * lam))
            out.append(row)
        return out

    return of_step


def otb(cap=None):
    def of_step(groups):
        out = []
        for group in groups:
            known, rewards = scored(group), [r.reward for r in scored(group)]
            paths = []
            for r in known:
                c = r.columns
                norm = [
                    1 - 2 * np.exp(x) + s
                    for x, s in zip(c["old_logp"], c["old_sum_sq"], strict=True)
                ]
                for t, (new, said) in enumerate(zip(c["old_logp"], c["sampled_logp"], strict=True)):
                    norm[t] *= 1.0 if cap is None else min(np.exp(new - said), cap) ** 2
                token = list(c["penalty"])
                if token and not even(rewards):
                    token[-1] += r.reward
                paths.append((to_go(token), np.cumsum(norm)))
            row = []
            for r in group:
                if r.reward is None:
                    row.append(None)
                    continue
                mine = paths[[x is r for x in known].index(True)][0]
                found = []
                for t, x in enumerate(mine):
                    there = [(a[t], w[t]) for a, w in paths if len(a) > t]
                    total = sum(a * w for a, w in there) / (sum(w for _, w in there) + 1e-8)
                    found.append(x - (total if len(there) > 1 else 0.0))
                row.append(found)
            out.append(row)
        return out

    return of_step


def as_tokens(formula, ddof, **options):
    """Whitened over the tokens of the step."""
    return lambda groups: whitened(formula(groups), ddof, **options)


def clipped(formula, most):
    clip = lambda v: None if v is None else list(np.clip(v, -most, most))
    return lambda groups: [[clip(v) for v in row] for row in formula(groups)]


def shaped(formula, change):
    """With other rewards than those that were given."""

    def of_step(groups):
        other = lambda r: r.reward if r.reward is None else change(r)
        return formula(
            [[dataclasses.replace(r, reward=other(r)) for r in group] for group in groups]
        )

    return of_step


def as_score(formula):
    """Penalties join the reward of their response."""

    def of_step(groups):
        none = lambda r: r.columns | {"penalty": [0.0] * r.length}
        total = lambda r: None if r.reward is None else r.reward + sum(r.columns["penalty"])
        joined = lambda r: dataclasses.replace(r, reward=total(r), columns=none(r))
        return formula([[joined(r) for r in group] for group in groups])

    return of_step


def single(formula):
    return lambda r, *more: r if len(r) == 1 else formula(r, *more)


def adora(formula, factor, limit=np.inf):
    """By the longest correct response and the mean length of the wrong ones."""

    def of_step(groups):
        out = []
        for group, row in zip(groups, formula(groups), strict=True):
            known = [r for r in scored(group) if r.by_name["right"] is not None]
            right = [r.length for r in known if r.by_name["right"] > 0.5]
            wrong = [r.length for r in known if r.by_name["right"] <= 0.5]
            keep = not right or not wrong or np.mean(wrong) < max(right) < limit
            times = 1.0 if keep else factor
            out.append([None if v is None else [times * x for x in v] for v in row])
        return out

    return of_step


ESTIMATORS = [
    (Advantage(eps=1e-4), responsewise(grpo(1e-4))),
    (Advantage(eps=1e-2, eps_under_root=True), responsewise(grpo_under_root(1e-2))),
    (Advantage(unbiased=False, eps=1e-9), responsewise(grpo(1e-9, ddof=0))),
    (Advantage(eps=0.0, single="reward"), responsewise(single(grpo(0.0)))),
    (Advantage("leave_one_out", "none"), responsewise(rloo)),
    (
        Advantage(penalty_as="score", adora=0.1, adora_reward="right"),
        adora(as_score(responsewise(grpo(1e-6))), 0.1),
    ),
    (
        Advantage(adora=0.3, adora_reward="right", adora_limit=5),
        adora(responsewise(grpo(1e-6)), 0.3, 5),
    ),
    (
        Advantage(whiten="tokens", advantage_clip=0.8),
        clipped(as_tokens(responsewise(grpo(1e-6)), 1), 0.8),
    ),
    (
        Advantage(scale="none", whiten="tokens", whiten_divide=False),
        as_tokens(responsewise(dr_grpo), 1, divide=False),
    ),
    (
        DrGrpo(reward_scale=2.0, reward_clip=0.9),
        shaped(responsewise(dr_grpo), lambda r: float(np.clip(2 * r.reward, -0.9, 0.9))),
    ),
    (DrGrpo(), responsewise(dr_grpo)),
    (DrGrpo(gamma=0.8), responsewise(dr_grpo, 0.8)),
    (LitePpo(), responsewise(lite)),
    (Rloo(), responsewise(rloo)),
    (Rloo(whiten="tokens", whiten_unbiased=False), as_tokens(responsewise(rloo), 0)),
    (Opo(), responsewise(opo)),
    (ReinforcePlusPlusBaseline(), as_tokens(responsewise(dr_grpo), 1)),
    (GpgAdvantage(2.0), responsewise(gpg)),
    (PassK(), responsewise(pass_k)),
    (PassK("std"), responsewise(pass_k_std)),
    (PassK(single="reward"), responsewise(single(pass_k))),
    (CpgdAdvantage(most=1.3), responsewise(clip_filter)),
    (CpgdAdvantage("std"), responsewise(grpo(1e-6))),
    (CpgdAdvantage("none"), responsewise(dr_grpo)),
    (Gdpo(), gdpo),
    (ReinforceAdvantage(), as_tokens(returns, 0)),
    (ReinforceAdvantage(whiten="none", gamma=0.9), lambda groups: returns(groups, 0.9)),
    (ReinforcePlusPlus(), as_tokens(returns, 1)),
    (ReinforcePlusPlus(penalty_as="score"), as_tokens(as_score(returns), 1)),
    (ReMax(), remax),
    (Gae(), as_tokens(gae(1.0, 1.0), 0)),
    (Gae(0.8, gamma=0.9, whiten="none"), gae(0.9, 0.8)),
    (Otb(), otb()),
    (Otb(1.5), otb(1.5)),
]

WITHOUT_GROUP = {ReinforceAdvantage, ReinforcePlusPlus, ReMax, Gae}

rows = pytest.mark.parametrize(
    ("estimator", "formula"),
    ESTIMATORS,
    ids=[f"{i} {type(row[0]).__name__}" for i, row in enumerate(ESTIMATORS)],
)


@rows
@pytest.mark.parametrize("penalty", [False, True], ids=["", "penalties"])
def test_an_estimator_equals_its_formula(rng, estimator, formula, penalty):
    """With unscored responses, equal groups, empty responses and tokens of an environment."""
    for make in (step, ragged):
        episodes = make(rng, penalty=penalty)
        column = estimator(episodes).columns["advantage"]
        assert column.dtype == np.float32 and column.shape == episodes.token_n.shape
        want = column_of(episodes, formula(lists(episodes)))
        np.testing.assert_allclose(column, want, rtol=1e-4, atol=1e-5)
        assert (column[episodes.columns["own"] == 0] == 0).all()
        assert (column[episodes.spread(~episodes.valid_bg) > 0] == 0).all()


@rows
def test_permuting_prompts_and_samples_permutes_advantages(rng, estimator, formula):
    episodes = ragged(rng)
    order_b, order_g = rng.permutation(8), rng.permutation(4)
    place = np.arange(32).reshape(8, 4)[order_b][:, order_g].ravel()
    ends = np.cumsum(episodes.counts_bg.ravel())
    token = [np.arange(ends[i] - episodes.counts_bg.ravel()[i], ends[i]) for i in place]
    token = np.concatenate(token)
    moved = dataclasses.replace(
        episodes,
        draws=[episodes.draws[b] for b in order_b],
        token_n=episodes.token_n[token],
        counts_bg=episodes.counts_bg[order_b][:, order_g],
        columns={name: column[token] for name, column in episodes.columns.items()},
        baseline_b=episodes.baseline_b[order_b],
    )
    moved.grade([episodes.grades[i // 4][i % 4] for i in place])
    before, after = estimator(episodes), estimator(moved)
    for name, column in before.columns.items():
        np.testing.assert_allclose(after.columns[name], column[token], rtol=1e-4, atol=1e-5)
    assert after.metrics == pytest.approx(before.metrics, rel=1e-6, nan_ok=True)


@rows
def test_steps_that_hold_next_to_nothing(rng, estimator, formula):
    """Nothing scored, one response, no tokens at all, one token: finite, and 0 where unknown."""
    unscored = step(rng)
    unscored.grade([Grade(None, {"right": None, "form": None}, "error")] * unscored.counts_bg.size)
    assert (estimator(unscored).columns["advantage"] == 0).all()

    one = step(rng, 2, 1)
    one.columns["penalty"] *= 0
    found = estimator(one).columns["advantage"]
    assert np.isfinite(found).all()
    compares = type(estimator) not in WITHOUT_GROUP
    assert estimator.needs_group is compares
    if compares and estimator.single == "zero":
        assert (found == 0).all()

    empty = step(rng, 2, 2)
    empty.columns = {name: column[:0] for name, column in empty.columns.items()}
    empty.token_n, empty.counts_bg = empty.token_n[:0], np.zeros_like(empty.counts_bg)
    assert estimator(empty).columns["advantage"].shape == (0,)

    strangers = step(rng)
    strangers.columns["own"] *= 0
    assert (estimator(strangers).columns["advantage"] == 0).all()


@rows
def test_equal_rewards_have_exactly_no_advantage(rng, estimator, formula):
    """0.1 three times has a mean that is not 0.1: the difference must not be blown up by a tiny
    deviation, nor by whitening where all groups are so.
    """
    if not estimator.needs_group:
        return
    episodes = step(rng, 4, 3, penalty=False)
    episodes.grade([grade_of(0.1, 0.3)] * 12)
    assert (estimator(episodes).columns["advantage"] == 0).all()
    # Beside groups that differ, too; whitening then moves it, see below.
    mixed = step(rng, 4, 3, penalty=False)
    grades = [grade for group in mixed.grades for grade in group]
    grades[:2] = [grade_of(0.0, 0.0), grade_of(1.0, 1.0)]
    grades[3:6] = [grade_of(0.1, 0.3)] * 3
    mixed.grade(grades)
    assert mixed.zero_std_b[:2].tolist() == [False, True]
    column = dataclasses.replace(estimator, whiten="none")(mixed).columns["advantage"]
    before, size = mixed.counts_bg[0].sum(), mixed.counts_bg[1].sum()
    assert (column[before : before + size] == 0).all()


def test_every_estimator_is_in_the_list():
    classes = [cls for _, cls in inspect.getmembers(advantages, inspect.isclass)]
    own = {cls for cls in classes if issubclass(cls, Estimator)} - {Estimator, RewardEstimator}
    assert {type(row[0]) for row in ESTIMATORS} == own
    assert {cls for cls in own if cls().greedy_baseline} == {ReMax}


# --- single estimators ---------------------------------------------------------------------------


@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
@pytest.mark.parametrize("scale", ["std", "none"])
def test_group_advantage_equals_the_formulas(rng, baseline, scale):
    reward = rng.normal(size=(6, 8))
    valid = rng.random((6, 8)) < 0.8
    valid[0], valid[1, 1:], reward[2] = False, False, 0.3
    eps = float(rng.choice([1e-4, 1e-6, 1e-9]))
    ours = group_advantage(reward, valid, Advantage(baseline, scale, eps))
    for b in range(6):
        r = reward[b, valid[b]]
        if len(r) < 2 or np.ptp(r) == 0:
            assert (ours[b] == 0).all()
            continue
        for i, g in enumerate(np.flatnonzero(valid[b])):
            base = r.mean() if baseline == "mean" else np.delete(r, i).mean()
            want = (r[i] - base) / (r.std(ddof=1) + eps if scale == "std" else 1.0)
            assert ours[b, g] == pytest.approx(want, abs=1e-5)
        assert (ours[b, ~valid[b]] == 0).all()
    assert ours.dtype == np.float32


def test_a_critic_gets_returns_and_is_measured(rng):
    """Returns are formed before whitening; with lam = gamma = 1 they are the rewards to go."""
    episodes = ragged(rng)
    credit = Gae()(episodes)
    want = column_of(episodes, returns(lists(episodes)))
    np.testing.assert_allclose(credit.columns["return"], want, rtol=1e-4, atol=1e-5)
    counted = (episodes.columns["own"] > 0) & (episodes.spread(episodes.valid_bg) > 0)
    r, v = want[counted], episodes.columns["old_value"][counted].astype(np.float64)
    assert credit.metrics == pytest.approx(
        {
            "critic/explained_variance": 1 - np.var(r - v) / (np.var(r) + 1e-5),
            "critic/value_mean": v.mean(),
            "critic/value_min": v.min(),
            "critic/value_max": v.max(),
            "critic/return_mean": r.mean(),
        },
        rel=1e-4,
        abs=1e-5,
    )


def test_an_environment_is_skipped(rng):
    """What it said between own tokens changes nothing: gamma and lam step from own to own."""
    episodes = given([SimpleNamespace(prefix="")], [[np.ones(6), np.ones(4)]])
    episodes.reward_bg = np.array([[1.0, 0.0]])
    value = rng.normal(size=10).astype(np.float32)
    episodes.columns |= {"own": np.float32([1, 1, 0, 0, 1, 1, 1, 1, 1, 1]), "old_value": value}
    short = given([SimpleNamespace(prefix="")], [[np.ones(4), np.ones(4)]])
    short.reward_bg = episodes.reward_bg
    keep = episodes.columns["own"] > 0
    short.columns["old_value"] = value[keep]
    estimator = Gae(0.7, gamma=0.9)
    for name in ("advantage", "return"):
        long = estimator(episodes).columns[name]
        np.testing.assert_allclose(long[keep], estimator(short).columns[name], rtol=1e-6)
        assert (long[~keep] == 0).all()


def test_clip_filter_counts_groups(rng):
    """Two of three groups differ: a weight of 1.5, not the largest."""
    episodes = given([SimpleNamespace(prefix="")] * 3, [[np.ones(2)] * 4] * 3)
    episodes.reward_bg = np.array([[1.0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]])
    found = CpgdAdvantage()(episodes).columns["advantage"].reshape(3, 4, 2)[..., 0]
    np.testing.assert_allclose(found[0], 1.5 * np.array([0.75, -0.25, -0.25, -0.25]), rtol=1e-6)
    assert (found[2] == 0).all()


def test_whitening_moves_equal_groups(rng):
    """As its text says: minus the mean, over the deviation."""
    episodes = given([SimpleNamespace(prefix="")] * 2, [[np.ones(3), np.ones(1)]] * 2)
    episodes.reward_bg = np.array([[1.0, 0.0], [1.0, 1.0]])
    plain = DrGrpo()(episodes).columns["advantage"].astype(np.float64)
    found = ReinforcePlusPlusBaseline()(episodes).columns["advantage"]
    assert (plain[4:] == 0).all()
    np.testing.assert_allclose(found[4:], -plain.mean() / plain.std(ddof=1), rtol=1e-5)


# --- options -------------------------------------------------------------------------------------


def test_the_fields_of_advantage_keep_their_places():
    fields = [field.name for field in dataclasses.fields(Advantage) if not field.kw_only]
    assert fields == ["baseline", "scale", "eps"] and Advantage() == Advantage("mean", "std", 1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Advantage(baseline="median"),
            r"Advantage\.baseline must be 'mean' \| 'leave_one_out' \| 'length', got 'median'",
        ),
        (lambda: Advantage(scale="max"), r"Advantage\.scale"),
        (lambda: Rloo(eps=-1.0), r"Rloo\.eps must be at least 0"),
        (lambda: ReinforceAdvantage(gamma=1.5), r"gamma must be at most 1, got 1\.5"),
        (lambda: Gae(2.0), r"Gae\.lam must be at most 1"),
        (lambda: Opo(whiten="batch"), r"Opo\.whiten must be 'none' \| 'tokens' \| 'responses'"),
        (lambda: Gdpo(penalty_as="score"), r"Gdpo\.penalty_as must be 'return'"),
        (lambda: GpgAdvantage(0.0), r"GpgAdvantage\.f_norm must be over 0"),
        (lambda: CpgdAdvantage("STD"), r"CpgdAdvantage\.weight"),
    ],
)
def test_what_options_do_not_take(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_an_estimator_misses_it_names(rng):
    episodes = step(rng)
    with pytest.raises(
        UserError,
        match=r"Rloo\.adora_reward: no reward is called 'left'; there are 'right', 'form'",
    ):
        Rloo(adora=0.1, adora_reward="left")(episodes)
    episodes.baseline_b, episodes.reward_weights = None, {}
    with pytest.raises(ValueError, match="ReMax compares with a greedy response"):
        ReMax()(episodes)
    with pytest.raises(ValueError, match="Gdpo weighs rewards by name"):
        Gdpo()(episodes)
    with pytest.raises(ValueError, match="needs the tokens of each response"):
        group_advantage(episodes.reward_bg, episodes.valid_bg, Opo())
