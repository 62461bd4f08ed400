"""Rewards of tasks: labels, boxes, numbers, choices, fields; right answers in the right form."""

import itertools
import json

import numpy as np
import pytest

from jaxr1.rewards import Completion, Example, Reward, RewardPool, accuracy_reward, cosine_reward
from jaxr1.rewards.boxes import Box, boxes_in, overlap
from jaxr1.rewards.format_result import format_result_reward
from jaxr1.rewards.grounding import detection_reward, iou_reward
from jaxr1.rewards.label import EMOTIONS, label_reward
from jaxr1.rewards.stated import stated
from jaxr1.rewards.tasks import (
    all_match_reward,
    choice_text_reward,
    json_fields_reward,
    numeric_reward,
    yes_no_reward,
)
from jaxr1.rewards.types import ImageSize

FORM = "<think>so</think>\n<answer>{}</answer>"


def block(answer, reason="stop", length=10):
    return Completion(FORM.format(answer), reason, length)


# --- what is stated -----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "said", "cut"),
    [
        ("<think>no</think><answer>\nyes\n</answer>", "yes", "yes"),
        ("<think>no</think> yes", "yes", None),
        ("yes", "yes", None),
        ("<think>no</think><answer>yes", None, None),
        ("the answer is \\boxed{yes}.", "yes", "yes"),
        ("", "", None),
    ],
)
def test_what_is_stated(text, said, cut):
    assert stated(Completion(text)) == said
    assert stated(Completion(text, "length")) == cut


def test_a_multi_line_answer_block_is_still_extracted():
    """By every reward that reads answers."""
    lines = "\n\n  {}\n\n"
    assert accuracy_reward(block(lines.format("7")), Example(answer="7")) == 1.0
    assert format_result_reward(block(lines.format("7")), Example(answer="7"))["score"] == 1.0
    assert label_reward(block(lines.format("sad")), Example(answer="sad"))["score"] == 1.0
    assert numeric_reward(block(lines.format("about\n7")), Example(answer="7")) == 1.0
    assert yes_no_reward(block(lines.format("yes")), Example(answer="yes")) == 1.0
    assert all_match_reward(block(lines.format("a\nb")), Example(answer="a b")) == 1.0
    fields = '{"a":\n 1}'
    assert json_fields_reward(block(fields), Example(answer='{"a": 1}'))["score"] == 1.0
    options = dict(boxes="unit", gold="unit")
    found = iou_reward(block("[0,\n0, 1,\n1]"), Example(answer="[0, 0, 1, 1]"), **options)
    assert found["iou"] == 1.0


# --- form and result ----------------------------------------------------------------------------
def test_one_truncated_response_zeroes_only_itself(rng):
    """Its form fails, whatever it holds; the others of its group keep all that they have."""
    cut = int(rng.integers(8))
    said = [block("7", "length" if i == cut else "stop") for i in range(8)]
    with RewardPool([Reward("format"), Reward("accuracy"), Reward("format_result")]) as pool:
        grades = pool.grade([(completion, Example(answer="7")) for completion in said])
    for i, grade in enumerate(grades):
        assert grade.status == "ok"
        assert grade.by_name["format"] == grade.by_name["format_result"] == float(i != cut), i
        assert grade.by_name["format_result/format"] == float(i != cut)
        assert grade.by_name["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("text", "label", "want"),
    [
        (FORM.format("7"), "", (1, 1, 1)),
        (FORM.format("8"), "", (0, 1, 0)),
        ("<answer>7</answer>", "", (0, 0, 1)),
        ("7", "", (0, 0, 0)),
        (FORM.format("Final Answer: 7"), "Final Answer:", (1, 1, 1)),
        (FORM.format("3 + 4\nfinal answer:7"), "Final Answer:", (1, 1, 1)),
        (FORM.format("Final Answer: 8"), "Final Answer:", (0, 1, 0)),
        (FORM.format("7"), "Final Answer:", (0, 1, 0)),
        (FORM.format("Final Answer: 8 Final Answer: 7"), "Final Answer:", (1, 1, 1)),
    ],
)
def test_format_result_wants_both(text, label, want):
    found = format_result_reward(Completion(text), Example(answer="7"), label=label)
    assert tuple(found.values()) == want and list(found) == ["score", "format", "accuracy"]
    assert format_result_reward(Completion(text), Example(answer=None), label=label) is None


def test_a_length_shaped_reward_uses_the_real_correctness(rng):
    """A wrong answer is shaped as a wrong one, at every length."""
    for length in rng.integers(1, 2000, 20):
        right = cosine_reward(block("7", length=int(length)), Example(answer="7"), max_length=1024)
        wrong = cosine_reward(block("8", length=int(length)), Example(answer="7"), max_length=1024)
        assert 0.5 <= right <= 1.0 and -1.0 <= wrong <= -0.5


