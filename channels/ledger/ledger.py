"""`Ledger`: where money really is, whatever engine keeps it; the life of a channel from deposit to payout.

Owns the protocol, its values, and the digests of requests that x402 leaves to `msg.sender`. Every operation may be
repeated after a lost reply without moving money twice. Knows no store and no receipt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from channels.protocol import ChannelConfig, Deposit, Voucher, payout_digest, split_payout_digest

DELAY_MIN_S, DELAY_MAX_S = 900, 2_592_000
"""Bounds of a channel's withdraw delay: x402's contract refuses others."""


@dataclass(frozen=True, slots=True)
class Terms:
    """Which ledger this is and what money it keeps; signatures are valid under exactly these."""

    chain_id: int
    asset: str
    asset_name: str
    asset_version: str
    decimals: int
    split: str = ""
    """Address of the contract that pays owners; empty on a ledger without contracts."""

    @property
    def network(self) -> str:
        """CAIP-2 name of the chain."""
        return f"eip155:{self.chain_id}"

    def payout_digest(self, owner: str, to: str, amount: int, nonce: int) -> bytes:
        """What an owner signs to take out earnings on this ledger."""
        if self.split:
            return split_payout_digest(self.chain_id, self.split, self.asset, owner, to, amount, nonce)
        return payout_digest(self.chain_id, owner, to, amount, nonce)


@dataclass(frozen=True, slots=True)
class LedgerChannel:
    """A channel on the ledger, in atomic units.

    `balance` is what was deposited less what was refunded or withdrawn; claims do not lower it (x402), so what is left
    is `balance - total_claimed`. `withdraw_amount` is 0 while no withdrawal is pending. `version` only grows.
    """

    channel_id: str
    config: ChannelConfig
    balance: int = 0
    total_claimed: int = 0
    withdraw_amount: int = 0
    withdraw_requested_at_s: int = 0
    refund_nonce: int = 0
    version: int = 0

    @property
    def left(self) -> int:
        """What has been neither claimed nor given back."""
        return self.balance - self.total_claimed


@dataclass(frozen=True, slots=True)
class ClaimRow:
    """One channel of a claim: bring its claimed total up to `total_claimed`, as `voucher` allows."""

    config: ChannelConfig
    voucher: Voucher
    total_claimed: int


@dataclass(frozen=True, slots=True)
class Credit:
    """What a settlement pays one owner as one carrier of one DApp, in atomic units."""

    owner: str
    carrier: str
    dapp: str
    amount: int


@dataclass(frozen=True, slots=True)
class LedgerUpdate:
    """A change that is on the ledger, and the channel now."""

    transaction: str
    channel: LedgerChannel


@dataclass(frozen=True, slots=True)
class Claimed:
    """A claim that is on the ledger: what each row moved, in order; 0 for a row that was claimed before."""

    transaction: str
    moved: tuple[int, ...]


class Ledger(Protocol):
    """The operations. `LedgerError` means refused and nothing moved; whatever else is raised is unknown: ask again."""

    @property
    def terms(self) -> Terms:
        """Which ledger this is."""

    def close(self) -> None:
        """Closes what is open; the ledger is not used afterwards."""

    def wallet(self, address: str) -> int:
        """What an address holds outside channels."""

    def deposit(self, config: ChannelConfig, deposit: Deposit) -> LedgerUpdate:
        """Moves an authorised amount from the payer's wallet into the channel; once an authorisation."""

    def channel(self, channel_id: str) -> LedgerChannel | None:
        """A channel now, or None if nothing was ever deposited."""

    def withdrawing(self) -> list[LedgerChannel]:
        """Channels whose payer is withdrawing: no call may be taken on them, and what they owe is due at once."""

    def changed(self) -> list[LedgerChannel]:
        """Channels that somebody else than this object has changed since it was last asked, as they are now."""

    def simulate_claim(self, rows: Sequence[ClaimRow]) -> None:
        """Raises what `claim` would raise for these rows, and moves nothing."""

    def claim(self, rows: Sequence[ClaimRow], authorizer_signature: bytes) -> Claimed:
        """Moves what vouchers allow from channels to their receivers: all rows or none."""

    def split(self, epoch: int, root: str, receiver: str, credits: Sequence[Credit]) -> str:
        """Moves claimed money from a receiver to owners and publishes the epoch's root; once an epoch."""

    def root(self, epoch: int, receiver: str) -> str | None:
        """The Merkle root published with an epoch."""

    def payouts(self, epoch: int, receiver: str | None = None) -> list[Credit]:
        """What an epoch paid, to whom, for what."""

    def earnings(self, owner: str) -> int:
        """What an owner has earned and not yet taken out."""

    def earned(self, owner: str) -> list[Credit]:
        """Everything an owner ever earned, by carrier and DApp."""

    def earned_by_epoch(self, owner: str, count: int = 1_000) -> list[tuple[int, Credit]]:
        """(epoch, what it paid an owner), the newest first, `count` at most."""

    def payout(self, owner: str, to: str, amount: int, nonce: int, signature: bytes) -> str:
        """Moves earnings to a wallet at the owner's signed request; once a nonce."""

    def refund(self, config: ChannelConfig, amount: int, nonce: int, signature: bytes) -> LedgerUpdate:
        """Gives unclaimed money back to the payer's wallet, signed by the receiver's authoriser; once a nonce."""

    def initiate_withdraw(self, config: ChannelConfig, amount: int, nonce: int, signature: bytes) -> LedgerUpdate:
        """Starts the payer's withdrawal: its delay is the receiver's time to claim."""

    def finalize_withdraw(self, config: ChannelConfig, nonce: int, signature: bytes) -> LedgerUpdate:
        """Gives the payer what is left of a withdrawal whose delay has passed."""
