"""A sentencepiece model becomes a fast tokenizer with the same ids.

The code that its directory names is not run.
"""

import json
import re
import unicodedata

import numpy as np
import pytest

from jaxr1.checkpoints.tensors import CheckpointError
from jaxr1.checkpoints.tokenizers import internlm2_tokenizer

spm = pytest.importorskip("sentencepiece")
from sentencepiece import sentencepiece_model_pb2

WORDS = (
    "the cat sat on a mat and the dogs were running away from 12 345 678 houses in Zürich "
    "naïve façade été def f(x): return x + 1 # comment  import numpy as np \t tabs 你好 世界 图像 "
    "中 的 数字 是 多少 こんにちは привет мир مرحبا \\frac{a}{b} <think> </think> <answer> "
    '{"key": [1, 2]} aaaa bbbbbb ---- ==== ....'
).split(" ")
ADDED = {"<|im_start|>": 390, "<|im_end|>": 391, "<img>": 400, "</img>": 401, "<IMG_CONTEXT>": 402}


TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
)
# How models are made that differ in what becomes of a text.
MODELS = {
    "internlm2": {},
    "no_prefix": {"prefix": False},
    "squeeze": {"squeeze": True},
    "nfkc": {"rule": "nmt_nfkc", "squeeze": True},
    "no_fallback": {"fallback": False},
}


def train(folder, *, prefix=True, squeeze=False, rule="identity", fallback=True, kind="bpe"):
    """A small model with InternLM2's settings.

    Byte fallback, no normalisation, <unk> <s> </s> first; at the end are pieces that no
    text becomes, whose ids the added tokens take.
    """
    rng = np.random.default_rng(0)
    text = folder / "corpus.txt"
    text.write_text("\n".join(" ".join(rng.choice(WORDS, 12)) for _ in range(3000)))
    spm.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=380,
        hard_vocab_limit=False,
        model_type=kind,
        byte_fallback=fallback,
        character_coverage=0.99,
        normalization_rule_name=rule,
        add_dummy_prefix=prefix,
        remove_extra_whitespaces=squeeze,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        num_threads=1,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
    )
    text.unlink()
    model = sentencepiece_model_pb2.ModelProto.FromString((folder / "tokenizer.model").read_bytes())
    for i in range(400 - len(model.pieces)):
        model.pieces.add(piece=f"[UNUSED_TOKEN_{i}]", score=-1000.0 - i)
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())


def settings(**changes) -> dict:
    """A tokenizer_config.json as InternVL's InternLM2 directories have it."""
    tokens = {0: "<unk>", 1: "<s>", 2: "</s>"} | {i: text for text, i in ADDED.items()}
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    flags["special"] = True
    found = {
        "added_tokens_decoder": {str(i): {"content": text, **flags} for i, text in tokens.items()},
        "additional_special_tokens": list(ADDED),
        "auto_map": {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]},
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "</s>",
        "unk_token": "<unk>",
        "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 8192,
        "tokenizer_class": "InternLM2Tokenizer",
    }
    return found | changes


