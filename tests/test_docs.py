"""The pages of options: every class, field, value, default and flag that they name is there.

A cell holds names in backticks, each of one of these forms:

    Rl.kl.coef                         a field, from a class down through the defaults of its fields
    Rl.surrogate = Gspo(token=True)    a field, and something that may stand in it
    Gspo(token=True)                   an object; a class alone is one too
"""

import ast
import dataclasses
import functools
import inspect
import itertools
import re
import shlex
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

import jaxr1.rl
from jaxr1.config import ConfigError, load_config, parse
from jaxr1.data import Arithmetic
from jaxr1.rewards import Completion, Example, Reward
from jaxr1.rewards.boxes import Units
from jaxr1.rewards.builtin import BUILT_IN
from jaxr1.rewards.format import Variant
from jaxr1.rewards.styles import STYLES
from jaxr1.rl import AdaptiveEntropy, Correction, Estimator, Gae, OnlineFilter, Term
from jaxr1.rl.objectives import PairLoss, TransportLoss
from jaxr1.rl.objectives.kl import Kl, KlEstimator
from jaxr1.rl.weights import Aggregation
from jaxr1.run import Answers, Config, Critic, Preference, Rl, Sft

ROOT = Path(__file__).parents[1]
OPTIONS, OBJECTIVES = (ROOT / "notebooks" / f"{name}.md" for name in ("options", "objectives"))
REWARDS = ROOT / "notebooks" / "rewards.md"
DATA = Arithmetic(count=8)
STAGES = {"Rl": Rl, "Preference": Preference, "Sft": Sft}
NAMES = {name: value for name, value in vars(jaxr1.rl).items() if not name.startswith("_")} | {
    "Answers": Answers,
    "Critic": Critic,
    "Reward": Reward,
}
REQUIRED = dataclasses.MISSING  # the default of a field that must be given
UNSAID = object()


# --- what is written ----------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table: its text by the titles of columns."""

    line: str
    cells: dict[str, str]

    def spans(self, title: str) -> list[str]:
        return spans(self.cells.get(title, ""))


@dataclasses.dataclass(frozen=True)
class Field:
    """A field that is named, and what may stand in it."""

    root: type
    path: tuple[str, ...]
    value: Any = UNSAID

    @property
    def default(self) -> Any:
        return default(self.root, self.path)


def spans(text: str) -> list[str]:
    return re.findall("`([^`]*)`", text)


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def rows(text: str) -> list[Row]:
    """The rows of all tables of a page."""
    found, titles = [], []
    for line in text.splitlines():
        if not line.startswith("|"):
            titles = []
        elif not titles:
            titles = cells_of(line)
        elif not set(line) <= set("|-"):
            cells = cells_of(line)
            assert len(cells) == len(titles), line
            found.append(Row(line, dict(zip(titles, cells, strict=True))))
    return found


def prose(text: str) -> list[str]:
    """What is in backticks outside tables and blocks of code."""
    kept = re.sub(r"```.*?```", "", text, flags=re.DOTALL).splitlines()
    return spans("\n".join(line for line in kept if not line.startswith(("|", "    "))))


def evaluate(text: str) -> Any:
    """What names, numbers and calls in a cell stand for; nothing else is carried out."""
    known = NAMES | {name: functools.partial(stage, DATA) for name, stage in STAGES.items()}

    def value(node: ast.expr) -> Any:
        if isinstance(node, ast.Name):
            return known[node.id]
        if isinstance(node, ast.Tuple):
            return tuple(map(value, node.elts))
        if isinstance(node, ast.Attribute):
            return getattr(value(node.value), node.attr)
        if isinstance(node, ast.Call):
            named = {keyword.arg: value(keyword.value) for keyword in node.keywords}
            return value(node.func)(*map(value, node.args), **named)
        return ast.literal_eval(node)

    try:
        return value(ast.parse(text, mode="eval").body)
    except Exception as e:
        raise AssertionError(f"`{text}`: {e}") from e


def read(text: str) -> Any:
    """A `Field`, or an object."""
    form = re.fullmatch(r"([A-Z]\w*)((?:\.\w+)+)(?: = (.+))?", text)
    if form is None:
        return evaluate(text)
    name, path, value = form.groups()
    assert name in NAMES | STAGES, f"`{text}`: there is no {name}"
    field = Field((NAMES | STAGES)[name], tuple(path[1:].split(".")))
    field.default  # noqa: B018 - there is such a field
    return field if value is None else dataclasses.replace(field, value=evaluate(value))


