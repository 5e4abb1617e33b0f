"""Holds a payer's key and budget, and signs the headers by which it reads its own records."""

from __future__ import annotations

import os
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from channels.payer.budget import Budget, Spending
from channels.protocol import KeyFileError, Signer, checksummed, keystore, read_digest


class Wallet:
    """A payer's key and budget; its repr shows the address alone."""

    def __init__(self, signer: Signer, budget: Budget | None = None) -> None:
        self.signer = signer
        self.budget = budget or Budget()
        self.spending = Spending()

    @classmethod
    def from_file(cls, path: str | Path, budget: Budget | None = None, password: str | None = None) -> Wallet:
        """The wallet whose key is in a file, as `leben wallet new` writes it; a missing file is made.

        Args:
            path: 64 hex digits, or an encrypted keystore.
            budget: what it may spend; the limits of `Budget` by default.
            password: opens a keystore, and encrypts a key that is made; LEBEN_KEY_PASSWORD by default.

        Raises:
            KeyFileError: the file holds no key, or it is encrypted and the password is missing or wrong.
            OSError: the file cannot be read or made.
        """
        file = Path(path)
        if password is None:
            password = os.environ.get("LEBEN_KEY_PASSWORD", "")
        if not password and file.exists() and keystore.is_encrypted(file):
            text = f"{file} is encrypted: set LEBEN_KEY_PASSWORD, or name it in Wallet.from_file(…, password=…)"
            raise KeyFileError("key_locked", text)
        return cls(Signer.from_file(file, password), budget)

    @property
    def address(self) -> str:
        """The payer's address: `leben wallet fund` credits it."""
        return self.signer.address

    def __repr__(self) -> str:
        return f"Wallet({self.address})"

    def read_headers(self, url: str, chain_id: int, mesh: str) -> dict[str, str]:
        """Headers that let this payer read `url`, see `read_headers`."""
        return read_headers(self.signer, url, chain_id, mesh)


def read_headers(signer: Signer, url: str, chain_id: int, mesh: str) -> dict[str, str]:
    """Headers that prove who reads `url`: the signature of EIP-712 `Read`, valid for 300 s at one mesh.

    Args:
        signer: who reads.
        url: whole, or a path and query; httpx sends its query as it is signed here.
        chain_id: the ledger's.
        mesh: the address that signs the mesh's receipts, in any case: `mesh.receipts` in `/v1/catalogue`.

    Raises:
        ValueError: `mesh` is no address.
    """
    address, issued_s = checksummed(mesh), int(time.time())
    if address is None:
        raise ValueError("mesh is the address that signs the mesh's receipts")
    path, query = urlsplit(url).path, httpx.URL(url).query.decode("ascii")
    digest = read_digest(chain_id, mesh=address, path=path, query=query, issued_s=issued_s)
    return {
        "leben-read-issued": str(issued_s),
        "leben-read-mesh": address,
        "leben-read-signature": "0x" + signer.sign(digest).hex(),
    }
