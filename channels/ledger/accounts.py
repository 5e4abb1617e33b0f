"""Names the accounts of the books: `wallet:`, `channel:`, `receiver:` or `owner:` and an address or channel id."""

from __future__ import annotations

from eth_utils import is_hex_address, to_checksum_address

from channels.errors import LedgerError
from channels.ledger.books import Entry


def address(raw: str) -> str:
    """The checksummed spelling: a second spelling would be a second account."""
    if not is_hex_address(raw):
        raise LedgerError("address_invalid", "an address is 20 bytes in hex")
    return to_checksum_address(raw)


def wallet(of: str) -> str:
    """The account of what an address holds outside channels."""
    return f"wallet:{address(of)}"


def owner(of: str) -> str:
    """The account of what an owner has earned."""
    return f"owner:{address(of)}"


def receiver(of: str) -> str:
    """The account of what is claimed for a receiver and not yet split."""
    return f"receiver:{address(of)}"


def channel(identity: str) -> str:
    """The account of what is left in a channel."""
    return f"channel:{identity}"


def moves(source: str, target: str, amount: int) -> tuple[Entry, Entry]:
    """The two entries of a plain move."""
    return Entry(source, -amount), Entry(target, amount)
