"""The payer's side: a wallet, and an `httpx` auth that opens a channel, signs a voucher a call and keeps the sums.

It trusts the mesh with nothing it can check: a charge above the quote, a cumulative that jumps, or a corrective 402
that does not carry its own signature ends the channel instead of being paid. Amounts are atomic units.
"""

from __future__ import annotations

import asyncio
import secrets
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import httpx
from eth_utils import to_checksum_address

from channels.errors import ChannelError, MalformedPayment
from channels.quote import STATE_FIELDS
from channels.receipt import SignedReceipt
from channels.voucher import Domain, Signer, channel_id, deposit_digest, deposit_nonce, read_digest, voucher_digest
from channels.x402 import SCHEME, ChannelConfig, Deposit, Json, Payment, Voucher, decode_header, parse_amount

DEPOSIT_VALID_S = 600
CERTAINLY_FREE = frozenset({"internal", "not_ready", "deadline", "exposure", "store_unavailable", "hold_lost"})
"""Codes of 5xx answers that say for certain that nothing was charged."""


class BudgetExceeded(ChannelError):
    """Signing this would pass a limit that the payer set; nothing was signed."""


class DishonestServer(ChannelError):
    """The mesh asked for more than it quoted, or showed a state that this payer never signed; the channel is closed."""


@dataclass(slots=True)
class Budget:
    """What a wallet may sign for, in atomic units; None means no limit.

    Attributes:
        per_call: largest quote that is accepted.
        per_channel: most that one channel is ever funded with.
        deposit: what a channel is opened and topped up with; the mesh's suggestion if None.
    """

    per_call: int | None = None
    per_channel: int | None = None
    deposit: int | None = None


class Wallet:
    """A payer's key and budget; its repr shows the address alone."""

    def __init__(self, signer: Signer, budget: Budget | None = None) -> None:
        self.signer = signer
        self.budget = budget or Budget()

    @classmethod
    def from_file(cls, path: str | Path, budget: Budget | None = None) -> Wallet:
        """The wallet whose key is in a file of 64 hex digits; made there if there is none."""
        return cls(Signer.from_file(Path(path)), budget)

    @property
    def address(self) -> str:
        """The payer's address: what `leben wallet fund` credits."""
        return self.signer.address

    def __repr__(self) -> str:
        return f"Wallet({self.address})"

    def read_headers(self, url: str, chain_id: int) -> dict[str, str]:
        """Headers that prove who reads `url`: EIP-712 `Read(path, issued)`, valid 300 s."""
        issued_s = int(time.time())
        signature = self.signer.sign(read_digest(chain_id, urlsplit(url).path, issued_s))
        return {"leben-read-issued": str(issued_s), "leben-read-signature": "0x" + signature.hex()}


@dataclass(slots=True)
class ClientChannel:
    """What the payer knows of its channel, in atomic units.

    `outstanding` holds the quote of every call whose charge is not known yet, by its Idempotency-Key; `pending` a
    deposit that is not confirmed: until it is, the same authorisation is sent again and never a second one.
    """

    config: ChannelConfig
    id: str
    chain_id: int
    deposited: int = 0
    charged: int = 0
    outstanding: dict[str, int] = field(default_factory=dict, repr=False)
    pending: Deposit | None = None
    opening: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)

    @property
    def ceiling(self) -> int:
        """What covers every call signed so far."""
        return self.charged + sum(self.outstanding.values())

    def short(self, price: int) -> bool:
        """True if a call of this price needs a deposit first."""
        return self.ceiling + price > self.deposited


