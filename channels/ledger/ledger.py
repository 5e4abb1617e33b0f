"""Defines the ledger: the life of a channel from deposit to payout, whatever engine keeps the money.

Each operation may be repeated after a lost reply without moving money twice.
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
    """The ledger's chain and asset; signatures are valid under exactly these."""

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
        """The digest that an owner signs to take out earnings on this ledger."""
        if self.split:
            return split_payout_digest(self.chain_id, self.split, self.asset, owner, to, amount, nonce)
        return payout_digest(self.chain_id, owner, to, amount, nonce)


@dataclass(frozen=True, slots=True)
class LedgerChannel:
    """A channel on the ledger, in atomic units.

    `balance` is deposits less refunds and withdrawals; claims do not lower it (x402). What is left is
    `balance - total_claimed`.
    `withdraw_amount` is 0 while no withdrawal is pending. `version` only grows.
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
        """The amount neither claimed nor given back."""
        return self.balance - self.total_claimed


@dataclass(frozen=True, slots=True)
class ClaimRow:
    """One channel of a claim: bring its claimed total up to `total_claimed`, as `voucher` allows."""

    config: ChannelConfig
    voucher: Voucher
    total_claimed: int


@dataclass(frozen=True, slots=True)
class Credit:
    """A settlement's payment to one owner as one carrier of one DApp, in atomic units."""

    owner: str
    carrier: str
    dapp: str
    amount: int


@dataclass(frozen=True, slots=True)
class LedgerUpdate:
    """A change on the ledger, and the channel after it."""

    transaction: str
    channel: LedgerChannel


@dataclass(frozen=True, slots=True)
class Claimed:
    """A claim on the ledger: the amount that each row moved, in order; 0 for a row claimed before."""

    transaction: str
    moved: tuple[int, ...]


class Ledger(Protocol):
    """The operations. After a `LedgerError` nothing has moved; after any other error the outcome is unknown: repeat."""

    @property
    def terms(self) -> Terms:
        """The ledger's chain and asset."""

    def close(self) -> None:
        """Closes what is open; the ledger is not used afterwards."""

    def wallet(self, address: str) -> int:
        """The amount that an address holds outside channels."""

    def deposit(self, config: ChannelConfig, deposit: Deposit) -> LedgerUpdate:
        """Moves an authorized amount from the payer's wallet into the channel, once per authorization."""

    def channel(self, channel_id: str) -> LedgerChannel | None:
        """A channel now, or None if nothing was ever deposited."""

    def withdrawing(self) -> list[LedgerChannel]:
        """Channels whose payer is withdrawing: they take no call, and what they owe is due at once."""

    def changed(self) -> list[LedgerChannel]:
        """Channels that others have changed since the last call, in their present state."""

    def simulate_claim(self, rows: Sequence[ClaimRow]) -> None:
        """Raises what `claim` would raise for these rows, and moves nothing."""

    def claim(self, rows: Sequence[ClaimRow], authorizer_signature: bytes) -> Claimed:
        """Moves what vouchers allow from channels to their receivers: all rows or none."""

    def split(self, epoch: int, root: str, receiver: str, credits: Sequence[Credit]) -> str:
        """Moves claimed money from a receiver to owners and publishes the epoch's root, once per epoch."""

    def root(self, epoch: int, receiver: str) -> str | None:
        """The Merkle root published with an epoch."""

    def payouts(self, epoch: int, receiver: str | None = None) -> list[Credit]:
        """The credits of an epoch."""

    def earnings(self, owner: str) -> int:
        """The amount that an owner has earned and not yet taken out."""

    def earned(self, owner: str) -> list[Credit]:
        """Everything an owner ever earned, by carrier and DApp."""

    def earned_by_epoch(self, owner: str, count: int = 1_000) -> list[tuple[int, Credit]]:
        """(epoch, credit) of an owner, the newest first, at most `count`."""

    def payout(self, owner: str, to: str, amount: int, nonce: int, signature: bytes) -> str:
        """Moves earnings to a wallet at the owner's signed request, once per nonce."""

    def refund(self, config: ChannelConfig, amount: int, nonce: int, signature: bytes) -> LedgerUpdate:
        """Gives unclaimed money back to the payer's wallet, signed by the receiver's authorizer, once per nonce."""

    def initiate_withdraw(self, config: ChannelConfig, amount: int, nonce: int, signature: bytes) -> LedgerUpdate:
        """Starts the payer's withdrawal: its delay is the receiver's time to claim."""

    def finalize_withdraw(self, config: ChannelConfig, nonce: int, signature: bytes) -> LedgerUpdate:
        """Gives the payer what is left of a withdrawal whose delay has passed."""
