"""Invariants 1, 7 and 10 for prompts: ids and positions, anchored media, text that stays text."""

import copy
import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from reference import Checkpoint, make_checkpoint, mixed_prompts, random_image, torch_inputs

import jaxr1
from jaxr1.checkpoints.tensors import CheckpointError
from jaxr1.inputs.positions import Span, mrope_positions
from jaxr1.inputs.sizes import TooLong
from jaxr1.inputs.template import PromptError, end_of_turn
from jaxr1.models.presets import make_tokenizer

SPECIALS = (
    "<|image_pad|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|endoftext|>",
    "<|im_start|>",
    "<|video_pad|>",
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return Checkpoint.make(tmp_path_factory.mktemp("model") / "m", 0)


@pytest.fixture
def copied(checkpoint, tmp_path):
    """A copy of the directory to change, without its weights."""
    ignored = shutil.ignore_patterns("*.safetensors")
    return Path(shutil.copytree(checkpoint.folder, tmp_path / "m", ignore=ignored))


def part(given) -> dict:
    kind = "text" if isinstance(given, str) else "image"
    return {"type": kind, kind: given}


def user(*parts) -> jaxr1.Prompt:
    """A prompt of one user message."""
    return jaxr1.Prompt([{"role": "user", "content": [part(given) for given in parts]}])


def specials(processor) -> set[int]:
    """The ids of the special tokens."""
    added = processor.tokenizer.added_tokens_decoder
    return {number for number, token in added.items() if token.special}


def conversation(rng, prompt: jaxr1.Prompt) -> jaxr1.Prompt:
    """The same user turn inside a longer conversation."""
    before = [{"role": "system", "content": "Answer with one number."}, *prompt.messages]
    after = [
        {"role": "assistant", "content": "<think> 3 + 4 </think>"},
        {"role": "user", "content": "é ∑ 你好\n\n ok?"},
    ]
    return jaxr1.Prompt(before + after[: 2 * int(rng.integers(2))])


def test_token_ids_equal_transformers(checkpoint, rng):
    """The ids are those of the rendered chat template, tokenized in one call.

    Each placeholder is repeated once per merged patch.
    """
    processor = checkpoint.processor
    seen = set()
    for prompt in mixed_prompts(rng, 8):
        prompt = conversation(rng, prompt)
        encoded = processor.encode(prompt)
        rendered = processor.tokenizer.apply_chat_template(
            prompt.messages, tokenize=False, add_generation_prompt=True
        )
        first, *rest = rendered.split("<|image_pad|>")
        expanded = first
        for (t, h, w), text in zip(encoded.grids, rest, strict=True):
            expanded += "<|image_pad|>" * (t * h * w // 4) + text
        expected = processor.tokenizer(expanded, add_special_tokens=False)["input_ids"]
        np.testing.assert_array_equal(encoded.token_ids, expected)
        for start, end in encoded.spans:
            assert set(encoded.token_ids[start:end]) == {processor.image_token_id}
        is_image = encoded.token_ids == processor.image_token_id
        np.testing.assert_array_equal(encoded.media_index >= 0, is_image)
        seen.add(len(encoded.grids))
    assert seen == {0, 1, 3}


def test_positions_equal_transformers(checkpoint, rng):
    """M-RoPE positions and the next one, against get_rope_index.

    Its delta is next position - length.
    """
    model, processor = checkpoint.reference.model, checkpoint.processor
    for prompt in mixed_prompts(rng, 8):
        encoded = processor.encode(conversation(rng, prompt))
        inputs = torch_inputs(encoded)
        inputs.pop("pixel_values", None)
        position, delta = model.get_rope_index(**inputs)
        np.testing.assert_array_equal(encoded.position.T, position[:, 0].numpy())
        assert encoded.next_position == len(encoded) + int(delta)


def test_positions_of_the_drawing():
    position, following = mrope_positions(9, [Span(2, 8, (1, 2, 3))])
    assert position.T.tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5],
        [0, 1, 2, 2, 2, 3, 3, 3, 5],
        [0, 1, 2, 3, 4, 2, 3, 4, 5],
    ]
    assert following == 6


def hostile(rng) -> str:
    """Text full of special names: whole, nested, cut, adjacent."""
    pieces = [
        *SPECIALS,
        "<|im_<|im_end|>end|>",
        "<|image_pad|><|image_pad|>",
        "<",
        "|>",
        "<|",
        "a b",
        "\n",
        "<<|im_end|>>",
    ]
    return "".join(rng.choice(pieces, 12)) + str(rng.choice(SPECIALS))


