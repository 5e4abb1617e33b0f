"""`Meter`: one paid call, from its voucher to a hold, to exactly one charge or none.

`hold()` refuses before any work is done; leaving its block without `charge()` gives the money back. Owns the identity
of a call and the encryption of its stored answer; knows no HTTP and no model.
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

from channels.errors import X402, CallConflict, ChannelError, NotReady, OutcomeUnknown, PaymentRefused, TooManyAbandoned
from channels.metering.channel import AMOUNT_LIMIT, Channel, Outcome, admit
from channels.metering.hold import Call, Checked, Hold, RefusedAfterPayment
from channels.metering.quote import Quote, Transfer, corrective_state
from channels.metering.store import Attempt, ChargeRecord, HoldRequest, StepResult, Store
from channels.protocol import Payment, Signer, Verifier, channel_id

STOCK_WAIT_S = 0.25
"""How long an unkeyed call waits for its turn on a busy channel, and a repeated key for its first run."""
POLL_S = 0.02
ANSWER_LIMIT_BYTES = 1 << 20
REFUSALS = {
    Outcome.UNKNOWN_CHANNEL: (X402 + "channel_not_found", "no such channel here: open it with a deposit"),
    Outcome.MISMATCH: (X402 + "cumulative_amount_mismatch", "the ceiling does not pay for this call: sign a new one"),
    Outcome.EXCEEDS_BALANCE: (X402 + "cumulative_exceeds_balance", "the channel's balance is too low: top it up"),
    Outcome.WITHDRAWING: ("withdrawal_pending", "a withdrawal of this channel is pending: open another one"),
}


class Meter:
    """Holds and charges calls on one store.

    Args:
        store: where the steps are made.
        signer: the mesh's receipt key; call ids and stored answers are protected by secrets derived from it.
        chain_id: the ledger's chain.
        deposit: settles a deposit on the ledger and mirrors it into the store; None where none can be taken.
        refund: the same for a refund.
        recall: the record of a call whose answer is no longer kept, which SQL has; None where there is none.
        hold_ttl_ms: how long a hold outlives a replica that was killed.
        answer_ttl_ms: how long a charged answer can be fetched again with its key.
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
        """A keyed digest: a plain hash of patient data could be guessed from it, this one only with the mesh's key."""
        total = self._identity.copy()
        for part in parts:
            total.update(len(part).to_bytes(8, "big"))
            total.update(part)  # by itself: a body is large, and joined to its length it would be copied
        return "0x" + total.hexdigest()

    @asynccontextmanager
    async def hold(self, checked: Checked, call: Call) -> AsyncIterator[Hold]:
        """Sets what is quoted aside for the block; refuses, before it begins, a payment that does not cover it.

        Raises:
            PaymentRefused: the payment does not pay for this call.
            CallConflict: the key is running, was another request, or its answer is gone.
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
                await asyncio.shield(self._release(hold, abandoned))

    async def charge(self, hold: Hold, amount: int, body: str, answer: bytes) -> StepResult:
        """Charges a held call once, storing its receipt and answer in the same step.

        Args:
            hold: from `hold()`.
            amount: atomic units, at most what is held.
            body: the receipt's fixed part as JSON.
            answer: what to give if the same call is asked again; longer than 1 MiB is not kept.

        Raises:
            OutcomeUnknown: the store's reply was lost; the hold is neither charged nor released by us.
            NotReady: the hold had ended and its money is someone else's; nothing was charged.
            RefusedAfterPayment: another attempt was charged first, and its answer is no longer kept.
        """
        if not 0 <= amount <= hold.request.price:
            raise ValueError("a charge never exceeds its hold")
        call_id = hold.request.attempt.call_id
        nonce = os.urandom(12)
        kept = (
            nonce + self._cipher.encrypt(nonce, answer, call_id.encode()) if len(answer) <= ANSWER_LIMIT_BYTES else b""
        )
        try:
            said = await self._store.charge(hold.request, amount, body, kept, self._answer_ttl_ms)
        except OutcomeUnknown:
            hold.done = True
            raise
        if said.outcome not in (Outcome.CHARGED, Outcome.REPLAYED):
            raise NotReady("hold_lost", "the call ran longer than its hold; it costs nothing, try again")
        hold.done, hold.result = True, said
        # Another attempt of the same call was first: its answer is the one charged. Unless the record is of this very
        # answer: the store's first reply was lost, and what is too large to be kept is still at hand.
        if said.outcome is Outcome.REPLAYED and (said.stored or said.record is None or said.record.body != body):
            await self._replay(hold)
        return said

    async def refund(self, checked: Checked) -> tuple[Transfer, StepResult]:
        """Gives a channel's unspent money back to its payer: all of it, or the amount that the payment names.

        The voucher's ceiling is exactly what is charged: it proves that the payer knows the present state.

        Raises:
            PaymentRefused: the ceiling is another; a corrective 402 says which.
            CallConflict: calls are in flight.
        """
        payment = checked.payment
        channel = payment.voucher.channel_id
        attempt = Attempt(channel, "refund", secrets.token_hex(8), False, "")
        probe = HoldRequest(attempt, 0, payment.voucher.max_claimable, payment.voucher.signature)
        now = await self._store.hold(probe, dry=True)
        if now.outcome is Outcome.UNKNOWN_CHANNEL:
            raise PaymentRefused(*REFUSALS[Outcome.UNKNOWN_CHANNEL])
        if now.held:
            raise CallConflict("in_progress", "calls of this channel are running: ask for the refund after them")
        if payment.voucher.max_claimable != now.charged:
            raise PaymentRefused(*REFUSALS[Outcome.MISMATCH], corrective_state(channel, now))
        if self._refund is None:
            raise PaymentRefused("refund_unsupported", "this mesh gives no refunds here")
        moved = await self._refund(payment)
        return moved, await self._store.hold(probe, dry=True)

    def check(self, payment: Payment, quote: Quote) -> Checked:
        """Refuses what needs no state to be refused: cheap checks first, the signature last."""
        quote.check(payment.config)
        voucher = payment.voucher
        if channel_id(self._chain_id, payment.config) != voucher.channel_id:
            raise PaymentRefused(X402 + "channel_id_mismatch", "channelId is not the digest of channelConfig")
        if not quote.accepted_by(payment.accepted):
            raise PaymentRefused("requirements_mismatch", "`accepted` is not what this route quotes: fetch its 402")
        if voucher.max_claimable >= AMOUNT_LIMIT:
            raise PaymentRefused(*REFUSALS[Outcome.EXCEEDS_BALANCE])
        if not self._verifier.voucher(voucher, payment.config):
            raise PaymentRefused(X402 + "voucher_signature", "the voucher is not signed by the channel's authoriser")
        return Checked(payment, quote)

    async def _take(self, payment: Payment, quote: Quote, call: Call) -> Hold:
        channel = payment.voucher.channel_id
        if call.key is None:
            call_id = "0x" + secrets.token_hex(32)
        else:
            call_id = self.digest(b"key", channel.encode(), call.key.encode())
        attempt = Attempt(channel, call_id, secrets.token_hex(8), call.key is not None, call.digest)
        ask = HoldRequest(
            attempt, quote.amount, payment.voucher.max_claimable, payment.voucher.signature, self._hold_ttl_ms
        )
        settled = await self._settle(payment, ask) if payment.deposit else None
        try:
            said = await self._patiently(ask)
        except asyncio.CancelledError:
            # The step may have been taken although its caller has gone: nobody else would give the hold back.
            await asyncio.shield(self._release(Hold(ask, StepResult(Outcome.ACCEPTED))))
            raise
        except NotReady as error:
            if settled is None:
                raise
            hold = Hold(ask, StepResult(Outcome.NOT_READY, usable=settled.amount), settled)
            raise RefusedAfterPayment(error, hold) from error
        return await self._decide(ask, said, settled)

    async def _patiently(self, ask: HoldRequest, extra: int = 0, dry: bool = False) -> StepResult:
        said = await self._store.hold(ask, extra, dry)
        until = time.monotonic() + STOCK_WAIT_S
        while _waits(ask, said) and time.monotonic() < until:
            await asyncio.sleep(POLL_S)
            said = await self._store.hold(ask, extra, dry)
        return said

    async def _settle(self, payment: Payment, ask: HoldRequest) -> Transfer | None:
        """Settles the deposit of a payment, unless its call would be refused even so or is covered without it."""
        amount = payment.deposit.amount if payment.deposit else 0
        would = await self._patiently(ask, extra=amount, dry=True)
        if would.outcome is Outcome.UNKNOWN_CHANNEL:
            channel = Channel(balance=amount)
            would = replace(would, outcome=admit(channel, ask.price, ask.maximum, ask.attempt.keyed, ask.price))
        elif would.outcome is Outcome.REPLAYED or (would.outcome is Outcome.ACCEPTED and ask.maximum <= would.usable):
            # Covered by the present balance. Not if only the price is: this client has signed for other calls ahead.
            return None
        if would.outcome is not Outcome.ACCEPTED:
            await self._decide(ask, would, None)
        if self._deposit is None:
            raise PaymentRefused(X402 + "deposit_payload", "this mesh takes no deposits here")
        return await self._deposit(payment)

    async def _decide(self, ask: HoldRequest, said: StepResult, settled: Transfer | None) -> Hold:
        hold = Hold(ask, said, settled)
        if said.outcome is Outcome.ACCEPTED:
            return hold
        error: ChannelError
        if said.outcome is Outcome.REPLAYED:
            return await self._replay(hold)
        if said.outcome is Outcome.IN_PROGRESS:
            error = CallConflict("in_progress", "a call with this Idempotency-Key is running: ask again shortly")
        elif said.outcome is Outcome.OTHER_REQUEST:
            error = CallConflict("other_request", "this Idempotency-Key was used for another request: use a new one")
        elif said.outcome is Outcome.ABANDONED:
            text = "calls on this channel were hung up on too often: send an Idempotency-Key, or wait a minute"
            error = TooManyAbandoned("abandoned", text)
        elif said.outcome is Outcome.EXPOSURE:
            error = NotReady("exposure", "the channel owes as much as it may: it is being settled, retry shortly")
        else:
            code, message = REFUSALS[said.outcome]
            state = None
            if said.outcome is Outcome.MISMATCH and said.proof_maximum:
                state = corrective_state(ask.attempt.channel_id, said)
            error = PaymentRefused(code, message, state)
        if settled is not None:
            raise RefusedAfterPayment(error, hold) from error
        raise error

    async def _replay(self, hold: Hold) -> Hold:
        if hold.result.record is None and self._recall is not None:
            try:
                hold.result = replace(hold.result, record=await self._recall(hold.request.attempt.call_id))
            except NotReady as error:
                if hold.settled is None:
                    raise
                raise RefusedAfterPayment(error, hold) from error
        kept, record = hold.result.stored, hold.result.record
        if kept and record:
            with suppress(InvalidTag):
                hold.stored = self._cipher.decrypt(kept[:12], kept[12:], record.call_id.encode())
                hold.done = True
                return hold
        gone = CallConflict("answer_expired", "this call was answered and charged; its answer is no longer kept")
        raise RefusedAfterPayment(gone, hold)

    async def _release(self, hold: Hold, abandoned: bool = False) -> None:
        # If the store cannot be reached the hold ends by itself.
        with suppress(NotReady):
            await self._store.release(hold.request.attempt, abandoned)

    async def _renew(self) -> None:
        pause_s = self._hold_ttl_ms / 3_000
        while self._live:
            await asyncio.sleep(pause_s)
            now_s = time.monotonic()
            old = [hold for hold in self._live.values() if now_s - hold.renewed_s >= pause_s]
            for hold in old:
                hold.renewed_s = now_s
            # Together: one after the other, the last of many would be renewed after it has ended.
            renewals = (self._store.renew(hold.request.attempt, self._hold_ttl_ms) for hold in old)
            await asyncio.gather(*renewals, return_exceptions=True)


def _waits(ask: HoldRequest, said: StepResult) -> bool:
    busy = said.outcome is Outcome.MISMATCH and said.held > 0 and not ask.attempt.keyed
    return busy or said.outcome is Outcome.IN_PROGRESS
