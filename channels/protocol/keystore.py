"""Reads and writes key files: 64 hex digits, or an encrypted keystore (Web3 Secret Storage v3).

A file appears whole and readable by its owner alone, or not at all, and is not overwritten unless the caller says so.
No error quotes a file's contents. `signer.py` makes a `Signer` of the 32 bytes.
"""

from __future__ import annotations

import os
from pathlib import Path

import orjson
from eth_utils import is_hex_address, to_checksum_address

from channels.errors import ChannelError


class KeyFileError(ChannelError):
    """A key file holds no key, or is locked; it is left unchanged."""


def read(path: Path, password: str = "") -> bytes:
    """The 32-byte secret in a key file.

    Args:
        path: 64 hex digits, or a keystore.
        password: opens a keystore; not needed for hex digits.

    Raises:
        KeyFileError: the file holds no key, or the password is missing or wrong.
        OSError: the file cannot be read.
    """
    try:
        text = path.read_text().strip()
    except UnicodeDecodeError as error:
        raise _no_key(path) from error
    if text.startswith("{"):
        return _decrypt(path, text, password)
    try:
        secret = bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        raise _no_key(path) from None  # the cause would quote the file
    if len(secret) != 32:
        raise _no_key(path)
    return secret


def write(path: Path, secret: bytes, password: str = "", replace: bool = False) -> None:
    """Writes a key file, encrypted if there is a password.

    Raises:
        FileExistsError: there is a file, and `replace` is not set.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    text = _encrypt(secret, password) if password else secret.hex()
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            draft.replace(path)
        else:
            os.link(draft, path)  # unlike a rename, fails if another process was first
    finally:
        draft.unlink(missing_ok=True)


def is_encrypted(path: Path) -> bool:
    """True if the file is a keystore."""
    return path.read_bytes().lstrip().startswith(b"{")


def address(path: Path) -> str | None:
    """The address that a keystore names, read without its password; None for other files."""
    try:
        raw = orjson.loads(path.read_bytes())["address"]
    except (orjson.JSONDecodeError, LookupError, TypeError):
        return None
    prefixed = f"0x{str(raw).removeprefix('0x')}"
    return str(to_checksum_address(prefixed)) if is_hex_address(prefixed) else None


def _encrypt(secret: bytes, password: str) -> str:
    from eth_keyfile import create_keyfile_json  # takes a second to import, and most keys are plain

    return orjson.dumps(create_keyfile_json(secret, password.encode(), version=3, kdf="scrypt")).decode()


def _decrypt(path: Path, text: str, password: str) -> bytes:
    if not password:
        raise KeyFileError("key_locked", f"{path} is encrypted: set LEBEN_KEY_PASSWORD")
    from eth_keyfile import decode_keyfile_json

    try:
        return bytes(decode_keyfile_json(orjson.loads(text), password.encode()))
    except (ValueError, TypeError, LookupError) as error:
        wrong = "MAC mismatch" in str(error)
        reason = "the password does not open it" if wrong else "it is not a keystore of version 3"
        raise KeyFileError("key_locked" if wrong else "key_file", f"{path}: {reason}") from None


def _no_key(path: Path) -> KeyFileError:
    return KeyFileError("key_file", f"{path} exists and is not a key of 64 hex digits or a keystore")
