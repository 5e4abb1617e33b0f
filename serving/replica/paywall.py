"""Authorises, holds and charges each call, and adds the payment headers to its response.

HTTP and gRPC share one `Paywall` inside the DApp's own replica: a replica's port can be reached around any gateway.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path

import orjson

from channels.errors import OutcomeUnknown, PaymentRefused
from channels.metering import Call, Checked, Hold, Meter, RefusedAfterPayment, refund_header, response_header
from channels.protocol import Payment, Signer
from serving.errors import CallError
from serving.protocol import BINARY_DISCOUNT, JSON, Request, Response, Result, describe, refusal, run_in_thread
from serving.replica.offer import LiveOffer, Offer
from serving.replica.receipts import ReceiptBody, ReceiptBuilder
from serving.telemetry import CallRecord, LocalCounters, Money, Statistics, tracing

log = logging.getLogger("leben.paywall")
KEY = re.compile(r"[\x21-\x7e]{1,255}", re.ASCII)
PRIVATE = {"cache-control": "private"}
Work = Callable[[Request, Offer, str, CallRecord], Awaitable[Result]]
"""Computes a call for a payer; runs only under a hold, and under the lock of the offer that it is given."""


class Paywall:
    """Lets paid calls through to one DApp.

    Args:
        live: the offer in force.
        meter: holds and charges.
        signer: the mesh's receipt key.
        statistics: counts each call when it has ended.
    """

    def __init__(self, live: LiveOffer, meter: Meter, signer: Signer, statistics: Statistics | None = None) -> None:
        self.live = live
        self.receipts = ReceiptBuilder(meter.digest, signer, live.offer.quote.payee.chain_id)
        self.statistics = statistics or Statistics(LocalCounters())
        self._meter = meter
        self._running: set[asyncio.Task[Response]] = set()

    def payment(self, headers: Mapping[str, str]) -> Checked | None:
        """Checks a call's payment as far as that needs no state: before this, no byte of a body is kept.

        None for a DApp that costs nothing: a payment sent to it is ignored, and above all no deposit is taken.

        Raises:
            ChannelError: there is no payment, or it cannot pay here.
        """
        offer = self.live.offer
        if offer.free:
            return None
        header = headers.get("payment-signature")
        if header is None:
            raise PaymentRefused("payment_required", "payment required: sign a voucher for one of `accepts`")
        return self._meter.check(Payment.from_header(header), offer.quote)

    async def funded(self, checked: Checked) -> bool:
        """See `Meter.funded`: asked before a large body is kept."""
        return await self._meter.funded(checked)

    async def serve(self, request: Request, checked: Checked | None, work: Work, record: CallRecord) -> Response:
        """Answers a call: a refusal that costs nothing, or the work, charged once.

        A keyed call is finished, charged and stored even if its client goes away, so that nobody has a model run for
        nothing by hanging up; its response waits under its key. An unkeyed call is dropped with its client.

        Args:
            request: with its body.
            checked: from `payment()`.
            work: computes the result.
            record: filled on the way, and finished.
        """
        if checked is None:
            return await self._free(request, work, record)
        paid = asyncio.create_task(self._guarded(request, checked, work, record))
        self._running.add(paid)
        paid.add_done_callback(self._running.discard)
        return await (asyncio.shield(paid) if "idempotency-key" in request.headers else paid)

    async def refund(self, request: Request, checked: Checked, record: CallRecord) -> Response:
        """Answers a refund payload, on any paid route and by any method: stock clients send GET."""
        payment = checked.payment
        payer, channel = payment.config.payer, payment.voucher.channel_id
        try:
            transfer, after = await self._meter.refund(checked)
        except Exception as error:
            return self.refused(request, error, record)
        record.money = Money(payer, channel, moved=str(transfer.amount), transaction=transfer.transaction)
        record.finish()
        header = refund_header(checked.quote, payer, channel, after, transfer)
        body = orjson.dumps({"refunded": str(transfer.amount), "transaction": transfer.transaction})
        return Response(200, body, {"content-type": JSON, "payment-response": header, **PRIVATE})

    def refused(self, request: Request, error: Exception, record: CallRecord) -> Response:
        """Answers a call that is not let through; no payment of it stands."""
        response = self._refusal(request, error, record)
        self._finish(record)
        return response

    async def _free(self, request: Request, work: Work, record: CallRecord) -> Response:
        try:
            async with self.live.lock:
                offer = self.live.offer
                if not offer.free:
                    raise PaymentRefused(
                        "payment_required", "this has a price now: sign a voucher for one of `accepts`"
                    )
                response = (await work(request, offer, "", record)).response
            record.outcome = "free"
            return response
        except Exception as error:
            return self._refusal(request, error, record)
        finally:
            self._finish(record)

    async def _guarded(self, request: Request, checked: Checked, work: Work, record: CallRecord) -> Response:
        # The deposit that stands is kept here and not on the error: one failure of a model may reach several callers.
        deposits: list[Hold] = []
        record.begin()
        try:
            async with self.live.lock:
                offer = self.live.offer
                if checked.quote is not offer.quote:  # it has changed while the body arrived
                    checked = self._meter.check(checked.payment, offer.quote)
                return await self._paid(request, offer, checked, work, record, deposits)
        except RefusedAfterPayment as refused:
            return self._refusal(request, refused.error, record, checked, refused.hold)
        except OutcomeUnknown as error:
            return self._refusal(request, error, record)
        except Exception as error:
            return self._refusal(request, error, record, checked, next(iter(deposits), None))
        finally:
            self._finish(record)

    async def _paid(
        self,
        request: Request,
        offer: Offer,
        checked: Checked,
        work: Work,
        record: CallRecord,
        deposits: list[Hold],
    ) -> Response:
        size = len(request.body) // BINARY_DISCOUNT
        call = Call(_key(request.headers), await run_in_thread(size, self.receipts.request_digest, request))
        began_s, began_ns = time.perf_counter(), time.time_ns()
        async with self._meter.hold(checked, call) as hold:
            record.hold_s, record.call_id = time.perf_counter() - began_s, hold.request.attempt.call_id
            tracing.past("hold", began_ns, time.time_ns())
            if hold.stored is None:
                if hold.settled is not None:
                    deposits.append(hold)
                result = await work(request, offer, checked.payment.config.payer, record)
                units = offer.price.units(result.items, result.device_us)
                price = offer.price.guideline_only if result.guideline_only else offer.price.of(units)
                amount = min(price, offer.quote.amount)
                body = self.receipts.body(offer, call.digest, result, units=units, amount=amount)
                with tracing.span("charge"):
                    stored = (result.stored or result.response).to_bytes()
                    await self._meter.charge(hold, amount, body.to_json(), stored)
            if hold.stored is None:
                record.outcome = "charged"
                return self._answer(checked, hold, result.response, record, body)
            # An earlier call with this key, or another attempt at this one, was charged first: its answer was bought.
            record.outcome = "replayed"
            return self._answer(checked, hold, Response.from_bytes(hold.stored), record)

    def _answer(
        self, checked: Checked, hold: Hold, response: Response, record: CallRecord, body: ReceiptBody | None = None
    ) -> Response:
        if hold.result.record is None:
            raise RuntimeError("a charged call has no record")
        return replace(response, headers={**response.headers, **self._payment_headers(checked, hold, record, body)})

    def _payment_headers(
        self, checked: Checked, hold: Hold, record: CallRecord, body: ReceiptBody | None = None
    ) -> dict[str, str]:
        """PAYMENT-RESPONSE of a call whose deposit or charge stands, and its receipt if it was charged."""
        payment, charge, deposit = checked.payment, hold.result.record, hold.settled
        payer, channel = payment.config.payer, payment.voucher.channel_id
        charged = charge.amount if charge else 0
        record.money = Money(
            payer,
            channel,
            moved=str(deposit.amount) if deposit else "",
            charged=charged,
            transaction=deposit.transaction if deposit else "",
            receipt=charge.call_id if charge else "",
            seq=charge.seq if charge else 0,
        )
        header = response_header(
            checked.quote, payer, channel, hold.result, charged, payment.voucher.max_claimable, deposit
        )
        headers = {"payment-response": header, **PRIVATE}
        if charge is not None:
            headers["leben-receipt"] = self.receipts.header(channel, charge, body)
        return headers

    def _refusal(
        self,
        request: Request,
        error: Exception,
        record: CallRecord,
        checked: Checked | None = None,
        hold: Hold | None = None,
    ) -> Response:
        reason = describe(error)
        record.outcome, record.code = "failed" if reason.status == 500 else "refused", reason.code
        quote = self.live.offer.quote
        if reason.status == 500:
            log.error("call of %s failed: %s at %s", self.live.offer.name, type(error).__name__, _where(error))
        response = refusal(reason)
        headers = dict(response.headers)
        if reason.status == 402:
            state = error.state if isinstance(error, PaymentRefused) else None
            headers["payment-required"] = quote.required_header(request.url, reason.code, state)
        if checked is not None and hold is not None:
            # A deposit or an earlier charge stands although the call is refused: a client that misses it pays twice.
            headers |= self._payment_headers(checked, hold, record)
        return replace(response, headers=headers)

    def _finish(self, record: CallRecord) -> None:
        self.statistics.finished(record)
        record.finish()


def _key(headers: Mapping[str, str]) -> str | None:
    key = headers.get("idempotency-key")
    if key is not None and not KEY.fullmatch(key):
        raise CallError("invalid_key", "Idempotency-Key is 1 to 255 visible ASCII characters")
    return key


def _where(error: Exception) -> str:
    # The message of an unforeseen error may quote the input: the log gets its type and where it was raised.
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    return " < ".join(f"{frame.name} {Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
