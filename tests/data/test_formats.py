"""Data made for other frameworks is read as it is, to the examples of the same rows in our format.

`CASES` has a few literal rows of each format, with the columns that its documentation names, and
the same content as `Files` describes it.
"""

import base64
import csv
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jaxr1.data import Files
from jaxr1.data.example import DataError
from jaxr1.data.formats.table import FORMATS


def png(colour: tuple[int, int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 28), colour).save(file, "PNG")
    return file.getvalue()


RED, BLUE = png((255, 0, 0)), png((0, 0, 255))
RED64, BLUE64 = (base64.b64encode(data).decode() for data in (RED, BLUE))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pics").mkdir()
    for name, data in (("red", RED), ("blue", BLUE)):
        (tmp_path / "pics" / f"{name}.png").write_bytes(data)
    return tmp_path


def write(folder, rows: list[dict], name: str) -> str:
    """A file of rows, of the kind that its name says."""
    path = folder / name
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif name.endswith(".json"):
        path.write_text(json.dumps(rows))
    elif name.endswith(".parquet"):
        pq.write_table(pa.table({key: [row.get(key) for row in rows] for key in columns}), path)
    else:
        with open(path, "w", newline="") as file:
            table = csv.writer(file, delimiter="\t" if name.endswith(".tsv") else ",")
            table.writerow(columns)
            table.writerows([row.get(key) for key in columns] for row in rows)
    return str(path)


def told(example) -> dict:
    """All that an example says, pictures as what they name or hold."""
    return {
        "messages": [
            (
                m["role"],
                m["content"] if isinstance(m["content"], str) else list(map(part, m["content"])),
            )
            for m in example.messages
        ],
        "answer": example.answer,
        "response": example.response,
        "rejected": example.rejected,
        "metadata": example.metadata,
        "images": example.images,
    }


def part(one: dict) -> dict:
    return {"type": one["type"], "text": one.get("text")}


def same(folder, rows, own, name="rows.jsonl", **options) -> list:
    """Checks that rows of a file are those of our own format; gives the examples."""
    found = list(Files(write(folder, rows, name), **options).load())
    expected = list(Files(write(folder, own, "own.jsonl"), require_answer=False).load())
    assert list(map(told, found)) == list(map(told, expected))
    return found


USER = lambda text: {"role": "user", "content": text}
MODEL = lambda text: {"role": "assistant", "content": text}
HUMAN = lambda text: {"from": "human", "value": text}
GPT = lambda text: {"from": "gpt", "value": text}
ONE = ["pics/red.png"]

# name of the format: [(a row of it, the same in our own format)]
CASES = {
    "verl": [
        (
            {
                "data_source": "hiyouga/geometry3k",
                "prompt": [USER("<image>Find x.")],
                "images": ONE,
                "ability": "math",
                "reward_model": {"style": "rule", "ground_truth": "3"},
                "extra_info": {"split": "train", "index": 0},
            },
            {
                "prompt": [USER("<image>Find x.")],
                "images": ONE,
                "answer": "3",
                "data_source": "hiyouga/geometry3k",
                "ability": "math",
                "reward_model": {"style": "rule"},
                "extra_info": {"split": "train", "index": 0},
            },
        )
    ],
    "EasyR1": [
        (
            {"images": ONE, "problem": "<image>Find x.", "answer": "3"},
            {"images": ONE, "prompt": "<image>Find x.", "answer": "3"},
        ),
        (  # R1-V: tags around the reference, and no mark in the problem
            {"image": ONE[0], "problem": "How many?", "solution": "<answer> 3 </answer>"},
            {"image": ONE[0], "prompt": "<image>How many?", "answer": "3"},
        ),
    ],
    "TRL": [
        (
            {"prompt": [USER("How many?")], "image": ONE[0], "solution": "3", "level": 2},
            {"prompt": [USER("<image>How many?")], "image": ONE[0], "answer": "3", "level": 2},
        ),
        (
            {
                "prompt": [
                    USER([{"type": "image", "text": None}, {"type": "text", "text": "How many?"}])
                ],
                "images": ONE,
                "chosen": [MODEL([{"type": "text", "text": "Three."}])],
                "rejected": [MODEL([{"type": "text", "text": "Four."}])],
            },
            {
                "prompt": "<image>How many?",
                "images": ONE,
                "response": "Three.",
                "rejected": "Four.",
            },
        ),
        (
            {
                "chosen": [USER("Hi"), MODEL("Ho"), USER("2 + 1?"), MODEL("3")],
                "rejected": [USER("Hi"), MODEL("Ho"), USER("2 + 1?"), MODEL("4")],
            },
            {
                "prompt": [USER("Hi"), MODEL("Ho"), USER("2 + 1?")],
                "response": "3",
                "rejected": "4",
            },
        ),
        (
            {"prompt": "2 + 1?", "completion": "3"},
            {"prompt": "2 + 1?", "response": "3"},
        ),
    ],
    "ShareGPT": [
        (
            {"id": "7", "image": ONE[0], "conversations": [HUMAN("<image>\nFind x."), GPT("3")]},
            {"id": "7", "image": ONE[0], "prompt": "<image>\nFind x.", "response": "3"},
        ),
        (  # VLM-R1: no mark, and a final turn in tags
            {
                "id": 1,
                "image": ["pics/red.png", "pics/blue.png"],
                "conversations": [HUMAN("Differ?"), GPT("<answer> yes </answer>")],
            },
            {
                "id": 1,
                "image": ["pics/red.png", "pics/blue.png"],
                "prompt": "<image><image>Differ?",
                "response": "<answer> yes </answer>",
            },
        ),
        (  # cold start of Vision-R1
            {
                "conversations": [
                    {"from": "user", "value": "<image>Find x."},
                    {"from": "assistant", "value": "<think>a</think><answer>3</answer>"},
                ],
                "images": ONE,
            },
            {
                "prompt": "<image>Find x.",
                "response": "<think>a</think><answer>3</answer>",
                "images": ONE,
            },
        ),
        (
            {
                "conversations": [HUMAN("2 + 1?")],
                "system": "Be brief.",
                "chosen": GPT("3"),
                "rejected": GPT("4"),
            },
            {
                "prompt": [{"role": "system", "content": "Be brief."}, USER("2 + 1?")],
                "response": "3",
                "rejected": "4",
            },
        ),
    ],
}
ROWS = [(name, i) for name, cases in CASES.items() for i in range(len(cases))]


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
@pytest.mark.parametrize(("name", "i"), ROWS)
def test_rows_of_a_format(name, i, kind, folder):
    row, own = CASES[name][i]
    known = next(known for known in FORMATS if known.fits(row))
    assert known.name == name
    same(folder, [row, row], [own, own], f"rows.{kind}")


def test_what_was_looked_for(folder):
    """A row of no format: which columns it has, and which formats there are."""
    file = write(folder, [{"utterance": "?", "picture": None, "label": 1}], "rows.jsonl")
    with pytest.raises(DataError) as error:
        Files(file).load()
    said = str(error.value)
    assert said.startswith(f"{file}:1: ") and "the row has 'utterance', 'label'." in said
    for known in FORMATS:
        assert not known.columns or f"{known.name}: " in said
        for name in sum(known.columns, ()):
            assert repr(name) in said
