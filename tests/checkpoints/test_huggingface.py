"""Weights are mapped: every layout and file form gives the same parameters.

What is saved is read back bit for bit (by transformers too), and a directory that cannot be used is
refused with the names of what is wrong.
"""

import json
import os
import re
import shutil
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from reference import Checkpoint, make_checkpoint, mixed_prompts, torch_inputs

import jaxr1
from jaxr1.checkpoints.tensors import (
    INDEX,
    SINGLE,
    CheckpointError,
    TensorFile,
    open_checkpoint,
    write_checkpoint,
)
from jaxr1.models import presets
from jaxr1.models.load import resolve
from jaxr1.nn.params import flatten


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def checkpoint(request, tmp_path_factory, module_seed):
    """A directory as transformers 5 saves it, and what is loaded from it."""
    folder = tmp_path_factory.mktemp("model") / "m"
    return Checkpoint.make(folder, module_seed, tied=request.param, layers=2)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """One directory for tests of damage."""
    folder = tmp_path_factory.mktemp("small") / "m"
    make_checkpoint(folder, 0, layers=1, depth=1)
    return folder


def tensors(folder) -> dict[str, np.ndarray]:
    return {name: np.array(file.read(name)) for name, file in open_checkpoint(folder).items()}


def copy(folder, out):
    """A copy to damage, without its weights."""
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns("*.safetensors", INDEX))
    return out


def v5_name(name: str) -> str:
    """As transformers 5 has it in memory."""
    name = re.sub(r"^model\.(?!visual|language_model)", "model.language_model.", name)
    return re.sub(r"^visual\.", "model.visual.", name)


def hub_name(name: str) -> str:
    """As the files on the hub have it."""
    name = re.sub(r"^model\.language_model\.", "model.", name)
    return re.sub(r"^model\.(?=visual\.)", "", name)


def hub_config(raw: dict) -> dict:
    """The flat config.json of the hub's Qwen2-VL files."""
    text, vision = dict(raw["text_config"]), dict(raw["vision_config"])
    rope = text.pop("rope_parameters")
    for part in (text, vision):
        part.pop("dtype", None)
    vision["in_chans"] = vision.pop("in_channels", 3)
    vision.pop("rope_parameters", None)
    text |= {
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
    }
    kept = {k: v for k, v in raw.items() if k not in ("text_config", "dtype", "rope_parameters")}
    return {
        **text,
        **kept,
        "vision_config": vision,
        "torch_dtype": "float32",
        "model_type": "qwen2_vl",
    }


def assert_same(a, b):
    a, b = flatten(a), flatten(b)
    assert set(a) == set(b)
    for name in a:
        assert a[name].dtype == b[name].dtype
        np.testing.assert_array_equal(np.asarray(a[name]), np.asarray(b[name]), err_msg=name)


def test_layouts_give_the_same_parameters(checkpoint, tmp_path):
    """v5 names or hub names, nested or flat config, one file or shards."""
    folder, model = checkpoint.folder, checkpoint.model
    raw, found = json.loads((folder / "config.json").read_text()), tensors(folder)
    v5 = {v5_name(name): x for name, x in found.items()}
    hub = {hub_name(name): x for name, x in v5.items()}
    assert set(v5) != set(hub) and any(n.startswith("model.language_model.") for n in v5)
    cases = [
        (v5, raw, False),
        (hub, raw, False),
        (hub, hub_config(raw), False),
        (v5, hub_config(raw), True),
    ]
    for i, (named, config, sharded) in enumerate(cases):
        out = copy(folder, tmp_path / str(i))
        (out / "config.json").write_text(json.dumps(config))
        write_checkpoint(out, named.items(), 20_000 if sharded else 1 << 30)
        assert (out / INDEX).is_file() == sharded
        assert (out / SINGLE).is_file() != sharded
        other, loaded = jaxr1.load_model(out)
        assert other == model and hash(other) == hash(model)
        assert_same(loaded, checkpoint.params)


