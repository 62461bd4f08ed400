"""Invariants 6 and 9 for data: order by (seed, position), and nothing left out silently."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from reference import random_image

import jaxr1
from jaxr1.data import Arithmetic
from jaxr1.data.example import DataError, Dataset, Example
from jaxr1.inputs.draws import Draws
from jaxr1.inputs.exchange import Draw
from jaxr1.rewards import Reward
from jaxr1.run import Evaluation
from jaxr1.run.dropped import unparsable_rows


@pytest.fixture(scope="module")
def processor():
    return jaxr1.load_processor("tiny")


def rows(count: int, **changes) -> list[Example]:
    """Text questions; `changes` maps "rN" to the fields of row N."""
    made = []
    for i in range(count):
        fields = {
            "messages": ({"role": "user", "content": f"question {i}"},),
            "answer": str(i),
            "source": f"mine.jsonl:{i + 1}",
        }
        made.append(Example(**fields | changes.get(f"r{i}", {})))
    return made


def dataset(examples: list[Example], name="mine") -> Dataset:
    return Dataset(name, len(examples), examples.__getitem__)


def with_image(image) -> dict:
    content = [{"type": "image", "image": image}, {"type": "text", "text": "What?"}]
    return {"messages": ({"role": "user", "content": content},)}


def make(examples, processor, drops=None, **options) -> Draws:
    drops = [] if drops is None else drops
    fields = dict(seed=0, max_prompt_tokens=200, on_drop=lambda *row: drops.append(row))
    return Draws(dataset(examples), processor, **fields | options)


def drawn(draws, position, count) -> list[tuple[int, int]]:
    return [(d.position, d.row) for d in draws.take(position, count)[1]]


def test_the_order_is_a_function_of_seed_and_position(processor, rng, seed):
    """Taken in any pieces, by any instance, from any position: the same rows."""
    examples = rows(17)
    whole = drawn(make(examples, processor, seed=seed), 0, 60)
    position, pieces = 0, []
    while len(pieces) < 60:
        fresh = make(examples, processor, seed=seed)  # as after a restart
        position, part = fresh.take(position, int(rng.integers(1, 9)))
        pieces += [(d.position, d.row) for d in part]
        assert position == pieces[-1][0] + 1
    assert pieces[:60] == whole
    # Positions differ, also where a row is met again.
    assert [p for p, _ in whole] == list(range(60))
    for epoch in range(3):
        assert sorted(r for _, r in whole[17 * epoch : 17 * (epoch + 1)]) == list(range(17))
    assert whole != drawn(make(examples, processor, seed=seed + 1), 0, 60)
    order = [r for _, r in whole]
    assert order[:17] != order[17:34], "another order in each pass"
    assert order[:17] != list(range(17))


def test_too_long_rows_are_passed_over_and_named_once(processor, rng):
    """What is left keeps its positions, so a resume that knows of no drop draws the same."""
    long, wordy = ({"role": "user", "content": "x " * 500},), "y " * 500
    examples = rows(9, r2={"messages": long}, r5={"messages": long, "response": wordy})
    drops: list = []
    draws = make(examples, processor, drops)
    found = drawn(draws, 0, 35)
    assert {r for _, r in found} == {0, 1, 3, 4, 6, 7, 8}
    assert sorted(s for s, _ in drops) == ["mine.jsonl:3", "mine.jsonl:6"]
    assert all("tokens, over the limit of 200" in reason for _, reason in drops)
    everything = drawn(make(rows(9), processor), 0, 45)
    assert found == [(p, r) for p, r in everything if r not in (2, 5)][:35]
    at = found[11][0]
    assert drawn(make(examples, processor), at, 10) == found[11:21]


def test_rows_known_to_be_unusable_are_not_even_read(processor):
    examples = rows(4)

    def get(i):
        assert i != 2
        return examples[i]

    draws = Draws(
        Dataset("mine", 4, get),
        processor,
        seed=0,
        max_prompt_tokens=99,
        on_drop=pytest.fail,
        unusable=frozenset({2}),
    )
    assert {r for _, r in drawn(draws, 0, 9)} == {0, 1, 3}


def test_no_usable_row(processor):
    drops: list = []
    with pytest.raises(DataError, match="mine: none of its 3 rows can be used"):
        make(rows(3), processor, drops, max_prompt_tokens=2).take(0, 1)
    assert len(drops) == 3


def test_an_image_over_the_patch_limit_is_dropped(processor, rng):
    """A very thin image: as its short side keeps a token, its area passes max_pixels."""
    thin = Image.fromarray(rng.integers(0, 256, (30, 5000, 3), dtype=np.uint8))
    examples = rows(3, r1=with_image(thin), r2=with_image(random_image(rng)))
    limit = processor.images.max_pixels // processor.images.patch_size**2
    drops: list = []
    draws = make(examples, processor, drops, max_prompt_tokens=4096, max_patches=limit)
    assert {r for _, r in drawn(draws, 0, 9)} == {0, 2}
    [(source, reason)] = drops
    assert source == "mine.jsonl:2" and f"patches, over the limit of {limit}" in reason


def test_a_broken_image_names_its_row(processor, tmp_path, rng):
    whole = tmp_path / "whole.png"
    random_image(rng, 60, 100).save(whole)
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    for name in ("cut.png", "empty.png", "absent.png"):
        draws = make(rows(3, r1=with_image(str(tmp_path / name))), processor)
        with pytest.raises(DataError) as caught:
            draws.take(0, 3)
        assert str(caught.value).startswith("mine.jsonl:2: ") and name in str(caught.value)
    with pytest.raises(DataError, match=r"^mine\.jsonl:2: message 0"):
        make(rows(3, r1={"messages": ({"role": "robot", "content": "x"},)}), processor).take(0, 3)


def test_answers_that_cannot_be_parsed_are_named():
    examples = rows(5, r1={"answer": ""}, r3={"answer": None})
    graded = Evaluation(Arithmetic(1))
    bad = unparsable_rows(graded, dataset(examples)).rows
    assert bad.keys() == {1, 3} and all(reason.startswith("answer ") for reason in bad.values())
    assert unparsable_rows(graded, dataset(rows(4))).rows == {}
    only_format = dataclasses.replace(graded, rewards=(Reward("format"),))
    assert unparsable_rows(only_format, dataset(examples)).rows == {}


def responses(processor, examples, **options) -> dict[int, Draw]:
    draws = make(examples, processor, with_response=True, max_response_tokens=40, **options)
    return {d.row: d for d in draws.take(0, len(examples))[1]}


def test_a_response_ends_with_the_stop_token(processor):
    texts = [
        "<think>3 + 4 = 7</think>\n<answer>7</answer>",
        "7",
        "",
        "say <|im_end|> twice <|image_pad|>",
    ]
    examples = rows(4, **{f"r{i}": {"response": t} for i, t in enumerate(texts)})
    special = {i for i, t in processor.tokenizer.added_tokens_decoder.items() if t.special}
    for row, draw in responses(processor, examples).items():
        assert draw.response.dtype == np.int32
        *said, last = draw.response.tolist()
        assert last == processor.turn_end_id and last in processor.stop_token_ids
        assert not special & set(said), "special names in a response are text"
        assert processor.decode(draw.response) == texts[row]


def test_a_response_does_not_repeat_the_prefix():
    """The template opens the answer with <think>; the data may open it too."""
    opened = jaxr1.load_processor("tiny", template="r1_zero")
    think = opened.tokenizer.convert_tokens_to_ids("<think>")
    texts = ["<think>a</think><answer>7</answer>", "a</think><answer>7</answer>", "<think><think>a"]
    examples = rows(3, **{f"r{i}": {"response": t} for i, t in enumerate(texts)})
    found = responses(opened, examples)
    for draw in found.values():
        assert draw.prompt.token_ids[-1] == think
    assert found[0].response.tolist() == found[1].response.tolist()
    assert think not in found[0].response
    assert found[2].response.tolist().count(think) == 1


def test_responses_too_long_or_absent(processor):
    drops: list = []
    examples = rows(3, r0={"response": "7"}, r1={"response": "z " * 100}, r2={"response": "8"})
    draws = make(examples, processor, drops, with_response=True, max_response_tokens=40)
    assert {r for _, r in drawn(draws, 0, 6)} == {0, 2}
    [(source, reason)] = drops
    assert source == "mine.jsonl:2" and "the response has" in reason and "limit of 40" in reason
    for fields, said in (
        ({}, "a supervised stage needs one"),
        ({"response": "a\ud800"}, r"character 1 \('\\ud800'\) is half of a surr"),
    ):
        with pytest.raises(DataError, match=r"mine\.jsonl:1: field 'response': " + said):
            responses(processor, rows(1, r0=fields))
