"""Reads JSON bodies and writes JSON responses for the routes of the control application."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar
from urllib.parse import quote

import orjson
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from dapps.structure import SMALL_JSON, StructureRefused, check_json
from serving.errors import CallError
from serving.protocol import small_body

PRIVATE = {"cache-control": "no-store"}
T = TypeVar("T", bound=BaseModel)


def json_response(
    answer: BaseModel | list[Any], status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """An answer of `schemas`, or a list of them, as JSON that no cache keeps; fields that were not set are left out."""
    value = [plain(row) for row in answer] if isinstance(answer, list) else plain(answer)
    return Response(orjson.dumps(value), status, PRIVATE | dict(headers or {}), media_type="application/json")


def plain(answer: BaseModel) -> dict[str, Any]:
    """An answer as plain values, under the names of the wire."""
    return answer.model_dump(by_alias=True, exclude_unset=True)


def canonical_url(request: Request) -> str:
    """Path and query of a request without escapes that its path does not need; empty if it has none.

    The proxy chooses replicas by the bytes of a path: `/v2/models/ch%64r` leads here, `/v2/models/chdr` to the model.
    """
    raw, _, _ = request.scope.get("raw_path", b"").partition(b"?")
    path, query = quote(request.scope["path"]), request.scope["query_string"].decode("latin-1")
    if b"%" not in raw or path == raw.decode("latin-1"):
        return ""
    return f"{path}?{query}" if query else path


async def read_json(request: Request, kind: type[T], limit_bytes: int) -> T:
    """The body as a request of `schemas`; an empty body stands for `{}`.

    Raises:
        CallError: `bad_request`, `body_too_large` or `slow_body`.
    """
    body = await small_body(request, limit_bytes)
    try:
        check_json(body, SMALL_JSON)
        fields = orjson.loads(body or b"{}")
    except StructureRefused as error:
        raise CallError("body_too_large", f"the body is too large: {error.cause}") from None
    except orjson.JSONDecodeError as error:
        raise CallError("bad_request", "the body is not JSON") from error
    if not isinstance(fields, dict):
        raise CallError("bad_request", "the body is a JSON object")
    try:
        # Null stands for a field that is absent.
        return kind.model_validate({name: value for name, value in fields.items() if value is not None})
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        # The declared meaning alone: pydantic's own text repeats the value, which may be anything.
        raise CallError("bad_request", f"{name} is {kind.model_fields[name].description}") from None
