"""Encoding ahead of the devices: what is drawn, told and raised depends on no thread."""

import gc
import threading
import time
import weakref

import numpy as np
import pytest
from PIL import Image
from reference import random_image

import jaxr1
from jaxr1.data.example import DataError, Dataset, Example
from jaxr1.inputs.ahead import THREAD_NAME, Ahead, in_batches
from jaxr1.inputs.draws import Draws
from jaxr1.inputs.processor import Processor


@pytest.fixture(scope="module")
def processor():
    return jaxr1.load_processor("tiny")


def workers() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith(THREAD_NAME)]


def asked(number: int, image=None) -> tuple[dict, ...]:
    content = [{"type": "text", "text": f"question {number}"}]
    if image is not None:
        content.insert(0, {"type": "image", "image": image})
    return ({"role": "user", "content": content},)


def pictures(rng, count: int) -> list[Example]:
    """Rows of small pictures."""
    made = []
    for i in range(count):
        array = np.asarray(random_image(rng, 30, 90))
        made.append(Example(asked(i, array), str(i), source=f"mine.jsonl:{i + 1}"))
    return made


def draws_of(examples, processor, drops, **options) -> Draws:
    data = Dataset("mine", len(examples), examples.__getitem__)
    fields = dict(seed=3, max_prompt_tokens=200, on_drop=lambda *row: drops.append(row))
    return Draws(data, processor, **fields | options)


def read(draws: Draws, counts, ahead: int) -> list:
    """What takes of these sizes give, as plain values."""
    position, found = 0, []
    for count in counts:
        position, some = draws.take(position, count, ahead)
        for d in some:
            shown = [p.tobytes() for p in d.prompt.patches]
            found.append((position, d.position, d.row, d.prompt.token_ids.tolist(), shown))
    return found


def test_draws_depend_on_no_thread(processor, rng):
    """The same draws and drops, in the same order, on any number of threads, any distance ahead."""
    examples = pictures(rng, 11)
    for i in (2, 7):
        examples[i] = Example(asked(i, np.zeros((30, 5000, 3), np.uint8)), "", source=f"row {i}")
    counts = rng.integers(1, 9, 6).tolist()
    expected, told = None, None
    for threads, ahead in ((1, 0), (1, 5), (3, 4), (7, 20)):
        drops: list = []
        options = dict(threads=threads, max_patches=64)
        with draws_of(examples, processor, drops, **options) as draws:
            found = read(draws, counts, ahead)
        assert expected is None or (found, drops) == (expected, told)
        expected, told = found, drops
    assert not workers()


def test_a_row_is_told_when_it_is_its_turn(processor, rng):
    """A row that was begun ahead is dropped, or raises, with the step that takes it."""
    examples = pictures(rng, 6)
    order = [d.row for d in draws_of(examples, processor, []).take(0, 6)[1]]
    examples[order[4]] = Example(asked(0, np.zeros((30, 5000, 3), np.uint8)), "", source="thin")
    drops: list = []
    with draws_of(examples, processor, drops, max_patches=64, threads=2) as draws:
        position, _ = draws.take(0, 3, ahead=3)
        wait_until(lambda: all(f.done() for f in draws._ahead._begun.values()))
        assert position == 3 and not drops
        position, some = draws.take(position, 2, ahead=2)
        assert [d.row for d in some] == [order[3], order[5]] and position == 6
        assert [source for source, _ in drops] == ["thin"]

    examples[order[4]] = Example(asked(0, "absent.png"), "", source="mine.jsonl:9")
    with draws_of(examples, processor, drops, threads=2) as draws:
        position, _ = draws.take(0, 4, ahead=2)
        with pytest.raises(DataError, match=r"^mine\.jsonl:9: field 'images': 'absent\.png'"):
            draws.take(position, 1)
        again, _ = draws.take(0, 4)  # from another place than the last: as from a checkpoint
        assert again == position


def test_a_signal_is_heard_between_draws(processor, rng):
    """Before the step has all of its draws; whoever takes them again has the same."""
    examples = pictures(rng, 12)
    heard = int(rng.integers(1, 6))
    calls = []

    def check():
        calls.append(1)
        if len(calls) == heard:
            raise InterruptedError

    with draws_of(examples, processor, [], check=check, threads=2) as draws:
        with pytest.raises(InterruptedError):
            draws.take(0, 6, ahead=6)
        found = read(draws, (6, 3), 3)
    assert found == read(draws_of(examples, processor, []), (6, 3), 0)


