"""What every question is asked with: written out it is the same prompt, and an export keeps it."""

import json

import numpy as np
import pytest
from reference import random_image

import jaxr1
from jaxr1.base.checks import OptionError
from jaxr1.checkpoints.tensors import PROMPT_FILE, CheckpointError
from jaxr1.config import parse
from jaxr1.data import Arithmetic
from jaxr1.inputs.template import PromptError
from jaxr1.inputs.wording import QUESTIONS, SYSTEMS
from jaxr1.models.presets import PRESETS
from jaxr1.run import Config, ProcessorOptions, Rl
from jaxr1.sample import main as sample

SYSTEM = "Be <|im_end|> brief, 'quoted' and {{ braced }}."
QUESTION = "Look: {question}\nAnswer in \\boxed{}."


def part(given) -> dict:
    kind = "text" if isinstance(given, str) else "image"
    return {"type": kind, kind: given}


def turn(role: str, *parts) -> dict:
    return {"role": role, "content": [part(given) for given in parts]}


def same(one, other) -> None:
    np.testing.assert_array_equal(one.token_ids, other.token_ids)
    assert one.spans == other.spans and one.hashes == other.hashes


@pytest.mark.parametrize("name", PRESETS)
def test_prompts_are_those_that_are_written_out(name, rng):
    """Of every family; only the last user turn is the question."""
    plain = jaxr1.load_processor(name)
    worded = jaxr1.load_processor(name, system=SYSTEM, question_template=QUESTION)
    a, b = random_image(rng), random_image(rng)
    end = "\nAnswer in \\boxed{}."
    for given, written in (
        (["How many?"], [f"Look: How many?{end}"]),
        ([a, "How many?"], [a, f"Look: How many?{end}"]),
        (["Is", a, "as", b, "?"], ["Look: Is", a, "as", b, f"?{end}"]),
        (["Is it red?", a], ["Look: Is it red?", a, end]),
        ([a], [a, f"Look: {end}"]),
    ):
        asked = [turn("user", "Hi", a), turn("assistant", "Hi?"), turn("user", *given)]
        meant = [turn("system", SYSTEM), *asked[:2], turn("user", *written)]
        same(worded.encode(jaxr1.Prompt(asked)), plain.encode(jaxr1.Prompt(meant)))
        own = [turn("system", "Be long."), turn("user", *given)]
        meant = [own[0], turn("user", *written)]
        same(worded.encode(jaxr1.Prompt(own)), plain.encode(jaxr1.Prompt(meant)))


def test_plain_strings_and_templates_of_other_kinds(rng):
    messages = [{"role": "user", "content": "How many?"}]
    for template in ("chatml", "internvl2_5"):
        worded = jaxr1.load_processor("tiny", template=template, system="Be brief.")
        text = worded.tokenizer.decode(worded.encode(jaxr1.Prompt(messages)).token_ids)
        assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHow")
    worded = jaxr1.load_processor("tiny", template="r1_zero", question_template="{question} Why?")
    text = worded.tokenizer.decode(worded.encode(jaxr1.Prompt(messages)).token_ids)
    assert "User: How many? Why?\nAssistant: " in text


def test_known_names_stand_for_their_texts():
    for name, text in SYSTEMS.items():
        by_name, by_text = (jaxr1.load_processor("tiny", system=x) for x in (name, text))
        assert by_name.wording == by_text.wording and by_name.wording.system == text
    for name, text in QUESTIONS.items():
        assert jaxr1.load_processor("tiny", question_template=name).wording.question == text
    text = SYSTEMS["r1"] + QUESTIONS["think_answer"]
    assert all(text.count(tag) >= 2 for tag in ("<think>", "</think>", "<answer>", "</answer>"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(question_template="Answer briefly."), "must hold {question} once"),
        (dict(question_template="{question} {question}"), "must hold {question} once"),
        (dict(question_template="think_answr"), "did you mean 'think_answer'"),
        (dict(question_template=""), "one of the names think_answer, boxed, short, letter"),
        (dict(system="r2"), r"'r2' is neither a text nor one of the names r1, boxed"),
        (dict(system="r1", template="r1_zero"), "takes no system prompt"),
    ],
)
def test_what_cannot_be_asked_is_refused(options, said):
    with pytest.raises(OptionError) as refused:
        ProcessorOptions(**options)
    assert str(refused.value).startswith("processor: ") and said in str(refused.value)
    with pytest.raises(ValueError, match=r"question_template|system|template"):
        jaxr1.load_processor("tiny", **options)


