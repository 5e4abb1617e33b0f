"""Builds refusals as JSON, and the CORS headers of every response."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request as HttpRequest
from starlette.responses import Response as HttpResponse

from serving.protocol.exchange import Response
from serving.protocol.refusals import RETRY_AFTER_S, Refusal, describe

JSON = "application/json"
EXPOSED = (
    "PAYMENT-REQUIRED",
    "PAYMENT-RESPONSE",
    "LEBEN-RECEIPT",
    "LEBEN-INNER-RECEIPTS",
    "Inference-Header-Content-Length",
    "Retry-After",
)
"""Headers that a web page may read from a response: without them it can neither pay nor decode."""
CODE_OF_STATUS = {404: "not_found", 405: "method_not_allowed"}


def cors() -> Middleware:
    """Lets web pages of any origin call and pay: access depends on neither cookies nor the caller's address."""
    return Middleware(
        CORSMiddleware, allow_origins=["*"], allow_methods=["GET", "POST"], allow_headers=["*"], expose_headers=EXPOSED
    )


def json_response(value: Any) -> HttpResponse:
    """A value as a JSON response."""
    return HttpResponse(orjson.dumps(value), media_type=JSON)


def refusal(reason: Refusal) -> Response:
    """The response that refuses a call: `{"error": …, "code": …}`, and after how many seconds a retry makes sense."""
    headers = {"content-type": JSON, "cache-control": "no-store"}
    if reason.status in RETRY_AFTER_S:
        headers["retry-after"] = RETRY_AFTER_S[reason.status]
    return Response(reason.status, orjson.dumps({"error": reason.message, "code": reason.code}), headers)


async def refused(request: HttpRequest, error: Exception) -> HttpResponse:
    """Any refusal outside a paid call as JSON; the audit log finds its code in `scope["state"]`."""
    headers = None
    if isinstance(error, HTTPException):
        headers, status = error.headers, error.status_code
        code = CODE_OF_STATUS.get(status, "bad_request")
        message = code.replace("_", " ")
    else:
        status, code, message = describe(error)
    request.scope.setdefault("state", {})["code"] = code
    return HttpResponse(orjson.dumps({"error": message, "code": code}), status, headers, media_type=JSON)
