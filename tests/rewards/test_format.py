"""The three format variants: what each accepts and rejects."""

import time

import pytest

from jaxr1.data import Arithmetic
from jaxr1.rewards import Completion, Example, format_reward
from jaxr1.rewards.format import format_reading
from jaxr1.run import Evaluation, Rl

# strict  whitespace  lenient
TABLE = [
    ("<think>a</think><answer>b</answer>", 1, 1, 1),
    ("<think>a\nb</think><answer>\n3\n4\n</answer>", 1, 1, 1),  # blocks span lines
    ("<think>a</think>\n<answer>b</answer>", 0, 1, 1),
    ("  <think>a</think> <answer>b</answer>\n", 0, 1, 1),
    ("<think>a</think>so<answer>b</answer>", 0, 0, 1),
    ("Sure. <think>a</think> so <answer>b</answer> Bye.", 0, 0, 1),
    ("<think></think><answer>b</answer>", 0, 0, 0),  # empty blocks
    ("<think> \n</think><answer>b</answer>", 0, 0, 0),
    ("<think>a</think><answer> </answer>", 0, 0, 0),
    ("<think>a</think><think>a</think><answer>b</answer>", 0, 0, 0),  # a tag twice
    ("<think>a</think><answer>b</answer><answer>c</answer>", 0, 0, 0),
    ("<think>a<answer>x</answer></think><answer>b</answer>", 0, 0, 0),
    ("<think>a<answer>b</answer></think>", 0, 0, 0),  # nested
    ("<answer>b</answer><think>a</think>", 0, 0, 0),  # the wrong order
    ("a</think><answer>b</answer>", 0, 0, 0),  # a tag is missing
    ("<think>a</think><answer>b", 0, 0, 0),
    ("<Think>a</Think><answer>b</answer>", 0, 0, 0),
    ("", 0, 0, 0),
]


@pytest.mark.parametrize(("text", "strict", "whitespace", "lenient"), TABLE)
def test_variants(text, strict, whitespace, lenient):
    for variant, expected in (("strict", strict), ("whitespace", whitespace), ("lenient", lenient)):
        value = format_reward(Completion(text), Example(), variant=variant)
        assert value == float(expected), variant


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
