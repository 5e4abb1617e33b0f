"""Keccak-256 in C. Named, not found: the first backend that the library would take is four times slower."""

from __future__ import annotations

from eth_hash.backends import pysha3
from eth_hash.main import Keccak256

keccak = Keccak256(pysha3)  # type: ignore[arg-type]  # a module is what the library calls a backend
