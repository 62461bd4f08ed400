"""Which reward functions a run uses, and how a worker process finds them again.

    "accuracy", "format"          built in
    "my_rewards.py:brevity"       a function at the top level of a file
    brevity                       a Python function object: its file if it has one, else (notebook) its source is copied

Nothing is pickled and no user file is executed in the main process: files are read as syntax trees
to check that the function exists and can be called, and workers import them.
"""

from __future__ import annotations

import ast
import builtins
import difflib
import dis
import hashlib
import inspect
import math
import os
import re
import sys
import textwrap
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OptionValue = float | str | bool

SIGNATURE = "def f(completion, example) -> float | None"

BUILTIN: dict[str, dict[str, tuple[Any, ...] | type]] = {
    # name: {option: accepted values}
    "accuracy": {"unparsable_gold": ("none", "one"), "tail": (True, False)},
    "format": {"variant": ("strict", "whitespace", "lenient")},
}
NEEDS_REFERENCE = ("accuracy",)
_BUILTIN_OBJECTS = {
    ("jaxr1.rewards.accuracy", "accuracy_reward"): "accuracy",
    ("jaxr1.rewards.format", "format_reward"): "format",
}


@dataclass(frozen=True)
class ResolvedReward:
    """A reward that a worker can load: everything here is JSON.

    Attributes:
      name: the key of its values in grades and metrics (`reward/<name>`).
      weight: its factor in the total.
      path: absolute path of the file that defines it; "" for a built-in one.
      function: the function's name in that file, or the built-in's name.
      options: keyword arguments of every call.
    """

    name: str
    weight: float
    path: str
    function: str
    options: dict[str, OptionValue]

    @property
    def where(self) -> str:
        """The function as error messages name it."""
        return f"{self.function} in {self.path}" if self.path else f"built-in {self.function}"

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "weight": self.weight,
            "path": self.path,
            "function": self.function,
            "options": self.options,
        }