def test_flags_and_their_mistakes(capsys):
    config = Config(stages=(Rl(Arithmetic(count=8)),))
    flags = ["--processor.system", "r1", "--processor.question-template", "think_answer"]
    options = parse(config, flags, "x").processor
    assert (options.system, options.question_template) == ("r1", "think_answer")
    for run in (
        lambda: parse(config, ["--processor.question-template", "Why?"], "x"),
        lambda: sample(["--question-template", "Why?", "hi"]),
    ):
        with pytest.raises(SystemExit) as stopped:
            run()
        captured = capsys.readouterr()
        assert stopped.value.code == 2 and "{question}" in captured.out + captured.err


def test_a_template_without_a_place_for_a_system_turn(tmp_path):
    """It is found when the model is loaded, not at the first prompt."""
    folder = jaxr1.save_model(
        *jaxr1.load_model("tiny"), jaxr1.load_processor("tiny"), tmp_path / "m"
    )
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages if m['role'] != 'system' %}{{ m['content'] }}{% endfor %}"
    )
    with pytest.raises(ValueError, match=r"system: this model cannot be asked with one: .* drops"):
        jaxr1.load_processor(folder, system="r1")
    with pytest.raises(PromptError, match="drops"):  # a row's own is found when it is met
        jaxr1.load_processor(folder).encode(jaxr1.Prompt([turn("system", "a"), turn("user", "b")]))


def test_an_export_is_asked_as_it_was_trained(tmp_path, rng, capsys):
    model, params = jaxr1.load_model("tiny")
    plain = jaxr1.load_processor("tiny")
    out = jaxr1.save_model(model, params, plain, tmp_path / "plain")
    assert not (out / PROMPT_FILE).exists()
    words = dict(system=SYSTEM, question_template="think_answer")
    worded = jaxr1.load_processor("tiny", **words)
    out = jaxr1.save_model(model, params, worded, tmp_path / "out")
    prompt = jaxr1.Prompt([turn("user", random_image(rng), "How many?")])
    meant = worded.encode(prompt)
    # alone, and with the same options again: nothing is said twice
    same(jaxr1.load_processor(out).encode(prompt), meant)
    same(jaxr1.load_processor(out, **words).encode(prompt), meant)
    again = jaxr1.save_model(model, params, jaxr1.load_processor(out), tmp_path / "again")
    same(jaxr1.load_processor(again).encode(prompt), meant)
    # and without them
    off = jaxr1.load_processor(out, system="", question_template="{question}")
    same(off.encode(prompt), plain.encode(prompt))
    back = jaxr1.save_model(model, params, off, tmp_path / "out")
    same(jaxr1.load_processor(back).encode(prompt), plain.encode(prompt))

    # the command asks alike
    capsys.readouterr()
    assert sample(["How many?", "--model", str(again), "--max-new-tokens", "12"]) == 0
    text = jaxr1.Prompt([turn("user", "How many?")])
    asked = jaxr1.generate(model, params, worded, [text], max_new_tokens=12, temperature=0)
    assert capsys.readouterr().out == asked[0][0].text + "\n"


def test_an_export_keeps_the_template(tmp_path):
    model, params = jaxr1.load_model("tiny")
    base = jaxr1.load_processor("tiny", template="r1_zero")
    out = jaxr1.save_model(model, params, base, tmp_path / "out")
    assert jaxr1.load_processor(out).template == "r1_zero"
    assert jaxr1.load_processor(out, template="chatml").template == "chatml"


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ({"system": 3}, "system must be a text or null, got 3"),
        ({"question_template": "Why?"}, "must hold {question} once"),
        ({"sistem": "x"}, "'sistem' is none of template, system, question_template"),
        ({"template": "r2"}, "'r2' is none of r1_zero"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, held, said):
    folder = jaxr1.save_model(
        *jaxr1.load_model("tiny"), jaxr1.load_processor("tiny"), tmp_path / "m"
    )
    (folder / PROMPT_FILE).write_text(json.dumps(held))
    with pytest.raises(CheckpointError) as refused:
        jaxr1.load_processor(folder)
    assert PROMPT_FILE in str(refused.value) and said in str(refused.value)
