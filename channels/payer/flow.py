"""Decides what a paid call sends next: the plain request, a voucher, or a voucher with a deposit.

Knows httpx's request and response values but no transport: `httpx_auth.py` and `tritonclient.py` carry its steps.
`channel.py` checks the mesh's answers, `budget.py` bounds what may be signed. Amounts are atomic units.
"""

from __future__ import annotations

import re
import secrets
import threading
import time
import uuid
from collections.abc import Callable, Generator
from typing import Literal
from urllib.parse import unquote

import httpx
from eth_utils import to_checksum_address

from channels.errors import MalformedPayment
from channels.payer.budget import BudgetExceeded
from channels.payer.channel import DishonestServer, PayerChannel, Turn
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

DEPOSIT_VALID_S = 600
NETWORK = re.compile(r"eip155:(?:0|[1-9][0-9]{0,17})", re.ASCII)
Step = httpx.Request | Turn
"""What a call needs next: the response to a request, or the turn to fund a channel until the call has ended."""
Steps = Generator[Step, httpx.Response | None, None]


class PaymentFlow:
    """One payer's channels, and the steps by which its calls are paid from them.

    Many calls may be in flight: each carries an Idempotency-Key and a voucher that covers all calls before it. The
    quote of a route is remembered, so a call takes one round trip. Each payee gets one channel.

    Args:
        wallet: who pays.
        salt: 32 bytes in hex that keep this client's channels apart from others of the same wallet; random by default,
            so a client that lost its memory never meets vouchers it signed before.
        mesh: the address that must sign receipts (`mesh.receipts` in `/v1/catalogue`); if empty, the first receipt's
            signer is pinned.
        now: seconds since 1970.

    Attributes:
        channels: by channel id.
        quotes: the latest quote of each paid route, by method and URL.
    """

    def __init__(self, wallet: Wallet, salt: str = "", mesh: str = "", now: Callable[[], float] = time.time) -> None:
        self.wallet = wallet
        self.salt = salt or _random_salt()
        self.mesh = mesh
        self.channels: dict[str, PayerChannel] = {}
        self.quotes: dict[str, Json] = {}
        self._now = now
        self._lock = threading.Lock()

    def call(self, request: httpx.Request) -> Steps:
        """The steps of one call, paid at once if its quote is known; tried again once after a corrective 402.

        Raises:
            BudgetExceeded: before anything is signed.
            DishonestServer: the channel is closed to further calls.
        """
        route = f"{request.method} {request.url.copy_with(query=None)}"
        if route not in self.quotes:
            response = yield request
            if response is None or response.status_code != 402:
                return
            check_origin(request.url, response)
            self.quotes[route] = quote_of(response)
        key = request.headers.setdefault("Idempotency-Key", uuid.uuid4().hex)
        has_turn = False
        for first in (True, False):
            quote = self.quotes[route]
            price = parse_amount(quote["amount"], "amount")
            self.wallet.budget.check_notice(quote["extra"]["withdrawDelay"])
            channel = self.channel_for(quote)
            if channel.needs_deposit(price) and not has_turn:
                # One deposit at a time: calls that need one wait for the deposit under way, then look again.
                yield channel.turn
                has_turn = True
            self.wallet.budget.check_call(price)
            max_claimable = channel.max_claimable_with(key, price)
            # A deposit that lapsed unanswered may have been settled: a call without one finds out before another is
            # signed, or the payer could fund the channel twice.
            probing = first and channel.pending is not None and channel.pending.valid_before <= self._now()
            deposit = None
            if max_claimable > channel.deposited and not probing:
                deposit = self._deposit(channel, quote, price, max_claimable)
            self.wallet.spending.reserve(self.wallet.budget, key, dapp_of(request.url), price)
            channel.outstanding[key] = price
            request.headers["PAYMENT-SIGNATURE"] = self.payment_header(channel, quote, deposit)
            response = yield request
            if response is None:
                raise RuntimeError("the transport sent no response to a request")
            check_origin(request.url, response)
            status, code = response.status_code, refusal_code(response)
            cost = channel.record_response(key, deposit, status=status, code=code, headers=response.headers)
            if cost is not None:
                self.wallet.spending.settle(key, cost)
            if probing and status < 500:
                channel.pending = None
            if not first or status != 402:
                return
            corrected = channel.correct(requirement_of(response), self.wallet.signer)
            self.quotes[route] = same_payee(quote, quote_of(response))
            if not (corrected or probing) and self.quotes[route] == quote:
                return

    def advance(self, steps: Steps, response: httpx.Response | None = None) -> Step | None:
        """Runs a call up to its next step; None when it has ended.

        Args:
            steps: from `call`.
            response: to the request of the last step; None at the start and after a turn was taken.
        """
        with self._lock:  # calls on several threads share the channels, the quotes and the day's spending
            try:
                return steps.send(response)
            except StopIteration:
                return None

    def channel_for(self, quote: Json) -> PayerChannel:
        """The channel that pays this quote, made when the payee is first met."""
        extra, address = quote["extra"], self.wallet.address
        config = ChannelConfig(
            payer=address,
            payer_authorizer=address,
            receiver=to_checksum_address(quote["payTo"]),
            receiver_authorizer=to_checksum_address(extra["receiverAuthorizer"]),
            token=to_checksum_address(quote["asset"]),
            withdraw_delay=extra["withdrawDelay"],
            salt=self.salt,
        )
        chain_id = int(quote["network"].removeprefix("eip155:"))
        name = channel_id(chain_id, config)
        return self.channels.setdefault(name, PayerChannel(config, name, chain_id, self.mesh))

    def payment_header(self, channel: PayerChannel, quote: Json, deposit: Deposit | None = None) -> str:
        """A PAYMENT-SIGNATURE header whose voucher covers every outstanding call of the channel."""
        signature = self.wallet.signer.sign(voucher_digest(channel.chain_id, channel.id, channel.max_claimable))
        voucher = Voucher(channel.id, channel.max_claimable, signature)
        kind: Literal["deposit", "voucher"] = "deposit" if deposit else "voucher"
        return Payment(kind, quote, channel.config, voucher, deposit).to_header()

    def retire(self, channel: PayerChannel) -> None:
        """Forgets a drained channel and its salt: an old voucher of the same channel would pass for a new one."""
        del self.channels[channel.id]
        self.salt = _random_salt()

    def _deposit(self, channel: PayerChannel, quote: Json, price: int, max_claimable: int) -> Deposit:
        if channel.pending and channel.pending.valid_before > self._now():
            return channel.pending
        extra = quote["extra"]
        suggested = parse_amount(extra.get("minDeposit", quote["amount"]), "minDeposit")
        amount = max(self.wallet.budget.deposit_for(suggested, price), max_claimable - channel.deposited)
        self.wallet.budget.check_channel(channel.deposited, amount)
        token = Domain.of(extra["name"], extra["version"], channel.chain_id, channel.config.token)
        salt, valid_before = _random_salt(), int(self._now()) + DEPOSIT_VALID_S
        digest = deposit_digest(
            token,
            payer=self.wallet.address,
            amount=amount,
            valid_after=0,
            valid_before=valid_before,
            nonce=deposit_nonce(channel.id, salt),
        )
        channel.pending = Deposit(amount, 0, valid_before, salt, self.wallet.signer.sign(digest))
        return channel.pending


