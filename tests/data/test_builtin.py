"""Built-in data: pure functions of their options, right answers, test digits never trained on."""

import os
import random
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from jaxr1.data.arithmetic import OPERATIONS, Arithmetic, _digits, digit_split
from jaxr1.data.choices import shuffle_options
from jaxr1.data.example import DataError, Example
from jaxr1.data.spatial import TASKS, Spatial

SEED = int(os.environ.get("JAXR1_TEST_SEED", random.SystemRandom().randrange(2**31)))


@pytest.fixture(autouse=True)
def _print_seed():
    print(f"JAXR1_TEST_SEED={SEED}")


def same(a: Example, b: Example) -> bool:
    return (
        (a.answer, a.response, a.source, a.metadata, a.question)
        == (b.answer, b.response, b.source, b.metadata, b.question)
        and len(a.images) == len(b.images)
        and all(np.array_equal(x, y) for x, y in zip(a.images, b.images, strict=True))
    )


@pytest.mark.parametrize("kind", [Arithmetic, Spatial])
def test_examples_are_pure_functions_of_seed_split_and_row(kind):
    dataset = kind(count=40, seed=SEED, worked=True).load()
    again = kind(count=40, seed=SEED, worked=True).load()
    assert len(dataset) == 40
    for i in reversed(range(40)):  # in another order, too
        assert same(dataset[i], again[i])
    later = kind(count=10, seed=SEED, start=30, worked=True).load()
    assert all(same(a, b) for a, b in zip(later, dataset[30:], strict=True))
    for other in (kind(count=40, seed=SEED + 1), kind(count=40, seed=SEED, split="test")):
        assert not any(
            np.array_equal(a.images[0], b.images[0])
            for a, b in zip(dataset, other.load(), strict=True)
        )
    with pytest.raises(IndexError):
        dataset[40]


@pytest.mark.parametrize("kind", [Arithmetic, Spatial])
def test_blank_control_keeps_question_and_answer(kind):
    seen = kind(count=20, seed=SEED).load()
    blank = kind(count=20, seed=SEED, blank=True).load()
    for a, b in zip(seen, blank, strict=True):
        assert (a.question, a.answer) == (b.question, b.answer)
        assert a.images[0].shape == b.images[0].shape
        assert (b.images[0] == 255).all() and not (a.images[0] == 255).all()


def test_digits_match_their_origin():
    datasets = pytest.importorskip("sklearn.datasets")
    origin = datasets.load_digits()
    image_nhw, label = _digits()
    np.testing.assert_array_equal(image_nhw, origin.images)
    np.testing.assert_array_equal(label, origin.target)


def test_test_digits_are_never_trained_on():
    split = digit_split()
    train, test = set(split["train"].tolist()), set(split["test"].tolist())
    assert not train & test and train | test == set(range(1797)) and 380 <= len(test) <= 410
    image_nhw, label = _digits()
    for indices in split.values():
        assert min(Counter(label[indices].tolist()).values()) >= 35
    # Not only by index: no picture of the test part occurs in the train part.
    pictures = [{image_nhw[i].tobytes() for i in part} for part in (train, test)]
    assert not pictures[0] & pictures[1]
    for name, allowed in (("train", train), ("test", test)):
        for example in Arithmetic(count=300, split=name, seed=SEED, digits=3).load():
            assert set(example.metadata["samples"]) <= allowed
            assert label[example.metadata["samples"]].tolist() == example.metadata["digits"]


def test_arithmetic_answers():
    rules = {
        "sum": lambda d: sum(d),
        "product": lambda d: int(np.prod(d)),
        "difference": lambda d: max(d) - min(d),
        "largest digit": lambda d: max(d),
        "smallest digit": lambda d: min(d),
    }
    names = {"add": "sum", "largest": "largest digit", "smallest": "smallest digit"}
    asked = Counter()
    for digits in (2, 3):
        dataset = Arithmetic(
            count=200, seed=SEED, operations=OPERATIONS, digits=digits, worked=True
        ).load()
        for example in dataset:
            key = names.get(example.metadata["operation"], example.metadata["operation"])
            assert f"the {key}" in example.question
            answer = str(rules[key](example.metadata["digits"]))
            assert example.answer == answer
            assert example.response.endswith(f" = {answer}</think>\n<answer>{answer}</answer>")
            assert (
                example.images[0].shape == (28, 28 * digits, 3)
                and example.images[0].dtype == np.uint8
            )
            asked[key] += 1
    assert set(asked) == set(rules) and min(asked.values()) > 30
    (example,) = Arithmetic(count=1, seed=SEED, worked=True).load()
    first, second = example.metadata["digits"]
    total = first + second
    assert (
        example.response == f"<think>{first} + {second} = {total}</think>\n<answer>{total}</answer>"
    )
    assert Arithmetic(count=1).load()[0].response is None


def shrunk(window):
    """The means of 8 x 8 blocks of a picture, which need not divide into them."""
    rows = [rows.mean(0) for rows in np.array_split(window, 8)]
    return np.stack([columns.mean(1) for columns in np.array_split(np.stack(rows), 8, axis=1)], 1)


