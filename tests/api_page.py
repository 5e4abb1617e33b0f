"""Writes `docs/dapp-api.md` from the docstrings of what an author may use.

Run it as `python -m tests.api_page > docs/dapp-api.md`; a test compares the page with its output. The page holds
what `dapps` exports and what an author's tests use.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import dapps
from dapps.api import arrays, dapp, types
from dapps.conformance import local_calls, suite
from dapps.evaluation import card

HEAD = """\
# The DApp API

Written from the docstrings by `python -m tests.api_page > docs/dapp-api.md`: change those.
The way to use it is in [write-a-dapp.md](write-a-dapp.md). `import dapps` needs no torch.
"""
ORDER = (
    "DApp",
    "Tensor",
    "Price",
    "Shares",
    "ClinicalFile",
    "Case",
    "Prepared",
    "IntakeRefused",
    "ChildFailed",
    "Report",
    "Finding",
)
MORE: tuple[tuple[ModuleType, tuple[str, ...]], ...] = (
    (suite, ("check_dapp", "examine", "run", "CheckFailed", "Limits", "Outcome")),
    (card, ("read", "cutoffs", "held_out")),
    (arrays, ("to_torch", "from_torch")),
    (local_calls, ("installed",)),
)
SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises|Class attributes an author sets):$")


def page() -> str:
    """The whole page."""
    rest = [name for name in dapps.__all__ if name not in ORDER]
    lines = [HEAD, "## `dapps`", ""]
    for name in (*ORDER, *rest):
        lines += _entry(name, getattr(dapps, name))
    lines += ["## `dapps.api.types`", "", f"`DTYPES`: {', '.join(f'`{name}`' for name in types.DTYPES)}.", ""]
    lines += [f"{text}\n" for text in _constants(types) if text.startswith(("`DTYPES`", "`Inputs`"))]
    for module, names in MORE:
        lines += [f"## `{module.__name__}`", "", _prose(inspect.getdoc(module) or ""), ""]
        for name in names:
            lines += _entry(name, getattr(module, name))
    return "\n".join(lines).rstrip() + "\n"


def _entry(name: str, value: Any) -> Iterator[str]:
    yield f"### `{name}{_signature(value)}`"
    yield ""
    yield _prose(inspect.getdoc(value) or "")
    yield ""
    if inspect.isclass(value):
        for attribute, (annotation, text) in _attributes(value):
            yield f"- `{attribute}: {annotation}`{': ' + text if text else ''}"
        yield ""
        for method, member in _methods(value):
            yield f"#### `{name}.{method}{_signature(member)}`"
            yield ""
            yield _prose(inspect.getdoc(member) or "")
            yield ""


def _methods(kind: type) -> Iterator[tuple[str, Any]]:
    for name, member in vars(kind).items():
        renamed = isinstance(member, property) and member.fget is not None and member.fget.__name__ != name
        if name.startswith("_") or renamed:
            continue
        if inspect.isfunction(member) or hasattr(member, "func") or isinstance(member, property):
            yield name, member


def _signature(value: Any) -> str:
    target = value.__init__ if inspect.isclass(value) else value
    if inspect.isclass(value) and (inspect.isabstract(value) or value is dapp.DApp):
        return ""
    if not inspect.isfunction(target):
        return ""
    signature = inspect.signature(target)
    parameters = [parameter for name, parameter in signature.parameters.items() if name != "self"]
    shown = [parameter.replace(default="…") if _long(parameter.default) else parameter for parameter in parameters]
    text = re.sub(r"(: |-> |\*)'([^']*)'", r"\1\2", str(signature.replace(parameters=shown)))
    text = text.replace("'…'", "…")
    return text.removesuffix(" -> None") if inspect.isclass(value) else text


def _long(default: Any) -> bool:
    return default is not inspect.Parameter.empty and not isinstance(default, bool | int | float | str | type(None))


def _attributes(kind: type) -> Iterator[tuple[str, tuple[str, str]]]:
    """Annotated names of a class's body, with the string below them where there is one."""
    body = _tree(kind).body
    names = {field.name for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else None
    for at, statement in enumerate(body):
        if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
            continue
        name = statement.target.id
        if name.startswith("_") or (names is not None and name not in names):
            continue
        after = body[at + 1] if at + 1 < len(body) else None
        yield name, (ast.unparse(statement.annotation), _string(after))


def _constants(module: ModuleType) -> Iterator[str]:
    body = ast.parse(inspect.getsource(module)).body
    for at, statement in enumerate(body[:-1]):
        targets: list[ast.expr] = [statement.target] if isinstance(statement, ast.AnnAssign) else []
        targets += statement.targets if isinstance(statement, ast.Assign) else []
        for target in targets:
            if isinstance(target, ast.Name) and (text := _string(body[at + 1])):
                yield f"`{target.id}`: {text}"


def _tree(kind: type) -> ast.ClassDef:
    (statement,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(statement, ast.ClassDef)
    return statement


def _string(statement: ast.stmt | None) -> str:
    value = statement.value if isinstance(statement, ast.Expr) else None
    text = value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else ""
    return " ".join(text.split()).replace("``", "`")


def _prose(text: str) -> str:
    """A docstring as Markdown: its sections become lists."""
    lines: list[str] = []
    inside = False
    for line in text.replace("``", "`").splitlines():
        if SECTION.match(line):
            lines += ["", f"*{line}*", ""]
            inside = True
        elif inside and line.startswith("    ") and not line.startswith("        "):
            name, colon, rest = line.strip().partition(": ")
            lines.append(f"- `{name}`: {rest}" if colon and re.fullmatch(r"[\w, ]+", name) else f"- {line.strip()}")
        elif inside and line.startswith("        "):
            lines.append(f"  {line.strip()}")
        else:
            inside = inside and not line
            lines.append(line)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


if __name__ == "__main__":
    sys.stdout.write(page())