@dataclass(frozen=True)
class Reward:
    """One component of the reward of a stage.

    Attributes:
      function: "accuracy", "format", "path.py:function" (relative to the working directory, or
        absolute), or a Python function with the signature `def f(completion, example) -> float |
        None`; see `jaxr1.rewards.types`.
      weight: its factor in the total.
      name: its name in metrics and tables; by default the function's.
      options: keyword arguments for the function, as a mapping or as pairs, e.g. {"variant":
        "lenient"} for "format".

    Raises:
      ValueError: unknown built-in or option, a bad weight, a function object that cannot be sent to
        a worker.
    """

    function: str | Callable[..., float | None] = "accuracy"
    weight: float = 1.0
    name: str = ""
    options: tuple[tuple[str, OptionValue], ...] = ()

    def __post_init__(self) -> None:
        pairs = self.options.items() if isinstance(self.options, Mapping) else self.options
        # a tuple: the dataclass stays hashable and frozen all the way down
        object.__setattr__(self, "options", tuple((str(key), value) for key, value in pairs))
        if (
            isinstance(self.weight, bool)
            or not isinstance(self.weight, int | float)
            or not math.isfinite(self.weight)
        ):
            raise ValueError(
                f"reward {self.label!r}: weight must be a finite number, got {self.weight!r}"
            )
        for key, value in self.options:
            if not isinstance(value, bool | int | float | str):
                raise ValueError(
                    f"reward {self.label!r}: option {key!r} must be a number, string or bool, got {value!r}"
                )
        if callable(self.function):
            name = _builtin_name(self.function)
            if name is None:
                _check_callable(self.function, dict(self.options))
            else:
                object.__setattr__(self, "function", name)
        elif not isinstance(self.function, str):
            raise ValueError(
                f"a reward's function must be a name or a Python function, got {self.function!r}"
            )
        if isinstance(self.function, str) and ":" not in self.function:
            self._check_builtin(self.function)

    def _check_builtin(self, name: str) -> None:
        if name not in BUILTIN:
            near = difflib.get_close_matches(name, BUILTIN, 1, 0.5)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            if name.endswith(".py"):
                hint = f" (a function in a file is '{name}:function_name')"
            raise ValueError(
                f"no built-in reward is called {name!r}{hint}; built in are {', '.join(map(repr, BUILTIN))}, "
                "and your own is 'path.py:function'"
            )
        accepted = BUILTIN[name]
        for key, value in self.options:
            if key not in accepted:
                near = difflib.get_close_matches(key, accepted, 1, 0.5)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                raise ValueError(
                    f"the built-in reward {name!r} has no option {key!r}{hint}; it has {', '.join(accepted)}"
                )
            values = accepted[key]
            if isinstance(values, tuple) and value not in values:
                raise ValueError(
                    f"the built-in reward {name!r}: {key} must be one of {', '.join(map(repr, values))}, got {value!r}"
                )

    @property
    def needs_reference(self) -> bool:
        """Whether it compares with the reference answer, and can say nothing where that cannot be
        parsed.
        """
        return self.function in NEEDS_REFERENCE

    @property
    def label(self) -> str:
        """The name in metrics: the given one, else the function's."""
        if self.name:
            return self.name
        if callable(self.function):
            return getattr(self.function, "__name__", "reward")
        return str(self.function).rpartition(":")[2]

    def to_json(self) -> dict[str, Any]:
        """Names only, for the resolved config of a run: a function object becomes file and name."""
        function = self.function
        if callable(function):
            path = inspect.getsourcefile(function) or "?"
            function = (
                f"{path}:{function.__name__}"
                if _is_file(path)
                else f"(notebook):{function.__name__}"
            )
        return {
            "function": function,
            "weight": self.weight,
            "name": self.label,
            "options": dict(self.options),
        }

    def resolve(self, directory: str | os.PathLike[str]) -> ResolvedReward:
        """Finds the function and checks that it can be called.

        Args:
          directory: where the source of a function without a file of its own (notebook, interactive
            session) is written; made when needed.

        Raises:
          ValueError: the file or function is missing (near misses are named), the file has a syntax
            error, the function cannot be called with (completion, example, **options), or a
            notebook function uses something that a worker process cannot have; each says which file
            and function, and what to do.
        """
        options = dict(self.options)
        if callable(self.function):
            path, name = _locate(self.function, Path(directory))
        elif ":" not in self.function:
            return ResolvedReward(self.label, float(self.weight), "", self.function, options)
        else:
            text, _, name = self.function.rpartition(":")
            path = Path(text).expanduser().absolute()
        _check_file(path, name, options)
        return ResolvedReward(self.label, float(self.weight), str(path), name, options)


def _is_file(path: str | None) -> bool:
    return path is not None and path.endswith(".py") and Path(path).is_file()


def _builtin_name(function: Callable[..., Any]) -> str | None:
    return _BUILTIN_OBJECTS.get(
        (getattr(function, "__module__", ""), getattr(function, "__qualname__", ""))
    )


# --- functions in files
# ---------------------------------------------------------------------------------------------


def check_labels(rewards: Sequence[Reward], path: str = "", taken: Sequence[str] = ()) -> None:
    """Raises ValueError, which begins with `path`, where two rewards have one name, or one has a
    name in `taken`.
    """
    names = [reward.label for reward in rewards]
    if wrong := [name for name in names if name in taken]:
        raise ValueError(f"{path}a reward may not be called {wrong[0]!r}: give it another name")
    if double := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"{path}two rewards are called {', '.join(double)}: give one of them another name"
        )


