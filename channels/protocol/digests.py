"""Computes the EIP-712 digests that signatures of `batch-settlement`, of payouts and of withdrawals cover.

The types and the domain of channels are x402's (name "x402 Batch Settlement", version "1"); the digests equal those of
its contract.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from eth_abi.abi import encode

from channels.protocol.keccak import keccak
from channels.protocol.x402 import ChannelConfig

SETTLEMENT = "0x4020074e9dF2ce1deE5A9C1b5c3f541D02a10003"
COLLECTOR = "0x4020806089470a89826cB9fB1f4059150b550004"
"""x402's contract addresses, hard-coded in every stock client; on the SQL ledger they only enter the digests."""

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
READ = "Read(address mesh,string path,string query,uint256 issued)"
READ_TYPE = keccak(READ.encode())
PAYOUT_TYPE = keccak(b"Payout(address owner,address to,uint256 amount,uint256 nonce)")
SPLIT_PAYOUT_TYPE = keccak(b"Payout(address token,address owner,address to,uint256 amount,uint256 nonce)")
INITIATE_TYPE = keccak(b"InitiateWithdraw(bytes32 channelId,uint128 amount,uint256 nonce)")
FINALIZE_TYPE = keccak(b"FinalizeWithdraw(bytes32 channelId,uint256 nonce)")


def uint256(value: int) -> bytes:
    """32 big-endian bytes."""
    return value.to_bytes(32, "big")


def hex_bytes(text: str) -> bytes:
    """The bytes of a text of hex digits after `0x`."""
    return bytes.fromhex(text[2:])


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
        """The 32 bytes that a signature covers: the hash of 0x1901, separator and struct hash."""
        return keccak(b"\x19\x01" + self.separator + struct_hash)


@lru_cache(maxsize=64)
def settlement_domain(chain_id: int) -> Domain:
    """The domain of channel ids, vouchers, claims and refunds on one chain."""
    return Domain.of("x402 Batch Settlement", "1", chain_id, SETTLEMENT)


@lru_cache(maxsize=4096)
def channel_id(chain_id: int, config: ChannelConfig) -> str:
    """A channel's id: the EIP-712 digest of its config in lower-case hex."""
    types = ["bytes32", "address", "address", "address", "address", "address", "uint40", "bytes32"]
    values = [
        CHANNEL_TYPE,
        config.payer,
        config.payer_authorizer,
        config.receiver,
        config.receiver_authorizer,
        config.token,
        config.withdraw_delay,
        hex_bytes(config.salt),
    ]
    return "0x" + settlement_domain(chain_id).digest(keccak(encode(types, values))).hex()


def voucher_digest(chain_id: int, channel: str, max_claimable: int) -> bytes:
    """Digest of Voucher(channelId, maxClaimableAmount)."""
    return settlement_domain(chain_id).digest(keccak(VOUCHER_TYPE + hex_bytes(channel) + uint256(max_claimable)))


def refund_digest(chain_id: int, channel: str, nonce: int, amount: int) -> bytes:
    """Digest of Refund(channelId, nonce, amount)."""
    body = hex_bytes(channel) + uint256(nonce) + uint256(amount)
    return settlement_domain(chain_id).digest(keccak(REFUND_TYPE + body))


def claim_digest(chain_id: int, rows: Sequence[tuple[str, int, int]]) -> bytes:
    """Digest of ClaimBatch over rows of (channel id, max claimable amount, total claimed)."""
    entries = b"".join(
        keccak(ENTRY_TYPE + hex_bytes(channel) + uint256(max_claimable) + uint256(total))
        for channel, max_claimable, total in rows
    )
    return settlement_domain(chain_id).digest(keccak(BATCH_TYPE + keccak(entries)))


def deposit_nonce(channel: str, salt: str) -> bytes:
    """The ERC-3009 nonce of a deposit: it binds the authorization to one channel."""
    return keccak(hex_bytes(channel) + hex_bytes(salt))


def deposit_digest(token: Domain, payer: str, amount: int, valid_after: int, valid_before: int, nonce: bytes) -> bytes:
    """Digest of ReceiveWithAuthorization to the collector, in the token's domain."""
    addresses = encode(["address", "address"], [payer, COLLECTOR])
    numbers = uint256(amount) + uint256(valid_after) + uint256(valid_before)
    return token.digest(keccak(RECEIVE_TYPE + addresses + numbers + nonce))


def read_digest(chain_id: int, *, mesh: str, path: str, query: str, issued_s: int) -> bytes:
    """Digest of `READ`, by which a payer, an owner or the operator reads its own records.

    The mesh is part of it: meshes share a chain, and one that was read could otherwise read the same at another.

    Args:
        chain_id: the ledger's.
        mesh: the address that signs the mesh's receipts, checksummed.
        path: of the URL, without its query.
        query: of the URL, as it is sent, without the question mark; often empty.
        issued_s: seconds since 1970.
    """
    texts = keccak(path.encode()) + keccak(query.encode())
    return settlement_domain(chain_id).digest(
        keccak(READ_TYPE + encode(["address"], [mesh]) + texts + uint256(issued_s))
    )


def payout_digest(chain_id: int, owner: str, to: str, amount: int, nonce: int) -> bytes:
    """Digest of Payout(owner, to, amount, nonce), signed by the owner; a nonce is used once."""
    addresses = encode(["address", "address"], [owner, to])
    return settlement_domain(chain_id).digest(keccak(PAYOUT_TYPE + addresses + uint256(amount) + uint256(nonce)))


def split_payout_digest(chain_id: int, split: str, token: str, owner: str, to: str, amount: int, nonce: int) -> bytes:
    """Digest of Payout(token, owner, to, amount, nonce) in the domain of a `Split` contract on a chain."""
    body = encode(["address", "address", "address", "uint256", "uint256"], [token, owner, to, amount, nonce])
    return Domain.of("Leben Mesh Split", "1", chain_id, split).digest(keccak(SPLIT_PAYOUT_TYPE + body))


def initiate_digest(chain_id: int, channel: str, amount: int, nonce: int) -> bytes:
    """Digest of InitiateWithdraw(channelId, amount, nonce), signed by the payer or its authorizer."""
    body = hex_bytes(channel) + uint256(amount) + uint256(nonce)
    return settlement_domain(chain_id).digest(keccak(INITIATE_TYPE + body))


def finalize_digest(chain_id: int, channel: str, nonce: int) -> bytes:
    """Digest of FinalizeWithdraw(channelId, nonce), signed by the payer or its authorizer."""
    return settlement_domain(chain_id).digest(keccak(FINALIZE_TYPE + hex_bytes(channel) + uint256(nonce)))