def test_every_tensor_reaches_its_place(checkpoint):
    """No two parameters are the same tensor, none is left at zero, and all of the file is used."""
    flat = flatten(checkpoint.params)
    stored = tensors(checkpoint.folder)
    assert sum(x.size for x in flat.values()) == sum(x.size for x in stored.values())
    layers = []
    for name, x in flat.items():
        assert np.asarray(x).any(), name
        if name.count("/") > 1:
            layers += [layer.tobytes() for layer in np.asarray(x)]
    assert len(set(layers)) == len(layers)


def test_half_precision_files(checkpoint, tmp_path):
    exact = flatten(checkpoint.params)
    for kind in (ml_dtypes.bfloat16, np.float16):
        out = copy(checkpoint.folder, tmp_path / np.dtype(kind).name)
        found = tensors(checkpoint.folder)
        write_checkpoint(out, [(name, x.astype(kind)) for name, x in found.items()])
        _, params = jaxr1.load_model(out)
        for name, x in flatten(params).items():
            assert x.dtype == np.float32
            rounded = np.asarray(exact[name]).astype(kind).astype(np.float32)
            np.testing.assert_array_equal(np.asarray(x), rounded)


def test_param_dtype(checkpoint):
    _, rounded = jaxr1.load_model(checkpoint.folder, param_dtype="bfloat16")
    assert_same(rounded, jax.tree.map(lambda x: x.astype("bfloat16"), checkpoint.params))


def test_transformers_loads_what_is_saved(checkpoint, tmp_path, rng):
    """The same logits to 1e-4 (invariant 1), and the same file bit for bit on the way back."""
    import torch
    from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration

    model, processor = checkpoint.model, checkpoint.processor
    # Not the file that was read is saved, but these parameters.
    params = jax.tree.map(lambda x: x + 0.01, checkpoint.params)
    out = jaxr1.save_model(model, params, processor, tmp_path / "saved")
    theirs, info = Qwen2VLForConditionalGeneration.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    ours, back = jaxr1.load_model(out)
    assert ours == model
    assert_same(back, params)
    jaxr1.save_model(ours, back, jaxr1.load_processor(out), out)  # onto itself
    assert_same(jaxr1.load_model(out)[1], params)
    again = tmp_path / "by_transformers"
    theirs.save_pretrained(again)
    assert_same(jaxr1.load_model(again)[1], params)

    from jaxr1.inputs.batch import fitting_buckets, make_batch
    from jaxr1.models.vlm import prompt_logits

    encoded = [processor.encode(p) for p in mixed_prompts(rng, 2)]
    batch = make_batch(encoded, fitting_buckets(encoded, 8), model.media, rows=2)
    logits = np.asarray(prompt_logits(ours, back, batch))
    for i, prompt in enumerate(encoded):
        with torch.no_grad():
            expected = theirs.eval()(**torch_inputs(prompt)).logits[0].numpy()
            before = checkpoint.reference(**torch_inputs(prompt)).logits[0].numpy()
        np.testing.assert_allclose(logits[i, : len(prompt)], expected, atol=1e-4, rtol=0)
        assert np.abs(expected - before).max() > 1e-2
    words = AutoTokenizer.from_pretrained(out)
    messages = [{"role": "user", "content": "What is 3 + 4?"}]
    rendered = processor.tokenizer.apply_chat_template(messages, tokenize=False)
    assert words.apply_chat_template(messages, tokenize=False) == rendered
    assert jaxr1.load_processor(out).images == processor.images


