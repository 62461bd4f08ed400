"""Entries that are parts of a Hugging Face tensor reach their place and come back.

On any mesh and in any order; what a device gets does not depend on how it was read; and saving
never leaves the folder without a complete directory.
"""

import dataclasses
import json
import os
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest

from jaxr1.checkpoints import huggingface, tensors, weights
from jaxr1.checkpoints.huggingface import replacing, save_directory
from jaxr1.checkpoints.tensors import (
    INDEX,
    CheckpointError,
    LazyTensor,
    copy_into,
    open_checkpoint,
    write_checkpoint,
)
from jaxr1.checkpoints.weights import hf_tensors, load_params
from jaxr1.nn.params import Param, Part, linear, stack, vector
from jaxr1.parallel import DEFAULT_RULES, MeshOptions, single_device_mesh

L, D, N, K, H, F = 3, 8, 4, 2, 6, 12
G = N // K


def make_table():
    """A vision layer with a fused qkv, a decoder layer with InternLM2's, and odd tensors.

    InternLM2's is grouped; the others are stored in another shape than ours.
    """
    at = "model.{}."
    grouped = (K, G + 2, H)
    layer = {
        "q": fused(at + "wqkv.weight", "heads", Part(grouped, 1, 0, G)),
        "k": fused(at + "wqkv.weight", "kv_heads", Part(grouped, 1, G, G + 1)),
        "v": fused(at + "wqkv.weight", "kv_heads", Part(grouped, 1, G + 1, G + 2)),
        "o": linear(at + "wo.weight", (D,), (N, H), ("heads", None, "embed")),
        "scale": vector(at + "ls", (), ()),
    }
    for i, name in enumerate("qkv"):
        part, vit = Part((3, N, H), 0, i, i + 1), "vision.{}.attn.qkv."
        layer[f"vision_{name}"] = fused(vit + "weight", "heads", part)
        layer[f"vision_{name}_bias"] = vector(vit + "bias", (N, H), ("heads", None), part=part)
    return {
        **{f"layers/{key}": p for key, p in stack(layer, L).items()},
        "class": vector("class_embedding", (D,), ("embed",), hf_shape=(1, 1, D)),
        "patch": linear("patch.weight", (F,), (3 * 2 * 2,), (None, "embed"), hf_shape=(F, 3, 2, 2)),
        "embed": Param((16, D), ("vocab", "embed"), "embed.weight", (16, D)),
    }


def fused(name: str, heads: str, part: Part) -> Param:
    """Queries, keys or values that are a part of one matrix."""
    size = K if heads == "kv_heads" else N
    return linear(name, (size, H), (D,), ("embed", heads, None), part=part)


@dataclasses.dataclass
class Stored:
    """A directory of random tensors, and the tensors."""

    folder: Path
    tensors: dict[str, np.ndarray]

    def load(self, mesh):
        return load_params(self.folder, {"hub": make_table()}, "float32", mesh, DEFAULT_RULES)


@pytest.fixture
def stored(rng, tmp_path):
    """A directory of random tensors under the table's names, in three dtypes and several shards."""
    kinds = [np.float32, ml_dtypes.bfloat16, np.float16]
    shapes = {}
    for p in make_table().values():
        shapes |= dict.fromkeys(p.names(), p.hf_shape)
    made = {}
    for i, name in enumerate(sorted(shapes)):
        made[name] = rng.standard_normal(shapes[name]).astype(kinds[i % 3])
    folder = tmp_path / "m"
    folder.mkdir()
    write_checkpoint(folder, made.items(), 600)
    assert (folder / INDEX).is_file()
    return Stored(folder, made)