def wait_until(is_true, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_one_step_ahead_and_no_more(processor, rng):
    """The rows of the next step are read while this one runs; never those of the one after."""
    examples, seen = pictures(rng, 40), []

    def get(i):
        seen.append(threading.current_thread().name)
        return examples[i]

    data = Dataset("mine", len(examples), get)
    with Draws(data, processor, seed=0, max_prompt_tokens=99, on_drop=pytest.fail) as draws:
        position = 0
        for step in range(1, 5):
            position, _ = draws.take(position, 4, ahead=4)
            wait_until(lambda step=step: len(seen) == 4 * step + 4)
        time.sleep(0.1)
        assert len(seen) == 20 and all(name.startswith(THREAD_NAME) for name in seen)
        draws.take(position, 4)
    assert len(seen) == 20 and not workers()


def test_errors_stay_with_their_keys(rng):
    def work(key):
        if key % 3 == 0:
            raise KeyError(key)
        return key * 10

    with Ahead(work, threads=2) as ahead:
        ahead.start(range(9))
        for key in rng.permutation(12).tolist():  # some were never begun
            if key % 3:
                assert ahead.take(key) == key * 10
            else:
                with pytest.raises(KeyError, match=str(key)):
                    ahead.take(key)
        assert not len(ahead)
        ahead.start([1, 2])
        ahead.forget([1])
        assert len(ahead) == 1 and ahead.take(1) == 10
    assert not workers()


def test_two_batches_at_a_time(rng):
    begun, used = [], []

    def work(key):
        begun.append(key)
        return key

    batches = np.array_split(np.arange(30), sorted(rng.integers(0, 30, 5)))
    batches = [batch.tolist() for batch in batches]
    sizes = [len(batch) for batch in batches] + [0]
    for number, found in enumerate(in_batches(work, batches, threads=2)):
        time.sleep(0.01)
        assert found == batches[number]
        used += found
        assert len(begun) <= len(used) + sizes[number + 1]
    assert used == list(range(30)) and not workers()
    assert list(in_batches(work, [])) == []


def test_generate_and_score_hold_few_pictures(processor, monkeypatch):
    """Of a long list, the pictures of two batches; and each is encoded once."""
    model, params = jaxr1.load_model("tiny")
    rng = np.random.default_rng(1)
    array = rng.integers(0, 256, (56, 56, 3), dtype=np.uint8)
    prompts = [jaxr1.Prompt(list(asked(i % 10, array + np.uint8(i)))) for i in range(24)]
    alive: list[weakref.ref] = []
    most, encode = [0], Processor.encode
    lock = threading.Lock()

    def counting(self, *args, **options):
        found = encode(self, *args, **options)
        if found.patches:
            with lock:
                alive.append(weakref.ref(found))
                most[0] = max(most[0], sum(one() is not None for one in alive))
        return found

    monkeypatch.setattr(Processor, "encode", counting)
    groups = jaxr1.generate(model, params, processor, prompts, max_new_tokens=4, batch_rows=4)
    # Two batches, and what the sampler may still hold of the one before.
    assert len(alive) == 24 and most[0] <= 12
    assert not workers()
    alive.clear()
    gc.collect()
    most[0] = 0
    responses = [[completion.token_ids for completion in group] for group in groups]
    found = jaxr1.score(model, params, processor, prompts, responses, token_budget=256)
    assert len(alive) == 24 and most[0] <= 12
    for group, logps in zip(groups, found, strict=True):
        np.testing.assert_allclose(logps[0], group[0].logprobs, atol=1e-5)


def test_threads_share_a_processor(processor, rng):
    """Texts, special strings and pictures: as one after the other."""
    words = ["red", "<|im_end|>", "7", "<think>", "grün", "<|image_pad|>", "日本"]
    prompts = []
    for i in range(200):
        picture = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
        text = " ".join(rng.choice(words, 12))
        content = [{"type": "image", "image": picture}, {"type": "text", "text": text}]
        prompts.append(jaxr1.Prompt([{"role": "user", "content": content}], id=i))
    fresh = jaxr1.load_processor("tiny")  # nothing is cached yet
    with Ahead(lambda i: fresh.encode(prompts[i]), threads=8) as ahead:
        ahead.start(range(200))
        found = [ahead.take(i) for i in range(200)]
    for prompt, one in zip(prompts, found, strict=True):
        alone = processor.encode(prompt)
        np.testing.assert_array_equal(one.token_ids, alone.token_ids)
        np.testing.assert_array_equal(one.patches[0], alone.patches[0])
