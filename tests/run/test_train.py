"""Runs from their configuration: the tiny recipe, own data and rewards, what a mistake says."""

import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image
from reference import one_stage

import jaxr1
from jaxr1.base.jsonl import read_jsonl
from jaxr1.config import load_config
from jaxr1.data import Files, Sat
from jaxr1.export import main as export
from jaxr1.models.flops import forward_flops
from jaxr1.rewards import Reward, RewardError
from jaxr1.rl import Optimizer
from jaxr1.rl.step import accumulate
from jaxr1.run import BucketOptions, Rl
from jaxr1.run.console import Console
from jaxr1.run.export import export_checkpoint
from jaxr1.run.machine import CompileCounter
from jaxr1.run.resume import ResumeError

# What a step of RL is measured by.
METRICS = (
    "reward/mean",
    "reward/accuracy",
    "reward/format",
    "reward/frac_zero_std",
    "rollout/length_mean",
    "rollout/frac_truncated",
    "rollout/entropy",
    "policy/kl",
    "policy/grad_norm",
    "time/step_s",
    "perf/tokens_per_s",
    "perf/model_tflops",
    "perf/compiles",
    "perf/padding",
    "memory/host_rss_gib",
    "memory/parameters_gib",
    "memory/optimiser_gib",
    "memory/gradients_gib",
    "memory/activations_gib",
    "memory/cache_gib",
    "perf/padded_per_real",
    "perf/rows_per_prompt",
)
# What a run leaves behind.
WRITTEN = (
    "config.json",
    "environment.json",
    "metrics.jsonl",
    "dropped.jsonl",
    "curves.png",
    "report.html",
    "tensorboard",
    "reference/grpo",
    "checkpoints",
    "export/model.safetensors",
)


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


def test_visualthinker_tiny_runs_from_stage_one_to_export(tmp_path, capsys):
    config = load_config("configs/visualthinker_r1_zero.py:tiny")
    config = dataclasses.replace(config, run_dir=str(tmp_path / "run"))
    result = jaxr1.train(config)
    assert result.signal is None and result.run_dir == tmp_path / "run"
    steps = [r for r in result.metrics if "policy/loss" in r]
    assert [r["step"] for r in steps] == [1, 2, 3, 4]
    for row in steps:
        assert set(METRICS) <= set(row)
        assert row["rollout/max_abs_dlogp"] < 1e-4
        assert row["policy/ratio"] == 1 and row["policy/clip_frac"] == 0
    folder = tmp_path / "run"
    for name in WRITTEN:
        assert (folder / name).exists(), name
    row = read_jsonl(folder / "rollouts" / "grpo_1.jsonl")[0]
    assert row["response"].startswith("<think>") and row["media"]
    assert set(row["rewards"]) == {"accuracy", "format"}

    # Its work: one forward pass that samples, one of the reference, and an update that costs three.
    model, processor = jaxr1.load_model("tiny")[0], jaxr1.load_processor("tiny", template="r1_zero")
    data = config.stages[0].data.load()
    known, groups = {}, {}
    for i in range(len(data)):
        prompt = processor.encode(jaxr1.Prompt(data[i].messages))
        known[prompt.hashes] = prompt
    for row in read_jsonl(folder / "rollouts" / "grpo_1.jsonl"):
        groups.setdefault(tuple(row["media"]), []).append(row["length"])
    flops = 0
    for media, lengths in groups.items():
        flops += 5 * sum(forward_flops(model, known[media], lengths).values())
    # Two divisions and two products in float64, each rounded to 1.1e-16.
    measured = steps[0]["perf/model_tflops"] * steps[0]["time/step_s"] * 1e12
    assert measured == pytest.approx(flops, rel=1e-15)

    from transformers import Qwen2VLForConditionalGeneration

    exported = Qwen2VLForConditionalGeneration.from_pretrained(folder / "export")
    ours = np.asarray(result.params["decoder"]["norm"])
    assert np.array_equal(exported.model.language_model.norm.weight.detach().numpy(), ours)
    model, params = jaxr1.load_model(folder / "export")
    processor = jaxr1.load_processor(folder / "export")
    prompt = jaxr1.Prompt([{"role": "user", "content": "Which object"}])
    [[said]] = jaxr1.generate(model, params, processor, [prompt], max_new_tokens=4, temperature=0)
    assert len(said.token_ids) > 0
    latest = export_checkpoint(folder, tmp_path / "again")
    first, again = (x / "model.safetensors" for x in (folder / "export", latest))
    assert first.read_bytes() == again.read_bytes()
    command = ["--run-dir", str(folder), "--out", str(tmp_path / "early"), "--step"]
    assert export([*command, "2"]) == 0 and export([*command, "3"]) == 1
    assert "has no checkpoint of step 3, only of 2, 4" in capsys.readouterr().err
    early = jaxr1.load_model(tmp_path / "early")[1]["decoder"]["layers"]["q"]
    assert not np.array_equal(early, params["decoder"]["layers"]["q"])


def test_visualthinker_paper_has_the_published_numbers():
    config = load_config("configs/visualthinker_r1_zero.py")
    (stage,) = config.stages
    assert isinstance(stage, Rl) and isinstance(stage.data, Sat) and stage.data.limit == 15000
    assert stage.data.path == "SAT_static.parquet"
    assert (stage.prompts_per_step, stage.group_size, stage.steps) == (8, 8, 1500)
    assert (stage.max_prompt_tokens, stage.max_response_tokens) == (1024, 700)
    assert stage.temperature == 1.0
    assert (stage.optimizer.learning_rate, stage.kl.coef, stage.kl.estimator) == (1e-6, 0.04, "k3")
    assert (stage.advantage.scale, stage.advantage.eps) == ("std", 1e-4)
    assert stage.aggregation == "seq-mean-token-mean" and stage.updates_per_rollout == 1
    assert [(r.label, r.weight) for r in stage.rewards] == [("accuracy", 1.0), ("format", 1.0)]
    assert (config.processor.max_pixels, config.processor.template) == (401408, "r1_zero")


