"""Defines what passes between the HTTP side, the paywall and inference: `Request`, `Result` and `Response`.

Their `repr` shows no body and no header: they may hold a patient's data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import orjson

from channels.receipts import Part

CALL_TIMEOUT_S = 100.0
"""Below the 120 s after which the proxy cuts a call at a reload."""


@dataclass(slots=True)
class Request:
    """A call as it arrived: where it goes, its headers in lower case, and its body, which is not decoded yet.

    It is made before the payment is checked; `body` is attached once it has been read. Nothing sent back contains the
    query: its bytes may be anything.
    """

    method: str
    path: str
    url: str
    headers: Mapping[str, str] = field(repr=False)
    query: bytes = field(default=b"", repr=False)
    body: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Response:
    """An HTTP response: status, body, headers in lower case."""

    status: int
    body: bytes = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """The form in which a charged call's response is stored under its key."""
        return orjson.dumps([self.status, dict(self.headers)]) + b"\n" + self.body

    @classmethod
    def from_bytes(cls, stored: bytes) -> Response:
        """Reads what `to_bytes` wrote."""
        head, _, body = stored.partition(b"\n")
        status, headers = orjson.loads(head)
        return cls(status, body, headers)


@dataclass(frozen=True, slots=True)
class Result:
    """What a DApp did for a call.

    Attributes:
        response: the response to the call.
        items: how many items were answered.
        stored: stored in place of `response`, if given: a picture of a patient is never stored, but its report.
        guideline_only: no model took part: a guideline alone answered, at its own price and for its author.
        device_us: microseconds of the device; the price says whether these or the items are charged.
        parts: what other DApps did for it; paid out of its own price.
    """

    response: Response
    items: int
    stored: Response | None = None
    guideline_only: bool = False
    device_us: int = 0
    parts: tuple[Part, ...] = ()
