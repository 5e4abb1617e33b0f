"""Writes `x402.json`: what the stock x402 package computes for fixed keys, for other implementations to compare with.

Run it from the repository's root after raising the package's version: `python tests/vectors/write.py`. No code of this
repository computes a value here; `tests/vectors/test_vectors.py` compares it with the file.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

from eth_account import Account
from eth_account.messages import encode_typed_data
from eth_utils import keccak
from x402.http.utils import (
    encode_payment_required_header,
    encode_payment_response_header,
    encode_payment_signature_header,
)
from x402.mechanisms.evm.batch_settlement.authorizer_signer import LocalAuthorizerSigner, sign_claim_batch, sign_refund
from x402.mechanisms.evm.batch_settlement.client import eip3009
from x402.mechanisms.evm.batch_settlement.client.voucher import sign_voucher
from x402.mechanisms.evm.batch_settlement.constants import (
    CLAIM_BATCH_TYPES,
    ERC3009_DEPOSIT_COLLECTOR_ADDRESS,
    RECEIVE_AUTHORIZATION_TYPES,
    REFUND_TYPES,
    VOUCHER_TYPES,
)
from x402.mechanisms.evm.batch_settlement.encoding import build_erc3009_deposit_nonce
from x402.mechanisms.evm.batch_settlement.types import ChannelConfig, RefundPayload, VoucherClaim, VoucherPayload
from x402.mechanisms.evm.batch_settlement.utils import (
    coerce_bytes32,
    compute_channel_id,
    get_batch_settlement_eip712_domain,
)
from x402.mechanisms.evm.signers import EthAccountSigner
from x402.schemas import PaymentPayload, PaymentRequired, PaymentRequirements, ResourceInfo, SettleResponse

FILE = Path(__file__).with_name("x402.json")
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
CHAINS = (1, 8453, 31337, 2**31 - 1, 7_018_402_331_550)
AMOUNTS = (0, 1, 1_000, 1_700, 2**53 - 1, 2**53, 2**53 + 1, 2**64, 2**128 - 1)
TOKEN, TOKEN_NAME, TOKEN_VERSION = "0xDe70000000000000000000000000000000000001", "Dev Dollar", "1"
ZERO = "0x" + "00" * 20
DEPOSIT_SALT, VALID_UNTIL_S, TIMEOUT_S = "0x" + "5a" * 32, 4_102_444_800, 60
URL = "http://localhost/v2/models/chdr/infer"
KEYS = {"payer": 1, "receiver": 2, "receiverAuthorizer": 3, "voucherKey": 5}
ACCOUNTS = {name: Account.from_key(number.to_bytes(32, "big")) for name, number in KEYS.items()}
SIGNERS = {name: EthAccountSigner(account) for name, account in ACCOUNTS.items()}
AUTHORIZER = LocalAuthorizerSigner(ACCOUNTS["receiverAuthorizer"])
Json = dict[str, Any]


def word(number: int) -> str:
    return f"0x{number:064x}"


CONFIGS = {
    "salt 0": (word(0), ACCOUNTS["payer"].address, 900),
    "salt 7": (word(7), ACCOUNTS["payer"].address, 900),
    "largest salt, longest delay": (word(2**256 - 1), ACCOUNTS["payer"].address, 2_592_000),
    "delegated authorizer": (word(0), ACCOUNTS["voucherKey"].address, 86_400),
    "zero authorizer: the payer itself": (word(0), ZERO, 900),
}


def digest(domain: Json, types: Json, message: Json) -> str:
    """The EIP-712 digest: what a signature covers."""
    signable = encode_typed_data(domain_data=domain, message_types=types, message_data=message)
    return "0x" + keccak(b"\x19" + signable.version + signable.header + signable.body).hex()


def config(name: str) -> ChannelConfig:
    salt, authorizer, delay = CONFIGS[name]
    receiver, receiver_authorizer = ACCOUNTS["receiver"].address, ACCOUNTS["receiverAuthorizer"].address
    return ChannelConfig(ACCOUNTS["payer"].address, authorizer, receiver, receiver_authorizer, TOKEN, delay, salt)


def requirement(chain: int, delay: int, amount: int) -> PaymentRequirements:
    extra = {"name": TOKEN_NAME, "version": TOKEN_VERSION, "receiverAuthorizer": AUTHORIZER.address}
    extra |= {"withdrawDelay": delay, "minDeposit": "10000"}
    return PaymentRequirements(
        scheme="batch-settlement",
        network=f"eip155:{chain}",
        asset=TOKEN,
        amount=str(amount),
        pay_to=ACCOUNTS["receiver"].address,
        max_timeout_seconds=TIMEOUT_S,
        extra=extra,
    )


def channel(chain: int, name: str) -> Json:
    """A channel's id and its vouchers."""
    domain, channel_config = get_batch_settlement_eip712_domain(chain), config(name)
    identity = compute_channel_id(channel_config, chain)
    signer = SIGNERS["voucherKey" if name == "delegated authorizer" else "payer"]
    vouchers = []
    for amount in AMOUNTS:
        message = {"channelId": coerce_bytes32(identity), "maxClaimableAmount": amount}
        signed = sign_voucher(signer, identity, amount, f"eip155:{chain}")
        row = {"maxClaimableAmount": str(amount), "digest": digest(domain, VOUCHER_TYPES, message)}
        vouchers.append(row | {"signature": signed.signature})
    return {
        "name": name,
        "chainId": chain,
        "channelConfig": channel_config.to_dict(),
        "channelId": identity,
        "vouchers": vouchers,
    }


