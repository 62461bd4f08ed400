"""The format variants: what each accepts and rejects."""

import time
from typing import get_args

import numpy as np
import pytest

from jaxr1 import data
from jaxr1.data import Arithmetic
from jaxr1.inputs.batch import EncodedPrompt
from jaxr1.inputs.exchange import Draw
from jaxr1.rewards import Completion, Example, format_reward
from jaxr1.rewards.format import Variant, format_reading
from jaxr1.rl.episodes import Episodes
from jaxr1.run import Evaluation, Rl
from jaxr1.sampling import sampler

LONG = "because " * 40  # over 300 characters
# strict  whitespace  lenient  tags  base
TABLE = [
    ("<think>a</think><answer>b</answer>", 1, 1, 1, 1, 0),
    ("<think>a\nb</think><answer>\n3\n4\n</answer>", 1, 1, 1, 1, 0),  # blocks span lines
    ("<think>a</think>\n<answer>b</answer>", 0, 1, 1, 1, 0),
    ("  <think>a</think> <answer>b</answer>\n", 0, 1, 1, 1, 0),
    ("<think>a</think>so<answer>b</answer>", 0, 0, 1, 0, 0),
    ("Sure. <think>a</think> so <answer>b</answer> Bye.", 0, 0, 1, 0, 0),
    ("Sure. <think>a</think> <answer>b</answer> Bye.", 0, 0, 1, 1, 0),
    (f"<think>{LONG}</think><answer>b</answer>", 1, 1, 1, 1, 1),
    (f"Sure. <think>{LONG}</think>\n<answer>b</answer>\n", 0, 0, 1, 1, 1),
    (f"<think>{LONG}</think>\n<answer>b</answer> Bye.", 0, 0, 1, 1, 0),  # more follows
    (f"<think>{' ' * 300}a</think><answer>b</answer>", 1, 1, 1, 1, 0),  # 300 blanks are no thought
    ("<think></think><answer>b</answer>", 0, 0, 0, 0, 0),  # empty blocks
    ("<think> \n</think><answer>b</answer>", 0, 0, 0, 0, 0),
    ("<think>a</think><answer> </answer>", 0, 0, 0, 0, 0),
    (f"<think>{LONG}</think><think>a</think><answer>b</answer>", 0, 0, 0, 0, 0),  # a tag twice
    (f"<think>{LONG}</think><answer>b</answer><answer>c</answer>", 0, 0, 0, 0, 0),
    (f"<think>{LONG}<answer>x</answer></think><answer>b</answer>", 0, 0, 0, 0, 0),
    (f"<think>{LONG}<answer>b</answer></think>", 0, 0, 0, 0, 0),  # nested
    (f"<answer>b</answer><think>{LONG}</think>", 0, 0, 0, 0, 0),  # the wrong order
    (f"{LONG}</think><answer>b</answer>", 0, 0, 0, 0, 0),  # a tag is missing
    (f"<think>{LONG}</think><answer>b", 0, 0, 0, 0, 0),
    ("<Think>a</Think><answer>b</answer>", 0, 0, 0, 0, 0),
    ("", 0, 0, 0, 0, 0),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row[0][:30])
def test_format_strictness_levels_accept_and_reject_what_the_table_says(row):
    text, *expected = row
    for variant, value in zip(get_args(Variant), expected, strict=True):
        assert format_reward(Completion(text), Example(), variant=variant) == float(value), variant


def test_format_of_a_base_model_includes_the_think_tag_that_the_prompt_holds():
    """The template opens the block, the model goes on: what is judged begins with the tag."""
    ids = np.zeros(2, np.int32)
    prompt = EncodedPrompt(ids, ids, np.zeros((2, 3), np.int32), 2, prefix="<think>\n")
    text = "a</think>\n<answer>b</answer>"
    said = sampler.Completion(text, ids, np.zeros(2, np.float32), "stop", entropy=0.0)
    draw = Draw(0, 0, data.Example(({"role": "user", "content": "?"},), "b"), prompt)
    ((completion, example),) = Episodes.sampled([draw], [[said]]).items()
    assert format_reward(completion, example) == 1.0
    assert format_reward(Completion(text), example) == 0.0


def test_truncated_is_a_format_failure_of_that_completion_alone():
    text = "<think>a</think><answer>b</answer>"
    finished = [
        format_reward(Completion(text, reason), Example()) for reason in ("stop", "length", "stop")
    ]
    assert finished == [1.0, 0.0, 1.0]


def test_training_and_evaluation_ask_for_one_form():
    """Whitespace between the tags costs nothing unless "strict" is asked for."""
    spaced = Completion("<think>a</think>\n<answer>b</answer>")
    assert format_reward(spaced) == 1.0 and format_reward(spaced, variant="strict") == 0.0
    evaluation, stage = Evaluation(Arithmetic(count=1)), Rl(Arithmetic(count=1))
    rewards = [(reward.function, reward.options) for reward in stage.rewards]
    assert rewards == [(reward.function, reward.options) for reward in evaluation.rewards]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<think>a</think> <answer>b</answer>", "finds the form"),
        ("no tags", "finds none of <think> </think> <answer> </answer>"),
        ("<think>a</think> b", "does not find <answer> </answer> once each"),
        ("<think>a</think> so <answer>b</answer>", "finds the tags, but not in the form"),
    ],
)
def test_what_format_finds_is_said(text, said):
    assert format_reading(Completion(text)).startswith(said)
    assert format_reading(Completion(text, "length")) == "finds a response that was cut"


def test_unknown_variant():
    with pytest.raises(ValueError, match="'loose'"):
        format_reward(Completion(""), Example(), variant="loose")


def test_linear_time():
    junk = "<think>" * 20_000 + "</think><answer>" * 20_000 + " " * 200_000
    start = time.perf_counter()
    for variant in ("strict", "whitespace", "lenient"):
        format_reward(
            Completion("<think>" + " " * 1_000_000 + "x</think><answer>b</answer>"),
            Example(),
            variant=variant,
        )
        format_reward(Completion(junk), Example(), variant=variant)
    assert time.perf_counter() - start < 2.0
