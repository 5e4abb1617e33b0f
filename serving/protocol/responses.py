"""Builds responses that are not answers to calls: refusals as JSON, and the CORS headers of every response."""

from __future__ import annotations

import orjson
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response

from serving.protocol.refusals import describe

EXPOSED = (
    "PAYMENT-REQUIRED",
    "PAYMENT-RESPONSE",
    "LEBEN-RECEIPT",
    "LEBEN-INNER-RECEIPTS",
    "Inference-Header-Content-Length",
    "Retry-After",
)
"""Headers that a web page may read from an answer: without them it can neither pay nor decode."""


def cors() -> Middleware:
    """Lets web pages of any origin call and pay: nothing here is guarded by cookies or by where a caller sits."""
    return Middleware(
        CORSMiddleware, allow_origins=["*"], allow_methods=["GET", "POST"], allow_headers=["*"], expose_headers=EXPOSED
    )


async def refused(request: Request, error: Exception) -> Response:
    """Any refusal outside a paid call, as `{"error": …}`."""
    headers = None
    if isinstance(error, HTTPException):
        headers = error.headers
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
        status, message = error.status_code, code.replace("_", " ")
    else:
        status, code, message = describe(error)
    return Response(orjson.dumps({"error": message, "code": code}), status, headers, media_type="application/json")