def test_special_names_in_user_text_stay_text(checkpoint, rng):
    """One marker id in front and behind brackets the user's text.

    Between them are ordinary tokens that spell it.
    """
    processor = checkpoint.processor
    special, image = specials(processor), processor.image_token_id

    def shown(encoded):
        """The special tokens of a prompt, but for the image's, of which any number may be."""
        return [i for i in encoded.token_ids.tolist() if i in special and i != image]

    empty = shown(processor.encode(user("", random_image(rng))))
    for text in [*SPECIALS, *(hostile(rng) for _ in range(30))]:
        ids = processor.text_ids(text)
        assert not special & set(ids)
        assert processor.decode(ids) == text
        encoded = processor.encode(user(text, random_image(rng, 28, 29)))
        assert len(encoded.spans) == 1
        assert shown(encoded) == empty
        assert text in processor.decode(encoded.token_ids)


def cut_at_random(rng, text: str) -> list[str]:
    """The text in two to five parts, some of them empty."""
    places = sorted(rng.integers(0, len(text) + 1, int(rng.integers(1, 5))).tolist())
    bounds = zip([0, *places], [*places, len(text)], strict=True)
    return [text[first:last] for first, last in bounds]


@pytest.mark.parametrize("name", ["tiny", "tiny-qwen2_5_vl", "tiny-qwen3_vl", "tiny-internvl"])
def test_special_names_cut_between_parts_stay_text(name, rng):
    """Names cut by the border of two parts, wherever it is, and in a prompt without images."""
    processor = jaxr1.load_processor(name)
    special = specials(processor)
    shown = lambda *parts: [i for i in processor.encode(user(*parts)).token_ids if i in special]
    plain = shown("ab")
    added = processor.tokenizer.added_tokens_decoder
    names = [added[i].content for i in special]
    for special_name in names:
        for place in range(1, len(special_name)):
            parts = ["a" + special_name[:place], special_name[place:] + "b"]
            assert shown(*parts) == plain, parts
    for _ in range(30):
        parts = cut_at_random(rng, "a" + "".join(rng.choice(names, 3)) + hostile(rng) + "b")
        encoded = processor.encode(user(*parts))
        assert [i for i in encoded.token_ids if i in special] == plain, parts
        assert "".join(parts) in processor.decode(encoded.token_ids), parts


@pytest.mark.parametrize("before", ["<|im_", "<|im"])
def test_special_names_cut_between_template_and_text_stay_text(checkpoint, copied, before):
    """A template that itself ends in the head of a name, or goes on with the tail of one."""
    template = "{% for m in messages %}" + before + "{{ m['content'] }}_start|>{% endfor %}"
    (copied / "chat_template.jinja").write_text(template)
    processor = jaxr1.load_processor(copied)
    for text in ("<|im_end|>"[len(before) :], "x<|im", "end|><|im"):
        ids = processor.encode(user(text)).token_ids.tolist()
        assert not specials(processor) & set(ids), text
        assert processor.decode(ids) == before + text + "_start|>"


@pytest.mark.parametrize("role", ["system", "assistant", "tool"])
def test_special_names_in_other_turns_stay_text(checkpoint, rng, role):
    processor = checkpoint.processor
    text = hostile(rng)
    special = specials(processor)

    def encoded(text):
        messages = [{"role": role, "content": text}, {"role": "user", "content": "x"}]
        return processor.encode(jaxr1.Prompt(messages)).token_ids.tolist()

    plain, loaded = encoded("y"), encoded(text)
    assert [i for i in loaded if i in special] == [i for i in plain if i in special]
    assert text in processor.decode(loaded)


def test_sentinels_in_user_text_stay_text(checkpoint):
    """The private-use characters that stand for texts inside the template may occur in a text."""
    processor = checkpoint.processor
    text = "a \ue0001\ue001 b \ue0000\ue001"
    messages = [{"role": "system", "content": text}, {"role": "user", "content": "zz"}]
    found = processor.decode(processor.encode(jaxr1.Prompt(messages)).token_ids)
    assert found.count(text) == 1 and found.count("zz") == 1


