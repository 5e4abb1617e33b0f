"""`Wallet`: a payer's key and budget, and the headers by which it reads what is its own."""

from __future__ import annotations

import os
import time
from pathlib import Path
from urllib.parse import urlsplit

from channels.payer.budget import Budget, Spending
from channels.protocol import KeyFileError, Signer, keystore, read_digest


class Wallet:
    """A payer's key and budget; its repr shows the address alone."""

    def __init__(self, signer: Signer, budget: Budget | None = None) -> None:
        self.signer = signer
        self.budget = budget or Budget()
        self.spending = Spending()

    @classmethod
    def from_file(cls, path: str | Path, budget: Budget | None = None, password: str | None = None) -> Wallet:
        """The wallet whose key is in a file, as `leben wallet new` writes it; made there if there is none.

        Args:
            path: 64 hex digits, or an encrypted keystore.
            budget: what it may spend; without one, anything.
            password: opens a keystore, and encrypts a key that is made; by default what LEBEN_KEY_PASSWORD holds.

        Raises:
            KeyFileError: the file holds no key, or it is encrypted and the password is missing or wrong.
            OSError: it cannot be read or made.
        """
        file = Path(path)
        opens = os.environ.get("LEBEN_KEY_PASSWORD", "") if password is None else password
        if not opens and file.exists() and keystore.is_encrypted(file):
            told = f"{file} is encrypted: set LEBEN_KEY_PASSWORD, or name it in Wallet.from_file(…, password=…)"
            raise KeyFileError("key_locked", told)
        return cls(Signer.from_file(file, opens), budget)

    @property
    def address(self) -> str:
        """The payer's address: what `leben wallet fund` credits."""
        return self.signer.address

    def __repr__(self) -> str:
        return f"Wallet({self.address})"

    def read_headers(self, url: str, chain_id: int) -> dict[str, str]:
        """Headers that prove who reads `url`: EIP-712 `Read(path, issued)`, valid 300 s."""
        issued_s = int(time.time())
        signature = self.signer.sign(read_digest(chain_id, urlsplit(url).path, issued_s))
        return {"leben-read-issued": str(issued_s), "leben-read-signature": "0x" + signature.hex()}
