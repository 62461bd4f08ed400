"""`python -m jaxr1.convert`: what a GGUF file says is what transformers loads.

Equal to the last bit of what was dequantised.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxr1.checkpoints.gguf import convert_gguf
from jaxr1.checkpoints.tensors import CheckpointError, open_checkpoint
from jaxr1.convert import main

gguf = pytest.importorskip("gguf")

D, F, N, K, H, LAYERS = 64, 96, 4, 2, 16, 2
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
)


@dataclasses.dataclass
class Vocabulary:
    """Tokens, their types, and what a tokenizer of the kind needs besides."""

    tokens: list[str]
    types: list[int]
    merges: list[str] = dataclasses.field(default_factory=list)
    scores: list[float] = dataclasses.field(default_factory=list)


def byte_vocabulary() -> Vocabulary:
    """A byte-level BPE: specials first, as in SmolLM2."""
    from tokenizers.pre_tokenizers import ByteLevel

    merges = ["t h", "th e", "Ġ the", "1 2", "a b"]
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet())]
    kinds = [3] * 3 + [1] * 256
    for merge in merges:
        tokens.append(merge.replace(" ", ""))
        kinds.append(1)
    return Vocabulary([*tokens, "<tool>"], [*kinds, 4], merges=merges)


def piece_vocabulary() -> Vocabulary:
    """A sentencepiece vocabulary as Llama 2's."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    pieces = [*"▁abcdefghijklmnopqrstuvwxyz", "▁a", "th", "▁th", "▁the"]
    kinds = [2, 3, 3] + [6] * 256 + [1] * len(pieces)
    scores = [0.0] * len(tokens) + [-float(i) for i in range(len(pieces), 0, -1)]
    return Vocabulary([*tokens, *pieces], kinds, scores=scores)


def permute(array, heads):
    """What llama.cpp's converter does to queries and keys."""
    return array.reshape(heads, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def make_model(kind: str, tied: bool, vocab: int, seed: int):
    """A random transformers model: the known source of the file."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    sizes = dict(
        hidden_size=D,
        intermediate_size=F,
        num_hidden_layers=LAYERS,
        num_attention_heads=N,
        num_key_value_heads=K,
        vocab_size=vocab,
        tie_word_embeddings=tied,
        rms_norm_eps=1e-5,
        rope_theta=50000.0,
        max_position_embeddings=128,
    )
    if kind == "llama":
        made = LlamaForCausalLM(LlamaConfig(**sizes))
    else:
        made = Qwen2ForCausalLM(Qwen2Config(**sizes))
    for p in made.parameters():
        p.data = torch.randn_like(p) * 0.2
    return made.eval()


def gguf_name(kind: str, name: str) -> str:
    """The name in the file of a Hugging Face tensor, as llama.cpp's own converter has it."""
    architecture = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2}[kind]
    names = gguf.get_tensor_name_map(architecture, LAYERS)
    return names.get_name(name, try_suffixes=(".weight", ".bias"))


def close(writer) -> None:
    """Writes what was added."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_gguf(path, kind="llama", tied=True, pieces=False, quant=None, seed=0, change=None):
    """A file as llama.cpp writes it, and the tensors that a reader should get out of it.

    The tensors go by their Hugging Face names.
    """
    vocabulary = piece_vocabulary() if pieces else byte_vocabulary()
    model = make_model(kind, tied, len(vocabulary.tokens), seed)
    writer = gguf.GGUFWriter(path, kind)
    writer.add_context_length(128)
    writer.add_embedding_length(D)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(F)
    writer.add_head_count(N)
    writer.add_head_count_kv(K)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(50000.0)
    if kind == "llama":
        writer.add_rope_dimension_count(H)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if pieces:
        writer.add_tokenizer_model("llama")
        writer.add_token_scores(vocabulary.scores)
        writer.add_unk_token_id(0)
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm" if kind == "llama" else "qwen2")
        writer.add_token_merges(vocabulary.merges)
        writer.add_pad_token_id(2)
        writer.add_add_bos_token(False)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    expected = {}
    for name, p in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        own, x = gguf_name(kind, name), p.numpy()
        # Llama's queries and keys lie in another order of rows; 0 heads: as they are.
        heads = 0
        if kind == "llama" and "attn_q" in own:
            heads = N
        if kind == "llama" and "attn_k" in own:
            heads = K
        stored = permute(x, heads) if heads else x
        expected[name] = x
        if quant is None or x.ndim != 2:
            writer.add_tensor(own, stored)
            continue
        data = gguf.quantize(stored, quant)
        writer.add_tensor(own, data, raw_dtype=quant)
        expected[name] = gguf.dequantize(data, quant)
        if heads:
            rows = expected[name].reshape(heads, H // 2, 2, D)
            expected[name] = rows.swapaxes(1, 2).reshape(x.shape)
    if change:
        change(writer)
    close(writer)
    return model, expected


CASES = {
    "llama": {},
    "untied": {"tied": False},
    "pieces": {"pieces": True, "tied": False},
    "qwen2": {"kind": "qwen2"},
    "q8_0": {"quant": "Q8_0"},
    "q4_1": {"quant": "Q4_1", "tied": False},
    "f16": {"quant": "F16", "kind": "qwen2"},
}


@dataclasses.dataclass
class Converted:
    """A converted directory, and what the file was made of."""

    out: Path
    pieces: bool
    model: Any
    expected: dict[str, np.ndarray]


@pytest.fixture(scope="module", params=CASES)
def converted(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    case = dict(CASES[request.param])
    if "quant" in case:
        case["quant"] = gguf.GGMLQuantizationType[case["quant"]]
    file, out = folder / "m.gguf", folder / "out"
    model, expected = write_gguf(file, **case)
    assert main(["--gguf", str(file), "--out", str(out), "--dtype", "float32"]) == 0
    return Converted(out, case.get("pieces", False), model, expected)


def test_every_tensor(converted):
    """What was written, dequantised, in Hugging Face's order of rows."""
    found = open_checkpoint(converted.out)
    assert set(found) == set(converted.expected)
    for name, x in converted.expected.items():
        np.testing.assert_array_equal(found[name].read(name), x, err_msg=name)