def test_added_words_stay_one_token(checkpoint):
    """<think> is an added token, but no special one: a user may say it."""
    processor = checkpoint.processor
    for tag in ("<think>", "</answer>"):
        assert processor.text_ids(tag) == [processor.tokenizer.convert_tokens_to_ids(tag)]
    ids = processor.text_ids("<|im_end|><think><|im_end|>")
    assert ids.count(processor.tokenizer.convert_tokens_to_ids("<think>")) == 1


TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def with_special_tags(folder: Path) -> Path:
    """A directory whose tokenizer has the tags as special tokens."""
    core = json.loads((folder / "tokenizer.json").read_text())
    for token in core["added_tokens"]:
        token["special"] |= token["content"] in TAGS
    (folder / "tokenizer.json").write_text(json.dumps(core))
    return folder


def test_special_tags_are_part_of_what_is_said(checkpoint, copied, rng):
    """What rewards read holds the tags; marks of turns, media and ends stay out of it."""
    processor = jaxr1.load_processor(with_special_tags(copied))
    ident = processor.tokenizer.convert_tokens_to_ids
    said = f"<think>{rng.integers(99)}+4</think><answer>{rng.integers(99)}</answer>"
    ids = processor.spoken_ids(said)
    assert [i for i in ids if i in specials(processor)] == [ident(tag) for tag in TAGS]
    ends = [ident("<|im_end|>"), ident("<|im_start|>"), processor.image_token_id]
    assert processor.decode([*ids, *ends]) == said
    assert processor.decode([*ids, *ends], special=True).startswith(said + "<|im_end|>")
    # What the model is to say holds the tokens, what the user says spells them.
    prefixed = processor.encode(dataclasses.replace(user("x"), prefix="<think>"))
    assert prefixed.token_ids[-1] == ident("<think>") and prefixed.prefix == "<think>"
    hidden = processor.spoken_ids("<think><|im_end|>")
    assert hidden[0] == ident("<think>") and ident("<|im_end|>") not in hidden
    assert not specials(processor) & set(processor.text_ids(said))
    # A tag that ends responses is a stop like any other.
    stopped = dataclasses.replace(processor, stop_token_ids=(ident("</answer>"),))
    assert stopped.decode(ids) == said.removesuffix("</answer>")


def test_too_long_prompt_raises_and_is_never_cut(checkpoint, rng):
    processor = checkpoint.processor
    prompt = user(random_image(rng), "What is it?", random_image(rng))
    whole = processor.encode(prompt)
    assert len(processor.encode(prompt, len(whole))) == len(whole)
    for limit in (len(whole) - 1, whole.spans[0][1] - 1, 1):
        said = f"{len(whole)} tokens .*for 2 images.*over the limit of {limit}"
        with pytest.raises(TooLong, match=said):
            processor.encode(prompt, limit)


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([], "at least one message"),
        ("hello", "message 0 needs 'role' and 'content'"),
        ([{"role": "user"}], "message 0 needs 'role' and 'content'"),
        (
            [{"role": "user", "content": "x"}, {"role": "robot", "content": "x"}],
            "message 1: role 'robot' is none of",
        ),
        ([{"role": "user", "content": None}], "message 0: content must be"),
        ([{"role": "user", "content": 5}], "message 0: content must be"),
        (
            [{"role": "user", "content": {"type": "text", "text": "x"}}],
            "message 0: content must be",
        ),
        ([{"role": "user", "content": ["x"]}], "message 0, part 0"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image"}]}],
            "message 0, part 1",
        ),
        ([{"role": "user", "content": [{"type": "text", "text": None}]}], "message 0, part 0"),
        ([{"role": "user", "content": [{"type": "smell", "smell": "x"}]}], "message 0, part 0"),
    ],
)
def test_malformed_messages(checkpoint, messages, text):
    with pytest.raises(PromptError, match=re.escape(text)):
        checkpoint.processor.encode(jaxr1.Prompt(messages))


def each_part(body: str) -> str:
    return "{% for m in messages %}{% for c in m['content'] %}" + body + "{% endfor %}{% endfor %}"


