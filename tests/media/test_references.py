"""Every spelling of a picture is read wherever pictures are named, and upright sizes are told."""

import base64
import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

import jaxr1
from jaxr1.data import Files
from jaxr1.data.example import DataError
from jaxr1.inputs.template import PromptError
from jaxr1.media.images import MediaError, load_image, probe_image
from jaxr1.media.references import media_reference
from jaxr1.media.videos import load_video

XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-'
    'syntax-ns#"><rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation='
    '"6"/></rdf:RDF></x:xmpmeta>'
)


def noise(rng, height: int, width: int) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def spellings(data: bytes) -> list:
    """The bytes in every form that may stand for them."""
    text = base64.b64encode(data).decode()
    uri = f"data:image/png;base64,{text}"
    return [
        *[data, text, uri, str(data), {"bytes": data}, {"bytes": text, "path": "gone.png"}],
        *[{"bytes": uri}, {"bytes": str(data), "path": None}, {"bytes": list(data)}],
    ]


def asked(processor, kind: str, value, **more):
    part = {"type": kind, kind: value, **more}
    return processor.encode(jaxr1.Prompt([{"role": "user", "content": [part]}]))


def row_with(folder: Path, value, column: str = "images") -> str:
    """A data file of one row with a picture."""
    row = {"prompt": "<image>?", column: [value] if column == "images" else value, "answer": "1"}
    (folder / "rows.jsonl").write_text(json.dumps(row))
    return str(folder / "rows.jsonl")


def test_bytes_in_every_spelling(tmp_path, rng):
    """In a prompt, among the frames of a clip, in both columns of a row and in its parts."""
    image = noise(rng, 30, 44)
    data, processor = encoded(image), jaxr1.load_processor("tiny")
    expected = asked(processor, "image", image)
    for value in spellings(data):
        found = asked(processor, "image", value)
        np.testing.assert_array_equal(found.patches[0], expected.patches[0])
        frames = load_video([value, image]).frames
        np.testing.assert_array_equal(frames[0], frames[1])
        if isinstance(value, bytes) or (isinstance(value, dict) and value["bytes"] is data):
            continue  # JSON has no bytes
        for column in ("images", "image"):
            (example,) = Files(row_with(tmp_path, value, column)).load()
            assert example.images == [data]
        part = {"type": "image", "image": value}
        row = {"prompt": [{"role": "user", "content": [part]}], "answer": "1"}
        (tmp_path / "rows.jsonl").write_text(json.dumps(row))
        (example,) = Files(str(tmp_path / "rows.jsonl")).load()
        assert example.images == [data]


@pytest.mark.parametrize("start", ["mp4", "webm", "avif", "jp2"])
def test_base64_of_other_containers(start, rng):
    """Files whose base64 begins otherwise than that of the common picture formats."""
    begins = {
        "mp4": bytes([0, 0, 0, int(rng.integers(16, 64))]) + b"ftypisom",
        "webm": b"\x1a\x45\xdf\xa3",
        "avif": bytes([0, 0, 0, int(rng.integers(16, 64))]) + b"ftypavif",
        "jp2": b"\0\0\0\x0cjP  ",
    }
    data = begins[start] + rng.bytes(100)
    assert media_reference(base64.b64encode(data).decode()) == data


def test_file_addresses(tmp_path, rng, monkeypatch):
    """file:// where a path may stand, with percent signs decoded, relative ones too."""
    folder = tmp_path / "ä b"
    folder.mkdir()
    file = folder / "50% c#1.png"
    file.write_bytes(encoded(noise(rng, 30, 44)))
    processor = jaxr1.load_processor("tiny")
    expected = asked(processor, "image", str(file)).hashes
    forms = [file.as_uri(), f"file://{file}", f"FILE://localhost{file}", f"file:{file}"]
    assert "%20" in forms[0] and "%23" in forms[0]
    for form in forms:
        assert asked(processor, "image", form).hashes == expected, form
        assert asked(processor, "image", {"path": form, "bytes": None}).hashes == expected, form
        assert load_video([form, str(file)]).total == 2
        (example,) = Files(row_with(tmp_path, form)).load()
        assert example.images == [str(file)], form
    # relative to the folder of the file of rows, or to the working directory
    (example,) = Files(row_with(folder, "file://50%25%20c%231.png")).load()
    assert example.images == [str(file)]
    monkeypatch.chdir(folder)
    assert asked(processor, "image", "file://50%25%20c%231.png").hashes == expected
    # a name that holds such a sign to the letter goes before
    (folder / "a%20b.png").write_bytes(encoded(noise(rng, 28, 28)))
    assert media_reference(f"file://{folder}/a%20b.png") == str(folder / "a%20b.png")
    with pytest.raises(MediaError, match=r"gone%20x.png.: no such file"):
        load_image(f"file://{folder}/gone%20x.png")