@pytest.mark.parametrize("newer", [False, True])
def test_image_bounds_are_saved(small, tmp_path, newer):
    """An exported model sees images of the size it was trained on, in transformers too."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    source = copy(small, tmp_path / "m")
    write_checkpoint(source, tensors(small).items())
    if newer:
        settings = json.loads((source / "preprocessor_config.json").read_text())
        size = {
            "shortest_edge": settings.pop("min_pixels"),
            "longest_edge": settings.pop("max_pixels"),
        }
        (source / "preprocessor_config.json").write_text(json.dumps(settings | {"size": size}))
    model, params = jaxr1.load_model(source)
    processor = jaxr1.load_processor(source, min_pixels=56 * 56, max_pixels=84 * 84)
    out = jaxr1.save_model(model, params, processor, tmp_path / "out")
    assert jaxr1.load_processor(out).images == processor.images
    theirs = Qwen2VLImageProcessorPil.from_pretrained(out)
    assert (theirs.size["shortest_edge"], theirs.size["longest_edge"]) == (56 * 56, 84 * 84)
    same = jaxr1.save_model(model, params, jaxr1.load_processor(source), tmp_path / "same")
    before, after = (x / "preprocessor_config.json" for x in (source, same))
    assert before.read_bytes() == after.read_bytes()


def test_saving_in_another_dtype(checkpoint, tmp_path):
    model, params = checkpoint.model, checkpoint.params
    out = jaxr1.save_model(model, params, None, tmp_path / "half", dtype="bfloat16")
    assert {file.header[n]["dtype"] for n, file in open_checkpoint(out).items()} == {"BF16"}
    assert "float32" not in (out / "config.json").read_text()
    assert not (out / "tokenizer.json").exists()
    reread, rounded = jaxr1.load_model(out, param_dtype="bfloat16")
    assert_same(rounded, jax.tree.map(lambda x: x.astype("bfloat16"), params))
    # Without a dtype: in the checkpoint's own.
    again = jaxr1.save_model(reread, rounded, None, tmp_path / "again")
    assert (again / SINGLE).read_bytes() == (out / SINGLE).read_bytes()


def test_shards_hold_what_one_file_holds(rng, tmp_path):
    """Random tensors, empty and scalar ones too, by the writer, our reader and safetensors'."""
    from safetensors.numpy import load_file

    made = {}
    for i in range(20):
        shape = tuple(rng.integers(0, 5, int(rng.integers(0, 4))))
        made[f"t{i}"] = rng.standard_normal(shape).astype(np.float32)
    for most in (1 << 30, 64, 1):
        out = tmp_path / str(most)
        out.mkdir()
        write_checkpoint(out, made.items(), most)
        found = tensors(out)
        assert set(found) == set(made)
        theirs = {}
        for file in out.glob("*.safetensors"):
            theirs |= load_file(file)
        for name, x in made.items():
            np.testing.assert_array_equal(found[name], x)
            np.testing.assert_array_equal(theirs[name], x)


# ---------------------------------------------------------------- what is refused


def refused(folder, *texts):
    """The message of the refusal, which holds all of `texts`."""
    with pytest.raises(CheckpointError) as caught:
        jaxr1.load_model(folder)
    for text in texts:
        assert text in str(caught.value)
    return str(caught.value)


def test_no_weights(small, tmp_path):
    out = copy(small, tmp_path / "m")
    refused(out, str(out), "no weights here", SINGLE, INDEX, "tokenizer.json")


def test_missing_shards(small, tmp_path):
    out = copy(small, tmp_path / "m")
    write_checkpoint(out, tensors(small).items(), 20_000)
    shards = sorted(out.glob("*.safetensors"))
    shards[0].unlink(), shards[2].unlink()
    text = refused(out, "shards that are missing", shards[0].name, shards[2].name)
    assert shards[1].name not in text
    (out / INDEX).write_text("{}")
    refused(out, INDEX, "damaged")


def test_index_that_names_a_tensor_no_shard_has(small, tmp_path):
    out = copy(small, tmp_path / "m")
    write_checkpoint(out, tensors(small).items(), 20_000)
    index = json.loads((out / INDEX).read_text())
    index["weight_map"]["ghost"] = next(iter(index["weight_map"].values()))
    (out / INDEX).write_text(json.dumps(index))
    refused(out, "ghost")


