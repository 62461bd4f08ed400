"""Plain arithmetic for math-verify, so that no text of a model reaches an evaluator of strings.

sympy reads numbers and expressions by writing Python and evaluating it. What math-verify hands over
is digits and operators alone, for which the small grammar here is enough; whatever else is refused,
as sympy refuses what is no expression.
"""

from __future__ import annotations

import ast
import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

_lock = threading.RLock()


@contextlib.contextmanager
def without_evaluator() -> Iterator[None]:
    """Inside, this thread reads strings by `arithmetic` wherever sympy would evaluate them.

    Other threads, such as a user's own computations, keep sympy's parser.
    """
    import math_verify.parser
    import sympy.physics.units  # noqa: F401  on its first import it has sympy evaluate its own names
    from sympy.parsing import sympy_parser

    def read(text: str, *args: Any, evaluate: bool = True, **kwargs: Any) -> Any:
        if threading.get_ident() != reader:
            return before(text, *args, evaluate=evaluate, **kwargs)
        return arithmetic(text, evaluate=evaluate)

    with _lock:
        reader = threading.get_ident()
        before, there = sympy_parser.parse_expr, math_verify.parser.parse_expr
        sympy_parser.parse_expr = math_verify.parser.parse_expr = read
        try:
            yield
        finally:
            sympy_parser.parse_expr, math_verify.parser.parse_expr = before, there


def arithmetic(text: str, *, evaluate: bool = True) -> Any:
    """What sympy's `parse_expr` gives for numbers, + - * / ** and brackets.

    Args:
      text: the expression; how large it may get is bounded before, see `algebra.math_problem`.
      evaluate: False keeps sums, products and powers as they are written.

    Returns:
      A sympy expression.

    Raises:
      SyntaxError: it is no such expression.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (ValueError, RecursionError, MemoryError) as error:
        raise SyntaxError(f"no expression: {error}") from error
    source = text.strip()
    return _value(tree.body, source) if evaluate else _built(_kept(tree.body, source))


# --- evaluated ----------------------------------------------------------------------------------
_OPERATIONS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: lambda one, other: one + other,
    ast.Sub: lambda one, other: one - other,
    ast.Mult: lambda one, other: one * other,
    ast.Div: lambda one, other: one / other,
    ast.Pow: lambda one, other: one**other,
}


def _value(node: ast.expr, source: str) -> Any:
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        left, right = _value(node.left, source), _value(node.right, source)
        return _OPERATIONS[type(node.op)](left, right)
    if isinstance(node, ast.UnaryOp):
        return _signed(node.op, _value(node.operand, source))
    return _number(node, source)


def _signed(sign: ast.unaryop, value: Any) -> Any:
    if isinstance(sign, ast.USub):
        return -value
    if isinstance(sign, ast.UAdd):
        return +value
    raise SyntaxError("an operator that arithmetic does not have")


def _number(node: ast.expr, source: str) -> Any:
    """A number with all digits that are written."""
    import sympy

    value = node.value if isinstance(node, ast.Constant) else None
    if type(value) is int:
        return sympy.Integer(value)
    if type(value) is float:
        return sympy.Float(ast.get_source_segment(source, node))
    raise SyntaxError("only numbers, operators and brackets can be read")


# --- as written ---------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Kept:
    """A sum ("Add"), product ("Mul") or power ("Pow") that stays as it is written."""

    kind: str
    parts: tuple[Any, ...]


def _kept(node: ast.expr, source: str) -> Any:
    """The expression in the form that sympy gives it: differences as sums, quotients as powers."""
    if isinstance(node, ast.UnaryOp):
        return _signed(node.op, _built(_kept(node.operand, source)))
    if not isinstance(node, ast.BinOp):
        return _number(node, source)
    left, right = _kept(node.left, source), _kept(node.right, source)
    if isinstance(node.op, ast.Add):
        return _joined("Add", left, right)
    if isinstance(node.op, ast.Sub):
        return _joined("Add", left, _Kept("Mul", (-1, right)))
    if isinstance(node.op, ast.Mult):
        return _joined("Mul", left, right)
    if isinstance(node.op, ast.Div):
        return _joined("Mul", left, _Kept("Pow", (right, -1)))
    if isinstance(node.op, ast.Pow):
        return _Kept("Pow", (left, right))
    raise SyntaxError("an operator that arithmetic does not have")


def _joined(kind: str, *parts: Any) -> _Kept:
    """A sum or product; sums in sums and products in products are written as one."""
    flat: list[Any] = []
    for part in parts:
        same = isinstance(part, _Kept) and part.kind == kind
        flat += _joined(kind, *part.parts).parts if same else (part,)
    return _Kept(kind, tuple(flat))


def _built(kept: Any) -> Any:
    """The sympy expression."""
    import sympy

    if not isinstance(kept, _Kept):
        return kept
    make = {"Add": sympy.Add, "Mul": sympy.Mul, "Pow": sympy.Pow}[kept.kind]
    return make(*map(_built, kept.parts), evaluate=False)
