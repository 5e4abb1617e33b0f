"""`Paywall`: what stands between a caller and a model. Quotes, holds, charges, and says so in the answer's headers.

Both doors use this one object inside the DApp's own replica, because a replica's port can be reached around any
gateway. Knows headers and money, no tensors.
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
from channels.metering import (
    Call,
    ChargeRecord,
    Checked,
    Hold,
    Meter,
    Quote,
    RefusedAfterPayment,
    refund_header,
    response_header,
)
from channels.protocol import Payment, Signer, encode_header
from channels.receipts import Part, Receipt, ShareRows, SignedReceipt, split_charge, without_model
from dapps import DApp
from dapps.api import Inputs
from serving.errors import CallError
from serving.execution import ChildCall, bytes_of
from serving.protocol import LIGHTER, RETRY_AFTER_S, Request, Response, Result, describe, run_in_thread
from serving.replica.config_lock import RWLock
from serving.telemetry import LocalCounters, Statistics, tracing

log = logging.getLogger("leben.paywall")
KEY = re.compile(r"[\x21-\x7e]{1,255}", re.ASCII)


class Paywall:
    """Lets paid calls through to one DApp.

    Args:
        dapp: its name, version, digest and price enter quotes and receipts.
        name: the DApp's name on the mesh.
        meter: holds and charges.
        quote: what one call can cost at most.
        shares: (carrier, owner's address, basis points), in the order in which ties are rounded.
        signer: the mesh's receipt key.
        statistics: told how calls end.
    """

    def __init__(
        self,
        dapp: DApp,
        name: str,
        meter: Meter,
        quote: Quote,
        shares: ShareRows,
        signer: Signer,
        statistics: Statistics | None = None,
    ) -> None:
        self._dapp, self._name = dapp, name
        self._statistics = statistics or Statistics(LocalCounters())
        self._meter, self._quote, self._shares, self._signer = meter, quote, shares, signer
        self.gate = RWLock()
        self._running: set[asyncio.Task[Response]] = set()

    @property
    def free(self) -> bool:
        """True for a DApp that costs nothing."""
        return self._quote.amount == 0

    def requote(self, quote: Quote) -> None:
        """From now on calls cost this; only while the gate is closed."""
        self._quote = quote

    def payment(self, headers: Mapping[str, str]) -> Checked | None:
        """The payment of a call, checked as far as it can be without state: before this, no byte of a body is kept.

        None for a DApp that costs nothing: what is sent along is left alone, and above all no deposit is taken.

        Raises:
            ChannelError: there is none, or it cannot pay here.
        """
        if self.free:
            return None
        header = headers.get("payment-signature")
        if header is None:
            raise PaymentRefused("payment_required", "payment required: sign a voucher for one of `accepts`")
        return self._meter.check(Payment.from_header(header), self._quote)

    async def serve(
        self, asked: Request, checked: Checked | None, work: Callable[[str], Awaitable[Result]]
    ) -> Response:
        """Answers a call: a refusal that costs nothing, or the work, charged once.

        A keyed call is finished, charged and stored even if its client goes away, so that nobody has a model run for
        nothing by hanging up; the answer waits under its key. An unkeyed one is dropped with its client.

        Args:
            asked: the call.
            checked: from `payment()`.
            work: does it, given the payer's address; runs only under a hold.
        """
        if checked is None:
            return await self._free(asked, work)
        paid = asyncio.create_task(self._guarded(asked, checked, work))
        self._running.add(paid)
        paid.add_done_callback(self._running.discard)
        return await (asyncio.shield(paid) if "idempotency-key" in asked.headers else paid)

    async def refund(self, asked: Request, checked: Checked) -> Response:
        """Answers a refund payload, on any paid route and by any method: stock clients send GET."""
        try:
            moved, answer = await self._meter.refund(checked)
        except Exception as error:
            return self._refusal(asked, error)
        payment = checked.payment
        state = (payment.config.payer, payment.voucher.channel_id, answer, moved)
        headers = {"payment-response": refund_header(self._quote, *state), "cache-control": "private"}
        body = orjson.dumps({"refunded": str(moved.amount), "transaction": moved.transaction})
        return Response(200, body, {"content-type": "application/json", **headers})

    def refused(self, asked: Request, error: Exception) -> Response:
        """The answer to a call that is not let through."""
        return self._refusal(asked, error)

    async def _free(self, asked: Request, work: Callable[[str], Awaitable[Result]]) -> Response:
        try:
            async with self.gate:
                if not self.free:
                    raise PaymentRefused(
                        "payment_required", "this has a price now: sign a voucher for one of `accepts`"
                    )
                reply = (await work("")).reply
            self._statistics.outcome("free")
            return reply
        except Exception as error:
            return self._refusal(asked, error)

    async def _guarded(self, asked: Request, checked: Checked, work: Callable[[str], Awaitable[Result]]) -> Response:
        # Kept beside the error, never on it: one failure of a model may reach several callers as one object.
        settled: list[Hold] = []
        try:
            async with self.gate:
                if checked.quote is not self._quote:  # it has changed while the body came
                    checked = self._meter.check(checked.payment, self._quote)
                return await self._paid(asked, checked, work, settled)
        except RefusedAfterPayment as refused:
            return self._refusal(asked, refused.error, checked.payment, refused.hold)
        except OutcomeUnknown as error:
            return self._refusal(asked, error, checked.payment)
        except Exception as error:
            return self._refusal(asked, error, checked.payment, next(iter(settled), None))

    async def _paid(
        self, asked: Request, checked: Checked, work: Callable[[str], Awaitable[Result]], settled: list[Hold]
    ) -> Response:
        payment = checked.payment
        call = Call(_key(asked.headers), await run_in_thread(len(asked.body) // LIGHTER, self._digest, asked))
        began_s, began_ns = time.perf_counter(), time.time_ns()
        async with self._meter.hold(checked, call) as hold:
            self._statistics.held(time.perf_counter() - began_s)
            tracing.past("hold", began_ns, time.time_ns())
            tracing.fact("call", hold.request.attempt.call_id)
            if hold.stored is not None:
                self._statistics.outcome("replayed")
                return self._answer(payment, hold, _unpack(hold.stored))
            if hold.settled is not None:
                settled.append(hold)
            done = await work(payment.config.payer)
            price = self._dapp.price
            units = price.units(done.items, done.device_us)
            amount = min(price.guideline_only if done.alone else price.of(units), self._quote.amount)
            body = self._receipt_body(call, done, units, amount)
            with tracing.span("charge"):
                await self._meter.charge(hold, amount, body, _pack(done.kept or done.reply))
            # Another attempt of the same call may have been charged first: then its answer is the one that was bought.
            if hold.stored is None:
                self._statistics.outcome("charged", {"charged.units": amount})
                return self._answer(payment, hold, done.reply)
            self._statistics.outcome("replayed")
            return self._answer(payment, hold, _unpack(hold.stored))

    def _answer(self, payment: Payment, hold: Hold, reply: Response) -> Response:
        record = hold.result.record
        if record is None:
            raise RuntimeError("a charged call has no record")
        paid = self._response(payment, hold, record.amount)
        return replace(reply, headers={**reply.headers, **paid, "leben-receipt": self._receipt(hold, record)})

    def _response(self, payment: Payment, hold: Hold, charged: int) -> dict[str, str]:
        channel, payer = payment.voucher.channel_id, payment.config.payer
        maximum = payment.voucher.max_claimable
        header = response_header(self._quote, payer, channel, hold.result, charged, maximum, hold.settled)
        return {"payment-response": header, "cache-control": "private"}

    def _receipt_body(self, call: Call, done: Result, units: int, amount: int) -> str:
        rows = without_model(self._shares) if done.alone else self._shares
        # The parts were given no more than this: were it otherwise, nothing would be charged rather than too much.
        own = amount - sum(part.amount for part in done.parts if part.depth == 1)
        shares = [[share.carrier, share.owner, share.amount] for share in split_charge(own, rows)]
        parts = {"parts": [part.to_row() for part in done.parts]} if done.parts else {}
        body = parts | {
            "dapp": self._name,
            "version": self._dapp.release,
            "model": "0x" + self._dapp.digest,
            "request": call.digest,
            "result": self._meter.digest(b"result", (done.kept or done.reply).body),
            "units": units,
            "shares": shares,
        }
        return orjson.dumps(body).decode()

    def part(self, errand: ChildCall, outputs: Inputs, units: int, parts: tuple[Part, ...]) -> tuple[Part, ...]:
        """What an errand makes of its caller's receipt: its own part, and one deeper those of what it asked itself.

        Args:
            errand: as it came.
            outputs: as they go back.
            units: what it used, of what is priced.
            parts: what it asked for itself.
        """
        amount = self._dapp.price.of(units)
        own = amount - sum(part.amount for part in parts if part.depth == 1)
        request = self._meter.digest(b"errand", self._name.encode(), *bytes_of(errand.inputs))
        result = self._meter.digest(b"errand result", *bytes_of(outputs))
        who = (self._name, self._dapp.release, "0x" + self._dapp.digest, request, result)
        first = Part(1, *who, units, amount, split_charge(own, self._shares))
        return (first, *(replace(part, depth=part.depth + 1) for part in parts))

    def _receipt(self, hold: Hold, record: ChargeRecord) -> str:
        numbers = (record.incarnation, record.seq, record.before, record.after, record.at_ms)
        receipt = Receipt.of_charge(hold.request.attempt.channel_id, record.call_id, *numbers, record.body)
        return encode_header(SignedReceipt.sign(receipt, self._quote.payee.chain_id, self._signer).to_json())

    def _digest(self, asked: Request) -> str:
        names = ("content-type", "inference-header-content-length", "content-encoding")
        headers = "\n".join(f"{name}:{asked.headers.get(name, '')}" for name in names)
        parts = (asked.method.encode(), asked.path.encode(), headers.encode(), asked.body)
        return self._meter.digest(b"call", *parts, *([asked.query] if asked.query else []))

    def _refusal(
        self, asked: Request, error: Exception, payment: Payment | None = None, hold: Hold | None = None
    ) -> Response:
        status, code, message = describe(error)
        self._statistics.outcome("failed" if status == 500 else "refused", {f"refused.{code}": 1})
        if status == 500:
            log.error("call of %s failed: %s at %s", self._name, type(error).__name__, _where(error))
        headers = {"content-type": "application/json", "cache-control": "no-store"}
        if status in RETRY_AFTER_S:
            headers["retry-after"] = RETRY_AFTER_S[status]
        if status == 402:
            state = error.state if isinstance(error, PaymentRefused) else None
            headers["payment-required"] = self._quote.required_header(asked.url, code, state)
        if payment is not None and hold is not None:
            # A deposit or an earlier charge stands although the call is refused: a client that is not told pays twice.
            record = hold.result.record
            headers |= self._response(payment, hold, record.amount if record else 0)
            if record:
                headers["leben-receipt"] = self._receipt(hold, record)
        return Response(status, orjson.dumps({"error": message, "code": code}), headers)


def _key(headers: Mapping[str, str]) -> str | None:
    key = headers.get("idempotency-key")
    if key is not None and not KEY.fullmatch(key):
        raise CallError("invalid_key", "Idempotency-Key is 1 to 255 visible ASCII characters")
    return key


def _pack(reply: Response) -> bytes:
    return orjson.dumps([reply.status, dict(reply.headers)]) + b"\n" + reply.body


def _unpack(stored: bytes) -> Response:
    head, _, body = stored.partition(b"\n")
    status, headers = orjson.loads(head)
    return Response(status, body, headers)


def _where(error: Exception) -> str:
    # An unforeseen error's message may quote the input: the log gets its type and where it was raised, never its text.
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    return " < ".join(f"{frame.name} {Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
