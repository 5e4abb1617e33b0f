"""Writes HAProxy's own answers as JSON, with a code for each, as every other refusal of a mesh.

HAProxy answers by itself where no replica does. The pages that Serve gives it are plain text, which a client cannot act
on. What is no HTTP at all gets HAProxy's own page: it has no setting for that one.
"""

from __future__ import annotations

from http import HTTPStatus
from pathlib import Path

import orjson

AGAIN = "ask again in a few seconds, under the same Idempotency-Key"
ERRORS = {
    500: ("proxy_failed", f"the proxy failed: {AGAIN}"),
    502: ("replica_lost", f"the replica ended before it answered: {AGAIN}"),
    503: ("no_replica", f"no replica answers now: {AGAIN}"),
    504: ("replica_timeout", f"the replica did not answer in time: {AGAIN}"),
}
"""Code and message by HTTP status."""
RETRY_AFTER_S = 5


def write(folder: Path) -> None:
    """Writes the answers into a node's folder; HAProxy reads them when it starts."""
    for status, (code, message) in ERRORS.items():
        body = orjson.dumps({"error": message, "code": code})
        lines = [
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
            "Content-Type: application/json",
            "Cache-Control: no-store",
            f"Content-Length: {len(body)}",
            f"Retry-After: {RETRY_AFTER_S}",
        ]
        path_of(folder, status).write_bytes("\r\n".join([*lines, "", ""]).encode() + body)


def directives(folder: Path) -> list[str]:
    """The lines of HAProxy's `defaults` that name the answers of `write`."""
    return [f"errorfile {status} {path_of(folder, status)}" for status in ERRORS]


def path_of(folder: Path, status: int) -> Path:
    """The file of one answer."""
    return folder / f"error-{status}.http"
