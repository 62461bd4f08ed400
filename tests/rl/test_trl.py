"""Losses against TRL's own functions, value and gradient, on small random tensors.

The trainers are made without `__init__`: they hold what the methods that compute a loss read.
"""

import collections
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("trl", reason="trl is not installed: pip install 'jaxr1[trl]'")
import torch
from trl import DPOTrainer, GRPOTrainer
from trl.experimental.gmpo import GMPOTrainer

from jaxr1.rl.controllers import AdaptiveEntropy
from jaxr1.rl.objectives import (
    MPO,
    Aot,
    AotUnpaired,
    ApoDown,
    ApoZero,
    BcoPair,
    ChosenNll,
    Cispo,
    DiscoPop,
    Dpo,
    DpoNorm,
    Entropy,
    ExoPair,
    Gmpo,
    Gspo,
    Hinge,
    Ipo,
    Kl,
    Luspo,
    NcaPair,
    Ppo,
    Reinforce,
    RobustDpo,
    Sapo,
    SppoHard,
    Vespo,
)
from jaxr1.rl.terms import Objective, Term
from jaxr1.rl.weights import Weighting, chosen_weights, pair_weights, token_weights

LENGTH = 7
ALONE = SimpleNamespace(
    num_processes=1,
    device="cpu",
    sync_gradients=True,
    gather=lambda x: x,
    gather_for_metrics=lambda x: x,
    reduce=lambda x, reduction: x,
)


def tensor(x):
    return torch.tensor(np.asarray(x, np.float64))


class Responses:
    """Responses of random lengths with foreign tokens in between; one has no token of its own."""

    def __init__(self, rng, count=8):
        lengths = rng.integers(1, LENGTH + 1, count)
        self.real = np.arange(LENGTH) < lengths[:, None]
        self.own = self.real & (rng.random((count, LENGTH)) < 0.8)
        self.own[0] = False
        self.own[1] = [True] + [False] * (LENGTH - 1)
        self.real |= self.own
        self.logp = rng.normal(-2, 0.5, (count, LENGTH))
        each = lambda scale: self.logp + rng.normal(0, scale, (count, LENGTH))
        self.columns = {
            "old_logp": each(0.3),
            "ref_logp": each(0.4),
            "sampled_logp": each(0.2),
            "advantage": np.repeat(rng.normal(size=(count, 1)), LENGTH, 1),
        }
        # Of no tokens GMPO's ratio is 1 in TRL: a constant that has no gradient.
        self.columns["advantage"][~self.own.any(-1)] = 0
        self.entropy = rng.uniform(0.1, 2, (count, LENGTH))

    def weight(self, aggregation, count_empty=True):
        counts = self.own.sum(-1, keepdims=True)
        return token_weights(counts, aggregation, 50.0, count_empty) * self.own

    def ours(self, terms, aggregation, *, on_policy=False, scalars=None):
        """Loss, and its gradients for log-probs and entropies."""
        objective = Objective(terms, on_policy=on_policy)
        columns = self.columns | {
            "weight": self.weight(aggregation),
            "response_weight": self.weight("seq-mean-token-mean"),
            "token_weight": self.weight("token-mean"),
            "own": self.own,
        }
        of = {name: jnp.float32(columns[name])[:, None] for name in objective.columns}
        segment = jnp.int32(self.real)[:, None]
        scalars = {name: jnp.float32(x) for name, x in (scalars or {}).items()}
        loss = lambda logp, entropy: objective(
            {"logp": logp[:, None], "entropy": entropy[:, None]}, of, segment, scalars
        )[0]
        given = (jnp.float32(self.logp), jnp.float32(self.entropy))
        return jax.value_and_grad(loss, (0, 1))(*given)

    def theirs(self, trainer, *, on_policy=False, corrected=False):
        logp, entropy = (tensor(x).requires_grad_() for x in (self.logp, self.entropy))
        trainer._get_per_token_logps_and_entropies = lambda *a, **k: (logp, entropy, None)
        ids, columns = torch.zeros(len(self.own), LENGTH), self.columns
        inputs = {
            "prompt_ids": ids,
            "prompt_mask": ids,
            "completion_ids": ids,
            "completion_mask": tensor(self.own),
            "advantages": tensor(columns["advantage"][:, 0]),
            "old_per_token_logps": None if on_policy else tensor(columns["old_logp"]),
            "ref_per_token_logps": tensor(columns["ref_logp"]),
            "num_items_in_batch": torch.tensor(float(self.own.sum())),
        }
        if corrected:
            w = np.exp(columns["old_logp"] - columns["sampled_logp"])
            inputs["importance_sampling_ratio"] = tensor(np.where(self.own, w, 1.0))
        loss = trainer._compute_loss(trainer.model, inputs)
        loss.backward()
        grads = (logp.grad, torch.zeros(1) if entropy.grad is None else entropy.grad)
        return loss.item(), tuple(g.numpy() for g in grads)


