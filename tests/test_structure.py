"""The house: a room imports only from the rooms below it, and nothing executes what it reads."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOMS = (
    "run", "report", "stages", "evaluation", "rl", "sampling", "models", "inputs", "rewards", "data", "media",
    "checkpoints", "nn", "parallel", "base",
)  # fmt: skip
PACKAGE = Path(__file__).parents[1] / "jaxr1"
FILES = sorted(p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE)


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_rooms_import_downwards(file):
    own = ROOMS.index(file.relative_to(PACKAGE).parts[0])
    for name in imports(file):
        parts = name.split(".")
        if parts[0] == "jaxr1" and len(parts) > 1:
            assert parts[1] in ROOMS, f"{file.name} imports {name}, which is above all rooms"
            assert ROOMS.index(parts[1]) >= own, f"{file.name} imports {name} from above"


@pytest.mark.parametrize(
    "file", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_nothing_is_executed_or_fetched(file):
    """No eval, exec, pickle, torch; no remote code (design, invariant 10)."""
    assert not imports(file) & {"pickle", "torch", "dill", "marshal"}
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("eval", "exec", "compile"), f"line {node.lineno}"
        if isinstance(node, ast.keyword) and node.arg in (
            "trust_remote_code",
            "shell",
            "allow_pickle",
        ):
            assert isinstance(node.value, ast.Constant) and node.value.value is False, (
                f"line {node.value.lineno}"
            )


@pytest.mark.parametrize(
    "command",
    [("ruff", "check", "."), ("ruff", "format", "--check", "."), ("mypy", "jaxr1")],
    ids=" ".join,
)
def test_checkers_have_nothing_to_say(command):
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=PACKAGE.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
