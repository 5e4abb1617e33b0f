"""`Request`, `Result` and `Response`: what goes between door, paywall and calls.

A call as the door read it, what was done for it, and what is answered. Bodies and headers are never shown: they may
hold what a caller wrote of a patient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from channels.receipts import Part


@dataclass(frozen=True, slots=True)
class Response:
    """An HTTP answer: status, headers in lower case, body."""

    status: int
    body: bytes = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Result:
    """What the model did for a call: its answer, what it used, and what is stored in place of the answer, if so.

    `items` and `device_us`, microseconds of the device, are what was used; the price says which of them is charged.

    `alone` says that no model worked on it: a guideline alone answered, at its own price and for its author.
    A picture of a patient is never stored: a repeated call gets the report that it was drawn from.
    """

    reply: Response
    items: int
    kept: Response | None = None
    alone: bool = False
    device_us: int = 0
    parts: tuple[Part, ...] = ()
    """What other DApps did for it; paid out of its own price."""


@dataclass(frozen=True, slots=True)
class Request:
    """A call as the door read it: where it goes, its headers in lower case, and a body that is not decoded yet.

    The query is part of what is asked and of nothing that is sent back: its bytes may be anything.
    """

    method: str
    path: str
    url: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    query: bytes = field(default=b"", repr=False)

    def with_body(self, body: bytes) -> Request:
        """The same call with another body."""
        return replace(self, body=body)


CALL_TIMEOUT_S = 100.0
"""Below the 120 s after which the proxy cuts a call at a reload."""
