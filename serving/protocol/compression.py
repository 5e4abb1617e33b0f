"""Compresses and decompresses bodies with gzip and deflate, within bounds. No I/O.

A small body may inflate to a thousand times its size, so it is inflated only under a hold, and never beyond the limit.
"""

from __future__ import annotations

import gzip
import zlib

from serving.errors import CallError

WINDOWS = {"gzip": 31, "deflate": 15}
"""zlib's window bits by coding; HTTP's "deflate" is zlib's format."""
LEVEL = 1
SMALL_BYTES = 1 << 10


def inflate(body: bytes, coding: str, limit: int) -> bytes:
    """Decompresses the body of a request with this Content-Encoding.

    Raises:
        CallError: an unknown coding, a damaged body, or one longer than `limit` bytes.
    """
    if coding in ("", "identity"):
        return body
    if coding not in WINDOWS:
        raise CallError("unsupported_encoding", "a body is sent plain, or with gzip or deflate")
    reader = zlib.decompressobj(WINDOWS[coding])
    try:
        plain = reader.decompress(body, limit + 1)
    except zlib.error as error:
        raise CallError("bad_request", "the compressed body cannot be read") from error
    if len(plain) > limit:
        raise CallError("body_too_large", f"a body is at most {limit} bytes, also when it is uncompressed")
    if not reader.eof or reader.unused_data:
        raise CallError("bad_request", "the compressed body is cut, or something follows it")
    return plain


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
    return next((coding for coding in codings if coding in WINDOWS), "")


def deflate(body: bytes, coding: str) -> bytes:
    """Compresses the body of a response."""
    if coding == "gzip":
        return gzip.compress(body, LEVEL, mtime=0)
    return zlib.compress(body, LEVEL)
