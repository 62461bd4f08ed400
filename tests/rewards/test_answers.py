"""Short answers of every kind, right and wrong: pairs/answers.txt says its form at its top."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxr1.rewards import Completion, Example, accuracy_reward

FILES = [Path(__file__).with_name("pairs") / f"{n}.txt" for n in ("answers", "more_answers")]


def rows(file: Path) -> Iterator[tuple[str, dict, str, str, bool]]:
    """(kind, metadata, reference, response, whether it is right) of each line."""
    kind, choices = "", {}
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line:
            continue
        if line[0] in "+-":
            reference, answer = line[2:].split(" | ", 1)
            answer = answer.replace("⏎", "\n")
            block = f"<think>t</think><answer>{answer}</answer>"
            response = answer[2:] if answer.startswith("R:") else block
            yield kind, choices, reference, response, line[0] == "+"
        elif line.startswith("#"):
            kind, choices = line[2:], {}
        else:
            choices = {"choices": line[2:].split(" / ")} if line != "C" else {}


ROWS = [*rows(FILES[0]), *rows(FILES[1])]


@pytest.mark.parametrize("kind", sorted({row[0] for row in ROWS}))
def test_answers(kind):
    wrong = []
    for of, metadata, reference, response, right in ROWS:
        if of == kind:
            given = accuracy_reward(Completion(response), Example("q", reference, "s", metadata))
            if given != float(right):
                wrong.append((reference, response, right))
    assert not wrong


def test_both_sides_are_there():
    right = sum(row[-1] for row in ROWS)
    assert len(ROWS) > 5000 and 0.4 < right / len(ROWS) < 0.6
