"""What a directory must not do to a run or to somebody's files, and a run not to a directory."""

import dataclasses
import json

import jax
import ml_dtypes
import numpy as np
import pytest

import jaxr1
from jaxr1.checkpoints.tensors import INDEX, SINGLE, CheckpointError, is_finite, write_checkpoint


@pytest.fixture
def saved(tmp_path):
    """A model, and its directory."""
    model, params = jaxr1.load_model("tiny")
    processor = jaxr1.load_processor("tiny")
    return model, params, processor, jaxr1.save_model(model, params, processor, tmp_path / "m")


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_numbers_that_are_not_finite_are_found(rng, kind):
    """Anywhere in an array of any type, in more than one block; the largest numbers are finite."""
    array = rng.standard_normal((1500, 700)).astype(kind)
    array[3, 5] = ml_dtypes.finfo(kind).max
    assert is_finite(array) and is_finite(array[:0]) and is_finite(array[0, 0])
    for bad in (np.nan, np.inf, -np.inf):
        damaged = array.copy()
        damaged[tuple(rng.integers(damaged.shape))] = bad
        assert not is_finite(damaged) and not is_finite(damaged.T)


@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
def test_weights_that_are_not_finite_are_refused(saved, rng, param_dtype):
    """On load, by name and file, whatever tensor; and never written."""
    model, params, processor, folder = saved
    before = (folder / SINGLE).read_bytes()
    leaves, tree = jax.tree.flatten(params)
    chosen = int(rng.integers(len(leaves)))
    broken = np.array(leaves[chosen])
    broken[tuple(rng.integers(broken.shape))] = np.nan
    leaves[chosen] = broken
    with pytest.raises(CheckpointError, match=r"NaN or infinite numbers .* and is not written"):
        jaxr1.save_model(
            model, jax.tree.unflatten(tree, map(jax.numpy.asarray, leaves)), processor, folder
        )
    assert (folder / SINGLE).read_bytes() == before

    from jaxr1.checkpoints.tensors import open_checkpoint

    tensors = {k: np.array(f.read(k)) for k, f in open_checkpoint(folder).items()}
    name = str(rng.choice(sorted(tensors)))
    tensors[name][tuple(rng.integers(tensors[name].shape))] = np.inf
    (folder / SINGLE).unlink()
    write_checkpoint(folder, tensors.items())
    with pytest.raises(CheckpointError, match=rf"{SINGLE}: tensor '{name}' holds NaN or infinite"):
        jaxr1.load_model(folder, param_dtype=param_dtype)


@pytest.mark.parametrize("name", ["../m/model.safetensors", "/etc/passwd", "a/b", "..", "", "a\\b"])
def test_an_index_names_files_of_its_directory(saved, name):
    folder = saved[3]
    where = dict.fromkeys(jaxr1.checkpoints.tensors.open_checkpoint(folder), SINGLE)
    where[next(iter(where))] = name
    (folder / INDEX).write_text(json.dumps({"weight_map": where}))
    with pytest.raises(CheckpointError, match="names files outside the directory"):
        jaxr1.load_model(folder)


def test_only_a_model_is_replaced(saved, tmp_path):
    """A folder of code, or of a configuration without weights, is somebody's."""
    model, params, processor, folder = saved
    for number, name in enumerate(("train.py", "config.json", "adapter_model.safetensors")):
        out = tmp_path / str(number)
        out.mkdir()
        (out / name).write_text("{}")
        with pytest.raises(CheckpointError, match=f"holds {name}, which would be lost"):
            jaxr1.save_model(model, params, processor, out)
        assert [path.name for path in out.iterdir()] == [name]
    (folder / "modeling.py").write_text("x = 1")  # beside weights it is a model's
    out = jaxr1.save_model(dataclasses.replace(model), params, processor, folder)
    assert not (out / "modeling.py").exists()