def default(root: type, path: tuple[str, ...]) -> Any:
    owner, value = root, UNSAID
    for name in path:
        fields = dataclasses.fields(owner) if dataclasses.is_dataclass(owner) else ()
        known = {field.name: field for field in fields}
        assert name in known, f"{root.__name__}.{'.'.join(path)}: {owner.__name__} has no {name}"
        value = known[name].default if value is UNSAID else getattr(value, name)
        owner = type(value)
    return value


def check_default(stated: str, actual: Any) -> None:
    value = REQUIRED if stated == "required" else evaluate(stated)
    same = type(value) is type(actual) and value == actual
    assert same, f"the page says {stated}, the code {actual!r}"


def literals(hint: Any) -> list[Any]:
    """What a field of a few values takes."""
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    return list(itertools.chain.from_iterable(map(literals, get_args(hint))))


# --- what it stands for -------------------------------------------------------------------------
def made(kind: type) -> Any:
    """An object of a class, with some value where one must be given."""
    if kind is Reward:
        return Reward("accuracy")
    hints, given = typing.get_type_hints(kind), {}
    for field in dataclasses.fields(kind):
        if field.default is REQUIRED and field.default_factory is REQUIRED:
            few = literals(hints[field.name])
            given[field.name] = few[0] if few else 2.0
    return kind(**given)


def stage_of(thing: Any) -> Any:
    """A stage in which an object stands."""
    if isinstance(thing, Estimator):
        critic = Critic() if "old_value" in thing.needs else None
        return Rl(DATA, advantage=thing, critic=critic)
    if isinstance(thing, Critic):
        return Rl(DATA, advantage=Gae(), critic=thing)
    if isinstance(thing, Correction):
        return Rl(DATA, corrections=(thing,))
    if isinstance(thing, AdaptiveEntropy):
        return Rl(DATA, entropy=thing)
    if isinstance(thing, OnlineFilter):
        return Rl(DATA, online_filter=thing)
    if isinstance(thing, Reward):
        return Rl(DATA, rewards=(thing,))
    if isinstance(thing, Answers):
        return Preference(DATA, answers=thing)
    if isinstance(thing, PairLoss | TransportLoss):
        return Preference(DATA, losses=(thing,))
    assert isinstance(thing, Term), f"where does a {type(thing).__name__} stand?"
    return Rl(DATA, surrogate=thing)


def assigned(fields: list[Field]) -> dict[type, Any]:
    """{stage: one with everything that a row puts into it}; each checks itself."""
    kinds = {field.root for field in fields} & set(STAGES.values())
    found = {}
    for kind in kinds:
        given = {f.path[0]: f.value for f in fields if f.root is kind and f.value is not UNSAID}
        try:
            found[kind] = kind(DATA, **given)
        except (TypeError, ValueError) as e:
            raise AssertionError(str(e)) from e
    return found


def flagged(flag: str, fields: list[Field], stages: dict[type, Any]) -> tuple[Any, Any]:
    """The stage that has a flag, and the value there."""
    assert flag.startswith("--stages.1."), flag
    names = flag.removeprefix("--stages.1.").replace("-", "_").split(".")
    fitting = [field for field in fields if tuple(names[-len(field.path) :]) == field.path]
    assert fitting, f"{flag} is no flag of the row's fields"
    field = fitting[0]
    stage = stages[field.root] if field.root in stages else stage_of(made(field.root))
    value, owners = stage, []
    for name in names:
        owners.append(value)
        value = value[int(name)] if name.isdigit() else getattr(value, name, UNSAID)
        assert value is not UNSAID, f"{flag}: there is no {name}"
    assert type(owners[-len(field.path)]) is field.root, f"{flag} is not of {field.root.__name__}"
    return stage, value


def check_option(row: Row) -> dict[Any, list[str]]:
    """Checks a row of options; gives its flags, with their values, by stage."""
    fields = [found for found in map(read, row.spans("here")) if isinstance(found, Field)]
    for field, stated in zip(fields, row.spans("default"), strict=True):
        check_default(stated, field.default)
    stages, flags = assigned(fields), {}
    for flag in row.spans("flag"):
        stage, value = flagged(flag, fields, stages)
        words = map(str, value) if isinstance(value, tuple) else [str(value)]
        flags.setdefault(stage, []).extend([flag, *words])
    known = set()
    for field in fields:
        hints = typing.get_type_hints(owner_of(field))
        known |= {repr(value) for value in literals(hints[field.path[-1]])}
    for text in row.spans("where it differs"):
        if not check_prose(text):
            assert repr(text.strip('"')) in known, f"`{text}` is no value of {row.cells['here']}"
    return flags