TEMPLATES = {
    each_part("{{ c['text'] }}"): "1 images, but the template has a place for 0",
    each_part("<|image_pad|>{{ c['text'] }}"): "more image places than the prompt's 1 images",
    "{% for m in messages %}<|image_pad|>{% endfor %}": "drops, repeats or reorders",
    "<|image_pad|>" + each_part("{{ c['text'] }}{{ c['text'] }}"): "drops, repeats or reorders",
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_templates_that_lose_images_or_text(copied, rng, template):
    (copied / "chat_template.jinja").write_text(template)
    processor = jaxr1.load_processor(copied)
    with pytest.raises(PromptError, match=TEMPLATES[template]):
        processor.encode(user(random_image(rng), "hello"))


def test_the_processors_template_goes_before_the_tokenizers(checkpoint, copied, rng):
    """The tokenizer's own template may know text only, as in Qwen2.5-VL.

    That with image places is chat_template.json.
    """
    prompt = user(random_image(rng), "How many?")
    whole = (copied / "chat_template.jinja").read_text()
    (copied / "chat_template.jinja").unlink()
    config = json.loads((copied / "tokenizer_config.json").read_text())
    config["chat_template"] = "{% for m in messages %}{{ m.role + m.content }}{% endfor %}"
    (copied / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(PromptError, match="chat template cannot render these messages"):
        jaxr1.load_processor(copied).encode(prompt)
    (copied / "chat_template.json").write_text(json.dumps({"chat_template": whole}))
    found = jaxr1.load_processor(copied).encode(prompt)
    np.testing.assert_array_equal(found.token_ids, checkpoint.processor.encode(prompt).token_ids)


def with_template(processor, template):
    """The processor with another chat template, and its tokenizer."""
    tokenizer = copy.deepcopy(processor.tokenizer)
    tokenizer.chat_template = template
    return dataclasses.replace(processor, tokenizer=tokenizer), tokenizer


LOOKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% set text = m.content | trim %}"
    "{% if m.role == 'assistant' and '</think>' in text %}"
    "{% set text = text.split('</think>')[-1] | trim %}"
    "{% endif %}"
    "{{ text }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_templates_that_look_at_texts(checkpoint, rng):
    """Templates that trim, as Llama's, or cut old thoughts, as Qwen3's: as transformers has it.

    But for special names in the text.
    """
    processor, tokenizer = with_template(checkpoint.processor, LOOKING)
    messages = [
        {"role": "user", "content": "  What is it?\n\n"},
        {"role": "assistant", "content": "<think>hm</think>\n\nA cat. "},
        {"role": "user", "content": " Why? "},
    ]
    ids = processor.encode(jaxr1.Prompt(messages)).token_ids
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    np.testing.assert_array_equal(ids, tokenizer.encode(rendered, add_special_tokens=False))
    assert "hm" not in processor.decode(ids)
    text = f" {hostile(rng)}<|im_end|>\n"
    said = processor.encode(jaxr1.Prompt([{"role": "user", "content": text}])).token_ids
    special = specials(processor)
    assert [i for i in said if i in special] == [i for i in ids if i in special][-3:]
    assert processor.decode(said) == f"user\n{text.strip()}\nassistant\n"


def test_prompts_do_not_depend_on_the_day(checkpoint):
    # As the template of Llama 3.2 asks.
    asks = "{% if strftime_now is defined %}{{ strftime_now( '%d %b %Y' ) }}{% endif %}"
    processor, _ = with_template(checkpoint.processor, asks + LOOKING)
    ids = processor.encode(jaxr1.Prompt([{"role": "user", "content": "x"}])).token_ids
    assert processor.decode(ids).startswith("26 Jul 2024")


def test_a_template_may_open_the_answer(checkpoint):
    """What it opens is part of what rewards read, as a base model's prefix is."""
    processor, _ = with_template(checkpoint.processor, LOOKING + "<think>\n\n")
    messages = [{"role": "user", "content": "x"}]
    assert processor.encode(jaxr1.Prompt(messages)).prefix == "<think>\n"
    assert processor.encode(jaxr1.Prompt(messages, prefix="I")).prefix == "<think>\nI"
    assert checkpoint.processor.encode(jaxr1.Prompt(messages)).prefix == ""


def test_the_templates_end_of_a_turn_stops(checkpoint):
    """InternLM2's end of text is </s>, but its answers end with <|im_end|>: both stop.

    The latter is trained on.
    """
    tokenizer = copy.deepcopy(checkpoint.processor.tokenizer)
    tokenizer.eos_token = "<|endoftext|>"
    ident = tokenizer.convert_tokens_to_ids
    assert end_of_turn(tokenizer, None) == end_of_turn(tokenizer, "chatml") == ident("<|im_end|>")
    assert end_of_turn(tokenizer, "r1_zero") is None
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    assert end_of_turn(tokenizer, None) is None


def test_chatml_has_places_for_images(checkpoint, rng):
    """Qwen's own template is ChatML with a system turn: with one given, both say the same."""
    [message] = user("In", random_image(rng), "how many?").messages
    prompt = jaxr1.Prompt([{"role": "system", "content": "Be brief."}, message])
    found = jaxr1.load_processor(checkpoint.folder, template="chatml").encode(prompt)
    np.testing.assert_array_equal(found.token_ids, checkpoint.processor.encode(prompt).token_ids)
    assert found.spans == checkpoint.processor.encode(prompt).spans != ()


def test_half_a_surrogate_pair_is_no_text(checkpoint):
    said = r"message 0, part 1: character 1 \('\\ud800'\) is half of a surrogate pair"
    with pytest.raises(PromptError, match=said):
        checkpoint.processor.encode(user("fine", "a\ud800b"))


def test_of_several_templates_the_default_one(checkpoint):
    prompt = jaxr1.Prompt([{"role": "user", "content": "How many?"}])
    one = checkpoint.processor
    default = one.tokenizer.chat_template
    templates = {"default": default, "tool_use": "{{ nothing.at.all }}"}
    several, tokenizer = with_template(one, templates)
    np.testing.assert_array_equal(several.encode(prompt).token_ids, one.encode(prompt).token_ids)
    tokenizer.chat_template = {"tool_use": "x"}
    said = "chat templates tool_use, and none of the name 'default'"
    with pytest.raises(PromptError, match=said):
        several.encode(prompt)


def test_bos_of_the_tokenizer_goes_before_a_prompt(checkpoint, rng):
    """Once, and as a processor of transformers has it.

    That adds special tokens to what the template rendered.
    """
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    processor = checkpoint.processor
    bos, prompt = "<|endoftext|>", user(random_image(rng), "How many?")
    backend = processor.tokenizer.backend_tokenizer
    number = backend.token_to_id(bos)
    backend = type(backend).from_str(backend.to_str())
    backend.post_processor = TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, number)])
    template = processor.tokenizer.chat_template
    plain = processor.encode(prompt)
    for chat_template in (template, bos + template):
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend, bos_token=bos, chat_template=chat_template
        )
        found = dataclasses.replace(processor, tokenizer=tokenizer).encode(prompt)
        assert found.token_ids.tolist() == [number, *plain.token_ids]
        assert found.spans == tuple((start + 1, end + 1) for start, end in plain.spans)


