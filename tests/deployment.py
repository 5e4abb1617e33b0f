"""What `deploy/` holds, and what of it is checked against the code: settings, verbs, ports and paths."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import typer

from serving.cli.lazy import LazyGroup
from serving.cli.main import app
from serving.config.settings import Settings

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"


def program(name: str, package: str) -> str:
    """A program's path; skips the test, naming the package to install, where there is none."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if path is None:
        pytest.skip(f"no {name} here: apt-get install {package}")
    return path


def settings_from(variables: dict[str, str]) -> Settings:
    """The settings that an environment makes, which a mesh would start with: an unknown or wrong one raises."""
    named = {name.removeprefix("LEBEN_").lower(): value for name, value in variables.items() if name[:6] == "LEBEN_"}
    assert not named.keys() - Settings.model_fields.keys(), named
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        return Settings()


def verb(words: Sequence[str]) -> str:
    """Which command the words after `leben` are, as `ledger backup`; it has to exist, with every option it is given."""
    command, name, rest = typer.main.get_command(app), "", list(words)
    while isinstance(command, LazyGroup):
        name, command = f"{name} {rest[0]}".strip(), command.get_command(typer.Context(command), rest.pop(0))
        assert command is not None, words
    options = {option for parameter in command.params for option in parameter.opts}
    assert {word.split("=")[0] for word in rest if word.startswith("-")} <= options, words
    return name