def test_transformers_computes_the_same(converted, rng):
    """Logits of the directory: those of the source with the dequantised weights in it."""
    import torch
    from transformers import AutoModelForCausalLM

    model = converted.model
    weights = {name: torch.tensor(x) for name, x in converted.expected.items()}
    model.load_state_dict(weights, strict=False)
    ours, info = AutoModelForCausalLM.from_pretrained(converted.out, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    ids = torch.tensor(rng.integers(0, model.config.vocab_size, (2, 20)))
    with torch.no_grad():
        logits = ours.eval()(ids).logits
        np.testing.assert_array_equal(logits.numpy(), model(ids).logits.numpy())


def test_tokenizer_and_configs(converted):
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    out, source = converted.out, converted.model.config
    tokenizer = AutoTokenizer.from_pretrained(out)
    messages = [{"role": "user", "content": "the 12"}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False)
    assert rendered == "<|im_start|>user\nthe 12<|im_end|>\n"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    text = "the 12 abé the\n\n"
    if not converted.pieces:
        text += "<tool> x<|im_end|>"
    ids = tokenizer(text)["input_ids"]
    names = tokenizer.convert_ids_to_tokens(ids)
    if converted.pieces:
        assert names[:4] == ["<s>", "▁the", "▁", "<0x31>"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    else:
        assert names[:4] == ["the", "Ġ", "1", "2"]
        assert names[-1] == "<|im_end|>" and "<tool>" in names
        assert tokenizer.decode(ids) == text
    config = AutoConfig.from_pretrained(out)
    for key in ("hidden_size", "num_key_value_heads", "rms_norm_eps", "tie_word_embeddings"):
        assert getattr(config, key) == getattr(source, key), key
    assert getattr(config, "head_dim", H) == getattr(source, "head_dim", H)
    assert config.vocab_size == source.vocab_size
    assert json.loads((out / "config.json").read_text())["rope_theta"] == 50000.0
    assert GenerationConfig.from_pretrained(out).eos_token_id == 2


def test_default_dtype(tmp_path):
    write_gguf(tmp_path / "m.gguf")
    assert main(["--gguf", str(tmp_path / "m.gguf"), "--out", str(tmp_path / "out")]) == 0
    assert {f.kind(n) for n, f in open_checkpoint(tmp_path / "out").items()} == {"BF16"}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_what_is_refused(tmp_path, capsys):
    """Each with the file and the reason; nothing is written."""
    path, out = tmp_path / "m.gguf", tmp_path / "out"

    def refused(*texts):
        with pytest.raises(CheckpointError) as caught:
            convert_gguf(path, out)
        for text in (str(path), *texts):
            assert text in str(caught.value), str(caught.value)
        assert not out.exists()

    refused("no such file")
    path.write_bytes(b"GGUF" + b"\xff" * 100)
    refused("not a GGUF file, or damaged")
    assert main(["--gguf", str(path), "--out", str(out)]) == 1
    assert "error:" in capsys.readouterr().err
    write_gguf(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    refused("not a GGUF file, or damaged")
    write_gguf(path, change=lambda w: w.add_tensor("rope_freqs.weight", np.ones(8, np.float32)))
    refused("unexpected tensors (1): rope_freqs.weight")
    write_gguf(path, change=lambda w: w.add_expert_count(8))
    refused("settings that are not supported: expert_count = 8")
    write_gguf(path, change=lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN))
    refused("rope.scaling.type = yarn")

    def shorter(writer):
        for tensors in writer.tensors:
            del tensors["blk.1.ffn_up.weight"]

    write_gguf(path, change=shorter)
    refused("missing tensors (1): blk.1.ffn_up.weight")
    writer = gguf.GGUFWriter(path, "mamba")
    writer.add_tensor("x", np.zeros(4, np.float32))
    close(writer)
    refused("architecture 'mamba' is not supported", "llama, qwen2")
