"""Computes Keccak-256 in C with pysha3; eth-hash's default backend (pycryptodome) is four times slower."""

from __future__ import annotations

from eth_hash.backends import pysha3
from eth_hash.main import Keccak256

keccak = Keccak256(pysha3)  # type: ignore[arg-type]  # the library's backends are modules
