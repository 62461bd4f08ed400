"""A run directory over several commands: failed starts, changed configurations, bad rows."""

import dataclasses
import json

import jax
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


def kept(metrics):
    """Lines of metrics without what depends on the clock or the machine."""
    clock = ("time/", "perf/", "memory/")
    return [{k: v for k, v in row.items() if not k.startswith(clock)} for row in metrics]


def same(params, others) -> bool:
    """Equal bit for bit."""
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(others), strict=True)
    return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)


def test_a_failed_start_is_no_run(tmp_path):
    """What could not begin leaves no configuration behind for the right one to override."""
    config = one_stage(tmp_path / "run", steps=1)

    def refused(wrong, error, text):
        with pytest.raises(error, match=text):
            jaxr1.train(wrong)
        assert not (tmp_path / "run" / "config.json").exists()

    wrong = dataclasses.replace(config, model="tinyy")
    refused(wrong, CheckpointError, "'tinyy' is no directory, no preset")
    wrong = dataclasses.replace(config, mesh=MeshOptions(3, 1, 1))
    refused(wrong, OptionError, "mesh: .*does not fit 4 devices")
    wrong = changed(config, lora=Lora(targets="nothing"))
    refused(wrong, OptionError, r"stages\.0\.lora: .*no matrix matches")
    wrong = changed(config, freeze=("vision", "merger", "decoder"))
    refused(wrong, OptionError, r"stages\.0\.freeze: .*nothing is left")
    wrong = changed(config, freeze=("visoin",))
    refused(wrong, OptionError, r"stages\.0\.freeze: 'visoin' is none of .*vision, merger")
    wrong = changed(config, rewards=(Reward("no.py:f"),))
    refused(wrong, OptionError, r"stages\.0\.rewards\.0: .*no file")
    wrong = changed(config, data=Files("none.jsonl"))
    refused(wrong, DataError, r"none\.jsonl: no such file")
    assert len(jaxr1.train(config).metrics) == 1
    (tmp_path / "file").touch()
    with pytest.raises(OptionError, match=r"run_dir: .* cannot be written to"):
        jaxr1.train(dataclasses.replace(config, run_dir=str(tmp_path / "file" / "run")))


def test_a_mistake_in_a_later_stage_is_said_before_the_first_runs(tmp_path):
    first = one_stage(tmp_path / "run", steps=1)
    second = dataclasses.replace(first.stages[0], name="second", lora=Lora(layers=(0, 99)))
    said = r"stages\.1\.lora: lora: layers \(0, 99\) are not inside"
    with pytest.raises(OptionError, match=said):
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
    assert kept(found.metrics) == kept(whole.metrics)
    assert kept(found.metrics[:2]) == kept(once.metrics)
    assert same(found.params, whole.params)
    [line] = read_jsonl(tmp_path / "run" / "overrides.jsonl")
    assert line == {"total_step": 2, "changed": ["stages.0.steps: 2 in the run, now 4"]}
    again = jaxr1.train(longer)  # finished: the same parameters, without an export too
    without = jaxr1.train(dataclasses.replace(longer, export=False))
    assert same(again.params, found.params) and same(without.params, found.params)
    assert kept(again.metrics) == kept(found.metrics)


def test_a_reference_cannot_be_made_up_later(tmp_path):
    config = one_stage(tmp_path / "run", steps=1)
    jaxr1.train(config)
    with pytest.raises(ResumeError, match="stage 'rl' was begun without a KL term"):
        jaxr1.train(changed(config, steps=2, kl=Kl(0.1)), override_resume=True)