def claim(chain: int, rows: list[tuple[str, int, int]]) -> Json:
    """A claim batch over (config, max claimable, total) rows, signed by the receiver's authorizer."""
    claims = [VoucherClaim(config(name), str(max_claimable), "0x", str(total)) for name, max_claimable, total in rows]
    entries = [
        {
            "channelId": coerce_bytes32(compute_channel_id(config(name), chain)),
            "maxClaimableAmount": max_claimable,
            "totalClaimed": total,
        }
        for name, max_claimable, total in rows
    ]
    return {
        "chainId": chain,
        "rows": [
            ["0x" + entry["channelId"].hex(), str(entry["maxClaimableAmount"]), str(entry["totalClaimed"])]
            for entry in entries
        ],
        "digest": digest(get_batch_settlement_eip712_domain(chain), CLAIM_BATCH_TYPES, {"claims": entries}),
        "signature": sign_claim_batch(AUTHORIZER, claims, f"eip155:{chain}"),
    }


def refund(chain: int, name: str, amount: int, nonce: int) -> Json:
    """A refund, signed by the receiver's authorizer."""
    identity = compute_channel_id(config(name), chain)
    message = {"channelId": coerce_bytes32(identity), "nonce": nonce, "amount": amount}
    return {
        "chainId": chain,
        "channelId": identity,
        "nonce": str(nonce),
        "amount": str(amount),
        "digest": digest(get_batch_settlement_eip712_domain(chain), REFUND_TYPES, message),
        "signature": sign_refund(AUTHORIZER, identity, amount, nonce, f"eip155:{chain}"),
    }


def fixed(function: Callable[[], Any]) -> Any:
    """Runs the package's own code at a fixed time and with a fixed salt instead of a random one."""
    with (
        patch.object(eip3009, "create_nonce", lambda: DEPOSIT_SALT),
        patch.object(eip3009.time, "time", lambda: VALID_UNTIL_S - TIMEOUT_S),
    ):
        return function()


def deposit(chain: int, name: str, amount: int, max_claimable: int) -> Json:
    """A deposit with its voucher, as the package's client makes it, and its PAYMENT-SIGNATURE header."""
    channel_config = config(name)
    accepted = requirement(chain, channel_config.withdraw_delay, 1_000)
    voucher_signer = SIGNERS["voucherKey"] if name == "delegated authorizer" else None
    payload = fixed(
        lambda: eip3009.create_batch_settlement_eip3009_deposit_payload(
            SIGNERS["payer"], accepted, channel_config, amount, max_claimable, voucher_signer
        )
    ).to_dict()
    identity = compute_channel_id(channel_config, chain)
    nonce = build_erc3009_deposit_nonce(identity, DEPOSIT_SALT)
    message = {"from": channel_config.payer, "to": ERC3009_DEPOSIT_COLLECTOR_ADDRESS, "value": amount}
    message |= {"validAfter": 0, "validBefore": VALID_UNTIL_S, "nonce": coerce_bytes32(nonce)}
    token = {"name": TOKEN_NAME, "version": TOKEN_VERSION, "chainId": chain, "verifyingContract": TOKEN}
    return {
        "chainId": chain,
        "channelId": identity,
        "nonce": nonce,
        "digest": digest(token, RECEIVE_AUTHORIZATION_TYPES, message),
        "payload": payload,
        "header": header(payload, accepted),
    }


def header(payload: Json, accepted: PaymentRequirements) -> str:
    return encode_payment_signature_header(
        PaymentPayload(x402_version=2, payload=payload, accepted=accepted, resource=ResourceInfo(url=URL))
    )


