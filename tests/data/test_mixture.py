"""Mixtures and curricula: which row stands at which position, whatever the seed."""

import collections
import json

import numpy as np
import pytest
from reference import one_stage

import jaxr1
from jaxr1.base.jsonl import read_jsonl
from jaxr1.data import (
    DataError,
    EasyToHard,
    Files,
    Mixture,
    Part,
    TargetRate,
)
from jaxr1.rewards import Reward


@pytest.fixture
def rows(tmp_path):
    """rows(name, count): a file of so many rows, whose difficulty is their number."""

    def made(name, count, **columns):
        lines = []
        for i in range(count):
            line = {"prompt": f"{name} {i}", "answer": str(i), "difficulty": i}
            lines.append(json.dumps(line | columns))
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
        return str(tmp_path / f"{name}.jsonl")

    return made


def drawn(dataset, seed, count, first=0):
    order = dataset.ordered(seed)
    return [order[position] for position in range(first, first + count)]


def test_shares_hold_at_any_time_and_no_row_is_starved(rows, rng):
    """Each part within a draw of its share, all its rows once before one comes again."""
    sizes = rng.integers(1, 30, int(rng.integers(2, 5)))
    weights = rng.uniform(0.1, 5, len(sizes))
    parts = []
    for i, (size, weight) in enumerate(zip(sizes, weights, strict=True)):
        parts.append(Part(Files(rows(f"p{i}", int(size))), weight=float(weight)))
    dataset = Mixture(tuple(parts)).load()
    assert len(dataset) == sum(sizes) and dataset.name == "+".join(
        f"p{i}" for i in range(len(sizes))
    )
    taken = drawn(dataset, int(rng.integers(99)), 500)
    names = [dataset[row].metadata["mixture_part"] for row in taken]
    share = weights / weights.sum()
    for i in range(len(sizes)):
        is_own = np.array([name == f"p{i}" for name in names])
        lag = np.cumsum(is_own) - share[i] * np.arange(1, len(names) + 1)
        assert np.abs(lag).max() < 1.5
        own = [row for row, keep in zip(taken, is_own, strict=True) if keep]
        for first in range(0, len(own) - int(sizes[i]) + 1, int(sizes[i])):
            one_pass = own[first : first + int(sizes[i])]
            assert len({*one_pass}) == sizes[i]
    # a function of the position alone: from anywhere, in any order
    order = dataset.ordered(5)
    backwards = [order[position] for position in reversed(range(100))]
    assert backwards[::-1] == drawn(dataset, 5, 100)


def test_weights_by_rows_counts_and_names(rows):
    """No weight is the number of rows; "#5" takes five rows, "#25" of ten takes all of them twice
    and five once more.
    """
    a, b = rows("a", 10), rows("b", 30)
    by_rows = Mixture((a, b)).load()
    names = [by_rows[row].metadata["mixture_part"] for row in drawn(by_rows, 0, 400)]
    assert collections.Counter(names) == {"a": 100, "b": 300}
    few = Mixture((f"{a}#5", b)).load()
    assert len(few) == 35 and len({few[i].source for i in range(5)}) == 5
    assert [few[i].source for i in range(5)] != [by_rows[i].source for i in range(5)]
    many = Mixture((f"{a}#25",)).load()
    counts = collections.Counter(many[i].source for i in range(25))
    assert len(counts) == 10 and sorted(counts.values()) == [2] * 5 + [3] * 5
    other = Mixture((f"{a}#5", b), seed=1).load()
    assert [other[i].source for i in range(5)] != [few[i].source for i in range(5)]
    assert Mixture((a, f"{b}#5")).files() == [a, b]


def test_weights_move(rows):
    """From one part to the other over 200 draws, then they stay."""
    parts = (
        Part(Files(rows("a", 10)), weight=1, later=0),
        Part(Files(rows("b", 10)), weight=0.25, later=1),
    )
    dataset = Mixture(parts, over=200).load()
    is_b = [dataset[row].metadata["mixture_part"] == "b" for row in drawn(dataset, 3, 600)]
    assert np.mean(is_b[:20]) == pytest.approx(0.2, abs=0.1)
    assert np.mean(is_b[90:110]) == pytest.approx(0.6, abs=0.1)
    assert all(is_b[202:])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda a: Mixture(()), "no parts"),
        (lambda a: Mixture((f"{a}#x",)).load(), "how many rows to take"),
        (lambda a: Mixture((a, a)).load(), "two parts are called 'a'"),
        (lambda a: Mixture((Part(Files(a), later=1.0),)), "`over` is 0"),
        (lambda a: Mixture((a,), over=5), "only where a part has a `later`"),
        (lambda a: EasyToHard(Mixture((a,)), by="difficulty").load(), "stands around a choice"),
        (lambda a: EasyToHard(Files(a)).load(), "field 'pass_rate': a curriculum needs a number"),
        (lambda a: EasyToHard(Files(a), by="answer").load(), "has the columns 'difficulty'"),
    ],
)
def test_what_cannot_be_meant(rows, make, message):
    path = rows("a", 4)
    with pytest.raises((ValueError, DataError), match=message):
        make(path)