@pytest.fixture(scope="module", params=MODELS)
def directory(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    train(folder, **MODELS[request.param])
    (folder / "tokenizer_config.json").write_text(json.dumps(settings()))
    (folder / "tokenization_internlm2.py").write_text("raise SystemExit('executed')")
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A directory in InternLM2's form, to change."""
    folder = tmp_path_factory.mktemp("plain")
    train(folder)
    return folder


def strings(rng, count: int) -> list[str]:
    """Random texts: words, runs of a character, spaces, all of Unicode, what looks special."""
    special = [*ADDED, *"<s> </s> <unk> <0x0A> <0x ▁ <|im_ |> <s [UNUSED_TOKEN_3]".split(" ")]
    spaces = [" ", "  ", "    ", "\n", "\n\n", "\t", "\r\n", "\u00a0", "\u3000", "\u200b", " \n "]

    def anything() -> str:
        # No surrogates; and no mark that joins the character before it: where a model normalises,
        # the tokenizers library looks up both together (`checkpoints.tokenizers` says so).
        character = chr(int(rng.integers(1, 0x10FFFF)))
        return "?" if unicodedata.category(character) in ("Cs", "Mn", "Mc", "Me") else character

    def piece() -> str:
        kind = rng.integers(0, 8)
        if kind < 3:
            return str(rng.choice(WORDS))
        if kind == 3:
            return str(rng.choice(spaces))
        if kind == 4:
            return str(rng.choice(special))
        if kind == 5:
            return anything()
        if kind == 6:
            return str(rng.choice(list("a= -.中é1b\n"))) * int(rng.integers(1, 30))
        return "".join(chr(int(i)) for i in rng.integers(32, 0x250, int(rng.integers(1, 8))))

    found = []
    for _ in range(count):
        joint = str(rng.choice(["", " "]))
        found.append(joint.join(piece() for _ in range(int(rng.integers(0, 12)))))
    return found


def test_ids_are_those_of_sentencepiece(directory, rng):
    """On 10,000 random strings; special tokens in them are text to both."""
    truth = spm.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    ours = internlm2_tokenizer(directory)
    texts = strings(rng, 10_000)
    encoded = ours(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    expected = truth.encode(texts)
    different = [(t, a, b) for t, a, b in zip(texts, encoded, expected, strict=True) if a != b]
    assert not different, f"{len(different)}: {different[0]}"
    assert len(set().union(*expected)) > 200


def test_special_tokens_are_found_between_texts(directory, rng):
    """As InternLM2's own tokenizer does it: the text is cut at special tokens.

    Sentencepiece encodes each piece for itself.
    """
    truth = spm.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    ours = internlm2_tokenizer(directory)
    known = {**ADDED, "<s>": 1, "</s>": 2}
    special = re.compile("|".join(map(re.escape, [*known, "<unk>"])))
    clean = [text for text in strings(rng, 2000) if not special.search(text)]
    for i in range(0, len(clean) - 3, 3):
        a, b, c = clean[i : i + 3]
        mark, other = map(str, rng.choice(list(known), 2))
        ids = [1, *truth.encode(a), known[mark], *truth.encode(b), known[other], *truth.encode(c)]
        assert ours(a + mark + b + other + c)["input_ids"] == ids


def test_text_comes_back(directory, rng):
    truth = spm.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    ours = internlm2_tokenizer(directory)
    for text in strings(rng, 1000):
        ids = truth.encode(text)
        if 0 not in ids:  # an unknown character is spelled differently
            assert ours.decode(ids) == truth.decode(ids)


def test_settings_of_the_directory(directory, tmp_path):
    ours = internlm2_tokenizer(directory)
    assert {t: ours.convert_tokens_to_ids(t) for t in ADDED} == ADDED and len(ours) == 403
    assert (ours.bos_token, ours.bos_token_id) == ("<s>", 1)
    assert (ours.eos_token, ours.eos_token_id) == ("</s>", 2)
    assert (ours.unk_token, ours.unk_token_id) == ("<unk>", 0)
    assert ours.pad_token == "</s>" and ours.model_max_length == 8192
    messages = [{"role": "user", "content": "the cat"}]
    text = ours.apply_chat_template(messages, tokenize=False)
    assert text == "<|im_start|>user\nthe cat<|im_end|>\n"
    ids = ours(text)["input_ids"]
    assert ids[:2] == [1, 390] and 391 in ids
    ids = [390, *ours("the cat", add_special_tokens=False)["input_ids"]]
    assert ours.decode(ids, skip_special_tokens=True).strip() == "the cat"

    from transformers import AutoTokenizer

    ours.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for sample in (text, "a  b\n<img>é\U0001f600", ""):
        assert again(sample)["input_ids"] == ours(sample)["input_ids"]
        assert again.decode(again(sample)["input_ids"]) == ours.decode(ours(sample)["input_ids"])


def test_without_a_token_in_front(plain):
    (plain / "tokenizer_config.json").write_text(json.dumps(settings(add_bos_token=False)))
    assert internlm2_tokenizer(plain)("a")["input_ids"][0] != 1
    (plain / "tokenizer_config.json").write_text(json.dumps(settings(add_eos_token=True)))
    ids = internlm2_tokenizer(plain)("a")["input_ids"]
    assert (ids[0], ids[-1]) == (1, 2)


def test_old_directories_list_added_tokens_apart(plain):
    changed = settings()
    del changed["added_tokens_decoder"]
    (plain / "tokenizer_config.json").write_text(json.dumps(changed))
    (plain / "added_tokens.json").write_text(json.dumps(ADDED))
    ours = internlm2_tokenizer(plain)
    assert {t: ours.convert_tokens_to_ids(t) for t in ADDED} == ADDED
    (plain / "added_tokens.json").unlink()


def refused(folder, *texts):
    with pytest.raises(CheckpointError) as caught:
        internlm2_tokenizer(folder)
    for text in texts:
        assert text in str(caught.value), str(caught.value)


def test_what_is_refused(plain, tmp_path):
    model = (plain / "tokenizer.model").read_bytes()

    def say(**changes):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings(**changes)))

    refused(tmp_path, "tokenizer_config.json is missing")
    say()
    refused(tmp_path, "tokenizer.model is missing")
    (tmp_path / "tokenizer.model").write_bytes(b"\xff" * 40)
    refused(tmp_path, "tokenizer.model", "no sentencepiece model")
    (tmp_path / "tokenizer.model").write_bytes(model)
    gap = settings()["added_tokens_decoder"]
    gap["405"] = gap.pop("402")
    say(added_tokens_decoder=gap)
    refused(tmp_path, str(tmp_path), "<IMG_CONTEXT> (405)")
    say(eos_token="<|nowhere|>")
    refused(tmp_path, "special tokens that are not in the vocabulary: <|nowhere|>")
    (tmp_path / "tokenizer_config.json").write_text("[]")
    refused(tmp_path, "tokenizer_config.json", "not a JSON object")
    say()
    train(tmp_path, kind="unigram")
    refused(tmp_path, "tokenizer.model", "model_type is not BPE")
