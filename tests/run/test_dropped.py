"""Reference answers that cannot be parsed: few are looked at beforehand, and none is missed."""

import dataclasses
import json

import pytest
from reference import one_stage

import jaxr1
from jaxr1.base.jsonl import read_jsonl
from jaxr1.data import Arithmetic, Files
from jaxr1.data.example import DataError, Dataset, Example
from jaxr1.inputs.draws import Draws
from jaxr1.rewards import Reward, accuracy, parse_answer_problem
from jaxr1.run import Evaluation, Rl, dropped
from jaxr1.run.dropped import PARSED, answer_problem, unparsable_rows

GRADED = Rl(data=Arithmetic(1), rewards=(Reward("accuracy"),))


def root(rng) -> str:
    """An answer that takes computer algebra."""
    return f"{rng.integers(2, 99)}\\lfloor \\sqrt{{{rng.integers(2, 99)}}} \\rfloor"


def broken(rng) -> str:
    """An answer that only computer algebra finds unusable."""
    return f"\\frac{{{rng.integers(2, 99)}}}{{}}"


def dataset(answers) -> Dataset:
    def row(i: int) -> Example:
        return Example(({"role": "user", "content": f"{i}?"},), answers[i], source=f"r:{i}")

    return Dataset("mine", len(answers), row)


@pytest.fixture
def parsed(monkeypatch) -> list[str]:
    """The texts that computer algebra was asked for."""
    asked, parse = [], accuracy.parsed_math

    def counted(text):
        asked.append(text)
        return parse(text)

    monkeypatch.setattr(accuracy, "parsed_math", counted)
    parse_answer_problem.cache_clear()
    return asked


def test_what_the_answers_here_are(rng):
    for _ in range(5):
        assert parse_answer_problem(root(rng)) is None
        assert parse_answer_problem(broken(rng)) == "math-verify cannot parse it"


def test_few_answers_are_parsed_before_a_run_and_every_one_when_it_is_drawn(rng, parsed):
    """What the text alone says is found in all rows; the rest is found in the end."""
    count = int(rng.integers(3 * PARSED, 4 * PARSED))
    answers = [f"{i}^{{2}}+{root(rng)}" for i in range(count)]
    plain, bad = {int(i) for i in rng.choice(count, 9)}, {int(i) for i in rng.choice(count, 99)}
    answers = [f"\\frac{{{i}}}{{}}" if i in bad else a for i, a in enumerate(answers)]
    answers = ["..." if i in plain else a for i, a in enumerate(answers)]
    data = dataset(answers)
    found = unparsable_rows(GRADED, data)
    assert PARSED / 2 <= len(parsed) == found.parsed <= PARSED
    assert plain <= found.rows.keys() <= plain | bad
    assert found.failed == len(found.rows) - len(plain)
    assert found.later == count - len(plain) - found.parsed
    assert found == unparsable_rows(GRADED, data)
    told = []
    processor = jaxr1.load_processor("tiny")
    with Draws(
        data,
        processor,
        seed=0,
        max_prompt_tokens=99,
        on_drop=lambda source, reason: told.append((source, reason)),
        unusable=frozenset(found.rows),
        judge=lambda example: answer_problem(GRADED, example),
    ) as draws:
        good = count - len(plain | bad)
        drawn = {draw.row for draw in draws.take(0, good)[1]}
    assert drawn == {*range(count)} - plain - bad
    missed = {f"r:{row}" for row in bad - found.rows.keys() - plain}
    # Those behind the last good row have not had their turn.
    assert {source for source, _ in told} <= missed and len(told) >= len(missed) - 3
    assert all("math-verify cannot parse it" in reason for _, reason in told)


def test_a_data_set_of_nothing_else_is_refused_at_once(rng, parsed):
    answers = [broken(rng) for _ in range(PARSED + 50)]
    with pytest.raises(DataError, match=r"mine: no row has .*; the first: answer '\\\\frac"):
        unparsable_rows(GRADED, dataset(answers))
    answers[int(rng.integers(len(answers)))] = root(rng)
    found = unparsable_rows(GRADED, dataset(answers))
    assert len(found.rows) == found.failed >= found.parsed - 1
    stays = dataclasses.replace(GRADED, drop_unparsable=False)
    assert unparsable_rows(stays, dataset(answers)).parsed <= PARSED


def test_later_rows_are_told_when_it_is_their_turn(tmp_path, rng, monkeypatch, capsys):
    """Left out in training, or kept where that is asked for; held-out sets keep every row.

    The file of dropped rows is that of a run without an interruption.
    """
    monkeypatch.setattr(dropped, "PARSED", 1)
    answers = [root(rng), *(broken(rng) for _ in range(3)), *(root(rng) for _ in range(4))]
    bad = {"2", "3", "4"}
    file = tmp_path / "t.jsonl"
    rows = [{"prompt": f"What is {i}?", "answer": a} for i, a in enumerate(answers)]
    file.write_text("\n".join(map(json.dumps, rows)))
    fields = dict(data=Files(str(file)), rewards=(Reward("accuracy"),))
    bounds = dict(max_prompt_tokens=32, max_response_tokens=4)
    held_out = (Evaluation(name="held", data=fields["data"], **bounds),)

    def run(name: str, steps: int, **changes) -> dict[str, set[str]]:
        config = one_stage(tmp_path / name, steps=steps, **fields, **changes)
        config = dataclasses.replace(config, evaluations=held_out)
        jaxr1.train(config, override_resume=True)
        found: dict[str, set[str]] = {"rl": set(), "held": set()}
        for row in read_jsonl(tmp_path / name / "dropped.jsonl"):
            if "not scored" in row["reason"]:  # a response to a row that stays
                continue
            found[row["stage"]].add(row["source"].rpartition(":")[2])
            is_kept = row["stage"] == "held" or "drop_unparsable" in changes
            assert ("the row stays, no answer to it is right" in row["reason"]) == is_kept
        return found

    assert run("whole", 6) == {"rl": bad, "held": bad}
    said = capsys.readouterr().out
    assert "rl: of 8 answers that take computer algebra, 1 were looked at, and 0.0 %" in said
    assert said.index("held: of 8 answers") < said.index("rl: left out: ")
    assert "held: left out" not in said and "(the row stays, no answer to it is right)" in said
    grades = [
        row for f in (tmp_path / "whole" / "rollouts").glob("rl_*.jsonl") for row in read_jsonl(f)
    ]
    assert grades and not {row["source"].rpartition(":")[2] for row in grades} & bad
    run("parts", 2)
    run("parts", 6)
    parts = (tmp_path / "parts" / "dropped.jsonl").read_bytes()
    assert parts == (tmp_path / "whole" / "dropped.jsonl").read_bytes()
    capsys.readouterr()
    assert run("stays", 4, drop_unparsable=False) == {"rl": bad, "held": bad}
    assert f"rl: left out: {file}:2: answer" not in capsys.readouterr().out
