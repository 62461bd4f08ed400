"""Each family beyond its logits: hub layouts, greedy text, gradients, video, frozen features."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from reference import (
    FAMILIES,
    Checkpoint,
    given,
    hf_arrays,
    learner,
    make_checkpoint,
    mixed_prompts,
    pixel_values,
    random_image,
    torch_inputs,
)

import jaxr1
from jaxr1.checkpoints.tensors import CheckpointError, open_checkpoint, write_checkpoint
from jaxr1.inputs.batch import fitting_buckets, make_batch
from jaxr1.inputs.template import PromptError
from jaxr1.models.vlm import prompt_logits
from jaxr1.nn.params import flatten
from jaxr1.rl import CrossEntropy, Ppo
from jaxr1.rl.update import gradients, score
from jaxr1.rl.work import Work
from jaxr1.sampling.features import with_features


@pytest.fixture(scope="module", params=FAMILIES)
def world(request, tmp_path_factory, module_seed):
    folder = tmp_path_factory.mktemp("family") / "m"
    return Checkpoint.make(folder, module_seed, request.param)


def video_prompt(rng, frames: int, fps: float = 3.0):
    h, w = rng.integers(30, 90, 2)
    clip = {
        "type": "video",
        "video": rng.integers(0, 256, (frames, h, w, 3), dtype=np.uint8),
        "fps": fps,
    }
    parts = [{"type": "text", "text": "What happens?"}, clip, {"type": "text", "text": " one two"}]
    return jaxr1.Prompt([{"role": "user", "content": parts}])


def logits(model, params, encoded) -> np.ndarray:
    """Ours for one encoded prompt."""
    batch = make_batch([encoded], fitting_buckets([encoded], 8), model.media, rows=1)
    return np.asarray(prompt_logits(model, params, batch))[0, : len(encoded)]


# ---------------------------------------------------------------- layouts on the hub


def renamed(folder, out, rename, change):
    """A copy of a directory: `rename(tensors)` for its tensors, `change(raw)` for config.json."""
    files = open_checkpoint(folder)
    tensors = rename({name: np.array(files[name].read(name)) for name in files})
    out.mkdir()
    for file in folder.iterdir():
        if file.suffix != ".safetensors" and file.name != "config.json":
            (out / file.name).write_bytes(file.read_bytes())
    raw = json.loads((folder / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(change(raw)))
    write_checkpoint(out, list(tensors.items()))
    return out


def same_parameters(a: dict, b: dict):
    a, b = flatten(a), flatten(b)
    assert a.keys() == b.keys()
    for path in a:
        np.testing.assert_array_equal(a[path], b[path], err_msg=path)


def test_names_of_the_hub(world, tmp_path):
    """A random checkpoint renamed to the other layout gives the same parameters."""
    model, params, processor, folder = world.model, world.params, world.processor, world.folder
    arrays = hf_arrays(model.table("v5"), flatten(params))
    other = renamed(folder, tmp_path / "other", lambda _: arrays, lambda raw: raw)
    same_parameters(jaxr1.load_model(other)[1], params)
    if model.family.startswith("qwen2"):  # hub files keep the text settings at the top
        flat = lambda raw: {**raw.pop("text_config"), **raw, "model_type": model.family}
        jaxr1.save_model(model, params, processor, tmp_path / "saved")
        assert "visual.patch_embed.proj.weight" in open_checkpoint(tmp_path / "saved")
        old = renamed(tmp_path / "saved", tmp_path / "old", lambda tensors: tensors, flat)
        again, loaded = jaxr1.load_model(old)
        same_parameters(loaded, params)
        assert (again.text, again.vision) == (model.text, model.vision)


def original_names(tensors: dict, decoder: str) -> dict:
    """The tensors of a small InternVL under the names of the hub's original files, fused as there.

    Written out apart from the package's own tables.
    """
    out = {}
    tensors = {name.removeprefix("model."): x for name, x in tensors.items()}
    take = lambda name: tensors.pop(name)
    tower = {
        "cls_token": "class_embedding",
        "patch_embeddings.projection.weight": "patch_embedding.weight",
        "patch_embeddings.projection.bias": "patch_embedding.bias",
        "position_embeddings": "position_embedding",
    }
    for mine, theirs in tower.items():
        out[f"vision_model.embeddings.{theirs}"] = take(f"vision_tower.embeddings.{mine}")
    block = {
        "attention.projection_layer": "attn.proj",
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }
    for i in range(2):
        a, b = f"vision_tower.encoder.layer.{i}.", f"vision_model.encoder.layers.{i}."
        for w in ("weight", "bias"):
            qkv = [take(f"{a}attention.{x}_proj.{w}") for x in "qkv"]
            out[f"{b}attn.qkv.{w}"] = np.concatenate(qkv)
            for mine, theirs in block.items():
                out[f"{b}{theirs}.{w}"] = take(f"{a}{mine}.{w}")
        out[f"{b}ls1"], out[f"{b}ls2"] = take(f"{a}lambda_1"), take(f"{a}lambda_2")
    for mine, theirs in {"layer_norm": "0", "linear_1": "1", "linear_2": "3"}.items():
        for w in ("weight", "bias"):
            out[f"mlp1.{theirs}.{w}"] = take(f"multi_modal_projector.{mine}.{w}")
    text = {name.removeprefix("language_model."): x for name, x in tensors.items()}
    if decoder == "internlm2":
        text = internlm2_names(text)
    return out | {f"language_model.{name}": x for name, x in text.items()}


def internlm2_names(text: dict) -> dict:
    """The tensors of a Llama as InternLM2 has them: queries, keys and values in one, by group."""
    out = {
        "model.tok_embeddings.weight": text["model.embed_tokens.weight"],
        "model.norm.weight": text["model.norm.weight"],
        "output.weight": text["lm_head.weight"],
    }
    layer = {
        "self_attn.o_proj": "attention.wo",
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.up_proj": "feed_forward.w3",
        "mlp.down_proj": "feed_forward.w2",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    groups = 2
    for i in range(3):
        at = f"model.layers.{i}."
        parts = [np.split(text[f"{at}self_attn.{x}_proj.weight"], groups) for x in "qkv"]
        rows = []
        for q, k, v in zip(*parts, strict=True):
            rows += [q, k, v]
        out[f"{at}attention.wqkv.weight"] = np.concatenate(rows)
        for mine, theirs in layer.items():
            out[f"{at}{theirs}.weight"] = text[f"{at}{mine}.weight"]
    return out


def original_config(raw: dict, decoder: str) -> dict:
    """The config.json of the hub's original InternVL files."""
    text = raw["text_config"] | {"model_type": decoder, "rope_theta": 1e4}
    text.pop("rope_parameters")
    if decoder == "internlm2":
        text["rope_scaling"] = {"type": "dynamic", "factor": 2.0}
    vision = {
        "hidden_size": raw["vision_config"]["hidden_size"],
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": raw["vision_config"]["intermediate_size"],
        "image_size": 56,
        "patch_size": 14,
        "qkv_bias": True,
        "qk_normalization": False,
        "norm_type": "layer_norm",
        "layer_norm_eps": 1e-6,
    }
    return {
        "model_type": "internvl_chat",
        "architectures": ["InternVLChatModel"],
        "auto_map": {"AutoModel": "modeling_internvl_chat.InternVLChatModel"},
        "llm_config": text,
        "vision_config": vision,
        "downsample_ratio": 0.5,
        "ps_version": "v2",
        "select_layer": -1,
        "force_image_size": 56,
        "max_dynamic_patch": 4,
        "min_dynamic_patch": 1,
        "use_thumbnail": True,
        "dynamic_image_size": True,
        "template": "internvl2_5",
        "tie_word_embeddings": False,
    }


