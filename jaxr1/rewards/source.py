"""Checks a user's file without executing it: that it defines a reward function one can call."""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxr1.rewards.styles import STYLES, check_call, style_of

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_TOKEN_IDS = ("completion_ids", "response_token_ids")


@dataclass(frozen=True)
class Checked:
    """What is seen of a reward function without executing it.

    Attributes:
      together: it grades several items at the same time.
      reads_ids: its file speaks of the token ids of responses, which are not sent otherwise.
    """

    together: bool
    reads_ids: bool


def check_file(path: Path, name: str, options: Mapping[str, Any], style: str = "") -> Checked:
    """Checks that a file defines a function, or a class of callables, of a known style.

    The file is read as a syntax tree. A decorated function, or a name that is assigned or imported,
    passes: what it is shows only when a worker loads it.

    Args:
      path, name: the file, and what is asked for in it.
      options: keyword arguments of every call.
      style: its style, a name of `STYLES`; "" is that it is to be recognised.

    Raises:
      ValueError: the file is missing or no valid Python, has no such name, or defines something
        that cannot be called so; the message names file and function, and near misses.
    """
    tree = _parse(path, name)
    defined = _definitions(tree)
    if name not in defined:
        raise ValueError(f"{path} has no function {name!r} at its top level{_known(name, defined)}")
    words = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    words |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    reads_ids = any(word in words for word in _TOKEN_IDS)
    found = defined[name]
    method = _call_method(found) if isinstance(found, ast.ClassDef) else None
    if isinstance(found, ast.ClassDef) and method is None and not found.bases:
        raise ValueError(
            f"{name} in {path} is a class without __call__: a reward is a function, or a class "
            "whose instances can be called"
        )
    function = found if method is None else method
    if not isinstance(function, _FUNCTIONS):
        return Checked(bool(style) and STYLES[style].batch, reads_ids)
    signature = _signature_of(function.args)
    if method is not None:  # without self
        signature = inspect.Signature(list(signature.parameters.values())[1:])
    known = STYLES.get(style) or style_of(signature.parameters, _reward_type(tree))
    if not function.decorator_list:
        check_call(signature, f"reward function {name} in {path}", options, known)
    return Checked(known.batch or isinstance(function, ast.AsyncFunctionDef), reads_ids)


def _call_method(node: ast.ClassDef) -> ast.AST | None:
    """The `__call__` that a class itself defines."""
    methods = [part for part in node.body if isinstance(part, _FUNCTIONS)]
    return next((method for method in methods if method.name == "__call__"), None)


def _reward_type(tree: ast.Module) -> object:
    """What a file calls REWARD_TYPE, if it says so by a constant."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            if "REWARD_TYPE" in names:
                return node.value.value
    return None


def _parse(path: Path, name: str) -> ast.Module:
    """The syntax tree of a file that is to hold the reward function `name`."""
    if not path.is_file():
        files = sorted(p.name for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, files, 1, 0.7)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise ValueError(f"reward function {name!r}: there is no file {path}{hint}")
    try:
        return ast.parse(path.read_bytes(), filename=str(path))
    except (SyntaxError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise ValueError(
            f"reward function {name!r}: {path}{line} is not valid Python: {error}"
        ) from error


def _definitions(tree: ast.Module) -> dict[str, ast.AST | None]:
    """{name: definition} of a module's top level; None for a name that is assigned or imported."""
    defined: dict[str, ast.AST | None] = {}
    for node in _top_level(tree.body):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined[node.name] = node
            continue
        for target in ast.walk(node):
            if isinstance(target, ast.Name) and isinstance(target.ctx, ast.Store):
                defined[target.id] = None
            elif isinstance(target, ast.alias):
                defined[(target.asname or target.name).partition(".")[0]] = None
    return defined


def _top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module, also those inside its top-level if, try and with blocks."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try | ast.With):
            for part in ("body", "orelse", "finalbody"):
                yield from _top_level(getattr(node, part, []))
            for handler in getattr(node, "handlers", []):
                yield from _top_level(handler.body)


def _known(name: str, defined: Mapping[str, ast.AST | None]) -> str:
    """The end of a message about a missing name: what was perhaps meant, else what there is."""
    if near := difflib.get_close_matches(name, defined, 3, 0.5):
        return f"; did you mean {' or '.join(map(repr, near))}?"
    functions = [key for key, node in defined.items() if isinstance(node, _FUNCTIONS)]
    return f"; it defines {', '.join(functions) or 'no function'}"


def _signature_of(args: ast.arguments) -> inspect.Signature:
    """The signature that a syntax tree gives a function; a default shows as None."""
    kinds = inspect.Parameter
    parameters = []
    positional = args.posonlyargs + args.args
    first_default = len(positional) - len(args.defaults)
    for i, arg in enumerate(positional):
        by_position = i < len(args.posonlyargs)
        kind = kinds.POSITIONAL_ONLY if by_position else kinds.POSITIONAL_OR_KEYWORD
        default = None if i >= first_default else kinds.empty
        parameters.append(kinds(arg.arg, kind, default=default))
    if args.vararg:
        parameters.append(kinds(args.vararg.arg, kinds.VAR_POSITIONAL))
    for arg, value in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        default = kinds.empty if value is None else None
        parameters.append(kinds(arg.arg, kinds.KEYWORD_ONLY, default=default))
    if args.kwarg:
        parameters.append(kinds(args.kwarg.arg, kinds.VAR_KEYWORD))
    return inspect.Signature(parameters)