def grpo_trainer(loss_type, **changes):
    """A trainer that only computes losses; `changes` are its attributes, or those of its `args`."""
    trainer = object.__new__(GMPOTrainer if loss_type == "gmpo" else GRPOTrainer)
    args = {
        "use_bias_correction_kl": False,
        "delta": None,
        "sapo_temperature_pos": 1.0,
        "sapo_temperature_neg": 1.05,
        "vespo_k_pos": 2.0,
        "vespo_lambda_pos": 3.0,
        "vespo_k_neg": 3.0,
        "vespo_lambda_neg": 2.0,
        "steps_per_generation": 1,
        "entropy_coef_delta": 0.3,
        "entropy_target": 0.9,
        "entropy_coef_min": 0.1,
        "entropy_coef_max": 0.5,
    }
    own = {
        "model": SimpleNamespace(training=True),
        "accelerator": ALONE,
        "loss_type": loss_type,
        "aux_loss_enabled": False,
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "importance_sampling_level": "token",
        "beta": 0.0,
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
        "use_vllm": False,
        "vllm_importance_sampling_correction": False,
        "current_gradient_accumulation_steps": 1,
        "max_completion_length": 50,
        "_entropy_bonus_enabled": False,
        "use_adaptive_entropy": False,
        "_last_world_entropy": float("inf"),
        "_entropy_window_stats": None,
        "_metrics": {"train": collections.defaultdict(list)},
    }
    for name, value in changes.items():
        (args if name in args else own)[name] = value
    vars(trainer).update(own, args=SimpleNamespace(**args))
    return trainer


MEAN, SEQUENCE = "token-mean", {"importance_sampling_level": "sequence"}
WIDE = {"epsilon_low": 0.1, "epsilon_high": 0.2}
CASES = [
    ("grpo", {"epsilon_high": 0.28}, (Ppo(0.2, 0.28),), "seq-mean-token-mean"),
    ("dapo", {}, (Ppo(),), MEAN),
    ("bnpo", {}, (Ppo(),), MEAN),
    ("dr_grpo", {}, (Ppo(),), "seq-mean-token-sum-norm"),
    ("dapo", {**WIDE, "delta": 1.25}, (Ppo(0.1, 0.2, ratio_limit=1.25),), MEAN),
    ("dapo", {"beta": 0.3}, (Ppo(), Kl(0.3)), MEAN),
    (
        "dapo",
        {"beta": 0.3, "use_bias_correction_kl": True},
        (Ppo(), Kl(0.3, "k3", is_corrected=True)),
        MEAN,
    ),
    ("cispo", {"epsilon_high": 1.1}, (Cispo("cap", clip_high=1.1),), MEAN),
    ("sapo", {}, (Sapo(),), "seq-mean-token-mean"),
    ("vespo", {}, (Vespo(),), MEAN),
    ("vespo", {"corrected": True}, (Vespo(is_corrected=True),), MEAN),
    ("grpo", {**WIDE, **SEQUENCE}, (Gspo(0.1, 0.2),), MEAN),
    ("luspo", {**WIDE, **SEQUENCE}, (Luspo(0.1, 0.2),), MEAN),
    ("gmpo", {"epsilon_low": 0.1, "epsilon_high": 0.3}, (Gmpo(0.1, 0.3),), MEAN),
    ("dapo", {"on_policy": True}, (Ppo(),), MEAN),
    ("dapo", {"on_policy": True}, (Reinforce(),), MEAN),
    (
        "grpo",
        {"_entropy_bonus_enabled": True, "entropy_coef": 0.4},
        (Ppo(), Entropy(0.4)),
        "seq-mean-token-mean",
    ),
]
named = lambda x: "+".join(map(str, x)) if isinstance(x, tuple) else str(x)