def expected(made) -> dict[str, np.ndarray]:
    """The parameters by the definition of each layout, written out without the parameter table."""
    wide = {name: x.astype(np.float32) for name, x in made.items()}
    layers = {path: [] for path in make_table() if path.startswith("layers/")}
    for i in range(L):
        weight, bias = wide[f"vision.{i}.attn.qkv.weight"], wide[f"vision.{i}.attn.qkv.bias"]
        for j, name in enumerate("qkv"):
            rows = slice(j * N * H, (j + 1) * N * H)
            layers[f"layers/vision_{name}"].append(weight[rows].T.reshape(D, N, H))
            layers[f"layers/vision_{name}_bias"].append(bias[rows].reshape(N, H))
        q, k, v = [], [], []
        for group in np.split(wide[f"model.{i}.wqkv.weight"], K):
            *queries, key, value = (head.T for head in np.split(group, G + 2))
            q += queries
            k.append(key)
            v.append(value)
        layers["layers/q"].append(np.stack(q, 1))
        layers["layers/k"].append(np.stack(k, 1))
        layers["layers/v"].append(np.stack(v, 1))
        layers["layers/o"].append(wide[f"model.{i}.wo.weight"].T.reshape(N, H, D))
        layers["layers/scale"].append(wide[f"model.{i}.ls"].reshape(()))
    return {
        **{path: np.stack(found) for path, found in layers.items()},
        "class": wide["class_embedding"][0, 0],
        "patch": wide["patch.weight"].reshape(F, -1).T,
        "embed": wide["embed.weight"],
    }


MESHES = {
    "one": None,
    "tensor": MeshOptions(1, 1, 4),
    "both": MeshOptions(1, 2, 2),
    "replicas": MeshOptions(2, 2, 1),
}


@pytest.mark.parametrize("most", [0, 256 << 20], ids=["by_layer", "stacked"])
@pytest.mark.parametrize("mesh", MESHES)
def test_parts_reach_their_place(stored, mesh, most, monkeypatch, tmp_path):
    """Every value, on every device; and the same tensors come back, fused, bit for bit."""
    monkeypatch.setattr(weights, "STACK_BYTES", most)
    options = MESHES[mesh]
    flat = stored.load(options.build(jax.devices()[:4]) if options else single_device_mesh())
    for path, x in expected(stored.tensors).items():
        assert flat[path].shape == make_table()[path].shape and flat[path].dtype == np.float32
        np.testing.assert_array_equal(np.asarray(flat[path]), x, err_msg=path)
        for shard in flat[path].addressable_shards:
            np.testing.assert_array_equal(np.asarray(shard.data), x[shard.index], err_msg=path)
    if mesh in ("tensor", "both"):
        assert len({str(s.index) for s in flat["layers/q"].addressable_shards}) == 4

    save_directory(tmp_path / "out", flat, make_table(), "{}", None, "float32", max_bytes=1000)
    found = open_checkpoint(tmp_path / "out")
    assert set(found) == set(stored.tensors) and len({f.path for f in found.values()}) > 3
    for name, x in stored.tensors.items():
        np.testing.assert_array_equal(found[name].read(name), x.astype(np.float32), err_msg=name)


def test_a_large_stack_is_never_whole_on_the_host(stored, monkeypatch):
    """What is placed at once is a tensor, a layer, or a stack of at most STACK_BYTES."""
    sizes = {}
    place = weights._place

    def counted(shape, dtype, target, fill):
        sizes.setdefault(limit, []).append(int(np.prod(shape)) * dtype.itemsize)
        return place(shape, dtype, target, fill)

    monkeypatch.setattr(weights, "_place", counted)
    for limit in (0, 800, 1 << 20):
        monkeypatch.setattr(weights, "STACK_BYTES", limit)
        stored.load(single_device_mesh())
    layer = 4 * D * N * H
    assert max(sizes[0]) == layer and len(sizes[0]) == 11 * L + 3
    assert max(sizes[800]) == layer and len(sizes[800]) < len(sizes[0])
    assert max(sizes[1 << 20]) == L * layer and len(sizes[1 << 20]) == len(make_table())


def test_parts_are_views(rng):
    """Nothing is copied to look at a part, but for queries whose groups our shape merges."""
    whole = {
        "qkv": rng.standard_normal((3 * N * H, D)),
        "wqkv": rng.standard_normal((K * (G + 2) * H, D)),
    }
    for path, p in make_table().items():
        for key, x in whole.items():
            if p.name.endswith(f".{key}.weight"):
                assert np.shares_memory(p.from_hf(x), x) == (path != "layers/q"), path


