"""`Treasury`: alone holds the ledger, the receiver's keys and the settler.

A deployment without an HTTP route, reached by handle for the rare deposit and settlement. It keeps three things going:
draining the store's journal into SQL, claiming when due, and reconciling the store before anything is served from it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from ray import serve

from channels.errors import ChannelError, LedgerUnavailable, NotReady
from channels.journal import LEASE_S, Journal, JournalChannel, StaleToken, Statement
from channels.ledger import LedgerChannel, LedgerUpdate
from channels.metering import ChannelSnapshot, ChargeRecord, ClockSkewMonitor, Transfer
from channels.protocol import Payment, Signer
from channels.redis_store import RedisStore, keys
from channels.settlement import Settlement, SettlePolicy, Settler, drain
from channels.sql import DatabaseUnavailable
from serving.cluster import HEAD_NODE
from serving.treasury.accounts import Accounts
from serving.treasury.integrity_check import IntegrityCheck
from serving.treasury.ledgers import opened
from serving.treasury.metrics import TreasuryMetrics
from serving.treasury.spec import TreasurySpec
from serving.treasury.transfers import ChannelTransfers

log = logging.getLogger("leben.treasury")
DRAIN_PAUSE_S = 0.25
RETRY_PAUSE_S = 1.0
METRICS_PAUSE_S = 5.0
RECONCILE_WAIT_S = 20.0
TOGETHER = 256
"""Channels that are written to the store at once; its connection sends them in one go."""
T = TypeVar("T")
Moved = dict[str, Any] | tuple[str, str]
"""What a move did, or (code, message) of its refusal: exceptions lose their code between processes."""


@serve.deployment(name="Treasury", ray_actor_options=HEAD_NODE)
class Treasury:
    """The deployment; one replica. Of several meshes on one ledger, one treasury works and the others stand by.

    It holds a lease; whoever takes over gets a higher token, and what the one before it still tries changes nothing.
    """

    def __init__(self, spec: TreasurySpec) -> None:
        self._store = RedisStore(spec.store_url.get_secret_value(), spec.exposure_cap, mesh=spec.mesh)
        self._journal = Journal.open(spec.ledger_url.get_secret_value())
        self._ledger = opened(spec.ledger_url.get_secret_value(), self._journal, spec.chain)
        receipt_key = bytes.fromhex(spec.receipt_key.get_secret_value())
        authorizer = Signer(bytes.fromhex(spec.authorizer_key.get_secret_value()))
        policy = SettlePolicy(spec.settle_interval_s, spec.settle_amount, spec.exposure_cap // 2)
        retired = [Signer(bytes.fromhex(key.get_secret_value())) for key in spec.retired_keys]
        self._settler = Settler(self._journal, self._ledger, authorizer, policy, time.time, retired)
        # Money moves one step at a time: SQL runs on this one thread, never on the event loop.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ledger")
        self._draining, self._settling = asyncio.Lock(), asyncio.Lock()
        self._progress = 0, 0
        self._reconciled = asyncio.Event()
        self._transfers = ChannelTransfers(self._store, self._ledger, self._journal, authorizer, self._sql, retired)
        self._accounts = Accounts(self._journal, self._ledger, Signer(receipt_key))
        self._holder = spec.holder
        self._token, self._renewed_s = 0, 0.0
        self._clocks = ClockSkewMonitor(self._store)
        self._metrics, self._told_s = TreasuryMetrics(spec.exposure_cap), 0.0
        self._check = IntegrityCheck(spec.ledger_url, ledger=spec.chain is None)
        self._keeper = asyncio.get_event_loop().create_task(self._keep())

    async def deposit(self, payment: Payment) -> Transfer | tuple[str, str]:
        """Settles the deposit of a payment and mirrors it; idempotent by its authorisation.

        Returns:
            What was moved, or (code, message) of the ledger's refusal: exceptions lose their code between processes.
        """
        return await self._shielded(self._deposit(payment))

    async def refund(self, payment: Payment) -> Transfer | tuple[str, str]:
        """Gives unspent money back to a channel's payer; its voucher's ceiling is what has been charged.

        Returns:
            What was moved, or (code, message) of a refusal.
        """
        return await self._shielded(self._refund(payment))

    async def _shielded(self, move: Coroutine[Any, Any, T]) -> T | tuple[str, str]:
        # A caller that hangs up must not leave money on the ledger that the store does not know of.
        try:
            return await asyncio.shield(asyncio.create_task(move))
        except DatabaseUnavailable as error:
            log.error("a payer's money could not be moved: %s", error)
            return "not_ready", "the ledger cannot be reached: repeat the same request shortly"
        except LedgerUnavailable as error:
            log.error("a payer's money could not be moved: %s (%s)", error, error.code)
            return "not_ready", "the ledger does not answer: the same request, repeated, moves money once"
        except (StaleToken, TimeoutError):
            return "not_ready", "the treasury is reconciling: repeat the same request shortly"
        except ChannelError as error:
            return error.code, error.message

    async def _deposit(self, payment: Payment) -> Transfer:
        await self._opened()
        return await self._transfers.deposit(payment, self._token)

    async def _refund(self, payment: Payment) -> Transfer:
        await self._opened()
        async with self._draining:
            await self._drain()
            return await self._transfers.refund(payment, self._token)

    async def _payout(self, owner: str, to: str, amount: int, nonce: int, signature: bytes) -> dict[str, Any]:
        done = await self._sql(lambda: self._ledger.payout(owner, to, amount, nonce, signature))
        left = await self._sql(lambda: self._ledger.earnings(owner))
        return {"transaction": done, "amount": str(amount), "available": str(left)}

    async def _initiate(self, channel: str, amount: int, nonce: int, signature: bytes) -> dict[str, Any]:
        await self._opened()
        return _withdrawn(await self._transfers.initiate(channel, amount, nonce, signature, self._token))

    async def _finalize(self, channel: str, nonce: int, signature: bytes) -> dict[str, Any]:
        await self._transfers.check_finalize(channel, nonce, signature)
        await self._fresh()
        # What is charged by now is claimed first: money that has left the channel cannot be claimed afterwards.
        if await self._sql(lambda: self._settler.owes(channel)):
            await self._settle()
        return _withdrawn(await self._transfers.finalize(channel, nonce, signature, self._token))

    async def _fresh(self) -> None:
        await self._opened()
        async with self._draining:
            await self._drain()

    async def _opened(self) -> None:
        async with asyncio.timeout(RECONCILE_WAIT_S):
            await self._reconciled.wait()

    async def settle(self) -> dict[str, Any]:
        """Drains, claims and splits everything that is charged by now: the sum claimed, the last root, the payouts."""
        await self._reconciled.wait()
        async with self._draining:
            await self._drain()
        done = await self._settle()
        payouts: dict[tuple[str, str, str], int] = {}
        for credit in (credit for step in done for credit in step.payouts):
            name = (credit.owner, credit.carrier, credit.dapp)
            payouts[name] = payouts.get(name, 0) + credit.amount
        rows = [{"owner": o, "carrier": c, "dapp": d, "amount": amount} for (o, c, d), amount in payouts.items()]
        root = done[-1].root if done else None
        return {
            "epochs": len(done),
            "claimed": sum(payouts.values()),
            "root": root,
            "payouts": rows,
        }

    async def progress(self) -> tuple[int, int]:
        """(channels settled, channels in all) of the settlement that runs or ran last."""
        return self._progress

    async def receipt(self, reader: str, call_id: str) -> dict[str, Any] | None:
        """See `Accounts.receipt`; drained first so that a call just answered is found."""
        await self._fresh()
        return await self._sql(lambda: self._accounts.receipt(reader, call_id))

    async def record(self, call_id: str) -> ChargeRecord | None:
        """A charged call, for a replica that was asked for it again after its answer was dropped."""
        return await self._sql(lambda: self._journal.record(call_id))

    async def channel(self, reader: str, channel: str) -> dict[str, Any] | None:
        """See `Accounts.channel`."""
        await self._fresh()
        return await self._sql(lambda: self._accounts.channel(reader, channel))

    async def epoch(self, reader: str, number: int) -> dict[str, Any] | None:
        """See `Accounts.epoch`."""
        return await self._sql(lambda: self._accounts.epoch(reader, number))

    async def statement(self, reader: str, owner: str, from_ms: int, to_ms: int, after: int) -> Statement | None:
        """See `Accounts.statement`."""
        await self._fresh()
        return await self._sql(lambda: self._accounts.statement(reader, owner, from_ms, to_ms, after))

    async def earnings(self, reader: str, owner: str) -> dict[str, Any] | None:
        """See `Accounts.earnings`."""
        return await self._sql(lambda: self._accounts.earnings(reader, owner))

    async def payout(self, owner: str, to: str, amount: int, nonce: int, signature: bytes) -> Moved:
        """Moves an owner's earnings to a wallet at its signed request, once a nonce."""
        return await self._shielded(self._payout(owner, to, amount, nonce, signature))

    async def initiate(self, channel: str, amount: int, nonce: int, signature: bytes) -> Moved:
        """Starts a payer's withdrawal: no call is taken from now on, and what is charged is claimed at once."""
        return await self._shielded(self._initiate(channel, amount, nonce, signature))

    async def finalize(self, channel: str, nonce: int, signature: bytes) -> Moved:
        """Ends a payer's withdrawal whose delay has passed: everything that was not charged goes back."""
        return await self._shielded(self._finalize(channel, nonce, signature))

    async def state(self, channel: str) -> LedgerChannel | None:
        """A channel as the ledger has it now, for the JSON-RPC views."""
        return await self._sql(lambda: self._ledger.channel(channel))

    async def ping(self) -> bool:
        """True once the store has been reconciled."""
        return self._reconciled.is_set()

    def check_health(self) -> None:
        """Fails if the keeper has ended, which it does only when a newer treasury has taken over."""
        if self._keeper.done():
            raise RuntimeError("this treasury has been replaced")

    async def _keep(self) -> None:
        while True:
            try:
                if not self._token:
                    taken = await self._sql(partial(self._journal.lease, self._holder))
                    self._token = taken or 0
                    await asyncio.sleep(0 if self._token else RETRY_PAUSE_S)
                    continue
                async with self._draining:
                    await self._renew()
                    if not self._reconciled.is_set():
                        await self._clocks.check_once()
                        await self._store.check()
                    if await self._store.begin_reconcile(self._token):
                        await self._reconcile()
                    elif not self._reconciled.is_set():
                        # Calls went on while no treasury ran: a refund to be resumed is checked against all of them.
                        await self._drain()
                        await self._refresh()
                        await self._transfers.resume(self._token)
                    self._reconciled.set()
                    # First: what is drained survives a loss of the store, also while the ledger does not answer.
                    moved = await self._drain()
                    await self._transfers.watch(self._token)
                if await self._sql(self._settler.due):
                    await self._settle()
                await self._tell()
                await asyncio.sleep(0 if moved else DRAIN_PAUSE_S)
            except StaleToken:
                log.error("a newer treasury has taken over; this one stands by")
                self._token = 0
                self._reconciled.clear()
            except NotReady as error:
                if error.code == "stale_treasury":  # another treasury has the store, and soon the lease
                    self._token = 0
                log.warning("no call is served until the treasury has the store: %s (%s)", error, error.code)
                self._reconciled.clear()
                await asyncio.sleep(RETRY_PAUSE_S)
            except DatabaseUnavailable as error:
                log.error("%s; what is charged waits in the store, and settlement goes on by itself", error)
                await asyncio.sleep(RETRY_PAUSE_S)
            except LedgerUnavailable as error:
                log.error("the ledger: %s (%s); calls are served up to the exposure cap", error, error.code)
                await asyncio.sleep(RETRY_PAUSE_S)
            except Exception:
                log.exception("settlement step failed; it is tried again")
                await asyncio.sleep(RETRY_PAUSE_S)

    async def _reconcile(self) -> None:
        """Raises a store that was restarted, emptied or replaced to what SQL and the ledger know, then opens it."""
        self._reconciled.clear()
        await self._store.check()  # what comes back may be another server, or one with other settings
        # The token is also the incarnation of every number that is issued from here on: without a new one, a number
        # that the lost memory had given to a receipt would be given to another.
        self._token = await self._sql(self._retake)
        await self._store.begin_reconcile(self._token)
        await self._drain()
        await self._each(self._restore)
        await self._refresh()
        await self._transfers.resume(self._token)
        drained = await self._sql(lambda: [self._journal.drained(bucket) for bucket in range(keys.BUCKETS)])
        # An old treasury that wakes here, after a flush, must not open the store from what it read before.
        await self._sql(partial(self._journal.check, self._token))
        await self._store.open_for_service(self._token, drained)

    async def _renew(self) -> None:
        if time.monotonic() - self._renewed_s > LEASE_S / 3:
            await self._sql(lambda: self._journal.renew(self._token))
            self._renewed_s = time.monotonic()

    async def _tell(self) -> None:
        if time.monotonic() - self._told_s > METRICS_PAUSE_S:
            self._told_s = time.monotonic()
            figures = await self._sql(self._settler.figures)
            self._metrics.tell(*figures, self._check.sound, await self._clocks.skew_s())
        self._check.poll()

    async def _restore(self, channel: JournalChannel) -> None:
        calls = await self._sql(partial(self._journal.charged_keys, channel.channel_id))
        proof = (channel.proof_maximum, channel.proof_signature)
        await self._store.restore(
            ChannelSnapshot(channel.channel_id, channel.charged, channel.seq, *proof, dict(calls)), self._token
        )

    async def _refresh(self) -> None:
        await self._each(lambda channel: self._transfers.mirror(channel.channel_id, self._token))

    async def _each(self, step: Callable[[JournalChannel], Awaitable[None]]) -> None:
        """A step for every channel, many at once.

        The lease is kept up meanwhile: with many channels this takes longer than one lasts, and two treasuries that
        took it from each other in turn would never come to an end.
        """
        channels = await self._sql(lambda: list(self._journal.channels()))
        for at in range(0, len(channels), TOGETHER):
            done = await asyncio.gather(*map(step, channels[at : at + TOGETHER]), return_exceptions=True)
            for error in filter(None, done):  # all of them have ended: none goes on after another has failed
                raise error
            await self._renew()

    def _retake(self) -> int:
        """A newer token, as long as this treasury is the one in charge: a replaced one stays replaced."""
        self._journal.check(self._token)
        return self._journal.acquire(self._holder)

    async def _drain(self) -> int:
        return await drain(self._store, self._journal, self._token, sql=self._sql)

    async def _settle(self) -> list[Settlement]:
        """Settles until nothing is left; one step is one epoch with one receiver and a bounded number of channels."""
        done: list[Settlement] = []
        async with self._settling:
            self._progress = 0, (await self._sql(self._settler.waiting)).channels
            while (step := await self._sql(lambda: self._settler.settle(self._token))).epoch is not None:
                log.info("epoch %s claimed %s", step.epoch, step.claimed)
                done.append(step)
                for name in step.channels:
                    await self._transfers.mirror(name, self._token)
                self._progress = self._progress[0] + len(step.channels), self._progress[1]
                await self._renew()
        return done

    async def _sql(self, step: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, step)


def _withdrawn(done: LedgerUpdate) -> dict[str, Any]:
    state = done.channel
    return {"transaction": done.transaction, "balance": str(state.balance), "claimed": str(state.total_claimed)}
