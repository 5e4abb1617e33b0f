"""`ChannelAuth`: an `httpx` auth that opens a channel, signs a voucher a call and keeps the sums, in atomic units.

For `httpx.Client` and `httpx.AsyncClient` alike, many calls in flight. What it believes of the mesh's answers is in
`payer_channel.py`; what it may sign for in `budget.py`.
"""

from __future__ import annotations

import re
import secrets
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack, ExitStack
from typing import Literal
from urllib.parse import unquote

import httpx
from eth_utils import to_checksum_address

from channels.errors import ChannelError, MalformedPayment
from channels.payer.budget import Budget, BudgetExceeded
from channels.payer.channel import DishonestServer, PayerChannel
from channels.payer.tritonclient import TritonPayment
from channels.payer.wallet import Wallet
from channels.protocol import (
    SCHEME,
    STATE_FIELDS,
    ChannelConfig,
    Deposit,
    Domain,
    Json,
    Payment,
    Voucher,
    channel_id,
    checksummed,
    decode_header,
    deposit_digest,
    deposit_nonce,
    parse_amount,
    voucher_digest,
)
from channels.receipts import SignedReceipt

__all__ = ["Budget", "BudgetExceeded", "ChannelAuth", "DishonestServer", "TritonPayment", "Wallet", "receipt"]
DEPOSIT_VALID_S = 600
NETWORK = re.compile(r"eip155:(?:0|[1-9][0-9]{0,17})", re.ASCII)
Steps = Generator[httpx.Request | PayerChannel, httpx.Response | None, None]
"""What a call needs next: a request answered, or its turn to fund a channel."""


