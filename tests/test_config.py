"""Config files, flags, and what is said when one is wrong."""

import dataclasses
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxr1.config import ConfigError, load_config, parse
from jaxr1.data import Arithmetic
from jaxr1.rewards import Reward
from jaxr1.rl import Optimizer, Ppo
from jaxr1.run import Config, Evaluation, Rl, Sft
from jaxr1.run.resume import (
    FREE,
    ResumeError,
    check_config,
    differences,
    only_process,
    resolved,
    write_config,
)

ROOT = Path(__file__).parent.parent
HEADER = """\
from jaxr1.run import Config, Rl, Sft
from jaxr1.rl import Optimizer
from jaxr1.data import Arithmetic
"""


def small() -> Config:
    return Config(
        stages=(
            Sft(Arithmetic(count=8, worked=True), batch_size=4),
            Rl(Arithmetic(count=8), rewards=(Reward("accuracy"), Reward("format", weight=0.2))),
        ),
        evaluations=(Evaluation(Arithmetic(count=8, split="test")),),
    )


def write(folder, body: str) -> str:
    file = folder / "mine.py"
    file.write_text(HEADER + body)
    return str(file)


VARIANTS = """
def _helper():
    return Arithmetic(count=8)
def paper():
    return Config(stages=(Rl(_helper()),), seed=1)
def tiny():
    return Config(stages=(Rl(_helper(), steps=2),), seed=2)
def number():
    return 3
"""


def test_variants(tmp_path):
    spec = write(tmp_path, VARIANTS)
    assert load_config(spec + ":paper").seed == 1
    assert load_config(spec + ":tiny").seed == 2
    assert load_config(spec).seed == 1, "paper, unless there is a `config`"
    default = VARIANTS.replace("number", "config").replace("3", "tiny()")
    assert load_config(write(tmp_path, default)).seed == 2


def test_near_misses(tmp_path):
    spec = write(tmp_path, VARIANTS)
    said = r"no variant 'tinny'; did you mean 'tiny'\? It has: paper, tiny, number"
    with pytest.raises(ConfigError, match=said):
        load_config(spec + ":tinny")
    with pytest.raises(ConfigError, match="It has: paper, tiny, number"):
        load_config(spec + ":_helper")
    with pytest.raises(ConfigError, match="'Config'"):  # what a file imports is no variant
        load_config(spec + ":Config")
    with pytest.raises(ConfigError, match=r"number returned int, expected jaxr1\.run\.Config"):
        load_config(spec + ":number")
    with pytest.raises(ConfigError, match=r"did you mean .*mine\.py"):
        load_config(str(tmp_path / "mime.py"))
    with pytest.raises(ConfigError, match="no config file"):
        load_config(str(tmp_path / "no" / "where.py"))
    with pytest.raises(ConfigError, match=r"has no variant 'config'.*It has: none"):
        load_config(write(tmp_path, ""))


@pytest.mark.parametrize(
    ("body", "texts"),
    [
        (
            "Config(stages=(Rl(Arithmetic(8), group_sise=4),))",
            ["group_sise", "did you mean 'group_size'?", "mine.py"],
        ),
        ("Config(stage=(Rl(Arithmetic(8)),))", ["'stage'", "did you mean 'stages'?"]),
        ("Config(stages=(Rl(Arithmetic(8), temperature=0),))", ["temperature must be over 0"]),
        (
            "Config(stages=(Rl(Arithmetic(8), steps='ten'),))",
            ["stage 'rl': steps must be int, got 'ten'", "mine.py:5"],
        ),
        ("Config(stages=(Rl(Arithmetic(8)),), seed=1.5)", ["seed must be int, got 1.5"]),
        (
            "Config(stages=Rl(Arithmetic(8)))",
            ["stages must be tuple[Sft | Rl | Preference | Filter, ...], got Rl("],
        ),
        ("Config(stages=(3,))", ["stages.0 must be Sft | Rl | Preference | Filter, got 3"]),
        (
            "Config(stages=(Sft(Arithmetic(8), optimizer=Optimizer(schedule='cosin')),))",
            ["Optimizer.schedule must be 'constant' | 'cosine' | 'linear', got 'cosin'"],
        ),
        (
            "Config(stages=(Sft(Arithmetic(8), freeze='vision'),))",
            ["stage 'sft': freeze must be tuple[str, ...], got 'vision'"],
        ),
        ("Config(stages=(Rl(Arithmetic(8)),), tensorboard=1)", ["tensorboard must be bool, got 1"]),
        (
            "Config(stages=(Rl(8),))",
            [
                "data must be Arithmetic | Spatial | Files | Sat | Rated | Mixture | EasyToHard | "
                "TargetRate | DataSource, got 8"
            ],
        ),
        ("Config(stages=(Rl(),))", ["missing 1 required positional argument: 'data'"]),
        ("Config(stages=())", ["at least one stage"]),
        (
            "Config(stages=(Rl(Arithmetic(8)), Rl(Arithmetic(8))))",
            ["stage names must differ, got rl, rl"],
        ),
    ],
)
def test_wrong_keys_types_and_values(tmp_path, body, texts):
    """A mistake in a file stops at once with the path of the field and what would be accepted."""
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, f"def config():\n    return {body}\n"))
    for text in texts:
        assert text in str(caught.value)