def quote_of(response: httpx.Response) -> Json:
    """The quote of a 402: its requirement without the channel's state.

    Raises:
        MalformedPayment: the 402 offers nothing that this client can pay.
    """
    requirement = requirement_of(response)
    extra = {name: value for name, value in requirement["extra"].items() if name not in STATE_FIELDS}
    return requirement | {"extra": extra}


def check_origin(url: httpx.URL, response: httpx.Response) -> None:
    """Refuses an answer of another origin (scheme, host and port) than the one that the payer sent the call to.

    Raises:
        BudgetExceeded: the call was redirected there.
    """
    other = response.request.url
    if (other.scheme, other.host, other.port) != (url.scheme, url.host, url.port):
        place = f"{other.scheme}://{other.netloc.decode('ascii')}"
        text = f"the call was redirected to {place}, and only the address that it was sent to is paid"
        raise BudgetExceeded("other_origin", f"{text}: if that is your mesh, send the call there")


def same_payee(old: Json, new: Json) -> Json:
    """A route's newer quote: its price and authorizer may change, its payee, asset and ledger may not.

    Raises:
        DishonestServer: another payee answers than before; a channel would be opened and funded for it.
    """
    if any(old[name] != new[name] for name in ("network", "asset", "payTo")):
        text = "another payee answers on this route than before: make a new ChannelAuth if that is right"
        raise DishonestServer("payee_changed", text)
    return new


def requirement_of(response: httpx.Response) -> Json:
    """The first `batch-settlement` requirement of a 402 that holds all fields that a voucher is made from.

    Raises:
        MalformedPayment: there is none.
    """
    accepts = decode_header(response.headers.get("PAYMENT-REQUIRED", "")).get("accepts")
    for requirement in accepts if isinstance(accepts, list) else []:
        if isinstance(requirement, dict) and _payable(requirement):
            return dict(requirement)
    raise MalformedPayment("no_requirement", "the 402 offers no batch-settlement requirement that can be paid")


def dapp_of(url: httpx.URL) -> str:
    """The DApp's name in a route, or an empty text."""
    _, _, rest = url.path.partition("/v2/models/")
    return unquote(rest.partition("/")[0])


def refusal_code(response: httpx.Response) -> str:
    """The stable code in a refusal's JSON body, or an empty text."""
    try:
        return str(response.json().get("code", ""))
    except (ValueError, AttributeError):
        return ""


def receipt(response: httpx.Response) -> SignedReceipt:
    """The signed receipt in a paid response's headers.

    Raises:
        KeyError: the response has no receipt.
        ChannelError: the receipt is malformed.
    """
    return SignedReceipt.from_json(decode_header(response.headers["LEBEN-RECEIPT"]))


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
    return (
        isinstance(network, str)
        and NETWORK.fullmatch(network) is not None
        and all(isinstance(extra.get(name), str) for name in ("name", "version"))
        and all(isinstance(address, str) and checksummed(address) is not None for address in addresses)
        and type(delay) is int
        and 0 <= delay < 2**40
    )


def _random_salt() -> str:
    return "0x" + secrets.token_hex(32)
