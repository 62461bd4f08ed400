"""Data made for other frameworks is read as it is, to the examples of the same rows in our format.

`CASES` has a few literal rows of each format, with the columns that its documentation names, and
the same content as `Files` describes it.
"""

import base64
import csv
import io
import itertools
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jaxr1.data import Files
from jaxr1.data.example import DataError
from jaxr1.data.formats.table import FORMATS, format_of


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
    "ms-swift": [
        (
            {
                "messages": [USER("<image>Find x."), MODEL("3")],
                "images": ONE,
                "rejected_response": "4",
            },
            {"prompt": "<image>Find x.", "images": ONE, "response": "3", "rejected": "4"},
        ),
        (  # a mark that is missing stands before the text
            {"messages": [USER("Find x.")], "images": ONE, "solution": "3"},
            {"prompt": "<image>Find x.", "images": ONE, "answer": "3"},
        ),
        (
            {
                "messages": [USER("<image>Where is the <ref-object>?"), MODEL("left")],
                "images": ONE,
                "objects": {"ref": ["red box"], "bbox": [[1, 2, 3, 4]]},
            },
            {
                "prompt": "<image>Where is the red box?",
                "images": ONE,
                "response": "left",
                "objects": {"ref": ["red box"], "bbox": [[1, 2, 3, 4]]},
            },
        ),
        (
            {
                "system": "Be brief.",
                "query": "2 + 1?",
                "response": "3",
                "history": [["Hi", "Ho"]],
                "rejected_response": "4",
            },
            {
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    *(USER("Hi"), MODEL("Ho"), USER("2 + 1?")),
                ],
                "response": "3",
                "rejected": "4",
            },
        ),
        (
            {"messages": [USER("2 + 1?"), MODEL("4")], "label": False, "level": 1},
            {"prompt": "2 + 1?", "rejected": "4", "answer": None, "level": 1, "label": False},
        ),
    ],
    "Alpaca": [
        (
            {
                "instruction": "Look at <image>.",
                "input": "Find x.",
                "output": "3",
                "system": "Be brief.",
                "history": [["Hi", "Ho"]],
                "images": ONE,
            },
            {
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    *(USER("Hi"), MODEL("Ho"), USER("Look at <image>.\nFind x."), MODEL("3")),
                ],
                "images": ONE,
            },
        ),
        (
            {"instruction": "2 + 1?", "input": "", "chosen": "3", "rejected": "4"},
            {"prompt": "2 + 1?", "response": "3", "rejected": "4"},
        ),
    ],
    "LMM-R1": [
        (
            {
                "id": "7",
                "message": json.dumps(
                    [
                        USER(
                            [
                                {"type": "image", "image": "file://pics/red.png"},
                                {"type": "text", "text": "Find x."},
                            ]
                        )
                    ]
                ),
                "question": "Find x.",
                "answer": "$3$",
            },
            {
                "id": "7",
                "prompt": "<image>Find x.",
                "images": ONE,
                "question": "Find x.",
                "answer": "$3$",
            },
        ),
        (  # as Python prints it
            {"message": str([USER("2 + 1?")]), "answer": "3"},
            {"prompt": "2 + 1?", "answer": "3"},
        ),
    ],
    "MM-Eureka": [
        (
            {
                "id": "0",
                "conversations": [{"role": "system", "content": "Be brief."}, USER("Find x.")],
                "answer": "3",
                "image_urls": ["file://pics/red.png", "file://pics/blue.png"],
            },
            {
                "id": "0",
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    USER("<image><image>Find x."),
                ],
                "answer": "3",
                "images": ["pics/red.png", "pics/blue.png"],
            },
        )
    ],
    "OpenRLHF": [
        (
            {"input": "<image>Find x.", "label": "3", "images": ONE, "datasource": "a"},
            {"prompt": "<image>Find x.", "answer": "3", "images": ONE, "datasource": "a"},
        ),
        (
            {"input": json.dumps([USER("Hi"), MODEL("Ho"), USER("2 + 1?")]), "answer": "3"},
            {"prompt": [USER("Hi"), MODEL("Ho"), USER("2 + 1?")], "answer": "3"},
        ),
    ],
    "VLMEvalKit": [
        (
            {
                "index": "1",
                "question": "Which?",
                "hint": "Look.",
                "A": "left",
                "B": "right",
                "answer": "B",
                "category": "c",
                "image": RED64,
            },
            {
                "index": "1",
                "prompt": "<image>Hint: Look.\nWhich?\nOptions:\nA. left\nB. right\n"
                "Answer with the letter of the right option.",
                "answer": "B",
                "category": "c",
                "images": [RED64],
                "choices": ["left", "right"],
            },
        ),
        (
            {"index": "2", "question": "Differ?", "answer": "yes", "image": str([RED64, BLUE64])},
            {
                "index": "2",
                "prompt": "<image><image>Differ?",
                "answer": "yes",
                "images": [RED64, BLUE64],
            },
        ),
        (
            {"index": "3", "question": "Colour?", "answer": "red", "image_path": ONE[0]},
            {"index": "3", "prompt": "<image>Colour?", "answer": "red", "images": ONE},
        ),
    ],
}
ROWS = [(name, i) for name, cases in CASES.items() for i in range(len(cases))]


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
@pytest.mark.parametrize(("name", "i"), ROWS)
def test_rows_of_a_format(name, i, kind, folder):
    row, own = CASES[name][i]
    assert format_of(row).name == name
    is_judged = "label" in row and row["label"] is False  # there is nothing to take an answer from
    same(folder, [row, row], [own, own], f"rows.{kind}", require_answer=not is_judged)


