"""The JSON-RPC views, read with web3 and the stock package's ABI; everything else is a JSON-RPC error."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from web3 import Web3
from web3.providers import BaseProvider
from x402.mechanisms.evm.batch_settlement.abi import BATCH_SETTLEMENT_ABI

from channels.ledger.ledger import LedgerChannel
from channels.protocol.digests import SETTLEMENT, channel_id, refund_digest, voucher_digest
from channels.protocol.x402 import ChannelConfig
from serving.control.json_rpc import LedgerRpc

CHAIN = 2**48 + 7
ADDRESSES = ["0x7E5F4552091A69125d5DfCb7b8C2659029395Bdf", "0x2B5AD5c4795c026514f8317c7a215E218DcCD6cF"]
CONFIG = ChannelConfig(ADDRESSES[0], ADDRESSES[0], ADDRESSES[1], ADDRESSES[1], ADDRESSES[1], 900, "0x" + "07" * 32)
NAME = channel_id(CHAIN, CONFIG)
STATE = LedgerChannel(NAME, CONFIG, 2**53 - 1, 700, 5, 1_700_000_000, 3, 9)


async def look(channel: str) -> LedgerChannel | None:
    return STATE if channel == NAME else None


RPC = LedgerRpc(CHAIN, look)


class Direct(BaseProvider):
    """web3 without a network."""

    def make_request(self, method: Any, params: Any) -> Any:
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        return orjson.loads(asyncio.run(RPC.answer(orjson.dumps(request, default=str))))


@pytest.fixture(scope="module")
def contract() -> Any:
    return Web3(Direct()).eth.contract(address=SETTLEMENT, abi=BATCH_SETTLEMENT_ABI)


def test_the_views_say_what_the_ledger_has(contract: Any) -> None:
    named = bytes.fromhex(NAME[2:])
    assert contract.functions.channels(named).call() == [2**53 - 1, 700]
    assert contract.functions.pendingWithdrawals(named).call() == [5, 1_700_000_000]
    assert contract.functions.refundNonce(named).call() == 3
    assert contract.functions.channels(bytes(32)).call() == [0, 0], "an unknown channel is empty, as on a chain"
    assert Web3(Direct()).eth.chain_id == CHAIN


def test_the_digests_are_those_that_are_signed() -> None:
    def call(data: bytes) -> str:
        request = {"jsonrpc": "2.0", "id": 1, "method": "eth_call", "params": [{"to": SETTLEMENT, "data": data.hex()}]}
        return str(orjson.loads(asyncio.run(RPC.answer(orjson.dumps(request))))["result"])

    name = bytes.fromhex(NAME[2:])
    word = (1_700).to_bytes(32, "big")
    assert call(bytes.fromhex("862bb199") + name + word) == "0x" + voucher_digest(CHAIN, NAME, 1_700).hex()
    assert call(bytes.fromhex("e25cf189") + name + word + word) == "0x" + refund_digest(CHAIN, NAME, 1_700, 1_700).hex()
    parts = [bytes.fromhex(a[2:]).rjust(32, b"\0") for a in (CONFIG.payer, CONFIG.payer_authorizer, CONFIG.receiver)]
    parts += [bytes.fromhex(a[2:]).rjust(32, b"\0") for a in (CONFIG.receiver_authorizer, CONFIG.token)]
    whole = bytes.fromhex("5e5e0b87") + b"".join(parts) + (900).to_bytes(32, "big") + bytes.fromhex(CONFIG.salt[2:])
    assert call(whole) == NAME


@pytest.mark.parametrize(
    ("body", "number"),
    [
        (b"", -32700),
        (b"[" * 5_000, -32700),
        (b"[]", -32600),
        (b'{"method":"eth_sendRawTransaction","params":["0x00"]}', -32601),
        (b'{"method":"eth_call","params":{}}', -32600),
        (b'{"method":"eth_call","params":[]}', -32602),
        (b'{"method":"eth_call","params":[{"to":"0x00","data":"0x7a7ebd7b"}]}', -32602),
        (b'{"method":"eth_call","params":[{"to":"%s","data":"0x7a7ebd7b00"}]}' % SETTLEMENT.encode(), -32602),
        (b'{"method":"eth_call","params":[{"to":"%s","data":"0xdeadbeef"}]}' % SETTLEMENT.encode(), -32602),
        (b'{"method":"eth_call","params":[{"to":"%s","data":"zz"}]}' % SETTLEMENT.encode(), -32602),
        (b'{"method":"eth_call","params":[{"to":"%s","data":7}]}' % SETTLEMENT.encode(), -32602),
    ],
)
def test_a_mistake_is_a_json_rpc_error(body: bytes, number: int) -> None:
    assert orjson.loads(asyncio.run(RPC.answer(body)))["error"]["code"] == number


def test_a_batch_is_answered_in_order_and_bounded() -> None:
    request = {"jsonrpc": "2.0", "method": "eth_chainId", "params": []}
    both = orjson.loads(asyncio.run(RPC.answer(orjson.dumps([request | {"id": 1}, request | {"id": "b"}]))))
    assert [row["id"] for row in both] == [1, "b"] and {row["result"] for row in both} == {hex(CHAIN)}
    assert orjson.loads(asyncio.run(RPC.answer(orjson.dumps([request] * 21))))["error"]["code"] == -32600


@given(st.binary(max_size=200), st.sampled_from(["7a7ebd7b", "5e5e0b87", "862bb199", "e25cf189", "b7f06ebe"]))
def test_no_call_data_breaks_it(data: bytes, name: str) -> None:
    call = {"to": SETTLEMENT, "data": "0x" + name + data.hex()}
    request = {"jsonrpc": "2.0", "id": 1, "method": "eth_call", "params": [call]}
    answer = orjson.loads(asyncio.run(RPC.answer(orjson.dumps(request))))
    assert ("result" in answer) != ("error" in answer)


def test_a_request_with_too_many_parts_is_refused_before_it_is_parsed() -> None:
    answer = orjson.loads(asyncio.run(RPC.answer(b"[" + b"[]," * 20_000 + b"0]")))
    assert answer["error"]["code"] == -32700 and "arrays" in answer["error"]["message"]


def test_null_is_as_absent() -> None:
    answer = orjson.loads(asyncio.run(RPC.answer(b'{"id":1,"method":"eth_chainId","params":null}')))
    assert answer["result"] == hex(CHAIN)
