"""Looking at data before a run: what is counted, what is twice, what a held-out set holds too."""

import io
import json

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from jaxr1 import inspect_data
from jaxr1.base.jsonl import read_jsonl
from jaxr1.data import Dataset, Example, Files
from jaxr1.inspection.hashes import NEAR, Hashes, perceptual_hash
from jaxr1.inspection.looked import look, words_of
from jaxr1.inspection.overlap import grams, overlaps, twice
from jaxr1.inspection.survey import answer_kind, language


def picture(rng, size=96):
    """Something with shapes in it, as pictures have."""
    low = rng.random((6, 6, 3))
    return Image.fromarray((low * 255).astype(np.uint8)).resize((size, size), Image.BICUBIC)


def copies(image):
    """What becomes of a picture on its way through the web."""
    small = image.resize((image.width * 2 // 3, image.height * 2 // 3), Image.BILINEAR)
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=60)
    return {
        "smaller": small,
        "larger": image.resize((200, 200), Image.BICUBIC),
        "jpeg": Image.open(jpeg),
        "darker": ImageEnhance.Brightness(image).enhance(0.85),
        "grey": image.convert("L"),
    }


def test_copies_are_near_and_others_are_far(rng):
    """Of forty pictures with five copies each: all copies are found, and nothing else."""
    images = [picture(rng) for _ in range(40)]
    hashes = [perceptual_hash(image) for image in images]
    nearest = Hashes({i: [one] for i, one in enumerate(hashes)})
    for i, image in enumerate(images):
        for name, copy in copies(image).items():
            assert nearest.near(perceptual_hash(copy)) == [i], (i, name)
    assert perceptual_hash(Image.new("RGB", (64, 64), "white")) is None


def test_near_hashes_are_found_whatever_bits_differ(rng):
    """Against comparing all of them."""
    hashes = [tuple(int(x) for x in rng.integers(0, 2**63, 2)) for _ in range(100)]
    nearest = Hashes({i: [one, one] for i, one in enumerate(hashes)})
    for flips in (0, NEAR, NEAR + 1):
        whole = [*hashes[int(rng.integers(100))]]
        for bit in rng.choice(128, flips, replace=False).tolist():
            whole[bit // 64] ^= 1 << (bit % 64)
        one, two = whole
        far = [(one ^ a).bit_count() + (two ^ b).bit_count() for a, b in hashes]
        assert nearest.near((one, two)) == [i for i, bits in enumerate(far) if bits <= NEAR]
    assert Hashes({}).near(hashes[0]) == []


def rows(name, asked):
    """A data set of (question, pictures)."""
    examples = []
    for i, (question, images) in enumerate(asked):
        content = [{"type": "image", "image": image} for image in images]
        content.append({"type": "text", "text": question})
        turns = ({"role": "user", "content": content},)
        examples.append(Example(turns, "1", source=f"{name}:{i + 1}"))
    return list(look(Dataset(name, len(examples), examples.__getitem__)))


LONG = "a train leaves the station at noon and goes north at sixty miles an hour for three hours"


def test_decontamination_flags_rows_that_occur_in_evaluation_sets(rng):
    """The same row in other clothes is flagged; a common question about another picture is not."""
    one, other, third = (picture(rng) for _ in range(3))
    heldout = rows("test", [("What is shown here?", [one]), (f"{LONG}. How far?", [])])
    train = rows(
        "train",
        [
            ("What is shown here?", [other]),  # a question that many pictures have
            ("what is shown here", [copies(one)["jpeg"]]),  # the row itself
            ("Which colour is the sky?", [copies(one)["smaller"]]),  # its picture
            (f"Once {LONG.upper()}, as we know. Where is it?", []),  # the text inside another
            ("How many miles is it?", [third]),
        ],
    )
    found = {o.row: (o.kind, o.is_same, o.other) for o in overlaps(train, heldout)}
    assert found == {
        0: ("question", False, "test:1"),
        1: ("both", True, "test:1"),
        2: ("picture", False, "test:1"),
        3: ("question", True, "test:2"),
    }
    assert overlaps(train[4:], heldout) == []
    assert overlaps(train, heldout, n=5)[3].is_same


def test_what_is_twice(rng):
    one, other = picture(rng), picture(rng)
    found = rows("a", [("x y", [one]), ("X, y!", [one]), ("z", [one]), ("x y", [other])])
    assert twice(found) == ([["a:1", "a:2"]], [["a:1", "a:2", "a:3"]])


def test_words_grams_languages_and_kinds():
    assert words_of("How many km, is A-B?") == ("how", "many", "km", "is", "a", "b")
    assert words_of("多少个cat") == ("多", "少", "个", "cat")
    assert grams(("a", "b", "c"), 2) == {("a", "b"), ("b", "c")}
    assert grams(("a",), 13) == {("a",)} and grams((), 13) == set()
    assert [language(t) for t in ("what is it", "这是什么", "что", "12 + 3")] == [
        "Latin",
        "Chinese or Japanese",
        "Cyrillic",
        "none",
    ]
    kinds = {"12": "number", "B": "letter", "Yes": "yes or no", "x^2+1": "expression"}
    kinds |= {"": "none", "red": "word", "the red car": "several words"}
    assert {answer: answer_kind(answer) for answer in kinds} == kinds


@pytest.fixture
def config(tmp_path, rng):
    """A configuration file whose training rows hold held-out ones, and have other faults."""
    images = tmp_path / "images"
    images.mkdir()
    names = []
    for i in range(6):
        picture(rng).save(images / f"{i}.png")
        names.append(f"images/{i}.png")
    ask = lambda i, answer, question: json.dumps(
        {"prompt": f"<image>{question}", "images": [names[i]], "answer": answer}
    )
    train = [ask(i, str(i), f"Which number is this, {i}?") for i in range(4)]
    train += [train[0], ask(5, "\\int_0^1 x dx", "Which area is this?"), "{broken"]
    test = [ask(1, "1", "Which number is this, 1?"), ask(4, "4", "And this?")]
    (tmp_path / "train.jsonl").write_text("\n".join(train))
    (tmp_path / "test.jsonl").write_text("\n".join(test))
    (tmp_path / "more.jsonl").write_text(ask(2, "7", "Which number is this, 2?"))
    (tmp_path / "own.py").write_text(
        f"""
from jaxr1.data import Files
from jaxr1.run import Config, Evaluation, Rl

def config():
    data = Files({str(tmp_path / "train.jsonl")!r}, bad_rows="drop")
    held = Evaluation(data=Files({str(tmp_path / "test.jsonl")!r}))
    return Config(stages=(Rl(data=data),), evaluations=(held,), run_dir={str(tmp_path / "run")!r})
"""
    )
    return tmp_path


def test_the_command(config, capsys):
    """Counts, what rewards say to the references, what is lost, twice, or in two sets."""
    out = config / "out"
    spec, more = str(config / "own.py"), str(config / "more.jsonl")
    assert inspect_data.main([spec, "--out", str(out), "--against", more]) == 0
    said = capsys.readouterr().out
    assert "stages.0.data: train, 6 rows" in said
    assert "accuracy of the reference answers: 1 x 5, none x 1" in said
    assert "train.jsonl:6: '\\\\int_0^1 x dx'" in said
    assert "left out: 1 x not JSON" in said and "cannot be compared safely" in said
    assert "equal rows: 1 groups" in said
    assert "stages.0 and evaluations.0: 1 rows in both, such as" in said
    assert f"stages.0 and {more}: 1 rows in both" in said
    data = json.loads((out / "inspect.json").read_text())
    train = data["sets"][0]
    assert (train["rows"], train["same_row_groups"], train["same_picture_groups"]) == (6, 1, 1)
    assert train["counts"]["answer"] == {"number": 5, "expression": 1}
    assert train["megapixels"]["max"] == pytest.approx(96 * 96 / 1e6)
    found = read_jsonl(out / "overlaps.jsonl")
    assert {(row["row"], row["kind"], row["same"]) for row in found} == {
        (1, "both", True),
        (2, "both", True),
    }
    page = (out / "inspect.html").read_text()
    assert page.count("<img") == 6 + 2 and "http" not in page

    assert inspect_data.main([spec, "--out", str(out), "--strict"]) == 1
    assert inspect_data.main([spec, "--against", str(config / "no.jsonl")]) == 1
    assert "--against" in capsys.readouterr().err
    assert inspect_data.main([spec, "--ngram", "x"]) == 1
    assert "--ngram needs a whole number" in capsys.readouterr().err


def test_nothing_of_a_row_is_run_in_the_page(tmp_path, capsys):
    """Questions and answers are untrusted."""
    line = {"prompt": "<script>alert(1)</script>", "answer": "<img src=x onerror=alert(1)>"}
    (tmp_path / "a.jsonl").write_text(json.dumps(line))
    assert Files(str(tmp_path / "a.jsonl")).load()[0].answer
    (tmp_path / "own.py").write_text(
        f"""
from jaxr1.data import Files
from jaxr1.run import Config, Rl

def config():
    data = Files({str(tmp_path / "a.jsonl")!r})
    return Config(stages=(Rl(data=data),), run_dir={str(tmp_path / "run")!r})
"""
    )
    assert inspect_data.main([str(tmp_path / "own.py")]) == 0
    page = (tmp_path / "run" / "inspect" / "inspect.html").read_text()
    assert "<script" not in page and "<img" not in page and "&lt;script&gt;" in page