def test_what_was_looked_for(folder):
    """A row of no format: which columns it has, and which formats there are."""
    file = write(folder, [{"utterance": "?", "picture": None, "label": 1}], "rows.jsonl")
    with pytest.raises(DataError) as error:
        Files(file).load()
    said = str(error.value)
    assert said.startswith(f"{file}:1: ") and "the row has 'utterance', 'label'." in said
    for known in FORMATS:
        assert not known.columns or f"{known.name}: " in said
        for name in itertools.chain.from_iterable(known.columns):
            assert repr(name) in said


# --- what published rows do otherwise -----------------------------------------------------------
def failed(folder, row: dict, name="rows.jsonl", **options) -> str:
    """What is said of a bad row, behind the file and its number."""
    file = write(folder, [row], name)
    with pytest.raises(DataError) as error:
        Files(file, **options).load()
    prefix = f"{file}:{1 + name.endswith('sv')}: "
    assert str(error.value).startswith(prefix)
    return str(error.value).removeprefix(prefix)


VERL = {"prompt": [USER("<image>?")], "reward_model": {"style": "rule", "ground_truth": "3"}}
BARE = [  # rows without images, and what their loaders make of the mark
    ({"problem": "What is <image>?", "answer": "a tag"}, "text"),
    ({"problem": "What is <image>?", "answer": "a tag", "images": []}, "text"),
    (VERL | {"images": None}, "text"),
    ({"conversations": [HUMAN("What is <image>?"), GPT("a tag")], "image": ""}, "text"),
    ({"prompt": "What is <image>?", "answer": "a tag"}, "error"),
    ({"messages": [USER("What is <image>?")], "solution": "a tag"}, "error"),
    ({"instruction": "What is <image>?", "output": "a tag"}, "error"),
]


@pytest.mark.parametrize(("row", "what"), BARE)
def test_a_mark_without_images(row, what, folder):
    if what == "error":
        assert "more <image> placeholders than images" in failed(folder, row)
    else:
        (example,) = Files(write(folder, [row], "rows.jsonl")).load()
        assert "<image>" in example.question and not example.holds("image")


