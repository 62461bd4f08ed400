"""Episodes: responses, grades and columns of a step in one order."""

import dataclasses

import numpy as np
import pytest

from jaxr1.base.names import is_component
from jaxr1.data import Example
from jaxr1.inputs.batch import EncodedPrompt
from jaxr1.inputs.exchange import Draw
from jaxr1.rewards.grades import Grade
from jaxr1.rewards.types import ImageSize
from jaxr1.rl.episodes import Episodes
from jaxr1.rl.journal import Journal
from jaxr1.sampling.sampler import Completion


def prompt(length: int, prefix: str = "") -> EncodedPrompt:
    """A prompt of text only."""
    return EncodedPrompt(
        token_ids=np.arange(length, dtype=np.int32),
        media_index=np.full(length, -1, np.int32),
        position=np.tile(np.arange(length, dtype=np.int32)[:, None], 3),
        next_position=length,
        patches=(),
        grids=(),
        spans=(),
        hashes=("ab",),
        prefix=prefix,
        sizes=((640, 480, 308, 224),),
    )


@dataclasses.dataclass
class Step:
    """A sampled step of random lengths: 4 prompts with 3 responses, and their grades."""

    episodes: Episodes
    grades: list[Grade]


@pytest.fixture
def step(rng):
    draws, groups, grades = [], [], []
    for b in range(4):
        messages = ({"role": "user", "content": f"question {b}"},)
        example = Example(messages, str(b), None, f"rows.jsonl:{b + 1}", {"level": b})
        draws.append(Draw(10 + b, b, example, prompt(5 + b, prefix="<think>")))
        group = []
        for g in range(3):
            size = int(rng.integers(1, 6))
            logp = -rng.random(size).astype(np.float32)
            reason = "length" if size == 5 else "stop"
            ids = rng.integers(0, 99, size).astype(np.int32)
            group.append(Completion(f"text {b} {g}", ids, logp, reason, entropy=0.5))
            grades.append(Grade(float(rng.integers(3)), {"spread": 1.0, "brief": None}))
        groups.append(group)
    lost = Grade(None, {"spread": None, "brief": None}, "timeout", "over 1 s")
    grades[4] = lost
    return Step(Episodes.sampled(draws, groups), grades)


def test_columns_follow_the_responses(step, rng):
    """`spread` and `sums` against a loop; what is sampled is the first column."""
    episodes = step.episodes
    said = [c for group in episodes.groups for c in group]
    np.testing.assert_array_equal(episodes.token_n, np.concatenate([c.token_ids for c in said]))
    sampled = np.concatenate([c.logprobs for c in said])
    np.testing.assert_array_equal(episodes.columns["sampled_logp"], sampled)
    assert set(episodes.columns) == {"own", "sampled_logp"} and not episodes.valid_bg.any()

    value_bg = rng.normal(size=(4, 3))
    spread, at = episodes.spread(value_bg), 0
    sums_bg = episodes.sums(sampled)
    for b in range(4):
        for g in range(3):
            size = len(episodes.groups[b][g].token_ids)
            assert episodes.counts_bg[b, g] == size
            np.testing.assert_array_equal(spread[at : at + size], np.float32(value_bg[b, g]))
            np.testing.assert_allclose(sums_bg[b, g], sampled[at : at + size].sum(), rtol=1e-6)
            at += size
    assert at == len(spread) and spread.dtype == np.float32


def test_grades_of_what_failed_are_no_rewards(step):
    episodes, grades = step.episodes, step.grades
    episodes.grade(grades)
    assert episodes.valid_bg.sum() == 11 and not episodes.valid_bg[1, 1]
    assert episodes.reward_bg[1, 1] == 0 and episodes.reward_bg[2, 0] == grades[6].total
    [(source, reason)] = episodes.unscored()
    assert source == "rows.jsonl:2" and "draw 11, sample 1" in reason and "over 1 s" in reason

    metrics = episodes.metrics()
    scored = [grade.total for grade in grades if grade.total is not None]
    assert metrics["reward/mean"] == pytest.approx(np.mean(scored))
    assert metrics["reward/timeouts"] == metrics["reward/unscored"] == 1
    assert metrics["reward/spread"] == 1 and np.isnan(metrics["reward/brief"])
    assert metrics["rollout/length_mean"] == pytest.approx(episodes.counts_bg.mean())
    assert metrics["rollout/frac_truncated"] == pytest.approx((episodes.counts_bg == 5).mean())
    assert metrics["rollout/entropy"] == 0.5


