"""Function objects as rewards: finds their file, or copies their source where they have none.

A function of a notebook or an interactive session has no file that a worker process could import.
Its source is written to one, with what it reads of its module: imports, other functions, constants
and patterns. Nothing is pickled, and what cannot be written down as source is refused by name.
"""

from __future__ import annotations

import ast
import builtins
import dis
import hashlib
import inspect
import math
import os
import re
import sys
import textwrap
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxr1.rewards.styles import SIGNATURE, STYLES, check_call, style_of

MAX_LITERAL_DEPTH = 8
MAX_LITERAL_ITEMS = 10_000

_TO_FILE = "Put it at the top level of a .py file and give 'path.py:function_name'."


def check_function(
    function: Callable[..., Any], options: Mapping[str, Any], style: str = ""
) -> None:
    """Checks that a worker process could have this function and call it.

    Args:
      function: a function, or a class of callables.
      options: keyword arguments of every call.
      style: its style, a name of `STYLES`; "" is that it is to be recognised.

    Raises:
      ValueError: it is neither, a lambda or a closure, or it cannot be called as its style wants.
    """
    if inspect.isclass(function):
        return  # it has a file, or `locate` says so, and the file is checked
    if not isinstance(function, types.FunctionType):
        kind = type(function).__name__
        raise ValueError(
            f"a reward must be a plain function ({SIGNATURE}), not a {kind}: {function!r}. "
            f"{_TO_FILE}"
        )
    name = function.__name__
    if name == "<lambda>":
        raise ValueError(
            "a lambda cannot be a reward: it has no name by which a worker process could load it. "
            f"Write it with def. {_TO_FILE}"
        )
    if function.__code__.co_freevars:
        names = ", ".join(function.__code__.co_freevars)
        raise ValueError(
            f"the function {name!r} cannot be a reward: it closes over local variables of the "
            f"function that made it ({names}), which a worker process does not have. "
            f"Pass them as options, or: {_TO_FILE}"
        )
    signature = inspect.signature(function)
    reward_type = function.__globals__.get("REWARD_TYPE")
    known = STYLES.get(style) or style_of(signature.parameters, reward_type)
    check_call(signature, f"the reward function {name!r}", options, known)


def describe_function(function: Callable[..., Any]) -> str:
    """A function object as file and name, for the resolved config of a run."""
    try:
        path = inspect.getsourcefile(function) or "?"
    except TypeError:  # a class of a notebook
        path = "?"
    return f"{path if _is_file(path) else '(notebook)'}:{function.__name__}"


def locate(function: Any, directory: Path) -> tuple[Path, str]:
    """The (file, name) from which a worker can load a function object.

    Args:
      function: one that `check_function` lets pass.
      directory: where the source of a function without a file of its own is written; made when
        needed.

    Raises:
      ValueError: the function has no file, and cannot be copied; a class never can.
    """
    name, home = function.__name__, sys.modules.get(function.__module__)
    is_class = inspect.isclass(function)
    try:
        path = inspect.getsourcefile(function)
    except TypeError:  # a class of a notebook
        path = None
    there = vars(home) if is_class and home is not None else getattr(function, "__globals__", {})
    at_top = function.__qualname__ == name and there.get(name) is function
    # a script run as __main__ would run once more if a worker imported it
    if _is_file(path) and at_top and function.__module__ != "__main__":
        return Path(str(path)).absolute(), name
    if is_class:
        raise ValueError(
            f"the class {name!r} cannot be copied to a worker process: only functions can. "
            f"{_TO_FILE}"
        )
    copy = _Copy(name)
    copy.add_function(function)
    text = copy.text()
    digest = hashlib.sha256(text.encode()).hexdigest()[:10]
    directory.mkdir(parents=True, exist_ok=True)
    target = directory.absolute() / f"reward_{re.sub(r'[^A-Za-z0-9_]', '_', name)}_{digest}.py"
    scratch = target.with_suffix(f".{os.getpid()}.tmp")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(target)  # another process may be reading the old one
    return target, name


def _is_file(path: str | None) -> bool:
    return path is not None and path.endswith(".py") and Path(path).is_file()


