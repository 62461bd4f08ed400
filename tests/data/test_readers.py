"""Readers: all forms of a row give one example, and a bad row is named by file, row and field."""

import base64
import io
import json
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jaxr1.data.example import DataError
from jaxr1.data.files import Files
from jaxr1.data.sat import Sat
from jaxr1.media.images import MediaError, load_image
from jaxr1.media.references import parse_printed_bytes

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


def encoded(colour, kind="PNG", size=(16, 16)):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind)
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pics").mkdir()
    for index, colour in enumerate(COLOURS):
        (tmp_path / "pics" / f"{index}.png").write_bytes(encoded(colour))
    return tmp_path


def write(folder, rows, name="rows.jsonl"):
    path = folder / name
    if name.endswith(".jsonl"):
        path.write_text(
            "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n"
        )
    elif name.endswith(".json"):
        path.write_text(json.dumps(rows))
    else:
        columns = {}  # of all rows: pyarrow looks at the first one only
        for row in rows:
            columns |= dict.fromkeys(row)
        pq.write_table(pa.table({key: [row.get(key) for row in rows] for key in columns}), path)
    return str(path)


def colours(example):
    return [load_image(reference).getpixel((0, 0)) for reference in example.images]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet"])
def test_round_trip(folder, name):
    rows = [
        {
            "prompt": "<image>Left of <image>?",
            "images": ["pics/0.png", "pics/1.png"],
            "answer": "yes",
            "level": 3,
        },
        {"prompt": "Which? <image>", "images": ["pics/2.png"], "answer": "no", "level": 4},
        {
            "prompt": "2 + 2 with <|image_pad|> and <|im_end|>",
            "images": [],
            "answer": "4",
            "level": 5,
        },
    ]
    path = write(folder, rows, name)
    dataset = Files(path).load()
    assert len(dataset) == 3 and dataset.name == "rows" and dataset.dropped == []
    first, second, third = dataset
    assert [part["type"] for part in first.messages[0]["content"]] == [
        "image",
        "text",
        "image",
        "text",
    ]
    assert (
        first.question == "Left of\n?" and first.answer == "yes" and first.metadata == {"level": 3}
    )
    assert colours(first) == COLOURS[:2] and all(isinstance(ref, str) for ref in first.images)
    assert [part["type"] for part in second.messages[0]["content"]] == ["text", "image"]
    assert third.messages == (
        {"role": "user", "content": "2 + 2 with <|image_pad|> and <|im_end|>"},
    )
    assert [example.source for example in dataset] == [f"{path}:{number}" for number in (1, 2, 3)]
    assert [e.answer for e in dataset[1:]] == ["no", "4"] and dataset[-1].answer == "4"
    assert [example.answer for example in Files(path, limit=2).load()] == ["yes", "no"]


def test_every_form_of_an_image(folder):
    data = encoded(COLOURS[1])
    text = base64.b64encode(data).decode()
    forms = [
        "pics/1.png",
        str(folder / "pics/1.png"),
        text,
        f"data:image/png;base64,{text}",
        str(data),
    ]
    forms += [{"path": "pics/1.png"}, {"path": "pics/1.png", "bytes": None}]
    rows = [{"prompt": "<image>?", "images": [form], "answer": 1} for form in forms]
    rows += [{"prompt": "<image>?", "image": form, "answer": 1} for form in forms]
    for example in Files(write(folder, rows), check_images="decode").load():
        assert colours(example) == [COLOURS[1]] and example.answer == "1"
    rows = [
        {
            "prompt": "<image>?",
            "images": [{"bytes": data, "path": "gone.png"}],
            "answer": "a",
            "other": data,
        }
    ]
    (example,) = Files(write(folder, rows, "structs.parquet")).load()
    assert example.images == [data] and example.metadata == {}
    (example,) = Files(
        write(folder, [{"prompt": "<image>?", "image": data, "answer": "a"}], "plain.parquet")
    ).load()
    assert example.images == [data]


