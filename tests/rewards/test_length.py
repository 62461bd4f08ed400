"""Rewards of the length of a response, and of what it repeats, against their formulas."""

import collections
import json
import math

import numpy as np
import pytest

from jaxr1.rewards import (
    Completion,
    Example,
    Reward,
    RewardPool,
    cosine_reward,
    repetition_reward,
    soft_overlong_reward,
    stop_properly_reward,
)

RIGHT, WRONG = "<answer>7</answer>", "<answer>8</answer>"
SEVEN = Example("3 + 4?", "7")


def said(text="", length=1, cut=False):
    return Completion(text, "length" if cut else "stop", length)


def test_the_length_crosses_a_process_boundary(tmp_path):
    completion = said(RIGHT, 12)
    assert Completion.from_json(json.loads(json.dumps(completion.to_json()))) == completion
    reward = Reward("soft_overlong", options={"max_length": 16, "buffer": 8})
    with RewardPool([reward], directory=tmp_path) as pool:
        [grade] = pool.submit([(completion, SEVEN)]).result()
    assert grade.total == -0.5


def test_soft_overlong_equals_its_formula(rng):
    """The three pieces of DAPO's equation 13; the two ends belong to both sides."""
    most = int(rng.integers(10, 100))
    buffer = int(rng.integers(1, most + 1))
    options = {"max_length": most, "buffer": buffer}
    for length in range(1, 2 * most):
        if length <= most - buffer:
            want = 0.0
        elif length <= most:
            want = (most - buffer - length) / buffer
        else:
            want = -1.0
        assert soft_overlong_reward(said(length=length), **options) == pytest.approx(want)
        falls = soft_overlong_reward(said(length=length), floor=False, **options)
        assert falls == pytest.approx(min(0, (most - buffer - length) / buffer))
    assert falls < -1


@pytest.mark.parametrize(
    ("options", "right", "wrong"),
    [
        ({}, (1.0, 0.5), (-1.0, -0.5)),
        ({"wrong_start": -0.5, "wrong_end": 0.0, "clamp": False}, (1.0, 0.5), (-0.5, 0.0)),
        ({"wrong_start": 0.0, "wrong_end": -0.5}, (1.0, 0.5), (0.0, -0.5)),
        ({"correct_start": 2.0, "correct_end": 1.5}, (2.0, 1.5), (-1.0, -0.5)),
    ],
    ids=["TRL", "ms-swift", "VLM-R1", "own"],
)
def test_cosine_equals_its_formula(rng, options, right, wrong):
    """For right answers and for wrong ones: which it is, is read in the response."""
    most = int(rng.integers(5, 50))
    for text, (start, end) in ((RIGHT, right), (WRONG, wrong)):
        give = lambda length, text=text: cosine_reward(
            said(text, length), SEVEN, max_length=most, **options
        )
        for length in range(1, 2 * most):
            share = length / most
            share = min(1.0, share) if options.get("clamp", True) else share
            want = end + 0.5 * (start - end) * (1 + math.cos(math.pi * share))
            assert give(length) == pytest.approx(want)
        assert give(most) == pytest.approx(end)
        # Short right answers are best; a wrong one is the better the more it has thought, but where
        # the options say the opposite.
        assert (give(1) > give(most)) == (start > end)


def test_cosine_reads_what_is_right():
    """A wrong answer has never the reward of a right one, nor is a cut one guessed at."""
    give = lambda text, **more: cosine_reward(said(text, 5, **more), SEVEN, max_length=10)
    assert give(RIGHT) > 0 > give(WRONG) and give("It is 7.") > 0
    assert give("It is 7", cut=True) < 0
    assert cosine_reward(said("It is 7.", 5), SEVEN, max_length=10, tail=False) < 0
    assert cosine_reward(said(RIGHT, 5), Example("?", None), max_length=10) is None


def test_stop_properly():
    assert stop_properly_reward(said(cut=True)) == -1 and stop_properly_reward(said()) == 0
    assert stop_properly_reward(said(cut=True), cut=-0.25) == -0.25


@pytest.mark.parametrize("ngram", [1, 2, 3, 6])
def test_repetition_equals_its_formula(rng, ngram):
    for _ in range(20):
        words = [str(w) for w in rng.choice(["so", "So", "then", "7,"], rng.integers(0, 25))]
        text = " ".join(w + str(rng.choice(["", "\n", "  "])) for w in words)
        for lower in (True, False):
            seen = [w.lower() if lower else w for w in words]
            counts = collections.Counter(
                " ".join(seen[i : i + ngram]) for i in range(max(0, len(seen) - ngram + 1))
            )
            total = sum(counts.values())
            want = -0.5 * (1 - len(counts) / total) if total else 0.0
            given = repetition_reward(said(text), ngram=ngram, penalty=-0.5, lower=lower)
            assert given == pytest.approx(want)


def test_repetition_by_example():
    """One phrase for ever tends to the whole penalty; nothing said twice costs nothing."""
    assert repetition_reward(said("a b c " * 100)) == pytest.approx(-(1 - 3 / 298))
    assert repetition_reward(said("one two three four")) == 0
    assert repetition_reward(said("one two")) == 0
    assert repetition_reward(said("")) == 0


@pytest.mark.parametrize(
    ("give", "message"),
    [
        (
            lambda: soft_overlong_reward(said(length=3), max_length=4, buffer=5),
            r"buffer must be in 1 to max_length \(4\), got 5",
        ),
        (
            lambda: soft_overlong_reward(said(length=0), max_length=4, buffer=2),
            "soft_overlong reward: the completion does not say its length",
        ),
        (lambda: cosine_reward(said(RIGHT), SEVEN, max_length=0), "max_length must be at least 1"),
        (
            lambda: cosine_reward(said(RIGHT, 0), SEVEN, max_length=9),
            "cosine reward: the completion does not say its length",
        ),
        (lambda: repetition_reward(said(), ngram=0), "ngram must be at least 1, got 0"),
        (lambda: repetition_reward(said(), penalty=0.5), "penalty must be 0 at most, got 0.5"),
    ],
)
def test_what_length_rewards_refuse(give, message):
    with pytest.raises(ValueError, match=message):
        give()


def test_no_built_in_reward_pays_for_every_token(rng):
    """Twice as long, and nothing more said: no reward of a right answer grows."""
    lengths = sorted(int(n) for n in rng.integers(1, 60, 10))
    for give in (
        lambda c: soft_overlong_reward(c, max_length=50, buffer=20),
        lambda c: cosine_reward(c, SEVEN, max_length=50),
        lambda c: stop_properly_reward(c),
    ):
        values = [give(said(RIGHT, n)) for n in lengths]
        assert np.all(np.diff(values) <= 0)
