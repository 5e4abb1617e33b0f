"""`Meter` takes one paid call from its voucher to a hold, and on to exactly one charge or none.

`hold()` refuses before any work is done; leaving its block without `charge()` gives the money back. The meter owns the
identity of a call and the encryption of its stored answer; it knows neither HTTP nor models.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from channels.errors import X402, CallConflict, NotReady, OutcomeUnknown, PaymentRefused
from channels.metering.channel import AMOUNT_LIMIT, Channel, Outcome, admit
from channels.metering.hold import Call, Checked, Hold, RefusedAfterPayment
from channels.metering.quote import Quote, Transfer, corrective_state
from channels.metering.refusals import REFUSALS, refusal
from channels.metering.store import Attempt, ChargeRecord, HoldRequest, StepResult, Store
from channels.protocol import Payment, Signer, Verifier, channel_id

STOCK_WAIT_S = 0.25
"""How long an unkeyed call waits for its turn on a busy channel, and a repeated key for its first run."""
POLL_S = 0.02
MAX_ANSWER_BYTES = 1 << 20


class Meter:
    """Holds and charges calls on one store.

    Args:
        store: makes the steps.
        signer: the mesh's receipt key; the secrets that protect call ids and stored answers are derived from it.
        chain_id: the ledger's chain.
        deposit: settles a deposit on the ledger and mirrors it into the store; None: deposits are refused.
        refund: pays a refund on the ledger and mirrors it into the store; None: refunds are refused.
        hold_ttl_ms: how long a hold outlives a replica that was killed.
        answer_ttl_ms: how long a charged answer can be fetched again with its key.
        recall: reads from SQL the record of a call whose answer is no longer kept; None: such records are not found.
    """

    def __init__(
        self,
        store: Store,
        signer: Signer,
        chain_id: int,
        deposit: Callable[[Payment], Awaitable[Transfer]] | None = None,
        refund: Callable[[Payment], Awaitable[Transfer]] | None = None,
        hold_ttl_ms: int = 6_000,
        answer_ttl_ms: int = 600_000,
        recall: Callable[[str], Awaitable[ChargeRecord | None]] | None = None,
    ) -> None:
        self._store = store
        self._verifier = Verifier(chain_id)
        self._chain_id = chain_id
        self._deposit, self._refund, self._recall = deposit, refund, recall
        self._identity = blake3(key=signer.derive("call identity"))
        self._cipher = AESGCM(signer.derive("stored answers"))
        self._hold_ttl_ms, self._answer_ttl_ms = hold_ttl_ms, answer_ttl_ms
        self._live: dict[str, Hold] = {}
        self._renewer: asyncio.Task[None] | None = None

    def digest(self, *parts: bytes) -> str:
        """A digest keyed with the mesh's key: patient data could be guessed from a plain hash."""
        total = self._identity.copy()
        for part in parts:
            total.update(len(part).to_bytes(8, "big"))
            total.update(part)  # apart from its length: joining the two would copy a large body
        return "0x" + total.hexdigest()

    @asynccontextmanager
    async def hold(self, checked: Checked, call: Call) -> AsyncIterator[Hold]:
        """Sets the quoted price aside for the block; refuses on entry a payment that does not cover it.

        Raises:
            PaymentRefused: the payment does not pay for this call.
            CallConflict: the key is running, was used for another request, or its answer is gone.
            NotReady: the store or the ledger cannot answer now.
            RefusedAfterPayment: one of these, although a deposit that came with the call or an earlier charge stands.
        """
        hold = await self._take(checked.payment, checked.quote, call)
        if hold.stored is None:
            self._live[hold.request.attempt.token] = hold
            if self._renewer is None or self._renewer.done():
                self._renewer = asyncio.create_task(self._renew())
        abandoned = False
        try:
            yield hold
        except asyncio.CancelledError:
            abandoned = not hold.request.attempt.keyed
            raise
        finally:
            self._live.pop(hold.request.attempt.token, None)
            if not hold.done:
                hold.done = True
                # Shielded: a cancelled call must still give its money back.
                await asyncio.shield(self._release(hold.request, abandoned))

    async def charge(self, hold: Hold, amount: int, body: str, answer: bytes) -> StepResult:
        """Charges a held call once, storing its receipt and answer in the same step.

        Args:
            hold: from `hold()`.
            amount: atomic units, at most what is held.
            body: the receipt's fixed part as JSON.
            answer: replayed if the same call comes again; not kept if it is longer than 1 MiB.

        Raises:
            OutcomeUnknown: the store's reply was lost; the hold is neither charged nor released by us.
            NotReady: the hold had ended and its money is part of other holds; nothing was charged.
            RefusedAfterPayment: another attempt was charged first, and its answer is no longer kept.
        """
        if not 0 <= amount <= hold.request.price:
            raise ValueError("a charge never exceeds its hold")
        encrypted = self._encrypted(hold.request.attempt.call_id, answer) if len(answer) <= MAX_ANSWER_BYTES else b""
        try:
            result = await self._store.charge(hold.request, amount, body, encrypted, self._answer_ttl_ms)
        except OutcomeUnknown:
            hold.done = True
            raise
        if result.outcome not in (Outcome.CHARGED, Outcome.REPLAYED):
            raise NotReady("hold_lost", "the call ran longer than its hold; it costs nothing, try again")
        hold.done, hold.result = True, result
        # If another attempt of the same call was charged first, its answer is the one to send. If the record is of this
        # very answer, only the store's first reply was lost, and an answer too large to be kept is still at hand.
        other = result.stored or result.record is None or result.record.body != body
        if result.outcome is Outcome.REPLAYED and other:
            await self._replay(hold)
        return result

    async def refund(self, checked: Checked) -> tuple[Transfer, StepResult]:
        """Gives a channel's unspent money back to its payer: all of it, or the amount that the payment names.

        The voucher's ceiling must be exactly what is charged: it proves that the payer knows the present state.

        Raises:
            PaymentRefused: the ceiling is another one; a corrective 402 gives the right one.
            CallConflict: calls are running.
        """
        payment = checked.payment
        channel = payment.voucher.channel_id
        present = await self._store.amounts(channel)
        if present.outcome is Outcome.UNKNOWN_CHANNEL:
            raise PaymentRefused(*REFUSALS[Outcome.UNKNOWN_CHANNEL])
        if present.held:
            raise CallConflict("in_progress", "calls of this channel are running: ask for the refund after them")
        if payment.voucher.max_claimable != present.charged:
            raise PaymentRefused(*REFUSALS[Outcome.MISMATCH], corrective_state(channel, present))
        if self._refund is None:
            raise PaymentRefused("refund_unsupported", "this mesh gives no refunds here")
        transfer = await self._refund(payment)
        return transfer, await self._store.amounts(channel)

    async def funded(self, checked: Checked) -> bool:
        """True if a payment's channel has money for one more call; False if only its deposit would bring some.

        Raises:
            PaymentRefused: there is no such channel, and no deposit comes with the payment.
            NotReady: the store cannot answer now.
        """
        present = await self._store.amounts(checked.payment.voucher.channel_id)
        if present.outcome is Outcome.UNKNOWN_CHANNEL:
            if checked.payment.deposit is None:
                raise PaymentRefused(*REFUSALS[Outcome.UNKNOWN_CHANNEL])
            return False
        return present.usable >= present.charged + checked.quote.amount

    def check(self, payment: Payment, quote: Quote) -> Checked:
        """Refuses what can be refused without the store: cheap checks first, the signature last."""
        quote.check(payment.config)
        voucher = payment.voucher
        if channel_id(self._chain_id, payment.config) != voucher.channel_id:
            raise PaymentRefused(X402 + "channel_id_mismatch", "channelId is not the digest of channelConfig")
        if not quote.accepted_by(payment.accepted):
            raise PaymentRefused("requirements_mismatch", "`accepted` is not what this route quotes: fetch its 402")
        if voucher.max_claimable >= AMOUNT_LIMIT:
            raise PaymentRefused(*REFUSALS[Outcome.EXCEEDS_BALANCE])
        if not self._verifier.voucher(voucher, payment.config):
            raise PaymentRefused(X402 + "voucher_signature", "the voucher is not signed by the channel's authorizer")
        return Checked(payment, quote)

    async def _take(self, payment: Payment, quote: Quote, call: Call) -> Hold:
        channel = payment.voucher.channel_id
        if call.key is None:
            call_id = "0x" + secrets.token_hex(32)
        else:
            call_id = self.digest(b"key", channel.encode(), call.key.encode())
        request = HoldRequest(
            attempt=Attempt(channel, call_id, secrets.token_hex(8), call.key is not None, call.digest),
            price=quote.amount,
            maximum=payment.voucher.max_claimable,
            signature=payment.voucher.signature,
            ttl_ms=self._hold_ttl_ms,
        )
        settled = await self._settle(payment, request) if payment.deposit else None
        try:
            result = await self._hold_in_turn(request)
        except asyncio.CancelledError:
            # The step may have been taken although its caller has gone: nothing else would give the hold back.
            await asyncio.shield(self._release(request))
            raise
        except NotReady as error:
            if settled is None:
                raise
            hold = Hold(request, StepResult(Outcome.NOT_READY, usable=settled.amount), settled)
            raise RefusedAfterPayment(error, hold) from error
        return await self._decide(request, result, settled)

    async def _hold_in_turn(self, request: HoldRequest, extra: int = 0, dry: bool = False) -> StepResult:
        """Takes the hold, waiting a moment for a call that is in the way.

        It polls, because that call may run in any replica and the store does not push; few calls ever wait.
        """
        deadline_s = time.monotonic() + STOCK_WAIT_S
        while True:
            result = await self._store.hold(request, extra, dry)
            if not _must_wait(request, result) or time.monotonic() >= deadline_s:
                return result
            await asyncio.sleep(POLL_S)

    async def _settle(self, payment: Payment, request: HoldRequest) -> Transfer | None:
        """Settles the deposit of a payment, unless the call would be refused even with it or is covered without it."""
        amount = payment.deposit.amount if payment.deposit else 0
        expected = await self._hold_in_turn(request, extra=amount, dry=True)
        if expected.outcome is Outcome.UNKNOWN_CHANNEL:
            # The cap is no hindrance: it is at least twice the largest price.
            outcome = admit(Channel(amount), request.price, request.maximum, request.attempt.keyed, request.price)
            expected = replace(expected, outcome=outcome)
        elif expected.outcome is Outcome.REPLAYED:
            return None
        elif expected.outcome is Outcome.ACCEPTED and request.maximum <= expected.usable:
            # The balance covers the ceiling. Covering the price is not enough: this client has signed for calls ahead.
            return None
        if expected.outcome is not Outcome.ACCEPTED:
            await self._decide(request, expected, None)
        if self._deposit is None:
            raise PaymentRefused(X402 + "deposit_payload", "this mesh takes no deposits here")
        return await self._deposit(payment)

    async def _decide(self, request: HoldRequest, result: StepResult, settled: Transfer | None) -> Hold:
        hold = Hold(request, result, settled)
        if result.outcome is Outcome.ACCEPTED:
            return hold
        if result.outcome is Outcome.REPLAYED:
            return await self._replay(hold)
        error = refusal(request.attempt.channel_id, result)
        if settled is not None:
            raise RefusedAfterPayment(error, hold) from error
        raise error

    async def _replay(self, hold: Hold) -> Hold:
        call_id = hold.request.attempt.call_id
        if hold.result.record is None and self._recall is not None:
            try:
                hold.result = replace(hold.result, record=await self._recall(call_id))
            except NotReady as error:
                if hold.settled is None:
                    raise
                raise RefusedAfterPayment(error, hold) from error
        encrypted, record = hold.result.stored, hold.result.record
        if encrypted and record:
            with suppress(InvalidTag):
                hold.stored = self._cipher.decrypt(encrypted[:12], encrypted[12:], record.call_id.encode())
                hold.done = True
                return hold
        gone = CallConflict("answer_expired", "this call was answered and charged; its answer is no longer kept")
        raise RefusedAfterPayment(gone, hold)

    def _encrypted(self, call_id: str, answer: bytes) -> bytes:
        nonce = os.urandom(12)
        return nonce + self._cipher.encrypt(nonce, answer, call_id.encode())

    async def _release(self, request: HoldRequest, abandoned: bool = False) -> None:
        # If the store cannot be reached the hold ends by itself.
        with suppress(NotReady):
            await self._store.release(request.attempt, abandoned)

    async def _renew(self) -> None:
        pause_s = self._hold_ttl_ms / 3_000
        while self._live:
            await asyncio.sleep(pause_s)
            now_s = time.monotonic()
            due = [hold for hold in self._live.values() if now_s - hold.renewed_s >= pause_s]
            for hold in due:
                hold.renewed_s = now_s
            # All at once: one after the other, the last of many would be renewed after it has ended.
            renewals = (self._store.renew(hold.request.attempt, self._hold_ttl_ms) for hold in due)
            await asyncio.gather(*renewals, return_exceptions=True)


def _must_wait(request: HoldRequest, result: StepResult) -> bool:
    """True if the refusal may pass: a running call is in the way."""
    busy = result.outcome is Outcome.MISMATCH and result.held > 0 and not request.attempt.keyed
    return busy or result.outcome is Outcome.IN_PROGRESS
