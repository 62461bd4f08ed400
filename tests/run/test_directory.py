"""A run directory over several commands: failed starts, changed configurations, rows that turn out
to be bad.
"""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from reference import one_stage

import jaxr1
from jaxr1.base.checks import OptionError
from jaxr1.base.jsonl import read_jsonl
from jaxr1.checkpoints.tensors import CheckpointError
from jaxr1.data import Files
from jaxr1.data.example import DataError
from jaxr1.nn.lora import Lora
from jaxr1.parallel import MeshOptions
from jaxr1.rewards import Reward
from jaxr1.rl import Kl
from jaxr1.run import Evaluation
from jaxr1.run.resume import ResumeError


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


def changed(config, **fields):
    """The configuration with fields of its one stage changed."""
    return dataclasses.replace(config, stages=(dataclasses.replace(config.stages[0], **fields),))


def test_a_failed_start_is_no_run(tmp_path):
    """What could not begin leaves no configuration behind that the right one would have to
    override.
    """
    config = one_stage(tmp_path / "run", steps=1)
    for wrong, error, text in (
        (
            dataclasses.replace(config, model="tinyy"),
            CheckpointError,
            "'tinyy' is no directory, no preset",
        ),
        (
            dataclasses.replace(config, mesh=MeshOptions(3, 1, 1)),
            OptionError,
            "mesh: .*does not fit 4 devices",
        ),
        (
            changed(config, lora=Lora(targets="nothing")),
            OptionError,
            r"stages\.0\.lora: .*no matrix matches",
        ),
        (
            changed(config, freeze=("vision", "merger", "decoder")),
            OptionError,
            r"stages\.0\.freeze: .*nothing is left",
        ),
        (
            changed(config, freeze=("visoin",)),
            OptionError,
            r"stages\.0\.freeze: 'visoin' is none of .*vision, merger",
        ),
        (
            changed(config, rewards=(Reward("no.py:f"),)),
            OptionError,
            r"stages\.0\.rewards\.0: .*no file",
        ),
        (changed(config, data=Files("none.jsonl")), DataError, r"none\.jsonl: no such file"),
    ):
        with pytest.raises(error, match=text):
            jaxr1.train(wrong)
        assert not (tmp_path / "run" / "config.json").exists()
    assert len(jaxr1.train(config).metrics) == 1
    (tmp_path / "file").touch()
    with pytest.raises(OptionError, match=r"run_dir: .* cannot be written to"):
        jaxr1.train(dataclasses.replace(config, run_dir=str(tmp_path / "file" / "run")))


def test_a_mistake_in_a_later_stage_is_said_before_the_first_runs(tmp_path):
    first = one_stage(tmp_path / "run", steps=1)
    second = dataclasses.replace(first.stages[0], name="second", lora=Lora(layers=(0, 99)))
    with pytest.raises(
        OptionError, match=r"stages\.1\.lora: lora: layers \(0, 99\) are not inside"
    ):
        jaxr1.train(dataclasses.replace(first, stages=(*first.stages, second)))
    assert not list((tmp_path / "run" / "rollouts").iterdir())


def test_a_finished_run_may_go_on(tmp_path):
    """With more steps, and leave to: from its last checkpoint, as if it had been one run."""
    config = one_stage(tmp_path / "run", steps=2)
    once = jaxr1.train(config)
    longer = changed(config, steps=4)
    with pytest.raises(ResumeError, match=r"stages\.0\.steps: 2 in the run, now 4"):
        jaxr1.train(longer)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["stages"][0]["steps"] == 2
    found = jaxr1.train(longer, override_resume=True)
    whole = jaxr1.train(changed(one_stage(tmp_path / "whole"), steps=4))
    kept = lambda rows: [
        {k: v for k, v in r.items() if not k.startswith(("time/", "perf/", "memory/"))}
        for r in rows
    ]
    assert kept(found.metrics) == kept(whole.metrics) and kept(found.metrics[:2]) == kept(
        once.metrics
    )
    for a, b in zip(*(map(np.asarray, _leaves(r.params)) for r in (found, whole)), strict=True):
        assert np.array_equal(a, b)
    [line] = read_jsonl(tmp_path / "run" / "overrides.jsonl")
    assert line == {"total_step": 2, "changed": ["stages.0.steps: 2 in the run, now 4"]}
    again = jaxr1.train(longer)  # finished: the same parameters, without an export too
    without = jaxr1.train(dataclasses.replace(longer, export=False))
    for result in (again, without):
        assert all(map(np.array_equal, _leaves(result.params), _leaves(found.params)))
    assert kept(again.metrics) == kept(found.metrics)


def test_a_reference_cannot_be_made_up_later(tmp_path):
    config = one_stage(tmp_path / "run", steps=1)
    jaxr1.train(config)
    with pytest.raises(ResumeError, match="stage 'rl' was begun without a KL term"):
        jaxr1.train(changed(config, steps=2, kl=Kl(0.1)), override_resume=True)