# --- labels -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("said", "gold", "score", "parsed"),
    [
        ("happy", "happy", 1, 1),
        ("  Happy.\n", "happy", 1, 1),  # case, whitespace, punctuation
        ("HAPPINESS", "happy", 1, 1),  # synonyms, on either side
        ("happy", "Happiness", 1, 1),
        ("joyful", "happiness", 1, 1),
        ("fearful", "fear", 1, 1),
        ("sad", "happy", 0, 1),
        ("not happy", "happy", 0, 0),  # a sentence is no label
        ("happy or sad", "happy", 0, 0),
        ("", "happy", 0, 0),
        ("calm", "calm", 1, 1),  # a class that the table lacks is right as itself
        ("neutral", "calm", 0, 1),
    ],
)
def test_labels_by_case_whitespace_and_synonyms_and_unparsed_is_wrong(said, gold, score, parsed):
    for text in (FORM.format(said), said):
        found = label_reward(Completion(text), Example(answer=gold))
        assert found == {"score": score, "parsed": parsed}, text
    assert label_reward(Completion(said), Example(answer=None)) is None


def test_the_names_of_a_class_are_its_alone():
    names = [*EMOTIONS, *itertools.chain.from_iterable(EMOTIONS.values())]
    assert len(names) == len(set(names)) and len(EMOTIONS) == 11
    for kind, others in EMOTIONS.items():
        for name in others:
            assert label_reward(Completion(name.title()), Example(answer=kind))["score"] == 1


def test_a_table_of_labels(tmp_path):
    file = tmp_path / "animals.json"
    file.write_text(json.dumps({"cat": ["kitten"], "dog": []}))
    found = label_reward(Completion("Kitten"), Example(answer="cat"), table=str(file))
    assert found == {"score": 1.0, "parsed": 1.0}
    assert label_reward(Completion("happy"), Example(answer="cat"), table=str(file))["parsed"] == 0
    for text, message in (
        ('["cat"]', "must be a JSON object"),
        ('{"cat": "kitten"}', "must be a JSON object.*got 'kitten'"),
        ("{", "must be a JSON object"),
        ('{"cat": ["pet"], "dog": ["pet"]}', "'pet' is a name of 'cat' and of 'dog'"),
    ):
        bad = tmp_path / f"bad{abs(hash(text))}.json"
        bad.write_text(text)
        with pytest.raises(ValueError, match=message):
            label_reward(Completion("cat"), Example(answer="cat"), table=str(bad))


# --- boxes --------------------------------------------------------------------------------------
def counted(a, b, side=64):
    """Overlap by counting the cells of a grid."""
    grids = []
    for x1, y1, x2, y2 in (a, b):
        grid = np.zeros((side, side), bool)
        grid[y1:y2, x1:x2] = True
        grids.append(grid)
    union = (grids[0] | grids[1]).sum()
    return (grids[0] & grids[1]).sum() / union if union else 0.0


def random_box(rng, width=64, height=64):
    x = np.sort(rng.choice(width + 1, 2, replace=False))
    y = np.sort(rng.choice(height + 1, 2, replace=False))
    return int(x[0]), int(y[0]), int(x[1]), int(y[1])


def test_overlap_equals_counted_cells(rng):
    for _ in range(200):
        a, b = random_box(rng), random_box(rng)
        assert overlap(Box(*a), Box(*b)) == pytest.approx(counted(a, b))
    assert overlap(Box(3, 3, 1, 1), Box(1, 1, 3, 3)) == 0.0  # a box from right to left is empty


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("[1, 2, 3, 4]", [(1, 2, 3, 4, "")]),
        ("It is at [1, 2, 3.5, 4].", [(1, 2, 3.5, 4, "")]),
        ('```json\n[{"bbox_2d": [1, 2, 3, 4], "label": "Cat"}]\n```', [(1, 2, 3, 4, "cat")]),
        ('{"bbox": [1, 2, 3, 4]}', [(1, 2, 3, 4, "")]),
        ("[[1, 2, 3, 4], [5, 6, 7, 8]]", [(1, 2, 3, 4, ""), (5, 6, 7, 8, "")]),
        ("<|box_start|>(1,2),(3,4)<|box_end|>", [(1, 2, 3, 4, "")]),
        ("{'bbox_2d': [1, 2, 3, 4]}", [(1, 2, 3, 4, "")]),  # no JSON, but four numbers
        ('[{"bbox_2d": [1, 2, 3]}]', None),
        ('{"bbox_2d": [1, 2, 3, NaN]}', None),
        ("None", []),
        ("[]", []),
        ("left of the cat", None),
        ("[" * 5000, None),
    ],
)
def test_boxes_in_answers(text, want):
    found = boxes_in(text)
    assert found == (want if want is None else [Box(*box) for box in want])


