"""Invariants 4, 5 and 7 on the host: where tokens, patches and responses lie."""

import dataclasses
import itertools

import numpy as np
import pytest

from jaxr1.inputs.arrangement import PatchGeometry
from jaxr1.inputs.batch import (
    PATCHES,
    EncodedPrompt,
    batch_waste,
    fitting_buckets,
    make_batch,
    rows_of,
)
from jaxr1.inputs.patches import patch_places
from jaxr1.inputs.planning import plan_strips
from jaxr1.inputs.positions import Span, mrope_positions
from jaxr1.inputs.room import level_used, levels_of
from jaxr1.inputs.shapes import Limits, Shape, list_shapes
from jaxr1.inputs.sizes import Buckets, TooLong, bucket, geometric, pack_first_fit, rows_for
from jaxr1.inputs.strips import fill, gather, make_strips, plan_prompts

GEOMETRY = PatchGeometry(merge=2, values=2)
MEDIA = {PATCHES: GEOMETRY}
BUCKETS = Buckets(prompt=(8, 16, 32, 64), response=(8, 16, 32), patches=(16, 32, 64, 128))


def made_prompt(rng, grids, merge=2, text=3) -> EncodedPrompt:
    """Text, then each image and more text.

    Each merged block of an image carries one value that nothing else has.
    """
    ids, index, spans, lengths = [], [], [], []
    for t, h, w in grids:
        n = t * h * w // merge**2
        ids += [1] * text + [9] * n
        index += [-1] * text + list(range(sum(lengths), sum(lengths) + n))
        spans.append((len(ids) - n, len(ids)))
        lengths.append(n)
    ids += [1] * text
    index += [-1] * text
    runs = []
    for (start, end), (t, h, w) in zip(spans, grids, strict=True):
        runs.append(Span(start, end, (t, h // merge, w // merge)))
    position, following = mrope_positions(len(ids), runs)
    values = iter(rng.permutation(10**6) + 1.0)
    patches = []
    for n in lengths:
        blocks = np.fromiter(values, np.float32, n)
        patches.append(np.tile(np.repeat(blocks, merge**2)[:, None], (1, GEOMETRY.values)))
    return EncodedPrompt(
        np.asarray(ids, np.int32),
        np.asarray(index, np.int32),
        position,
        following,
        tuple(patches),
        tuple(grids),
        tuple(spans),
    )


def random_grids(rng, merge=2, most=4):
    sides = rng.integers(1, 5, (int(rng.integers(0, most)), 2)) * merge
    return [(1, int(h), int(w)) for h, w in sides]


def test_the_drawing_of_a_patch_grid():
    place, frame = patch_places((1, 4, 4), 2)
    order = np.empty((4, 4), int)
    order[place[:, 0], place[:, 1]] = np.arange(16)
    assert order.tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    assert frame.tolist() == [0] * 16
    place, frame = patch_places((2, 2, 2), 2)
    assert place.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]] * 2
    assert frame.tolist() == [0] * 4 + [1] * 4


def test_the_drawing_of_a_batch(rng):
    """A prompt of 8 tokens in a row of 9; images of 16 and 4 patches share a patch row of 20."""
    a = dataclasses.replace(
        made_prompt(rng, [(1, 4, 4)], text=0),
        token_ids=np.array([9, 9, 9, 9, 5, 6, 7, 8]),
        media_index=np.array([0, 1, 2, 3, -1, -1, -1, -1]),
        position=np.arange(24).reshape(8, 3),
        next_position=17,
    )
    b = made_prompt(rng, [(1, 2, 2)], text=1)
    batch = make_batch([a, b], Buckets((9,), (8,), (20,)), MEDIA, rows=4)
    assert batch.media_index_bp.tolist()[0] == [0, 1, 2, 3, -1, -1, -1, -1, -1]
    assert batch.media_index_bp.tolist()[1] == [-1, 4, -1, -1, -1, -1, -1, -1, -1]
    assert batch.token_bp.tolist() == [
        [9, 9, 9, 9, 5, 6, 7, 8, 0],
        [1, 9, 1] + [0] * 6,
        [0] * 9,
        [0] * 9,
    ]
    assert batch.position_bp3[0, :8].tolist() == np.arange(24).reshape(8, 3).tolist()
    assert batch.length_b.tolist() == [8, 3, 0, 0]
    assert batch.next_position_b.tolist() == [17, b.next_position, 0, 0]
    assert batch.media[PATCHES].segment_rm.tolist() == [[1] * 16 + [2] * 4]
    assert (batch.media[PATCHES].place_rm2[0, :16] == patch_places((1, 4, 4), 2)[0]).all()


@pytest.mark.parametrize("merge", [1, 2])
@pytest.mark.parametrize("multiple", [1, 4])
def test_media_index_finds_the_patches(rng, merge, multiple):
    """The embedding that a placeholder names is made of its own image's patches.

    They lie in one row and segment, and are known by their unique values.
    """
    geometry = {PATCHES: PatchGeometry(merge, 2)}
    for _ in range(20):
        grids = [random_grids(rng, merge) for _ in range(int(rng.integers(1, 6)))]
        prompts = [made_prompt(rng, g, merge) for g in grids]
        buckets = fitting_buckets(prompts, 8)
        batch = make_batch(prompts, buckets, geometry, rows=8, multiple=multiple)
        media = batch.media[PATCHES]
        r, m, _ = media.patch_rmc.shape
        assert r % multiple == 0 and batch.token_bp.shape[1] in buckets.prompt
        assert m in buckets.patches if media.pair_rp2 is None else m % media.block == 0
        merged = media.patch_rmc[..., 0].reshape(-1, merge**2)
        of_row = media.segment_rm + 1000 * np.arange(r)[:, None] * (media.segment_rm > 0)
        segment = of_row.reshape(-1, merge**2)
        seen = set()
        patches = 0
        at_rows = rows_of(prompts, 8, (0,) * multiple)
        for b, p in zip(at_rows, prompts, strict=True):
            n = len(p)
            np.testing.assert_array_equal(batch.token_bp[b, :n], p.token_ids)
            np.testing.assert_array_equal(batch.position_bp3[b, :n], p.position)
            np.testing.assert_array_equal(batch.media_index_bp[b, :n] >= 0, p.media_index >= 0)
            assert (batch.media_index_bp[b, n:] == -1).all()
            for (start, end), image, grid in zip(p.spans, p.patches, p.grids, strict=True):
                at = batch.media_index_bp[b, start:end]
                np.testing.assert_array_equal(merged[at].ravel(), image[:, 0])
                [number] = np.unique(segment[at])  # an image lies in one row under one number
                assert number % 1000 > 0 and number not in seen
                seen.add(number)
                patches += len(image)
                places = media.place_rm2.reshape(-1, merge**2, 2)[at].reshape(-1, 2)
                np.testing.assert_array_equal(places, patch_places(grid, merge)[0])
        assert (media.segment_rm > 0).sum() == patches
        assert not media.patch_rmc[media.segment_rm == 0].any()
        assert not np.delete(batch.length_b, at_rows).any()


def test_frames_are_segments(rng):
    """Each frame of a clip attends to itself only, as in transformers (cu_seqlens by frame)."""
    prompts = [made_prompt(rng, [(2, 2, 2), (1, 2, 2)])]
    batch = make_batch(prompts, Buckets((32,), (8,), (16,)), MEDIA, rows=1)
    assert batch.media[PATCHES].segment_rm.tolist() == [[1] * 4 + [2] * 4 + [3] * 4 + [0] * 4]


def test_what_does_not_fit(rng):
    prompt = made_prompt(rng, [(1, 8, 8)])
    with pytest.raises(TooLong, match=f"a prompt of {len(prompt)} is over the limit of 8"):
        make_batch([prompt], Buckets((8,), (8,), (64,)), MEDIA, rows=1)
    with pytest.raises(TooLong, match="an image's patches of 64 is over the limit of 16"):
        make_batch([prompt], Buckets((64,), (8,), (16,)), MEDIA, rows=1)
    with pytest.raises(ValueError, match="multiples of 4"):
        make_batch([prompt], Buckets((64,), (8,), (66,)), MEDIA, rows=1)


def test_buckets(rng):
    for _ in range(100):
        low, high = int(rng.integers(1, 200)), int(rng.integers(1, 5000))
        multiple = int(rng.choice([1, 8, 16]))
        sizes = geometric(low, high, multiple=multiple)
        assert list(sizes) == sorted(set(sizes)) and all(s % multiple == 0 for s in sizes)
        assert high <= sizes[-1] < high + multiple and sizes[0] < min(low, high) + multiple
        for a, b in itertools.pairwise(sizes):
            assert b <= 2 * a + multiple, "at most half is padding"
        size = int(rng.integers(1, high + 1))
        chosen = bucket(size, sizes, "x")
        assert chosen >= size and all(s < size for s in sizes if s < chosen)
        with pytest.raises(TooLong, match=f"x of {sizes[-1] + 1} is over the limit of {sizes[-1]}"):
            bucket(sizes[-1] + 1, sizes, "x")
    assert geometric(32, 256) == (32, 64, 128, 256) and geometric(500, 100) == (104,)


def test_rows(rng):
    for count, multiple in rng.integers(1, 50, (100, 2)).tolist():
        rows = rows_for(count, multiple)
        assert count <= rows < 2 * (count + multiple) and rows % multiple == 0
        assert (rows // multiple).bit_count() == 1


def test_first_fit(rng):
    for _ in range(50):
        sizes = rng.integers(1, 20, int(rng.integers(0, 30))).tolist()
        bins = pack_first_fit(sizes, 20)
        assert sorted(itertools.chain(*bins)) == list(range(len(sizes)))
        loads = [sum(sizes[i] for i in b) for b in bins]
        assert all(load <= 20 for load in loads)
        assert sum(load <= 10 for load in loads) <= 1, "two half-empty bins would have been one"


@pytest.mark.parametrize("tile", [0, 16])
def test_media_add_no_shapes_to_those_of_prompts(rng, tile):
    """Whatever pictures prompts hold: patch rows depend on the rows and P alone, and find them."""
    geometry = PatchGeometry(2, 2, tile=tile)
    shapes = set()
    for _ in range(20):
        if tile:
            grids = [[(1, 4, 4)] * int(n) for n in rng.integers(0, 4, 7)]
        else:
            grids = [random_grids(rng) for _ in range(7)]
        prompts = [made_prompt(rng, g) for g in grids]
        batch = make_batch(prompts, BUCKETS, {PATCHES: geometry}, rows=8, width=64, multiple=2)
        media = batch.media[PATCHES]
        shapes.add((media.patch_rmc.shape, tile or media.pair_rp2.shape))
        merged = media.patch_rmc[..., 0].reshape(-1, 4)
        rows_of_device = media.segment_rm.size // 4 // 2
        for b, p in zip(rows_of(prompts, 8, (0, 0)), prompts, strict=True):
            for (start, end), image in zip(p.spans, p.patches, strict=True):
                at = batch.media_index_bp[b, start:end]
                np.testing.assert_array_equal(merged[at].ravel(), image[:, 0])
                assert set(at // rows_of_device) == {b // 4}, "with the device of its prompt"
        used = level_used(media, 2)
        assert used in levels_of(media, 2) and (used == 0) == (not any(grids))
        waste = batch_waste(batch, 2)
        assert 0 <= waste["patches"] <= 1 and waste["vision_pairs"] >= 1
    assert len(shapes) == 1


def test_waste(rng):
    batch = make_batch([made_prompt(rng, [(1, 2, 2), (1, 2, 4)], text=1)], BUCKETS, MEDIA, rows=2)
    # 6 of 2 x 8 tokens, 12 of 16 patches, 16 x 16 pairs for 4 x 4 + 8 x 8.
    expected = {"prompt": 1 - 6 / 16, "patches": 1 - 12 / 16, "vision_pairs": 256 / 80}
    assert batch_waste(batch) == pytest.approx(expected)


# ---------------------------------------------------------------- strips


def random_group(rng):
    """Prompt lengths, and response lengths with zeros among them."""
    prompts = rng.integers(1, 65, int(rng.integers(1, 12))).tolist()
    responses = []
    for _ in prompts:
        lengths = rng.lognormal(2, 0.8, int(rng.integers(0, 9))).astype(int)
        responses.append(np.minimum(lengths, 32).tolist())
    return prompts, responses


def check(plans, prompts, responses, budget, multiple):
    """What all plans must be."""
    wanted = []
    for i, lengths in enumerate(responses):
        wanted += [(i, j) for j, length in enumerate(lengths) if length > 0]
    placed = []
    for plan in plans:
        placed += [(p.prompt, p.sample) for p in plan.places]
    assert sorted(placed) == wanted
    for plan in plans:
        assert plan.prompt_len in BUCKETS.prompt and plan.strip_len in BUCKETS.response
        assert plan.rows % multiple == 0 and plan.rows >= len(plan.prompts)
        assert plan.strips % plan.at_once == 0 and plan.used % plan.at_once == 0
        assert max(p.strip for p in plan.places) < plan.used <= plan.strips
        assert plan.prompt_len >= max(prompts[i] for i in plan.prompts)
        assert plan.tokens == plan.rows * (plan.prompt_len + plan.used * plan.strip_len)
        used = np.zeros((plan.rows, plan.strips, plan.strip_len), int)
        row_of = dict(zip(plan.prompts, plan.at, strict=True))
        on_device = np.bincount(np.array(plan.at) // (plan.rows // multiple), minlength=multiple)
        assert np.ptp(on_device) <= 1, "every device has a row before one has two"
        for p in plan.places:
            assert row_of[p.prompt] == p.row and p.length == responses[p.prompt][p.sample]
            assert p.offset + p.length <= plan.strip_len and p.segment > 0
            used[p.row, p.strip, p.offset : p.offset + p.length] += 1
        assert used.max(initial=0) <= 1, "two responses in one place"
        # Responses of a strip are told apart by their segment.
        numbers = [(p.row, p.strip, p.segment) for p in plan.places]
        assert len(set(numbers)) == len(numbers)
        rows = plan.rows // multiple
        at_once = rows * (plan.prompt_len + plan.at_once * plan.strip_len)
        assert at_once <= budget or (rows == 1 and plan.at_once == 1)
    seen = list(itertools.chain.from_iterable(plan.prompts for plan in plans))
    assert len(seen) == len(set(seen)), "a prompt is computed once"


@pytest.mark.parametrize("multiple", [1, 4])
def test_plans_place_every_response_once(rng, multiple):
    for _ in range(40):
        prompts, responses = random_group(rng)
        budget = int(rng.integers(20, 2000))
        options = dict(token_budget=budget, multiple=multiple)
        plans = plan_strips(prompts, responses, BUCKETS, **options)
        check(plans, prompts, responses, budget, multiple)
        assert plans == plan_strips(prompts, responses, BUCKETS, **options)


@pytest.mark.parametrize(
    ("budget", "most", "at_once"),
    [
        (6 * 512, 0, 6),  # a sixteenth of the budget holds the group
        (2 * 512, 0, 4),  # an eighth of it is what a turn should take at least
        (512, 0, 2),
        (70, 0, 1),
        (1, 0, 1),
        (6 * 512, 4, 4),
        (6 * 512, 1, 1),
    ],
)
def test_a_large_group_is_computed_in_parts(budget, most, at_once):
    options = dict(token_budget=budget, strips_at_once=most)
    [plan] = plan_strips([8], [[32] * 6], BUCKETS, **options)
    assert (plan.prompts, plan.at_once) == ((0,), at_once)
    assert plan.strips == plan.used == -(-6 // at_once) * at_once


def test_the_number_of_strips_is_no_size_of_a_shape(rng):
    """What is packed in few strips and in many has one shape; behind the used ones none counts."""
    shapes, used = set(), set()
    for count in range(1, 9):
        lengths = [32] * count + [0] * (8 - count)
        [plan] = plan_strips([8], [lengths], Buckets((8,), (32,), (16,)), token_budget=128)
        shapes.add((plan.rows, plan.prompt_len, plan.strips, plan.strip_len, plan.at_once))
        used.add(plan.used)
        assert plan.tokens == 8 + 32 * plan.used
    assert len(shapes) == 1 and used == set(range(1, 9))


@pytest.mark.parametrize("devices", [1, 8])
def test_shapes_are_listed_before_anything_is_drawn(rng, devices):
    """Whatever the lengths: each plan has a shape of a short list, in which no group is cut."""
    limits = Limits(8192, 8192, devices, prompts=32, group=8)
    buckets = Buckets.up_to(2048, 2048, 64)
    listed = set(itertools.chain(*list_shapes(buckets, limits)))
    for _ in range(30):
        prompts = rng.integers(1, int(rng.integers(2, 2049)), 32)
        lengths = rng.integers(0, int(rng.integers(2, 2049)), (32, 8))
        placed = rng.random((32, 8)) < rng.choice([0.1, 1.0])
        options = dict(token_budget=8192, multiple=devices, placed=placed)
        for plan in plan_strips(prompts.tolist(), lengths.tolist(), buckets, **options):
            sizes = {f.name: getattr(plan, f.name) for f in dataclasses.fields(Shape)}
            assert Shape(**sizes) in listed
    assert len(listed) <= 18


def test_every_device_has_a_row_before_one_has_two():
    """13 prompts over 8 devices, each as large as the budget: two micro-batches, none with a row
    alone."""
    plans = plan_strips([8] * 13, [[32]] * 13, BUCKETS, token_budget=40, multiple=8)
    assert [(plan.rows, len(plan.prompts)) for plan in plans] == [(8, 8), (8, 5)]


SETTINGS = [(1024, 512, 8), (2048, 2048, 8), (4096, 4096, 16)]


def natural_lengths(rng, limit: int, shape) -> np.ndarray:
    """Log-normal, median 0.4 of the limit."""
    drawn = rng.lognormal(np.log(0.4 * limit), 0.6, shape)
    return np.clip(np.round(drawn), 1, limit).astype(int)


@pytest.mark.parametrize(("devices", "most"), [(1, 1.6), (8, 1.9), (16, 1.9)])
@pytest.mark.parametrize(("prompt", "response", "group"), SETTINGS)
def test_padding_of_natural_lengths(prompt, response, group, devices, most):
    """The default budget, log-normal lengths: padded / real tokens, at the worst of 20 seeds."""
    buckets = Buckets.up_to(prompt, response, 64)
    count, ratios = max(8, 4 * devices), []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        prompts = natural_lengths(rng, prompt, count)
        responses = natural_lengths(rng, response, (count, group))
        options = dict(token_budget=8192, multiple=devices)
        plans = plan_strips(prompts.tolist(), responses.tolist(), buckets, **options)
        seen = list(itertools.chain.from_iterable(plan.prompts for plan in plans))
        assert sorted(seen) == list(range(count)), "each prompt is computed once"
        real = prompts.sum() + responses.sum()
        ratios.append(sum(plan.tokens for plan in plans) / real)
    print(f"padded / real: mean {np.mean(ratios):.2f}, worst {max(ratios):.2f}")
    assert max(ratios) <= most


def test_the_drawing_of_strips(rng):
    """Ten tokens in one strip; 4, 3 and 5 (here sorted by size) share the next."""
    [plan] = plan_strips([5], [[10, 4, 3, 5, 0]], Buckets((8,), (12,), (16,)), token_budget=100)
    prompt = made_prompt(rng, [(1, 4, 4)], text=1)
    tokens = [np.arange(100, 110), np.arange(200, 204), np.arange(300, 303), np.arange(400, 405)]
    strips = make_strips(plan, [prompt], np.concatenate(tokens))
    assert (plan.used, plan.strips) == (2, 5), "arrays would hold each response alone"
    drawn = [[1] * 10 + [0] * 2, [1] * 5 + [2] * 4 + [3] * 3]
    assert strips.segment_bst.tolist() == [drawn + [[0] * 12] * 3]
    second = [*range(400, 405), *range(200, 204), *range(300, 303)]
    assert strips.token_bst.tolist()[0][1] == second
    np.testing.assert_array_equal(strips.target_bst, strips.token_bst)
    at = prompt.next_position
    assert at < len(prompt), "an image takes fewer positions than tokens"
    for axis in np.moveaxis(strips.position_bst3, -1, 0):
        assert axis[0, 1].tolist() == [*range(at, at + 5), *range(at, at + 4), *range(at, at + 3)]
    weight = fill(plan, np.repeat(np.float32([0.1, 0.2, 0.3, 0.4, 0.5]), (10, 4, 3, 5, 0)))
    np.testing.assert_allclose(weight[0, 1], [0.4] * 5 + [0.2] * 4 + [0.3] * 3, rtol=1e-6)
    assert weight[0, 0].tolist()[10:] == [0, 0] and strips.media_index_bst is None


def test_gather_inverts_fill(rng):
    """Over all plans, with responses that are left out: these stay as they were."""
    prompts, responses = random_group(rng)
    samples = max(len(group) for group in responses)
    counts = np.array([group + [0] * (samples - len(group)) for group in responses], int)
    placed = rng.random(counts.shape) < 0.7
    column = rng.standard_normal(counts.sum()).astype(np.float32)
    found = np.zeros_like(column)
    for plan in plan_strips(prompts, counts, BUCKETS, token_budget=300, placed=placed):
        array = fill(plan, column)
        assert np.count_nonzero(array) == sum(p.length for p in plan.places)
        gather(plan, array, found)
    expected = np.where(np.repeat(placed.ravel(), counts.ravel()), column, 0)
    np.testing.assert_array_equal(found, expected)


def test_prompts_of_a_plan(rng):
    prompts = [made_prompt(rng, random_grids(rng)) for _ in range(6)]
    lengths = [len(p) for p in prompts]
    responses = [rng.integers(0, 9, 3).tolist() for _ in prompts]
    buckets = fitting_buckets(prompts, 8)
    for plan in plan_strips(lengths, responses, buckets, token_budget=200, multiple=2):
        batch = plan_prompts(plan, prompts, buckets, MEDIA, multiple=2)
        assert batch.token_bp.shape == (plan.rows, plan.prompt_len)
        for row, i in zip(plan.at, plan.prompts, strict=True):
            np.testing.assert_array_equal(batch.token_bp[row, : lengths[i]], prompts[i].token_ids)


def test_no_response_at_all():
    assert plan_strips([4, 5], [[0, 0], []], BUCKETS, token_budget=100) == []
    with pytest.raises(TooLong, match="a response of 33"):
        plan_strips([4], [[33]], BUCKETS, token_budget=100)