def wire() -> Json:
    """The headers of a channel's life: offer, voucher, corrective offer, refunds, and answers."""
    channel_config, accepted = config("salt 0"), requirement(31337, 900, 1_000)
    identity = compute_channel_id(channel_config, 31337)
    state = {"channelId": identity, "balance": "10000", "totalClaimed": "0", "withdrawRequestedAt": 0}
    state |= {"refundNonce": "0", "chargedCumulativeAmount": "700"}

    def signed(max_claimable: int) -> Any:
        return sign_voucher(SIGNERS["payer"], identity, max_claimable, "eip155:31337")

    def offer(error: str, more: Json) -> str:
        accepts = [accepted.model_copy(update={"extra": accepted.extra | more})]
        resource = ResourceInfo(url=URL)
        return encode_payment_required_header(
            PaymentRequired(x402_version=2, error=error, resource=resource, accepts=accepts)
        )

    def voucher(kind: Any, max_claimable: int, **more: str) -> str:
        payload = kind()
        payload.channel_config, payload.voucher = channel_config, signed(max_claimable)
        for name, value in more.items():
            setattr(payload, name, value)
        return header(payload.to_dict(), accepted)

    def answer(extra: Json, transaction: str, amount: str) -> str:
        network, payer = "eip155:31337", channel_config.payer
        return encode_payment_response_header(
            SettleResponse(
                success=True, payer=payer, transaction=transaction, network=network, amount=amount, extra=extra
            )
        )

    mismatch = "invalid_batch_settlement_evm_cumulative_amount_mismatch"
    shown = {"signedMaxClaimable": "1000", "signature": signed(1_000).signature}
    return {
        "requirement": accepted.model_dump(by_alias=True, exclude_none=True),
        "url": URL,
        "offer": offer("payment_required", {}),
        "corrective": offer(mismatch, {"channelState": state, "voucherState": shown}),
        "voucher": voucher(VoucherPayload, 1_700),
        "refund": voucher(RefundPayload, 700),
        "refundPartial": voucher(RefundPayload, 700, amount="3000"),
        "answer": answer({"chargedAmount": "700", "channelState": state}, "0x" + "ab" * 32, "10000"),
        "answerRefund": answer({"channelState": state | {"refundNonce": "1"}}, "0x" + "cd" * 32, "9300"),
    }


def bad_signatures() -> Json:
    """Fifteen encodings of one good voucher signature that the settlement contract refuses."""
    identity = compute_channel_id(config("salt 0"), 31337)
    good = bytes.fromhex(sign_voucher(SIGNERS["payer"], identity, 1_000, "eip155:31337").signature[2:])
    r, s, v = good[:32], int.from_bytes(good[32:64], "big"), good[64]
    zero, order = bytes(32), ORDER.to_bytes(32, "big")
    compact = r + (s | (v - 27) << 255).to_bytes(32, "big")
    cases = {
        "high s": r + (ORDER - s).to_bytes(32, "big") + bytes([55 - v]),
        **{f"v {name}": good[:64] + bytes([v + step]) for name, step in (("- 27", -27), ("+ 2", 2), ("+ 8", 8))},
        "v + 10": good[:64] + bytes([v + 10]),
        "v 255": good[:64] + b"\xff",
        "v of the other key": good[:64] + bytes([55 - v]),
        "r 0": zero + good[32:],
        "s 0": r + zero + good[64:],
        "r n": order + good[32:],
        "s n": r + order + good[64:],
        "64 bytes": good[:64],
        "66 bytes": good + b"\0",
        "EIP-2098 compact": compact,
        "nothing": b"",
    }
    rows = [{"case": name, "signature": "0x" + raw.hex()} for name, raw in cases.items()]
    return {"chainId": 31337, "config": config("salt 0").to_dict(), "maxClaimableAmount": "1000", "cases": rows}


def vectors() -> Json:
    """Everything that the file holds."""
    return {
        "about": "x402 v2 batch-settlement on EVM, computed by the stock package",
        "packages": {name: version(name) for name in ("x402",)},
        "keys": {name: {"number": KEYS[name], "address": ACCOUNTS[name].address} for name in KEYS},
        "token": {"address": TOKEN, "name": TOKEN_NAME, "version": TOKEN_VERSION},
        "channels": [channel(chain, name) for chain in CHAINS for name in CONFIGS],
        "claims": [
            claim(31337, [("salt 0", 1_700, 1_400)]),
            claim(31337, [("salt 0", 2_400, 2_100), ("salt 7", 4_200, 1)]),
            claim(1, [("delegated authorizer", 2**128 - 1, 2**53 + 1)]),
        ],
        "refunds": [
            refund(31337, "salt 0", 7_900, 0),
            refund(31337, "salt 7", 1, 1),
            refund(1, "salt 0", 2**128 - 1, 2**256 - 1),
        ],
        "deposits": [
            deposit(31337, "salt 0", 10_000, 1_000),
            deposit(8453, "delegated authorizer", 2**53 - 1, 1_000),
            deposit(31337, "zero authorizer: the payer itself", 2**128 - 1, 2**128 - 1),
        ],
        "wire": wire(),
        "badSignatures": bad_signatures(),
    }


def text() -> str:
    """The file's text."""
    return json.dumps(vectors(), indent=1) + "\n"


if __name__ == "__main__":
    FILE.write_text(text())
    print(f"wrote {FILE} ({FILE.stat().st_size} bytes)")
