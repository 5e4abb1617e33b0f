"""Defines `CheckFailed`: the broken rule, the observation, and the line of the author's code to change."""

from __future__ import annotations

import ast
import inspect
import sys
import traceback
from pathlib import Path

from dapps.api import DApp


class CheckFailed(AssertionError):
    """A DApp breaks a rule of the mesh.

    Args:
        rule: one stable word, e.g. ``isolation``.
        message: the observation, and what to do.
        attribute: the attribute or method of the class to change; empty if there is none.

    Attributes:
        place: its ``file:line``; empty until the class is known, or if it has no source.
    """

    def __init__(self, rule: str, message: str, attribute: str = "", place: str = "") -> None:
        super().__init__(rule, message)
        self.rule = rule
        self.message = message
        self.attribute = attribute
        self.place = place

    def __str__(self) -> str:
        at = f" ({self.place})" if self.place else ""
        return f"{self.rule}: {self.message}{at}"


def hold(condition: bool, rule: str, message: str, attribute: str = "") -> None:
    """Raises unless the condition holds.

    Raises:
        CheckFailed: it does not.
    """
    if not condition:
        raise CheckFailed(rule, message, attribute)


def place(kind: type[DApp], attribute: str) -> str:
    """``file:line`` of the attribute in the class or its nearest base; else of the class itself."""
    bases = [base for base in kind.__mro__ if issubclass(base, DApp) and base is not DApp]
    for base in bases:
        line = _line(base, attribute)
        if line:
            return line
    return _line(kind, "")


def raised(error: BaseException, kind: type[DApp] | None = None, folder: Path | None = None) -> str:
    """``file:line`` of the innermost frame in the class's folder, or in the given one."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    source = getattr(sys.modules.get(kind.__module__), "__file__", None) if kind else None
    home = folder or (Path(source).parent if source else None)
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if home and Path(frame.filename).is_relative_to(home)]
    chosen = next(reversed(ours), None)
    return f"{chosen.filename}:{chosen.lineno}" if chosen else ""


def _line(kind: type, attribute: str) -> str:
    try:
        lines, start = inspect.getsourcelines(kind)
        source = inspect.getsourcefile(kind)
        tree = ast.parse(inspect.cleandoc("\n" + "".join(lines)))
    except (OSError, TypeError, SyntaxError):  # a class from a shell has no line
        return ""
    (body,) = tree.body[:1]
    if not isinstance(body, ast.ClassDef):
        return ""
    if not attribute:
        return f"{source}:{start + body.lineno - 1}"
    for statement in body.body:
        if attribute in _names(statement):
            return f"{source}:{start + statement.lineno - 1}"
    return ""


def _names(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    if isinstance(statement, ast.AnnAssign):
        targets = [statement.target]
    return [target.id for target in targets if isinstance(target, ast.Name)]