def test_a_reward_is_learned(tmp_path):
    """GRPO from random parameters, on own data and with an own reward: answers get shorter."""
    rewards = tmp_path / "rewards.py"
    rewards.write_text("def short(completion, example):\n    return -len(completion.text) / 50\n")
    config = one_stage(
        tmp_path / "run",
        steps=30,
        prompts_per_step=4,
        group_size=8,
        rewards=(Reward(f"{rewards}:short"),),
        optimizer=Optimizer(learning_rate=3e-3),
    )
    found = [r["reward/mean"] for r in jaxr1.train(config).metrics]
    assert np.mean(found[-5:]) > np.mean(found[:5]) + 0.2


def test_second_pass_compiles_nothing(tmp_path):
    """A step met again compiles nothing new, and only strips have several sizes.

    They are 1, 2 or 4 for a group of four.
    """
    before = accumulate._cache_size()
    config = one_stage(tmp_path / "a", steps=3)
    jaxr1.train(config)
    assert 0 < accumulate._cache_size() - before <= 3
    with CompileCounter() as compiles:
        jaxr1.train(dataclasses.replace(config, run_dir=str(tmp_path / "b")))
    assert compiles.count == 0


def test_own_files_and_own_reward(tmp_path, rng):
    """JSONL rows with images beside it; every other column reaches the reward."""
    rows = []
    for i in range(4):
        pixels = rng.integers(0, 256, (28, 56, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        row = {"prompt": "<image> How many shapes?", "images": [f"{i}.png"], "answer": str(i)}
        rows.append(row | {"level": i})
    rows.append({"prompt": "word " * 200, "answer": "1", "level": 9})  # too long
    rows.append({"prompt": "What?", "answer": "\\frac{1}{", "level": 9})
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    code = "def level(completion, example):\n    return example.metadata['level'] * 1.0\n"
    (tmp_path / "mine.py").write_text(code)
    config = one_stage(
        tmp_path / "run",
        data=Files(path=str(tmp_path / "train.jsonl")),
        steps=4,
        rewards=(Reward(f"{tmp_path}/mine.py:level"), Reward("accuracy")),
    )
    result = jaxr1.train(config)
    line = lambda row: int(row["source"].rpartition(":")[2])
    for step in (1, 2, 3, 4):
        graded = read_jsonl(tmp_path / "run" / "rollouts" / f"rl_{step}.jsonl")
        assert graded
        for row in graded:
            assert row["rewards"]["level"] == line(row) - 1
    dropped = {line(row): row["reason"] for row in read_jsonl(tmp_path / "run" / "dropped.jsonl")}
    assert "over the limit of 32" in dropped[5] and "answer" in dropped[6]
    assert len(result.metrics) == 4


def test_another_configuration_is_refused(tmp_path):
    config = one_stage(tmp_path / "run", steps=1)
    jaxr1.train(config)
    stage = dataclasses.replace(config.stages[0], steps=2, group_size=2)
    changed = dataclasses.replace(config, stages=(stage,), seed=4)
    with pytest.raises(ResumeError) as error:
        jaxr1.train(changed)
    for line in (
        "seed: 0 in the run, now 4",
        "stages.0.group_size: 4 in the run, now 2",
        "--override-resume",
    ):
        assert line in str(error.value)


def test_doubtful_settings_are_warned_of(tmp_path, capsys):
    fields = dict(steps=1, top_p=0.9, max_prompt_tokens=40000, buckets=BucketOptions())
    jaxr1.train(one_stage(tmp_path / "run", **fields))
    said = capsys.readouterr().out
    assert "stages.0: up to 40016 tokens, but the model was made for 32768" in said
    assert "top_p and top_k filter" in said


BAD_REWARDS = """
import os, time

def broken(completion, example):
    raise KeyError('nope')

def moody(completion, example):
    kind = sum(map(ord, completion.text)) % 4
    if kind == 0:
        time.sleep(60)
    if kind == 1:
        os._exit(3)
    return float('nan') if kind == 2 else 1.0
"""


def test_failing_rewards(tmp_path):
    """A reward that always raises stops the run and is named.

    One that sometimes hangs or exits costs only its samples.
    """
    bad = tmp_path / "bad.py"
    bad.write_text(BAD_REWARDS)
    with pytest.raises(RewardError, match=r"broken.*bad\.py"):
        jaxr1.train(one_stage(tmp_path / "a", rewards=(Reward(f"{bad}:broken"),)))
    config = one_stage(
        tmp_path / "b",
        steps=1,
        prompts_per_step=4,
        rewards=(Reward(f"{bad}:moody"),),
        reward_timeout_s=0.5,
    )
    metrics = jaxr1.train(config).metrics[0]
    lost = metrics["reward/timeouts"] + metrics["reward/crashes"] + metrics["reward/nans"]
    assert lost > 0 and metrics["reward/unscored"] == lost
    assert len(read_jsonl(tmp_path / "b" / "dropped.jsonl")) == lost


def test_fewer_prompts_than_devices_are_told(tmp_path):
    """A run on four devices whose optimiser steps have two prompts."""
    out = io.StringIO()
    config = dataclasses.replace(one_stage(tmp_path / "run", steps=1), export=False)
    jaxr1.train(config, console=Console(live=False, file=out))
    said = out.getvalue()
    assert "an optimiser step has 2 prompts for 4 devices: in scoring and updates 2" in said
