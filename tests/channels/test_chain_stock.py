"""The unmodified x402 client, server and facilitator on our contract: they find no difference.

Nothing of ours but the bytecode takes part: what they deposit, claim, settle and refund is read from the chain.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
from eth_account import Account
from fastapi import FastAPI, Request, Response
from vyper.compiler import compile_code
from x402 import x402Client, x402Facilitator, x402ResourceServer
from x402.http.clients import x402_httpx_transport
from x402.http.middleware.fastapi import payment_middleware
from x402.http.types import PaymentOption, RouteConfig
from x402.mechanisms.evm.batch_settlement.authorizer_signer import LocalAuthorizerSigner
from x402.mechanisms.evm.batch_settlement.client import BatchSettlementEvmScheme as ClientScheme
from x402.mechanisms.evm.batch_settlement.client import BatchSettlementEvmSchemeOptions
from x402.mechanisms.evm.batch_settlement.facilitator import BatchSettlementEvmFacilitator
from x402.mechanisms.evm.batch_settlement.server import (
    BatchSettlementEvmScheme,
    BatchSettlementEvmSchemeServerConfig,
)
from x402.mechanisms.evm.batch_settlement.server.channel_manager import (
    BatchSettlementChannelManager,
    ChannelManagerConfig,
)
from x402.mechanisms.evm.signers import EthAccountSigner, FacilitatorWeb3Signer
from x402.schemas import AssetAmount

from tests.channels.conftest import MESH, PAYER, RECEIVER

MULTICALL = "0xcA11bde05977b3631167028862bE2a173976CA11"
PRICE = 1_000


def test_the_stock_client_and_facilitator_live_a_channels_whole_life_on_our_escrow(on_anvil: Any) -> None:
    node, facts = on_anvil.host.anvil, on_anvil.facts
    source = Path(__file__).with_name("Multicall.vy").read_text()
    node.ask("anvil_setCode", MULTICALL, compile_code(source, output_formats=["bytecode_runtime"])["bytecode_runtime"])
    on_anvil.fund(PAYER.address, 50_000)
    network = f"eip155:{facts.chain_id}"

    facilitator = x402Facilitator().register(
        [network],
        BatchSettlementEvmFacilitator(FacilitatorWeb3Signer("0x" + "09" * 32, node.url, gas_limit=16_000_000)),
    )
    authorizer = LocalAuthorizerSigner(Account.from_key(MESH.secret()))
    settings = BatchSettlementEvmSchemeServerConfig(receiver_authorizer_signer=authorizer, withdraw_delay=900)
    seller = BatchSettlementEvmScheme(RECEIVER, settings)
    server = x402ResourceServer(facilitator)
    server.register(network, seller)
    token = {"name": facts.token_name, "version": facts.token_version}
    price = AssetAmount(amount=str(PRICE), asset=facts.token, extra=token)
    option = PaymentOption("batch-settlement", RECEIVER, price, network, 120)
    app = FastAPI()
    app.middleware("http")(payment_middleware({"GET /*": RouteConfig(accepts=option)}, server))

    @app.get("/work")
    async def work(request: Request) -> Response:
        return Response(b"done")

    buyer = ClientScheme(
        EthAccountSigner(Account.from_key(PAYER.secret())), BatchSettlementEvmSchemeOptions(salt="0x" + "00" * 32)
    )
    client = x402Client()
    client.register("eip155:*", buyer)
    client.set_spend_controls(False)

    async def life() -> None:
        transport = x402_httpx_transport(client, httpx.ASGITransport(app))
        async with httpx.AsyncClient(transport=transport, base_url="http://seller") as http:
            for _ in range(8):  # five calls a deposit: the sixth tops up
                answer = await http.get("/work", timeout=60)
                assert (answer.status_code, answer.content) == (200, b"done"), answer.text
        # Its own maker looks the token up in a list of public chains.
        manager = BatchSettlementChannelManager(
            ChannelManagerConfig(seller, facilitator, RECEIVER, facts.token, network)
        )
        await manager.claim_and_settle()
        await manager.refund()

    asyncio.run(life())
    paid = 8 * PRICE
    assert on_anvil.ledger.wallet(RECEIVER) == paid
    assert on_anvil.ledger.wallet(PAYER.address) == 50_000 - paid
    assert on_anvil.ledger.wallet(on_anvil.chain.escrow.address) == 0