def test_bugs_in_a_file_keep_their_traceback(tmp_path):
    for body, kind in (("int('x')", ValueError), ("None + 1", TypeError), ("missing", NameError)):
        with pytest.raises(kind):
            load_config(write(tmp_path, f"def config():\n    return {body}\n"))
    with pytest.raises(ConfigError, match=r"mine\.py:4: "):
        load_config(write(tmp_path, "def config(:\n"))


def test_shipped_configs_load():
    files = sorted((ROOT / "configs").glob("*.py"))
    assert files
    for file in files:
        config = load_config(str(file))
        json.dumps(resolved(config))


OWN_DATA = """
import dataclasses
@dataclasses.dataclass(frozen=True)
class Mine:
    path: str = "x"
    def load(self):
        return []
def config():
    return Config(stages=(Rl(Mine(), temperature=1),))
"""


def test_a_number_may_be_written_as_an_integer(tmp_path):
    """PEP 484: an int where a float is expected; and an own class where data is expected."""
    spec = write(tmp_path, OWN_DATA)
    config = parse(load_config(spec), ["--seed", "3", "--stages.0.data.path", "y"], "x")
    [stage] = config.stages
    assert stage.data.path == "y" and stage.temperature == 1 and config.seed == 3


# ---------------------------------------------------------------- flags


def test_flags_change_single_fields():
    flags = {
        "--seed": "3",
        "--run-dir": "there",
        "--stages.0.batch-size": "2",
        "--stages.1.kl.coef": "0.01",
        "--stages.1.optimizer.learning-rate": "1e-4",
        "--evaluations.0.max-response-tokens": "7",
    }
    expected = small()
    sft, rl = expected.stages
    rl = dataclasses.replace(
        rl,
        kl=dataclasses.replace(rl.kl, coef=0.01),
        optimizer=dataclasses.replace(rl.optimizer, learning_rate=1e-4),
    )
    expected = dataclasses.replace(
        expected,
        seed=3,
        run_dir="there",
        stages=(dataclasses.replace(sft, batch_size=2), rl),
        evaluations=(dataclasses.replace(expected.evaluations[0], max_response_tokens=7),),
    )
    assert parse(small(), list(itertools.chain(*flags.items())), "x") == expected
    assert parse(small(), [], "x") == small()
    assert isinstance(sft.optimizer, Optimizer)


OWN_LOSS = """
import dataclasses
from jaxr1.rl import Credit, Estimator, Term
@dataclasses.dataclass(frozen=True)
class Mine(Term):
    strength: float = 0.5
@dataclasses.dataclass(frozen=True)
class Even(Estimator):
    floor: float = 0.25
    needs_group = False
def own():
    stage = Rl(Arithmetic(count=8), surrogate=Mine(), advantage=Even(), group_size=1)
    return Config(stages=(stage,))
"""


def test_a_loss_of_ones_own_has_flags(tmp_path):
    config = load_config(write(tmp_path, OWN_LOSS) + ":own")
    assert parse(config, [], "x") == config
    flags = ["--stages.0.surrogate.strength", "0.7", "--stages.0.advantage.floor", "0.1"]
    [stage] = parse(config, flags, "x").stages
    assert type(stage.surrogate).__name__ == "Mine" and stage.surrogate.strength == 0.7
    assert type(stage.advantage).__name__ == "Even" and stage.advantage.floor == 0.1
    # In the directory of a run the kind stands beside the fields: another one is noticed.
    other = dataclasses.replace(config, stages=(dataclasses.replace(stage, surrogate=Ppo()),))
    assert any("surrogate" in line for line in differences(resolved(config), resolved(other)))


