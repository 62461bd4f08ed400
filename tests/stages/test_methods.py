"""Whole small runs of other methods: what they write, what they compute, how often they update."""

import math

import numpy as np
import pytest
from reference import one_stage

import jaxr1
from jaxr1.base.jsonl import read_jsonl
from jaxr1.data import Arithmetic
from jaxr1.nn.lora import Lora
from jaxr1.rl import (
    AdaptiveEntropy,
    ClipCov,
    Gae,
    Gspo,
    Kl,
    KlReward,
    Optimizer,
    Otb,
    Reference,
    ReMax,
    TokenTruncate,
    TopEntropy,
    Vespo,
)
from jaxr1.run import Critic, Rl


@pytest.fixture(autouse=True)
def root(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


def trained(folder, **changes):
    """(rows of metrics.jsonl that steps have written, the run directory)."""
    result = jaxr1.train(one_stage(folder, **changes))
    steps = [row for row in result.metrics if "reward/mean" in row]
    for row in steps:
        numbers = {k: v for k, v in row.items() if isinstance(v, float)}
        odd = [k for k, v in numbers.items() if not math.isfinite(v)]
        assert not [k for k in odd if not k.startswith(("perf/", "time/"))], odd
    return steps, result.run_dir


def test_remax_with_covariances_and_corrections(tmp_path):
    """Greedy answers are graded and written down, outside the groups; several corrections."""
    steps, folder = trained(
        tmp_path / "run",
        steps=1,
        advantage=ReMax(),
        surrogate=ClipCov(),
        corrections=(TokenTruncate(), TopEntropy(0.5)),
        updates_per_rollout=2,
    )
    rows = read_jsonl(folder / "rollouts" / "rl_1.jsonl")
    greedy = [row for row in rows if row.get("role") == "baseline"]
    assert [row["sample"] for row in greedy] == [4, 4] and len(rows) == 2 * 5
    rewards = {row["draw"]: row["reward"] for row in greedy}
    for row in rows:
        if "role" not in row:
            want = row["reward"] - rewards[row["draw"]]
            assert row["advantage"] == pytest.approx(want, abs=1e-6)
    assert steps[0]["policy/updates"] == 2
    # Half of the tokens are masked, ties of entropy aside, and the trainer is the sampler.
    assert steps[0]["correction/top_entropy_frac_masked"] == pytest.approx(0.5, abs=0.1)
    assert steps[0]["correction/token_truncate_mean"] == pytest.approx(1.0, abs=1e-4)
    assert steps[0]["mismatch/max_abs"] < 1e-4


def test_what_is_compared_with_the_sampler_and_with_whole_distributions(tmp_path):
    """Otb, GSPO, an entropy under its target, KL over the vocabulary, the sampler's log-probs."""
    steps, _ = trained(
        tmp_path / "run",
        steps=3,
        advantage=Otb(),
        surrogate=Gspo(),
        old_logp="sampler",
        entropy=AdaptiveEntropy(step=0.1, target=100.0),
        kl=Kl(0.1, "full"),
    )
    assert steps[0]["policy/ratio"] == pytest.approx(1.0, abs=1e-4)
    assert steps[0]["policy/kl"] < 1e-3 < steps[2]["policy/kl"], "the reference stays"


def test_ppo_with_adapters_and_a_reference_that_moves(tmp_path):
    """Both learners train adapters; the reference is a second tree of them."""
    steps, folder = trained(
        tmp_path / "run",
        steps=3,
        lora=Lora(rank=2),
        optimizer=Optimizer(learning_rate=1e-2),
        advantage=Gae(),
        critic=Critic(lora=Lora(rank=2), warmup=1, optimizer=Optimizer(learning_rate=1e-2)),
        kl_reward=KlReward(0.1, target=1e-4, horizon=8),
        reference=Reference(every=1, alpha=1.0),
    )
    assert [row["policy/updates"] for row in steps] == [0, 1, 1]
    assert "policy/loss" not in steps[0] and steps[0]["critic/grad_norm"] > 0
    # The policy begins to move in step 2, and the reference is the policy of the step before.
    assert [row["reward/kl"] for row in steps] == pytest.approx([0, 0, 0], abs=1e-6)
    coefs = [row["reward/kl_coef"] for row in steps]
    assert coefs == pytest.approx([0.1, 0.1 * 0.8, 0.1 * 0.8**2], rel=1e-6)
    assert {path.name for path in (folder / "moving" / "rl").iterdir()} <= {"2", "3"}


def test_a_rollout_is_left_when_the_policy_has_moved_far(tmp_path, monkeypatch):
    """Two passes over two parts; the second update finds a policy that has moved."""
    stage = Rl(Arithmetic(count=8), inner_epochs=2, kl_stop=0.1)
    of = lambda *kls: {"policy": [{"policy/approx_kl": np.asarray(kl)} for kl in kls]}
    assert stage.has_moved_far(of(0.0, 0.11)) and not stage.has_moved_far(of(0.2, 0.09))
    assert not stage.has_moved_far({"critic": []})

    monkeypatch.setattr(Rl, "has_moved_far", lambda self, updates: len(updates["policy"]) == 2)
    steps, _ = trained(
        tmp_path / "run",
        steps=1,
        surrogate=Vespo(is_corrected=True),
        updates_per_rollout=2,
        inner_epochs=2,
        kl_stop=0.1,
    )
    assert steps[0]["policy/updates"] == 2


@pytest.mark.parametrize(
    ("prompts", "samples", "train_batch", "updates"),
    [(128, 16, 128, 16), (128, 8, 128, 8), (128, 8, 64, 16), (16, 8, 128, 1)],
    ids=["LMM-R1", "MM-Eureka v2", "MM-Eureka v1", "R1-Omni"],
)
def test_updates_of_a_rollout_follow_from_batch_sizes(prompts, samples, train_batch, updates):
    """Samples of a rollout over those of an optimiser step, as OpenRLHF counts them."""
    per_rollout = prompts * samples // train_batch
    stage = Rl(
        Arithmetic(count=8),
        prompts_per_step=prompts,
        group_size=samples,
        updates_per_rollout=per_rollout,
    )
    assert stage.updates == updates and stage.prompts_at_once * samples == train_batch
    assert stage.is_on_policy == (updates == 1)
    assert np.prod([stage.steps, stage.updates]) == stage.policy_steps * updates