@pytest.mark.parametrize("decoder", ["internlm2", "qwen2", "llama"])
def test_original_internvl_repository(tmp_path, module_seed, rng, decoder):
    """The layout of the hub's original files, fused matrices included.

    The remote code that they name is never run.
    """
    import torch

    kind = "llama" if decoder == "internlm2" else decoder
    folder = tmp_path / "hf"
    reference = make_checkpoint(
        folder, module_seed, "internvl", decoder=kind, heads=4, kv_heads=2, tied=False
    )
    ours, params = jaxr1.load_model(folder)
    original = renamed(
        folder,
        tmp_path / "original",
        lambda tensors: original_names(tensors, decoder),
        lambda raw: original_config(raw, decoder),
    )
    (original / "modeling_internvl_chat.py").write_text("raise SystemExit('remote code was run')")
    model, loaded = jaxr1.load_model(original)
    same_parameters(loaded, params)
    processor = jaxr1.load_processor(original)
    assert processor.template == "internvl2_5"
    assert processor.images == jaxr1.load_processor(folder).images
    [encoded] = [processor.encode(p) for p in mixed_prompts(rng, 1, (2,))]
    with torch.no_grad():
        theirs = reference(**torch_inputs(encoded, ours)).logits[0].numpy()
    np.testing.assert_allclose(logits(model, loaded, encoded), theirs, atol=1e-4, rtol=0)
    jaxr1.save_model(model, loaded, processor, tmp_path / "again")
    same_parameters(jaxr1.load_model(tmp_path / "again")[1], params)
    written = open_checkpoint(tmp_path / "again")
    for name, file in open_checkpoint(original).items():
        np.testing.assert_array_equal(
            np.array(written[name].read(name)), np.array(file.read(name)), err_msg=name
        )
    for file in ("config.json", "preprocessor_config.json"):
        settings = json.loads((original / file).read_text())
        assert json.loads((tmp_path / "again" / file).read_text()).items() >= settings.items()
    # Bounds given on loading are those of the export, in either layout's own keys.
    for layout in (original, folder):
        bounded = jaxr1.load_processor(layout, max_pixels=2 * 56 * 56)
        assert (bounded.images.min_tiles, bounded.images.max_tiles) == (1, 2)
        assert processor.images.max_tiles != 2
        out = jaxr1.save_model(
            *jaxr1.load_model(layout), bounded, tmp_path / f"bounded-{layout.name}"
        )
        assert jaxr1.load_processor(out).images == bounded.images