def test_r1_zero_template(checkpoint, rng):
    """VisualThinker-R1-Zero's prompt for base models.

    The image comes first, the question is inside, and "<think>" opens the answer.
    """
    folder = checkpoint.folder
    processor = jaxr1.load_processor(folder, template="r1_zero")
    image = random_image(rng)
    encoded = processor.encode(user("Where is the red <|im_end|> star?", image))
    (start, end) = encoded.spans[0]
    ident = processor.tokenizer.convert_tokens_to_ids
    assert start == 1
    assert encoded.token_ids[0] == ident("<|vision_start|>")
    assert encoded.token_ids[end] == ident("<|vision_end|>")
    assert processor.tokenizer.decode(encoded.token_ids[end + 1 :]) == (
        "A conversation between User and Assistant. The user asks a question about the image, and "
        "the Assistant solves it. The assistant first thinks about the reasoning process in the "
        "mind and then provides the user with the answer.\n"
        "User: Where is the red <|im_end|> star?\n"
        "Assistant: Let me solve this step by step.\n"
        "<think>"
    )
    assert encoded.prefix == processor.prefix == "<think>"
    assert encoded.token_ids[-1] == ident("<think>")
    messages = user("Where?", image).messages
    for prefix in ("", "<answer> 4"):
        other = processor.encode(jaxr1.Prompt(messages, prefix=prefix))
        assert other.prefix == prefix
        assert processor.tokenizer.decode(other.token_ids).endswith("step by step.\n" + prefix)
    with pytest.raises(PromptError, match="exactly one user message"):
        processor.encode(jaxr1.Prompt([{"role": "system", "content": "x"}, *messages]))
    with pytest.raises(ValueError, match="'r2' is none of r1_zero"):
        jaxr1.load_processor(folder, template="r2")