def test_easy_to_hard(rows, rng):
    """Sorted, then with neighbours shuffled, then shuffled altogether; each row once a pass."""
    path, seed = rows("a", 200), int(rng.integers(99))
    strict = EasyToHard(Files(path), by="difficulty", hard="high", window=0, again="sorted").load()
    assert drawn(strict, seed, 400) == [*range(200)] * 2
    down = EasyToHard(Files(path), by="difficulty", hard="low", window=0).load()
    assert drawn(down, seed, 200) == [*range(200)][::-1]
    assert drawn(down, seed, 200, 200) != drawn(down, seed, 200)
    loose = EasyToHard(Files(path), by="difficulty", hard="high", window=0.1).load()
    found = drawn(loose, seed, 200)
    assert sorted(found) == [*range(200)] and found != [*range(200)]
    assert np.abs(np.array(found) - np.arange(200)).max() <= 20
    assert sorted(drawn(loose, seed, 200, 200)) == [*range(200)]


def test_the_window_follows_the_metric(rows, rng):
    """Right too often: harder rows; too seldom: easier ones; in between it stands still."""
    options = TargetRate(Files(rows("a", 100)), by="difficulty", hard="high", pace=0.25)
    order = options.load().ordered(int(rng.integers(99)))
    assert {order[i] for i in range(20)} == {*range(20)}
    for accuracy, first in ((0.9, 20), (0.55, 20), (0.9, 40), (0.1, 20), (1, 40), (1, 60), (1, 80)):
        order.follow({"reward/accuracy": accuracy})
        assert {order[i] for i in range(20)} == {*range(first, first + 20)}
    again = options.load().ordered(0)
    again.resume(order.state)
    assert {again[i] for i in range(20)} == {*range(80, 100)}
    with pytest.raises(DataError, match="no metric 'reward/accuracy'; it has reward/format"):
        order.follow({"reward/format": 1.0})
    # inside a mixture
    mixed = Mixture((Part(options, name="a"), Part(Files(rows("b", 10)), name="b"))).load()
    order = mixed.ordered(1)
    order.follow({"reward/accuracy": 1.0})
    assert order.state == {"0/level": 0.25}
    fresh = mixed.ordered(1)
    fresh.resume({"0/level": 0.25})
    assert [fresh[i] for i in range(50)] == [order[i] for i in range(50)]


def test_a_run_whose_curriculum_moves_resumes(tmp_path, rows, monkeypatch, request):
    """Ended after two steps and gone on with: the same rows as in one go, the window moved."""
    monkeypatch.chdir(request.config.rootpath)
    data = TargetRate(
        Files(rows("a", 40)), by="difficulty", hard="high", metric="reward/sure", pace=0.2
    )
    reward = Reward("tests/run/small_rewards.py:sure")
    config = lambda folder, steps: one_stage(folder, steps=steps, data=data, rewards=(reward,))
    jaxr1.train(config(tmp_path / "whole", 4))
    jaxr1.train(config(tmp_path / "parts", 2))
    jaxr1.train(config(tmp_path / "parts", 4), override_resume=True)
    sources = lambda folder: [
        row["source"]
        for step in range(1, 5)
        for row in read_jsonl(folder / "rollouts" / f"rl_{step}.jsonl")
    ]
    whole = sources(tmp_path / "whole")
    assert whole == sources(tmp_path / "parts")
    numbers = [int(source.rpartition(":")[2]) - 1 for source in whole]
    # always right: each step is drawn from a window 0.2 x 32 rows further on
    for step in range(4):
        first = round(0.2 * step * 32)
        assert {*numbers[8 * step : 8 * step + 8]} <= {*range(first, first + 8)}
