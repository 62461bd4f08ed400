"""The tiny presets of every family: the recipes run on them unchanged, and the RL step learns."""

import dataclasses

import jax
import numpy as np
import pytest
from reference import one_stage

import jaxr1
from jaxr1.config import load_config
from jaxr1.data import Arithmetic
from jaxr1.inputs import placed
from jaxr1.nn.lora import Lora
from jaxr1.rewards import Reward
from jaxr1.rl import Kl, Optimizer, update
from jaxr1.run.export import export_checkpoint
from jaxr1.sampling import features, sampler

PRESETS = ("tiny-qwen2_5_vl", "tiny-qwen3_vl", "tiny-internvl")
CLASSES = {
    "tiny-qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "tiny-qwen3_vl": "Qwen3VLForConditionalGeneration",
    "tiny-internvl": "InternVLForConditionalGeneration",
}


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


@pytest.fixture
def brevity(tmp_path):
    """A reward for short answers, from -1 (the limit of 16 tokens, about 50 characters) up to 0."""
    file = tmp_path / "rewards.py"
    file.write_text("def short(completion, example):\n    return -len(completion.text) / 50\n")
    return Reward(f"{file}:short")


@pytest.mark.parametrize("preset", PRESETS)
def test_the_step_learns(tmp_path, brevity, preset):
    """From random parameters the mean reward of 8 steps rises by 0.15.

    That of the last two steps is compared with that of the first two.
    """
    config = one_stage(
        tmp_path / "run",
        steps=8,
        prompts_per_step=4,
        group_size=8,
        rewards=(brevity,),
        optimizer=Optimizer(learning_rate=4e-3),
    )
    result = jaxr1.train(dataclasses.replace(config, model=preset))
    found = [row["reward/mean"] for row in result.metrics]
    print(np.round(found, 2))
    assert np.mean(found[-2:]) > np.mean(found[:2]) + 0.15


@pytest.mark.parametrize("preset", PRESETS)
def test_recipes_run_on_every_preset(tmp_path, preset):
    """The quickstart, cut short, and VisualThinker's tiny variant.

    The quickstart's export is read by transformers.
    """
    import transformers

    quick = load_config("configs/quickstart.py")
    cold, grpo = quick.stages
    cold = dataclasses.replace(cold, data=Arithmetic(count=32, worked=True), epochs=1)
    grpo = dataclasses.replace(grpo, steps=1, prompts_per_step=8, eval_every=0, save_every=0)
    held_out = dataclasses.replace(
        quick.evaluations[0], data=Arithmetic(count=16, split="test"), batch_rows=16
    )
    quick = dataclasses.replace(
        quick,
        model=preset,
        run_dir=str(tmp_path / "quick"),
        stages=(cold, grpo),
        evaluations=(held_out,),
    )
    result = jaxr1.train(quick)
    assert [r["stage"] for r in result.metrics if "reward/mean" in r] == ["grpo"]
    assert not (tmp_path / "quick" / "dropped.jsonl").read_text()
    theirs = getattr(transformers, CLASSES[preset]).from_pretrained(tmp_path / "quick" / "export")
    norm = theirs.model.language_model.norm.weight.detach().numpy()
    assert np.array_equal(norm, np.asarray(result.params["decoder"]["norm"]))

    visual = load_config("configs/visualthinker_r1_zero.py:tiny")
    stage = dataclasses.replace(visual.stages[0], steps=1, prompts_per_step=2)
    visual = dataclasses.replace(
        visual, model=preset, run_dir=str(tmp_path / "visual"), stages=(stage,), evaluations=()
    )
    [row] = [r for r in jaxr1.train(visual).metrics if "policy/loss" in r]
    assert row["rollout/max_abs_dlogp"] < 1e-4 and row["policy/ratio"] == 1