class _Copy:
    """The source of a function and of all it needs, collected piece by piece.

    Attributes:
      first: name of the function that is copied.
      pieces: source by what it defines, users before what they use: the file has it in reverse.
      imports: import statements.
    """

    def __init__(self, first: str) -> None:
        self.first = first
        self.pieces: dict[str, str] = {}
        self.imports: set[str] = set()

    def text(self) -> str:
        """The file."""
        origin = "copied from a notebook or an interactive session"
        lines = [
            f'"""The reward function {self.first}, {origin}."""',
            "",
            "from __future__ import annotations",
            "",
            *sorted(self.imports),
        ]
        return "\n".join(lines) + "\n\n\n" + "\n\n".join(reversed(self.pieces.values())) + "\n"

    def add_function(self, function: types.FunctionType) -> None:
        """Adds the source of a function, and what it reads of its module's globals.

        Raises:
          ValueError: that cannot be done.
        """
        name = function.__name__
        try:
            source = textwrap.dedent(inspect.getsource(function))
            node = ast.parse(source).body[0]
        except (OSError, TypeError, SyntaxError, IndexError):
            raise self._refusal(name, "has no source that could be found") from None
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            raise self._refusal(name, "is not made by a def statement")
        self.pieces[f"def {name}"] = source.rstrip()
        needed = set(_global_names(function.__code__)) | _names_of_definition(node)
        for key in sorted(needed - {name}):
            if key in function.__globals__:
                self._add_global(key, function.__globals__[key], name)
            elif not hasattr(builtins, key):
                raise self._refusal(name, f"reads {key!r}, which is not defined")

    def _add_global(self, key: str, value: Any, user: str) -> None:
        """Adds what gives the global `key` its value, for the function called `user`."""
        line = _import_line(key, value)
        if line is not None:
            self.imports.add(line)
        elif isinstance(value, types.FunctionType):
            if value.__name__ != key or value.__code__.co_freevars:
                raise self._refusal(user, f"calls {key!r}, a lambda, closure or renamed function")
            if f"def {key}" not in self.pieces:
                self.add_function(value)
        elif isinstance(value, re.Pattern):
            self.imports.add("import re")
            self.pieces[f"= {key}"] = f"{key} = re.compile({value.pattern!r}, {int(value.flags)})"
        elif _is_literal(value):
            # taken out first, so that it becomes the last piece, which is the first of the file:
            # defaults that name it are evaluated as the file is read
            self.pieces.pop(f"= {key}", None)
            self.pieces[f"= {key}"] = f"{key} = {value!r}"
        else:
            kind = type(value).__name__
            raise self._refusal(
                user, f"reads the global {key!r}, a {kind} that cannot be written down as source"
            )

    def _refusal(self, name: str, reason: str) -> ValueError:
        via = "" if name == self.first else f" (through {name!r})"
        return ValueError(
            f"the function {self.first!r} cannot be copied to a worker process: it{via} {reason}. "
            f"{_TO_FILE}"
        )


def _names_of_definition(node: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    """The names in defaults and decorators, which are evaluated when the file is loaded."""
    names = set()
    for part in [*node.decorator_list, *node.args.defaults, *filter(None, node.args.kw_defaults)]:
        names |= {n.id for n in ast.walk(part) if isinstance(n, ast.Name)}
    return names


def _global_names(code: types.CodeType) -> Iterator[str]:
    """The global names that a code object reads, its nested functions included, no attributes."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield str(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _global_names(constant)


def _import_line(key: str, value: Any) -> str | None:
    """The import that gives `key` this value in another process; None if there is none."""
    if isinstance(value, types.ModuleType):
        return f"import {value.__name__} as {key}" if value.__name__ != "__main__" else None
    module, name = getattr(value, "__module__", None), getattr(value, "__name__", None)
    if not isinstance(module, str) or not isinstance(name, str) or module == "__main__":
        return None
    home = sys.modules.get(module)
    # a module without a spec is an interactive one: it cannot be imported elsewhere
    if getattr(home, "__spec__", None) is None or getattr(home, name, None) is not value:
        return None
    return f"from {module} import {name} as {key}"


def _is_literal(value: Any, depth: int = 0) -> bool:
    """Whether the repr of a value is a source that gives it back, and of a sensible size."""
    if value is None or type(value) in (bool, int, str, bytes):
        return True
    if type(value) is float:
        return math.isfinite(value)
    if type(value) not in (list, tuple, set, dict) or depth > MAX_LITERAL_DEPTH:
        return False
    if type(value) is set and not value:  # its repr is a call
        return False
    if len(value) > MAX_LITERAL_ITEMS:
        return False
    parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value
    return all(_is_literal(part, depth + 1) for part in parts)
