"""The table of built-in rewards: every row names a function, and tells its options."""

import inspect
import subprocess
import sys
from typing import Literal

import pytest

from jaxr1.rewards import Completion, Example, Reward, accuracy_reward
from jaxr1.rewards.builtin import BUILT_IN, name_of, wanted_instead
from jaxr1.rewards.types import ImageSize
from jaxr1.rewards.worker import Grader

# What a right answer of 20 tokens gets, and the options that a reward must be given.
RIGHT = {
    "accuracy": (1.0, {}),
    "format": (1.0, {}),
    "soft_overlong": (-0.5, {"max_length": 24, "buffer": 8}),
    "cosine": (0.75, {"max_length": 40}),
    "stop_properly": (0.0, {}),
    "repetition": (0.0, {}),
    "format_result": ({"score": 1.0, "format": 1.0, "accuracy": 1.0}, {}),
    "label": ({"score": 1.0, "parsed": 1.0}, {}),
    "iou": ({"score": 1.0, "iou": 1.0}, {}),
    "detection": ({"score": 1.0, "position": 1.0, "label": 1.0, "completeness": 1.0}, {}),
    "numeric": (1.0, {}),
    "yes_no": (1.0, {}),
    "choice_text": (1.0, {}),
    "all_match": (1.0, {}),
    "json_fields": ({"score": 1.0, "share": 1.0}, {}),
    # A push onto the target: 1 + 10 - 0.1; one move; "1 + 1" has no word.
    "sokoban": (
        {"score": 11.45, "play": 10.9, "format": 1.0, "plan": 0.05, "thinking": 0.0},
        {},
    ),
}
# Right answers other than 2.
ANSWERS = {
    "iou": "[10, 10, 20, 30]",
    "detection": '[{"bbox_2d": [10, 10, 20, 30], "label": "cat"}]',
    "yes_no": "yes",
    "json_fields": '{"a": 1}',
    "sokoban": "right",
}
# Columns of the row.
COLUMNS = {
    "choice_text": {"choices": ["1", "2"]},
    "sokoban": {"board": ["#####", "#@$.#", "#####"]},
}


@pytest.mark.parametrize("name", [name for name in BUILT_IN if name != "remote"])
def test_every_row(name):
    """But for the one that asks a service."""
    row = BUILT_IN[name]
    function = row.load()
    assert name_of(function) == name
    want, given = RIGHT[name]
    assert row.required() == list(given)
    reward = Reward(name, options=given)
    assert reward.needs_reference == row.needs_reference
    assert reward.resolve(".").where == f"built-in {name}"
    parameters = inspect.signature(function).parameters
    assert list(parameters)[:2] == ["completion", "example"]
    assert set(parameters) == {"completion", "example", *row.options()}
    defaults = {key: parameters[key].default for key in row.options()} | given
    for key, annotation in row.options().items():
        assert not wanted_instead(annotation, defaults[key]), key  # it accepts its own default
    assert Reward(function, options=defaults).function == name
    answer = ANSWERS.get(name, "2")
    answered = Completion(f"<think>1 + 1</think><answer>{answer}</answer>", length=20)
    columns = COLUMNS.get(name, {})
    example = Example("1 + 1?", answer, "", columns, (ImageSize(100, 100, 100, 100),))
    assert function(answered, example, **defaults) == pytest.approx(want)
    # A message may be about a response of which no more than its text is known.
    for said in (answered, Completion(answered.text)):
        assert row.explain()(said, example, **defaults).split()[0] in ("finds", "reads")


def test_an_option_without_a_default_must_be_given():
    with pytest.raises(ValueError, match=r"'cosine' needs the option 'max_length', a whole number"):
        Reward("cosine")
    with pytest.raises(ValueError, match=r"'soft_overlong' needs the option 'buffer'"):
        Reward("soft_overlong", options={"max_length": 100})


def test_options_are_read_from_the_signature():
    assert BUILT_IN["accuracy"].options() == {
        "unparsable_gold": Literal["none", "one"],
        "tail": bool,
    }
    assert list(BUILT_IN["format"].options()) == ["variant"]
    with pytest.raises(ValueError, match=r"tail must be one of True, False, got 'yes'"):
        Reward("accuracy", options={"tail": "yes"})
    with pytest.raises(ValueError, match="no option 'strict'; it has unparsable_gold, tail"):
        Reward("accuracy", options={"strict": True})


@pytest.mark.parametrize(
    ("annotation", "good", "bad", "words"),
    [
        (Literal["a", "b"], ["a", "b"], ["c", 1, True], "one of 'a', 'b'"),
        (bool, [True, False], ["True", 2], "one of True, False"),
        (int, [0, -3], [0.5, "1", True], "a whole number"),
        (float, [0, 0.5], ["1", True], "a number"),
        (str, ["", "x"], [1, True], "a string"),
    ],
)
def test_what_an_annotation_accepts(annotation, good, bad, words):
    assert [wanted_instead(annotation, value) for value in good] == [""] * len(good)
    assert [wanted_instead(annotation, value) for value in bad] == [words] * len(bad)


def test_only_comparing_rewards_need_a_reference():
    assert Reward("accuracy").needs_reference and Reward(accuracy_reward).needs_reference
    assert Reward("cosine", options={"max_length": 9}).needs_reference
    assert not Reward("format").needs_reference and not Reward("repetition").needs_reference
    assert not Reward("mine.py:accuracy").needs_reference


def test_math_verify_is_loaded_off_the_clock():
    """Before the first item that can need it, and only where a reward uses it."""

    def lines(reward, gold):
        said = []
        grader = Grader([Reward(reward).resolve(".").to_json()], said.append)
        assert grader.load() is None
        item = {"completion": {"text": "<answer>2</answer>"}, "example": {"answer": gold}}
        grader.prepare([item])
        return said

    floor = "\\lfloor \\sqrt{8} \\rfloor"
    assert lines("accuracy", floor) == [{"loading": True}, {"loaded": True}]
    assert lines("accuracy", "2\\sqrt{2}") == []  # a formula that is read without it
    assert lines("accuracy", "red") == []
    assert lines("format", floor) == []


def test_naming_a_reward_is_cheap():
    code = (
        "import sys, jaxr1.rewards as r\n"
        "r.Reward('accuracy', options={'tail': True})\n"
        "sys.exit(bool({'jax', 'numpy', 'sympy', 'math_verify'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