def test_boxes_are_mapped_back_to_the_original_image(rng):
    """The same box in all units, of a picture that was stretched: overlap as in the original."""
    for _ in range(50):
        size = ImageSize(64, 64, int(rng.integers(28, 500)), int(rng.integers(28, 500)))
        gold, said = random_box(rng), random_box(rng)
        sides = np.array([64, 64, 64, 64])
        written = {
            "original": said,
            "pixels": said * np.array([size.seen_width, size.seen_height] * 2) / sides,
            "thousand": said * np.array([1000] * 4) / sides,
            "unit": said / sides,
        }
        example = Example(answer=str(list(gold)), images=(ImageSize(9, 9, 9, 9), size))
        for units, box in written.items():
            text = ", ".join(f"{value:.9f}" for value in np.array(box, float))
            found = iou_reward(block(f"[{text}]"), example, boxes=units, image=1)
            assert found["score"] == pytest.approx(counted(gold, said), abs=1e-6), units


def test_iou_with_a_threshold_and_without_boxes():
    example = Example(answer="[0, 0, 10, 10]")
    same = dict(boxes="original")
    half = block("[0, 0, 10, 5]")
    assert iou_reward(half, example, **same) == {"score": 0.5, "iou": 0.5}
    assert iou_reward(half, example, threshold=0.5, **same) == {"score": 0.0, "iou": 0.5}
    assert iou_reward(half, example, threshold=0.49, **same) == {"score": 1.0, "iou": 0.5}
    assert iou_reward(block("there"), example, **same) == {"score": 0.0, "iou": 0.0}
    assert iou_reward(half, Example(answer="a cat")) is None
    with pytest.raises(ValueError, match="'pixels' need the size of image 0, and the row has the"):
        iou_reward(half, example)


def listed(*boxes):
    return json.dumps([{"bbox_2d": list(box), "label": label} for *box, label in boxes])


A, B, C = (0, 0, 10, 10), (20, 20, 30, 30), (40, 40, 50, 50)


@pytest.mark.parametrize(
    ("gold", "said", "parts", "score"),
    [
        ([(*A, "a"), (*B, "b")], [(*B, "b"), (*A, "a")], (1, 1, 1), 1),
        ([(*A, "a"), (*B, "b")], [(*A, "a")], (0.5, 0.5, 0.75), 0.7 * 0.5 + 0.3 * 0.75),
        ([(*A, "a")], [(*A, "a"), (*B, "b"), (*C, "c")], (1, 1, 2 / 3), 0.7 + 0.3 * 2 / 3),
        ([(*A, "a")], [(*A, "b")], (0, 0, 1), 0.3),  # another label
        ([(*A, "a")], [(0, 0, 10, 6, "a")], (0.6, 1, 1), 0.7 * 0.6 + 0.3),
        ([(*A, "a")], [(0, 0, 10, 4, "a")], (0, 0, 0), 0),  # too little to be a pair
        ([], [], (1, 1, 1), 1),
        ([], [(*A, "a")], (0, 0, 0), 0),
        ([(*A, "a")], [], (0, 0, 0), 0),
        # greedy: the larger overlap takes the box, though both could have had one
        ([(*A, "a")], [(0, 0, 10, 6, "a"), (0, 0, 10, 9, "a")], (0.9, 1, 0.75), 0.63 + 0.225),
    ],
)
def test_detection(gold, said, parts, score):
    example = Example(answer=listed(*gold))
    found = detection_reward(block(listed(*said)), example, boxes="original")
    assert [found[key] for key in ("position", "label", "completeness")] == pytest.approx(parts)
    assert found["score"] == pytest.approx(score)


def test_detection_options():
    example = Example(answer=listed((*A, "a")))
    many = block(listed((*A, "a"), (*B, "a"), (*C, "a"), (60, 60, 70, 70, "a")))
    plain = detection_reward(many, example, boxes="original")
    punished = detection_reward(many, example, boxes="original", extra_penalty=True)
    assert punished["score"] == pytest.approx(plain["score"] / 4)
    other = block(listed((*A, "b")))
    weights = dict(position=0.0, label=1.0, completeness=1.0)
    assert detection_reward(other, example, boxes="original", **weights)["score"] == 0.5
    assert detection_reward(block("I see nothing"), example)["score"] == 0.0
    assert detection_reward(block("None"), Example(answer="None"))["score"] == 1.0
    assert detection_reward(block("a cat"), Example(answer="None"))["score"] == 0.0
    assert detection_reward(block("None"), Example(answer="a cat")) is None
    with pytest.raises(ValueError, match="not all 0"):
        detection_reward(many, example, position=0.0, completeness=0.0)


