"""Settles channels on a chain: x402's settlement contract keeps them, our `Split` contract pays owners.

The chain is the only book of money: nothing is added up here. Deposits count when confirmed; claims and withdrawals
count from the newest block. Before a transaction is sent, the rules of `channels.ledger` are checked on the chain's
state, so that refusals have the same codes as on the SQL ledger, and its gas is estimated, so that a refusal costs
none. Each operation first checks whether it is done already.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from eth_utils import is_hex_address, to_checksum_address

from channels.errors import LedgerError
from channels.evm.chain import Chain, Reverted, config_tuple, first_with
from channels.evm.configs import Configs
from channels.evm.deposits import Deposits
from channels.evm.events import Follower
from channels.evm.owners import Owners
from channels.evm.sender import Sender
from channels.evm.state import States
from channels.evm.transactions import Transactions
from channels.ledger import (
    Claimed,
    ClaimRow,
    Credit,
    Ledger,
    LedgerChannel,
    LedgerUpdate,
    Terms,
    check_config,
    claimable,
    refunded,
    refused,
)
from channels.protocol import ChannelConfig, Deposit, Verifier, channel_id, claim_digest, signed_by


class EvmLedger:
    """The ledger on one chain, for one receiver.

    Args:
        chain: checked.
        sender: the receiver's account: it pays the gas, and its money is split.
        configs: of the channels; the ledger adds those that it opens.
        clock: seconds since 1970.
        poll_s: least seconds between two reads of events.
    """

    def __init__(
        self,
        chain: Chain,
        sender: Sender,
        configs: Configs,
        clock: Callable[[], float] = time.time,
        poll_s: float = 1.0,
    ) -> None:
        self.configs = configs
        self._chain, self._sender, self._poll_s = chain, sender, poll_s
        self._terms = chain.facts.terms
        self._verifier = Verifier(self._terms.chain_id)
        self._opened: set[str] = set()
        self._states, self._follower = States(chain), Follower(chain, configs)
        self._transactions = Transactions(chain, sender)
        self._deposits = Deposits(chain, self._transactions, self._states, self.wallet, clock)
        self._looked_s = float("-inf")
        self._touched: set[str] = set()
        self._leaving: set[str] = set()
        self._owners = Owners(chain, sender)

    @property
    def terms(self) -> Terms:
        """The ledger's chain and asset."""
        return self._terms

    def close(self) -> None:
        """Nothing is held open."""

    def wallet(self, address: str) -> int:
        """The amount that an address holds outside channels."""
        return int(self._chain.read(self._chain.token.functions.balanceOf(_address(address))))

    def channel(self, channel_id: str) -> LedgerChannel | None:
        """A channel now, or None if nothing was ever deposited."""
        config = self.configs.get(channel_id)
        if config is None:
            return None
        state = self._states.now(channel_id, config)
        if state.withdraw_amount:
            self._leaving.add(channel_id)  # its announcement may be older than the events that are read
        return state if self._exists(state) else None

    def withdrawing(self) -> list[LedgerChannel]:
        """Channels whose payer is withdrawing, by the newest block: a warning needs no confirmation."""
        self._look()
        states = [state for name in sorted(self._leaving) if (state := self.channel(name)) is not None]
        pending = [state for state in states if state.withdraw_amount]
        self._leaving = {state.channel_id for state in pending}
        return pending

    def changed(self) -> list[LedgerChannel]:
        """Channels that have changed, or changed back by a reorganisation, since the last call."""
        self._look()
        states = [state for name in sorted(self._touched) if (state := self.channel(name)) is not None]
        self._touched.clear()
        return states

    def deposit(self, config: ChannelConfig, deposit: Deposit) -> LedgerUpdate:
        """Moves an authorized amount from the payer's wallet into the channel, once per authorization."""
        check_config(config, self._terms)
        done = self._deposits.make(config, deposit)
        name = self.configs.add(config)
        self._opened.add(name)
        return LedgerUpdate(done, self._states.now(name, config))

    def simulate_claim(self, rows: Sequence[ClaimRow]) -> None:
        """Raises what `claim` would raise for these rows, and moves nothing."""
        self._check_rows(rows)
        call = self._chain.escrow.functions.claim(claim_rows(rows))
        authorizer = rows[0].config.receiver_authorizer
        try:
            gas = self._chain.gas(call, authorizer)
        except Reverted as error:
            self._claimable(rows)
            raise refused("claim_simulation_failed", f"the chain refuses the claim: {error}") from error
        # The settler halves a batch that takes too much gas.
        if gas > self._chain.facts.claim_gas:
            raise LedgerError("claim_gas", "the claim takes more gas than chain.json allows")

    def claim(self, rows: Sequence[ClaimRow], authorizer_signature: bytes) -> Claimed:
        """Moves what vouchers allow from channels to their receivers: all rows or none."""
        self._check_rows(rows)
        batch = [(row.voucher.channel_id, row.voucher.max_claimable, row.total_claimed) for row in rows]
        authorizers = {row.config.receiver_authorizer for row in rows}
        digest = claim_digest(self._terms.chain_id, batch)
        if len(authorizers) != 1 or not signed_by(digest, authorizer_signature, rows[0].config.receiver_authorizer):
            raise refused("authorizer_address_mismatch", "the claim is not signed by the receivers' authorizer")
        planned = self._claimable(rows)
        moved = tuple(amount for _, amount in planned)
        if not any(moved):
            return Claimed(self._claimed(rows[0]), moved)
        try:
            done = self._transactions.send(
                self._chain.escrow.functions.claimWithSignature(claim_rows(rows), authorizer_signature)
            )
        except Reverted as error:
            raise refused("claim_transaction_failed", f"the chain refuses the claim: {error}") from error
        return Claimed(done, moved)

    def refund(self, config: ChannelConfig, amount: int, nonce: int, signature: bytes) -> LedgerUpdate:
        """Gives unclaimed money back to the payer's wallet, signed by the receiver's authorizer, once per nonce."""
        name = channel_id(self._terms.chain_id, config)
        refunded(self._known(config), amount, nonce, signature, self._terms.chain_id)
        call = self._chain.escrow.functions.refundWithSignature(config_tuple(config), amount, nonce, signature)
        try:
            done = self._transactions.send(call)
        except Reverted as error:
            raise refused("refund_transaction_failed", f"the chain refuses the refund: {error}") from error
        return LedgerUpdate(done, self._states.now(name, config))

    def initiate_withdraw(self, config: ChannelConfig, amount: int, nonce: int, signature: bytes) -> LedgerUpdate:
        """Refused: on a chain the payer alone can start a withdrawal, and needs nobody for it."""
        raise _own_transaction()

    def finalize_withdraw(self, config: ChannelConfig, nonce: int, signature: bytes) -> LedgerUpdate:
        """Refused, as `initiate_withdraw`."""
        raise _own_transaction()

    def split(self, epoch: int, root: str, receiver: str, credits: Sequence[Credit]) -> str:
        """Moves claimed money from a receiver to owners and publishes the epoch's root, once per epoch."""
        return self._owners.split(epoch, root, _address(receiver), credits)

    def root(self, epoch: int, receiver: str) -> str | None:
        """The Merkle root published with an epoch."""
        return self._owners.root(epoch, _address(receiver))

    def payouts(self, epoch: int, receiver: str | None = None) -> list[Credit]:
        """The credits of an epoch; of our own receiver if none is named."""
        return self._owners.payouts(epoch, self._sender.address if receiver is None else _address(receiver))

    def earnings(self, owner: str) -> int:
        """The amount that an owner has earned and not yet taken out."""
        return self._owners.earnings(_address(owner))

    def earned(self, owner: str) -> list[Credit]:
        """Everything an owner ever earned, by carrier and DApp."""
        return self._owners.earned(_address(owner))

    def earned_by_epoch(self, owner: str, count: int = 1_000) -> list[tuple[int, Credit]]:
        """(epoch, credit) of an owner, the newest first, at most `count`."""
        return self._owners.earned_by_epoch(_address(owner), count)

    def payout(self, owner: str, to: str, amount: int, nonce: int, signature: bytes) -> str:
        """Moves earnings to a wallet at the owner's signed request, once per nonce."""
        return self._owners.payout(_address(owner), _address(to), amount, nonce, signature)

    def _look(self) -> None:
        """Reads the events since the last read."""
        now_s = time.monotonic()
        if now_s - self._looked_s < self._poll_s:
            return
        self._chain.check_id()  # a node behind a gateway may be another one by now
        touched = self._follower.poll(self._chain.head())
        self._touched |= touched
        self._leaving |= touched
        if self._follower.reorganisations != self._states.reorganisations:
            self._transactions.resend()
            self._states.reorganisations = self._follower.reorganisations
        self._looked_s = now_s

    def _known(self, config: ChannelConfig) -> LedgerChannel:
        """A channel in the newest block; one that was never opened is refused."""
        name = channel_id(self._terms.chain_id, config)
        state = self._states.newest(name, config)
        if not self._exists(state):
            raise refused("channel_not_found", "nothing was ever deposited into this channel")
        return state

    def _exists(self, state: LedgerChannel) -> bool:
        name = state.channel_id
        if not (state.balance or state.refund_nonce or name in self._opened) and not self._states.was_opened(name):
            return False
        self._opened.add(name)
        return True

    def _check_rows(self, rows: Sequence[ClaimRow]) -> None:
        if not rows:
            raise refused("claim_payload", "a claim has at least one row")
        if any(channel_id(self._terms.chain_id, row.config) != row.voucher.channel_id for row in rows):
            raise refused("channel_id_mismatch", "the voucher is for another channel")

    def _claimable(self, rows: Sequence[ClaimRow]) -> list[tuple[LedgerChannel, int]]:
        return claimable(rows, self._known, self._verifier)

    def _claimed(self, row: ClaimRow) -> str:
        """The transaction that brought a channel to a row's total; empty if another total has passed it."""
        key = bytes.fromhex(row.voucher.channel_id[2:])
        claims = self._chain.events(self._chain.escrow.events.Claimed, channelId=key)
        event = first_with(claims, totalClaimed=row.total_claimed)
        return str(self._chain.web3.to_hex(event["transactionHash"])) if event else ""


def claim_rows(rows: Sequence[ClaimRow]) -> list[tuple[object, ...]]:
    """The rows as arguments of the escrow contract's `claim`."""
    return [
        ((config_tuple(row.config), row.voucher.max_claimable), row.voucher.signature, row.total_claimed)
        for row in rows
    ]


def _address(raw: str) -> str:
    if not is_hex_address(raw):
        raise LedgerError("address_invalid", "an address is 20 bytes in hex")
    return str(to_checksum_address(raw))


def _own_transaction() -> LedgerError:
    text = "on a chain the payer withdraws with a transaction of its own: leben chain withdraw, or any wallet"
    return LedgerError("withdraw_on_chain", text)


def _fits(ledger: EvmLedger) -> Ledger:
    return ledger
