"""Drains the store's journal into SQL, claims what receipts say on the ledger, pays owners and publishes the root.

Each step reads, has its effect outside, and marks it. Each effect is harmless when repeated, so another treasury goes
on where one crashed. A claim is exactly what receipts say, never more than a voucher or the ledger allows.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from channels.errors import LedgerError
from channels.journal import Fields, Journal, JournalChannel, JournalError
from channels.ledger import ClaimRow, Credit, Ledger
from channels.protocol import Signer, Voucher, claim_digest
from channels.settlement.epoch import ClaimSelection, Epoch, Totals
from channels.settlement.epochs import Epochs

logger = logging.getLogger(__name__)
CLOCK_SLACK_S = 60.0
"""How far the clocks of store and ledger may differ."""


T = TypeVar("T")


class SqlThread(Protocol):
    """Runs a blocking step on the thread for SQL."""

    def __call__(self, step: Callable[[], T], /) -> Awaitable[T]:
        """The step's result."""


class JournalSource(Protocol):
    """Where charges are journaled first."""

    async def read_journal(self, bucket: int, after: str, count: int) -> list[tuple[str, dict[str, str]]]:
        """Up to `count` entries behind stream id `after`, in order."""

    async def trim_journal(self, bucket: int, upto: str) -> None:
        """Deletes entries up to and including `upto`."""


@dataclass(frozen=True, slots=True)
class SettlePolicy:
    """Says when a settlement is due: by the age of the oldest charge, the waiting sum, or one channel's part of it.

    Amounts are atomic units; `rows` is the maximum of channels in one claim, `receipts` of one channel's receipts in an
    epoch.
    """

    interval_s: float = 3_600.0
    amount: int = 10_000_000
    exposure: int = 5_000_000
    rows: int = 100
    receipts: int = 2_000

    def reason(self, totals: Totals, now_s: float) -> str | None:
        """Why a settlement is due at `now_s`, or None."""
        if totals.amount == 0:
            return None
        if totals.largest >= self.exposure:
            return "exposure"
        if totals.amount >= self.amount:
            return "amount"
        if totals.oldest_ms is None:
            return None
        # A charge from the future was made before the clock stepped back: it must not wait until time has caught up.
        age_s = now_s - totals.oldest_ms / 1000
        return None if -CLOCK_SLACK_S <= age_s < self.interval_s else "interval"


@dataclass(frozen=True, slots=True)
class Settlement:
    """The outcome of one settlement; `epoch` is None and `claimed` 0 if nothing was to be settled."""

    epoch: int | None = None
    claimed: int = 0
    root: str | None = None
    payouts: tuple[Credit, ...] = ()
    quarantined: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()


async def drain(
    source: JournalSource,
    journal: Journal,
    token: int,
    buckets: int = 64,
    count: int = 512,
    sql: SqlThread = asyncio.to_thread,
) -> int:
    """Copies new journal entries into SQL, bucket by bucket in order; returns how many were new.

    An entry that leaves a gap or contradicts a stored one becomes a dead letter with an alarm, for a person to look
    at. The entries behind it go on: one bad entry must not keep everybody's charges from being settled.

    Raises:
        StaleToken: another treasury has taken over.
        DatabaseUnavailable: nothing is lost: entries that are not stored stay in the store.
    """
    fresh = 0
    positions = await sql(journal.positions)
    for bucket in range(buckets):
        while entries := await source.read_journal(bucket, positions.get(bucket, "0-0"), count):
            fresh += await sql(partial(_store, journal, bucket, entries, token))
            positions[bucket] = entries[-1][0]
            # Only now: an entry trimmed before it is committed is a charge that nobody has.
            await source.trim_journal(bucket, positions[bucket])
    return fresh


def _store(journal: Journal, bucket: int, entries: Sequence[tuple[str, Fields]], token: int) -> int:
    try:
        return journal.append(bucket, entries, token)
    except JournalError as error:
        if len(entries) > 1:
            return sum(_store(journal, bucket, [entry], token) for entry in entries)
        journal.add_dead_letter(bucket, entries[0], error.code, token)
        logger.error("ALARM: entry %s of bucket %d is set aside: %s", entries[0][0], bucket, error.code)
        return 0


