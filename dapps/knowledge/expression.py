"""Reads and evaluates conditions: a small, typed, bounded subset of Python's expressions, in three-valued logic.

Allowed: names, numbers, texts, `and or not`, comparisons, `+ - *`, `abs min max`, `unknown(name)`, `result(decision)`.
Nothing reaches `eval`: `grammar.py` refuses every node outside the language, and this module walks the others.
Numbers are decimals, so that 98.3 - 95.3 is exactly 3.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from dapps.knowledge import truth
from dapps.knowledge.grammar import (
    ARITHMETIC,
    BOOLEAN,
    COMPARE,
    FUNCTIONS,
    MIRRORED,
    Checker,
    ExpressionError,
    called,
    subject,
)
from dapps.knowledge.truth import Truth

Value = Decimal | bool | str
Values = Mapping[str, Value | None]
"""Values by name; None, like an absent name, is unknown."""

MAX_LENGTH, MAX_DEPTH, MAX_NODES = 500, 12, 120


@dataclass(frozen=True, slots=True)
class Expression:
    """A checked condition: it evaluates on any values without failing.

    `names` are the data and derived facts it reads, `decisions` those whose result it reads, `texts` the (name, text)
    pairs it compares, `thresholds` the (name, operator, number) comparisons.
    """

    canonical: str
    names: frozenset[str]
    decisions: frozenset[str]
    asks_unknown: bool
    negates_unknown: bool
    thresholds: tuple[tuple[str, str, Decimal], ...]
    texts: tuple[tuple[str, str], ...]
    tree: ast.expr = field(repr=False, compare=False)
    lasting_tree: ast.expr = field(repr=False, compare=False)

    def truth(self, values: Values, results: Values | None = None) -> Truth:
        """True, False or None, given values by name and the committed candidate by decision."""
        value = _value(self.tree, values, results or {})
        return value if isinstance(value, bool) else None

    def lasting(self, values: Values) -> Truth:
        """The truth that no further knowledge can change; None also where it holds only because a value is unknown."""
        return _truth(self.lasting_tree, values, {})


def parse(text: str, types: Mapping[str, str]) -> Expression:
    """Checks a condition against the types of the names it may use: ``number``, ``boolean`` or ``text``.

    Raises:
        ExpressionError: it is too long or deep, not in the language, or does not fit the types.
    """
    if len(text) > MAX_LENGTH:
        raise ExpressionError(f"the expression is longer than {MAX_LENGTH} characters: split it into derived facts")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ExpressionError("the expression cannot be read") from None
    nodes = list(_walk(tree, 1))
    checker = Checker(types)
    if checker.kind(tree) != BOOLEAN:
        raise ExpressionError("a condition is true or false; this is a number or a text")
    names = frozenset(checker.names)
    return Expression(
        canonical=_canonical(tree),
        names=names,
        decisions=frozenset(checker.decisions),
        asks_unknown=any(called(node) == "unknown" for node in nodes),
        negates_unknown=any(isinstance(node, ast.UnaryOp) and _asks(node) for node in nodes),
        thresholds=tuple(threshold for node in nodes for threshold in _thresholds(node)),
        texts=tuple(checker.texts),
        tree=tree,
        lasting_tree=_Learning().visit(copy.deepcopy(tree)),
    )


class _Learning(ast.NodeTransformer):
    """Replaces `unknown(name)` by `name != name`: false once the name has a value, unknown until then."""

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        if called(node) != "unknown":
            return node
        return ast.Compare(node.args[0], [ast.NotEq()], [node.args[0]])


def _walk(node: ast.expr, depth: int) -> Iterator[ast.expr]:
    count = 0
    left = [(node, depth)]
    while left:
        here, level = left.pop()
        count += 1
        if count > MAX_NODES:
            raise ExpressionError(f"the expression has more than {MAX_NODES} parts: split it into derived facts")
        if level > MAX_DEPTH:
            raise ExpressionError(f"the expression is nested deeper than {MAX_DEPTH}")
        yield here
        left += [(child, level + 1) for child in ast.iter_child_nodes(here) if isinstance(child, ast.expr)]


def _value(node: ast.expr, values: Values, results: Values) -> Value | None:
    match node:
        case ast.BoolOp(op=op, values=parts):
            join = truth.both if isinstance(op, ast.And) else truth.either
            return join([_truth(part, values, results) for part in parts])
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return truth.negate(_truth(operand, values, results))
        case ast.UnaryOp(operand=operand):
            inner = _value(operand, values, results)
            return None if inner is None else -Decimal(inner)
        case ast.BinOp(op=op, left=left, right=right):
            pair = _value(left, values, results), _value(right, values, results)
            return None if None in pair else ARITHMETIC[type(op)](*pair)
        case ast.Compare():
            return _compared(node, values, results)
        case ast.Call(args=arguments):
            return _applied(called(node), arguments, values, results)
        case ast.Name(id=name):
            return values.get(name)
        case ast.Constant(value=value):
            return value if isinstance(value, str) else Decimal(repr(value))
    raise ExpressionError("not in the language")  # unreachable: `parse` checked every node


def _truth(node: ast.expr, values: Values, results: Values) -> Truth:
    value = _value(node, values, results)
    return value if isinstance(value, bool) else None


def _compared(node: ast.Compare, values: Values, results: Values) -> Truth:
    sides = [_value(side, values, results) for side in (node.left, *node.comparators)]
    return truth.both(
        None if left is None or right is None else COMPARE[type(op)](left, right)
        for left, op, right in zip(sides, node.ops, sides[1:], strict=False)
    )


def _applied(name: str, arguments: list[ast.expr], values: Values, results: Values) -> Value | None:
    if name == "unknown":
        return _value(arguments[0], values, results) is None
    if name == "result":
        return results.get(subject(arguments[0]))
    operands = [_value(argument, values, results) for argument in arguments]
    answer: Value | None = None if None in operands else FUNCTIONS[name](*operands)
    return answer


def _thresholds(node: ast.expr) -> Iterator[tuple[str, str, Decimal]]:
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        for left, op, right in zip(sides, node.ops, sides[1:], strict=False):
            if isinstance(left, ast.Name) and (number := _number(right)) is not None:
                yield left.id, _sign(type(op)), number
            elif isinstance(right, ast.Name) and (number := _number(left)) is not None:
                yield right.id, _sign(MIRRORED.get(type(op), type(op))), number


def _number(node: ast.expr) -> Decimal | None:
    """The number that a node stands for, negative ones included."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        inner = _number(node.operand)
        return None if inner is None else -inner
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return Decimal(repr(node.value))
    return None