def test_prefix_follows_a_chat_template(checkpoint):
    processor = checkpoint.processor
    messages, prefix = [{"role": "user", "content": "x"}], "<think> so"
    plain = processor.encode(jaxr1.Prompt(messages)).token_ids
    opened = processor.encode(jaxr1.Prompt(messages, prefix=prefix)).token_ids
    np.testing.assert_array_equal(opened, [*plain, *processor.text_ids(prefix)])


@pytest.mark.parametrize(("stops", "named"), [(None, []), (7, [7]), ([7, 9], [7, 9]), ([], [])])
def test_stop_ids(copied, stops, named):
    file = copied / "generation_config.json"
    file.unlink(missing_ok=True)
    if stops is not None:
        file.write_text(json.dumps({"eos_token_id": stops}))
    processor = jaxr1.load_processor(copied)
    assert set(processor.stop_token_ids) == {*named, make_tokenizer(512).eos_token_id}


def test_media_ids(checkpoint):
    """All that stands for media, and nothing else: pads, vision start and vision end."""
    processor = checkpoint.processor
    names = processor.tokenizer.convert_ids_to_tokens(list(processor.media_token_ids))
    pads = {"<|image_pad|>", "<|video_pad|>", "<|vision_pad|>"}
    assert set(names) == pads | {"<|vision_start|>", "<|vision_end|>"}
    assert not set(processor.media_token_ids) & set(processor.stop_token_ids)


def test_bounds_of_the_image(checkpoint, rng):
    folder, processor = checkpoint.folder, checkpoint.processor
    image = random_image(rng, 100, 200)
    patches = lambda processor: len(processor.encode(user(image)).patches[0])
    small = jaxr1.load_processor(folder, max_pixels=56 * 56)
    large = jaxr1.load_processor(folder, min_pixels=150 * 150, max_pixels=300 * 300)
    assert patches(small) <= 16 < patches(processor) < patches(large)


def test_an_export_keeps_the_bounds_it_was_loaded_with(checkpoint, tmp_path):
    """Of images and of videos, in one file or in two."""
    bounds = dict(max_pixels=80 * 80, video_fps=1.5, video_max_frames=6, video_max_pixels=70 * 70)
    for number, folder in enumerate((checkpoint.folder, tmp_path / "one file")):
        if number:
            shutil.copytree(checkpoint.folder, folder)
            images = json.loads((folder / "preprocessor_config.json").read_text())
            (folder / "preprocessor_config.json").unlink()
            videos = {k: v for k, v in images.items() if k.startswith("image_m")}
            whole = {"image_processor": images, "video_processor": videos}
            (folder / "processor_config.json").write_text(json.dumps(whole))
        processor = jaxr1.load_processor(folder, **bounds)
        model, params = jaxr1.load_model(folder)
        out = jaxr1.save_model(model, params, processor, tmp_path / f"out{number}")
        again = jaxr1.load_processor(out)
        assert (again.images, again.videos) == (processor.images, processor.videos)
        assert again.videos.fps == 1.5 != jaxr1.load_processor(folder).videos.fps


def test_damaged_processor_files(checkpoint, tmp_path):
    for name in ("preprocessor_config.json", "tokenizer.json", "generation_config.json"):
        folder = tmp_path / name.split(".")[0]
        shutil.copytree(checkpoint.folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
        (folder / name).write_text("{broken")
        with pytest.raises(CheckpointError, match=str(folder)):
            jaxr1.load_processor(folder)


def test_bounds_of_videos(checkpoint, tmp_path, rng):
    bounds = dict(video_fps=1.0, video_max_frames=4, video_max_pixels=56 * 56)
    processor = jaxr1.load_processor(checkpoint.folder, **bounds)
    frames = rng.integers(0, 256, (40, 60, 60, 3), dtype=np.uint8)
    clip = {"type": "video", "video": frames, "fps": 10.0}
    encoded = processor.encode(jaxr1.Prompt([{"role": "user", "content": [clip]}]))
    assert len(encoded.grids) == 2 and encoded.grids[0][1] * encoded.grids[0][2] <= 16
    make_checkpoint(tmp_path / "i", 0, "internvl")
    with pytest.raises(ValueError, match="takes no video"):
        jaxr1.load_processor(tmp_path / "i", video_fps=1.0)
