"""Sends a payer's own withdrawals on a chain, which need no cooperation of the mesh.

x402's contract lets the payer, or its authorizer, announce a withdrawal and take it after the channel's delay. It needs
the channel's config, which the payer's client knows, and some of the chain's coin.
"""

from __future__ import annotations

import re
from typing import Any

from web3.exceptions import Web3Exception

from channels.errors import LedgerError
from channels.evm.chain import Chain, Reverted, asking, config_tuple
from channels.evm.sender import Patience, Sender
from channels.protocol import ChannelConfig, Signer, channel_id

CHANNEL = re.compile(r"0x[0-9a-f]{64}", re.ASCII)
FIELDS = ("payer", "payerAuthorizer", "receiver", "receiverAuthorizer", "token", "withdrawDelay", "salt")
REFUSALS = {
    "NotPayer": ("withdraw_signature", "only the channel's payer or its authorizer withdraws"),
    "InvalidAmount": ("withdraw_amount", "a withdrawal is more than 0 and at most what is unclaimed"),
    "WithdrawalPending": ("withdraw_pending", "a withdrawal of this channel is pending"),
    "NoWithdrawalPending": ("withdraw_not_pending", "no withdrawal of this channel is pending"),
    "TooEarly": ("withdraw_too_early", "the withdraw delay has not passed"),
}


def config_of(chain: Chain, channel: str) -> ChannelConfig:
    """A channel's config from the transaction that opened it, for a payer that has lost everything but its key.

    Raises:
        LedgerError: nothing was deposited into the channel, or by a contract in between.
        LedgerUnavailable: the node does not answer.
    """
    if not CHANNEL.fullmatch(channel):
        raise LedgerError("channel_not_found", "a channel's id is 0x and 64 hex digits")
    for event in chain.events(chain.escrow.events.Deposited, channelId=bytes.fromhex(channel[2:])):
        with asking("show a transaction"):
            data = chain.web3.eth.get_transaction(event["transactionHash"])["input"]
        try:
            config_fields = chain.escrow.decode_function_input(data)[1]["config"]
            is_dict = isinstance(config_fields, dict)
            fields = dict(config_fields) if is_dict else dict(zip(FIELDS, config_fields, strict=True))
            payer, payer_key, receiver, receiver_key, token = (str(fields[name]) for name in FIELDS[:5])
            delay, salt = fields["withdrawDelay"], "0x" + fields["salt"].hex()
            config = ChannelConfig(payer, payer_key, receiver, receiver_key, token, delay, salt)
        except (ValueError, KeyError, Web3Exception):
            continue  # sent through another contract, whose data is its own
        if channel_id(chain.facts.chain_id, config) == channel:
            return config
    text = "the chain shows no deposit that opened this channel: is it the right chain?"
    raise LedgerError("channel_not_found", text)


class ChainPayer:
    """Withdraws from channels on a chain.

    Args:
        chain: checked.
        signer: the payer or its authorizer; pays the gas.
        patience: how long a transaction is waited for.
    """

    def __init__(self, chain: Chain, signer: Signer, patience: Patience | None = None) -> None:
        self._chain, self._sender = chain, Sender(chain, signer, patience)

    def initiate(self, config: ChannelConfig, amount: int) -> str:
        """Announces a withdrawal of `amount` atomic units; returns the transaction.

        Raises:
            LedgerError: the contract refuses; nothing has moved.
            LedgerUnavailable: it is not known to have happened.
        """
        return self._send(self._chain.escrow.functions.initiateWithdraw(config_tuple(config), amount))

    def finalize(self, config: ChannelConfig) -> str:
        """Takes what is left of it once the delay has passed; returns the transaction. Raises as `initiate`."""
        return self._send(self._chain.escrow.functions.finalizeWithdraw(config_tuple(config)))

    def _send(self, call: Any) -> str:
        try:
            return str(self._chain.web3.to_hex(self._sender.send(call)["transactionHash"]))
        except Reverted as error:
            other = ("withdraw_refused", f"the chain refuses the withdrawal: {error}")
            raise LedgerError(*REFUSALS.get(error.name, other)) from error
