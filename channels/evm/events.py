"""Follows the events of our channels block by block, and takes them back when the chain is reorganised.

The hashes of the blocks read are kept: where one is no longer the chain's, the blocks from it on are read again, and
the channels that they touched are returned, so that their mirrors are refreshed. Amounts are read from the contract,
never added up from events.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container
from dataclasses import dataclass, field

from channels.evm.chain import Chain, Head

KEPT_BLOCKS = 512
"""Reads that can be taken back, and blocks that are read at the start or after a reorganisation that is deeper."""
KINDS = ("Deposited", "Claimed", "Refunded", "WithdrawInitiated", "WithdrawFinalized")


@dataclass(frozen=True, slots=True)
class _Read:
    """One read: its last block, and the channels that its events touched."""

    number: int
    hash: str
    touched: frozenset[str]


@dataclass
class Follower:
    """Follows the escrow's events.

    Args:
        chain: whose events are followed.
        ours: contains the ids of our channels.
    """

    chain: Chain
    ours: Container[str]
    reorganisations: int = 0
    _reads: deque[_Read] = field(default_factory=lambda: deque(maxlen=KEPT_BLOCKS))

    def poll(self, head: Head) -> set[str]:
        """Reads up to `head`; returns the channels whose events came or were taken back."""
        if self._reads and (self._reads[-1].number, self._reads[-1].hash) == (head.number, head.hash):
            return set()
        touched = self._taken_back(head)
        # A treasury that starts reads every channel once, which costs less than a year of events.
        begin = max(self.chain.facts.from_block, head.number - KEPT_BLOCKS)
        since = self._reads[-1].number + 1 if self._reads else begin
        seen: set[str] = set()
        if since <= head.number:
            for kind in KINDS:
                event = self.chain.escrow.events[kind]
                for log in self.chain.events(event, since, head.number):
                    name = "0x" + log["args"]["channelId"].hex()
                    if name in self.ours:
                        seen.add(name)
            self._reads.append(_Read(head.number, head.hash, frozenset(seen)))
        return touched | seen

    def _taken_back(self, head: Head) -> set[str]:
        """Drops reads whose blocks are no longer on the chain; returns the channels that they touched."""
        touched: set[str] = set()
        before = len(self._reads)
        while self._reads:
            last = self._reads[-1]
            if last.number <= head.number:
                now = head if last.number == head.number else self.chain.head(last.number)
                if now.hash == last.hash:
                    break
            touched |= self._reads.pop().touched
        if len(self._reads) != before:
            self.reorganisations += 1
        return touched
