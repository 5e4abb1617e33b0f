"""Answers read-only Ethereum JSON-RPC over the ledger: a stock x402 signer recovers a lost state with it.

It serves `eth_chainId`, `net_version` and `eth_call` of the channel contract's views, for a SQL ledger too. It sends no
transaction. Amounts are atomic units.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import orjson
from eth_abi.abi import decode, encode
from eth_abi.exceptions import DecodingError

from channels.ledger import LedgerChannel
from channels.protocol import SETTLEMENT, ChannelConfig, channel_id, checksummed, keccak, refund_digest, voucher_digest
from dapps.structure import SMALL_JSON, StructureRefused, check_json

MAX_BODY_BYTES = 64 << 10
MAX_BATCH = 20
CONFIG = "(address,address,address,address,address,uint40,bytes32)"
STATES: dict[str, tuple[str, ...]] = {
    "channels": ("balance", "total_claimed"),
    "pendingWithdrawals": ("withdraw_amount", "withdraw_requested_at_s"),
    "refundNonce": ("refund_nonce",),
}
"""Views of a channel by its id, and the ledger's fields that each returns."""


def selector(signature: str) -> bytes:
    """The first four bytes of the hash of a function's signature."""
    return keccak(signature.encode())[:4]


BY_ID = {selector(f"{name}(bytes32)"): fields for name, fields in STATES.items()}
CHANNEL_ID = selector(f"getChannelId({CONFIG})")
VOUCHER_DIGEST = selector("getVoucherDigest(bytes32,uint128)")
REFUND_DIGEST = selector("getRefundDigest(bytes32,uint256,uint128)")
Look = Callable[[str], Awaitable[LedgerChannel | None]]


class RpcError(Exception):
    """A JSON-RPC error: its number and text."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number, self.message = number, message


class LedgerRpc:
    """Answers JSON-RPC requests.

    Args:
        chain_id: the ledger's chain.
        look: returns a channel of the ledger by its id.
    """

    def __init__(self, chain_id: int, look: Look) -> None:
        self._chain_id, self._look = chain_id, look

    async def answer(self, body: bytes) -> bytes:
        """The answer to one request or a batch, as JSON; every mistake is a JSON-RPC error, never an exception."""
        try:
            check_json(body, SMALL_JSON)
            call = orjson.loads(body)
        except StructureRefused as error:
            return orjson.dumps(_error(None, RpcError(-32700, f"the body is not read: {error.cause}")))
        except (ValueError, RecursionError):
            return orjson.dumps(_error(None, RpcError(-32700, "the body is not JSON")))
        if isinstance(call, list) and 0 < len(call) <= MAX_BATCH:
            return orjson.dumps([await self._answer(request) for request in call])
        return orjson.dumps(await self._answer(call))

    async def _answer(self, request: object) -> dict[str, Any]:
        raw_id = request.get("id") if isinstance(request, dict) else None
        number = raw_id if isinstance(raw_id, (int, str)) else None
        try:
            params = request.get("params") if isinstance(request, dict) else None
            params = [] if params is None else params
            if not isinstance(request, dict) or not isinstance(params, list):
                raise RpcError(-32600, f"a request is an object with a list of params; a batch has 1 to {MAX_BATCH}")
            result = await self._result(request.get("method"), params)
        except RpcError as error:
            return _error(number, error)
        return {"jsonrpc": "2.0", "id": number, "result": result}

    async def _result(self, method: object, params: list[Any]) -> str:
        if method == "eth_chainId":
            return hex(self._chain_id)
        if method == "net_version":
            return str(self._chain_id)
        if method != "eth_call":
            raise RpcError(-32601, "this ledger answers eth_chainId, net_version and eth_call only")
        call = params[0] if params and isinstance(params[0], dict) else {}
        to, data = call.get("to"), call.get("data")
        data = call.get("input") if data is None else data
        if not isinstance(to, str) or checksummed(to) != SETTLEMENT:
            raise RpcError(-32602, f"`to` is the channel contract, {SETTLEMENT}")
        try:
            raw = bytes.fromhex(data.removeprefix("0x")) if isinstance(data, str) else b""
            return "0x" + (await self._view(raw[:4], raw[4:])).hex()
        except (ValueError, OverflowError, DecodingError) as error:
            raise RpcError(-32602, "`data` is not a call of one of the channel views") from error

    async def _view(self, name: bytes, values: bytes) -> bytes:
        if name in BY_ID:
            (channel,) = decode(["bytes32"], values)
            state = await self._look("0x" + channel.hex())
            amounts = [getattr(state, field) if state else 0 for field in BY_ID[name]]
            return b"".join(amount.to_bytes(32, "big") for amount in amounts)
        if name == CHANNEL_ID:
            ((*addresses, delay, salt),) = decode([CONFIG], values)
            return _hash(channel_id(self._chain_id, _config(addresses, delay, salt)))
        if name == VOUCHER_DIGEST:
            channel, maximum = decode(["bytes32", "uint128"], values)
            return voucher_digest(self._chain_id, "0x" + channel.hex(), maximum)
        if name == REFUND_DIGEST:
            channel, nonce, amount = decode(["bytes32", "uint256", "uint128"], values)
            return refund_digest(self._chain_id, "0x" + channel.hex(), nonce, amount)
        raise ValueError("no such view")


def _config(addresses: Sequence[str], delay: int, salt: bytes) -> ChannelConfig:
    payer, payer_authorizer, receiver, receiver_authorizer, token = (str(checksummed(address)) for address in addresses)
    return ChannelConfig(payer, payer_authorizer, receiver, receiver_authorizer, token, delay, "0x" + salt.hex())


def _hash(text: str) -> bytes:
    return encode(["bytes32"], [bytes.fromhex(text[2:])])


def _error(number: object, error: RpcError) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": number, "error": {"code": error.number, "message": error.message}}
