"""What a run directory keeps between commands, and what is refused once it is another."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp
from reference import one_stage

import jaxr1
from jaxr1.base.jsonl import read_jsonl
from jaxr1.nn.params import flatten
from jaxr1.report.report import write_report
from jaxr1.rl import Kl
from jaxr1.run import Evaluation, state
from jaxr1.run.export import export_checkpoint
from jaxr1.run.resume import ResumeError


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


def changed(config, **fields):
    """The configuration with fields of its last stage changed."""
    *before, last = config.stages
    return dataclasses.replace(config, stages=(*before, dataclasses.replace(last, **fields)))


def assert_same(a: dict, b: dict) -> None:
    a, b = flatten(a), flatten(b)
    assert a.keys() == b.keys()
    for path, x in a.items():
        assert np.array_equal(np.asarray(x), np.asarray(b[path])), path


def held_out(config):
    bounds = dict(max_prompt_tokens=32, max_response_tokens=16)
    data = dataclasses.replace(config.stages[0].data, split="test", count=4)
    return dataclasses.replace(config, evaluations=(Evaluation(data=data, **bounds),))


def test_an_older_layout_is_refused_but_can_be_read(tmp_path, monkeypatch):
    """The message names the release that reads it; the report and the export stay of use."""
    config = held_out(one_stage(tmp_path / "run", steps=1))
    found = jaxr1.train(config)
    longer = changed(config, steps=2)

    # A directory of 0.1 has one checkpointable, "run".
    folder = tmp_path / "run" / "checkpoints"
    tree = {"run": {"progress": {"total_step": np.ones(1)}, "params": {"x": np.zeros(3)}}}
    with ocp.training.Checkpointer(tmp_path / "old") as old:
        old.save_checkpointables(1, tree)
    folder.rename(tmp_path / "new")
    (tmp_path / "old").rename(folder)
    for override in (False, True):
        with pytest.raises(ResumeError, match=r"layout 1, which release 0\.1 of jaxr1 reads"):
            jaxr1.train(longer, override_resume=override)
    with pytest.raises(ResumeError, match=r"release 0\.1"):
        export_checkpoint(tmp_path / "run", tmp_path / "out")
    assert "heldout" in write_report(tmp_path / "run").text
    assert_same(jaxr1.load_model(tmp_path / "run" / "export")[1], found.params)

    # A layout that is not known yet.
    folder.rename(tmp_path / "old")
    (tmp_path / "new").rename(folder)
    monkeypatch.setattr(state, "LAYOUT", 1)
    with pytest.raises(ResumeError, match="layout 2, which a newer release of jaxr1 wrote"):
        jaxr1.train(longer, override_resume=True)


def test_other_weights_under_the_same_name_are_refused(tmp_path):
    """Checkpoints hold no frozen parts, so the model's files must stay as they were."""
    model, params = jaxr1.load_model("tiny")
    processor = jaxr1.load_processor("tiny")
    jaxr1.save_model(model, params, processor, tmp_path / "model")
    config = dataclasses.replace(
        one_stage(tmp_path / "run", steps=1), model=str(tmp_path / "model")
    )
    jaxr1.train(config)

    # Moved a little, as by training.
    other = jax.tree.map(lambda x: x * 1.01, params)
    jaxr1.save_model(model, other, processor, tmp_path / "model")
    longer = changed(config, steps=2)
    with pytest.raises(ResumeError, match=r"the weights in .*model are not those .* began with"):
        jaxr1.train(config)
    jaxr1.train(longer, override_resume=True)
    [line] = read_jsonl(tmp_path / "run" / "overrides.jsonl")
    assert any("the weights in" in text for text in line["changed"])
    # From here on these are the run's.
    jaxr1.train(longer)


def test_a_part_that_an_earlier_stage_moved_is_kept(tmp_path):
    """Frozen in the second stage, it is neither in its checkpoints nor in the model's directory."""
    first = one_stage(tmp_path / "run", steps=1)
    fields = dict(name="second", freeze=("vision",), kl=Kl(0.05))
    second = dataclasses.replace(first.stages[0], **fields)
    both = dataclasses.replace(first, stages=(*first.stages, second))
    jaxr1.train(both)
    resumed = jaxr1.train(changed(both, steps=3), override_resume=True)
    whole = dataclasses.replace(both, run_dir=str(tmp_path / "whole"))
    uninterrupted = jaxr1.train(changed(whole, steps=3))

    assert_same(resumed.params, uninterrupted.params)
    tower = lambda params: {"vision": params["vision"]}
    moved = flatten(tower(jaxr1.load_model("tiny")[1]))
    assert any(not np.array_equal(moved[k], x) for k, x in flatten(tower(resumed.params)).items())
    exported = export_checkpoint(tmp_path / "run", tmp_path / "out")
    assert_same(jaxr1.load_model(exported)[1], resumed.params)
    [saved] = (tmp_path / "run" / "frozen" / "second").iterdir()
    assert saved.name == "policy"
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["stages"][1]["freeze"] == ["vision"]
