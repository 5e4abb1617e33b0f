"""Signs digests and recovers who signed: secp256k1 keys, signatures as the settlement contract accepts them.

The checks before recovery are the contract's: a voucher that we accept and the contract refuses is work given away, and
one such row makes a whole claim batch fail.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
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

KEYS = KeyAPI(CoinCurveECCBackend())  # named, not found: the native backend is 130 times slower


class Signer:
    """A secp256k1 key that signs digests; its repr shows the address, never the key."""

    def __init__(self, secret: bytes) -> None:
        self._key = KEYS.PrivateKey(secret)
        self._native = NativeKey(secret)  # made once: eth-keys would derive the public key again at every signature
        self.address = self._key.public_key.to_checksum_address()

    @classmethod
    def generate(cls) -> Signer:
        """A new random key."""
        return cls((secrets.randbelow(SECPK1_N - 1) + 1).to_bytes(32, "big"))

    @classmethod
    def from_file(cls, path: Path, password: str = "") -> Signer:
        """The key in a file, see `keystore.py`; made there, readable by its owner alone, if there is none."""
        if not path.exists():
            with suppress(FileExistsError):  # another process was first: its key is the one
                cls.generate().save(path, password)
        try:
            return cls(keystore.read(path, password))
        except ValidationError:
            raise KeyFileError("key_file", f"{path} holds a number that is no secp256k1 key") from None

    def save(self, path: Path, password: str = "") -> None:
        """Writes the key to a new file, encrypted if there is a password."""
        keystore.write(path, self._key.to_bytes(), password)

    def secret(self) -> str:
        """The key as 64 hex digits, for another process of the mesh that must sign: wrap it at once."""
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
    """True if the contract would look at these bytes: 65 long, v 27 or 28, r and s in range, s in the low half.

    A high s is a second signature for the same voucher; the contract refuses it, and with it the whole batch.
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
    """Verifies vouchers of one chain, and remembers whose key is whose, so that an address is worked out once.

    The cache is bounded and holds public keys only, so it can speed a verdict up but never change it. The key is
    recovered every time: a check against the known key would not look at v, and the contract refuses the other v.
    """

    def __init__(self, chain_id: int, now: Callable[[], float] = time.time, capacity: int = 4096) -> None:
        self.chain_id = chain_id
        self.now = now
        self._capacity = capacity
        self._keys: dict[str, bytes] = {}

    def voucher(self, voucher: Voucher, config: ChannelConfig) -> bool:
        """True if the channel's payer authoriser (or its payer, where that is zero) signed this voucher."""
        signer = config.payer_authorizer if int(config.payer_authorizer, 16) else config.payer
        digest = voucher_digest(self.chain_id, voucher.channel_id, voucher.max_claimable)
        signature = voucher.signature
        if not well_formed(signature):
            return False
        known = self._keys.get(signer)
        if known is not None:
            return _recovered(digest, signature) == known
        key = recover(digest, signature)
        if key is None or key.to_checksum_address() != signer:
            return False
        if len(self._keys) >= self._capacity:
            self._keys.pop(next(iter(self._keys)))
        self._keys[signer] = b"\x04" + key.to_bytes()
        return True


def _recovered(digest: bytes, signature: bytes) -> bytes | None:
    """The 65 bytes of the public key that made a well-formed signature: what `recover` finds, without its wrapping."""
    try:
        raw = signature[:64] + bytes([signature[64] - 27])
        return bytes(NativePublicKey.from_signature_and_message(raw, digest, hasher=None).format(compressed=False))
    except ValueError:  # no point fits
        return None
