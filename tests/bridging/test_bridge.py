"""Modality bridging: end to end with two tiny models, killed and resumed; its words and rules."""

import collections
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bridging.bridged import ROWS, options

import jaxr1
from jaxr1.base.jsonl import read_jsonl
from jaxr1.bridging.bridge import BridgeError, bridge
from jaxr1.bridging.checks import RULES, Reasoned
from jaxr1.bridging.steps import steps_of
from jaxr1.bridging.words import Words
from jaxr1.data import Arithmetic, Files
from jaxr1.rl import Optimizer
from jaxr1.run import BucketOptions, Config, Sft

SCRIPT = Path(__file__).with_name("bridged.py")
SEEN = "I see two digits and a sign."
TOLD = "According to the description there are two digits. Together they make {answer}."


def speaker(folder, said, messages):
    """A tiny model that has learned to say one thing, whatever it is asked; its directory."""
    rows = folder.with_suffix(".jsonl")
    lines = [{"prompt": turns, "response": said, "answer": "1"} for turns in messages]
    folder.parent.mkdir(parents=True, exist_ok=True)
    rows.write_text("\n".join(map(json.dumps, lines)))
    stage = Sft(
        data=Files(str(rows)),
        epochs=12,
        batch_size=8,
        max_prompt_tokens=512,
        max_response_tokens=64,
        optimizer=Optimizer(learning_rate=3e-3, schedule="cosine"),
        buckets=BucketOptions(prompt=(512,), response=(64,), patches=(64,)),
    )
    made = dict(report=False, tensorboard=False, save_minutes=0)
    jaxr1.train(Config(model="tiny", run_dir=str(folder), stages=(stage,), **made))
    return str(folder / "export")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(the model that sees, the one that reasons, the answer that it always gives)."""
    folder = tmp_path_factory.mktemp("speakers")
    data = Arithmetic(count=ROWS, digits=1).load()
    answer = collections.Counter(example.answer for example in data).most_common(1)[0][0]
    steps = steps_of(options("tiny", "tiny", "x"))
    known = {"pseudo": SEEN, "description": SEEN}
    asked = lambda step: [
        [{"role": "user", "content": step.ask(example, known)[-1]["text"]}] for example in data
    ][:16]
    sees = speaker(folder / "sees", SEEN, [*asked(steps[0])[:8], *asked(steps[1])[:8]])
    said = f"<think>{TOLD.format(answer=answer)}</think><answer>{answer}</answer>"
    reasons = speaker(folder / "reasons", said, asked(steps[2]))
    return sees, reasons, answer


def run(world, out, kill_when=lambda folder: False):
    """Runs the script; kills it once the condition of its folder holds. (exit status, output)."""
    command = [sys.executable, str(SCRIPT), *world[:2], str(out)]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[2])}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    process = subprocess.Popen(command, env=environment, **pipes)
    while process.poll() is None:
        if kill_when(out.with_suffix(".run")):
            process.kill()
            break
        time.sleep(0.005)
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def lines_of(file):
    return file.read_bytes().count(b"\n") if file.exists() else 0


def test_end_to_end_killed_and_resumed_and_trained_on(world, tmp_path):
    """Killed while descriptions are written, then while it reasons: as in one go; right rows are
    kept with their pictures, in words about pictures, and a supervised stage learns from them.
    """
    whole = tmp_path / "whole" / "cold.jsonl"
    whole.parent.mkdir()
    code, output = run(world, whole)
    assert code == 0, output
    data = Arithmetic(count=ROWS, digits=1).load()
    answer = world[2]
    right = [example for example in data if example.answer == answer]
    rows = read_jsonl(whole)
    assert 0 < len(rows) < ROWS, output
    assert {row["bridged_from"] for row in rows} <= {example.source for example in right}
    # A tiny model may slip once; nearly all rows of that answer are there.
    assert len(rows) >= 0.8 * len(right)
    thought = TOLD.format(answer=answer).replace("the description", "the image")
    for row in rows:
        assert row["response"] == f"<think>\n{thought}\n</think>\n<answer>{answer}</answer>"
    assert re.search(rf"pseudo +{ROWS} +\d+", output) and "x not right" in output
    dropped = read_jsonl(whole.with_suffix(".run") / "dropped.jsonl")
    assert len(dropped) + len(rows) == ROWS

    out = tmp_path / "killed" / "cold.jsonl"
    out.parent.mkdir()
    for name in ("description", "reasoning"):
        begun = lambda folder, name=name: lines_of(folder / f"{name}.jsonl") >= 5
        code, output = run(world, out, begun)
        assert code == -signal.SIGKILL, output
        assert 5 <= lines_of(out.with_suffix(".run") / f"{name}.jsonl") < ROWS
    code, output = run(world, out)
    assert code == 0, output
    assert out.read_bytes() == whole.read_bytes()
    for name in ("pseudo", "description", "reasoning"):
        one, other = (path.with_suffix(".run") / f"{name}.jsonl" for path in (out, whole))
        assert one.read_bytes() == other.read_bytes()

    # What it has written trains, pictures and all.
    examples = Files(str(whole)).load()
    assert [example.answer for example in examples] == [answer] * len(rows)
    assert all(len(example.images) == len(data[0].images) for example in examples)
    stage = Sft(data=Files(str(whole)), batch_size=4, max_prompt_tokens=512)
    made = dict(report=False, tensorboard=False, export=False)
    result = jaxr1.train(
        Config(model="tiny", run_dir=str(tmp_path / "sft"), stages=(stage,), **made)
    )
    norms = [row["policy/grad_norm"] for row in result.metrics if "policy/grad_norm" in row]
    assert norms and min(norms) > 0

    # The same folder with other words is refused.
    with pytest.raises(BridgeError, match=r"made with other options:\n  words.reason"):
        other = Words(reason="{question} {description}")
        bridge(dataclasses.replace(options(*world[:2], str(whole)), words=other))


@pytest.mark.parametrize(
    ("thought", "broken"),
    [
        ("I see a 3 and a 4, and 3 + 4 = 7. So the answer is 7.", set()),
        ("I see a 3 and a 4. \\boxed{8} no, it makes \\boxed{7}", set()),
        ("I see a 3 and a 4. The answer is 8.", {"contradicts"}),
        ("I see a 3 and a 4, which makes \\boxed{8}", {"contradicts"}),
        ("The length is not specified, but it may well be 7.", {"blind"}),
        ("I cannot see the image; I guess that it is 7.", {"blind"}),
        ("The notes say that it is a 7, so it is 7.", {"leaked"}),
        ("two and two and two " * 20, {"repeats"}),
        ("I see a three, 再加上四, which makes seven.", {"switches"}),
        ("It is 7.", {"short"}),
    ],
)
def test_rules(thought, broken):
    """Each rule drops what it is there for, and nothing else."""
    said = Reasoned.of(f"<think>{thought}</think><answer>7</answer>", "7", "3 + 4 = ?", True)
    assert said.thought == thought.strip() and said.answer == "7"
    assert {name for name, rule in RULES.items() if rule(said)} == broken


def test_parts_without_tags():
    """What models without tags say: the thought is all of it, the answer the last box."""
    said = Reasoned.of("Three and four make \\boxed{7}", "7", "3 + 4 = ?", False)
    assert (said.answer, said.thought) == ("7", "Three and four make \\boxed{7}")
    assert RULES["unfinished"](said)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("According to the description, it is red.", "According to the image, it is red."),
        ("The description says that it is red.", "The image shows that it is red."),
        ("The given textual description mentions two cats.", "The image shows two cats."),
        ("As described above, it is red.", "As shown, it is red."),
        ("The cats are described as red.", "The cats are shown as red."),
        ("From this description I know it.", "From this image I know it."),
        ("It is a prescription.", "It is a prescription."),
        ("根据描述，它是红色的。", "根据图像，它是红色的。"),
    ],
)
def test_words_become_those_of_a_picture(before, after):
    assert Words().of_the_picture(before) == after


def test_words_can_be_edited_and_are_checked():
    words = Words(reason="Q: {question}\nD: {description}")
    text = words.asked("reason", question="what is {x}?", description="a {question}")
    assert text == "Q: what is {x}?\nD: a {question}"
    with pytest.raises(ValueError, match=r"words.describe has no place for \{pseudo\}"):
        Words(describe="{question}")
    with pytest.raises(ValueError, match="is no pattern"):
        Words(replaced=(("(", "x"),))
