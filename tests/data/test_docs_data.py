"""The page of data formats says what the code does."""

import itertools
import re
import sys
import types
from pathlib import Path

import pytest
from data.test_formats import CASES

from jaxr1.data import Files
from jaxr1.data.containers import KINDS
from jaxr1.data.formats import table
from jaxr1.data.formats.table import FORMATS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "notebooks" / "data.md"
UNMARKED = {"first": "first", "first in chats": "chats", "error": "error"}


def rows(title: str, text: str) -> list[list[str]]:
    """The rows of the table whose first column has a title."""
    found = re.search(rf"^\| {title} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", text, flags=re.MULTILINE)
    lines = found[1].splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def spans(text: str) -> list[str]:
    return re.findall("`([^`]*)`", text)


def check(text: str) -> None:
    """Raises AssertionError where the page and the formats do not agree."""
    written = rows("format", text)
    assert [row[0].split(",")[0] for row in written] == [known.name for known in FORMATS]
    for (_, known_by, becomes, unmarked, unfilled), known in zip(written, FORMATS, strict=True):
        if known.columns:
            assert tuple(tuple(spans(one)) for one in known_by.split(";")) == known.columns
            for ours, theirs in known.names.items():
                assert f"`{theirs}` → `{ours}`" in becomes, (known.name, theirs)
        assert UNMARKED[unmarked] == known.unmarked, known.name
        assert unfilled == known.unfilled, known.name
    suffixes = itertools.chain.from_iterable(spans(kind) for kind, _ in rows("kind", text))
    assert sorted(suffixes) == sorted(KINDS)


def test_the_tables():
    check(PAGE.read_text())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("| Alpaca | `instruction`", "| Alpaca | `instruct`"),
        ("`problem` → `prompt`", "`problem` → `messages`"),
        ("| first in chats | error |\n| jaxr1", "| first | error |\n| jaxr1"),
        ("| error | text |\n| LMM", "| error | error |\n| LMM"),
        ("`.parquet` `.pq`", "`.parquet`"),
        ("| OpenRLHF |", "| openrlhf |"),
    ],
)
def test_a_broken_table_is_found(old, new):
    text = PAGE.read_text()
    assert old in text
    with pytest.raises(AssertionError):
        check(text.replace(old, new))


def test_every_format_has_a_case():
    """Of rows like those that it is made for; videos and registries have tests of their own."""
    assert {known.name for known in FORMATS} == {*CASES, "jaxr1", "R1-Omni", "LLaMA-Factory"}


def test_how_to_add_a_format(tmp_path, monkeypatch):
    """The file that the page shows, as it is."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    (block,) = [block for block in blocks if "FORMAT = " in block]
    module = types.ModuleType("quiz")
    monkeypatch.setitem(sys.modules, "quiz", module)
    exec(block, module.__dict__)
    monkeypatch.setattr(table, "FORMATS", (module.FORMAT, *FORMATS))
    (tmp_path / "rows.jsonl").write_text('{"riddle": "2 + 1?", "truth": 3, "level": 2}')
    (example,) = Files(str(tmp_path / "rows.jsonl")).load()
    assert (example.question, example.answer, example.metadata) == ("2 + 1?", "3", {"level": 2})
    for path in re.findall(r"jaxr1/[\w/]+(?:\.py)?", block + PAGE.read_text()):
        assert path.endswith("quiz.py") or (ROOT / path).exists(), path
