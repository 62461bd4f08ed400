"""Known ways in which graders go wrong, each by its name."""

import math

import pytest

from jaxr1.rewards import Completion, Example, Reward, RewardPool, accuracy_reward
from jaxr1.rewards.reading import algebra
from jaxr1.rewards.reading.answers import extract_answer
from jaxr1.rewards.reading.matching import answers_match

BROKEN = "\\frac{1}{"


def graded(answer, gold, question="", **metadata):
    completion = Completion(f"<think>t</think><answer>{answer}</answer>")
    return accuracy_reward(completion, Example(question, gold, metadata=metadata))


def test_an_unparsable_reference_has_no_opinion_unless_told_so():
    completion, example = Completion("<answer>7</answer>"), Example(answer=BROKEN)
    assert accuracy_reward(completion, example) is None
    assert accuracy_reward(completion, example, unparsable_gold="one") == 1.0


@pytest.mark.parametrize("answer", ["Bad", "cab", "vitamin B-12", "a bee", "AB", "B12"])
def test_a_letter_has_word_boundaries(answer):
    assert graded(answer, "B") == 0.0


def test_the_verifier_gets_the_reference_first(monkeypatch):
    calls = []

    class Spy:
        def parse(self, text, **_):
            return [text]

        def verify(self, gold, answer, **_):
            calls.append((gold, answer))
            return True

    monkeypatch.setattr(algebra, "math_verify_module", Spy)
    algebra.parsed_math.cache_clear()
    assert answers_match("\\lfloor x \\rfloor", "\\lceil x - 1 \\rceil")
    algebra.parsed_math.cache_clear()
    assert calls == [(["$\\lfloor x \\rfloor$"], ["$\\lceil x - 1 \\rceil$"])]


@pytest.mark.parametrize("block", ["\n7\n", "\n\n  7  \n", "The sum\nis\n7.", "7\r\n"])
def test_a_block_of_several_lines(block):
    assert extract_answer(f"<think>a\nb</think>\n<answer>{block}</answer>") == block.strip()
    assert graded(block, "7") == 1.0


def test_a_truncated_response_costs_only_itself(rng):
    """In a batch that the pool grades, whole and cut responses with the same answer."""
    cut = rng.integers(2, size=12).astype(bool)
    items = []
    for is_cut in cut:
        text = "<think>t</think><answer>7" + ("" if is_cut else "</answer>")
        items.append((Completion(text, "length" if is_cut else "stop"), Example(answer="7")))
    with RewardPool([Reward("accuracy")]) as pool:
        grades = pool.grade(items)
    assert [grade.by_name["accuracy"] for grade in grades] == [float(not c) for c in cut]


@pytest.mark.parametrize(
    ("question", "gold", "answer", "value"),
    [
        ("What is 3 + 4?", "7", "3+4", 0.0),  # only repeated
        ("What is $2^5$?", "32", "2^5", 0.0),
        ("What is 2 to the fifth?", "32", "2^5", 1.0),
        ("What is $3 \\cdot 4$?", "12", "3 \\cdot 4 = 12", 1.0),
        ("Write 3/4 as a decimal.", "0.75", "3/4", 0.0),
        ("What is 1/2 + 1/4?", "3/4", "3/4", 1.0),
        ("Simplify \\sqrt{8}.", "2\\sqrt{2}", "\\sqrt{8}", 0.0),
        ("What is |-7|?", "7", "7", 1.0),
    ],
)
def test_the_question_again_is_no_answer(question, gold, answer, value):
    assert graded(answer, gold, question) == value


def test_a_letter_in_small_is_an_option_only_where_there_are_options():
    assert graded("B", "b", "Which one? (a) red (b) blue") == 1.0
    assert graded("B", "b", "Which letter stands for the base?") == 0.0
    assert graded("B", "b", choices=["red", "blue"]) == 1.0


def test_random_numbers_are_read_from_sentences(rng):
    """The number that a sentence names is right, and every other one wrong."""
    frames = ("There are {} of them.", "The answer is {}.", "x = {}", "So it is {}, I think.", "{}")
    for frame in frames:
        number, other = rng.choice(10_000, size=2, replace=False)
        assert graded(frame.format(f"{number:,}"), str(number)) == 1.0
        assert graded(frame.format(other), str(number)) == 0.0
        assert graded(frame.format(f"not {number}"), str(number)) == 0.0
        assert graded(frame.format(f"{number} or {other}"), str(number)) == 0.0


def test_random_values_agree_with_floats(rng):
    """Equal forms of a value are equal, and its neighbours are not."""
    for _ in range(30):
        top, bottom, factor = (int(n) for n in rng.integers(2, 60, size=3))
        gold = f"\\frac{{{top}}}{{{bottom}}}"
        assert graded(f"{top * factor}/{bottom * factor}", gold) == 1.0
        assert graded(f"{top * factor + 1}/{bottom * factor}", gold) == 0.0
        root = f"{top}\\sqrt{{{bottom}}}"
        assert graded(f"\\sqrt{{{top**2 * bottom}}}", root) == 1.0
        value = top * math.sqrt(bottom)
        if value % 1:
            assert graded(f"{value:.4f}", root) == 1.0
            assert graded(f"{value * 1.01:.4f}", root) == 0.0


@pytest.mark.parametrize(
    ("question", "gold", "answer", "value"),
    [
        ("Which color? (A) red (B) green (C) blue", "B", "green", 1.0),
        ("Which color? (A) red (B) green (C) blue", "B", "B. green", 1.0),
        ("Which color? (A) red (B) green (C) blue", "B", "B. red", 0.0),
        ("Which color? (A) red (B) green (C) blue", "B", "B (the blue one)", 0.0),
        ("Which color? (A) red, (B) green or (C) blue?", "blue", "C", 1.0),
        ("Solve. A. 1/2 B. 2 C. -2 D. 4", "A", "0.5", 1.0),
        ("Solve. A. 1/2 B. 2 C. -2 D. 4", "A", "A. 2", 0.0),
        ("哪个？A. 苹果 B. 香蕉 C. 梨", "B", "香蕉", 1.0),
        ("哪个？A. 苹果 B. 香蕉 C. 梨", "B", "B. 梨", 0.0),
        ("Pick one.\nA: left\nB: right\nAnswer with the letter.", "B", "right", 1.0),
        ("Which statement holds? (A) (B) (C)", "B", "B", 1.0),
        ("How far is it from (A) to the wall?", "B", "the wall", 0.0),
    ],
)
def test_options_that_only_the_question_lists(question, gold, answer, value):
    assert graded(answer, gold, question) == value
