"""`Journal`: the durable copy in SQL of what the store charged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from channels.errors import ChannelError
from channels.receipt import Receipt
from channels.x402 import ChannelConfig


class StaleToken(ChannelError):
    """Another treasury has taken over: nothing was written."""


class JournalError(ChannelError):
    """An entry that cannot be true next to what is stored: nothing was written, a person must look."""


@dataclass(frozen=True, slots=True)
class ChannelCopy:
    """A channel as SQL has it: the floor to which a store is raised after a loss."""

    channel_id: str
    config: ChannelConfig
    incarnation: int
    charged: int
    seq: int
    proof_maximum: int
    proof_signature: bytes = field(repr=False)


class Journal:
    """Not built yet."""

    @classmethod
    def open(cls, url: str) -> Journal:
        """Opens it."""
        raise NotImplementedError

    def close(self) -> None:
        """Closes it."""

    def acquire(self, holder: str) -> int:
        """A new fencing token."""
        raise NotImplementedError

    def remember_channel(self, config: ChannelConfig, channel_id: str, token: int) -> None:
        """Stores a channel."""
        raise NotImplementedError

    def channels(self) -> Iterator[ChannelCopy]:
        """All channels."""
        raise NotImplementedError

    def charged_keys(self, channel_id: str) -> list[tuple[str, str]]:
        """(call id, raw fields as JSON) of keyed calls."""
        raise NotImplementedError

    def append(self, bucket: int, entries: Sequence[tuple[str, Mapping[str, str]]], token: int) -> None:
        """Stores drained entries."""
        raise NotImplementedError

    def drained(self, bucket: int) -> str:
        """The last stream id stored."""
        raise NotImplementedError

    def receipt(self, call_id: str) -> Receipt | None:
        """One receipt."""
        raise NotImplementedError