def owner_of(field: Field) -> type:
    """The class that has it."""
    return type(default(field.root, field.path[:-1])) if field.path[1:] else field.root


def check_prose(text: str) -> bool:
    """Whether it is one of our names; other words, such as names of metrics, are not checked."""
    if not re.match(r"[A-Z][A-Za-z]+($|[.(])", text):
        return False
    if text in STAGES:
        return True
    read(text)
    return True


def check_objective(row: Row) -> tuple[type, set[str]]:
    """Checks a row of objectives; gives its class and the fields of it that the row names."""
    found = [read(text) for text in row.spans("here")]
    fields = [one for one in found if isinstance(one, Field)]
    stages = assigned(fields)
    first = found[0].value if isinstance(found[0], Field) else found[0]
    first = first[0] if isinstance(first, tuple) else first
    kind = first if inspect.isclass(first) else type(first)
    kind = kind if dataclasses.is_dataclass(kind) else next(iter(stages))
    owned = {field.name for field in dataclasses.fields(kind)}
    for text in row.spans("options"):
        name, _, stated = text.partition(" = ")
        owner = kind if name in owned else next(iter(stages), kind)
        check_default(stated, default(owner, (name,)))
    return kind, {text.partition(" = ")[0] for text in row.spans("options")} & owned


def own_fields(kind: type) -> set[str]:
    """Fields that a class adds, or gives another default than the class it is made from."""
    parent = kind.__mro__[1]
    before = {}
    if dataclasses.is_dataclass(parent):
        before = {field.name: field.default for field in dataclasses.fields(parent)}
    return {f.name for f in dataclasses.fields(kind) if before.get(f.name, REQUIRED) != f.default}


def objects(text: str) -> list[Any]:
    """Everything of ours that a page names."""
    found = []
    written = [span for row in rows(text) for span in row.spans("here")]
    for span in written + [span for span in prose(text) if check_prose(span)]:
        one = read(span) if span not in STAGES else STAGES[span]
        one = one.value if isinstance(one, Field) else one
        found += one if isinstance(one, tuple) else [one]
    return found


def forgotten(text: str) -> set[str]:
    """Terms, estimators, corrections and values of theirs that a page leaves out."""
    there = objects(text)
    kinds = {one if inspect.isclass(one) else type(one) for one in there}
    found = set()
    for name, kind in vars(jaxr1.rl).items():
        is_ours = inspect.isclass(kind) and issubclass(kind, Term | Estimator | Correction)
        if is_ours and dataclasses.is_dataclass(kind) and kind not in kinds:
            found.add(name)
    words = {one for one in there if isinstance(one, str)}
    words |= {one.estimator for one in there if isinstance(one, Kl)}
    return found | {*get_args(Aggregation), *get_args(KlEstimator), "full"} - words


# --- the pages ----------------------------------------------------------------------------------
def test_options():
    flags: dict[Any, list[str]] = {}
    checked = [row for row in rows(OPTIONS.read_text()) if "default" in row.cells]
    assert len(checked) > 100
    for row in checked:
        try:
            found = check_option(row)
        except (AssertionError, ValueError) as e:
            raise AssertionError(f"{row.line}: {e}") from e
        for stage, words in found.items():
            flags.setdefault(stage, []).extend(words)
    # The command line takes them, and they say what is there already.
    for stage, words in flags.items():
        config = Config(stages=(Sft(DATA), stage))
        assert parse(config, words, "docs") == config


def test_objectives():
    named: dict[type, set[str]] = {}
    for row in rows(OBJECTIVES.read_text()):
        try:
            kind, fields = check_objective(row)
        except AssertionError as e:
            raise AssertionError(f"{row.line}: {e}") from e
        named.setdefault(kind, set()).update(fields)
    for kind, fields in named.items():
        if kind not in STAGES.values():
            assert fields >= own_fields(kind), f"{kind.__name__}: {own_fields(kind) - fields}"


def test_nothing_is_forgotten():
    text = OBJECTIVES.read_text()
    assert forgotten(text) == set()
    kept = lambda *gone: "\n".join(
        line for line in text.splitlines() if not any(word in line for word in gone)
    )
    assert forgotten(kept("Gspo(")) == {"Gspo"}
    assert forgotten(kept("Rloo(", "TokenMask(")) == {"Rloo", "TokenMask"}
    assert forgotten(kept('"token-sum"', '"k3+"')) == {"token-sum", "k1+", "abs+", "k3+"}


