"""Attention over listed pairs and in windows against a float64 softmax: values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxr1.inputs.patches import PatchGeometry, block_pairs, make_rows, make_windows
from jaxr1.inputs.room import arrange_in_room, rows_waste
from jaxr1.inputs.sizes import power_of_two
from jaxr1.nn.attention import paired_attention, segment_attention, window_attention


def random_rows(rng, rows, length, most=40):
    """Segments of random lengths, with padding at the end."""
    out = np.zeros((rows, length), np.int32)
    for r in range(rows):
        at, number = 0, 0
        while True:
            size = int(rng.integers(1, most))
            if at + size > length - int(rng.integers(0, 5)):
                break
            number += 1
            out[r, at : at + size] = number
            at += size
    return out


def exact(q, k, v, group):
    """float64 attention among patches of the same group; group 0 gives nothing."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    score = np.einsum("rmnh,runh->rnmu", q, k) / np.sqrt(q.shape[-1])
    seen = (group[:, :, None] == group[:, None, :]) & (group[:, :, None] > 0)
    score = np.where(seen[:, None], score, -np.inf)
    with np.errstate(invalid="ignore"):
        weight = np.exp(score - score.max(-1, keepdims=True))
        weight = np.nan_to_num(weight / weight.sum(-1, keepdims=True))
    return np.einsum("rnmu,runh->rmnh", weight, v)


@pytest.mark.parametrize("block", [4, 16])
def test_pairs_equal_the_plain_softmax(rng, block):
    segment = random_rows(rng, 3, 96)
    q, k, v, c = rng.standard_normal((4, 3, 96, 2, 8)).astype(np.float32)
    pair = block_pairs(segment, block)
    real = (segment > 0)[..., None, None]
    out = np.asarray(paired_attention(q, k, v, segment, pair, block))
    np.testing.assert_allclose(out * real, exact(q, k, v, segment), atol=1e-5)

    def paired(q, k, v):
        return (jnp.where(real, paired_attention(q, k, v, segment, pair, block), 0) * c).sum()

    def plain(q, k, v):
        return (jnp.where(real, segment_attention(q, k, v, segment), 0) * c).sum()

    ours, expected = (jax.grad(f, argnums=(0, 1, 2))(q, k, v) for f in (paired, plain))
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("side", [2, 3])
def test_windows_equal_the_plain_softmax(rng, side):
    grids = [(1, int(h), int(w)) for h, w in rng.integers(1, 8, (5, 2)) * 2]
    layout = PatchGeometry(2, 1)
    patches = [np.zeros((t * h * w, 1), np.float32) for t, h, w in grids]
    sizes = [len(p) for p in patches]
    arranged = arrange_in_room(
        sizes, [0] * 5, (128, 256), layout, patches=sum(sizes), devices=1, block=16
    )
    rows, _ = make_rows(patches, grids, (256,), layout, block=16, arranged=arranged)
    windows = make_windows(rows.place_rm2, rows.segment_rm, side)
    r, m = rows.segment_rm.shape
    window_rm2 = rows.place_rm2 // side
    key = rows.segment_rm * 10000 + window_rm2[..., 0] * 100 + window_rm2[..., 1]
    group = np.where(rows.segment_rm > 0, key, 0)
    q, k, v = rng.standard_normal((3, r, m, 2, 4)).astype(np.float32)
    out = window_attention(q, k, v, windows.index_rwk, windows.segment_rwk, windows.slot_rm)
    real = np.asarray(out) * (group > 0)[..., None, None]
    np.testing.assert_allclose(real, exact(q, k, v, group), atol=1e-5)
    assert windows.index_rwk.shape[1] * windows.index_rwk.shape[2] <= max(2 * m, side * side)


def epoch_of_sizes(rng) -> tuple[float, float, int]:
    """Mean padding, mean pairs computed / needed and shapes: 20 sizes, 30 batches of 8 images.

    Rooms are those of prompt rows whose tokens are a power of two.
    """
    sides = rng.permutation(np.arange(8, 33, 1))[:20] * 2  # 112 to 896 px in patches of 14
    grids = [(1, int(a), int(b)) for a, b in zip(sides, rng.permutation(sides), strict=True)]
    layout = PatchGeometry(2, 1, window=8)
    allowed = (2048, 4096)
    shapes, padding, pairs = set(), [], []
    for _ in range(6):
        order = np.tile(rng.permutation(20), 2)
        for i in range(0, 40, 8):
            chosen = [grids[k] for k in order[i : i + 8]]
            patches = [np.zeros((h * w, 1), np.float32) for _, h, w in chosen]
            arranged = arrange_in_room(
                [len(p) for p in patches],
                [0] * 8,
                allowed,
                layout,
                patches=power_of_two(sum(map(len, patches))),
                devices=1,
                block=128,
            )
            rows, _ = make_rows(patches, chosen, allowed, layout, block=128, arranged=arranged)
            waste = rows_waste(rows)
            padding.append(waste["patches"])
            pairs.append(waste["vision_pairs"])
            pair = 0 if rows.pair_rp2 is None else rows.pair_rp2.shape[1]
            shapes.add((rows.segment_rm.shape, pair, rows.windows.index_rwk.shape))
    return float(np.mean(padding)), float(np.mean(pairs)), len(shapes)


def test_epochs_of_many_sizes(rng):
    """Little padding, attention near what is needed, few shapes: the means of eight epochs.

    Padding is that of the parts of a room that are computed: 0.18 to 0.19 in the mean.
    """
    padding, pairs, shapes = np.mean([epoch_of_sizes(rng) for _ in range(8)], 0)
    print(f"padding {padding:.3f}, pairs {pairs:.2f}, {shapes:.1f} shapes")
    assert padding <= 0.25 and pairs <= 1.5 and shapes <= 3
