"""Counted work: gradients, micro-batches and device peaks.

That a forward pass is counted right is in test_parity.
"""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

import jaxr1
from jaxr1.inputs.batch import EncodedPrompt
from jaxr1.inputs.planning import plan_strips
from jaxr1.inputs.sizes import Buckets
from jaxr1.models.flops import forward_flops, peak_flops, plan_flops, total_flops, training_flops
from jaxr1.stages.context import Clock

FORWARD = {"vision": 100, "merger": 10, "decoder": 1}


@pytest.mark.parametrize(
    "trained, adapted, flops",
    [
        (("vision", "merger", "decoder"), (), 333),
        (("merger", "decoder"), (), 133),
        (("decoder",), (), 113),
        (("vision",), (), 322),  # the gradient passes through frozen parts on its way down
        ((), ("decoder",), 112),
        (("lora",), ("vision",), 222),
    ],
)
def test_a_gradient_costs_what_lies_above_it(trained, adapted, flops):
    assert training_flops(FORWARD, trained, adapted) == flops


def test_a_micro_batch_is_its_prompts_and_responses(rng):
    model, _ = jaxr1.load_model("tiny")
    position = np.zeros((1, 3), np.int32)
    prompts = [
        EncodedPrompt(np.zeros(n, np.int32), position, position, n, grids=((1, 4, 2 * n),))
        for n in (5, 9)
    ]
    lengths = [list(rng.integers(1, 17, 40)) for _ in prompts]
    # So small a budget that a group is computed in parts; its prompt is computed once all the same.
    plans = plan_strips([5, 9], lengths, Buckets((16,), (16,), (64,)), token_budget=200)
    assert all(plan.at_once < plan.used for plan in plans)
    copies = []
    for plan in plans:
        copies += set(plan.prompts)
    assert sorted(copies) == [0, 1]
    alone = lambda which: total_flops(forward_flops(model, prompts[i], ()) for i in which)
    needed = total_flops(forward_flops(model, p, n) for p, n in zip(prompts, lengths, strict=True))
    planned = total_flops(plan_flops(model, plan, prompts) for plan in plans)
    for part in needed:
        assert planned[part] - alone(copies)[part] == needed[part] - alone((0, 1))[part]


@pytest.mark.parametrize(
    "kind, peak",
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("NVIDIA RTX A1000", 0),
        ("cpu", 0),
    ],
)
def test_utilisation_is_told_where_the_device_is_known(monkeypatch, kind, peak):
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(device_kind=kind)] * 4)
    assert peak_flops() == 4 * peak
    clock = Clock()
    clock.seconds = {"sample": 1.5, "update": 0.5}
    metrics = clock.metrics(flops=10**15)
    assert metrics["perf/model_tflops"] == 500 and metrics["time/step_s"] == 2
    assert metrics.get("perf/mfu") == (500e12 / (4 * peak) if peak else None)
