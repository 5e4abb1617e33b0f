"""What signatures cover, and who made them: EIP-712 digests of `batch-settlement`, a signer, a verifier.

Types and domain are x402's (name "x402 Batch Settlement", version "1"); digests equal those of its contract. The gate
before recovery is the contract's too: a voucher that we accept and the contract refuses is work given away, and one
such row makes a whole claim batch fail. Next: `channel.py`, whether a voucher pays for a call.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from coincurve import PrivateKey as NativeKey
from coincurve import PublicKey as NativePublicKey
from eth_abi.abi import encode
from eth_keys import KeyAPI
from eth_keys.backends import CoinCurveECCBackend
from eth_keys.constants import SECPK1_N
from eth_keys.datatypes import PublicKey, Signature
from eth_keys.exceptions import BadSignature, ValidationError
from eth_utils import to_checksum_address

from channels import keystore
from channels.keccak import keccak
from channels.keystore import KeyFileError
from channels.x402 import ChannelConfig, Voucher

SETTLEMENT = "0x4020074e9dF2ce1deE5A9C1b5c3f541D02a10003"
COLLECTOR = "0x4020806089470a89826cB9fB1f4059150b550004"
"""x402's contract addresses, hard-coded in every stock client; on the SQL ledger they only enter the digests."""

KEYS = KeyAPI(CoinCurveECCBackend())  # named, not found: the native backend is 130 times slower

DOMAIN_TYPE = keccak(b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
CHANNEL_TYPE = keccak(
    b"ChannelConfig(address payer,address payerAuthorizer,address receiver,address receiverAuthorizer,"
    b"address token,uint40 withdrawDelay,bytes32 salt)"
)
VOUCHER_TYPE = keccak(b"Voucher(bytes32 channelId,uint128 maxClaimableAmount)")
REFUND_TYPE = keccak(b"Refund(bytes32 channelId,uint256 nonce,uint128 amount)")
ENTRY = b"ClaimEntry(bytes32 channelId,uint128 maxClaimableAmount,uint128 totalClaimed)"
ENTRY_TYPE = keccak(ENTRY)
BATCH_TYPE = keccak(b"ClaimBatch(ClaimEntry[] claims)" + ENTRY)
RECEIVE_TYPE = keccak(
    b"ReceiveWithAuthorization(address from,address to,uint256 value,"
    b"uint256 validAfter,uint256 validBefore,bytes32 nonce)"
)
READ_TYPE = keccak(b"Read(string path,uint256 issued)")


def word(value: int) -> bytes:
    """A uint256 in 32 big-endian bytes."""
    return value.to_bytes(32, "big")


def _bytes(hexadecimal: str) -> bytes:
    return bytes.fromhex(hexadecimal[2:])


@dataclass(frozen=True, slots=True)
class Domain:
    """An EIP-712 domain with its separator computed once."""

    separator: bytes

    @classmethod
    def of(cls, name: str, version: str, chain_id: int, contract: str) -> Domain:
        """The domain of a contract on a chain."""
        types = ["bytes32", "bytes32", "bytes32", "uint256", "address"]
        values = [DOMAIN_TYPE, keccak(name.encode()), keccak(version.encode()), chain_id, contract]
        return cls(keccak(encode(types, values)))

    def digest(self, struct_hash: bytes) -> bytes:
        """What is signed: 0x1901, separator, struct hash."""
        return keccak(b"\x19\x01" + self.separator + struct_hash)


@lru_cache(maxsize=64)
def settlement_domain(chain_id: int) -> Domain:
    """The domain of channel ids, vouchers, claims and refunds on one chain."""
    return Domain.of("x402 Batch Settlement", "1", chain_id, SETTLEMENT)


@lru_cache(maxsize=4096)
def channel_id(chain_id: int, config: ChannelConfig) -> str:
    """A channel's id: the full EIP-712 digest of its config, as lower-case hex."""
    types = ["bytes32", "address", "address", "address", "address", "address", "uint40", "bytes32"]
    values: list[object] = [
        CHANNEL_TYPE,
        config.payer,
        config.payer_authorizer,
        config.receiver,
        config.receiver_authorizer,
    ]
    values += [config.token, config.withdraw_delay, _bytes(config.salt)]
    return "0x" + settlement_domain(chain_id).digest(keccak(encode(types, values))).hex()


def voucher_digest(chain_id: int, channel: str, maximum: int) -> bytes:
    """Digest of Voucher(channelId, maxClaimableAmount)."""
    return settlement_domain(chain_id).digest(keccak(VOUCHER_TYPE + _bytes(channel) + word(maximum)))


def refund_digest(chain_id: int, channel: str, nonce: int, amount: int) -> bytes:
    """Digest of Refund(channelId, nonce, amount)."""
    return settlement_domain(chain_id).digest(keccak(REFUND_TYPE + _bytes(channel) + word(nonce) + word(amount)))


def claim_digest(chain_id: int, rows: Sequence[tuple[str, int, int]]) -> bytes:
    """Digest of ClaimBatch over (channel id, ceiling, total claimed) rows."""
    entries = b"".join(
        keccak(ENTRY_TYPE + _bytes(channel) + word(maximum) + word(total)) for channel, maximum, total in rows
    )
    return settlement_domain(chain_id).digest(keccak(BATCH_TYPE + keccak(entries)))


def deposit_nonce(channel: str, salt: str) -> bytes:
    """The ERC-3009 nonce of a deposit: bound to its channel, so that it cannot pay into another."""
    return keccak(_bytes(channel) + _bytes(salt))


def deposit_digest(token: Domain, payer: str, amount: int, valid_after: int, valid_before: int, nonce: bytes) -> bytes:
    """Digest of ReceiveWithAuthorization to the collector, in the token's domain."""
    addresses = encode(["address", "address"], [payer, COLLECTOR])
    numbers = word(amount) + word(valid_after) + word(valid_before)
    return token.digest(keccak(RECEIVE_TYPE + addresses + numbers + nonce))


def read_digest(chain_id: int, path: str, issued_s: int) -> bytes:
    """Digest of Read(path, issued): how a payer, owner or operator asks for what is theirs."""
    return settlement_domain(chain_id).digest(keccak(READ_TYPE + keccak(path.encode()) + word(issued_s)))


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
        digest = voucher_digest(self.chain_id, voucher.channel_id, voucher.maximum)
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