def test_file_addresses_of_videos(tmp_path, rng):
    av = pytest.importorskip("av")
    file = tmp_path / "a b.mp4"
    with av.open(str(file), "w") as out:
        stream = out.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 32
        for _ in range(4):
            pixel = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixel, format="rgb24")))
        out.mux(stream.encode())
    processor = jaxr1.load_processor("tiny")
    expected = asked(processor, "video", str(file)).hashes
    text = base64.b64encode(file.read_bytes()).decode()
    for form in (file.as_uri(), text, {"path": file.as_uri()}, f"data:video/mp4;base64,{text}"):
        assert asked(processor, "video", form).hashes == expected
    row = {"prompt": "<video>?", "videos": [file.as_uri()], "answer": "1"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    (example,) = Files(str(tmp_path / "rows.jsonl")).load()
    assert example.videos == [str(file)]


ODD = {
    "null": (None, "empty"),
    "blank": (" ", "empty"),
    "nulls": ({"bytes": None, "path": None}, "empty"),
    "number": (7, "int"),
    "flag": (True, "bool"),
    "list": (["a.png"], "list"),
    "nested": ({"bytes": [["a"]]}, "'bytes' must be"),
    "large": ({"bytes": [0, 256]}, "'bytes' must be"),
    "count": ({"bytes": 5}, "'bytes' must be"),
    "no base64": ({"bytes": "a.png?"}, "not base64"),
    "number as path": ({"path": 3}, "'path' must be text"),
    "list as path": ({"path": ["a.png"], "bytes": None}, "'path' must be text"),
    "other keys": ({"url": "a.png"}, "expected an object with 'bytes' or 'path'"),
    "web": ("HTTPS://example.org/a.png", "not downloaded"),
    "bucket": ({"path": "s3://bucket/a.png"}, "not downloaded"),
    "zero": ("a\0b.png", "no such file"),
}


@pytest.mark.parametrize("case", ODD)
@pytest.mark.parametrize("kind", ["image", "video"])
def test_odd_values_are_refused_with_their_place(case, kind, tmp_path):
    """In a prompt and in a row beside a good entry; never a bare exception of Python."""
    value, reason = ODD[case]
    processor = jaxr1.load_processor("tiny")
    if not (kind == "video" and case == "list"):  # a list is one of frames
        with pytest.raises((PromptError, MediaError), match=reason):
            asked(processor, kind, value)
    Image.new("RGB", (30, 30)).save(tmp_path / "a.png")
    row = {"prompt": f"<{kind}><{kind}>?", f"{kind}s": [value, "a.png"], "answer": "1"}
    part = {"prompt": [{"role": "user", "content": [{"type": kind, kind: value}]}], "answer": "1"}
    for number, given in enumerate((row, part)):
        (tmp_path / "rows.jsonl").write_text(json.dumps(given))
        place = rf"rows.jsonl:1: field '({kind}s\[0\]|prompt\[0\].content\[0\]|prompt)'"
        reason = "more <" if number and reason == "empty" else reason
        with pytest.raises(DataError, match=place) as caught:
            Files(str(tmp_path / "rows.jsonl"), check_images="header").load()
        assert reason in str(caught.value)


@pytest.mark.parametrize("fps", ["2", [2.0], True, -1.0, float("nan"), {}])
def test_odd_rates_are_refused_with_their_place(fps):
    clip = np.zeros((4, 30, 30, 3), np.uint8)
    with pytest.raises(PromptError, match="message 0, part 0: fps must be"):
        asked(jaxr1.load_processor("tiny"), "video", clip, fps=fps)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet"])
@pytest.mark.parametrize("column", ["image", "images", "video", "videos"])
def test_empty_entries_are_no_pictures(name, column, tmp_path):
    """null, nothing, "" and structs of nulls, in rows of text; beside others they are an error."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    nulls = {"bytes": None, "path": None}
    entries = [None, "", nulls, {"bytes": None, "path": ""}]
    if name.endswith("parquet"):  # a column has one type
        entries = [None, nulls]
    many = column.endswith("s")
    values = [None, [], *([entry] for entry in entries)] if many else entries
    rows = [{"prompt": f"q {i}", column: value, "answer": "1"} for i, value in enumerate(values)]
    file = tmp_path / name
    if name.endswith("parquet"):
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        held = pa.array(values, pa.list_(kind) if many else kind)
        others = {key: [row[key] for row in rows] for key in ("prompt", "answer")}
        pq.write_table(pa.table({**others, column: held}), file)
    elif name.endswith("jsonl"):
        file.write_text("\n".join(map(json.dumps, rows)))
    else:
        file.write_text(json.dumps(rows))
    for example, row in zip(Files(str(file)).load(), rows, strict=True):
        assert example.images == [] and example.videos == [] and example.question == row["prompt"]

    mark = column.rstrip("s")
    asked_for = {"prompt": f"<{mark}>?", column: [nulls] if many else "", "answer": "1"}
    (tmp_path / "asked.jsonl").write_text(json.dumps(asked_for))
    if mark == "image":  # a mark of a video is one only where there are videos
        with pytest.raises(DataError, match=rf"0 in '{column}' \(and 1 empty: null"):
            Files(str(tmp_path / "asked.jsonl")).load()


def test_the_filled_one_of_two_columns_counts(tmp_path):
    """Tables give every row both columns."""
    Image.new("RGB", (30, 30)).save(tmp_path / "a.png")
    for images, image in (([], "a.png"), ([None], {"path": "a.png"}), (["a.png"], "")):
        row = {"prompt": "<image>?", "images": images, "image": image, "answer": "1"}
        (tmp_path / "rows.jsonl").write_text(json.dumps(row))
        (example,) = Files(str(tmp_path / "rows.jsonl")).load()
        assert example.images == [str(tmp_path / "a.png")]


def turned(rng, kind: str, turn: int) -> bytes:
    """A picture of 40 x 64 whose file says how it is to be turned."""
    image, exif = noise(rng, 40, 64), Image.Exif()
    exif[0x0112] = turn
    if kind == "PNG with XMP":
        text = PngImagePlugin.PngInfo()
        text.add_itxt("XML:com.adobe.xmp", XMP.replace('"6"', f'"{turn}"'))
        return encoded(image, pnginfo=text)
    if kind == "PNG, behind its pixels":
        data, found = encoded(image), exif.tobytes().removeprefix(b"Exif\0\0")
        chunk = b"eXIf" + found
        whole = struct.pack(">I", len(found)) + chunk + struct.pack(">I", zlib.crc32(chunk))
        return data[:-12] + whole + data[-12:]
    return encoded(image, kind, exif=exif)


@pytest.mark.parametrize("turn", [1, 3, 5, 6, 8])
@pytest.mark.parametrize(
    "kind", ["JPEG", "PNG", "PNG with XMP", "PNG, behind its pixels", "WEBP", "TIFF", "AVIF"]
)
def test_header_sizes_are_those_of_the_upright_picture(kind, turn, rng, monkeypatch):
    if kind == "AVIF" and kind not in Image.SAVE:
        Image.init()
        if kind not in Image.SAVE:
            pytest.skip("this Pillow has no AVIF")
    data = turned(rng, kind, turn)
    upright = load_image(data)
    assert upright.size == ((64, 40) if turn < 5 else (40, 64))
    # an opened picture too, and it can be decoded afterwards
    opened = Image.open(io.BytesIO(data))
    assert probe_image(opened) == (upright.height, upright.width)
    np.testing.assert_array_equal(np.asarray(load_image(opened)), np.asarray(upright))
    opened.load()
    assert probe_image(opened) in ((opened.height, opened.width), (upright.height, upright.width))
    # and nothing of the pixels is looked at
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    assert probe_image(data) == (upright.height, upright.width)