@pytest.mark.parametrize(
    "make",
    [
        lambda: Part((3, N, H), 0, 2, 4),
        lambda: Part((3, N, H), 3, 0, 1),
        lambda: Part((3, N, H), 0, 1, 1),
        lambda: linear("w", (N, H), (D,), (None,) * 3, part=Part((3, N, H), 0, 0, 2)),
        lambda: linear(
            "w", (N, H), (D,), (None,) * 3, part=Part((3, N, H), 0, 0, 1), hf_shape=(2 * N * H, D)
        ),
        lambda: vector("w", (D,), (None,), hf_shape=(1, 1, D + 1)),
        lambda: linear("w", (N, H), (D,), (None,) * 3, hf_shape=(N * H, D, 2)),
    ],
)
def test_parts_that_cannot_be(make):
    with pytest.raises(ValueError, match=r"no such slice|no view|does not fit"):
        make()


@pytest.mark.parametrize("drop", ["layers/k", "layers/vision_v_bias"])
def test_missing_or_doubled_parts_are_not_saved(stored, drop):
    table = make_table()
    flat = stored.load(single_device_mesh())
    whole = table.pop(drop)
    with pytest.raises(ValueError, match=f"{whole.names()[0]}.*are not the parts of one tensor"):
        hf_tensors(flat, table, np.float32)
    table |= {drop: whole, "again": whole}
    with pytest.raises(ValueError, match=f"{whole.names()[0]}.*again"):
        hf_tensors(flat, table, np.float32)


def test_integers_are_no_weights(stored):
    """A quantised checkpoint is refused, with the names of the tensors and their file."""
    for path in stored.folder.iterdir():
        path.unlink()
    small = (stored.tensors["patch.weight"] * 10).astype(np.int8)
    write_checkpoint(stored.folder, (stored.tensors | {"patch.weight": small}).items())
    said = r"not floating point \(1\): patch.weight is I8 \(model.safetensors\)"
    with pytest.raises(CheckpointError, match=said):
        stored.load(single_device_mesh())


def test_loaded_arrays_are_their_own(stored, monkeypatch):
    """A parameter that a step overwrites in place (donation) changes nothing else.

    No other device's copy, no other tensor, no file.
    """
    mesh = MeshOptions(4, 1, 1).build(jax.devices()[:4])
    first = stored.load(mesh)
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    for path, x in expected(stored.tensors).items():
        added = step(first[path])
        for shard in added.addressable_shards:
            np.testing.assert_array_equal(np.asarray(shard.data), x + 1, err_msg=path)
    again = stored.load(mesh)
    for path, x in expected(stored.tensors).items():
        np.testing.assert_array_equal(np.asarray(again[path]), x)


@pytest.mark.parametrize("size", [1, 64, 1 << 20])
def test_blocks_copy_everything(rng, size, monkeypatch):
    """Any shape, stride and dtype, in blocks of one row, of some, of all."""
    monkeypatch.setattr(tensors, "BLOCK_BYTES", size)
    for _ in range(100):
        shape = tuple(rng.integers(0, 9, int(rng.integers(0, 5))))
        kinds = rng.choice([np.float32, np.float16, ml_dtypes.bfloat16, np.float64], 2)
        x = rng.standard_normal(shape).astype(kinds[0])
        turn = rng.permutation(len(shape))
        index = tuple(slice(int(rng.integers(0, 3)), None, int(rng.integers(1, 3))) for _ in shape)
        source = x.transpose(turn)[index]
        out = np.full(source.shape, 7, kinds[1])
        copy_into(source, out)
        np.testing.assert_array_equal(out, source.astype(kinds[1]))


# ---------------------------------------------------------------- writing a directory


def test_tensors_are_made_one_at_a_time(tmp_path):
    """In order, each once, none kept; which shard it goes to was planned without it."""
    made, alive = [], []

    class Counted(np.ndarray):
        def __del__(self):
            alive.pop()

    def make(i):
        alive.append(i)
        made.append(i)
        assert len(alive) == 1
        return np.full((4, 4), i, np.float32).view(Counted)

    f32 = np.dtype(np.float32)
    lazy = [(f"t{i}", LazyTensor((4, 4), f32, lambda i=i: make(i))) for i in range(7)]
    write_checkpoint(tmp_path, lazy, max_bytes=130)
    assert made == list(range(7))
    files = open_checkpoint(tmp_path)
    for i in range(7):
        file = files[f"t{i}"]
        assert file.path.name == f"model-{1 + i // 2:05d}-of-00004.safetensors"
        assert (file.read(f"t{i}") == i).all()
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == 7 * 64
    with pytest.raises(ValueError, match="t0: planned"):
        write_checkpoint(tmp_path, [("t0", LazyTensor((4,), f32, lambda: np.zeros(3, f32)))])
    with pytest.raises(CheckpointError, match="'c': safetensors has no dtype complex64"):
        write_checkpoint(tmp_path, [("c", np.zeros(2, np.complex64))])