def test_a_group_of_equal_rewards_is_known(step):
    rewards = [1, 1, 1, 2, None, 2, 0, 1, 0, 3, None, None]
    step.episodes.grade([Grade(r, {}) for r in rewards])
    assert step.episodes.zero_std_b.tolist() == [True, True, False, True]


def test_parts_hold_their_share_of_everything(step, rng):
    episodes = step.episodes
    episodes.grade(step.grades)
    episodes.columns["advantage"] = rng.normal(size=len(episodes.token_n)).astype(np.float32)
    episodes.views["policy"] = [prompt(3 + b) for b in range(4)]
    parts = episodes.split(2)
    assert [len(part.draws) for part in parts] == [2, 2]
    for name in episodes.columns:
        joined = np.concatenate([part.columns[name] for part in parts])
        np.testing.assert_array_equal(joined, episodes.columns[name])
    for name in ("counts_bg", "valid_bg", "reward_bg"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(joined, getattr(episodes, name))
    assert [row for part in parts for row in part.rows()] == episodes.rows()
    assert parts[1].seen_by("policy") == episodes.views["policy"][2:]
    assert parts[1].seen_by("critic") == [draw.prompt for draw in episodes.draws[2:]]


def test_rewards_see_the_prefix_and_rows_tell_all(step):
    """The advantage of a row is the mean over its tokens."""
    episodes = step.episodes
    episodes.grade(step.grades)
    completion, example = episodes.items()[5]
    assert completion.text == "<think>text 1 2"
    assert completion.length == episodes.counts_bg[1, 2]
    assert (example.question, example.answer) == ("question 1", "1")
    assert example.metadata == {"level": 1} and example.source == "rows.jsonl:2"
    assert example.images == (ImageSize(640, 480, seen_width=308, seen_height=224),)
    assert list(completion.token_ids) == episodes.groups[1][2].token_ids.tolist()
    assert "advantage" not in episodes.rows()[0]

    episodes.columns["advantage"] = np.arange(len(episodes.token_n), dtype=np.float32)
    rows = episodes.rows()
    assert [row["draw"] for row in rows[::3]] == [10, 11, 12, 13]
    assert rows[5]["response"] == "<think>text 1 2" and rows[5]["media"] == ["ab"]
    size = len(episodes.groups[0][0].token_ids)
    assert rows[0]["advantage"] == pytest.approx((size - 1) / 2)
    assert rows[4]["status"] == "timeout" and rows[4]["reward"] is None


def test_components_of_a_reward_are_logged_by_name(step):
    """Also where not every response has them; they are no terms of the sum."""
    for i, grade in enumerate(step.grades[2:]):
        grade.by_name["spread/wide"] = float(i % 2)
    step.episodes.grade(step.grades)
    metrics = step.episodes.metrics()
    assert metrics["reward/spread/wide"] == 0.5
    assert is_component("reward/spread") and not is_component("reward/spread/wide")


def test_given_groups_may_differ_in_size():
    """A sample that a smaller group lacks has no tokens and does not count."""
    tokens = [[np.arange(3), np.arange(2)], [np.arange(4)]]
    draws = [Draw(b, b, Example((), None), prompt(4)) for b in range(2)]
    episodes = Episodes.given(draws, tokens)
    assert episodes.counts_bg.tolist() == [[3, 2], [4, 0]]
    assert episodes.valid_bg.tolist() == [[True, True], [True, False]]
    assert episodes.token_n.tolist() == [0, 1, 2, 0, 1, 0, 1, 2, 3]


def test_a_journal_replays_only_the_same_responses(step, tmp_path):
    episodes = step.episodes
    episodes.grade(step.grades)
    journal = Journal(tmp_path, "rl")
    assert not journal.has(1) and journal.replay(1, episodes) is None
    journal.write(1, episodes)
    assert journal.has(1) and journal.replay(1, episodes) == step.grades
    other = [list(group) for group in episodes.groups]
    other[3][2] = dataclasses.replace(other[3][2], text="another")
    assert journal.replay(1, dataclasses.replace(episodes, groups=other)) is None