# ---------------------------------------------------------------- text, gradients


def test_greedy_text_equals_transformers(world, rng):
    """64 tokens, media ids suppressed there too.

    A step whose two best logits are within 1e-4 is not compared.
    """
    import torch

    reference, processor = world.reference, world.processor
    model, params = world.model, world.params
    prompts = mixed_prompts(rng, 4, (0, 1, 3, 2))
    groups = jaxr1.generate(model, params, processor, prompts, max_new_tokens=64, temperature=0.0)
    compared = total = 0
    for prompt, [ours] in zip(prompts, groups, strict=True):
        encoded = processor.encode(prompt)
        ids = ours.token_ids
        with torch.no_grad():
            whole = reference(**torch_inputs(encoded, model, ids)).logits[0]
        theirs = whole[len(encoded) - 1 : -1].clone()
        theirs[:, list(processor.media_token_ids)] = -1e30
        best = theirs.topk(2, -1)
        if len(ids) != 64:
            assert ours.finish_reason == "stop" and int(ids[-1]) in processor.stop_token_ids
        total += len(ids)
        for step, token in enumerate(ids):
            if best.values[step, 0] - best.values[step, 1] >= 1e-4:
                assert int(token) == int(best.indices[step, 0]), f"step {step}"
                compared += 1
    assert compared >= 0.9 * total > 0