def test_a_complete_directory_at_every_moment(tmp_path, monkeypatch):
    """At any moment of the swap, whichever of its calls fails, one whole directory is there."""
    out = tmp_path / "m"

    def complete():
        files = [*tmp_path.glob("*/config.json"), *tmp_path.glob(".*/config.json")]
        return [file.read_text() for file in files]

    with replacing(out) as partial:
        (partial / "config.json").write_text("old")
        (partial / "model.safetensors").touch()  # without weights it would be no model
    assert os.listdir(tmp_path) == ["m"]

    seen, replace, rmtree = [], os.replace, huggingface.shutil.rmtree

    def looked_at(call):
        def wrapped(*args, **kw):
            seen.append(complete())
            result = call(*args, **kw)
            seen.append(complete())
            return result

        return wrapped

    monkeypatch.setattr(os, "replace", looked_at(replace))
    monkeypatch.setattr(huggingface.shutil, "rmtree", looked_at(rmtree))
    with replacing(out) as partial:
        (partial / "config.json").write_text("new")
        (partial / "model.safetensors").touch()
    assert (out / "config.json").read_text() == "new" and os.listdir(tmp_path) == ["m"]
    assert len(seen) == 8 and all("old" in texts or "new" in texts for texts in seen)
    assert all("old" in texts for texts in seen[:-1]), "the old one goes last"

    calls = []

    def second_fails(*args):
        calls.append(args)
        if len(calls) == 2:
            raise OSError("no")
        replace(*args)

    monkeypatch.setattr(os, "replace", second_fails)
    with pytest.raises(OSError, match="no"), replacing(out) as partial:
        (partial / "config.json").write_text("newer")
    assert (out / "config.json").read_text() == "new"
    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyError), replacing(out) as partial:
        raise KeyError
    assert (out / "config.json").read_text() == "new" and os.listdir(tmp_path) == ["m"]
    (tmp_path / "f").write_text("")
    with pytest.raises(CheckpointError, match="is a file"), replacing(tmp_path / "f"):
        pass
    link = tmp_path / "link"
    link.symlink_to(out)
    with replacing(link) as partial:
        (partial / "config.json").write_text("through")
    assert link.is_symlink() and (out / "config.json").read_text() == "through"


def test_transformers_loads_shards(tmp_path):
    """A model saved in shards with an index, one of them no larger than its largest tensor."""
    from reference import make_checkpoint
    from transformers import Qwen2VLForConditionalGeneration

    import jaxr1
    from jaxr1.nn.params import flatten

    theirs = make_checkpoint(tmp_path / "m", 0)
    model, params = jaxr1.load_model(tmp_path / "m")
    what = (flatten(params), model.table(), model.raw_config, tmp_path / "m", "float32")
    save_directory(tmp_path / "out", *what, max_bytes=50_000)
    shards = sorted((tmp_path / "out").glob("model-*.safetensors"))
    assert len(shards) > 5 and not (tmp_path / "out" / "model.safetensors").exists()
    back, info = Qwen2VLForConditionalGeneration.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    ours, theirs = back.state_dict(), theirs.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(tensor.numpy(), ours[name].numpy(), err_msg=name)


def test_other_peoples_files_are_not_replaced(tmp_path):
    """A folder that holds anything but a model's files is refused and stays as it is."""
    for number, name in enumerate(("thesis.txt", "checkpoints/1")):
        out = tmp_path / str(number)
        (out / name).parent.mkdir(parents=True)
        (out / name).write_text("mine")
        (out / "config.json").write_text("{}")
        said = f"holds {name.split('/')[0]}, which would be lost"
        with pytest.raises(CheckpointError, match=said), replacing(out):
            pass
        assert (out / name).read_text() == "mine" and len(os.listdir(out)) == 2
    empty = tmp_path / "empty"
    empty.mkdir()
    with replacing(empty) as partial:
        (partial / "config.json").write_text("{}")
    assert os.listdir(empty) == ["config.json"]
    assert sorted(os.listdir(tmp_path)) == ["0", "1", "empty"]