def test_messages_have_the_names_of_the_row(folder):
    """A bad field is called what it is called in the file."""
    two = ["pics/red.png", "pics/blue.png"]
    said = failed(folder, {"problem": "<image>?", "images": two, "answer": "3"})
    assert "'problem'" in said and "1 in 'problem', 2 in 'images'" in said
    assert "'problem[0]'" in failed(folder, {"problem": ["a"], "answer": "3"})
    said = failed(folder, VERL | {"images": ONE, "reward_model": {"ground_truth": [3]}})
    assert "field 'reward_model.ground_truth': expected text or a number" in said
    said = failed(folder, VERL | {"prompt": [USER("?")], "images": ONE})  # verl puts none first
    assert "fewer <image> placeholders than images: 0 in 'prompt', 1 in 'images'" in said
    said = failed(folder, {"conversations": [{"from": "bot", "value": "?"}], "answer": "3"})
    assert "'conversations[0].from': expected one of human, " in said
    said = failed(folder, {"conversations": [HUMAN("?")], "image_urls": ["no.png"], "answer": "3"})
    assert "'image_urls[0]'" in said and "no such file" in said
    said = failed(folder, {"message": "[{'role': ", "answer": "3"})
    assert "'message': neither JSON nor a Python literal" in said
    said = failed(folder, {"query": "?", "response": "a", "audios": ["a.wav"]})
    assert "'audios': sound is not read" in said
    row = {"messages": [USER("<bbox>?"), MODEL("a")], "objects": {"bbox": [[1, 2, 3, 4]]}}
    assert "'objects': the text has a <bbox>" in failed(folder, row)
    row = {"messages": [USER("<ref-object>?"), MODEL("a")], "objects": {"ref": []}}
    assert "'objects.ref': fewer names" in failed(folder, row)
    row = {"chosen": [USER("a"), MODEL("b")], "rejected": [USER("c"), MODEL("d")]}
    assert "'chosen': has no turn in common with 'rejected'" in failed(folder, row)
    row = {"instruction": "?", "output": "a", "history": [["a"]]}
    assert "'history[0]': expected a question and its answer" in failed(folder, row)
    row = {"index": "1", "question": "?", "A": "a", "C": "c", "answer": "A"}
    assert "'B': an empty option before others: A, C" in failed(folder, row)


def test_forms_of_images(folder):
    """In every column of images, and in what qwen_vl_utils takes beside them."""
    uri = f"data:image/png;base64,{RED64}"
    for form in (RED64, uri, {"image": "pics/red.png"}, {"image": uri, "max_pixels": 4}, str(RED)):
        for row in ({"images": [form]}, {"image": form}):
            (example,) = Files(
                write(folder, [{"problem": "<image>?", "answer": "3", **row}], "rows.jsonl")
            ).load()
            (found,) = example.images
            assert found == RED or found == str(folder / "pics/red.png")
    (example,) = Files(
        write(folder, [VERL | {"images": [{"bytes": RED, "path": None}]}], "rows.parquet")
    ).load()
    assert example.images == [RED]
    for told in (["pics/red.png", "pics/blue.png"], [RED64, BLUE64]):  # a list in one cell
        for spelled in (str(told), json.dumps(told)):
            row = {"prompt": "<image><image>?", "images": spelled, "answer": "3"}
            (example,) = Files(write(folder, [row], "rows.csv")).load()
            paths = [str(folder / "pics/red.png"), str(folder / "pics/blue.png")]
            assert example.images == ([RED, BLUE] if told[0] == RED64 else paths)


def test_several_formats_in_one_file(folder):
    """Each row by its own columns; shards of a pattern need not agree either."""
    cases = [pair for name in CASES for pair in CASES[name] if "label" not in pair[0]]
    rows, own = [row for row, _ in cases], [row for _, row in cases]
    same(folder, rows, own)
    (folder / "shards").mkdir()
    for i, row in enumerate(rows):
        write(folder / "shards", [row], f"{i:02d}.{['jsonl', 'json', 'parquet'][i % 3]}")
    dataset = Files(str(folder / "shards/*.*"), image_root=str(folder)).load()
    expected = Files(write(folder, own, "own.jsonl")).load()
    assert list(map(told, dataset)) == list(map(told, expected))


def test_a_picture_of_another_row(folder):
    """VLMEvalKit writes a picture once, and its index in other rows; before it or behind it."""
    more = {"question": "?", "answer": "3"}
    rows = [
        {"index": "9", "image": "12", **more},
        {"index": "12", "image": RED64, **more},
        {"index": "13", "image": "12", **more},
    ]
    dataset = Files(write(folder, rows, "rows.tsv")).load()
    assert [example.images for example in dataset] == 3 * [[RED]]
    said = failed(folder, {"index": "1", "image": "2", **more}, "rows.tsv")
    assert "'image': no row has the index '2'" in said
    rows = [{"index": "1", "image": "2", **more}, {"index": "2", "image": "1", **more}]
    with pytest.raises(DataError, match="the row with the index '2' has no picture"):
        Files(write(folder, rows, "rows.tsv")).load()


