"""Floating-point operations of a model, counted from its table, for `perf/mfu`.

Matrix products only (2 per multiply-add), of real tokens and patches: padding and rematerialisation
are not work. Causal attention counts the pairs that are seen. Adapters (LoRA) are left out; they
are small.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence

import jax

from jaxr1.inputs.batch import EncodedPrompt
from jaxr1.inputs.strips import Plan
from jaxr1.models.vlm import DECODER, Model


def forward_flops(model: Model, prompt: EncodedPrompt, responses: Iterable[int]) -> dict[str, int]:
    """Operations of one forward pass by part of the model: a prompt once, then its responses.

    Args:
      prompt: what is frozen and computed already (`EncodedPrompt.held`) is not counted.
      responses: their lengths in tokens; each token is predicted by the output matrix.
    """
    p = len(prompt)
    sizes = _sizes(model)
    head = model.text.width * (1 if model.has_value else model.text.vocab)
    per_pair = 4 * model.text.layers * model.text.heads * model.text.head_size  # q k^T and p v
    flops = dict.fromkeys(model.parts, 0)
    flops[DECODER] = 2 * sizes[DECODER] * p + per_pair * _triangle(p)
    for t in responses:
        flops[DECODER] += 2 * (sizes[DECODER] + head) * t + per_pair * (t * p + _triangle(t))
    for tower in model.towers:
        if prompt.held == "pixels":
            flops[tower.part] = sum(_tower_flops(model, h, w) * t for t, h, w in prompt.grids)
        if prompt.held != "merger":
            blocks = sum(t * h * w for t, h, w in prompt.grids) // tower.geometry.merge**2
            flops[tower.merger] = 2 * sizes[tower.merger] * blocks
    return flops


def plan_flops(model: Model, plan: Plan, prompts: Sequence[EncodedPrompt]) -> dict[str, int]:
    """As `forward_flops`, of a micro-batch; a prompt with responses in several rows counts once."""
    lengths: dict[int, list[int]] = {i: [] for i in plan.prompts}
    for place in plan.places:
        lengths[place.prompt].append(place.length)
    return total_flops(forward_flops(model, prompts[i], found) for i, found in lengths.items())


def total_flops(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The sum, part by part."""
    total: dict[str, int] = {}
    for flops in counts:
        total = {part: total.get(part, 0) + n for part, n in flops.items()}
    return total


def training_flops(
    forward: Mapping[str, int], trained: Iterable[str], adapted: Iterable[str] = ()
) -> int:
    """Operations of a forward and backward pass.

    A gradient costs a forward pass with respect to activations, needed above the lowest part that
    is trained, and another one with respect to the parameters.

    Args:
      forward: by part in the order of the computation, of `forward_flops`.
      trained: parts whose parameters have gradients.
      adapted: frozen parts with adapters that are trained.
    """
    trained, adapted = set(trained), set(adapted)
    total, gradient = 0, False
    for part, flops in forward.items():
        gradient = gradient or part in trained or part in adapted
        total += flops * (1 + gradient + (part in trained))
    return total


def _triangle(n: int) -> int:
    return n * (n + 1) // 2


@functools.lru_cache
def _sizes(model: Model) -> dict[str, int]:
    """Numbers in the matrices of each part; embedding and output matrix are not among them."""
    sizes = dict.fromkeys(model.parts, 0)
    for path, p in model.table().items():
        if p.transpose:
            sizes[path.partition("/")[0]] += math.prod(p.shape)
    return sizes


def _tower_flops(model: Model, h: int, w: int) -> int:
    """Of one frame of h x w patches."""
    cfg = model.vision
    assert cfg is not None
    embed = cfg.patch_values * cfg.width
    tokens = h * w + (cfg.tile_side > 0)  # the CLS token is in the blocks, not among the patches
    whole = len(cfg.full) if cfg.window else cfg.depth
    windows = 0
    if cfg.window:
        # Pairs of patches inside windows, which are cut off at the border of the frame.
        rows, columns = (_cut(size, cfg.window) for size in (h, w))
        windows = sum(a * a for a in rows) * sum(b * b for b in columns)
    pairs = whole * tokens**2 + (cfg.depth - whole) * windows
    blocks = 2 * (_sizes(model)["vision"] - embed) * tokens
    return 2 * embed * h * w + blocks + 4 * cfg.width * pairs


def _cut(size: int, window: int) -> list[int]:
    """Sides of the windows along a side of `size` patches."""
    return [min(window, size - first) for first in range(0, size, window)]


# --- peak rates ---------------------------------------------------------------------------------
PEAK_TFLOPS = {
    "TPU v4": 275,
    "TPU v5 lite": 197,
    "TPU v5e": 197,
    "TPU v5": 459,
    "TPU v5p": 459,
    "TPU v6 lite": 918,
    "TPU v6e": 918,
    "A100": 312,
    "H100": 989,
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H200": 989,
    "GH200": 989,
    "B200": 2250,
    "GB200": 2500,
    "L4": 121,
    "L40S": 362,
}
"""Dense bfloat16 TFLOP/s of one device by words of its name, from the makers' data sheets."""


def peak_flops() -> float:
    """Peak bfloat16 FLOP/s of all devices together; 0 where a device is not known."""
    total = 0.0
    for device in jax.devices():
        words = f" {device.device_kind.replace('-', ' ')} "
        known = [name for name in PEAK_TFLOPS if f" {name} " in words]
        if not known:
            return 0.0
        total += PEAK_TFLOPS[max(known, key=len)] * 1e12
    return total
