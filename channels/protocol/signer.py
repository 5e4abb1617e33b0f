"""Signs digests with secp256k1 keys, and recovers signers from signatures as the settlement contract does.

The checks before recovery are the contract's: a voucher that is accepted here and refused there is work given away, and
one such row fails a whole claim batch.
"""

from __future__ import annotations

import secrets
from contextlib import suppress
from pathlib import Path

from coincurve import PrivateKey as NativeKey
from coincurve import PublicKey as NativePublicKey
from eth_keys import KeyAPI
from eth_keys.backends import CoinCurveECCBackend
from eth_keys.constants import SECPK1_N
from eth_keys.datatypes import PublicKey, Signature
from eth_keys.exceptions import BadSignature, ValidationError
from eth_utils import to_checksum_address

from channels.protocol import keystore
from channels.protocol.digests import voucher_digest
from channels.protocol.keccak import keccak
from channels.protocol.keystore import KeyFileError
from channels.protocol.x402 import ChannelConfig, Voucher

KEYS = KeyAPI(CoinCurveECCBackend())  # eth-keys falls back to a backend in Python that is 130 times slower


class Signer:
    """A secp256k1 key that signs digests; its repr shows the address, never the key."""

    def __init__(self, secret: bytes) -> None:
        self._key = KEYS.PrivateKey(secret)
        self._native = NativeKey(secret)  # eth-keys would derive the public key again at every signature
        self.address = self._key.public_key.to_checksum_address()

    @classmethod
    def generate(cls) -> Signer:
        """A new random key."""
        return cls((secrets.randbelow(SECPK1_N - 1) + 1).to_bytes(32, "big"))

    @classmethod
    def from_file(cls, path: Path, password: str = "") -> Signer:
        """The key in a file, see `keystore.py`; a missing file is made, readable by its owner alone.

        Raises:
            KeyFileError: the file holds no key, or the password is missing or wrong.
            OSError: the file cannot be read or made.
        """
        if not path.exists():
            with suppress(FileExistsError):  # another process was first: its key counts
                cls.generate().save(path, password)
        try:
            return cls(keystore.read(path, password))
        except ValidationError:
            raise KeyFileError("key_file", f"{path} holds a number that is no secp256k1 key") from None

    def save(self, path: Path, password: str = "") -> None:
        """Writes the key to a new file, encrypted if there is a password."""
        keystore.write(path, self._key.to_bytes(), password)

    def secret(self) -> str:
        """The key as 64 hex digits, for another process of the mesh that signs with it: wrap it at once."""
        return self._key.to_bytes().hex()

    def sign(self, digest: bytes) -> bytes:
        """65 bytes r, s, v with v 27 or 28 and low s; the same digest always gives the same bytes (RFC 6979)."""
        raw = self._native.sign_recoverable(digest, hasher=None)
        return raw[:64] + bytes([raw[64] + 27])

    def derive(self, purpose: str) -> bytes:
        """A 32-byte secret bound to this key and a purpose."""
        return keccak(b"leben:" + purpose.encode() + b"\0" + self._key.to_bytes())

    def __repr__(self) -> str:
        return f"Signer({self.address})"


def well_formed(signature: bytes) -> bool:
    """True if the contract would recover these bytes: 65 long, v 27 or 28, r and s in range, s in the low half.

    A high s is a second signature for the same voucher: the contract refuses it, and with it the whole batch.
    """
    if len(signature) != 65 or signature[64] not in (27, 28):
        return False
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:64], "big")
    return 0 < r < SECPK1_N and 0 < s <= SECPK1_N // 2


def recover(digest: bytes, signature: bytes) -> PublicKey | None:
    """The public key that made a well-formed signature, or None."""
    if not well_formed(signature):
        return None
    try:
        parsed = Signature(signature[:64] + bytes([signature[64] - 27]), backend=KEYS.backend)
        return parsed.recover_public_key_from_msg_hash(digest)
    except (BadSignature, ValidationError):
        return None


def signed_by(digest: bytes, signature: bytes, address: str) -> bool:
    """True if `address` signed the digest."""
    key = recover(digest, signature)
    return key is not None and key.to_checksum_address() == to_checksum_address(address)


class Verifier:
    """Verifies vouchers of one chain, and caches the public key of each address.

    The cache is bounded and can speed a verdict up but never change it. The key is recovered every time: a check
    against the cached key alone would ignore v, and the contract refuses the other v.

    Args:
        chain_id: the ledger's.
        capacity: addresses in the cache.
    """

    def __init__(self, chain_id: int, capacity: int = 4096) -> None:
        self.chain_id = chain_id
        self._capacity = capacity
        self._keys: dict[str, bytes] = {}

    def voucher(self, voucher: Voucher, config: ChannelConfig) -> bool:
        """True if the channel's payer authorizer (or its payer, where that is zero) signed this voucher."""
        signer = config.payer_authorizer if int(config.payer_authorizer, 16) else config.payer
        digest = voucher_digest(self.chain_id, voucher.channel_id, voucher.max_claimable)
        signature = voucher.signature
        if not well_formed(signature):
            return False
        cached = self._keys.get(signer)
        if cached is not None:
            return _recovered(digest, signature) == cached
        key = recover(digest, signature)
        if key is None or key.to_checksum_address() != signer:
            return False
        if len(self._keys) >= self._capacity:
            self._keys.pop(next(iter(self._keys)))
        self._keys[signer] = b"\x04" + key.to_bytes()
        return True


def _recovered(digest: bytes, signature: bytes) -> bytes | None:
    """The uncompressed public key (65 bytes) that made a well-formed signature, without the cost of eth-keys' types."""
    try:
        raw = signature[:64] + bytes([signature[64] - 27])
        return bytes(NativePublicKey.from_signature_and_message(raw, digest, hasher=None).format(compressed=False))
    except ValueError:  # no curve point fits
        return None