def test_gradients_equal_torch(world, rng):
    """d loss / d parameters of tower, merger and decoder against torch autograd."""
    import torch

    reference, processor = world.reference, world.processor
    model, params = world.model, world.params
    prompts = [processor.encode(p) for p in mixed_prompts(rng, 2, (2, 1))]
    tokens = [
        [rng.integers(20, 400, n).astype(np.int32) for n in (5, 3)],
        [rng.integers(20, 400, 4).astype(np.int32)],
    ]
    weights = [[float(w) for w in rng.uniform(0.2, 1, len(row))] for row in tokens]
    buckets = fitting_buckets(prompts, 8)
    policy = learner(model, processor, (CrossEntropy(),), buckets)
    objective = dataclasses.replace(policy.objective, forbidden=())
    policy = dataclasses.replace(policy, objective=objective)
    sums = gradients(policy, policy.init(params), given(prompts, tokens, weight=weights), Work())
    reference.zero_grad()
    total = 0.0
    for prompt, row, weight in zip(prompts, tokens, weights, strict=True):
        for response, w in zip(row, weight, strict=True):
            whole = reference(**torch_inputs(prompt, model, response)).logits[0]
            logp = torch.log_softmax(whole[len(prompt) - 1 : -1], -1)
            ids = torch.tensor(response.astype(np.int64))
            total = total - w * logp.gather(1, ids[:, None]).sum()
    total.backward()
    theirs = {name: p.grad.numpy() for name, p in reference.named_parameters()}
    mine = hf_arrays(model.table("v5"), flatten(sums.grads))
    norm = float(np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in theirs.values())))
    for part in ("decoder", "vision", "merger"):
        grads = jax.tree.leaves(sums.grads[part])
        assert max(float(np.abs(np.asarray(x)).max()) for x in grads) > 1e-5 * norm
    for name, ours in mine.items():
        assert np.abs(ours - theirs[name]).max() <= 2e-5 * norm, name


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl"])
@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("outer", [True, False, None])
@pytest.mark.parametrize("nested", [True, False])
def test_a_head_is_tied_where_the_files_hold_none(
    tmp_path, module_seed, family, outer, nested, stored
):
    """Files of every age: outer and nested setting need not agree, and one may be left out."""
    shallow = dict(layers=1, depth=1, full=(0,), deep=(0,))
    make_checkpoint(tmp_path / "m", module_seed, family, tied=not stored, **shallow)
    file = tmp_path / "m" / "config.json"
    raw = json.loads(file.read_text())
    raw.pop("tie_word_embeddings", None)
    if outer is not None:
        raw["tie_word_embeddings"] = outer
    raw["text_config"]["tie_word_embeddings"] = nested
    file.write_text(json.dumps(raw))
    # What transformers itself would overwrite, or make up: one of its own that is to be tied, none
    # where both promise one.
    refused = ""
    if stored and outer:
        refused = "tensors that differ"
    if not stored and outer is False and nested is False:
        refused = "missing tensors"
    if refused:
        with pytest.raises(CheckpointError, match=refused):
            jaxr1.load_model(tmp_path / "m")
        return
    model, params = jaxr1.load_model(tmp_path / "m")
    assert model.text.tied == (not stored) and ("head" in params["decoder"]) == stored


# ---------------------------------------------------------------- video, mixed batches