def test_image_root_and_patterns(folder):
    (folder / "lists").mkdir()
    for part in range(2):
        write(
            folder,
            [{"prompt": "<image>", "image": f"{part}.png", "answer": str(part)}],
            f"lists/part{part}.jsonl",
        )
    dataset = Files(str(folder / "lists" / "part*.jsonl"), image_root=str(folder / "pics")).load()
    assert [example.answer for example in dataset] == ["0", "1"]
    assert [colours(example) for example in dataset] == [[COLOURS[0]], [COLOURS[1]]]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_chats(folder, name):
    rows = [
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "<image>How many?"},
                {"role": "assistant", "content": "<think>one</think><answer> 1 </answer>"},
            ],
            "images": ["pics/0.png"],
        },
        {
            "messages": [
                {"role": "user", "content": "<image>How many?"},
                {"role": "assistant", "content": "an <image> tag"},
                {"role": "user", "content": "And <image>here?"},
            ],
            "images": ["pics/0.png", "pics/1.png"],
            "answer": "2",
        },
    ]
    worked, turns = Files(write(folder, rows, name)).load()
    assert [message["role"] for message in worked.messages] == ["system", "user"]
    assert worked.response == "<think>one</think><answer> 1 </answer>" and worked.answer == "1"
    assert [message["role"] for message in turns.messages] == ["user", "assistant", "user"]
    assert turns.response is None and turns.answer == "2" and colours(turns) == COLOURS[:2]
    assert turns.messages[1]["content"] == "an <image> tag"


def test_parts(folder):
    parts = [
        {"type": "text", "text": "literal <image> stays"},
        {"type": "image", "image": "pics/2.png"},
        {"type": "image"},
        {"type": "image_url", "image_url": {"url": "pics/1.png"}},
    ]
    rows = [
        {"prompt": [{"role": "user", "content": parts}], "images": ["pics/0.png"], "answer": "x"}
    ]
    (example,) = Files(write(folder, rows)).load()
    assert colours(example) == [COLOURS[2], COLOURS[0], COLOURS[1]]
    assert example.question == "literal <image> stays"


GOOD = {"prompt": "<image>?", "images": ["pics/0.png"], "answer": "a"}
BAD = {
    "json": ('{"prompt": ', "not JSON"),
    "not an object": ("[1]", "must be an object"),
    "no prompt": ({"images": [], "answer": "a"}, "'prompt'"),
    "no answer": ({"prompt": "?"}, "'answer'"),
    "answer kind": ({"prompt": "?", "answer": ["a"]}, "'answer'"),
    "more marks": (
        {**GOOD, "prompt": "<image><image>?"},
        "more <image> placeholders than images: 2 in 'prompt', 1 in 'images'",
    ),
    "fewer marks": (
        {**GOOD, "prompt": "?"},
        "fewer <image> placeholders than images: 0 in 'prompt', 1 in 'images'",
    ),
    "no images": ({"prompt": "<image>?", "answer": "a"}, "1 in 'prompt', 0 in"),
    "missing": (
        {**GOOD, "images": ["pics/none.png"]},
        r"'images\[0\]': .*none\.png'?: no such file",
    ),
    "empty file": ({**GOOD, "images": ["empty.png"]}, r"'images\[0\]': .*empty\.png.*0 bytes"),
    "no image": ({**GOOD, "images": ["rows.jsonl"]}, r"'images\[0\]': .*not an image"),
    "too large": ({**GOOD, "images": ["huge.png"]}, r"'images\[0\]': .*huge\.png.*30000x30000"),
    "web": ({**GOOD, "images": ["https://example.org/a.png"]}, "not downloaded"),
    "image kind": ({**GOOD, "images": [7]}, r"'images\[0\]'.*int"),
    "cut base64": ({**GOOD, "images": ["iVBORw0KGgo" + "A" * 89]}, r"'images\[0\]'.*not an image"),
    "printed text": ({**GOOD, "images": ["b'a' + b'c'"]}, "not a printed byte string"),
    "no turns": ({"prompt": [], "answer": "a"}, "'prompt'"),
    "role": (
        {"messages": [{"role": "human", "content": "?"}], "answer": "a"},
        r"messages\[0\].role.*'human'",
    ),
    "part": (
        {"messages": [{"role": "user", "content": [{"type": "audio"}]}], "answer": "a"},
        r"messages\[0\].content\[0\].*'audio'",
    ),
    "only assistant": ({"messages": [{"role": "assistant", "content": "hm"}]}, "no user turn"),
}


