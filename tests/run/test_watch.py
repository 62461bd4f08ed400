"""A run that cannot learn says so: after five steps, again while it lasts, and over a resume."""

import dataclasses
import io
import json
import math

import numpy as np
import pytest
from PIL import Image
from reference import one_stage

import jaxr1
from jaxr1.base.jsonl import read_jsonl
from jaxr1.data import Arithmetic, DataError, Files
from jaxr1.evaluation.heldout import HeldOut
from jaxr1.inputs.wording import QUESTIONS
from jaxr1.rewards import Reward
from jaxr1.rl import Optimizer
from jaxr1.run import BucketOptions, Config, Evaluation, ProcessorOptions, Rl, Sft
from jaxr1.run.console import Console
from jaxr1.run.watch import AGAIN, PATIENCE, count_streaks, is_due

TAGS_ALONE = (Reward("accuracy", options={"tail": False}), Reward("format", weight=0.5))


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


def said_by(config, **options) -> tuple[list[str], str]:
    """The lines of a run that begin a warning of its steps, and all that it says."""
    out = io.StringIO()
    jaxr1.train(config, console=Console(live=False, file=out), **options)
    text = out.getvalue()
    return [line for line in text.splitlines() if line.startswith("warning: rl: ")], text


def measured(mean=0.5, cut=0.0, equal=0.0) -> dict[str, float]:
    return {"reward/mean": mean, "rollout/frac_truncated": cut, "reward/frac_zero_std": equal}


def test_what_is_counted(rng):
    """Steps in a row: one that is different begins anew."""
    stage = Rl(Arithmetic(count=8))
    streaks, expected = {}, dict.fromkeys(("unscored", "truncated", "equal"), 0)
    for _ in range(200):
        none, cut, equal = (rng.random(3) < 0.8).tolist()
        seen = measured(math.nan if none else 0.5, 1.0 if cut else 0.9, 1.0 if equal else 0.9)
        streaks = count_streaks(stage, streaks, seen)
        shown = {"unscored": none, "truncated": cut, "equal": equal and not none}
        expected = {kind: expected[kind] + 1 if shown[kind] else 0 for kind in shown}
        assert streaks == expected
    supervised = Sft(Arithmetic(count=8, worked=True))
    assert count_streaks(supervised, streaks, {"policy/loss": 1.0}) == {}
    told = [steps for steps in range(1, 200) if is_due(steps)]
    assert told == list(range(PATIENCE, 200, AGAIN)) and told[:2] == [5, 55]


def test_equal_rewards_are_told_and_a_resume_keeps_counting(tmp_path):
    """Tags required, and nothing that asks for them: after five steps, not before and not again."""
    config = one_stage(tmp_path / "run", steps=3, rewards=TAGS_ALONE)
    config = dataclasses.replace(config, export=False)
    assert said_by(config)[0] == []
    longer = dataclasses.replace(config, stages=(dataclasses.replace(config.stages[0], steps=7),))
    warnings, text = said_by(longer, override_resume=True)
    assert warnings == [
        "warning: rl: for 5 steps all responses of a group had equal rewards: nothing is learned "
        "from them"
    ]
    after = text[: text.index("warning: rl")]
    assert "rl 5/7" in after and "rl 6/7" not in after
    for said in (
        "a response to 'What is the sum of the digits in the picture?' (arithmetic-train:",
        "accuracy 0: finds no answer tags",
        "format 0: ",
        "--processor.system r1 or --processor.question-template think_answer",
        'its option "tail" is off',
        "temperature 1, group_size 4",
    ):
        assert said in text, said
    assert "reward/frac_zero_std 1.000" in text


def test_cut_and_unscored_responses_are_told(tmp_path):
    rewards = tmp_path / "mine.py"
    rewards.write_text("def silent(completion, example):\n    return None\n")
    options = dict(steps=5, max_response_tokens=1, rewards=(Reward(f"{rewards}:silent"),))
    config = dataclasses.replace(one_stage(tmp_path / "run", **options), export=False)
    warnings, text = said_by(config)
    assert [line.split(" steps ")[1][:14] for line in warnings] == [
        "no response ha",
        "all responses ",
    ]
    assert "silent –" in text and "'ok': every reward function returned None" in text
    assert "--stages.0.max-response-tokens" in text and "more than 1 tokens" in text