def test_a_question_in_a_video(folder):
    """R1-Omni: two marks on lines of their own, of which that of the sound is left out."""
    av = pytest.importorskip("av")
    with av.open(str(folder / "a.mp4"), "w") as out:
        stream = out.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 32
        for _ in range(4):
            out.mux(stream.encode(av.VideoFrame(32, 32, "yuv420p")))
        out.mux(stream.encode())
    response = "<think>a smile</think>\n<answer>happy</answer>"
    row = {
        "video": "a.mp4",
        "conversations": [HUMAN("<video>\n<audio>\nWhich emotion?"), GPT(response)],
    }
    own = {"video": "a.mp4", "prompt": "<video>\nWhich emotion?", "response": response}
    assert format_of(row).name == "R1-Omni"
    (example,) = same(folder, [row], [own])
    assert example.answer == "happy" and example.videos == [str(folder / "a.mp4")]
    row["conversations"][0] = HUMAN("<image>\nWhich emotion?")  # as LLaVA-Video writes it
    same(folder, [row], [own])


# --- registries ---------------------------------------------------------------------------------
REGISTRY = {
    "plain": {"file_name": "plain.json"},
    "renamed": {
        "file_name": "sub/renamed.jsonl",
        "columns": {"prompt": "q", "response": "a", "system": "s", "images": "pics"},
        "num_samples": 1,
    },
    "pairs": {
        "file_name": "pairs.json",
        "formatting": "sharegpt",
        "ranking": True,
        "columns": {"messages": "turns", "chosen": "good", "rejected": "bad"},
        "tags": {
            "role_tag": "who",
            "content_tag": "what",
            "user_tag": "U",
            "assistant_tag": "A",
            "system_tag": "S",
        },
    },
    "liked": {
        "file_name": "liked.json",
        "columns": {"prompt": "instruction", "response": "output", "kto_tag": "kto_tag"},
    },
    "remote": {"hf_hub_url": "someone/something"},
    "wrong": {"file_name": "plain.json", "formatting": "chatml"},
}


@pytest.fixture
def registry(folder):
    (folder / "dataset_info.json").write_text(json.dumps(REGISTRY))
    (folder / "sub").mkdir()
    write(folder, [{"instruction": "2 + 1?", "input": "Say.", "output": "3"}], "plain.json")
    renamed = {"q": "<image>?", "a": "3", "s": "Be brief.", "pics": ONE, "images": ["unlisted"]}
    write(folder / "sub", [renamed, renamed], "renamed.jsonl")
    turns = [{"who": "S", "what": "Be brief."}, {"who": "U", "what": "2 + 1?"}]
    good, bad = {"who": "A", "what": "3"}, {"who": "A", "what": "4"}
    write(folder, [{"turns": turns, "good": good, "bad": bad, "n": 1}], "pairs.json")
    liked = [{"instruction": "2 + 1?", "output": x, "kto_tag": x == "3"} for x in ("3", "4")]
    write(folder, liked, "liked.json")
    return folder / "dataset_info.json"


SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("plain", [{"prompt": "2 + 1?\nSay.", "response": "3"}]),
        ("renamed", [{"prompt": [SYSTEM, USER("<image>?")], "response": "3", "images": ONE}]),
        ("pairs", [{"prompt": [SYSTEM, USER("2 + 1?")], "response": "3", "rejected": "4", "n": 1}]),
        (
            "liked",
            [
                {"prompt": "2 + 1?", "response": "3", "kto_tag": True},
                {"prompt": "2 + 1?", "rejected": "4", "kto_tag": False},
            ],
        ),
    ],
)
def test_entries_of_a_registry(name, own, registry):
    files = Files(f"{registry}:{name}", require_answer=False)
    assert files.files() == [str(registry), str(registry.parent / REGISTRY[name]["file_name"])]
    expected = Files(write(registry.parent, own, "own.jsonl"), require_answer=False).load()
    dataset = files.load()
    assert list(map(told, dataset)) == list(map(told, expected)) and dataset.name == name


def test_entries_that_cannot_be_read(registry):
    for path, said in {
        f"{registry}:remote": "has hf_hub_url, and nothing is downloaded",
        f"{registry}:none": "which data set.*plain, renamed, pairs, liked, remote, wrong",
        str(registry): "which data set.*plain, renamed",
        f"{registry}:wrong": "formatting must be 'alpaca' or 'sharegpt', got 'chatml'",
    }.items():
        with pytest.raises(DataError, match=said) as error:
            Files(path).load()
        assert str(registry) in str(error.value)
    registry.write_text(json.dumps({"plain": REGISTRY["plain"]}))
    assert len(Files(str(registry)).load()) == 1  # the only one needs no name