def test_pictures_that_prove_damaged_when_they_are_used(tmp_path, rng, capsys):
    """The header is whole, the pixels are not: named with row, field and advice, or left out.

    What is left out is listed and shown.
    """
    rows = []
    for i in range(4):
        pixels = rng.integers(0, 256, (28, 56, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        rows.append({"prompt": "<image> How many?", "images": [f"{i}.png"], "answer": "1"})
    data = (tmp_path / "2.png").read_bytes()
    damaged = data[: len(data) // 2]
    (tmp_path / "2.png").write_bytes(damaged)
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    path = str(tmp_path / "train.jsonl")
    config = one_stage(tmp_path / "a", steps=3, data=Files(path))
    said = r"train\.jsonl:3: field 'images': .*2\.png.*truncated"
    with pytest.raises(DataError, match=said + '.*check_images="decode"'):
        jaxr1.train(config)
    # What was trained before the row came up is saved, and the mended data go on from there.
    done = len(read_jsonl(tmp_path / "a" / "metrics.jsonl"))
    assert done >= 1 and f"saved at step {done} of" in capsys.readouterr().out
    assert (tmp_path / "a" / "checkpoints" / str(done)).is_dir()
    (tmp_path / "2.png").write_bytes(data)
    assert [r["step"] for r in jaxr1.train(config).metrics] == [1, 2, 3]
    (tmp_path / "2.png").write_bytes(damaged)
    usable = Files(path, bad_rows="drop")
    held_out = Evaluation(name="mine", data=usable, max_prompt_tokens=32, max_response_tokens=4)
    config = one_stage(tmp_path / "c", steps=1)
    tested = jaxr1.train(dataclasses.replace(config, evaluations=(held_out,)))
    assert tested.metrics[0]["eval/mine/n"] == 3
    [missed] = read_jsonl(tmp_path / "c" / "dropped.jsonl")
    assert missed["source"].endswith("train.jsonl:3") and "truncated" in missed["reason"]
    strict = dataclasses.replace(held_out, data=Files(path))
    config = one_stage(tmp_path / "d", steps=1)
    with pytest.raises(DataError, match=said):
        jaxr1.train(dataclasses.replace(config, evaluations=(strict,)))
    result = jaxr1.train(one_stage(tmp_path / "b", steps=3, data=usable))
    assert len(result.metrics) == 3
    [dropped] = read_jsonl(tmp_path / "b" / "dropped.jsonl")
    assert dropped["source"].endswith("train.jsonl:3") and "truncated" in dropped["reason"]
    shown = capsys.readouterr().out
    assert "rl: left out: " in shown and "train.jsonl:3" in shown
    found = dataclasses.replace(usable, check_images="decode").load()
    assert len(found) == 3 and len(found.dropped) == 1


def test_rows_that_are_left_out_are_counted_aloud(tmp_path, capsys):
    answers = ("1", "\\frac{1}{", "\\frac{2}{", "2")
    rows = [{"prompt": "What?", "answer": answer} for answer in answers]
    rows.append({"prompt": "word " * 99, "answer": "3"})
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    fields = dict(data=Files(str(tmp_path / "t.jsonl")), rewards=(Reward("accuracy"),))
    jaxr1.train(one_stage(tmp_path / "run", steps=2, **fields))
    said = capsys.readouterr().out
    assert "rl: 2 of 5 rows are left out, the first: " in said and "t.jsonl:2: answer" in said
    assert "t.jsonl:5: the prompt has" in said and "over the limit of 32" in said
    # A later stage's rows and those of a held-out set are told before anything runs.
    bounds = dict(max_prompt_tokens=512, max_response_tokens=4)
    held_out = Evaluation(name="mine", data=fields["data"], **bounds)
    config = one_stage(tmp_path / "more", steps=1)
    stages = (*config.stages, dataclasses.replace(config.stages[0], name="later", **fields))
    jaxr1.train(dataclasses.replace(config, stages=stages, evaluations=(held_out,)))
    said = capsys.readouterr().out
    assert said.index("later: 2 of 5 rows are left out") < said.index("stage rl")
    assert "mine: 2 of 5 reference answers cannot be parsed, the first: " in said
    noted = read_jsonl(tmp_path / "more" / "dropped.jsonl")
    assert sum(r["stage"] == "mine" and "the row stays" in r["reason"] for r in noted) == 2
    (tmp_path / "t.jsonl").write_text(json.dumps(rows[-1]))
    said = r"none of its 1 rows can be used; the last one: .*t\.jsonl:1: the prompt has"
    with pytest.raises(DataError, match=said):
        jaxr1.train(one_stage(tmp_path / "none", **fields))
