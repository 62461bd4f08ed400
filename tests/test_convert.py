"""`python -m jaxr1.convert`: what a GGUF file says is what transformers loads, to the last bit of
what was dequantised.
"""

import json

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


def byte_vocabulary():
    """(tokens, types, merges) of a byte-level BPE: specials first, as in SmolLM2."""
    from tokenizers.pre_tokenizers import ByteLevel

    merges = ["t h", "th e", "Ġ the", "1 2", "a b"]
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet())]
    kinds = [3] * 3 + [1] * 256
    for merge in merges:
        tokens.append(merge.replace(" ", ""))
        kinds.append(1)
    return [*tokens, "<tool>"], [*kinds, 4], merges


def piece_vocabulary():
    """(tokens, types, scores) of a sentencepiece vocabulary as Llama 2's."""
    tokens = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{i:02X}>" for i in range(256)),
        *"▁abcdefghijklmnopqrstuvwxyz",
        "▁a",
        "th",
        "▁th",
        "▁the",
    ]
    kinds = [2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 259)
    return tokens, kinds, [0.0] * 259 + [-float(i) for i in range(len(tokens) - 259, 0, -1)]


def permute(array, heads):
    """What llama.cpp's converter does to queries and keys."""
    return array.reshape(heads, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def make_model(kind: str, tied: bool, vocab: int, seed: int):
    """A random transformers model: the known source of the file."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    config, model = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    }[kind]
    made = model(
        config(hidden_size=D, intermediate_size=F, num_hidden_layers=LAYERS, num_attention_heads=N,
               num_key_value_heads=K, vocab_size=vocab, tie_word_embeddings=tied, rms_norm_eps=1e-5, rope_theta=50000.0,
               max_position_embeddings=128)
    )  # fmt: skip
    for p in made.parameters():
        p.data = torch.randn_like(p) * 0.2
    return made.eval()


def hf_names() -> dict[str, str]:
    from jaxr1.checkpoints.gguf import LAYER, TOP

    back = {new: old for old, new in TOP.items()}
    for i in range(LAYERS):
        for old, new in LAYER.items():
            back |= {
                f"model.layers.{i}.{new}.{e}": f"blk.{i}.{old}.{e}" for e in ("weight", "bias")
            }
    return back


def write_gguf(path, kind="llama", tied=True, pieces=False, quant=None, seed=0, change=None):
    """A file as llama.cpp writes it, and the tensors that a reader should get out of it, by Hugging
    Face name.
    """
    tokens, kinds, rest = piece_vocabulary() if pieces else byte_vocabulary()
    model = make_model(kind, tied, len(tokens), seed)
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
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    if pieces:
        writer.add_tokenizer_model("llama")
        writer.add_token_scores(rest)
        writer.add_unk_token_id(0)
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm" if kind == "llama" else "qwen2")
        writer.add_token_merges(rest)
        writer.add_pad_token_id(2)
        writer.add_add_bos_token(False)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    names, expected = hf_names(), {}
    for name, p in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        x = p.numpy()
        own = names[name]
        stored = (
            permute(x, N if "attn_q" in own else K)
            if kind == "llama" and ("attn_q" in own or "attn_k" in own)
            else x
        )
        if quant is not None and x.ndim == 2:
            data = gguf.quantize(stored, quant)
            writer.add_tensor(own, data, raw_dtype=quant)
            back = gguf.dequantize(data, quant)
            heads = N if "attn_q" in own else K
            expected[name] = (
                back
                if stored is x
                else back.reshape(heads, H // 2, 2, D).swapaxes(1, 2).reshape(x.shape)
            )
        else:
            writer.add_tensor(own, stored)
            expected[name] = x
    if change:
        change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
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


@pytest.fixture(scope="module", params=CASES)
def converted(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    case = dict(CASES[request.param])
    if "quant" in case:
        case["quant"] = gguf.GGMLQuantizationType[case["quant"]]
    model, expected = write_gguf(folder / "m.gguf", **case)
    assert (
        main(["--gguf", str(folder / "m.gguf"), "--out", str(folder / "out"), "--dtype", "float32"])
        == 0
    )
    return folder, case, model, expected


def test_every_tensor(converted):
    """What was written, dequantised, in Hugging Face's order of rows."""
    folder, _, _, expected = converted
    found = open_checkpoint(folder / "out")
    assert set(found) == set(expected)
    for name, x in expected.items():
        np.testing.assert_array_equal(found[name].read(name), x, err_msg=name)


def test_transformers_computes_the_same(converted, rng):
    """Logits of the directory: those of the source with the dequantised weights in it."""
    import torch
    from transformers import AutoModelForCausalLM

    folder, _, model, expected = converted
    model.load_state_dict({name: torch.tensor(x) for name, x in expected.items()}, strict=False)
    ours, info = AutoModelForCausalLM.from_pretrained(folder / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    ids = torch.tensor(rng.integers(0, model.config.vocab_size, (2, 20)))
    with torch.no_grad():
        logits = ours.eval()(ids).logits
        np.testing.assert_array_equal(logits.numpy(), model(ids).logits.numpy())


def test_tokenizer_and_configs(converted):
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    folder, case, model, _ = converted
    out = folder / "out"
    tokenizer = AutoTokenizer.from_pretrained(out)
    messages = [{"role": "user", "content": "the 12"}]
    assert (
        tokenizer.apply_chat_template(messages, tokenize=False)
        == "<|im_start|>user\nthe 12<|im_end|>\n"
    )
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    text = "the 12 abé the\n\n" + ("" if case.get("pieces") else "<tool> x<|im_end|>")
    ids = tokenizer(text)["input_ids"]
    names = tokenizer.convert_ids_to_tokens(ids)
    if case.get("pieces"):
        assert (
            names[:4] == ["<s>", "▁the", "▁", "<0x31>"]
            and tokenizer.decode(ids, skip_special_tokens=True) == text
        )
    else:
        assert (
            names[:4] == ["the", "Ġ", "1", "2"] and names[-1] == "<|im_end|>" and "<tool>" in names
        )
        assert tokenizer.decode(ids) == text
    config = AutoConfig.from_pretrained(out)
    for key in (
        "hidden_size",
        "num_key_value_heads",
        "head_dim",
        "rms_norm_eps",
        "tie_word_embeddings",
        "vocab_size",
    ):
        assert getattr(config, key, H) == getattr(model.config, key, H), key
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
    (
        writer.write_header_to_file(),
        writer.write_kv_data_to_file(),
        writer.write_tensors_to_file(),
        writer.close(),
    )
    refused("architecture 'mamba' is not supported", "llama, qwen2")
