"""Identifies what answers: digests of a DApp's code, weights, card, guidelines and changed thresholds.

The digest over all of them goes into every receipt, so a receipt's owner can later prove what answered; the parts show
which of them changed. Reads the packaged files and loads no weights.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dapps.knowledge import Guideline

Files = Sequence[tuple[str, bytes]]
"""Packaged files: path below the package, and content."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """SHA-256 digests in hex of what a DApp is made of.

    Args:
        dapp: over everything below, and the class's name and version; it stands in every receipt.
        code: every packaged file that is neither weights nor a card.
        weights: the `.safetensors` files.
        card: the files named `CARD`, of the package and of the folders in it.
        guidelines: (id, version, digest) of each guideline it weighs.
    """

    dapp: str
    code: str
    weights: str
    card: str
    guidelines: tuple[tuple[str, str, str], ...]


def manifest_of(kind: type, version: str, names: Sequence[str], changed: Mapping[str, float]) -> Manifest:
    """Digests the files packaged beside a DApp's class, or the class's own script, and its guidelines.

    Args:
        kind: the class.
        version: the DApp's version.
        names: of the guidelines.
        changed: the thresholds that differ from the declared ones.
    """
    package = packaged_beside(kind) or _script(kind)
    guidelines = _guidelines(names)
    weighed = "".join(f"{guideline.id}\0{guideline.digest}\0" for guideline in guidelines)
    thresholds = "".join(f"{name}\0{changed[name]!r}\0" for name in sorted(changed))
    whole = digest(package, f"{kind.__qualname__}\0{version}\0{weighed}{thresholds}")
    rows = tuple((guideline.id, str(guideline.document.version), guideline.digest) for guideline in guidelines)
    return Manifest(whole, *_parts(package), rows)


def digest(package: Files, start: str = "") -> str:
    """SHA-256 over names and contents, in the order of their names."""
    total = hashlib.sha256(start.encode())
    for name, content in sorted(package):
        total.update(name.encode() + b"\0" + hashlib.sha256(content).digest())
    return total.hexdigest()


def packaged_beside(kind: type) -> list[tuple[str, bytes]]:
    """All files of the package that a class is in; none for a class in a script."""
    package = sys.modules[kind.__module__].__package__
    return packaged(files(package)) if package else []


def packaged(folder: Any, prefix: str = "") -> list[tuple[str, bytes]]:
    """All files of a package's folder, without compiled ones."""
    package: list[tuple[str, bytes]] = []
    for entry in folder.iterdir():
        if entry.name == "__pycache__":
            continue
        path = f"{prefix}{entry.name}"
        package += packaged(entry, f"{path}/") if entry.is_dir() else [(path, entry.read_bytes())]
    return package


def _guidelines(names: Sequence[str]) -> tuple[Guideline, ...]:
    if not names:
        return ()
    from dapps.knowledge import find

    return tuple(find(name) for name in names)


def _script(kind: type) -> list[tuple[str, bytes]]:
    source = getattr(sys.modules[kind.__module__], "__file__", None)
    return [("", Path(source).read_bytes())] if source else []


def _parts(package: Files) -> tuple[str, str, str]:
    """Digests of code, weights and cards."""
    kinds: dict[str, list[tuple[str, bytes]]] = {"code": [], "weights": [], "card": []}
    for path, content in package:
        kinds[_kind(path)].append((path, content))
    return digest(kinds["code"]), digest(kinds["weights"]), digest(kinds["card"])


def _kind(path: str) -> str:
    if path.endswith(".safetensors"):
        return "weights"
    return "card" if path.rpartition("/")[2].startswith("CARD.") else "code"