def _check_file(path: Path, name: str, options: Mapping[str, Any]) -> None:
    """Raises ValueError unless the file defines a function of that name that takes (completion,
    example, **options).
    """
    if not path.is_file():
        files = sorted(p.name for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, files, 1, 0.7)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise ValueError(f"reward function {name!r}: there is no file {path}{hint}")
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except (SyntaxError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise ValueError(
            f"reward function {name!r}: {path}{line} is not valid Python: {error}"
        ) from error
    defined: dict[str, ast.AST | None] = {}
    node: ast.AST | None
    for node in _top_level(tree.body):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined[node.name] = node
        else:  # assigned or imported: what it is shows only when a worker loads it
            for target in ast.walk(node):
                if isinstance(target, ast.Name) and isinstance(target.ctx, ast.Store):
                    defined[target.id] = None
                elif isinstance(target, ast.alias):
                    defined[(target.asname or target.name).partition(".")[0]] = None
    if name not in defined:
        near = difflib.get_close_matches(name, defined, 3, 0.5)
        functions = [key for key, node in defined.items() if isinstance(node, ast.FunctionDef)]
        known = f"; it defines {', '.join(functions) or 'no function'}"
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else known
        raise ValueError(f"{path} has no function {name!r} at its top level{hint}")
    found = defined[name]
    if isinstance(found, ast.AsyncFunctionDef):
        raise ValueError(
            f"reward function {name} in {path} is async: it must be a plain function, {SIGNATURE}"
        )
    if isinstance(found, ast.ClassDef):
        raise ValueError(
            f"{name} in {path} is a class: a reward must be a plain function, {SIGNATURE}"
        )
    if isinstance(found, ast.FunctionDef) and not found.decorator_list:
        _check_call(_signature_of(found.args), f"reward function {name} in {path}", options)


def _top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module, also those inside its top-level if, try and with blocks."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try | ast.With):
            for part in ("body", "orelse", "finalbody"):
                yield from _top_level(getattr(node, part, []))
            for handler in getattr(node, "handlers", []):
                yield from _top_level(handler.body)


def _signature_of(args: ast.arguments) -> inspect.Signature:
    kinds = inspect.Parameter
    positional = args.posonlyargs + args.args
    with_default = len(positional) - len(args.defaults)
    parameters = [
        kinds(
            arg.arg,
            kinds.POSITIONAL_ONLY if i < len(args.posonlyargs) else kinds.POSITIONAL_OR_KEYWORD,
            default=None if i >= with_default else kinds.empty,
        )
        for i, arg in enumerate(positional)
    ]
    if args.vararg:
        parameters.append(kinds(args.vararg.arg, kinds.VAR_POSITIONAL))
    for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        parameters.append(
            kinds(arg.arg, kinds.KEYWORD_ONLY, default=kinds.empty if default is None else None)
        )
    if args.kwarg:
        parameters.append(kinds(args.kwarg.arg, kinds.VAR_KEYWORD))
    return inspect.Signature(parameters)


def _check_call(signature: inspect.Signature, where: str, options: Mapping[str, Any]) -> None:
    try:
        signature.bind(None, None, **options)
    except TypeError as error:
        given = "".join(f", {key}=..." for key in options)
        raise ValueError(
            f"{where} cannot be called as f(completion, example{given}): {error}. It has the signature {signature}; "
            f"expected is {SIGNATURE}"
        ) from None


# --- function objects
# -----------------------------------------------------------------------------------------------

_TO_FILE = "Put it at the top level of a .py file and give 'path.py:function_name'."


def _check_callable(function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raises ValueError for callables that no worker process can have."""
    if not isinstance(function, types.FunctionType):
        kind = type(function).__name__
        raise ValueError(
            f"a reward must be a plain function ({SIGNATURE}), not a {kind}: {function!r}. {_TO_FILE}"
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
            f"the function {name!r} cannot be a reward: it closes over local variables of the function that made it "
            f"({names}), which a worker process does not have. Pass them as options, or: {_TO_FILE}"
        )
    if inspect.iscoroutinefunction(function):
        raise ValueError(
            f"the function {name!r} cannot be a reward: it is async; expected is {SIGNATURE}"
        )
    _check_call(inspect.signature(function), f"the reward function {name!r}", options)


def _locate(function: Any, directory: Path) -> tuple[Path, str]:
    """(file, name) from which a worker can load a function object; writes its source where it has
    no own file.
    """
    name = function.__name__
    path = inspect.getsourcefile(function)
    at_top = function.__qualname__ == name and function.__globals__.get(name) is function
    # a script run as __main__ would run once more if a worker imported it
    if _is_file(path) and at_top and function.__module__ != "__main__":
        return Path(str(path)).absolute(), name
    pieces: dict[str, str] = {}
    imports: set[str] = set()
    _collect(function, pieces, imports, first=name)
    header = (
        f'"""The reward function {name}, copied from a notebook or an interactive session."""\n\n'
    )
    source = (
        header
        + "from __future__ import annotations\n\n"
        + "".join(f"{line}\n" for line in sorted(imports))
    )
    source += "\n\n" + "\n\n".join(reversed(pieces.values())) + "\n"
    digest = hashlib.sha256(source.encode()).hexdigest()[:10]
    directory.mkdir(parents=True, exist_ok=True)
    target = directory.absolute() / f"reward_{re.sub(r'[^A-Za-z0-9_]', '_', name)}_{digest}.py"
    scratch = target.with_suffix(f".{os.getpid()}.tmp")
    scratch.write_text(source, encoding="utf-8")
    scratch.replace(target)  # another process may be reading the old one
    return target, name


def _collect(
    function: types.FunctionType, pieces: dict[str, str], imports: set[str], first: str
) -> None:
    """Adds the source of a function to `pieces`, and whatever it needs of its module's globals,
    recursively.
    """
    name = function.__name__

    def refuse(reason: str) -> ValueError:
        via = "" if name == first else f" (through {name!r})"
        return ValueError(
            f"the function {first!r} cannot be copied to a worker process: it{via} {reason}. {_TO_FILE}"
        )

    try:
        source = textwrap.dedent(inspect.getsource(function))
        node = ast.parse(source).body[0]
    except (OSError, TypeError, SyntaxError, IndexError):
        raise refuse("has no source that could be found") from None
    if not isinstance(node, ast.FunctionDef):
        raise refuse("is not made by a def statement")
    pieces[f"def {name}"] = source.rstrip()
    needed = set(_global_names(function.__code__))
    # defaults and decorators are evaluated when the file is loaded, not inside the function's code
    for part in [*node.decorator_list, *node.args.defaults, *filter(None, node.args.kw_defaults)]:
        needed |= {n.id for n in ast.walk(part) if isinstance(n, ast.Name)}
    for key in sorted(needed - {name}):
        if key not in function.__globals__:
            if not hasattr(builtins, key):
                raise refuse(f"reads {key!r}, which is not defined")
            continue
        value = function.__globals__[key]
        line = _import_line(key, value)
        if line is not None:
            imports.add(line)
        elif isinstance(value, types.FunctionType):
            if value.__name__ != key or value.__code__.co_freevars:
                raise refuse(f"calls {key!r}, a lambda, closure or renamed function")
            if f"def {key}" not in pieces:
                _collect(value, pieces, imports, first)
        elif isinstance(value, re.Pattern):
            imports.add("import re")
            pieces[f"= {key}"] = f"{key} = re.compile({value.pattern!r}, {int(value.flags)})"
        elif _is_literal(value):
            pieces.pop(f"= {key}", None)
            pieces[f"= {key}"] = (
                f"{key} = {value!r}"  # constants come last here, so first in the file
            )
        else:
            raise refuse(
                f"reads the global {key!r}, a {type(value).__name__} that cannot be written down as source"
            )


def _global_names(code: types.CodeType) -> Iterator[str]:
    """The global names a code object reads, its nested functions included (attribute names are not
    among them).
    """
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield str(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _global_names(constant)


def _import_line(key: str, value: Any) -> str | None:
    """The import statement that gives `key` this value in another process; None if there is none."""
    if isinstance(value, types.ModuleType):
        return f"import {value.__name__} as {key}" if value.__name__ != "__main__" else None
    module, name = getattr(value, "__module__", None), getattr(value, "__name__", None)
    if not isinstance(module, str) or not isinstance(name, str) or module == "__main__":
        return None
    home = sys.modules.get(module)
    spec = getattr(home, "__spec__", None)
    if spec is None or getattr(home, name, None) is not value:
        return (
            None  # a module without a spec is an interactive one: it cannot be imported elsewhere
        )
    return f"from {module} import {name} as {key}"


def _is_literal(value: Any, depth: int = 0) -> bool:
    if value is None or type(value) in (bool, int, str, bytes):
        return True
    if type(value) is float:
        return math.isfinite(value)
    if (
        depth > 8
        or type(value) not in (list, tuple, set, dict)
        or (type(value) is set and not value)
    ):
        return False
    if len(value) > 10_000:
        return False
    parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value
    return all(_is_literal(part, depth + 1) for part in parts)
