"""Files, folders and encodings: the same rows from any; bad ones are told by file and row."""

import csv
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxr1.data import Files
from jaxr1.data.example import DataError

ROWS = [
    {"prompt": "a “b” é 你好 \U0001f600?", "answer": "1", "note": None},
    {"prompt": 'two\nlines, "quoted"\tand a tab', "answer": "2", "note": "n,\t"},
    {"prompt": "ऀ ĉ Ċ 3?", "answer": "3", "note": "last"},  # bytes of spaces and line feeds
]
KINDS = ("jsonl", "json", "tsv", "csv")


def text_of(rows: list[dict], kind: str) -> str:
    if kind == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if kind == "json":
        return json.dumps(rows, ensure_ascii=False, indent=2)
    file = io.StringIO(newline="")
    table = csv.writer(file, delimiter="\t" if kind == "tsv" else ",", lineterminator="\r\n")
    table.writerow(rows[0])
    table.writerows(row.values() for row in rows)
    return file.getvalue()


def told(dataset) -> list:
    return [(e.question, e.answer, e.metadata) for e in dataset]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("kind", KINDS)
def test_encodings(kind, encoding, tmp_path, rng):
    file = tmp_path / f"rows.{kind}"
    mark = "\ufeff".encode(encoding) if encoding.startswith("utf-16") else b""
    file.write_bytes(mark + text_of(ROWS, kind).encode(encoding))
    dataset = Files(str(file)).load()
    expected = [(row["prompt"].strip(), row["answer"], {"note": row["note"]}) for row in ROWS]
    assert told(dataset) == expected
    for i in rng.permutation(len(ROWS)):
        assert told([dataset[int(i)]]) == [expected[i]]
    lines = {"jsonl": (1, 2, 3), "json": (1, 2, 3)}.get(kind, (2, 3, 5))  # as an editor counts
    assert [example.source for example in dataset] == [f"{file}:{line}" for line in lines]


@pytest.mark.parametrize("kind", ["tsv", "csv"])
def test_any_cells(kind, tmp_path, rng):
    """What Python's own reader of whole files finds, and again from the places of rows."""
    signs = ['"', "\t", ",", "\n", "\r", "\r\n", "a", "é", "\u2028", " ", ""]
    cell = lambda: "".join(signs[i] for i in rng.integers(len(signs), size=rng.integers(6)))
    for _ in range(30):
        rows = [[f"q{cell()}", cell(), "1"] for _ in range(rng.integers(1, 9))]
        file = tmp_path / f"rows.{kind}"
        quoting, end = [(csv.QUOTE_MINIMAL, "\r\n"), (csv.QUOTE_ALL, "\n")][rng.integers(2)]
        mark = "\t" if kind == "tsv" else ","
        with open(file, "w", newline="", encoding="utf-8") as out:
            table = csv.writer(out, delimiter=mark, quoting=quoting, lineterminator=end)
            table.writerows([["prompt", "note", "answer"], *rows])
        with open(file, newline="", encoding="utf-8") as whole:
            assert list(csv.reader(whole, delimiter=mark))[1:] == rows
        dataset = Files(str(file)).load()
        expected = [(text, note or None) for text, note, _ in rows]
        for i in [*range(len(rows)), *rng.permutation(len(rows))]:
            example = dataset[int(i)]
            assert (example.messages[0]["content"], example.metadata["note"]) == expected[i]


def test_a_lone_carriage_return(tmp_path):
    """pandas writes it without quotes, and does not find the row again itself."""
    (tmp_path / "rows.tsv").write_bytes(b"prompt\tanswer\na\rb\t1\r\nc\t2")
    dataset = Files(str(tmp_path / "rows.tsv")).load()
    assert [e.messages[0]["content"] for e in dataset] == ["a\rb", "c"]


def test_broken_rows_of_tables(tmp_path):
    """What is wrong with a line is told, and the others are read."""
    file = tmp_path / "rows.tsv"
    lines = [
        b"prompt\tanswer",
        b"one\t1",
        b"two",
        b"thr\xffee\t3",
        b"four\t4\t4",
        b"",
        b'5" and "6"\t5',  # quotes inside a cell are letters
        b'"never closed\t7',
        b"eight\t8",
    ]
    file.write_bytes(b"\n".join(lines))
    with pytest.raises(DataError, match=f"^{file}:3: 1 cells, and 2 columns .*; 3 more bad rows"):
        Files(str(file)).load()
    dataset = Files(str(file), bad_rows="drop").load()
    assert [e.question for e in dataset] == ["one", '5" and "6"']
    assert [d["source"].rpartition(":")[2] for d in dataset.dropped] == ["3", "4", "5", "8"]
    reasons = [drop["reason"] for drop in dataset.dropped]
    assert "not text: 'utf-8' codec" in reasons[1] and "double quote" in reasons[3]


