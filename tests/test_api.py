"""The package as users meet it: lazy names, commands, and public functions that stay functions."""

import json
import os
import subprocess
import sys

import pytest
from reference import random_image

import jaxr1
from jaxr1.media.images import MediaError

PUBLIC = (
    "Completion",
    "Prompt",
    "generate",
    "load_model",
    "load_processor",
    "save_model",
    "score",
    "train",
)
ENV = dict(os.environ, JAX_PLATFORMS="cpu", COLUMNS="200")


def run(*args, code=0) -> subprocess.CompletedProcess:
    options = dict(capture_output=True, text=True, env=ENV, timeout=300)
    done = subprocess.run([sys.executable, *args], **options)
    assert done.returncode == code, done.stderr + done.stdout
    return done


LAZY = """
import json, sys
import jaxr1
first = sorted(m for m in ("jax", "transformers", "numpy", "torch", "tyro") if m in sys.modules)
import jaxr1.rewards.types, jaxr1.rewards.worker
jaxr1.Prompt
print(json.dumps([first, sorted(m for m in ("jax", "transformers", "torch") if m in sys.modules)]))
"""


def test_import_is_lazy():
    """A reward worker must not pay for jax; and the prompt that a notebook writes needs neither."""
    assert json.loads(run("-c", LAZY).stdout) == [[], []]


SHADOW = """
import inspect, sys
import jaxr1
from jaxr1.inputs.images import MediaError
import jaxr1.train
import jaxr1.sample
from jaxr1.train import main
assert inspect.isfunction(jaxr1.train) and jaxr1.train.__module__ == "jaxr1.run.loop", jaxr1.train
assert main is sys.modules["jaxr1.train"].main and main is not jaxr1.train
from jaxr1 import train
assert train is jaxr1.train
assert inspect.ismodule(jaxr1.sample)  # no public function is called so
jaxr1.train = 3  # a test may still patch it
assert jaxr1.train == 3
print("fine")
"""


def test_importing_a_command_does_not_hide_the_function():
    assert run("-c", SHADOW).stdout == "fine\n"


def test_the_benchmark_prints_one_line_of_phases():
    sizes = "--image 56 --prompts 2 --group 2 --tokens 48 --steps 2".split()
    found = json.loads(run("-m", "jaxr1.bench", *sizes, "--json").stdout.splitlines()[-1])
    assert set(found["phases"]) == {"encode", "prefill", "decode", "score", "update", "step"}
    for phase in found["phases"].values():
        assert phase["median_s"] > 0 and phase["first_s"] > 0 and len(phase["all_s"]) == 2
    assert found["image"] == 56 and found["decode_tokens_per_s"] > 0


def test_names():
    assert set(PUBLIC) | {"__version__"} == set(jaxr1.__all__) and set(PUBLIC) <= set(dir(jaxr1))
    for name in PUBLIC:
        assert callable(getattr(jaxr1, name))
    with pytest.raises(AttributeError) as caught:
        jaxr1.generte  # noqa: B018
    assert "'generte'" in str(caught.value) and all(name in str(caught.value) for name in PUBLIC)
    assert not hasattr(jaxr1, "nothing")


def test_train_command(capsys):
    from jaxr1.train import main

    assert main(["--help"]) == 0
    assert "--override-resume" in capsys.readouterr().out
    assert main([]) == 2
    assert main(["configs/no_such.py"]) == 1
    assert "no config file 'configs/no_such.py'" in capsys.readouterr().err


def test_train_help_lists_every_field_of_a_config():
    text = run("-m", "jaxr1.train", "configs/quickstart.py", "--help").stdout
    for flag in (
        "--seed",
        "--run-dir",
        "--stages.0.epochs",
        "--stages.1.kl.coef",
        "--evaluations.0.max-response-tokens",
    ):
        assert flag in text


def test_sample_help(capsys):
    from jaxr1.sample import main

    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    # Without the frame around it, lines joined.
    text = " ".join(capsys.readouterr().out.split()).replace("│ ", "")
    assert "--image" in text and "--max-new-tokens" in text
    assert "draw from the k most likely tokens" in text and "lower bound of the area" in text


def test_sample_prints_what_generate_says(tmp_path, rng):
    """The command on the preset: its answer is that of `jaxr1.generate`."""
    random_image(rng, 28, 60).save(tmp_path / "x.png")
    flags = ["--model", "tiny", "--image", str(tmp_path / "x.png")]
    flags += ["--max-new-tokens", "20", "--prefix", "<think>"]
    shown = run("-m", "jaxr1.sample", *flags, "What is it?").stdout
    model, params = jaxr1.load_model("tiny")
    processor = jaxr1.load_processor("tiny")
    content = [
        {"type": "image", "image": str(tmp_path / "x.png")},
        {"type": "text", "text": "What is it?"},
    ]
    prompt = jaxr1.Prompt([{"role": "user", "content": content}], prefix="<think>")
    [[c]] = jaxr1.generate(model, params, processor, [prompt], max_new_tokens=20, temperature=0)
    assert shown == f"<think>{c.text}\n"


def test_sample_names_a_mistake(capsys, tmp_path):
    from jaxr1.sample import main

    assert main(["--model", "no_such", "hi"]) == 1
    assert "error: 'no_such' is no directory" in capsys.readouterr().err
    assert main(["--image", str(tmp_path / "no.png"), "hi"]) == 1
    assert str(tmp_path / "no.png") in capsys.readouterr().err
    for flags, text in (
        (["--n", "0"], "n must be at least 1"),
        (["--stop", ""], "empty string"),
        (["--dtype", "x"], "float32"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main([*flags, "hi"])
        captured = capsys.readouterr()
        assert stopped.value.code == 2 and text in captured.out + captured.err


def test_streaming_never_shows_more_than_the_answer(capsys):
    """Text past a stop string is drawn before the host looks, and must not be seen."""
    from jaxr1.sample import main

    whole = "hi --max-new-tokens 40 --temperature 1 --seed".split()
    assert main([*whole, "5"]) == 0
    captured = capsys.readouterr()
    assert "cut at 40 tokens" in captured.err
    text = captured.out[:-1]
    for stop in {text[10:12], text[17:18], text[20:25]}:
        assert main([*whole, "5", "--stop", stop]) == 0
        assert capsys.readouterr().out == text[: text.find(stop)] + "\n"


def test_prompts_are_asked_for_by_name():
    model, params = jaxr1.load_model("tiny")
    processor = jaxr1.load_processor("tiny")
    one = jaxr1.Prompt([{"role": "user", "content": "x"}])
    with pytest.raises(TypeError, match="expected a list of prompts, got one Prompt"):
        jaxr1.generate(model, params, processor, one)
    with pytest.raises(TypeError, match=r"prompt 1 must be a .*, got str"):
        jaxr1.generate(model, params, processor, [one, "hi"])
    missing = jaxr1.Prompt([{"role": "user", "content": [{"type": "image", "image": "no.png"}]}])
    with pytest.raises(MediaError, match=r"prompt 1: 'no\.png': no such file"):
        jaxr1.generate(model, params, processor, [one, missing])
    with pytest.raises(ValueError, match="dtype must be one of float32"):
        jaxr1.load_model("tiny", dtype="float3")
