"""The mesh and the one table of logical axes."""

import logging
import math

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxr1.parallel import (
    AXES,
    DEFAULT_RULES,
    MeshOptions,
    agree,
    batch_multiple,
    make_mesh,
    map_rows,
    partition,
    place_rows,
    sharding,
    single_device_mesh,
)
from jaxr1.parallel.mesh import constrain, mesh_of

MESH = {"data": 2, "fsdp": 4, "tensor": 2}


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        (MeshOptions(), (1, 4, 1)),
        (MeshOptions(4, 1, 1), (4, 1, 1)),
        (MeshOptions(1, 2, 2), (1, 2, 2)),
        (MeshOptions(-1, 1, 2), (2, 1, 2)),
        (MeshOptions(1, 1, -1), (1, 1, 4)),
    ],
)
def test_sizes(options, sizes):
    mesh = options.build()
    assert mesh.axis_names == AXES and tuple(mesh.shape.values()) == sizes
    assert batch_multiple(mesh) == sizes[0] * sizes[1]
    assert set(mesh.devices.ravel()) == set(jax.devices())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (MeshOptions(-1, -1, 1), "at most one axis may be -1"),
        (MeshOptions(1, 3, 1), "{'data': 1, 'fsdp': 3, 'tensor': 1} does not fit 4 devices"),
        (MeshOptions(3, -1, 1), "{'data': 3, 'fsdp': -1, 'tensor': 1} does not fit 4 devices"),
        (MeshOptions(8, -1, 1), "does not fit 4 devices"),
        (MeshOptions(0, -1, 1), "sizes are positive"),
        (MeshOptions(-2, -2, 1), "sizes are positive"),
    ],
)
def test_sizes_that_do_not_fit(options, text):
    with pytest.raises(ValueError) as caught:
        options.build()
    assert text in str(caught.value)


def test_some_devices():
    mesh = MeshOptions().build(jax.devices()[2:])
    assert mesh.size == 2 and single_device_mesh().size == 1
    alone = jax.device_put(np.ones(2), jax.devices()[3])
    assert mesh_of({"a": alone}).devices.ravel().tolist() == [jax.devices()[3]]
    x = jax.device_put(np.ones(4), sharding(mesh, ("embed",), (4,), DEFAULT_RULES))
    assert mesh_of({"a": x}) == mesh


def test_partition():
    assert partition(("embed", "mlp"), (8, 6), MESH, DEFAULT_RULES) == P("fsdp", "tensor")
    assert partition(("batch", None), (16, 3), MESH, DEFAULT_RULES) == P(("data", "fsdp"), None)
    assert partition((None, "unknown"), (8, 8), MESH, DEFAULT_RULES) == P(None, None)
    one = {"data": 1, "fsdp": 1, "tensor": 1}
    assert partition(("batch", "mlp"), (8, 6), one, DEFAULT_RULES) == P(None, None)
    four = {"data": 1, "fsdp": 4, "tensor": 1}
    assert partition(("batch",), (8,), four, DEFAULT_RULES) == P("fsdp")


def test_a_mesh_axis_is_used_once_in_a_tensor():
    assert partition(("heads", "mlp"), (4, 4), MESH, DEFAULT_RULES) == P("tensor", None)
    assert partition(("batch", "embed"), (8, 8), MESH, DEFAULT_RULES) == P(("data", "fsdp"), None)
    assert partition(("embed", "batch"), (8, 8), MESH, DEFAULT_RULES) == P("fsdp", "data")


def test_what_does_not_divide_is_replicated_and_logged_once(rng, caplog):
    size = 2 * int(rng.integers(10**6)) + 1
    with caplog.at_level(logging.WARNING, "jaxr1.parallel.mesh"):
        for _ in range(3):
            assert partition(("embed", "mlp"), (size, 6), MESH, DEFAULT_RULES) == P(None, "tensor")
    [record] = caplog.records
    said = f"axis 'embed' of size {size} is not divisible by 4 (fsdp): replicated"
    assert record.getMessage() == said
    # A dimension left whole leaves its mesh axis to the next one.
    assert partition(("heads", "mlp"), (size, 6), MESH, DEFAULT_RULES) == P(None, "tensor")


def test_constrain_shards_inside_jit_and_changes_no_value(rng):
    x = rng.standard_normal((8, 6)).astype(np.float32)
    f = jax.jit(lambda x: constrain(x * 2, DEFAULT_RULES, "batch", "mlp"))
    np.testing.assert_array_equal(f(x), x * 2)  # without a mesh: the identity
    mesh = MeshOptions(1, 2, 2).build()
    with jax.set_mesh(mesh):
        y = f(jax.device_put(x, sharding(mesh, (None, None), x.shape, DEFAULT_RULES)))
    np.testing.assert_array_equal(y, x * 2)
    assert y.sharding.spec == P("fsdp", "tensor")


def test_one_host_agrees_with_itself():
    assert agree(np.array([3, -1, 2**40])) == [3, -1, 2**40]
    assert agree([True]) == [1]


@pytest.mark.parametrize(("sizes", "at_once"), [((1, 1, 1), 3), ((1, 4, 1), 1), ((2, 2, 1), 100)])
def test_rows_in_parts_are_the_same_rows(rng, sizes, at_once):
    """Each device goes through its own rows; the order is kept, whatever the parts."""
    mesh = make_mesh(sizes, jax.devices()[: math.prod(sizes)])
    rows = 4 * math.prod(sizes)
    x, y = rng.standard_normal((2, rows, 3)).astype(np.float32)
    both = place_rows((x, {"y": y}), mesh, DEFAULT_RULES)
    seen = []

    def function(tree):
        seen.append(tree[0].shape[0])
        return tree[0] * 2, tree[1]["y"].sum(-1)

    with jax.set_mesh(mesh):
        run = jax.jit(lambda tree: map_rows(function, tree, at_once, DEFAULT_RULES))
        doubled, sums = run(both)
    np.testing.assert_array_equal(doubled, x * 2)
    np.testing.assert_allclose(sums, y.sum(-1), rtol=1e-6)
    assert max(seen) <= max(at_once, 1) * math.prod(sizes) or max(seen) == rows