def test_a_broken_line_among_many(tmp_path):
    """The 70,000th row names a picture that is not there; the one behind it breaks off."""
    file = tmp_path / "rows.jsonl"
    good = json.dumps({"problem": "2 + 1?", "answer": "3"})
    missing = json.dumps({"problem": "<image>?", "images": ["none.png"], "answer": "3"})
    lines = [*(69_999 * [good]), missing, '{"problem": "2 +', good]
    file.write_text("\n".join(lines))
    with pytest.raises(DataError, match=rf"^{file}:70000: .*none\.png.*no such file; 1 more bad"):
        Files(str(file)).load()
    dataset = Files(str(file), bad_rows="drop").load()
    assert len(dataset) == 70_000 and dataset[69_999].source == f"{file}:70002"
    assert [d["source"] for d in dataset.dropped] == [f"{file}:70000", f"{file}:70001"]
    assert dataset.dropped[1]["reason"].startswith("not JSON")


def shards(folder, names: list[str]) -> list[str]:
    """Files of one row each, in the order of their names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        row = {"prompt": name, "answer": "1"}
        if name.endswith("parquet"):
            pq.write_table(pa.table({key: [value] for key, value in row.items()}), folder / name)
        else:
            (folder / name).write_text(json.dumps(row))
    return sorted(names)


def test_folders(tmp_path):
    """All data files of a folder, or of "data" in it, in order; whatever else lies there."""
    plain = shards(tmp_path / "plain", ["b.jsonl", "a.jsonl", "c.jsonl"])
    for name in ("README.md", "dataset_infos.json", ".hidden.jsonl", "picture.png"):
        (tmp_path / "plain" / name).write_text("{}")
    files = Files(str(tmp_path / "plain"))
    assert [e.question for e in files.load()] == plain
    assert files.files() == [str(tmp_path / "plain" / name) for name in plain]
    names = ["train-00001-of-00002.parquet", "train-00000-of-00002.parquet"]
    inner = shards(tmp_path / "hub" / "data", names)
    (tmp_path / "hub" / "README.md").touch()
    dataset = Files(str(tmp_path / "hub")).load()
    assert [e.question for e in dataset] == inner and dataset.name == "hub"


def test_folders_of_several_data_sets(tmp_path):
    """Two kinds of files, or two splits, are not read as one."""
    folder = tmp_path / "hub"
    shards(folder / "data", ["train-0.parquet", "train-1.parquet", "test-0.parquet"])
    with pytest.raises(DataError, match=f'the splits test, train; name one.*"{folder}@test"'):
        Files(str(folder)).load()
    train = Files(f"{folder}@train").load()
    assert [e.question for e in train] == ["train-0.parquet", "train-1.parquet"]
    with pytest.raises(DataError, match="without data files of the split 'dev'"):
        Files(f"{folder}@dev").load()
    shards(folder / "data", ["more.jsonl"])
    with pytest.raises(DataError, match=r"several kinds \(\.jsonl, \.parquet\).*by a pattern"):
        Files(str(folder)).load()
    assert len(Files(str(folder / "data" / "*.parquet")).load()) == 3
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="a folder without data files"):
        Files(str(tmp_path / "empty")).load()


def test_nulls_and_nested_columns(tmp_path):
    """Tables give every row all columns: those that are null are not there."""
    turns = [[{"role": "user", "content": "2 + 1?"}], None, None]
    model = [{"style": "rule", "ground_truth": "3", "more": None}, None, None]
    columns = {
        "prompt": turns,
        "reward_model": model,
        "problem": [None, "2 + 1?", None],
        "answer": [None, "3", "3"],
        "conversations": [None, None, [{"from": "human", "value": "2 + 1?"}]],
        "images": pa.array([None, [], None], pa.list_(pa.string())),
    }
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    dataset = Files(str(tmp_path / "rows.parquet")).load()
    assert [(e.question, e.answer) for e in dataset] == 3 * [("2 + 1?", "3")]
    first = dataset[0].metadata
    assert first["reward_model"] == {"style": "rule", "more": None}
