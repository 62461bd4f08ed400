"""Held-out sets: their rewards have options of their own, and their workers stay."""

import dataclasses
import gc
import time
from pathlib import Path

import numpy as np
import pytest

import jaxr1
from jaxr1.data import Arithmetic
from jaxr1.data.example import DataError, Dataset, Example
from jaxr1.evaluation.heldout import Evaluation, HeldOut, answers_to
from jaxr1.rewards import Reward, WorkerOptions

FILE = Path(__file__).parents[1] / "rewards" / "user_rewards.py"


@pytest.fixture(scope="module")
def model():
    return jaxr1.load_model("tiny")


def small(name: str, *functions: str, **options) -> Evaluation:
    rewards = tuple(Reward(f"{FILE}:{function}") for function in functions)
    sizes = dict(max_prompt_tokens=32, max_response_tokens=4, batch_rows=4, samples=0)
    return Evaluation(Arithmetic(count=4, split="test"), name, rewards, **sizes, **options)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")
def test_workers_stay_from_one_evaluation_to_the_next(model, tmp_path):
    """Sets alike share them; other options mean other workers. They end with the sets."""
    sets = (small("a", "process"), small("b", "process"), small("c", "process", reward_timeout_s=9))
    held_out = HeldOut(tmp_path, sets, jaxr1.load_processor("tiny"), 0)
    (tmp_path / "rollouts").mkdir()
    of = lambda found: [found[f"eval/{name}/process"] for name in "abc"]
    first = of(held_out.evaluate(*model, "s", 0))
    assert first[0] == first[1] != first[2]
    assert of(held_out.evaluate(*model, "s", 1)) == first
    held_out.close()
    third = of(held_out.evaluate(*model, "s", 2))
    assert not set(third) & set(first)
    assert all(Path(f"/proc/{pid:.0f}").exists() for pid in third)
    del held_out
    gc.collect()
    until = time.monotonic() + 10
    while any(Path(f"/proc/{pid:.0f}").exists() for pid in third):
        assert time.monotonic() < until, "workers outlive their sets"
        time.sleep(0.1)


def test_options_reach_the_workers(model, tmp_path):
    options = WorkerOptions(devices="3", memory_gib=None)
    sets = (small("a", "allowed", reward_workers=2, reward_options=options),)
    held_out = HeldOut(tmp_path, sets, jaxr1.load_processor("tiny"), 0)
    (tmp_path / "rollouts").mkdir()
    assert held_out.evaluate(*model, "s", 0)["eval/a/allowed"] == 3.0
    (pool,) = held_out._pools.values()
    assert (len(pool._threads), pool.timeout_s, pool.options) == (2, 10.0, options)
    held_out.close()
    for wrong, said in (
        (dict(reward_workers=0), "reward_workers must be at least 1"),
        (dict(reward_timeout_s=0), "reward_timeout_s must be over 0"),
        (dict(reward_options=3), "reward_options must be WorkerOptions"),
    ):
        with pytest.raises(ValueError, match=f"evaluation 'a': {said}"):
            small("a", "allowed", **wrong)


def test_what_cannot_be_asked_names_its_row(model):
    """A picture over the largest patch row, known from its header: before it is decoded."""
    thin = {"type": "image", "image": np.zeros((30, 5000, 3), np.uint8)}
    rows = [
        Example(({"role": "user", "content": [part]},), "1", source=f"mine.jsonl:{i + 1}")
        for i, part in enumerate([{"type": "text", "text": "1 + 1"}, thin])
    ]
    options = dataclasses.replace(small("a", "process"), max_prompt_tokens=1024)
    data = Dataset("mine", 2, rows.__getitem__)
    processor = jaxr1.load_processor("tiny")
    ask = (processor, 0, None, lambda: None, lambda *row: None)
    asked = answers_to(options, data, *model, *ask)
    with pytest.raises(
        DataError, match=r"^mine\.jsonl:2: an image has \d+ patches, over the limit"
    ):
        next(asked)