def test_tensors_that_do_not_fit(small, tmp_path):
    """Missing, unexpected and wrongly shaped ones, all in one message."""
    out = copy(small, tmp_path / "m")
    found = tensors(small)
    norm = next(n for n in found if n.endswith("layers.0.input_layernorm.weight"))
    query = next(n for n in found if n.endswith("layers.0.self_attn.q_proj.weight"))
    merger = next(n for n in found if n.endswith("merger.ln_q.bias"))
    del found[norm], found[merger]
    rows, columns = found[query].shape
    found[query] = np.zeros((rows + 1, columns), np.float32)
    found["model.surprise"] = np.zeros(3, np.float32)
    write_checkpoint(out, found.items())
    text = refused(
        out,
        "missing tensors (2)",
        "tensors of another shape (1)",
        "unexpected tensors (1): model.surprise",
    )
    assert norm in text and merger in text
    assert f"{query} is [{rows + 1}, {columns}], config.json says [{rows}, {columns}]" in text


def test_what_old_files_also_hold(small, tmp_path):
    """A tied head stored all the same, and rotary buffers, are passed over.

    A head of its own is not thrown away.
    """
    out, found = copy(small, tmp_path / "m"), tensors(small)
    [embed] = [name for name in found if name.endswith("embed_tokens.weight")]
    extra = {"lm_head.weight": found[embed], "visual.rotary_emb.inv_freq": np.zeros(3, np.float32)}
    write_checkpoint(out, (found | extra).items())
    assert_same(jaxr1.load_model(out)[1], jaxr1.load_model(small)[1])
    other = copy(small, tmp_path / "other")
    head = found[embed].copy()
    head[-1, -1] += 1
    write_checkpoint(other, (found | {"lm_head.weight": head}).items())
    refused(other, "differ though tie_word_embeddings is true (1): lm_head.weight is not", embed)


def header(entry) -> bytes:
    text = json.dumps(entry).encode()
    return len(text).to_bytes(8, "little") + text + b"\0" * 64


