"""Pictures stay in their files of rows: the same bytes in any order, and memory far below them."""

import base64
import io
import itertools
import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import jaxr1
from jaxr1.data import Files, Sat, json_lists, parquet, stored
from jaxr1.data.example import DataError
from jaxr1.media.images import MediaError, load_image
from jaxr1.media.references import StoredMedia


def picture(rng, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    pixel = rng.integers(0, 256, (*rng.integers(28, 60, 2), 3), dtype=np.uint8)
    Image.fromarray(pixel).save(file, kind)
    return file.getvalue()


def rows_of(rng, count: int, spell) -> tuple[list[dict], list[list[bytes]]]:
    """Rows of several forms, and the pictures of each."""
    rows, pictures = [], []
    for i in range(count):
        own = [picture(rng) for _ in range(int(rng.integers(0, 4)))]
        told = [spell(data) for data in own]
        text = f"{'<image>' * len(own)} “{i}” é ∑ 你好 \U0001f600"
        row = {"prompt": text, "images": told, "image": None, "answer": str(i)}
        if len(own) == 1 and i % 2:  # a column with one value
            row |= {"images": None, "image": told[0]}
        rows.append(row)
        pictures.append(own)
    return rows, pictures


def write(folder, rows, name) -> str:
    file = folder / name
    if name == "marked.jsonl":  # a byte order mark, blank lines, DOS line ends
        lines = [json.dumps(row, ensure_ascii=bool(i % 2)) for i, row in enumerate(rows)]
        file.write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n".join(lines).encode())
    elif name.endswith(".jsonl"):
        file.write_text("\n".join(map(json.dumps, rows)))
    elif name == "marked.json":
        text = json.dumps(rows, ensure_ascii=False, indent=3)
        file.write_bytes(b"\xef\xbb\xbf \n" + text.encode() + b"\n\n")
    elif name.endswith(".json"):
        file.write_text(json.dumps(rows))
    else:
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        kinds = {"images": pa.list_(kind), "image": kind}
        columns = {key: pa.array([row[key] for row in rows], kinds.get(key)) for key in rows[0]}
        pq.write_table(pa.table(columns), file, row_group_size=7)
    return str(file)


def media_of(example) -> list:
    parts = [m["content"] for m in example.messages if not isinstance(m["content"], str)]
    flat = itertools.chain.from_iterable(parts)
    return [part["image"] for part in flat if part["type"] == "image"]


NAMES = ["rows.jsonl", "marked.jsonl", "rows.json", "marked.json", "rows.parquet"]


@pytest.mark.parametrize("name", NAMES)
def test_the_same_bytes_in_any_order(name, tmp_path, rng, monkeypatch):
    """Looked up again in the file, several times and by several ways through a row."""
    monkeypatch.setattr(parquet, "MAX_BATCH_ROWS", 3)
    monkeypatch.setattr(parquet, "MAX_GROUP_BYTES", int(rng.choice([0, 30_000, 1 << 20])))
    monkeypatch.setattr(stored, "MAX_RECENT_BYTES", int(rng.choice([0, 20_000, 1 << 20])))
    coded = lambda data: base64.b64encode(data).decode()
    spell = (lambda data: {"bytes": data, "path": "x"}) if "parquet" in name else coded
    rows, pictures = rows_of(rng, 40, spell)
    file = write(tmp_path, rows, name)
    dataset = Files(file).load()
    for i in [*rng.permutation(40), *range(40)]:
        example = dataset[int(i)]
        assert example.images == pictures[i] and example.answer == str(i)
        assert example.holds("image") == bool(pictures[i]) and not example.holds("video")
        held = media_of(example)
        assert len(held) == len(pictures[i])
        assert all(isinstance(medium, StoredMedia) for medium in held)
    first = Files(file, limit=5).load()
    assert [e.images for e in first] == pictures[:5]
    # a prompt is made of them like of the bytes themselves
    at = next(i for i in range(40) if pictures[i])
    encode = jaxr1.load_processor("tiny").encode
    parts = [{"type": "image", "image": data} for data in pictures[at]]
    plain = encode(jaxr1.Prompt([{"role": "user", "content": [*parts]}]))
    assert encode(jaxr1.Prompt(dataset[at].messages)).hashes == plain.hashes


def test_parts_of_messages(tmp_path, rng):
    """Every way to a picture inside the turns of a chat."""
    data = [picture(rng) for _ in range(4)]
    told = [base64.b64encode(one).decode() for one in data]
    content = [
        {"type": "image", "image": told[0]},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{told[1]}"}},
        {"type": "image"},
        {"type": "text", "text": "?"},
        {"type": "image", "image": {"bytes": told[3], "path": None}},
    ]
    rows = [
        {"prompt": "first", "answer": "0"},
        {"messages": [{"role": "user", "content": content}], "images": [told[2]], "answer": "1"},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    example = Files(str(tmp_path / "rows.jsonl")).load()[1]
    assert example.images == data
    names = [medium.name for medium in media_of(example)]
    place = f"of {tmp_path / 'rows.jsonl'}:2"
    assert names[1] == f"messages[0].content[1].image_url.url {place}"
    assert names[2] == f"images[0] {place}"


def test_sat(tmp_path, rng):
    """The column of pictures has another name in the file than in the example."""
    rows = [
        {
            "image_bytes": [picture(rng)],
            "question": f"q {i}?",
            "answers": ["left", "right"],
            "question_type": "t",
            "correct_answer": "left",
        }
        for i in range(5)
    ]
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    pq.write_table(pa.table(columns), tmp_path / "sat.parquet")
    dataset = Sat(str(tmp_path / "sat.parquet")).load()
    for example, row in zip(dataset, rows, strict=True):
        assert example.images == row["image_bytes"]
        assert all(isinstance(medium, StoredMedia) for medium in media_of(example))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
@pytest.mark.parametrize("how", ["changed", "gone"])
def test_a_file_that_has_changed(name, how, tmp_path, rng):
    spell = (lambda data: {"bytes": data}) if "parquet" in name else (lambda data: str(data))
    rows = [{"prompt": "<image>", "images": [spell(picture(rng))], "image": None, "answer": "1"}]
    file = write(tmp_path, rows, name)
    example = Files(file).load()[0]
    if how == "gone":
        (tmp_path / name).unlink()
    else:
        write(tmp_path, [{**rows[0], "prompt": "<image>?"}, *rows], name)
    said = "has changed since it was loaded" if how == "changed" else "cannot be read any more"
    with pytest.raises(MediaError, match=f"images.0. of .*{name}:1: .*{name}: .*{said}"):
        load_image(media_of(example)[0])


def test_few_of_many_groups_are_held(tmp_path, rng, monkeypatch):
    """A data set may be hundreds of parquet files, each with a group that was read last."""
    monkeypatch.setattr(stored, "MAX_RECENT_BYTES", 0)
    expected = []
    for i in range(8):
        expected.append(picture(rng))
        images = [{"bytes": expected[-1]}]
        row = {"prompt": "<image>", "images": images, "image": None, "answer": "1"}
        write(tmp_path, [row], f"{i}.parquet")
    dataset = Files(str(tmp_path / "*.parquet")).load()
    for i in (*range(8), *rng.permutation(8)):
        assert dataset[int(i)].images == [expected[i]]
        held = [(f, group) for f, group, _ in parquet._held]
        assert held[-1][0].file.endswith(f"{i}.parquet")
        assert len(held) == len(set(held)) <= parquet.MAX_HELD


def test_rows_that_were_read_last(monkeypatch):
    """Up to so many bytes of them, whatever their sizes; one that is larger is not kept."""
    monkeypatch.setattr(stored, "MAX_RECENT_BYTES", 10)
    recent = stored._Recent()
    for key, size in (("a", 4), ("b", 4), ("a", 4), ("c", 3)):
        if recent.get(key) is None:
            recent.put(key, key.upper(), size)
    assert recent.get("a") == ("A", 4) and recent.get("c") == ("C", 3) and recent.get("b") is None
    recent.put("d", "D", 11)
    assert recent.get("d") is None
    recent.put("e", "E", 10)
    assert recent.get("e") == ("E", 10)


def test_no_room_for_large_groups(tmp_path, rng, monkeypatch):
    """What cannot be written out is said, with what helps."""
    monkeypatch.setattr(parquet, "MAX_GROUP_BYTES", 0)
    (tmp_path / "file").touch()
    monkeypatch.setenv("JAXR1_CACHE", str(tmp_path / "file"))
    row = {"prompt": "<image>", "images": [{"bytes": picture(rng)}], "image": None, "answer": "1"}
    file = write(tmp_path, [row], "rows.parquet")
    with pytest.raises(DataError, match=r"rows\.parquet: .*smaller row groups, or set JAXR1_CACHE"):
        Files(file).load()


def test_columns_of_few_values(tmp_path, rng, monkeypatch):
    """Tables of pandas keep such columns as numbers of values: also where groups are written."""
    monkeypatch.setattr(parquet, "MAX_GROUP_BYTES", 0)
    level = pa.array(["easy", "hard", "easy"]).dictionary_encode()
    columns = {"prompt": ["a", "b", "c"], "answer": ["1", "2", "3"], "level": level}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    dataset = Files(str(tmp_path / "rows.parquet")).load()
    assert [e.metadata["level"] for e in dataset] == ["easy", "hard", "easy"]


LOAD = """
import gc, sys, time
import pyarrow.parquet
from jaxr1.data import Files

status = lambda name: next(l for l in open("/proc/self/status") if l.startswith(name))
mib = lambda name: int(status(name).split()[1]) // 1024
before, began = mib("VmRSS"), time.monotonic()
dataset = Files(sys.argv[1]).load()
took, peak = time.monotonic() - began, mib("VmHWM")
assert all(dataset[i].images for i in (len(dataset) // 2, 0, 1, len(dataset) - 1))
gc.collect()
kept = mib("VmRSS") - before
print(len(dataset), kept, peak - before, took)
"""


def loaded(file) -> tuple[float, ...]:
    """Rows, MiB that stay in memory, MiB at the peak, seconds."""
    command = [sys.executable, "-c", LOAD, str(file)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return tuple(map(float, said.split()))


needs_proc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@needs_proc
def test_memory_of_one_large_row_group(tmp_path, rng):
    """160 MiB of pictures in one row group, all different, loaded and some of them used."""
    file, noise = io.BytesIO(), rng.integers(0, 256, (800, 700, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "BMP")
    pixels = bytearray(file.getvalue())
    images = []
    for _ in range(100):
        pixels[54:] = rng.bytes(len(pixels) - 54)
        images.append([{"bytes": bytes(pixels), "path": None}])
    kind = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    columns = {
        "prompt": ["<image> q"] * 100,
        "answer": ["1"] * 100,
        "images": pa.array(images, kind),
    }
    pq.write_table(pa.table(columns), tmp_path / "r.parquet", row_group_size=100)
    rows, kept, _, _ = loaded(tmp_path / "r.parquet")
    assert rows == 100 and kept < 80


@needs_proc
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_memory_of_pictures_in_text(name, tmp_path, rng):
    """10 KiB in each row, 14 as base64: 0.4 GiB for 100,000 rows is 4.2 KiB for each of them."""
    count = 10_000
    image = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (60, 57, 3), dtype=np.uint8)).save(image, "PNG")
    told = base64.b64encode(image.getvalue()).decode()
    assert len(image.getvalue()) > 10_000
    with open(tmp_path / name, "w") as file:
        file.write("" if name.endswith("l") else "[")
        for i in range(count):
            row = {"prompt": f"<image> {i}?", "images": [told], "answer": str(i), "level": i % 5}
            end = "\n" if name.endswith("l") else ",\n" if i < count - 1 else "]"
            file.write(json.dumps(row) + end)
    rows, kept, peak, took = loaded(tmp_path / name)
    assert rows == count and kept < 8 + 4.2 * count / 1024 and took < 30 * count / 100_000 + 10
    assert peak < 16 + 4.2 * count / 1024


ENCODINGS = {"utf-8": 3, "utf-16-le": 2, "utf-16-be": 2}


def marked(text: str, encoding: str, has_mark: bool) -> tuple[bytes, int]:
    """A text as bytes behind its byte order mark, and where it begins."""
    mark = "\ufeff".encode(encoding) if has_mark else b""
    return mark + text.encode(encoding), len(mark)


def test_a_list_of_any_values_read_in_pieces(tmp_path, rng, monkeypatch):
    """Whatever the pieces that a file is read in: the values of the whole, each at its place."""
    monkeypatch.setattr(json_lists, "READ_BYTES", int(rng.integers(1, 9)))
    scalars = [12, -3.5e-7, 1234567, True, None, "a", 'q"\\u00e9 é 你\U0001f600]', "", {}, [], 0]
    for _ in range(40):
        picked = [scalars[i] for i in rng.integers(0, len(scalars), rng.integers(0, 9))]
        values = [[v, {"k": v}] if rng.random() < 0.3 else v for v in picked]
        indent, ascii_only = [None, 0, 3][rng.integers(3)], bool(rng.integers(2))
        text = json.dumps(values, indent=indent, ensure_ascii=ascii_only)
        encoding = list(ENCODINGS)[rng.integers(3)]
        text += " \r\n"[: rng.integers(4)]
        data, start = marked(text, encoding, bool(rng.integers(2)))
        file = tmp_path / "v.json"
        file.write_bytes(data)
        found = json_lists.list_places(str(file), encoding, start)
        assert [json.loads(data[a : a + size].decode(encoding)) for a, size in found] == values
        # What breaks off, or goes on behind its end, is no list; nor is a file of other bytes.
        body = text.rstrip()
        cut = body[: rng.integers(len(body))]
        for wrong in (cut, text + "1", '{"a": 1}', "", "[1,]", "[1 2]"):
            data, start = marked(wrong, encoding, True)
            file.write_bytes(data)
            assert json_lists.list_places(str(file), encoding, start) is None, wrong
        file.write_bytes(b'["\xff"]')
        assert json_lists.list_places(str(file), "utf-8", 0) is None
