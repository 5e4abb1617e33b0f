"""Loads a command's module when the command is used, so that `leben --help` imports none of them.

A command whose dependencies are not installed ends with the `pip install` line of the extra that has them.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from serving.cli.early_signals import early_signals

CHAIN_MODULES = frozenset({"eth_account", "requests", "web3"})
OURS = frozenset({"serving", "channels", "dapps"})


@dataclass(frozen=True, slots=True)
class Command:
    """A command: `module:function` of this package."""

    target: str
    context_settings: dict[str, Any] | None = None

    def load(self, name: str) -> Any:
        """The click command; imports its module."""
        module, _, function = self.target.partition(":")
        single = typer.Typer(add_completion=False)
        with early_signals():
            single.command(name, context_settings=self.context_settings)(
                getattr(import_module(f"{__package__}.{module}"), function)
            )
        return typer.main.get_command(single)

    def stub(self, name: str) -> Any:
        """A stand-in for the list of commands: its help is read from the source, without importing the module."""
        module, _, function = self.target.partition(":")
        tree = ast.parse(Path(__file__).with_name(f"{module}.py").read_text("utf-8"))
        (node,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function)
        return TyperCommand(name, help=ast.get_docstring(node))


@dataclass(frozen=True, slots=True)
class Group:
    """A group of commands, and its help."""

    help: str
    commands: Mapping[str, Command]

    def load(self, name: str) -> Any:
        """The click group; imports nothing."""
        return group(self.commands)(name=name, help=self.help, no_args_is_help=True)

    stub = load


class LazyGroup(TyperGroup):
    """A group whose commands are in `table`, each loaded when it is named."""

    table: Mapping[str, Command | Group] = {}
    _listing = False

    def list_commands(self, ctx: Any) -> list[str]:
        """The names, in the table's order."""
        return list(self.table)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of a name; None if there is none."""
        entry = self.table.get(cmd_name)
        if entry is None:
            return None
        return entry.stub(cmd_name) if self._listing else entry.load(cmd_name)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Writes the help; the commands are listed without loading them."""
        self._listing = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self._listing = False


def group(table: Mapping[str, Command | Group]) -> type[LazyGroup]:
    """The class of a group with these commands."""
    return type("LazyGroup", (LazyGroup,), {"table": table})


def missing_extra(error: ModuleNotFoundError) -> str | None:
    """The extra that has a module which is not installed; None if the module is our own."""
    name = (error.name or "").partition(".")[0]
    if not name or name in OURS:
        return None
    return "chain" if name in CHAIN_MODULES else "serve"
