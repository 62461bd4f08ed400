"""The house: rooms, their order, and how the code in them reads."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

# From top to bottom. Above all of them stand the commands, files of the package itself.
ROOMS = (
    "bridging",
    "run",
    "report",
    "inspection",
    "stages",
    "evaluation",
    "rl",
    "sampling",
    "models",
    "inputs",
    "rewards",
    "data",
    "media",
    "checkpoints",
    "nn",
    "parallel",
    "base",
)
PACKAGE = Path(__file__).parents[1] / "jaxr1"
ROOT = PACKAGE.parent
FILES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES = 400
LONG = "Longer than 400 lines"  # how the reason in a file begins
# Comprehensions that are nested or have a second `for`, for each 100 lines of the package.
MOST_DENSE = 0.1
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def short(file: Path) -> str:
    return str(file.relative_to(PACKAGE))


@functools.cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(file): file for file in FILES}


def imports(file: Path) -> set[str]:
    """Modules that a file imports, wherever in it; `from package import module` counts as both."""
    found = set()
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
            named = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= named & MODULES.keys()
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def room_of(module: str) -> str:
    """The room of a module of the package; "" for a command, which stands above all rooms."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else ""


@pytest.mark.parametrize("file", FILES, ids=short)
def test_rooms_import_downwards(file):
    own = room_of(module_of(file))
    if not own:
        return
    for name in imports(file):
        if name.startswith("jaxr1."):
            assert room_of(name), f"imports {name}, which is above all rooms"
            assert ROOMS.index(room_of(name)) >= ROOMS.index(own), f"imports {name} from above"


def test_every_folder_is_a_room():
    folders = {p.name for p in PACKAGE.iterdir() if p.is_dir() and not p.name.startswith("_")}
    assert folders == set(ROOMS)


def test_no_circle_of_imports():
    """Neither at the top of a file nor inside a function."""
    graph = {name: imports(file) & MODULES.keys() - {name} for name, file in MODULES.items()}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join([*way[way.index(name) :], name])
        if name not in done:
            for below in graph[name]:
                visit(below, (*way, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def constants(file: Path) -> set[str]:
    """String constants of the code of a file; docstrings are none."""
    return {
        node.value
        for node in ast.walk(tree_of(file))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


# The format of llama.cpp has architectures and splitting rules of its own, some of the same name.
OWN_NAMES = ("checkpoints/gguf.py", "checkpoints/tokenizers.py")


@pytest.mark.parametrize("file", FILES, ids=short)
def test_families_are_named_in_one_place(file):
    """What differs between families is said by values: a name elsewhere would be a branch."""
    from jaxr1.models.families.table import FAMILIES

    assert {"qwen2_5_vl", "qwen3_vl", "internvl", "llama"} <= FAMILIES.keys()
    if short(file).startswith("models/families/") or short(file) in OWN_NAMES:
        return
    assert not constants(file) & FAMILIES.keys()


def dense(file: Path) -> list[int]:
    """Lines of comprehensions that have a second `for`, or stand in another one."""
    found = []
    for node in ast.walk(tree_of(file)):
        if isinstance(node, COMPREHENSIONS):
            inner = [n for n in ast.walk(node) if n is not node and isinstance(n, COMPREHENSIONS)]
            if len(node.generators) > 1 or inner:
                found.append(node.lineno)
    return found


def test_comprehensions_are_plain():
    lines = sum(len(file.read_text().splitlines()) for file in FILES)
    found = {short(file): dense(file) for file in FILES if dense(file)}
    assert sum(map(len, found.values())) <= MOST_DENSE * lines / 100, found


@pytest.mark.parametrize("file", FILES, ids=short)
def test_conditional_expressions_are_not_nested(file):
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.IfExp):
            inner = [n for n in ast.walk(node) if n is not node and isinstance(n, ast.IfExp)]
            assert not inner, f"line {node.lineno}"


@pytest.mark.parametrize("file", FILES, ids=short)
def test_files_are_short_or_say_why_not(file):
    text = file.read_text()
    assert len(text.splitlines()) <= MOST_LINES or LONG in text


def test_a_stage_is_read_in_one_sitting():
    lines = lambda name: len((PACKAGE / name).read_text().splitlines())
    assert lines("stages/rl.py") < 200
    assert lines("stages/sft.py") < 60
    assert lines("run/loop.py") < 260


def test_the_loop_knows_no_kind_of_stage():
    called = [n.func for n in ast.walk(tree_of(PACKAGE / "run/loop.py")) if isinstance(n, ast.Call)]
    assert not [f for f in called if isinstance(f, ast.Name) and f.id == "isinstance"]


@pytest.mark.parametrize("file", FILES, ids=short)
def test_nothing_is_executed_or_fetched(file):
    """No eval, exec, pickle, torch; no remote code (invariant 10)."""
    assert not imports(file) & {"pickle", "torch", "dill", "marshal"}
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("eval", "exec", "compile"), f"line {node.lineno}"
        # What the user names as code: the configuration, and reward functions in their workers.
        if isinstance(node, ast.Attribute) and node.attr == "exec_module":
            assert short(file) in ("config.py", "rewards/worker.py"), f"line {node.lineno}"
        if isinstance(node, ast.keyword) and node.arg in (
            "trust_remote_code",
            "shell",
            "allow_pickle",
        ):
            said = node.value
            assert isinstance(said, ast.Constant) and said.value is False, f"line {said.lineno}"


@pytest.mark.parametrize(
    "command",
    [("ruff", "check", "."), ("ruff", "format", "--check", "."), ("mypy", "jaxr1")],
    ids=" ".join,
)
def test_checkers_have_nothing_to_say(command):
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
