"""Speaks x402's `batch-settlement`: wire types, EIP-712 digests, signatures and key files.

May import only errors.
"""

from channels.protocol.digests import (
    COLLECTOR,
    SETTLEMENT,
    Domain,
    channel_id,
    claim_digest,
    deposit_digest,
    deposit_nonce,
    finalize_digest,
    initiate_digest,
    payout_digest,
    read_digest,
    refund_digest,
    split_payout_digest,
    uint256,
    voucher_digest,
)
from channels.protocol.keccak import keccak
from channels.protocol.keystore import KeyFileError
from channels.protocol.signer import Signer, Verifier, recover, signed_by
from channels.protocol.x402 import (
    HASH,
    HEX,
    SCHEME,
    STATE_FIELDS,
    ZERO_ADDRESS,
    ChannelConfig,
    Deposit,
    Json,
    Payment,
    Voucher,
    checksummed,
    decode_header,
    encode_header,
    parse_amount,
)

__all__ = [
    "COLLECTOR",
    "HASH",
    "HEX",
    "SCHEME",
    "SETTLEMENT",
    "STATE_FIELDS",
    "ZERO_ADDRESS",
    "ChannelConfig",
    "Deposit",
    "Domain",
    "Json",
    "KeyFileError",
    "Payment",
    "Signer",
    "Verifier",
    "Voucher",
    "channel_id",
    "checksummed",
    "claim_digest",
    "decode_header",
    "deposit_digest",
    "deposit_nonce",
    "encode_header",
    "finalize_digest",
    "initiate_digest",
    "keccak",
    "parse_amount",
    "payout_digest",
    "read_digest",
    "recover",
    "refund_digest",
    "signed_by",
    "split_payout_digest",
    "uint256",
    "voucher_digest",
]