def _sign(op: type[ast.cmpop]) -> str:
    return {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!="}[op]


def _asks(node: ast.expr) -> bool:
    return any(called(inner) == "unknown" for inner in ast.walk(node) if isinstance(inner, ast.expr))


def _canonical(node: ast.expr, around: int = 0) -> str:
    """The text that equal conditions share, whatever their blanks, brackets and trailing zeros.

    Digests depend on it; the brackets of `ast.unparse` differ between versions of Python.
    """
    level, text = _written(node)
    return f"({text})" if level < around else text


def _written(node: ast.expr) -> tuple[int, str]:
    """How tightly a node binds, and its text."""
    match node:
        case ast.BoolOp(op=op, values=parts):
            level, word = (1, " or ") if isinstance(op, ast.Or) else (2, " and ")
            return level, word.join(_canonical(part, level + 1) for part in parts)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return 3, f"not {_canonical(operand, 3)}"
        case ast.UnaryOp(operand=operand):
            return 7, f"-{_canonical(operand, 7)}"
        case ast.Compare(left=left, ops=ops, comparators=others):
            pairs = zip(ops, others, strict=True)
            return 4, _canonical(left, 5) + "".join(f" {_sign(type(op))} {_canonical(side, 5)}" for op, side in pairs)
        case ast.BinOp(op=op, left=left, right=right):
            level, sign = (6, "*") if isinstance(op, ast.Mult) else (5, "+" if isinstance(op, ast.Add) else "-")
            return level, f"{_canonical(left, level)} {sign} {_canonical(right, level + 1)}"
        case ast.Call(args=arguments):
            return 8, f"{called(node)}({', '.join(_canonical(argument) for argument in arguments)})"
        case ast.Constant(value=int() | float() as number):
            return 8, format(Decimal(repr(number)).normalize(), "f")
        case ast.Constant(value=text):
            return 8, repr(text)
    return 8, subject(node)
