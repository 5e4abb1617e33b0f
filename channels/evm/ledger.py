"""Settles channels on a chain: x402's settlement contract keeps them, our `Split` contract pays owners.

The chain is the only book of money: nothing is added up here. Deposits count when confirmed; claims and withdrawals
count from the newest block. Before a transaction is sent, the rules of `channels.ledger` are checked on the chain's
state, so that refusals have the same codes as on the SQL ledger, and its gas is estimated, so that a refusal costs
none. Each operation first checks whether it is done already.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from eth_abi.abi import encode
from eth_utils import is_hex_address, to_checksum_address

from channels.errors import LedgerError
from channels.evm.chain import Chain, Reverted, config_tuple, data_of, first_with
from channels.evm.events import Follower
from channels.evm.owners import Owners
from channels.evm.sender import Sender
from channels.evm.state import States
from channels.ledger import (
    Claimed,
    ClaimRow,
    Credit,
    Ledger,
    LedgerChannel,
    LedgerUpdate,
    Terms,
    check_config,
    check_deposit,
    claimable,
    refunded,
    refused,
)
from channels.protocol import (
    COLLECTOR,
    ChannelConfig,
    Deposit,
    Domain,
    Verifier,
    channel_id,
    claim_digest,
    deposit_digest,
    deposit_nonce,
    signed_by,
)

log = logging.getLogger("leben.ledger")
LEAST_WINDOW_S = 6
"""Least time left of an authorisation when it is sent: a block has to be made."""
SENT = 255
"""Transactions that are sent again if a reorganisation takes them back."""
TIMES = {
    "NotYetValid": ("payload_authorization_valid_after", "the authorisation is not valid yet on the chain"),
    "Expired": ("payload_authorization_valid_before", "the authorisation has expired on the chain"),
}
Find = Callable[[str], ChannelConfig | None]


class EvmLedger:
    """The ledger on one chain, for one receiver.

    Args:
        chain: checked.
        sender: the receiver's account: it pays the gas, and its money is split.
        find: a channel's config by its id, from the journal: the chain keeps only the id.
        known: the configs of all channels of the journal.
        clock: seconds since 1970.
        poll_s: least seconds between two reads of events.
    """

    def __init__(
        self,
        chain: Chain,
        sender: Sender,
        find: Find,
        known: Iterable[ChannelConfig] = (),
        clock: Callable[[], float] = time.time,
        poll_s: float = 1.0,
    ) -> None:
        self._chain, self._sender, self._find, self._clock, self._poll_s = chain, sender, find, clock, poll_s
        self._terms = chain.facts.terms
        self._verifier = Verifier(self._terms.chain_id)
        self._token = Domain.of(
            self._terms.asset_name, self._terms.asset_version, self._terms.chain_id, self._terms.asset
        )
        self._configs = {channel_id(self._terms.chain_id, config): config for config in known}
        self._opened: set[str] = set()
        self._states, self._follower = States(chain), Follower(chain, self._configs)
        self._looked_s = float("-inf")
        self._touched: set[str] = set()
        self._leaving: set[str] = set()
        self._sent: list[tuple[str, str, str]] = []
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
        config = self._config(channel_id)
        if config is None:
            return None
        state = self._state(channel_id, config)
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
        """Moves an authorised amount from the payer's wallet into the channel, once per authorisation."""
        name = channel_id(self._terms.chain_id, config)
        nonce = deposit_nonce(name, deposit.salt)
        check_config(config, self._terms)
        window = deposit.valid_after, deposit.valid_before
        digest = deposit_digest(self._token, config.payer, deposit.amount, *window, nonce)
        if not signed_by(digest, deposit.signature, config.payer):
            raise refused("receive_authorization_signature", "the deposit is not signed by the payer for this ledger")
        done = self._deposited(name, config, deposit, nonce)
        if done is None:
            before = self._states.newest(name, config)
            self._check_times(before, config, deposit)
            kinds = ["uint256", "uint256", "uint256", "bytes"]
            data = encode(kinds, [*window, int(deposit.salt, 16), deposit.signature])
            call = self._chain.escrow.functions.deposit(config_tuple(config), deposit.amount, COLLECTOR, data)
            try:
                done = self._send(call)
            except Reverted as error:
                if error.name == "DepositNotReceived":
                    text = "the token keeps a part of what is moved: it cannot be paid with"
                    raise LedgerError("token_fee", text) from error
                if error.name in TIMES:
                    raise refused(*TIMES[error.name]) from error
                raise refused("deposit_transaction_failed", f"the chain refuses the deposit: {error}") from error
        self._configs[name] = config
        self._opened.add(name)
        return LedgerUpdate(done, self._state(name, config))

    def simulate_claim(self, rows: Sequence[ClaimRow]) -> None:
        """Raises what `claim` would raise for these rows, and moves nothing."""
        self._check_rows(rows)
        call = self._chain.escrow.functions.claim(_rows(rows))
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
            done = self._send(self._chain.escrow.functions.claimWithSignature(_rows(rows), authorizer_signature))
        except Reverted as error:
            raise refused("claim_transaction_failed", f"the chain refuses the claim: {error}") from error
        return Claimed(done, moved)

    def refund(self, config: ChannelConfig, amount: int, nonce: int, signature: bytes) -> LedgerUpdate:
        """Gives unclaimed money back to the payer's wallet, signed by the receiver's authorizer, once per nonce."""
        name = channel_id(self._terms.chain_id, config)
        refunded(self._known(config), amount, nonce, signature, self._terms.chain_id)
        call = self._chain.escrow.functions.refundWithSignature(config_tuple(config), amount, nonce, signature)
        try:
            done = self._send(call)
        except Reverted as error:
            raise refused("refund_transaction_failed", f"the chain refuses the refund: {error}") from error
        return LedgerUpdate(done, self._state(name, config))

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

    def _send(self, call: Any) -> str:
        done = str(self._chain.web3.to_hex(self._sender.send(call)["transactionHash"]))
        self._sent = [*self._sent[-SENT:], (done, call.address, data_of(call))]
        return done

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
            self._resend()
            self._states.reorganisations = self._follower.reorganisations
        self._looked_s = now_s

    def _resend(self) -> None:
        """Sends again what a reorganisation took back; the contract refuses what has its effect already."""
        log.warning("the chain was reorganised: what it took back is sent again")
        for sent in list(self._sent):
            done, to, data = sent
            if self._sender.stands(done):
                continue
            try:
                again = self._sender.send_raw(to, data, self._chain.gas_raw(to, data, self._sender.address))
                self._sent.append((self._chain.web3.to_hex(again["transactionHash"]), to, data))
            except Reverted as error:
                log.error("ALARM: transaction %s was taken back and is refused now: %s", done, error)
            self._sent.remove(sent)

    def _state(self, name: str, config: ChannelConfig) -> LedgerChannel:
        return self._states.now(name, config)

    def _config(self, name: str) -> ChannelConfig | None:
        config = self._configs.get(name) or self._find(name)
        if config is not None:
            self._configs[name] = config
        return config

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

    def _check_times(self, before: LedgerChannel, config: ChannelConfig, deposit: Deposit) -> None:
        """Checks a deposit by both clocks: a chain whose clock is behind would take what has expired elsewhere.

        Its newest block may be old where nothing happens, so it cannot tell that something is too early.
        """
        chain_s, wallet = self._chain.head().time_s, self.wallet(config.payer)
        check_deposit(before, deposit, wallet, self._clock())
        check_deposit(before, deposit, wallet, max(self._clock(), chain_s) + LEAST_WINDOW_S)

    def _deposited(self, name: str, config: ChannelConfig, deposit: Deposit, nonce: bytes) -> str | None:
        """The transaction that an authorisation was used in; one that did something else is refused."""
        if not self._chain.read(self._chain.token.functions.authorizationState(config.payer, nonce)):
            return None
        used = self._chain.events(self._chain.token.events.AuthorizationUsed, authorizer=config.payer, nonce=nonce)
        transactions = {event["transactionHash"] for event in used}
        deposited, key = self._chain.escrow.events.Deposited, bytes.fromhex(name[2:])
        deposits = [
            event
            for number in {event["blockNumber"] for event in used}
            for event in self._chain.events(deposited, number, number, channelId=key)
            if event["transactionHash"] in transactions
        ]
        event = first_with(deposits, amount=deposit.amount)
        if event is None:
            raise LedgerError("already_used", "this nonce was used for something else")
        return str(self._chain.web3.to_hex(event["transactionHash"]))

    def _claimed(self, row: ClaimRow) -> str:
        """The transaction that brought a channel to a row's total; empty if another total has passed it."""
        key = bytes.fromhex(row.voucher.channel_id[2:])
        claims = self._chain.events(self._chain.escrow.events.Claimed, channelId=key)
        event = first_with(claims, totalClaimed=row.total_claimed)
        return str(self._chain.web3.to_hex(event["transactionHash"])) if event else ""


def _rows(rows: Sequence[ClaimRow]) -> list[tuple[object, ...]]:
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
