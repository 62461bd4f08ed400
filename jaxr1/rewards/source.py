"""Checks a user's file without executing it: that it defines a reward function one can call."""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxr1.rewards.forms import BATCH, SIGNATURE, is_batch

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def check_file(path: Path, name: str, options: Mapping[str, Any]) -> bool:
    """Checks that a file defines a function that takes (completion, example, **options).

    It may also take lists of both, or be async, see `jaxr1.rewards.forms`.

    The file is read as a syntax tree. A decorated function, or a name that is assigned or imported,
    passes: what it is shows only when a worker loads it.

    Returns:
      Whether it is seen to grade several items at the same time.

    Raises:
      ValueError: the file is missing or no valid Python, has no such name, or defines something
        that cannot be called so; the message names file and function, and near misses.
    """
    defined = _definitions(_parse(path, name))
    if name not in defined:
        raise ValueError(f"{path} has no function {name!r} at its top level{_known(name, defined)}")
    found = defined[name]
    if isinstance(found, ast.ClassDef):
        raise ValueError(f"{name} in {path} is a class: a reward must be a function, {SIGNATURE}")
    if not isinstance(found, _FUNCTIONS):
        return False
    signature = _signature_of(found.args)
    if not found.decorator_list:
        check_call(signature, f"reward function {name} in {path}", options)
    return isinstance(found, ast.AsyncFunctionDef) or is_batch(signature.parameters)


def check_call(signature: inspect.Signature, where: str, options: Mapping[str, Any]) -> None:
    """Checks that a signature takes (completion, example, **options).

    Args:
      signature: of the function.
      where: how the message calls the function.
      options: keyword arguments of every call.

    Raises:
      ValueError: it does not.
    """
    try:
        signature.bind(None, None, **options)
    except TypeError as error:
        given = "".join(f", {key}=..." for key in options)
        first = ", ".join(BATCH) if is_batch(signature.parameters) else "completion, example"
        raise ValueError(
            f"{where} cannot be called as f({first}{given}): {error}. "
            f"It has the signature {signature}; expected is {SIGNATURE}"
        ) from None


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