def test_pictures_that_prove_damaged_when_they_are_used(tmp_path, rng, capsys):
    """The header is whole, the pixels are not: named with row, field and advice, or left out,
    listed and shown.
    """
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (28, 56, 3), dtype=np.uint8)).save(
            tmp_path / f"{i}.png"
        )
    data = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(data[: len(data) // 2])
    rows = [
        {"prompt": "<image> How many?", "images": [f"{i}.png"], "answer": "1"} for i in range(4)
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    path = str(tmp_path / "train.jsonl")
    config = one_stage(tmp_path / "a", steps=3, data=Files(path))
    with pytest.raises(
        DataError,
        match=r"train\.jsonl:3: field 'images': .*2\.png.*truncated.*check_images=\"decode\"",
    ):
        jaxr1.train(config)
    # What was trained before the row came up is saved, and the mended data go on from there.
    done = len(read_jsonl(tmp_path / "a" / "metrics.jsonl"))
    assert done >= 1 and f"saved at step {done} of" in capsys.readouterr().out
    assert (tmp_path / "a" / "checkpoints" / str(done)).is_dir()
    whole = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(data)
    assert [r["step"] for r in jaxr1.train(config).metrics] == [1, 2, 3]
    (tmp_path / "2.png").write_bytes(whole)
    held_out = Evaluation(
        name="mine", data=Files(path, bad_rows="drop"), max_prompt_tokens=32, max_response_tokens=4
    )
    tested = jaxr1.train(
        dataclasses.replace(one_stage(tmp_path / "c", steps=1), evaluations=(held_out,))
    )
    assert tested.metrics[0]["eval/mine/n"] == 3
    [missed] = read_jsonl(tmp_path / "c" / "dropped.jsonl")
    assert missed["source"].endswith("train.jsonl:3") and "truncated" in missed["reason"]
    strict = dataclasses.replace(held_out, data=Files(path))
    with pytest.raises(DataError, match=r"train\.jsonl:3: field 'images': .*2\.png.*truncated"):
        jaxr1.train(dataclasses.replace(one_stage(tmp_path / "d", steps=1), evaluations=(strict,)))
    result = jaxr1.train(one_stage(tmp_path / "b", steps=3, data=Files(path, bad_rows="drop")))
    assert len(result.metrics) == 3
    [dropped] = read_jsonl(tmp_path / "b" / "dropped.jsonl")
    assert dropped["source"].endswith("train.jsonl:3") and "truncated" in dropped["reason"]
    assert "rl: left out: " in (said := capsys.readouterr().out) and "train.jsonl:3" in said
    found = Files(path, bad_rows="drop", check_images="decode").load()
    assert len(found) == 3 and len(found.dropped) == 1


def test_rows_that_are_left_out_are_counted_aloud(tmp_path, capsys):
    rows = [
        {"prompt": "What?", "answer": answer} for answer in ("1", "\\frac{1}{", "\\frac{2}{", "2")
    ]
    rows.append({"prompt": "word " * 99, "answer": "3"})
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    rewards = (Reward("accuracy"),)
    jaxr1.train(
        one_stage(tmp_path / "run", steps=2, data=Files(str(tmp_path / "t.jsonl")), rewards=rewards)
    )
    said = capsys.readouterr().out
    assert "rl: 2 of 5 rows are left out, the first: " in said and "t.jsonl:2: answer" in said
    assert "t.jsonl:5: the prompt has" in said and "over the limit of 32" in said
    # A later stage's rows and those of a held-out set are told before anything runs.
    held_out = Evaluation(
        name="mine",
        data=Files(str(tmp_path / "t.jsonl")),
        max_prompt_tokens=512,
        max_response_tokens=4,
    )
    config = one_stage(tmp_path / "more", steps=1)
    later = dataclasses.replace(config.stages[0], name="later", data=held_out.data, rewards=rewards)
    jaxr1.train(
        dataclasses.replace(config, stages=(*config.stages, later), evaluations=(held_out,))
    )
    said = capsys.readouterr().out
    assert said.index("later: 2 of 5 rows are left out") < said.index("stage rl")
    assert "mine: 2 of 5 reference answers cannot be parsed, the first: " in said
    noted = read_jsonl(tmp_path / "more" / "dropped.jsonl")
    assert sum(r["stage"] == "mine" and "the row stays" in r["reason"] for r in noted) == 2
    (tmp_path / "t.jsonl").write_text(json.dumps(rows[-1]))
    with pytest.raises(
        DataError,
        match=r"none of its 1 rows can be used; the last one: .*t\.jsonl:1: the prompt has",
    ):
        jaxr1.train(
            one_stage(tmp_path / "none", data=Files(str(tmp_path / "t.jsonl")), rewards=rewards)
        )


def _leaves(tree):
    import jax

    return jax.tree.leaves(tree)