class ChannelAuth(httpx.Auth):
    """Pays for every request of an httpx client that a 402 asks money for.

    Many calls may be in flight: each carries an Idempotency-Key and a ceiling that covers all before it. The quote of
    a route is remembered, so that a call takes one round trip. One channel is opened for each payee that is met. One
    object serves threads or an event loop, not both at once.

    Args:
        wallet: who pays.
        salt: 32 bytes in hex that tell this client's channels from others of the same wallet; random by default, so
            that a client that lost its memory never meets vouchers it signed before.
        mesh: the address that receipts must be signed by (`mesh.receipts` in `/v1/catalogue`); if empty, the
            first receipt's signer is kept and must stay the same.

    Raises:
        BudgetExceeded: out of a call, before anything is signed.
        DishonestServer: out of a call; the channel is closed to further ones.
    """

    requires_request_body = True

    def __init__(self, wallet: Wallet, salt: str = "", mesh: str = "") -> None:
        self.wallet = wallet
        self.salt = salt or "0x" + secrets.token_hex(32)
        self.mesh = mesh
        self.channels: dict[str, PayerChannel] = {}
        self._quotes: dict[str, Json] = {}
        self._step = threading.Lock()

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Sends the request, paid at once if its price is known; tries again once after a corrective 402."""
        steps = self._call(request)
        async with AsyncExitStack() as turn:
            wanted = self._next(steps, None)
            while wanted is not None:
                if isinstance(wanted, PayerChannel):
                    await turn.enter_async_context(wanted.opening)
                    wanted = self._next(steps, None)
                else:
                    response = yield wanted
                    await response.aread()
                    wanted = self._next(steps, response)

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """The same for `httpx.Client`."""
        steps = self._call(request)
        with ExitStack() as turn:
            wanted = self._next(steps, None)
            while wanted is not None:
                if isinstance(wanted, PayerChannel):
                    turn.enter_context(wanted.thread_opening)
                    wanted = self._next(steps, None)
                else:
                    response = yield wanted
                    response.read()
                    wanted = self._next(steps, response)

    def _next(self, steps: Steps, response: httpx.Response | None) -> httpx.Request | PayerChannel | None:
        with self._step:
            try:
                return steps.send(response)
            except StopIteration:
                return None

    def _call(self, request: httpx.Request) -> Steps:
        route = f"{request.method} {request.url.copy_with(query=None)}"
        if route not in self._quotes:
            response = yield request
            if response is None or response.status_code != 402:
                return
            self._quotes[route] = _quote(response)
        key = request.headers.setdefault("Idempotency-Key", uuid.uuid4().hex)
        waited = False
        for first in (True, False):
            quote = self._quotes[route]
            channel = self._channel(quote)
            price = parse_amount(quote["amount"], "amount")
            if channel.short(price) and not waited:
                # One deposit at a time: calls that would need one wait for the one under way, then look again.
                yield channel
                waited = True
            self.wallet.budget.check_call(price)
            ceiling = channel.covering(key, price)
            # A deposit that lapsed without an answer may have been settled: a call without one tells, before another.
            probing = first and channel.pending is not None and channel.pending.valid_before <= time.time()
            deposit = None
            if ceiling > channel.deposited and not probing:
                deposit = self._deposit(channel, quote, ceiling)
            self.wallet.spending.reserve(self.wallet.budget, key, _dapp(request.url), price)
            channel.outstanding[key] = price
            request.headers["PAYMENT-SIGNATURE"] = self._pay(channel, quote, deposit)
            response = yield request
            if response is None:
                raise RuntimeError("a request was not answered")
            cost = channel.account(key, deposit, response.status_code, _code(response), response.headers)
            if cost is not None:
                self.wallet.spending.settle(key, cost)
            if probing and response.status_code < 500:
                channel.pending = None
            if not first or response.status_code != 402:
                return
            corrected = channel.correct(_requirement(response), self.wallet.signer)
            self._quotes[route] = _same_payee(quote, _quote(response))
            if not (corrected or probing) and self._quotes[route] == quote:
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
            if response.status_code != 402 or not channel.correct(_requirement(response), self.wallet.signer):
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

    def _channel(self, quote: Json) -> PayerChannel:
        extra = quote["extra"]
        address = self.wallet.address
        receivers = (to_checksum_address(quote["payTo"]), to_checksum_address(extra["receiverAuthorizer"]))
        token = to_checksum_address(quote["asset"])
        config = ChannelConfig(address, address, *receivers, token, extra["withdrawDelay"], self.salt)
        chain_id = int(quote["network"].removeprefix("eip155:"))
        name = channel_id(chain_id, config)
        return self.channels.setdefault(name, PayerChannel(config, name, chain_id, self.mesh))

    def _pay(self, channel: PayerChannel, quote: Json, deposit: Deposit | None) -> str:
        signature = self.wallet.signer.sign(voucher_digest(channel.chain_id, channel.id, channel.ceiling))
        voucher = Voucher(channel.id, channel.ceiling, signature)
        kind: Literal["deposit", "voucher"] = "deposit" if deposit else "voucher"
        return Payment(kind, quote, channel.config, voucher, deposit).to_header()

    def _deposit(self, channel: PayerChannel, quote: Json, ceiling: int) -> Deposit:
        if channel.pending and channel.pending.valid_before > time.time():
            return channel.pending
        extra = quote["extra"]
        suggested = parse_amount(extra.get("minDeposit", quote["amount"]), "minDeposit")
        amount = max(self.wallet.budget.deposit or suggested, ceiling - channel.deposited)
        self.wallet.budget.check_channel(channel.deposited, amount)
        token = Domain.of(extra["name"], extra["version"], channel.chain_id, channel.config.token)
        salt, until_s = "0x" + secrets.token_hex(32), int(time.time()) + DEPOSIT_VALID_S
        nonce = deposit_nonce(channel.id, salt)
        digest = deposit_digest(token, self.wallet.address, amount, 0, until_s, nonce)
        channel.pending = Deposit(amount, 0, until_s, salt, self.wallet.signer.sign(digest))
        return channel.pending


def _quote(response: httpx.Response) -> Json:
    """The quote of a 402: its requirement without the state of a channel."""
    requirement = _requirement(response)
    extra = {name: value for name, value in requirement["extra"].items() if name not in STATE_FIELDS}
    return requirement | {"extra": extra}


def _same_payee(known: Json, fresh: Json) -> Json:
    """A route's newer quote; a price may change, and an authoriser's key, but not to whom and on which ledger it goes.

    Raises:
        DishonestServer: someone else answers here than before: it would get a channel of its own to be paid from.
    """
    if any(known[name] != fresh[name] for name in ("network", "asset", "payTo")):
        text = "another payee answers on this route than before: make a new ChannelAuth if that is right"
        raise DishonestServer("payee_changed", text)
    return fresh


def _requirement(response: httpx.Response) -> Json:
    """The `batch-settlement` requirement of a 402; one that lacks what a voucher is made from is none."""
    accepts = decode_header(response.headers.get("PAYMENT-REQUIRED", "")).get("accepts")
    for requirement in accepts if isinstance(accepts, list) else []:
        if isinstance(requirement, dict) and _payable(requirement):
            found: Json = requirement
            return found
    raise MalformedPayment("no_requirement", "the 402 offers no batch-settlement requirement that can be paid")


def _payable(requirement: Json) -> bool:
    extra = requirement.get("extra")
    if requirement.get("scheme") != SCHEME or not isinstance(extra, dict):
        return False
    network, delay = requirement.get("network"), extra.get("withdrawDelay")
    addresses = (requirement.get("asset"), requirement.get("payTo"), extra.get("receiverAuthorizer"))
    try:
        parse_amount(requirement.get("amount"), "amount")
        parse_amount(extra.get("minDeposit", "0"), "minDeposit")
    except MalformedPayment:
        return False
    known = isinstance(network, str) and NETWORK.fullmatch(network) is not None
    named = all(isinstance(extra.get(name), str) for name in ("name", "version"))
    placed = all(isinstance(address, str) and checksummed(address) is not None for address in addresses)
    return known and named and placed and type(delay) is int and 0 <= delay < 2**40


def _dapp(url: httpx.URL) -> str:
    """The model that a route belongs to, or nothing."""
    _, _, rest = url.path.partition("/v2/models/")
    return unquote(rest.partition("/")[0])


def _code(response: httpx.Response) -> str:
    try:
        return str(response.json().get("code", ""))
    except (ValueError, AttributeError):
        return ""


def receipt(response: httpx.Response) -> SignedReceipt:
    """The signed receipt that came with a paid answer."""
    return SignedReceipt.from_json(decode_header(response.headers["LEBEN-RECEIPT"]))
