"""`Follower`: what happens to our channels on the chain, block by block, and back again when a chain is reorganised.

Keeps the hashes of the blocks it has read: where one is no longer the chain's, everything behind it is unread again,
and the channels it touched are named, so that whoever mirrors them asks anew. Knows no amounts: those are read from the
contract, never added up from events. Used by `ledger_evm.py`.
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
    """One step of reading: the last block of it, and the channels that it touched."""

    number: int
    hash: str
    touched: frozenset[str]


@dataclass
class Follower:
    """Follows the escrow's events.

    Args:
        chain: what is followed.
        ours: tells whether a channel is one of ours.
    """

    chain: Chain
    ours: Container[str]
    reorganisations: int = 0
    _reads: deque[_Read] = field(default_factory=lambda: deque(maxlen=KEPT_BLOCKS))

    def poll(self, head: Head) -> set[str]:
        """Reads up to `head`; gives the channels that were touched, or whose touching was taken back."""
        if self._reads and (self._reads[-1].number, self._reads[-1].hash) == (head.number, head.hash):
            return set()
        touched = self._taken_back(head)
        # What is older is in no mirror yet: whoever starts asks for every channel once, which costs less than a year
        # of events.
        begin = max(self.chain.facts.from_block, head.number - KEPT_BLOCKS)
        since = self._reads[-1].number + 1 if self._reads else begin
        seen: set[str] = set()
        if since <= head.number:
            for kind in KINDS:
                event = self.chain.escrow.events[kind]
                for one in self.chain.events(event, since, head.number):
                    name = "0x" + one["args"]["channelId"].hex()
                    if name in self.ours:
                        seen.add(name)
            self._reads.append(_Read(head.number, head.hash, frozenset(seen)))
        return touched | seen

    def _taken_back(self, head: Head) -> set[str]:
        """Unreads what is not on the chain any more."""
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