# --- numbers, words, fields ---------------------------------------------------------------------
@pytest.mark.parametrize(
    ("said", "gold", "options", "want"),
    [
        ("7", "7.0", {}, 1),
        ("about 1,200 m", "1200", {}, 1),
        ("15%", "0.15", {}, 1),
        ("3/4", "0.75", {}, 1),
        ("-3", "3", {}, 0),
        ("first 3, then 4", "4", {}, 1),
        ("104", "100", {"relative": 0.05}, 1),
        ("106", "100", {"relative": 0.05}, 0),
        ("105", "100", {"relative": 0.05}, 1),  # the edge counts
        ("0.01", "0", {"relative": 0.05}, 0),
        ("0.01", "0", {"absolute": 0.01}, 1),
        ("many", "7", {}, 0),
        ("7", "<answer> 7 </answer>", {}, 1),
        ("7", "many", {}, None),
        ("1/0", "7", {}, 0),
        ("1e999", "7", {}, 0),
    ],
)
def test_numeric(said, gold, options, want):
    assert numeric_reward(block(said), Example(answer=gold), **options) == want
    with pytest.raises(ValueError, match="tolerances must be 0 or more"):
        numeric_reward(block(said), Example(answer=gold), absolute=-1.0)


@pytest.mark.parametrize(
    ("said", "gold", "want"),
    [
        ("Yes.", "yes", 1),
        ("No, yes would be wrong", "no", 1),
        ("It is not known", "no", 0),  # "no" inside of words
        ("unknown", "no", 0),
        ("", "yes", 0),
        ("yes", "perhaps", None),
        ("yes", "<answer> Yes </answer>", 1),
    ],
)
def test_yes_no_takes_the_first_word(said, gold, want):
    assert yes_no_reward(block(said), Example(answer=gold)) == want


@pytest.mark.parametrize(
    ("said", "want"),
    [("  The Red  cube. ", 1), ("the red cube", 1), ("red cube", 0), ("", 0)],
)
def test_all_match(said, want):
    assert all_match_reward(block(said), Example(answer="the red cube")) == want
    assert all_match_reward(block(said), Example(answer=None)) is None


CHOICES = ["left", "right", "the left side of the table", "none"]


@pytest.mark.parametrize(
    ("said", "gold", "want"),
    [
        ("Left.", "left", 1),
        ("It is on the right", "B", 1),
        ("It is on the left side of the table", "C", 1),  # a longer option holds a shorter one
        ("It is on the left side of the table", "A", 0),
        ("left or right", "A", 0),
        ("(B)", "right", 1),
        ("The answer is (B)", "A", 0),
        ("upright", "B", 0),
        ("left " + "and so on " * 20, "A", 0),  # longer than all options twice
        ("left", "up", None),
    ],
)
def test_choice_by_text(said, gold, want):
    for choices in (CHOICES, dict(zip("ABCD", CHOICES, strict=True))):
        example = Example(answer=gold, metadata={"options": choices})
        assert choice_text_reward(block(said), example) == want
    with pytest.raises(ValueError, match="no column 'choices' or 'options'"):
        choice_text_reward(block(said), Example(answer=gold))


@pytest.mark.parametrize(
    ("said", "options", "score", "share"),
    [
        ('{"name": "Bob ", "age": 3.0, "more": 1}', {}, 1, 1),
        ('Here: ```json\n{"name": "bob", "age": 3}\n```', {}, 1, 1),
        ('{"name": "bob", "age": 4}', {}, 0, 0.5),
        ('{"name": "bob", "age": 4}', {"partial": True}, 0.5, 0.5),
        ('{"name": "bob", "age": 4}', {"fields": "name"}, 1, 1),
        ('{"name": "bob"}', {}, 0, 0.5),
        ('{"name": "bob", "age": true}', {}, 0, 0.5),
        ('["bob", 3]', {}, 0, 0),
        ("Bob is 3", {}, 0, 0),
    ],
)
def test_json_fields(said, options, score, share):
    gold = Example(answer='{"name": "Bob", "age": 3}')
    assert json_fields_reward(block(said), gold, **options) == {"score": score, "share": share}
    assert json_fields_reward(block(said), Example(answer="Bob")) is None
    assert json_fields_reward(block(said), gold, fields="name, size") is None


def test_true_is_no_one():
    """In Python True == 1; in JSON it is another value."""
    for said, gold in (("true", "1"), ("1", "true")):
        example = Example(answer=f'{{"a": {gold}}}')
        assert json_fields_reward(block(f'{{"a": {said}}}'), example)["score"] == 0
