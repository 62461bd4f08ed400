"""Naming rewards: built-in, in files, as function objects, from notebooks; and refusals."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
from cells import cell

from jaxr1.rewards import Completion, Example, Reward, RewardPool, accuracy_reward, format_reward
from jaxr1.rewards.worker import load_function

FILE = Path(__file__).with_name("user_rewards.py")


def test_construction():
    reward = Reward("format", 0.5, options={"variant": "lenient"})
    assert reward.options == (("variant", "lenient"),) and reward.label == "format"
    assert hash(reward) == hash(dataclasses.replace(reward))
    assert Reward(accuracy_reward).function == "accuracy"
    assert Reward(format_reward).function == "format"
    assert Reward("a/b.py:brevity").label == "brevity"
    saved = json.loads(json.dumps(Reward(cell(NOTEBOOK)["brevity"]).to_json()))
    assert saved["function"] == "(notebook):brevity"


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"function": "acuracy"}, "did you mean 'accuracy'"),
        ({"function": "rewards.py"}, "'rewards.py:function_name'"),
        ({"function": "format", "options": {"varient": "strict"}}, "did you mean 'variant'"),
        (
            {"function": "format", "options": {"variant": "loose"}},
            "variant must be one of 'strict'",
        ),
        ({"function": "format", "weight": float("nan")}, "weight must be a finite number"),
        ({"function": "format", "options": {"variant": [1]}}, "number, string or bool"),
        ({"function": 3}, "must be a name or a Python function"),
        ({"function": lambda c, e: 1.0}, "lambda.*with def.*Put it at the top level of a .py file"),
        ({"function": len}, "plain function"),
    ],
)
def test_bad_construction(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Reward(**kwargs)


def test_closure_is_refused():
    target = 5

    def near(completion, example):
        return float(len(completion.text) == target)

    with pytest.raises(
        ValueError, match=r"'near'.*closes over local variables.*\(target\).*Put it"
    ):
        Reward(near)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (f"{FILE}:behav", r"no function 'behav' at its top level; did you mean 'behave'\?"),
        (
            f"{FILE.parent}/user_reward.py:behave",
            "there is no file .*; did you mean .*user_rewards.py",
        ),
        (
            f"{FILE}:one_argument",
            r"one_argument in .*user_rewards.py cannot be called as f\(completion, example\)",
        ),
    ],
)
def test_bad_file_references(function, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        Reward(function).resolve(tmp_path)


def test_options_are_checked_against_the_signature(tmp_path):
    Reward(f"{FILE}:scaled", options={"scale": 2.0}).resolve(tmp_path)
    with pytest.raises(ValueError, match=r"scaled in .*got an unexpected keyword argument 'scael'"):
        Reward(f"{FILE}:scaled", options={"scael": 2.0}).resolve(tmp_path)


def test_syntax_error_names_the_line(tmp_path):
    (tmp_path / "bad.py").write_text("x = 1\ndef f(:\n")
    with pytest.raises(ValueError, match=r"bad\.py, line 2 is not valid Python"):
        Reward(f"{tmp_path / 'bad.py'}:f").resolve(tmp_path)


def test_relative_paths_follow_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("def f(completion, example):\n    return 1.0\n")
    monkeypatch.chdir(tmp_path)
    assert Reward("mine.py:f").resolve(tmp_path).path == str(tmp_path / "mine.py")


def test_module_function_keeps_its_file(tmp_path):
    function = load_function(str(FILE), "scaled")
    resolved = Reward(function).resolve(tmp_path)
    assert (resolved.path, resolved.function) == (str(FILE), "scaled")
    assert not list(tmp_path.iterdir())


def test_files_beside_and_packages_can_be_imported(tmp_path):
    (tmp_path / "helper_beside.py").write_text("VALUE = 3.0\n")
    (tmp_path / "uses_helper.py").write_text(
        "import helper_beside\ndef f(c, e):\n    return helper_beside.VALUE\n"
    )
    package = tmp_path / "some_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "other.py").write_text("VALUE = 4.0\n")
    (package / "mine.py").write_text("from .other import VALUE\ndef g(c, e):\n    return VALUE\n")
    with RewardPool(
        [Reward(f"{tmp_path}/uses_helper.py:f"), Reward(f"{package}/mine.py:g")]
    ) as pool:
        assert pool.grade([(Completion(""), Example())])[0].by_name == {"f": 3.0, "g": 4.0}


NOTEBOOK = '''
import math
import re as regex
from collections import Counter

LIMIT = 10
NAMES = {"a": [1, 2.5], "b": None}
PATTERN = regex.compile("[0-9]+", regex.I)

def helper(text):
    return min(len(text), LIMIT) + (len(text) and helper(text[1:]) * 0)

def brevity(completion, example, *, scale=LIMIT):
    """One minus the length: \\u00e9."""
    def inner(x):
        return math.sqrt(x * x)
    assert NAMES["a"] == [1, 2.5] and Counter("aa")["a"] == 2 and len(PATTERN.findall("1 2")) == 2
    return inner(1.0 - helper(completion.text) / scale)
'''


def test_notebook_function_runs_in_a_worker(tmp_path):
    function = cell(NOTEBOOK)["brevity"]
    for directory in (tmp_path, None):
        with RewardPool([Reward(function)], directory=directory) as pool:
            grades = pool.grade([(Completion("abcde"), Example()), (Completion(""), Example())])
        assert [g.total for g in grades] == [0.5, 1.0], grades
    (written,) = tmp_path.iterdir()
    assert re.fullmatch(r"reward_brevity_[0-9a-f]{10}\.py", written.name)
    # the same source is the same file
    assert Reward(function).resolve(tmp_path).path == str(written)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def f(c, e):\n    return model(c)\n", "reads the global 'model', a object"),
        (
            "def g(c):\n    return model(c)\ndef f(c, e):\n    return g(c)\n",
            "through 'g'.*reads the global 'model'",
        ),
        ("def f(c, e):\n    return nowhere(c)\n", "reads 'nowhere', which is not defined"),
        ("g = lambda c: 1.0\ndef f(c, e):\n    return g(c)\n", "calls 'g', a lambda"),
        ("class K:\n    pass\ndef f(c, e):\n    return K()\n", "reads the global 'K'"),
    ],
)
def test_notebook_functions_that_cannot_be_copied(source, message, tmp_path):
    function = cell(source, model=object())["f"]
    with pytest.raises(ValueError, match=message + "(.|\n)*Put it at the top level"):
        Reward(function).resolve(tmp_path)
    assert not list(tmp_path.iterdir())


def test_function_without_source(tmp_path):
    namespace = {"__name__": "__main__"}
    exec("def f(c, e):\n    return 1.0\n", namespace)  # the test's own literal source
    with pytest.raises(ValueError, match="no source that could be found"):
        Reward(namespace["f"]).resolve(tmp_path)