def test_frames_of_qwen3_are_told_by_their_times(tmp_path, module_seed):
    """Each pair of frames is a picture of its own after the mean of its two times.

    So it is in the released processor. (transformers 5.24 keeps the outer vision_start and
    vision_end around all of them; the model was not trained so.)
    """
    make_checkpoint(tmp_path / "m", module_seed, "qwen3_vl")
    processor = jaxr1.load_processor(tmp_path / "m")
    clip = np.zeros((4, 56, 56, 3), np.uint8)
    content = [
        {"type": "text", "text": "Look:"},
        {"type": "video", "video": clip, "fps": 2.0},
        {"type": "text", "text": "What?"},
    ]
    encoded = processor.encode(jaxr1.Prompt([{"role": "user", "content": content}]))
    text = processor.tokenizer.decode(encoded.token_ids)
    pads = "<|video_pad|>" * (int((encoded.media_index >= 0).sum()) // 2)
    pair = f"<|vision_start|>{pads}<|vision_end|>"
    assert f"Look:<0.2 seconds>{pair}<1.2 seconds>{pair}What?" in text and len(encoded.grids) == 2


def positions_by_the_paper(encoded, step: float) -> np.ndarray:
    """int[n, 3]: M-RoPE positions by arXiv:2409.12191, section 2.1, token by token.

    What follows a picture or a clip begins at the largest position so far, plus one. Sections of a
    prompt are its spans here; those of a clip in one piece hold all its frame pairs.
    """
    _, rows, columns = (side // 2 for side in encoded.grids[0])
    found = []
    largest = -1
    begins = {start: end for start, end in encoded.spans}
    at = 0
    while at < len(encoded):
        first = largest + 1
        if at not in begins:
            found.append((first, first, first))
        for number in range(begins.get(at, at) - at):
            frame, place = divmod(number, rows * columns)
            time = int(np.float32(frame) * np.float32(step))
            row, column = divmod(place, columns)
            found.append((first + time, first + row, first + column))
        largest = max(map(max, found))
        at = len(found)
    return np.asarray(found)


@pytest.mark.parametrize(("family", "fps"), [("qwen2_vl", 2.0), ("qwen2_5_vl", 1.0)])
def test_text_behind_a_clip_begins_after_its_time(tmp_path, rng, family, fps):
    """Where a clip lasts longer than its sides are wide, and how transformers differs there.

    The last two lines hold for transformers 5.3 and later, which begin after rows and columns; the
    authors' code and 4.57 equal us. Where they fail it has been mended, and the explicit positions
    of the other tests can go.
    """
    import torch

    reference = make_checkpoint(tmp_path / "m", 0, family)
    processor = jaxr1.load_processor(tmp_path / "m")
    clip = {"type": "video", "video": np.zeros((16, 56, 84, 3), np.uint8), "fps": fps}
    plain = processor.videos.replace(fps=None, min_pixels=28 * 28, max_pixels=84 * 84)
    parts = [{"type": "text", "text": "see"}, clip, {"type": "text", "text": "what happens?"}]
    prompt = jaxr1.Prompt([{"role": "user", "content": parts}])
    encoded = dataclasses.replace(processor, videos=plain).encode(prompt)
    [(start, end)] = encoded.spans
    first = encoded.position[start, 0]
    longest = {"qwen2_vl": 7, "qwen2_5_vl": 28}[family]  # 8 frame pairs, the latter 4 apart
    assert encoded.position[start:end].max() == first + longest
    assert encoded.position[end].tolist() == [first + longest + 1] * 3
    assert encoded.next_position == first + longest + 1 + len(encoded) - end

    _, h, w = encoded.grids[0]
    theirs, _ = reference.model.get_rope_index(
        torch.tensor(encoded.token_ids[None].astype(np.int64)),
        mm_token_type_ids=torch.tensor((encoded.media_index >= 0)[None].astype(np.int32) * 2),
        video_grid_thw=torch.tensor([[8, h, w]]),
        **({"second_per_grid_ts": torch.tensor([2 / fps])} if family == "qwen2_5_vl" else {}),
    )
    np.testing.assert_array_equal(encoded.position[:end].T, theirs[:, 0, :end].numpy())
    assert theirs[0, 0, end] == first + max(h, w) // 2 < encoded.position[end, 0]


@pytest.mark.parametrize("frames", [2, 5, 16])
def test_video_equals_transformers(world, rng, frames):
    import torch

    reference, processor = world.reference, world.processor
    model, params = world.model, world.params
    if model.family == "internvl":
        with pytest.raises(PromptError, match="takes none"):
            processor.encode(video_prompt(rng, frames))
        return
    small = processor.videos.replace(fps=None, max_pixels=64 * 64 * 16, min_pixels=28 * 28)
    short = dataclasses.replace(processor, videos=small)
    fps = float(rng.uniform(1, 6))
    encoded = short.encode(video_prompt(rng, frames, fps))
    t = -(-frames // 2)
    assert len(encoded.grids) == t
    h, w = encoded.grids[0][1:]
    inputs = {
        "input_ids": torch.tensor(encoded.token_ids[None].astype(np.int64)),
        "mm_token_type_ids": torch.tensor((encoded.media_index >= 0)[None].astype(np.int32) * 2),
        "pixel_values_videos": torch.tensor(
            pixel_values(encoded.patches, encoded.levels, model.vision.patch_values)
        ),
        "video_grid_thw": torch.tensor([[t, h, w]]),
    }
    if model.family == "qwen2_5_vl":
        inputs["second_per_grid_ts"] = torch.tensor([2 / fps])
    # Two positions in a second of Qwen2.5-VL's; one for each frame pair of Qwen2-VL's.
    step = 2 * 2 / fps if model.family == "qwen2_5_vl" else 1.0
    position = positions_by_the_paper(encoded, step)
    np.testing.assert_array_equal(encoded.position, position)
    assert encoded.next_position == position.max() + 1
    inputs["position_ids"] = torch.tensor(position.T[:, None].astype(np.int64))
    with torch.no_grad():
        theirs = reference(**inputs).logits[0].numpy()
    np.testing.assert_allclose(logits(model, params, encoded), theirs, atol=1e-4, rtol=0)


def test_mixed_batch_is_as_good_as_alone(world, rng):
    """Text only, one image, several and a video together, permuted and split: nothing changes."""
    model, params, processor = world.model, world.params, world.processor
    prompts = mixed_prompts(rng, 5, (0, 1, 4, 1, 2))
    if processor.videos is not None:
        prompts.append(video_prompt(rng, 4))
    tokens = [[rng.integers(20, 400, int(rng.integers(2, 9)))] for _ in prompts]
    run = lambda prompts, tokens: jaxr1.score(model, params, processor, prompts, tokens)
    alone = [run([p], [t])[0][0] for p, t in zip(prompts, tokens, strict=True)]
    order = rng.permutation(len(prompts))
    together = run([prompts[i] for i in order], [tokens[i] for i in order])
    half = run(prompts[:3], tokens[:3])
    for place, i in enumerate(order):
        np.testing.assert_allclose(together[place][0], alone[i], atol=2e-5)
    for i in range(3):
        np.testing.assert_allclose(half[i][0], alone[i], atol=2e-5)


@pytest.mark.parametrize("frozen", [("vision",), ("vision", "merger")])
def test_frozen_features_are_the_same_model(world, rng, frozen):
    """What a frozen tower (and merger) gave stands in for pixels, deep features too."""
    model, params, processor = world.model, world.params, world.processor
    prompts = [processor.encode(p) for p in mixed_prompts(rng, 4, (0, 1, 3, 2))]
    tokens = [[rng.integers(20, 400, 6).astype(np.int32)] for _ in prompts]
    buckets = fitting_buckets(prompts, 8)
    policy, episodes = learner(model, processor, (Ppo(),), buckets), given(prompts, tokens)
    scored = lambda params: score(policy, params, episodes, episodes.valid_bg, Work())["logp"]
    whole = scored(params)
    kept = with_features(model, params, prompts, buckets, frozen)
    assert {p.held for p in kept if p.grids} == {"merger" if len(frozen) == 2 else "tower"}
    # The frozen parameters are not read any more: other ones give the same.
    other = dict(params)
    for part in frozen:
        other[part] = jax.tree.map(lambda x: x * np.nan, params[part])
    episodes.views["policy"] = kept
    np.testing.assert_allclose(whole, scored(other), atol=1e-5)


def test_swapping_the_image_changes_the_logprobs(world, rng):
    model, params, processor = world.model, world.params, world.processor
    image = random_image(rng, 40, 80)
    tokens = [[rng.integers(20, 300, 5)]]

    def scored(image):
        content = [{"type": "image", "image": image}, {"type": "text", "text": "What"}]
        prompt = jaxr1.Prompt([{"role": "user", "content": content}])
        return jaxr1.score(model, params, processor, [prompt], tokens)[0][0]

    one, other = scored(image), scored(image.transpose(1))
    assert np.abs(one - other).max() > 1e-3