DAMAGE = {
    "empty": lambda data: b"",
    "seven bytes": lambda data: data[:7],
    "truncated": lambda data: data[:-1000],
    "header cut": lambda data: data[:100],
    "absurd length": lambda data: (1 << 62).to_bytes(8, "little") + data[8:],
    "zero length": lambda data: (0).to_bytes(8, "little") + data[8:],
    "not JSON": lambda data: data[:8] + b"x" + data[9:],
    "not text": lambda data: data[:9] + b"\xff\xfe" + data[11:],
    "a list": lambda data: header([1, 2]),
    "a deep list": lambda data: (100_000).to_bytes(8, "little") + b"[" * 100_000,
    "an entry without offsets": lambda data: header({"a": {"dtype": "F32", "shape": [2]}}),
    "one offset": lambda data: header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0]}}),
    "negative offsets": lambda data: header(
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}
    ),
    "negative shape": lambda data: header(
        {"a": {"dtype": "F32", "shape": [-2, -1], "data_offsets": [0, 8]}}
    ),
    "beyond the end": lambda data: header(
        {"a": {"dtype": "F32", "shape": [99], "data_offsets": [0, 396]}}
    ),
    "another size": lambda data: header(
        {"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}
    ),
    "another dtype": lambda data: header(
        {"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files(small, tmp_path, damage):
    data = (small / SINGLE).read_bytes()
    file = tmp_path / SINGLE
    file.write_bytes(DAMAGE[damage](data))
    with pytest.raises(CheckpointError, match=re.escape(str(file))):
        TensorFile(file)


@pytest.mark.parametrize(
    ("change", "texts"),
    [
        (lambda raw: raw.update(model_type="llava"), ["'llava' is not supported", "qwen2_vl"]),
        (lambda raw: raw.pop("model_type"), ["no model_type"]),
        (lambda raw: raw["text_config"].pop("hidden_size"), ["config.json has no 'hidden_size'"]),
        (
            lambda raw: raw["text_config"].update(use_sliding_window=True),
            ["use_sliding_window is not supported"],
        ),
        (
            lambda raw: raw["text_config"]["rope_parameters"].update(rope_type="yarn"),
            ["'yarn' is not supported"],
        ),
        (
            lambda raw: raw["text_config"]["rope_parameters"].update(mrope_section=[1, 1, 1]),
            ["mrope_section"],
        ),
    ],
)
def test_configs_that_are_refused(small, tmp_path, change, texts):
    out = copy(small, tmp_path / "m")
    raw = json.loads((out / "config.json").read_text())
    change(raw)
    (out / "config.json").write_text(json.dumps(raw))
    refused(out, *texts)


def test_config_file_missing_or_broken(small, tmp_path):
    out = copy(small, tmp_path / "m")
    (out / "config.json").write_text('{"model_type": ')
    refused(out, str(out / "config.json"), "not valid JSON")
    (out / "config.json").write_text("[]")
    refused(out, str(out / "config.json"), "not a JSON object")
    (out / "config.json").write_text("{}")
    refused(out, str(out / "config.json"), "no model_type")
    (out / "config.json").unlink()
    refused(out, "config.json is missing")


def test_hub_id_without_network():
    text = refused("jaxr1-nobody/no-such-model", "could not be fetched")
    assert "hf download jaxr1-nobody/no-such-model --include" in text and "'*.safetensors'" in text


@pytest.mark.parametrize(
    "path", ["no_such_preset", "./no/where", "/no/such/folder", "tests/nothing"]
)
def test_paths_that_are_nothing(path):
    refused(path, repr(path), "no directory, no preset and no hub id")


# ---------------------------------------------------------------- presets


def test_preset_is_made_once_and_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXR1_CACHE", str(tmp_path))
    folder = resolve("tiny")
    assert folder.parent == tmp_path and [p.name for p in tmp_path.iterdir()] == [folder.name]
    before = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.iterdir()}
    monkeypatch.setattr(presets, "write_preset", lambda *a: pytest.fail("made again"))
    assert resolve("tiny") == folder
    assert before == {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.iterdir()}
    _, params = jaxr1.load_model("tiny")
    assert sum(x.size for x in flatten(params).values()) == presets.preset_parameters("tiny")
    assert 1e6 < presets.preset_parameters("tiny") < 3e6

    from transformers import Qwen2VLForConditionalGeneration

    model, info = Qwen2VLForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert model.num_parameters() == presets.preset_parameters("tiny")


RACE = """
import sys, time
from jaxr1.models import presets
write = presets.write_preset
def slow(*args):
    write(*args)
    print("made", flush=True)
    sys.stdin.readline()  # both have made one before either moves it into place
presets.write_preset = slow
print(presets.preset_directory("tiny"), flush=True)
"""


def test_two_processes_make_a_preset(tmp_path):
    env = dict(os.environ, JAXR1_CACHE=str(tmp_path), JAX_PLATFORMS="cpu")
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    command = [sys.executable, "-c", RACE]
    pair = [subprocess.Popen(command, env=env, **pipes) for _ in range(2)]
    for process in pair:
        assert process.stdout.readline() == "made\n"
    visible = [p for p in tmp_path.iterdir() if not p.name.startswith(".")]
    assert not visible, "not before it is whole"
    ends = [process.communicate("\n", timeout=60)[0].strip() for process in pair]
    assert [p.returncode for p in pair] == [0, 0] and ends[0] == ends[1]
    assert [str(p) for p in tmp_path.iterdir()] == [ends[0]], "nothing else is left behind"
    assert (tmp_path / ends[0] / SINGLE).is_file()
