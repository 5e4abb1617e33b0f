"""Checks what a class declares before any of it runs: names, price, shares, tensors, and the card beside its code."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import PurePath
from typing import Any

import yaml

from dapps.api import BASIS_POINTS, DApp
from dapps.api.version import package_metadata
from dapps.conformance.failure import hold
from dapps.structure import StructureRefused, check_yaml

CARD = "CARD.yaml"
MAX_CARD_EVENTS, MAX_CARD_DEPTH = 40_000, 12
NEEDED = {
    "name": "the name of the model",
    "intended_use": "research, for anything that is no approved medical device",
    "purpose": "what it answers, and what it does not",
    "data": "what it was trained and measured on, with the licence",
    "limits": "where it is known to fail",
}
"""The sections that a card needs, and what each is for."""


def check_declaration(dapp: DApp) -> None:
    """Checks that names, price, shares and tensors are declared and consistent."""
    for name in ("version", "inputs", "outputs", "price"):
        hold(hasattr(dapp, name), name.replace("inputs", "tensors"), f"the class declares no `{name}`")
    hold(bool(dapp.version), "version", "the DApp has no version", "version")
    _check_package_version(dapp)
    hold(bool(dapp.description), "description", "the class has no docstring: its first line describes it to payers")
    both = bool(dapp.inputs) and bool(dapp.outputs)
    hold(both, "tensors", "inputs and outputs are both needed", "outputs" if dapp.inputs else "inputs")
    names = [tensor.name for tensor in (*dapp.inputs, *dapp.outputs)]
    hold(len(set(names)) == len(names), "tensors", "two tensors have one name", "outputs")
    required = any(not tensor.optional for tensor in dapp.outputs)
    hold(required or len(dapp.outputs) > 1, "tensors", "the only output is optional", "outputs")
    shares = dapp.shares
    total = shares.knowledge + shares.guideline + shares.data + shares.compute + shares.operator
    hold(total == BASIS_POINTS, "shares", f"shares sum to {total}, not {BASIS_POINTS} basis points", "shares")
    hold(dapp.maximum_batch >= 1, "maximum_batch", "at least one item must fit into a batch", "maximum_batch")
    hold(dapp.tolerance >= 0, "tolerance", "a tolerance is an absolute difference, not below 0", "tolerance")
    timed = bool(dapp.calls) and bool(dapp.price.per_gpu_second)
    hold(not timed, "price", "a DApp that calls others is priced by item: they are paid out of that", "price")
    _ = dapp.digest  # reads the package, and the guidelines that it names


def check_card(dapp: DApp) -> None:
    """Checks that the card is complete, fits the weights, and that its licence allows the price."""
    package = sys.modules[type(dapp).__module__].__package__
    hold(bool(package), "card", f"the class is in no package: put it into a folder, and {CARD} beside it")
    folder = files(str(package))
    path = PurePath(str(folder)) / CARD
    hold(folder.joinpath(CARD).is_file(), "card", f"there is no {path}: write one, `leben dapp new` shows how")
    try:
        card = _read(folder.joinpath(CARD).read_bytes())
    except StructureRefused as error:
        hold(False, "card", f"{path}, line {error.line}: {error.cause}")
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        at = f", line {mark.line + 1}" if mark else ""
        hold(False, "card", f"{path}{at}: it cannot be read as YAML")
    hold(isinstance(card, dict), "card", f"{path}: it is no mapping of sections")
    stated = card.get("version", dapp.version)
    text = f"{path}: its version is {stated}, that of the DApp is {dapp.version}: leave it out of the card"
    hold(str(stated) == dapp.version, "version", text)
    for name, meaning in NEEDED.items():
        value = card.get(name)
        hold(value not in (None, "", [], {}), "card", f"{path}: the section `{name}` is missing: {meaning}")
    weights = card.get("weights")
    if isinstance(weights, dict) and "sha256" in weights:
        weights_files = [file.read_bytes() for file in folder.iterdir() if file.name.endswith(".safetensors")]
        digests = {hashlib.sha256(content).hexdigest() for content in weights_files}
        hold(weights["sha256"] in digests, "card", f"{path}: weights.sha256 is of other weights than those packaged")
    text = "non_commercial is true in the card, so the price must be 0: who may not sell the model may not sell answers"
    hold(may_cost(dapp), "licence", text, "price")


def _check_package_version(dapp: DApp) -> None:
    """Checks a class's own version against its package's, unless the package offers several classes."""
    kind = type(dapp)
    metadata = package_metadata(kind.__module__)
    if metadata is None or len(set(metadata.offers.values())) > 1:
        return
    text = (
        f"the version of the class is {dapp.version}, that of its package {metadata.version}: "
        "leave it out of the class, which then has its package's"
    )
    hold(dapp.version == metadata.version, "version", text, "version")


def may_cost(dapp: DApp) -> bool:
    """False if a card in its package forbids selling it and it has a price."""
    package = sys.modules[type(dapp).__module__].__package__
    if dapp.price.max_price == 0 or not package:
        return True
    return not any(_sets(_read(content), "non_commercial") for content in _cards(files(package)))


def _read(content: bytes) -> Any:
    text = content.decode()
    check_yaml(text, max_events=MAX_CARD_EVENTS, max_depth=MAX_CARD_DEPTH)
    return yaml.safe_load(text)


def _cards(folder: Any) -> Iterator[bytes]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _cards(entry)
        elif entry.name == CARD:
            yield entry.read_bytes()


def _sets(value: Any, key: str) -> bool:
    """True if a mapping anywhere in the card sets the key to true."""
    if isinstance(value, dict):
        return value.get(key) is True or any(_sets(part, key) for part in value.values())
    return isinstance(value, list) and any(_sets(part, key) for part in value)