@pytest.fixture
def bad_folder(folder):
    (folder / "empty.png").touch()
    data = bytearray(encoded(COLOURS[0]))
    data[16:24] = (30_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    (folder / "huge.png").write_bytes(data)
    return folder


@pytest.mark.parametrize("case", BAD)
def test_bad_rows_name_file_row_and_field(bad_folder, case):
    row, reason = BAD[case]
    path = write(bad_folder, [GOOD, "", row, GOOD])
    with pytest.raises(DataError, match=reason) as caught:
        Files(path).load()
    # the blank line counts: an editor shows the same number
    assert str(caught.value).startswith(f"{path}:3: ")
    dataset = Files(path, bad_rows="drop").load()
    assert len(dataset) == 2
    assert [drop["source"] for drop in dataset.dropped] == [f"{path}:3"]
    with pytest.raises(DataError, match="no usable row"):
        Files(write(bad_folder, [row], "only.jsonl"), bad_rows="drop").load()


def test_all_bad_rows_are_counted(bad_folder):
    rows = [row for row, _ in BAD.values()]
    path = write(bad_folder, [*rows, GOOD])
    with pytest.raises(DataError, match=f"^{path}:1: .*; {len(rows) - 1} more bad rows"):
        Files(path).load()
    dropped = Files(path, bad_rows="drop").load().dropped
    assert len(dropped) == len(rows) and all(drop["reason"] for drop in dropped)


def test_truncated_image_is_found_by_decoding(folder):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    (folder / "cut.png").write_bytes(file.getvalue()[:3000])
    path = write(folder, [{**GOOD, "images": ["cut.png"]}])
    with pytest.raises(DataError, match=r"'images\[0\]': .*cut\.png.*truncated"):
        Files(path, check_images="decode").load()
    (example,) = Files(path).load()
    with pytest.raises(MediaError, match=r"cut\.png.*truncated"):
        load_image(example.images[0])


def test_unusable_files(folder):
    cases = {
        "absent.jsonl": "no such file",
        "none-*.jsonl": "no such file",
        "pics": "a folder",
        "pics/0.png": "unknown kind of file",
        "broken.json": "not JSON.*is it JSON lines",
        "object.json": "expected a list",
        "broken.parquet": "not a readable parquet file",
        "nothing.jsonl": "no usable row among 0",
    }
    (folder / "broken.json").write_text("{}\n{}\n")
    (folder / "object.json").write_text("{}")
    (folder / "broken.parquet").write_bytes(b"PAR1 but not really")
    (folder / "nothing.jsonl").write_text("\n\n")
    for name, reason in cases.items():
        with pytest.raises(DataError, match=reason) as caught:
            Files(str(folder / name)).load()
        assert str(folder / name) in str(caught.value)
    path = write(folder, [GOOD])
    for options in ({"bad_rows": "skip"}, {"check_images": "maybe"}, {"limit": 0}):
        with pytest.raises(DataError, match=next(iter(options))):
            Files(path, **options).load()


def test_rows_without_answers(folder):
    path = write(folder, [{"prompt": "?"}])
    (example,) = Files(path, require_answer=False).load()
    assert example.answer is None and example.response is None


def sat_rows():
    return [
        {
            "image_bytes": [encoded(COLOURS[index % 3], "JPEG")] * (1 + index % 2),
            "question": f"Where is thing {index}?",
            "answers": ["left", "right", "above"],
            "question_type": "obj_movement",
            "correct_answer": ("left", "right", "above")[index % 3],
        }
        for index in range(60)
    ]


def test_sat_parquet(folder):
    rows = sat_rows()
    path = write(folder, rows, "sat.parquet")
    dataset = Sat(path).load()
    assert len(dataset) == 30 and len(dataset.dropped) == 30
    assert (
        dataset.dropped[0]["source"] == f"{path}:2" and "2 images" in dataset.dropped[0]["reason"]
    )
    letters = set()
    for example, row in zip(dataset, rows[::2], strict=True):
        choices = example.metadata["choices"]
        assert sorted(choices) == sorted(row["answers"])
        assert (
            choices["ABC".index(example.answer)]
            == row["correct_answer"]
            == example.metadata["answer_text"]
        )
        listed = " ".join(
            f"({letter}) {choice}" for letter, choice in zip("ABC", choices, strict=True)
        )
        assert example.question == f"{row['question']} Choose from: {listed}"
        assert (
            example.images == row["image_bytes"]
            and example.metadata["question_type"] == "obj_movement"
        )
        letters.add(example.answer)
    assert letters == set("ABC")
    both = Sat(path, single_image_only=False).load()
    assert len(both) == 60 and [len(example.images) for example in both[:2]] == [1, 2]
    # A row looks the same whatever stands around it, and another seed shuffles again.
    alone = Sat(write(folder, rows[4:5], "one.parquet")).load()
    assert alone[0].question == dataset[2].question and alone[0].answer == dataset[2].answer
    assert [e.question for e in Sat(path, seed=1).load()] != [e.question for e in dataset]
    assert len(Sat(path, limit=7).load()) == 7
    broken = write(folder, [{**rows[0], "correct_answer": "under"}], "broken.parquet")
    with pytest.raises(DataError, match=r"broken\.parquet:1: field 'correct_answer': 'under'"):
        Sat(broken).load()


def test_sat_json(folder):
    data = encoded(COLOURS[0], "JPEG")
    row = {
        "messages": [
            {
                "role": "user",
                "content": "<image>Answer in natural language. Where? Choose: left or right.",
            },
            {"role": "assistant", "content": "left"},
        ],
        "images": [str(data)],
    }
    (example,) = Sat(write(folder, [row], "sat.json")).load()
    assert example.images == [data] and example.answer == "left" and example.response == "left"
    assert example.question == "Answer in natural language. Where? Choose: left or right."


def test_printed_bytes():
    for data in (b"", bytes(range(256)), b"it's", b'"both\'"', b"\\x00\\"):
        assert parse_printed_bytes(str(data)) == data
    for text in (
        "b'a'b'c'",
        "b'a' + b'c'",
        "'text'",
        "b'open",
        "__import__('os')",
        "b'\\'",
        "b'\\xg1'",
        "b'é'",
        "",
    ):
        with pytest.raises(MediaError):
            parse_printed_bytes(text)


def test_videos_of_rows(tmp_path, rng):
    """`<video>` marks places in rows with a column of videos, and stays text in others."""
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "a.mp4"), "w") as out:
        stream = out.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 32
        for _ in range(4):
            frame = av.VideoFrame.from_ndarray(
                rng.integers(0, 256, (32, 32, 3), dtype=np.uint8), format="rgb24"
            )
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    rows = [
        {"prompt": "Look: <video> What happens?", "videos": ["a.mp4"], "answer": "1"},
        {"prompt": "What does <video> mean?", "answer": "2"},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    first, second = Files(str(tmp_path / "rows.jsonl")).load()
    parts = first.messages[0]["content"]
    assert [p["type"] for p in parts] == ["text", "video", "text"]
    assert parts[1]["video"] == str(tmp_path / "a.mp4")
    assert second.messages[0]["content"] == "What does <video> mean?"
    (tmp_path / "bad.jsonl").write_text(
        json.dumps({"prompt": "<video>", "videos": ["none.mp4"], "answer": "1"})
    )
    with pytest.raises(DataError, match=r"bad.jsonl:1: field 'videos\[0\]'.*none.mp4"):
        Files(str(tmp_path / "bad.jsonl")).load()
