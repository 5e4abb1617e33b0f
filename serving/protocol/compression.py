"""Compresses and decompresses bodies with gzip and deflate, within bounds. No I/O.

A small body may inflate to a thousand times its size, so it is inflated only under a hold, and never beyond the limit.
"""

from __future__ import annotations

import gzip
import zlib

from serving.errors import CallError

WINDOWS = {"gzip": 31, "deflate": 15}
"""zlib's window bits by coding; HTTP's "deflate" is zlib's format."""
ALIASES = {"x-gzip": "gzip"}
"""Older names, which RFC 9110 counts as the same."""
LEVEL = 1
SMALL_BYTES = 1 << 10
MAX_RATIO = 100
"""How much longer a body may become: tensors and texts shrink to a tenth, 64 MiB of one repeated byte to 64 KiB."""
FREE_BYTES = 4 << 20
"""Up to this size a body may become any number of times longer: a small case of zeros is no attack."""
MAX_MEMBERS = 16
"""Members of one gzip body: what follows each is copied."""


def inflate(body: bytes, coding: str, limit: int) -> bytes:
    """Decompresses the body of a request with this Content-Encoding; gzip may have several members.

    Raises:
        CallError: an unknown coding, a damaged body, one longer than `limit` bytes, or much longer than it was sent.
    """
    coding = ALIASES.get(coding, coding)
    if coding in ("", "identity"):
        return body
    if coding not in WINDOWS:
        raise CallError("unsupported_encoding", "a body is sent plain, or with gzip or deflate")
    bound = min(limit, max(FREE_BYTES, len(body) * MAX_RATIO))
    members: list[bytes] = []
    rest, size = body, 0
    while not members or (rest and coding == "gzip" and len(members) < MAX_MEMBERS):
        plain, rest = _member(rest, coding, bound - size)
        members.append(plain)
        size += len(plain)
        if size > limit:
            raise CallError("body_too_large", f"a body is at most {limit} bytes, also when it is uncompressed")
        if size > bound:
            raise CallError("body_too_large", f"a body of this size inflates at most {MAX_RATIO}-fold: send it plain")
    if rest:
        raise CallError("bad_request", f"something follows the compressed body, or it has over {MAX_MEMBERS} members")
    return members[0] if len(members) == 1 else b"".join(members)


def _member(body: bytes, coding: str, bound: int) -> tuple[bytes, bytes]:
    """What one member holds, at most a byte more than `bound`, and what follows it."""
    reader = zlib.decompressobj(WINDOWS[coding])
    try:
        plain = reader.decompress(body, bound + 1)
    except zlib.error as error:
        raise CallError("bad_request", "the compressed body cannot be read") from error
    if len(plain) <= bound and not reader.eof:
        raise CallError("bad_request", "the compressed body is cut")
    return plain, reader.unused_data


def chosen(accepted: str, binary: bool) -> str:
    """The coding for a response, or nothing.

    Args:
        accepted: the request's Accept-Encoding.
        binary: True for a response with binary tensors. They hardly shrink, and HTTP libraries accept several codings
            by default: such a response is compressed only for a caller who accepts exactly one, as a stock client does
            when its user has asked for compression.
    """
    offers = [part.partition(";") for part in accepted.lower().split(",")]
    codings = [name.strip() for name, _, weight in offers if weight.strip().replace(" ", "") not in ("q=0", "q=0.0")]
    if binary and len(codings) != 1:
        return ""
    return next((coding for coding in (ALIASES.get(name, name) for name in codings) if coding in WINDOWS), "")


def deflate(body: bytes, coding: str) -> bytes:
    """Compresses the body of a response."""
    if coding == "gzip":
        return gzip.compress(body, LEVEL, mtime=0)
    return zlib.compress(body, LEVEL)