@pytest.mark.parametrize("page", [OPTIONS, OBJECTIVES], ids=lambda page: page.stem)
def test_words_between_tables(page):
    text = page.read_text()
    unchecked = [row for row in rows(text) if "instead" in row.cells]
    named = [*prose(text), *(span for row in unchecked for span in row.spans("instead"))]
    assert sum(map(check_prose, named)) > 3
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / target).is_file(), target


@pytest.mark.parametrize(
    ("start", "old", "new"),
    [
        ("| TRL `beta` (0), ms", "Rl.kl.coef", "Rl.kl.weight"),
        ("| TRL `beta` (0), ms", "--stages.1.kl.coef", "--stages.1.kl.coeff"),
        ("| TRL `beta` (0), ms", "`0.0`", "`0.04`"),
        ("| TRL `beta` (0), ms", "`0.0`", "`0`"),
        ("| verl `cliprange_value`", "Critic.clip", "Criticc.clip"),
        ("| verl `cliprange_value`", "`0.2`", "`required`"),
        ("| verl `rollout_rs_threshold`", "`required`", "`5.0`"),
        ("| TRL `luspo`", "Luspo()", "Luspo(clip=0.1)"),
        ("| verl `dppo_kl`", '"kl"', '"k1"'),
        ("| verl `token-sum`", '"token-sum"', '"tokensum"'),
        ("| verl `ppo_epochs`", "--stages.1.inner-epochs", "--stages.1.waves"),
        ("| TRL `scale_rewards` (", "`batch`", "`step`"),
        ("| TRL `robust`", "RobustDpo(),", "Rloo(),"),
        ("| `gae`", "`Rl.critic = Critic()`", "`Rl.critic = None`"),
        ("| its clip, of the log ratio", "`0.4` `0.4`", "`0.4`"),
    ],
)
def test_a_broken_option_is_found(start, old, new):
    row = next(row for row in rows(OPTIONS.read_text()) if row.line.startswith(start))
    check_option(row)
    assert old in row.line
    broken = {title: cell.replace(old, new, 1) for title, cell in row.cells.items()}
    with pytest.raises((AssertionError, ValueError)):
        check_option(dataclasses.replace(row, cells=broken))


@pytest.mark.parametrize(
    ("start", "old", "new"),
    [
        ("| GRPO |", "`eps = 1e-6`", "`eps = 1e-4`"),
        ("| GRPO |", "`eps = 1e-6`", "`epsilon = 1e-6`"),
        ("| k1, `kl` |", '"k1"', '"kl1"'),
        ("| DRO |", "`beta = required`", "`beta = 0.1`"),
        ("| MPO", "MPO`", "MPPO`"),
        ("| MPO", "`bco_momentum = 0.0`", "`bco_momentum = 0.99`"),
    ],
)
def test_a_broken_objective_is_found(start, old, new):
    row = next(row for row in rows(OBJECTIVES.read_text()) if row.line.startswith(start))
    check_objective(row)
    assert old in row.line
    broken = {title: cell.replace(old, new, 1) for title, cell in row.cells.items()}
    with pytest.raises(AssertionError):
        check_objective(dataclasses.replace(row, cells=broken))


def test_updates_of_recipes():
    recipes = [row for row in rows(OPTIONS.read_text()) if "recipe" in row.cells]
    assert [evaluate(row.spans("here")[0]).updates for row in recipes] == [16, 8, 1]
    for row in recipes:
        stage = evaluate(row.spans("here")[0])
        sizes = f"{stage.prompts_per_step} prompts x {stage.group_size} responses"
        assert sizes in row.cells["its batch sizes"]
        assert row.cells["updates"].split()[-1] == str(stage.updates)


def test_the_readme():
    """It has the pages, and every variant of the quickstart."""
    text = (ROOT / "README.md").read_text()
    (section,) = re.findall(r"### Other methods\n(.*?)\n##", text, flags=re.DOTALL)
    assert sum(map(check_prose, prose(section))) > 1
    linked = re.findall(r"\]\(([^)#:]+)\)", section)
    methods = ROOT / "notebooks" / "methods.md"
    assert {ROOT / target for target in linked} == {OPTIONS, OBJECTIVES, methods}
    assert methods.is_file()
    spec = str(ROOT / "configs/quickstart.py")
    with pytest.raises(ConfigError) as error:
        load_config(spec + ":none of them")
    variants = str(error.value).partition("It has: ")[2].split(", ")
    assert len(variants) > 8
    for variant in variants:
        assert variant == "config" or re.search(rf"\b{variant}\b", text), variant
        load_config(f"{spec}:{variant}")