def test_adapters_learn_and_are_merged(tmp_path, brevity):
    """A LoRA stage with a KL term: the base is the reference, and only adapters move.

    The export holds their sum.
    """
    config = one_stage(
        tmp_path / "run",
        steps=10,
        prompts_per_step=4,
        group_size=8,
        rewards=(brevity,),
        optimizer=Optimizer(learning_rate=1e-2),
        lora=Lora(rank=4, alpha=16, targets="decoder/layers/.*"),
        kl=Kl(0.01),
        freeze=(),
    )
    base = jaxr1.load_model("tiny")[1]
    result = jaxr1.train(config)
    found = [r["reward/mean"] for r in result.metrics]
    print(np.round(found, 2))
    assert np.mean(found[-2:]) > np.mean(found[:2]) + 0.15
    assert not (tmp_path / "run" / "reference").exists(), "the base is the reference"
    assert "lora" not in result.params
    # The base is where the policy began, and the policy leaves it as soon as B is not zero.
    assert result.metrics[0]["policy/kl"] == pytest.approx(0, abs=1e-6)
    assert all(row["policy/kl"] > 1e-5 for row in result.metrics[2:])
    same = lambda a, b: np.array_equal(np.asarray(a), np.asarray(b))
    assert same(base["decoder"]["embed"], result.params["decoder"]["embed"])
    assert same(base["vision"]["blocks"]["q"], result.params["vision"]["blocks"]["q"])
    assert not same(base["decoder"]["layers"]["q"], result.params["decoder"]["layers"]["q"])
    exported = jaxr1.load_model(tmp_path / "run" / "export")[1]
    assert same(exported["decoder"]["layers"]["q"], result.params["decoder"]["layers"]["q"])
    again = jaxr1.load_model(export_checkpoint(tmp_path / "run", tmp_path / "again"))[1]
    for key in ("q", "down"):  # added up on another number of devices: equal to rounding
        one, other = (np.asarray(x["decoder"]["layers"][key]) for x in (again, exported))
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_adapters_in_the_tower_are_trained(tmp_path, brevity):
    """A tower with adapters is not taken for a frozen one: it sees pixels, and it moves."""
    config = one_stage(
        tmp_path / "run",
        steps=2,
        group_size=8,
        rewards=(brevity,),
        optimizer=Optimizer(learning_rate=1e-2),
        lora=Lora(rank=2, targets="vision/blocks/v"),
    )
    base, after = jaxr1.load_model("tiny")[1], jaxr1.train(config).params
    was, is_now = (np.asarray(x["vision"]["blocks"]["v"]) for x in (base, after))
    assert np.abs(was - is_now).max() > 1e-6
    assert np.array_equal(np.asarray(base["merger"]["fc1"]), np.asarray(after["merger"]["fc1"]))


def test_frozen_tower_is_computed_once(tmp_path, brevity, monkeypatch):
    """In a run with a frozen tower and merger nothing sees pixels any more.

    Neither rollouts nor old and reference log-probs nor updates do.
    """
    fields = dict(
        steps=2,
        rewards=(brevity,),
        kl=Kl(0.05),
        updates_per_rollout=2,
        optimizer=Optimizer(learning_rate=1e-3),
    )
    seen: dict[str, set] = {}
    computed = []

    def spy(module, name, where):
        real = getattr(module, name)

        def seeing(batch, mesh, rules):
            prompts = getattr(batch, "prompt", batch)  # of an update's batch
            for rows in getattr(prompts, "media", {}).values():
                seen.setdefault(where, set()).add(rows.held)
            return real(batch, mesh, rules)

        monkeypatch.setattr(module, name, seeing)

    for module, where in ((sampler, "rollout"), (placed, "score"), (update, "update")):
        spy(module, "place_rows", where)
    tower = features._compute
    monkeypatch.setattr(features, "_compute", lambda *args: computed.append(1) or tower(*args))
    frozen = jaxr1.train(one_stage(tmp_path / "a", freeze=("vision", "merger"), **fields))
    before, after = jaxr1.load_model("tiny")[1], frozen.params
    for part in ("vision", "merger"):
        for a, b in zip(jax.tree.leaves(before[part]), jax.tree.leaves(after[part]), strict=True):
            assert np.array_equal(np.asarray(a), np.asarray(b))
    row = frozen.metrics[0]
    assert row["rollout/max_abs_dlogp"] < 1e-4
    assert row["time/encode_s"] > 0 and row["perf/vision_pairs"] == 1
    assert seen == {"rollout": {"merger"}, "score": {"merger"}, "update": {"merger"}}
    assert len(computed) == 2  # once a step
