"""`Manifest`: which code, weights, card and guidelines make a DApp, as digests.

The digest over all of them goes into every receipt, so whoever has a receipt can tell later what answered; the parts
say which of them changed. Loads no weights: it reads the packaged files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Found = Sequence[tuple[str, bytes]]
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


def parts(found: Found) -> tuple[str, str, str]:
    """Digests of code, weights and cards."""
    kinds: dict[str, list[tuple[str, bytes]]] = {"code": [], "weights": [], "card": []}
    for path, content in found:
        kinds[_kind(path)].append((path, content))
    return digest(kinds["code"]), digest(kinds["weights"]), digest(kinds["card"])


def digest(found: Found, start: str = "") -> str:
    """SHA-256 over names and contents, in the order of their names."""
    total = hashlib.sha256(start.encode())
    for name, content in sorted(found):
        total.update(name.encode() + b"\0" + hashlib.sha256(content).digest())
    return total.hexdigest()


def packaged(folder: Any, prefix: str = "") -> list[tuple[str, bytes]]:
    """All files of a package's folder, compiled ones left out."""
    found: list[tuple[str, bytes]] = []
    for entry in folder.iterdir():
        if entry.name == "__pycache__":
            continue
        path = f"{prefix}{entry.name}"
        found += packaged(entry, f"{path}/") if entry.is_dir() else [(path, entry.read_bytes())]
    return found


def _kind(path: str) -> str:
    if path.endswith(".safetensors"):
        return "weights"
    return "card" if path.rpartition("/")[2].startswith("CARD.") else "code"