def check(ours, theirs):
    assert float(ours[0]) == pytest.approx(theirs[0], rel=1e-4, abs=1e-5)
    for g, want in zip(ours[1], theirs[1], strict=True):
        np.testing.assert_allclose(g, np.broadcast_to(want, g.shape), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("loss_type", "changes", "terms", "aggregation"), CASES, ids=named)
def test_policy_losses(rng, loss_type, changes, terms, aggregation):
    r, changes = Responses(rng), dict(changes)
    on_policy, corrected = (changes.pop(name, False) for name in ("on_policy", "corrected"))
    theirs = r.theirs(grpo_trainer(loss_type, **changes), on_policy=on_policy, corrected=corrected)
    check(r.ours(terms, aggregation, on_policy=on_policy), theirs)


def test_adaptive_entropy_over_steps(rng):
    """The bonus that is in force, and the coefficient after each step."""
    trainer = grpo_trainer(
        "dapo", _entropy_bonus_enabled=True, use_adaptive_entropy=True, entropy_coef=0.2
    )
    term = Entropy(0.2, adaptive=True)
    control, scalars = AdaptiveEntropy(0.3, 0.9, 0.1, 0.5), term.scalars
    for high in (0.5, 0.5, 3.0, 3.0, 0.5, 0.5):
        r = Responses(rng)
        r.entropy = rng.uniform(0.1, high, r.own.shape)
        check(r.ours((Ppo(), term), MEAN, scalars=scalars), r.theirs(trainer))
        scalars = control(scalars, {"policy/entropy": r.entropy[r.own].mean()})
        assert scalars["entropy_coef"] == pytest.approx(trainer.entropy_coef)