def own_rows(folder, rng) -> Files:
    """README's example: pictures beside a file of rows."""
    rows = []
    for i in range(8):
        picture = rng.integers(0, 255, (28, 56, 3), dtype=np.uint8)
        Image.fromarray(picture).save(folder / f"{i}.png")
        question = "<image> How many red shapes are there?"
        rows.append({"prompt": question, "images": [f"{i}.png"], "answer": str(i)})
    file = folder / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Files(str(file))


def test_words_reach_training_and_held_out_sets(tmp_path, rng):
    """A limit that only the plain prompt keeps, in both places; the export is asked alike."""
    data = own_rows(tmp_path, rng)
    prompt = jaxr1.Prompt(data.load()[0].messages)
    plain, worded = (
        len(jaxr1.load_processor("tiny", question_template=template).encode(prompt))
        for template in (None, "think_answer")
    )
    assert worded > plain + 10
    words = ProcessorOptions(question_template="think_answer")
    limits = dict(max_prompt_tokens=worded, max_response_tokens=4)
    evaluation = Evaluation(data, **limits)
    base = one_stage(tmp_path / "run", data=data, steps=1, buckets=BucketOptions(), **limits)
    fits = dataclasses.replace(base, processor=words, evaluations=(evaluation,))
    jaxr1.train(fits, console=Console(live=False, file=io.StringIO()))
    kept = json.loads((tmp_path / "run" / "export" / "jaxr1_prompt.json").read_text())
    assert kept["question_template"].startswith("{question} Output the thinking process in <think>")
    row = read_jsonl(tmp_path / "run" / "rollouts" / "rl_1.jsonl")[0]
    assert row["prompt"] == "How many red shapes are there?"
    tight = dict(max_prompt_tokens=worded - 1)
    for number, config in enumerate(
        (
            dataclasses.replace(fits, stages=(dataclasses.replace(fits.stages[0], **tight),)),
            dataclasses.replace(fits, evaluations=(dataclasses.replace(evaluation, **tight),)),
        )
    ):
        config = dataclasses.replace(config, run_dir=str(tmp_path / f"tight{number}"))
        with pytest.raises(DataError, match=f"has {worded} tokens"):
            jaxr1.train(config, console=Console(live=False, file=io.StringIO()))


def test_a_model_that_knows_both_ways_is_graded_as_it_is_asked(tmp_path):
    """Plain answers are read; tags come where the run asks for them, and not where it does not."""
    question = "How many red shapes are there?"
    tagged = {
        "prompt": QUESTIONS["think_answer"].replace("{question}", question),
        "response": "<think>red</think>\n<answer>3</answer>",
    }
    plain = {"prompt": question, "response": "There are 3 red shapes."}
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps(row | {"answer": "3"}) + "\n" for row in (plain, tagged)))
    stage = Sft(
        Files(str(file)),
        epochs=40,
        batch_size=2,
        max_prompt_tokens=128,
        max_response_tokens=24,
        buckets=BucketOptions(prompt=(128,), response=(24,)),
        optimizer=Optimizer(learning_rate=2e-3),
    )
    config = Config((stage,), run_dir=str(tmp_path / "run"), tensorboard=False, report=False)
    jaxr1.train(config, console=Console(live=False, file=io.StringIO()))
    model = jaxr1.load_model(tmp_path / "run" / "export")
    asked = tmp_path / "asked.jsonl"
    asked.write_text(json.dumps({"prompt": question, "answer": "3"}) + "\n")
    limits = dict(max_prompt_tokens=128, max_response_tokens=32)
    sets = (
        Evaluation(Files(str(asked)), "all", **limits),
        Evaluation(Files(str(asked)), "tags", TAGS_ALONE, **limits),
    )
    (tmp_path / "rollouts").mkdir()
    found = {}
    for template in (None, "think_answer"):
        processor = jaxr1.load_processor(tmp_path / "run" / "export", question_template=template)
        held_out = HeldOut(tmp_path, sets, processor, 0)
        scores = held_out.evaluate(*model, "s", 0)
        held_out.close()
        names = ("all/accuracy", "all/format", "tags/accuracy", "tags/format")
        found[template] = [scores[f"eval/{name}"] for name in names]
    assert found == {None: [1, 0, 0, 0], "think_answer": [1, 1, 1, 1]}
