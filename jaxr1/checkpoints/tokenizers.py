"""Tokenizers without a tokenizer.json: from a sentencepiece model or a GGUF vocabulary.

What is built is a `tokenizers` pipeline, saved and loaded like any other fast tokenizer. No code of
the directory runs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxr1.checkpoints.tensors import CheckpointError, listed, read_json

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(
    1, 7
)  # kinds of pieces, in sentencepiece and in GGUF
SPACE = "▁"
EVERY = 1 << 30
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")


class Piece(NamedTuple):
    """One entry of a vocabulary; its place is its id."""

    text: str
    score: float
    kind: int


def sentencepiece_pipeline(
    pieces: Sequence[Piece],
    *,
    byte_fallback: bool,
    prefix: bool,
    squeeze: bool = False,
    charsmap: bytes = b"",
):
    """A `tokenizers.Tokenizer` that gives the ids of a sentencepiece BPE model.

    Control and user-defined pieces are found in the text before anything else, as transformers does
    it: the text between two of them is encoded for itself, with a prefix of its own.

    Args:
      pieces: the vocabulary.
      byte_fallback: characters that no piece holds become the bytes of their UTF-8 form.
      prefix: a space is put before the text (sentencepiece's add_dummy_prefix).
      squeeze: spaces at both ends are removed, and of several in a row one is kept
        (remove_extra_whitespaces).
      charsmap: sentencepiece's compiled normalisation; empty is the identity. The tokenizers
        library looks characters up with the marks that join them, and so may drop a mark behind a
        character that is normalised.

    Raises:
      CheckpointError: a piece that occurs twice, or no unknown piece.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers
    from tokenizers.models import BPE

    vocab = _vocab(pieces)
    unknown = [p.text for p in pieces if p.kind == UNKNOWN]
    if len(unknown) != 1:
        raise CheckpointError(
            f"the vocabulary has {len(unknown)} unknown pieces: {listed(unknown)}"
        )
    tokenizer = Tokenizer(
        BPE(
            vocab,
            _merges(pieces, vocab),
            unk_token=unknown[0],
            fuse_unk=True,
            byte_fallback=byte_fallback,
        )
    )
    steps: list[Any] = [normalizers.Precompiled(charsmap)] if charsmap else []
    if squeeze:
        steps += [
            normalizers.Replace(Regex(rf"\A +|[ {SPACE}]+\z"), ""),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    if prefix:
        steps.append(normalizers.Prepend(SPACE))
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    back: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    leading = EVERY if squeeze else int(prefix)  # spaces that text did not begin with
    tokenizer.decoder = decoders.Sequence(
        [*back, decoders.Strip(" ", leading, 0)] if leading else back
    )
    tokenizer.add_tokens(
        [
            AddedToken(p.text, normalized=False, special=p.kind == CONTROL)
            for p in pieces
            if p.kind in (CONTROL, USER_DEFINED)
        ]
    )
    return tokenizer


def _vocab(pieces: Sequence[Piece]) -> dict[str, int]:
    vocab = {p.text: i for i, p in enumerate(pieces)}
    if len(vocab) != len(pieces):
        twice = [p.text for i, p in enumerate(pieces) if vocab[p.text] != i]
        raise CheckpointError(f"the vocabulary has pieces twice: {listed(twice)}")
    return vocab


def _merges(pieces: Sequence[Piece], vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, best score first, as sentencepiece merges."""
    plain = {p.text for p in pieces if p.kind == NORMAL}
    found = []
    for p in pieces:
        if p.kind == NORMAL:
            for i in range(1, len(p.text)):
                left, right = p.text[:i], p.text[i:]
                if left in plain and right in plain:
                    found.append((-p.score, vocab[p.text], vocab[left], vocab[right], left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def byte_level_pipeline(pieces: Sequence[Piece], merges: Sequence[str], split: str):
    """A `tokenizers.Tokenizer` of a byte-level BPE vocabulary as GGUF files hold it.

    Args:
      pieces: the vocabulary, in GPT-2's spelling of bytes.
      merges: "left right", first merge first.
      split: the name of the rule that cuts text into words ("tokenizer.ggml.pre").

    Raises:
      CheckpointError: a piece that occurs twice, a merge that is none, or an unknown rule (says
        which are known).
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers
    from tokenizers import pre_tokenizers as pre
    from tokenizers.models import BPE

    words = {"llama-bpe": LLAMA3_SPLIT, "qwen2": QWEN2_SPLIT, "deepseek-r1-qwen": QWEN2_SPLIT}
    if split not in (*words, "gpt-2", "smollm"):
        known = ", ".join(sorted((*words, "gpt-2", "smollm")))
        raise CheckpointError(
            f"the vocabulary's splitting rule {split!r} is not supported; supported: {known}"
        )
    vocab = _vocab(pieces)
    pairs: list[tuple[str, str]] = []
    broken: list[str] = []
    for merge in merges:
        left, *right = merge.split(" ")
        if len(right) == 1 and vocab.keys() >= {left, right[0], left + right[0]}:
            pairs.append((left, right[0]))
        else:
            broken.append(merge)
    if broken:
        raise CheckpointError(
            f"merges that make no piece of the vocabulary ({len(broken)}): {listed(broken)}"
        )
    # Llama 3 takes a word that is a piece as it is, whether or not the merges lead to it.
    tokenizer = Tokenizer(BPE(vocab, pairs, ignore_merges=split == "llama-bpe"))
    if split in words:
        cut = pre.Split(Regex(words[split]), behavior="isolated")
        tokenizer.pre_tokenizer = pre.Sequence(
            [cut, pre.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    elif split == "smollm":
        tokenizer.pre_tokenizer = pre.Sequence(
            [pre.Digits(individual_digits=True), pre.ByteLevel(False)]
        )
    else:
        tokenizer.pre_tokenizer = pre.ByteLevel(add_prefix_space=False)
    if words.get(split) == QWEN2_SPLIT:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(
        [
            AddedToken(p.text, normalized=False, special=p.kind == CONTROL)
            for p in pieces
            if p.kind in (CONTROL, USER_DEFINED)
        ]
    )
    return tokenizer


def _sentencepiece_model(file: Path):
    """The parsed `tokenizer.model`."""
    from transformers.convert_slow_tokenizer import import_protobuf

    if not file.is_file():
        raise CheckpointError(f"{file} is missing")
    model = import_protobuf().ModelProto()
    try:
        model.ParseFromString(file.read_bytes())
    except Exception as e:  # protobuf's DecodeError, which has another name in each implementation
        raise CheckpointError(f"{file}: no sentencepiece model ({e!s:.200})") from e
    return model


def internlm2_tokenizer(directory: Path):
    """The fast tokenizer of a directory with InternLM2's: a sentencepiece `tokenizer.model`.

    Its `tokenizer_config.json` names code (`auto_map`) that is never run: the ids are those of
    sentencepiece, with `<s>` in front unless `add_bos_token` is false, and the added tokens at the
    ids that the config gives them (a piece of the model that stands there gives way). One
    difference is known: text that spells out a user-defined piece of the model gets a space after
    it, where sentencepiece puts none.

    Args:
      directory: holds tokenizer.model and tokenizer_config.json (and added_tokens.json, where the
        config lists none).

    Returns:
      A transformers.PreTrainedTokenizerFast.

    Raises:
      CheckpointError: a file is missing or damaged, a setting of the model is not supported, or an
        added token has an id that cannot be given.
    """
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    directory = Path(directory)
    settings = read_json(directory / "tokenizer_config.json")
    file = directory / "tokenizer.model"
    model = _sentencepiece_model(file)
    pieces = [Piece(p.piece, p.score, p.type) for p in model.pieces]
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    refused = {
        "model_type is not BPE": trainer.model_type != 2,
        "treat_whitespace_as_suffix": trainer.treat_whitespace_as_suffix,
        "escape_whitespaces is off": not normalizer.escape_whitespaces,
        "unused pieces": any(p.kind == UNUSED for p in pieces),
    }
    if any(refused.values()):
        raise CheckpointError(
            f"{file}: not supported: {', '.join(what for what, said in refused.items() if said)}"
        )

    added = {
        int(i): _added_token(token) for i, token in settings.get("added_tokens_decoder", {}).items()
    }
    if not added and (directory / "added_tokens.json").is_file():
        listing = read_json(directory / "added_tokens.json")
        added = {
            int(i): AddedToken(text, normalized=False, special=True) for text, i in listing.items()
        }
    for i, token in added.items():
        if i < len(
            pieces
        ):  # found in the text as what the config says, and no piece to merge any more
            pieces[i] = Piece(
                token.content, pieces[i].score, UNKNOWN if pieces[i].kind == UNKNOWN else UNUSED
            )
    try:
        tokenizer = sentencepiece_pipeline(
            pieces,
            byte_fallback=trainer.byte_fallback,
            prefix=normalizer.add_dummy_prefix,
            squeeze=normalizer.remove_extra_whitespaces,
            charsmap=normalizer.precompiled_charsmap,
        )
    except CheckpointError as e:
        raise CheckpointError(f"{file}: {e}") from e
    for _, token in sorted(added.items()):
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
    elsewhere = [
        f"{t.content} ({i})" for i, t in added.items() if tokenizer.token_to_id(t.content) != i
    ]
    if elsewhere:
        raise CheckpointError(
            f"{directory}: added tokens whose ids leave gaps or are taken: {listed(elsewhere)}"
        )
    named = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    special = {key: _text(settings.get(key, default)) for key, default in named.items()}
    unknown = [
        text
        for text in special.values()
        if text is not None and tokenizer.token_to_id(text) is None
    ]
    if unknown:
        raise CheckpointError(
            f"{directory}: special tokens that are not in the vocabulary: {listed(unknown)}"
        )
    kept = ("chat_template", "model_max_length", "padding_side", "truncation_side")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **special,
        additional_special_tokens=[
            _text(t) for t in settings.get("additional_special_tokens") or []
        ],
        add_bos_token=bool(settings.get("add_bos_token", True)),
        add_eos_token=bool(settings.get("add_eos_token", False)),
        clean_up_tokenization_spaces=bool(settings.get("clean_up_tokenization_spaces", False)),
        **{key: settings[key] for key in kept if settings.get(key) is not None},
    )


def _text(token: str | dict | None) -> str | None:
    return token["content"] if isinstance(token, dict) else token


def _added_token(token: dict):
    from tokenizers import AddedToken

    flags = {
        key: bool(token.get(key, False))
        for key in ("lstrip", "rstrip", "single_word", "normalized", "special")
    }
    return AddedToken(token["content"], **flags)


def load_tokenizer(directory: Path, *, with_media: bool = False):
    """The tokenizer of a directory; transformers is told not to look for torch.

    Args:
      with_media: the chat template of the directory's processor, where it has one, takes the place
        of the tokenizer's own.

    Raises:
      CheckpointError: no tokenizer, or none that transformers can read.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    config = read_json(directory / "tokenizer_config.json", missing={})
    if config.get("tokenizer_class") == "InternLM2Tokenizer":
        tokenizer = internlm2_tokenizer(directory)  # its own code is remote, and never run
    else:
        tokenizer = _auto_tokenizer(directory)
    if with_media:
        tokenizer.chat_template = _processor_template(directory) or tokenizer.chat_template
    return tokenizer


def _auto_tokenizer(directory: Path):
    if not any((directory / name).is_file() for name in TOKENIZER_FILES):
        # transformers would make one without a vocabulary
        raise CheckpointError(
            f"{directory}: no tokenizer (expected one of {', '.join(TOKENIZER_FILES)})"
        )
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
    except Exception as e:  # transformers raises whatever its parsers do
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise CheckpointError(
            f"{directory}: no tokenizer that transformers can read ({reason:.200})"
        ) from e


def _processor_template(directory: Path) -> str | None:
    """The chat template of a directory's processor, where it is not the tokenizer's own file.

    That of a tokenizer may know text only: Qwen2.5-VL's is the one of Qwen2.5, and
    `chat_template.json` beside it has the places of images.
    """
    # Newer files: one template for both, which the tokenizer has read.
    if (directory / "chat_template.jinja").is_file():
        return None
    for name in ("chat_template.json", "processor_config.json"):
        found = read_json(directory / name, missing={}).get("chat_template")
        if isinstance(found, str):
            return found
    return None