class Preferences:
    """Pairs of random lengths: a row of theirs is a response, a row of ours a pair."""

    def __init__(self, rng, pairs=6):
        lengths = rng.integers(1, LENGTH + 1, (pairs, 2))
        self.own = np.arange(LENGTH) < lengths[..., None]
        self.logp = rng.normal(-2, 0.5, self.own.shape) * self.own
        self.ref = (self.logp + rng.normal(0, 0.7, self.own.shape)) * self.own

    def theirs(self, losses, beta, smoothing, tau):
        logp = tensor(self.logp).requires_grad_()
        rows = lambda x: torch.cat([x[:, 0], x[:, 1]])
        mask = torch.cat([torch.zeros(2 * len(self.own), 1), rows(tensor(self.own))], 1).long()
        log_probs = rows(logp * tensor(self.own))  # their model says 0 elsewhere
        said = SimpleNamespace(
            log_probs=log_probs,
            entropy=torch.zeros_like(log_probs),
            mean_logits=torch.zeros_like(log_probs),
            is_top1=torch.zeros_like(log_probs).bool(),
        )
        trainer = object.__new__(DPOTrainer)
        vars(trainer).update(
            model=SimpleNamespace(training=True),
            accelerator=ALONE,
            aux_loss_enabled=False,
            ld_alpha=None,
            precompute_ref_logps=True,
            f_divergence_type="reverse_kl",
            loss_types=list(losses),
            loss_weights=list(losses.values()),
            beta=beta,
            label_smoothing=smoothing,
            args=SimpleNamespace(discopop_tau=tau),
            use_weighting=False,
            _metrics={"train": collections.defaultdict(list)},
            _total_train_tokens=0,
            _tp_size=1,
        )
        inputs = {
            "input_ids": mask,
            "attention_mask": mask,
            "completion_mask": mask,
            "ref_chosen_logps": tensor(self.ref.sum(-1)[:, 0]),
            "ref_rejected_logps": tensor(self.ref.sum(-1)[:, 1]),
        }
        loss = trainer._compute_loss(lambda **kwargs: said, inputs, False)
        loss.backward()
        found = {
            name.removeprefix("rewards/"): x[0] for name, x in trainer._metrics["train"].items()
        }
        return (loss.item(), (logp.grad.numpy(),)), found

    def ours(self, terms):
        objective = Objective(terms, on_policy=False)
        counts, pair = self.own.sum(-1), np.ones(self.own.shape[:2])
        columns = {
            "own": self.own,
            "pair": np.ones(self.own.shape),
            "sign": np.ones(self.own.shape) * [[1], [-1]],
            "ref_logp": self.ref,
            "pair_weight": pair_weights(counts, pair)[..., None] * self.own,
            "chosen_weight": chosen_weights(counts, pair * [1, -1], Weighting())[..., None]
            * self.own,
        }
        for term in terms:
            columns |= self.prepared(term, columns)
        of = {name: jnp.float32(columns[name]) for name in objective.columns}
        scalars = {name: jnp.float32(x) for name, x in objective.scalars.items()}
        loss = lambda logp: objective({"logp": logp}, of, jnp.int32(self.own), scalars)
        (value, metrics), grad = jax.value_and_grad(loss, has_aux=True)(jnp.float32(self.logp))
        return (value, (grad,)), {n.partition("/")[2]: x.result() for n, x in metrics.items()}

    def prepared(self, term: Term, columns):
        """What it makes of the batch, which is all own tokens in order."""
        flat = {name: x[self.own] for name, x in columns.items()} | {
            "now_logp": self.logp[self.own]
        }
        counts = self.own.sum(-1)
        episodes = SimpleNamespace(
            columns=flat,
            counts_bg=counts,
            valid_bg=counts > 0,
            spread=lambda x: np.repeat(x.ravel(), counts.ravel()),
        )
        found = {}
        for name, column in term.prepare(episodes, None).items():
            found[name] = np.zeros(self.own.shape)
            found[name][self.own] = column
        return found


PAIRS = [
    ({"sigmoid": 1.0}, (Dpo(beta=0.5),)),
    ({"hinge": 1.0}, (Hinge(beta=0.5),)),
    ({"ipo": 1.0}, (Ipo(beta=0.5),)),
    ({"exo_pair": 1.0}, (ExoPair(beta=0.5, smoothing=0.1),)),
    ({"nca_pair": 1.0}, (NcaPair(beta=0.5),)),
    ({"robust": 1.0}, (RobustDpo(beta=0.5, smoothing=0.1),)),
    ({"bco_pair": 1.0}, (BcoPair(beta=0.5),)),
    ({"sppo_hard": 1.0}, (SppoHard(beta=0.5),)),
    ({"aot": 1.0}, (Aot(beta=0.5, smoothing=0.1),)),
    ({"aot_unpaired": 1.0}, (AotUnpaired(beta=0.5, smoothing=0.1),)),
    ({"apo_zero": 1.0}, (ApoZero(beta=0.5),)),
    ({"apo_down": 1.0}, (ApoDown(beta=0.5),)),
    ({"discopop": 1.0}, (DiscoPop(beta=0.5, tau=0.2),)),
    ({"sft": 1.0}, (ChosenNll(),)),
    ({"sigmoid_norm": 1.0}, (DpoNorm(beta=0.5),)),
    ({"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1.0}, MPO),
]


@pytest.mark.parametrize(("losses", "terms"), PAIRS, ids=named)
def test_preference_losses(rng, losses, terms):
    p = Preferences(rng)
    theirs, seen = p.theirs(losses, getattr(terms[0], "beta", 0.5), 0.1, 0.2)
    ours, metrics = p.ours(terms)
    check(ours, theirs)
    if "accuracy" in metrics:
        names = {
            "accuracy": "accuracies",
            "margin": "margins",
            "chosen_reward": "chosen",
            "rejected_reward": "rejected",
        }
        for name, their_name in names.items():
            assert float(metrics[name]) == pytest.approx(seen[their_name], rel=1e-3, abs=1e-5)
