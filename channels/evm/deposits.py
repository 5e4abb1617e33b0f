"""Makes deposits on a chain: each authorization of a payer moves its amount into the channel once."""

from __future__ import annotations

from collections.abc import Callable

from eth_abi.abi import encode

from channels.errors import LedgerError
from channels.evm.chain import Chain, Reverted, config_tuple, first_with
from channels.evm.state import States
from channels.evm.transactions import Transactions
from channels.ledger import check_deposit, refused
from channels.protocol import (
    COLLECTOR,
    ChannelConfig,
    Deposit,
    Domain,
    channel_id,
    deposit_digest,
    deposit_nonce,
    signed_by,
)

MIN_WINDOW_S = 6
"""Least time left of an authorization when it is sent: a block has to be made."""
TIMES = {
    "NotYetValid": ("payload_authorization_valid_after", "the authorization is not valid yet on the chain"),
    "Expired": ("payload_authorization_valid_before", "the authorization has expired on the chain"),
}


class Deposits:
    """The deposits of one chain.

    Args:
        chain: that holds the money.
        transactions: of the account that pays the gas.
        states: reads channels.
        wallet: the amount that an address holds outside channels.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        chain: Chain,
        transactions: Transactions,
        states: States,
        wallet: Callable[[str], int],
        clock: Callable[[], float],
    ) -> None:
        self._chain, self._transactions, self._states = chain, transactions, states
        self._wallet, self._clock = wallet, clock
        terms = chain.facts.terms
        self._token = Domain.of(terms.asset_name, terms.asset_version, terms.chain_id, terms.asset)

    def make(self, config: ChannelConfig, deposit: Deposit) -> str:
        """The transaction that the authorization was used in; it is sent unless it was before."""
        name = channel_id(self._chain.facts.chain_id, config)
        nonce = deposit_nonce(name, deposit.salt)
        window = deposit.valid_after, deposit.valid_before
        digest = deposit_digest(self._token, config.payer, deposit.amount, *window, nonce)
        if not signed_by(digest, deposit.signature, config.payer):
            raise refused("receive_authorization_signature", "the deposit is not signed by the payer for this ledger")
        done = self._done(name, config, deposit, nonce)
        if done is not None:
            return done
        self._check_times(name, config, deposit)
        kinds = ["uint256", "uint256", "uint256", "bytes"]
        data = encode(kinds, [*window, int(deposit.salt, 16), deposit.signature])
        call = self._chain.escrow.functions.deposit(config_tuple(config), deposit.amount, COLLECTOR, data)
        try:
            return self._transactions.send(call)
        except Reverted as error:
            if error.name == "DepositNotReceived":
                text = "the token keeps a part of what is moved: it cannot be paid with"
                raise LedgerError("token_fee", text) from error
            if error.name in TIMES:
                raise refused(*TIMES[error.name]) from error
            raise refused("deposit_transaction_failed", f"the chain refuses the deposit: {error}") from error

    def _check_times(self, name: str, config: ChannelConfig, deposit: Deposit) -> None:
        """Checks a deposit by both clocks: a chain whose clock is behind would take what has expired elsewhere.

        Its newest block may be old where nothing happens, so it cannot tell that something is too early.
        """
        before = self._states.newest(name, config)
        chain_s, wallet = self._chain.head().time_s, self._wallet(config.payer)
        check_deposit(before, deposit, wallet, self._clock())
        check_deposit(before, deposit, wallet, max(self._clock(), chain_s) + MIN_WINDOW_S)

    def _done(self, name: str, config: ChannelConfig, deposit: Deposit, nonce: bytes) -> str | None:
        """The transaction that used an authorization, if any; one that did something else is refused."""
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
