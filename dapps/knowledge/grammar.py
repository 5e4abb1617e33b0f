"""Defines the language of conditions: the nodes of Python's expressions that it contains, and the type of each.

Reading a file refuses every other node, so no other node is ever evaluated. `expression.py` evaluates conditions.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

NUMBER, BOOLEAN, TEXT = "number", "boolean", "text"
COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
MIRRORED: dict[type[ast.cmpop], type[ast.cmpop]] = {ast.Lt: ast.Gt, ast.LtE: ast.GtE, ast.Gt: ast.Lt, ast.GtE: ast.LtE}
ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
}
FUNCTIONS: dict[str, Callable[..., Any]] = {"abs": abs, "min": min, "max": max}


class ExpressionError(ValueError):
    """A condition that is not in the language; the message is the cause, without the text."""


class Checker:
    """Determines the type of every node, or refuses the node."""

    def __init__(self, types: Mapping[str, str]) -> None:
        self._types = types
        self.names: set[str] = set()
        self.decisions: set[str] = set()
        self.texts: list[tuple[str, str]] = []

    def kind(self, node: ast.expr) -> str:
        """``number``, ``boolean`` or ``text``.

        Raises:
            ExpressionError: the node is not in the language, or does not fit its parts.
        """
        match node:
            case ast.BoolOp(values=values):
                self._want(BOOLEAN, values, "`and` and `or` join conditions")
                return BOOLEAN
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                self._want(BOOLEAN, [operand], "`not` takes a condition")
                return BOOLEAN
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                self._want(NUMBER, [operand], "`-` takes a number")
                return NUMBER
            case ast.BinOp(op=op, left=left, right=right) if type(op) in ARITHMETIC:
                self._want(NUMBER, [left, right], "sums are made of numbers")
                return NUMBER
            case ast.Compare():
                return self._comparison(node)
            case ast.Call():
                return self._call(node)
            case ast.Name(id=name):
                if name not in self._types:
                    raise ExpressionError(f"there is no datum or derived fact named {name}")
                self.names.add(name)
                return self._types[name]
            case ast.Constant(value=value):
                return self._constant(value)
        raise ExpressionError(f"{type(node).__name__} is not in the language of conditions")

    def _constant(self, value: object) -> str:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ExpressionError("a constant is a number or a text; write `x` or `not x` instead of a truth")
        if isinstance(value, str):
            return TEXT
        if not -1e12 < value < 1e12:
            raise ExpressionError("a number in it is beyond 1e12")
        return NUMBER

    def _comparison(self, node: ast.Compare) -> str:
        sides = [node.left, *node.comparators]
        kinds = {self.kind(side) for side in sides}
        if len(kinds) != 1 or kinds == {BOOLEAN}:
            raise ExpressionError("a comparison is between numbers, or between texts")
        for left, op, right in zip(sides, node.ops, sides[1:], strict=False):
            if type(op) not in COMPARE or (kinds == {TEXT} and not isinstance(op, ast.Eq | ast.NotEq)):
                raise ExpressionError(f"{type(op).__name__} does not compare these two")
            for side, other in ((left, right), (right, left)):
                if isinstance(other, ast.Constant) and isinstance(other.value, str):
                    self.texts.append((subject(side), other.value))
        return BOOLEAN

    def _call(self, node: ast.Call) -> str:
        name, arguments = called(node), node.args
        if node.keywords or any(isinstance(argument, ast.Starred) for argument in arguments):
            raise ExpressionError("a function takes plain arguments")
        if name in FUNCTIONS:
            if not arguments or (name == "abs" and len(arguments) != 1) or (name != "abs" and len(arguments) < 2):
                raise ExpressionError(f"{name} takes {'one number' if name == 'abs' else 'two numbers or more'}")
            self._want(NUMBER, arguments, f"{name} takes numbers")
            return NUMBER
        if name in ("unknown", "result") and len(arguments) == 1 and isinstance(arguments[0], ast.Name):
            if name == "result":
                self.decisions.add(arguments[0].id)
                return TEXT
            self.kind(arguments[0])
            return BOOLEAN
        raise ExpressionError("the functions are abs, min, max, unknown(name) and result(decision)")

    def _want(self, kind: str, nodes: list[ast.expr], message: str) -> None:
        if any(self.kind(node) != kind for node in nodes):
            raise ExpressionError(message)


def called(node: ast.expr) -> str:
    """The name of the function that a node calls, or nothing."""
    return node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""


def subject(node: ast.expr) -> str:
    """The name of a node: a datum, or ``result(decision)``; empty for any other node."""
    if isinstance(node, ast.Name):
        return node.id
    if called(node) == "result" and isinstance(node, ast.Call):
        return f"result({subject(node.args[0])})"
    return ""
