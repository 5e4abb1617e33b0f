"""Reads a channel from the escrow contract: confirmed for money that came in, newest for money that goes out.

A deposit counts when its block has the confirmations of `chain.json`; a payment out and an announced withdrawal count
from the newest block. A reorganisation can then only leave more money than was assumed.
"""

from __future__ import annotations

from dataclasses import replace

from channels.evm.chain import Chain
from channels.ledger import LedgerChannel
from channels.protocol import ChannelConfig

VERSIONS = 1024
"""Versions of a channel in one block: a reorganised chain may hold another state at the same height."""


class States:
    """Reads channels of one chain."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self.reorganisations = 0

    def now(self, name: str, config: ChannelConfig) -> LedgerChannel:
        """The state that no reorganisation within the confirmations makes worse."""
        head = self._chain.head()
        newest = self.at(name, config, head.number)
        deep = self._chain.facts.confirmations - 1
        if not deep:
            return newest
        sure = self.at(name, config, max(0, head.number - deep))
        pending = newest if newest.withdraw_amount else sure
        return replace(
            sure,
            balance=min(sure.balance, newest.balance),
            withdraw_amount=pending.withdraw_amount,
            withdraw_requested_at_s=pending.withdraw_requested_at_s,
            version=newest.version,
        )

    def newest(self, name: str, config: ChannelConfig) -> LedgerChannel:
        """The state in the newest block, which a transaction sent now will meet."""
        return self.at(name, config, self._chain.head().number)

    def at(self, name: str, config: ChannelConfig, block: int) -> LedgerChannel:
        """The state at a block."""
        see, key = self._chain.escrow.functions, bytes.fromhex(name[2:])
        balance, claimed = self._chain.read(see.channels(key), block)
        amount, since_s = self._chain.read(see.pendingWithdrawals(key), block)
        nonce = self._chain.read(see.refundNonce(key), block)
        version = block * VERSIONS + self.reorganisations % VERSIONS
        return LedgerChannel(name, config, balance, claimed, amount, since_s, nonce, version)

    def was_opened(self, name: str) -> bool:
        """True if anything was ever deposited: an emptied channel looks like one that never existed."""
        return bool(self._chain.events(self._chain.escrow.events.Deposited, channelId=bytes.fromhex(name[2:])))
