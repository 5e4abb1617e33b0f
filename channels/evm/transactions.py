"""Sends the ledger's transactions, and sends again those that a reorganisation takes back."""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass
from typing import Any

from channels.evm.chain import Chain, Reverted, data_of
from channels.evm.sender import Sender

log = logging.getLogger("leben.ledger")
MAX_REMEMBERED = 256
"""Transactions that can be sent again."""


@dataclass(frozen=True, slots=True)
class _Sent:
    name: str
    to: str
    data: str


class Transactions:
    """The transactions of one account.

    Args:
        chain: to send to.
        sender: the account.
    """

    def __init__(self, chain: Chain, sender: Sender) -> None:
        self._chain, self._sender = chain, sender
        self._sent: deque[_Sent] = deque(maxlen=MAX_REMEMBERED)

    def send(self, call: Any) -> str:
        """Sends a contract call and returns its transaction's hash; raises as `Sender.send`."""
        name = str(self._chain.web3.to_hex(self._sender.send(call)["transactionHash"]))
        self._sent.append(_Sent(name, call.address, data_of(call)))
        return name

    def resend(self) -> None:
        """Sends again what a reorganisation took back; the contract refuses what has its effect already."""
        log.warning("the chain was reorganised: transactions that it took back are sent again")
        for sent in list(self._sent):
            if self._sender.stands(sent.name):
                continue
            try:
                gas = self._chain.gas_raw(sent.to, sent.data, self._sender.address)
                receipt = self._sender.send_raw(sent.to, sent.data, gas)
                name = str(self._chain.web3.to_hex(receipt["transactionHash"]))
                self._sent.append(_Sent(name, sent.to, sent.data))
            except Reverted as error:
                log.error("ALARM: transaction %s was taken back and is refused now: %s", sent.name, error)
            if sent in self._sent:
                self._sent.remove(sent)