def said(capsys, flags) -> str:
    with pytest.raises(SystemExit) as caught:
        parse(small(), flags, "python -m jaxr1.train mine.py")
    captured = capsys.readouterr()
    assert caught.value.code == (0 if "--help" in flags else 2)
    # Without the frame that is drawn around it, lines joined.
    return " ".join((captured.out + captured.err).replace("│", " ").split())


def test_an_unknown_flag_suggests_the_nearest(capsys):
    text = said(capsys, ["--stages.1.group-sise", "4"])
    assert "--stages.1.group-sise" in text and "--stages.1.group-size" in text
    assert "--seed" in said(capsys, ["--sede", "4"])


@pytest.mark.parametrize(
    ("flags", "texts"),
    [
        (["--seed", "three"], ["seed", "three", "int"]),
        (["--stages.1.temperature", "0"], ["temperature must be over 0"]),
        (["--stages.1.kl.coef", "much"], ["--stages.1.kl.coef", "much"]),
        (["--seed"], ["--seed"]),
    ],
)
def test_a_flag_that_does_not_fit(capsys, flags, texts):
    text = said(capsys, flags)
    for part in texts:
        assert part in text


def test_help_whose_reader_has_gone():
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-m", "jaxr1.bench", "--help"]
    done = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, text=True)
    os.close(write_end)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_field_has_help(capsys):
    """The docstring of each options class names each of its fields on a line of its own.

    That line is what tyro shows.
    """
    text = said(capsys, ["--help"])
    assert "--stages.1.eval-every" in text and "--processor.min-pixels" in text
    assert "steps between evaluations" in text and "steps between checkpoints" in text

    def classes(value):
        if dataclasses.is_dataclass(value):
            yield type(value)
            for field in dataclasses.fields(value):
                yield from classes(getattr(value, field.name))
        elif isinstance(value, tuple):
            for item in value:
                yield from classes(item)

    for cls in set(classes(small())):
        said_of = set()
        for base in cls.__mro__:
            lines = (base.__doc__ or "").splitlines()
            said_of |= {line.split(":")[0].strip() for line in lines if ":" in line}
        missing = {field.name for field in dataclasses.fields(cls)} - said_of
        assert not missing, f"{cls.__name__} says nothing of {', '.join(missing)}"


# ---------------------------------------------------------------- the resolved configuration


def test_resolved_is_json_and_differences_name_fields():
    old = json.loads(json.dumps(resolved(small())))
    assert differences(old, resolved(small())) == []
    flags = ["--seed", "3", "--stages.1.kl.coef", "0.25", "--stages.0.data.count", "9"]
    changed = parse(small(), flags, "x")
    assert differences(old, json.loads(json.dumps(resolved(changed)))) == [
        "seed: 0 in the run, now 3",
        "stages.0.data.count: 8 in the run, now 9",
        f"stages.1.kl.coef: {small().stages[1].kl.coef} in the run, now 0.25",
    ]
    shorter = dataclasses.replace(small(), stages=small().stages[:1])
    assert [line.split(":")[0] for line in differences(old, resolved(shorter))] == ["stages"]
    sft = small().stages[0]
    swapped = dataclasses.replace(small(), stages=(sft, dataclasses.replace(sft, name="b")))
    found = differences(old, resolved(swapped))
    assert 'stages.1.class: "Rl" in the run, now "Sft"' in found
    for name in FREE:
        assert hasattr(small(), name)
    elsewhere = dataclasses.replace(small(), run_dir="elsewhere", report=False)
    assert differences(old, resolved(elsewhere)) == []


def test_a_reward_in_the_resolved_config():
    old = resolved(small())
    sft, rl = small().stages
    rl = dataclasses.replace(rl, rewards=(Reward("accuracy"), Reward("format", weight=0.7)))
    new = resolved(dataclasses.replace(small(), stages=(sft, rl)))
    assert differences(old, new) == ["stages.1.rewards.1.weight: 0.2 in the run, now 0.7"]


def test_check_config(tmp_path):
    one, two = resolved(small()), resolved(dataclasses.replace(small(), seed=9))
    assert check_config(tmp_path, one, False) == []
    write_config(tmp_path, one)
    assert check_config(tmp_path, one, False) == []
    with pytest.raises(ResumeError, match=r"seed: 0 in the run, now 9[\s\S]*--override-resume"):
        check_config(tmp_path, two, False)
    assert check_config(tmp_path, two, True) == ["seed: 0 in the run, now 9"]
    assert json.loads((tmp_path / "config.json").read_text()) == one, "only compared"
    write_config(tmp_path, two)
    assert check_config(tmp_path, two, False) == []