class Settler:
    """Settles one journal on one ledger.

    Args:
        journal: the durable copy of charges.
        ledger: where channels are claimed and owners paid.
        authorizer: signs claims; the `receiverAuthorizer` of our channels.
        policy: says when a settlement is due.
        now: seconds since 1970.
        retired: earlier authorizers, whose channels are still to be claimed.
    """

    def __init__(
        self,
        journal: Journal,
        ledger: Ledger,
        authorizer: Signer,
        policy: SettlePolicy,
        now: Callable[[], float],
        retired: Sequence[Signer] = (),
    ) -> None:
        self._journal, self.epochs, self._ledger = journal, Epochs(journal), ledger
        self._authorizer, self._policy, self._now = authorizer, policy, now
        self._authorizers: dict[str, Signer] = {str(signer.address): signer for signer in (*retired, authorizer)}

    def due(self) -> str | None:
        """Why a settlement is due: exposure, amount, interval, withdrawal or a retired key; None if it is not."""
        if self.epochs.pending() is not None:
            return "pending"
        reason = self._policy.reason(self.epochs.unsettled(), self._now())
        if reason is None and self.epochs.owe([channel.channel_id for channel in self._ledger.withdrawing()]):
            return "withdrawal"
        # Channels of a retired key are claimed at once, so that the key can be deleted.
        if reason is None and self.epochs.owe_others(self._authorizer.address):
            return "retired"
        return reason

    def owes(self, channel_id: str) -> bool:
        """True if a channel owes something that can be settled."""
        return self.epochs.owe([channel_id])

    def waiting(self) -> Totals:
        """The sums that wait to be settled."""
        return self.epochs.unsettled()

    def settle(self, token: int) -> Settlement:
        """Finishes a pending epoch or, if there is none, settles what waits; blocking.

        Args:
            token: the treasury's fencing token.

        Raises:
            StaleToken: another treasury has taken over.
            LedgerError: the ledger refused what its simulation had accepted; the epoch stays pending.
        """
        pending = self.epochs.pending()
        if pending is not None:
            try:
                return self._finish(pending, token, ())
            except _ClaimRefused as refused:
                self._give_up(pending, refused, token)
        selections, quarantined = self._select_claims(token)
        while not selections and (more := self._select_claims(token)) != ([], ()):
            selections, quarantined = more[0], quarantined + more[1]
        if not selections:
            return Settlement(quarantined=quarantined)
        epoch = self.epochs.open(token, selections, self._ledger.terms.chain_id)
        try:
            return self._finish(epoch, token, quarantined)
        except _ClaimRefused as refused:
            self._give_up(epoch, refused, token)
            raise

    def _finish(self, epoch: Epoch, token: int, quarantined: tuple[str, ...]) -> Settlement:
        batch = [(row.voucher.channel_id, row.voucher.max_claimable, row.total_claimed) for row in epoch.rows]
        signer = self._authorizers.get(epoch.rows[0].config.receiver_authorizer, self._authorizer)
        signature = signer.sign(claim_digest(self._ledger.terms.chain_id, batch))
        self._journal.check(token)
        try:
            claimed = self._ledger.claim(epoch.rows, signature)
        except LedgerError as error:
            raise _ClaimRefused(error.code, error.message) from error
        self._journal.check(token)
        paid = self._ledger.split(epoch.number, epoch.root, epoch.receiver, epoch.credits)
        chain_id = self._ledger.terms.chain_id
        self.epochs.close(epoch.number, [claimed.transaction, paid], int(self._now() * 1000), token, chain_id)
        channels = tuple(row.voucher.channel_id for row in epoch.rows)
        return Settlement(epoch.number, epoch.claimed, epoch.root, epoch.credits, quarantined, channels)

    def _give_up(self, epoch: Epoch, refused: LedgerError, token: int) -> None:
        """Frees the receipts of an epoch whose rows the ledger refuses; raises `refused` if the rows are fine.

        Rows that were claimed before are no-ops and never refused: a refusal of the rows themselves proves that
        nothing of this epoch has happened. Any other refusal (of our key, say) proves nothing, and freeing receipts
        that were paid would pay them twice.
        """
        try:
            self._ledger.simulate_claim(epoch.rows)
        except LedgerError:
            logger.error("epoch %d abandoned: %s", epoch.number, refused.code)
            self.epochs.abandon(epoch.number, token)
        else:
            raise refused

    def _select_claims(self, token: int) -> tuple[list[ClaimSelection], tuple[str, ...]]:
        selections: list[ClaimSelection] = []
        bad: list[tuple[str, str]] = []
        # One receiver an epoch: its money is split from that account alone.
        for channel in self.epochs.next_channels(self._policy.rows):
            selection, fault = self._select_claim(channel)
            selections += [selection] if selection else []
            bad += [(channel.channel_id, fault)] if fault else []
        sound, refused = self._simulate(selections)
        bad += refused
        for identity, code in bad:
            logger.error("channel %s quarantined: %s", identity, code)
            self.epochs.quarantine(identity, code, token)
        return sound, tuple(identity for identity, _ in bad)

    def _select_claim(self, channel: JournalChannel) -> tuple[ClaimSelection | None, str]:
        state = self._ledger.channel(channel.channel_id)
        if state is None:
            return None, "channel_not_found"
        if channel.config.receiver_authorizer not in self._authorizers:
            return None, "receiver_authorizer_mismatch"
        ceiling = min(channel.proof_maximum, state.balance)
        waiting = self.epochs.waiting(channel.channel_id, self._policy.receipts)
        covered = [receipt for receipt in waiting if receipt.after <= ceiling]
        # Receipts above the voucher or the balance stay unclaimed: claiming them again would never end.
        fault = "" if len(covered) == len(waiting) else "not_covered"
        if not covered:
            return None, fault or "no_receipts"
        voucher = Voucher(channel.channel_id, channel.proof_maximum, channel.proof_signature)
        return ClaimSelection(channel.config, voucher, covered[-1].after, covered[-1].seq), fault

    def _simulate(self, selections: Sequence[ClaimSelection]) -> tuple[list[ClaimSelection], list[tuple[str, str]]]:
        """Halves a refused batch until each bad row is alone: one bad row must not keep the others unpaid."""
        if not selections:
            return [], []
        try:
            self._ledger.simulate_claim([ClaimRow(part.config, part.voucher, part.total) for part in selections])
        except LedgerError as error:
            if len(selections) == 1:
                return [], [(selections[0].voucher.channel_id, error.code)]
            middle = len(selections) // 2
            left, bad_left = self._simulate(selections[:middle])
            right, bad_right = self._simulate(selections[middle:])
            return left + right, bad_left + bad_right
        return list(selections), []


class _ClaimRefused(LedgerError):
    """The ledger refused a claim, so nothing of its epoch has happened."""
