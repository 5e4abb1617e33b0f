"""Pays for the requests of an httpx client: `ChannelAuth` carries the steps of `flow.py`, with and without a loop."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack, ExitStack

import httpx

from channels.errors import ChannelError
from channels.payer.channel import Turn
from channels.payer.flow import PaymentFlow, quote_of, refusal_code, requirement_of
from channels.protocol import Payment, Voucher, decode_header, parse_amount, voucher_digest


class ChannelAuth(PaymentFlow, httpx.Auth):
    """Pays for every request of an `httpx.Client` or `httpx.AsyncClient` that a 402 asks money for.

    Takes the arguments of `PaymentFlow`. One object serves threads or an event loop, not both at once.

    Raises:
        BudgetExceeded: out of a call, before anything is signed.
        DishonestServer: out of a call; the channel is closed to further ones.
    """

    requires_request_body = True

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Carries one call for `httpx.AsyncClient`."""
        steps = self.call(request)
        async with AsyncExitStack() as turns:
            step = self.advance(steps)
            while step is not None:
                response = None
                if isinstance(step, Turn):
                    await turns.enter_async_context(step.task_lock)
                else:
                    response = yield step
                    await response.aread()
                step = self.advance(steps, response)

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Carries one call for `httpx.Client`."""
        steps = self.call(request)
        with ExitStack() as turns:
            step = self.advance(steps)
            while step is not None:
                response = None
                if isinstance(step, Turn):
                    turns.enter_context(step.thread_lock)
                else:
                    response = yield step
                    response.read()
                step = self.advance(steps, response)

    async def refund(self, client: httpx.AsyncClient, url: str, amount: int | None = None) -> int:
        """Moves unspent money back into the wallet, all of it if no amount is named.

        Args:
            client: any client; its own auth is not used.
            url: a paid route of the mesh.
            amount: atomic units.

        Returns:
            What came back, in atomic units.

        Raises:
            ChannelError: the mesh refused; its code says why.
        """
        quote = quote_of(await client.get(url, auth=None, follow_redirects=False))
        channel = self.channel_for(quote)
        for _ in range(2):
            signature = self.wallet.signer.sign(voucher_digest(channel.chain_id, channel.id, channel.charged))
            voucher = Voucher(channel.id, channel.charged, signature)
            header = Payment("refund", quote, channel.config, voucher, refund_amount=amount).to_header()
            response = await client.get(url, headers={"PAYMENT-SIGNATURE": header}, auth=None, follow_redirects=False)
            if response.status_code != 402 or not channel.correct(requirement_of(response), self.wallet.signer):
                break
        if response.status_code != 200:
            raise ChannelError(refusal_code(response) or "refused", "the mesh refused the refund")
        settled = decode_header(response.headers["PAYMENT-RESPONSE"])
        returned = parse_amount(settled.get("amount"), "amount")
        channel.deposited -= returned
        if channel.deposited <= channel.charged:
            self.retire(channel)
        return returned