def test_the_picture_shows_the_digits():
    """A nearest-neighbour reader that knows only the train digits reads most test pictures."""
    image_nhw, label = _digits()
    train = digit_split()["train"]
    known = image_nhw[train].reshape(-1, 64).astype(float)
    right = total = 0
    for example in Arithmetic(count=100, split="test", seed=SEED, noise=0.0).load():
        for place, digit in enumerate(example.metadata["digits"]):
            ink = 255 - example.images[0][:, place * 28 : (place + 1) * 28, 0].astype(float)
            best = np.inf, -1
            for top in range(7):
                for left in range(7):
                    window = ink[top : top + 22, left : left + 22]
                    distance = ((known - shrunk(window).reshape(64) / 15) ** 2).sum(-1)
                    best = min(best, (float(distance.min()), int(label[train][distance.argmin()])))
            right += best[1] == digit
            total += 1
    assert right / total > 0.8, right / total


def things_of(example):
    return {name: (x, y, radius) for name, x, y, radius in example.metadata["things"]}


def test_spatial_answers():
    """Answers recomputed from where the things are, not from how the scene was made."""
    asked = Counter()
    for example in Spatial(count=600, seed=SEED, worked=True).load():
        meta, things = example.metadata, things_of(example)
        question = example.question.split(" Choose from: ")[0].rstrip("?")
        assert meta["choices"]["ABCD".index(example.answer)] == meta["answer_text"]
        assert len(set(meta["choices"])) == len(meta["choices"])
        assert example.response.endswith(f"<answer>{example.answer}</answer>")
        names = [
            name
            for _, name in sorted((question.find(name), name) for name in things)
            if question.find(name) >= 0
        ]
        if meta["task"] == "relation":
            (ax, ay, _), (bx, by, _) = things[names[0]], things[names[1]]
            dx, dy = ax - bx, ay - by
            assert abs(abs(dx) - abs(dy)) > 0.1
            expected = "above" if dy < 0 else "below"
            if abs(dx) > abs(dy):
                expected = "left" if dx < 0 else "right"
        elif meta["task"] == "count":
            kind = question.removeprefix("How many ").removesuffix("s are in the picture")
            expected = str(sum(name == kind for name, *_ in meta["things"]))
        elif meta["task"] == "depth":
            expected = "the " + max(things, key=lambda name: things[name][1] + things[name][2])
            assert expected == "the " + max(things, key=lambda name: things[name][2])
        else:
            anchor, *others = names
            gap = {
                name: np.hypot(*np.subtract(things[name][:2], things[anchor][:2]))
                for name in others
            }
            expected = "the " + min(gap, key=gap.get)
            assert max(gap.values()) > 1.4 * min(gap.values())
        assert meta["answer_text"] == expected
        assert example.images[0].shape == (112, 112, 3)
        asked[meta["task"]] += 1
    assert set(asked) == set(TASKS) and min(asked.values()) > 100


def test_things_are_visible_and_inside():
    for example in Spatial(count=200, seed=SEED).load():
        for _, x, y, radius in example.metadata["things"]:
            assert 0 <= x - radius and x + radius <= 1 and 0 <= y - radius and y + radius <= 1


def test_letters_are_balanced():
    letters = {task: Counter() for task in TASKS}
    for example in Spatial(count=2000, seed=SEED).load():
        letters[example.metadata["task"]][example.answer] += 1
    for task, counts in letters.items():
        options = 4 if task in ("relation", "count") else 2
        total = counts.total()
        assert set(counts) == set("ABCD"[:options])
        # Five standard deviations of a fair draw: fails about once in a million runs when nothing
        # is wrong.
        slack = 5 * np.sqrt(total * (1 / options) * (1 - 1 / options))
        assert all(abs(count - total / options) < slack for count in counts.values()), (
            task,
            counts,
        )


def test_shuffle_options_refuses_ambiguity():
    rng = np.random.default_rng(SEED)
    with pytest.raises(ValueError, match="exactly one"):
        shuffle_options(["a", "b"], "c", rng)
    with pytest.raises(ValueError, match="exactly one"):
        shuffle_options(["a", "a"], "a", rng)


@pytest.mark.parametrize(
    "options",
    [
        Arithmetic(count=0),
        Arithmetic(count=1, split="validation"),
        Arithmetic(count=1, seed=-1),
        Arithmetic(count=1, start=-1),
        Arithmetic(count=1, operations=("divide",)),
        Arithmetic(count=1, operations=()),
        Arithmetic(count=1, digits=0),
        Arithmetic(count=1, cell=4),
        Arithmetic(count=1, noise=-1.0),
        Spatial(count=0),
        Spatial(count=1, tasks=("colour",)),
        Spatial(count=1, tasks=()),
        Spatial(count=1, size=4),
    ],
)
def test_options_out_of_range(options):
    with pytest.raises(DataError):
        options.load()


def test_data_does_not_import_jax():
    code = "import sys, jaxr1.data, jaxr1.inputs.images; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_arithmetic_in_words():
    """Without pictures the question lists the digits; the same rows have the same answers."""
    shown = Arithmetic(count=20, digits=3).load()
    listed = Arithmetic(count=20, digits=3, pictures=False).load()
    for a, b in zip(shown, listed, strict=True):
        assert a.answer == b.answer and not b.images and len(a.images) == 1
        assert ", ".join(map(str, a.metadata["digits"])) in b.question
    with pytest.raises(DataError, match="blank"):
        Arithmetic(count=1, blank=True, pictures=False).load()