def test_one_process_works_in_a_directory(tmp_path):
    with only_process(tmp_path):
        said = f"in use by process {os.getpid()}"
        with pytest.raises(ResumeError, match=said), only_process(tmp_path):
            pass
    with only_process(tmp_path):
        pass


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("Rl(D, steps=0)", "steps must be at least 1, got 0"),
        ("Rl(D, prompts_per_step=0)", "prompts_per_step must be at least 1"),
        ("Rl(D, top_p=1.7)", "top_p must be in (0, 1], got 1.7"),
        ("Rl(D, reward_workers=0)", "reward_workers must be at least 1"),
        ("Rl(D, waves=0)", "waves must be at least 1"),
        ("Rl(D, strips_at_once=-1)", "strips_at_once must be at least 0, got -1"),
        ("Rl(D, kl=Kl(-1.0))", "Kl.coef must be at least 0"),
        (
            "Rl(D, optimizer=Optimizer(learning_rate=-1.0))",
            "Optimizer.learning_rate must be at least 0",
        ),
        ("Rl(D, name='a/b')", "'a/b' is part of file names: it must be 1 to 64 letters, digits"),
        ("Rl(D, name='..')", "'..' is part of file names"),
        ("Rl(D, name='a[b]')", "'a[b]' is part of file names"),
        ("Sft(D, name='a\\x1b')", "is part of file names"),
        ("Sft(D, name='')", "'' is part of file names"),
        ("Sft(D, name='eval_a_b')", "files of evaluations begin with eval_: take another name"),
        ("Rl(D),), evaluations=(E(D, name='*')", "'*' is part of file names"),
        (
            "Rl(D), Sft(D, name='a_rl')), evaluations=(E(D, name='x'), E(D, name='x_a')",
            "share the files eval_x_a_rl_STEP.jsonl: rename one",
        ),
        ("Rl(D, max_skipped_steps=-1)", "max_skipped_steps must be at least 0"),
        (
            "Rl(D, max_prompt_tokens=64, buckets=B(prompt=(32,)))",
            "buckets.prompt must reach max_prompt_tokens, 64",
        ),
        ("Sft(D, batch_size=0)", "batch_size must be at least 1"),
        ("Sft(D, epochs=-1)", "epochs must be over 0"),
    ],
)
def test_values_out_of_range(tmp_path, body, text):
    head = "from jaxr1.rl import Kl\nfrom jaxr1.run import BucketOptions as B\n"
    head += "from jaxr1.run import Evaluation as E\nD = Arithmetic(8)\n"
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, f"{head}def config():\n    return Config(stages=({body},))\n"))
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("dtype='float3'", "dtype must be '' | 'float32' | 'bfloat16', got 'float3'"),
        ("run_dir=''", "run_dir must name a folder"),
        ("evaluations=(E(D), E(D))", "evaluation names must differ, got heldout, heldout"),
        ("evaluations=(E(D, rewards=()),)", "evaluation 'heldout': no rewards"),
        (
            "evaluations=(E(D, rewards=(R('accuracy'), R('accuracy'))),)",
            "two rewards are called accuracy",
        ),
        (
            "evaluations=(E(D, rewards=(R('accuracy', name='n'),)),)",
            "a reward may not be called 'n'",
        ),
        ("processor=P(template='foo')", "ProcessorOptions.template must be"),
    ],
)
def test_run_options_out_of_range(tmp_path, body, text):
    head = "from jaxr1.run import Evaluation as E, ProcessorOptions as P\n"
    head += "from jaxr1.rewards import Reward as R\nD = Arithmetic(8)\n"
    code = f"{head}def config():\n    return Config(stages=(Rl(D),), {body})\n"
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, code))
    assert text in str(caught.value)


def test_a_relative_path_is_said_as_well(tmp_path, monkeypatch):
    """Tracebacks have absolute names whatever the path was given as."""
    write(tmp_path, "def config():\n    return Config(stages=(Rl(Arithmetic(8), group_sise=4),))\n")
    monkeypatch.chdir(tmp_path.parent)
    with pytest.raises(ConfigError, match=r"mine\.py:5: .*did you mean 'group_size'"):
        load_config(f"{tmp_path.name}/mine.py")