def test_commands(tmp_path, monkeypatch):
    """The configuration of the page is one, and its commands fit."""
    text = OPTIONS.read_text()
    (block,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    (tmp_path / "my_run.py").write_text(block)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^    python -m jaxr1\.train (.*)$", text, flags=re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        spec, *flags = shlex.split(command)
        before = load_config(spec)
        assert parse(before, flags, "docs") != before
    assert load_config("my_run.py:gspo").stages[0].surrogate == NAMES["Gspo"]()


# --- rewards ------------------------------------------------------------------------------------
def titled(page, *titles):
    """{name: row} of the tables that begin with one of these titles."""
    kept = [row for row in rows(page) if next(iter(row.cells)) in titles]
    return {row.spans(next(iter(row.cells)))[0]: row for row in kept}


def check_reward(name: str, row: Row) -> None:
    """Its options are those of the signature, with their defaults."""
    parameters = inspect.signature(BUILT_IN[name].load()).parameters
    stated = dict(text.partition(" = ")[::2] for text in row.spans("options"))
    assert list(stated) == list(BUILT_IN[name].options()), name
    for option, value in stated.items():
        actual = parameters[option].default
        if not value:
            assert actual is inspect.Parameter.empty, f"{name}: {option} has the default {actual!r}"
        else:
            check_default(value, actual)


def test_built_in_rewards():
    found = titled(REWARDS.read_text(), "reward")
    assert found.keys() == BUILT_IN.keys()
    for name, row in found.items():
        check_reward(name, row)
    variants = titled(REWARDS.read_text(), "variant")
    assert tuple(variants) == get_args(Variant)
    assert tuple(titled(REWARDS.read_text(), "units")) == get_args(Units)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("label", '`table = ""`', ""),
        ("cosine", "`correct_end = 0.5`", "`correct_end = 0.4`"),
        ("cosine", "`max_length`", "`max_length = 9`"),
        ("numeric", "`absolute = 0.0`", "`absolut = 0.0`"),
        ("remote", "`url`", ""),
    ],
)
def test_a_broken_row_of_rewards_is_found(name, old, new):
    row = titled(REWARDS.read_text(), "reward")[name]
    check_reward(name, row)
    assert old in row.line
    broken = {title: cell.replace(old, new, 1) for title, cell in row.cells.items()}
    with pytest.raises(AssertionError):
        check_reward(name, dataclasses.replace(row, cells=broken))


def test_parts_of_rewards():
    """What built-in rewards return beside their value is on the page."""
    found = titled(REWARDS.read_text(), "reward")
    box = '[{"bbox_2d": [0, 0, 1, 1]}]'
    answers = {"json_fields": '{"a": 1}', "detection": box, "iou": "[0, 0, 1, 1]"}
    for name in ("format_result", "label", "iou", "detection", "json_fields"):
        options = {key: "unit" for key in ("boxes", "gold") if key in BUILT_IN[name].options()}
        answer = answers.get(name, "1")
        completion = Completion(f"<think>a</think><answer>{answer}</answer>")
        given = BUILT_IN[name].load()(completion, Example(answer=answer), **options)
        assert ["score", *found[name].spans("parts")] == list(given), name


def test_styles_of_rewards():
    found = titled(REWARDS.read_text(), "style")
    assert list(found) == list(STYLES)
    for name, row in found.items():
        known_by = STYLES[name].known_by
        assert tuple(row.spans("known by"))[: len(known_by)] == known_by, name
        named = set(row.spans("called") + row.spans("known by"))
        assert name in ("trl", "ms-swift", "verl-batch") or set(STYLES[name].offered) <= named


def test_the_rewards_of_the_page(tmp_path):
    """Its example is one, but for the file that it names; and the README names the page."""
    (block,) = re.findall(r"```python\n(.*?)```", REWARDS.read_text(), flags=re.DOTALL)
    (tmp_path / "their_rewards.py").write_text(
        "def compute_score(data_source, solution_str, ground_truth, extra_info): ...\n"
    )
    (tmp_path / "page.py").write_text(block)
    code = (
        "import page\nfrom jaxr1.rewards.spec import check_labels\n"
        "check_labels(page.rewards)\n"
        "print(*(r.resolve('.').name for r in page.rewards))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["accuracy", "format", "compute_score", "judge", "task"], (
        done.stderr
    )
    assert "](notebooks/rewards.md)" in (ROOT / "README.md").read_text()