class ChannelAuth(httpx.Auth):
    """Pays for every request of an `httpx.AsyncClient` that a 402 asks money for.

    Many calls may be in flight: each carries an Idempotency-Key and a ceiling that covers all before it. The quote of
    a route is remembered, so that a call takes one round trip. One channel is opened for each payee that is met.

    Args:
        wallet: who pays.
        salt: 32 bytes in hex that tell this client's channels from others of the same wallet; random by default, so
            that a client that lost its memory never meets vouchers it signed before.
    """

    requires_request_body = True

    def __init__(self, wallet: Wallet, salt: str = "") -> None:
        self.wallet = wallet
        self.salt = salt or "0x" + secrets.token_hex(32)
        self.channels: dict[str, ClientChannel] = {}
        self._quotes: dict[str, Json] = {}

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Sends the request, paid at once if its price is known; tries again once after a corrective 402."""
        route = f"{request.method} {request.url.copy_with(query=None)}"
        if route not in self._quotes:
            response = yield request
            if response.status_code != 402:
                return
            self._quotes[route] = _quote(response)
        key = request.headers.setdefault("Idempotency-Key", uuid.uuid4().hex)
        for first in (True, False):
            quote = self._quotes[route]
            channel = self._channel(quote)
            price = self._price(quote)
            async with _turn(channel, price):
                channel.outstanding[key] = price
                deposit = self._deposit(channel, quote) if channel.ceiling > channel.deposited else None
                request.headers["PAYMENT-SIGNATURE"] = self._pay(channel, quote, deposit)
                response = yield request
                await response.aread()
                _account(channel, key, deposit, response)
            if not first or response.status_code != 402:
                return
            corrected = _correct(channel, response, self.wallet.signer)
            self._quotes[route] = _quote(response)
            if not corrected and self._quotes[route] == quote:
                return

    async def refund(self, client: httpx.AsyncClient, url: str, amount: int | None = None) -> int:
        """Gets unspent money back into the wallet, all of it if no amount is named.

        Args:
            client: any client; its own auth is not used.
            url: a paid route of the mesh.
            amount: atomic units.

        Returns:
            What came back, in atomic units.

        Raises:
            ChannelError: the mesh refused; its code says why.
        """
        quote = _quote(await client.get(url, auth=None))
        channel = self._channel(quote)
        for _ in range(2):
            signature = self.wallet.signer.sign(voucher_digest(channel.chain_id, channel.id, channel.charged))
            voucher = Voucher(channel.id, channel.charged, signature)
            header = Payment("refund", quote, channel.config, voucher, None, amount).to_header()
            response = await client.get(url, headers={"PAYMENT-SIGNATURE": header}, auth=None)
            if response.status_code != 402 or not _correct(channel, response, self.wallet.signer):
                break
        if response.status_code != 200:
            raise ChannelError(_code(response) or "refused", "the mesh refused the refund")
        said = decode_header(response.headers["PAYMENT-RESPONSE"])
        returned = parse_amount(said.get("amount"), "amount")
        channel.deposited -= returned
        if channel.deposited <= channel.charged:
            # An old ceiling of a drained channel cannot be told from a new one: its salt is never used again.
            del self.channels[channel.id]
            self.salt = "0x" + secrets.token_hex(32)
        return returned

    def _channel(self, quote: Json) -> ClientChannel:
        extra = quote["extra"]
        address = self.wallet.address
        receivers = (to_checksum_address(quote["payTo"]), to_checksum_address(extra["receiverAuthorizer"]))
        token = to_checksum_address(quote["asset"])
        config = ChannelConfig(address, address, *receivers, token, extra["withdrawDelay"], self.salt)
        chain_id = int(quote["network"].removeprefix("eip155:"))
        name = channel_id(chain_id, config)
        return self.channels.setdefault(name, ClientChannel(config, name, chain_id))

    def _price(self, quote: Json) -> int:
        price = parse_amount(quote["amount"], "amount")
        limit = self.wallet.budget.per_call
        if limit is not None and price > limit:
            raise BudgetExceeded("budget_per_call", f"the quote of {price} is above the limit of {limit} a call")
        return price

    def _pay(self, channel: ClientChannel, quote: Json, deposit: Deposit | None) -> str:
        signature = self.wallet.signer.sign(voucher_digest(channel.chain_id, channel.id, channel.ceiling))
        voucher = Voucher(channel.id, channel.ceiling, signature)
        kind: Literal["deposit", "voucher"] = "deposit" if deposit else "voucher"
        return Payment(kind, quote, channel.config, voucher, deposit).to_header()

    def _deposit(self, channel: ClientChannel, quote: Json) -> Deposit:
        if channel.pending and channel.pending.valid_before > time.time():
            return channel.pending
        extra = quote["extra"]
        suggested = parse_amount(extra.get("minDeposit", quote["amount"]), "minDeposit")
        amount = max(self.wallet.budget.deposit or suggested, channel.ceiling - channel.deposited)
        limit = self.wallet.budget.per_channel
        if limit is not None and channel.deposited + amount > limit:
            raise BudgetExceeded("budget_per_channel", f"a deposit of {amount} would pass the limit of {limit}")
        token = Domain.of(extra["name"], extra["version"], channel.chain_id, channel.config.token)
        salt, until_s = "0x" + secrets.token_hex(32), int(time.time()) + DEPOSIT_VALID_S
        nonce = deposit_nonce(channel.id, salt)
        digest = deposit_digest(token, self.wallet.address, amount, 0, until_s, nonce)
        channel.pending = Deposit(amount, 0, until_s, salt, self.wallet.signer.sign(digest))
        return channel.pending


@asynccontextmanager
async def _turn(channel: ClientChannel, price: int) -> AsyncIterator[None]:
    """One deposit at a time: calls that would need one wait for the one under way, then look again."""
    if channel.short(price):
        async with channel.opening:
            if channel.short(price):
                yield
                return
    yield


def _account(channel: ClientChannel, key: str, deposit: Deposit | None, response: httpx.Response) -> None:
    """Books what an answer says was charged; an outcome that is not known stays covered.

    Raises:
        DishonestServer: more was charged than quoted.
    """
    header = response.headers.get("PAYMENT-RESPONSE")
    if header is None:
        unknown = response.status_code >= 500 or response.status_code == 409
        if not unknown or _code(response) in CERTAINLY_FREE:
            channel.outstanding.pop(key, None)
        return
    said = decode_header(header)
    charged = parse_amount(said.get("extra", {}).get("chargedAmount"), "chargedAmount")
    if charged > channel.outstanding[key]:
        raise DishonestServer("charged_above_quote", "the mesh charged more than it quoted: stop using this channel")
    balance = parse_amount(said["extra"].get("channelState", {}).get("balance", "0"), "balance")
    channel.deposited = max(channel.deposited, balance)
    # A deposit that was not needed after all is not settled: it stays pending and is sent again when it is needed.
    if deposit is not None and said.get("amount"):
        channel.pending = None
    channel.charged += charged
    del channel.outstanding[key]


def _correct(channel: ClientChannel, response: httpx.Response, signer: Signer) -> bool:
    """Takes over the state in a corrective 402, if it proves itself by our own signature.

    Raises:
        DishonestServer: the state is not one that we have signed for.
    """
    extra = _requirement(response)["extra"]
    state, proof = extra.get("channelState"), extra.get("voucherState")
    if not isinstance(state, dict) or not isinstance(proof, dict):
        return False
    claimed = parse_amount(proof.get("signedMaxClaimable"), "signedMaxClaimable")
    ours = signer.sign(voucher_digest(channel.chain_id, channel.id, claimed))
    charged = parse_amount(state.get("chargedCumulativeAmount"), "chargedCumulativeAmount")
    if state.get("channelId") != channel.id or proof.get("signature") != "0x" + ours.hex() or charged > claimed:
        raise DishonestServer("forged_state", "the mesh shows a channel state that this wallet never signed for")
    channel.charged = max(channel.charged, charged - sum(channel.outstanding.values()))
    return True


def _quote(response: httpx.Response) -> Json:
    """The quote of a 402: its requirement without the state of a channel."""
    requirement = _requirement(response)
    extra = {name: value for name, value in requirement["extra"].items() if name not in STATE_FIELDS}
    return requirement | {"extra": extra}


def _requirement(response: httpx.Response) -> Json:
    """The `batch-settlement` requirement of a 402."""
    offer = decode_header(response.headers.get("PAYMENT-REQUIRED", ""))
    for requirement in offer.get("accepts", []):
        if requirement.get("scheme") == SCHEME and str(requirement.get("network", "")).startswith("eip155:"):
            found: Json = requirement
            return found
    raise MalformedPayment("no_requirement", "the 402 offers no batch-settlement requirement")


def _code(response: httpx.Response) -> str:
    try:
        return str(response.json().get("code", ""))
    except (ValueError, AttributeError):
        return ""


def receipt(response: httpx.Response) -> SignedReceipt:
    """The signed receipt that came with a paid answer."""
    return SignedReceipt.from_json(decode_header(response.headers["LEBEN-RECEIPT"]))
