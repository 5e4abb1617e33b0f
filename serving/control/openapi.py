"""The OpenAPI page of a mesh: every route a caller may use, with the DApps that are served by name.

Built from the catalogue, so that it never names a DApp that is not there. What a 402 asks for is in `docs/wire.md`.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from dapps.api import DTYPES

Json = dict[str, Any]
ERROR = {"$ref": "#/components/schemas/Error"}
TEXT = {"type": "string"}
HASH, ADDRESS, SIGNATURE = "^0x[0-9a-f]{64}$", "^0x[0-9a-fA-F]{40}$", "^0x[0-9a-fA-F]{130}$"
AMOUNT = "^(0|[1-9][0-9]{0,37})$"
SIGNED = [
    {"name": name, "in": "header", "required": True, "schema": {"type": "string", "pattern": pattern}}
    for name, pattern in (("Leben-Read-Issued", "^[0-9]{1,12}$"), ("Leben-Read-Signature", SIGNATURE))
]
"""A read is signed by who may see it."""
LISTED_VALUES = 1 << 10
"""Up to this many values, a tensor's schema says how many there are and what each may be."""
PAYMENT = [
    {
        "name": name,
        "in": "header",
        "required": False,
        "schema": {"type": "string", "pattern": pattern},
        "description": description,
    }
    for name, pattern, description in (
        ("PAYMENT-SIGNATURE", "^[A-Za-z0-9+/]+=*$", "x402: base64 JSON with the voucher, answering the 402's quote"),
        ("Idempotency-Key", "^[!-~]{1,255}$", "the call's identity: repeating a charged call is free"),
    )
]


def document(version: str, url: str, catalogue: list[Json], model_control: bool) -> Json:
    """The OpenAPI 3.1 document.

    Args:
        version: of the mesh.
        url: where it answers.
        catalogue: its DApps, as `/v1/catalogue` tells them.
        model_control: whether models may be loaded and unloaded by callers.
    """
    paths: Json = {
        "/": {"get": _page("Where to go from here, or the catalogue as a page for who accepts HTML")},
        "/openapi.json": _get("This page"),
        "/v2": _get("Server metadata"),
        "/v2/health/live": _get("Whether the mesh is alive"),
        "/v2/health/ready": _get("Whether paid calls can be taken"),
        "/v2/models/stats": _get("Statistics of all models"),
        "/v2/repository/index": {"post": _index()},
        "/v1/catalogue": _get("The DApps and their prices"),
        "/v1/dapps": _get("The DApps with their health, and what is installed and not served"),
        "/v1/dapps/{name}": _get("One DApp with its model cards", [_served(catalogue)]),
        "/v1/rpc": {"post": _rpc()},
        "/v1/channels/{id}": _get("A channel", [_word("id", HASH), *SIGNED]),
        "/v1/receipts/{id}": _get("A receipt file", [_word("id", HASH), *SIGNED]),
        "/v1/epochs/{number}": _get("A settled epoch", [_word("number", "^[0-9]{1,9}$"), *SIGNED]),
        "/v1/earnings/{owner}": _get("What an owner earned and can withdraw", [_word("owner", ADDRESS), *SIGNED]),
        "/v1/statements": {"get": _statement()},
        "/v1/earnings/{owner}/withdraw": _move("Move earnings to a wallet", "owner", ADDRESS, "to", "amount"),
        "/v1/channels/{id}/withdraw/initiate": _move("Give notice of a withdrawal", "id", HASH, "amount"),
        "/v1/channels/{id}/withdraw/finalize": _move("Take back what was not charged", "id", HASH),
    }
    for row in catalogue:
        paths |= _model(row)
    if model_control:
        name = _served(catalogue)
        for verb in ("load", "unload"):
            operation = _operation(f"{verb.capitalize()} a model", [name])
            paths[f"/v2/repository/models/{{name}}/{verb}"] = {"post": operation}
    error = {"type": "object", "properties": {"error": TEXT, "code": TEXT}, "required": ["error"]}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Leben Mesh", "version": version, "description": "Clinical models, paid per call by x402."},
        "servers": [{"url": url}],
        "paths": paths,
        "components": {"schemas": {"Error": error}},
    }


def _model(row: Json) -> Json:
    base = f"/v2/models/{row['name']}"
    paths: Json = {}
    # Another version may take other tensors: what is told here is told of the default one alone.
    for prefix in (base, f"{base}/versions/{row['version']}"):
        paths[prefix] = _get("Model metadata")
        paths[f"{prefix}/ready"] = _get("Whether the model can be called")
        paths[f"{prefix}/config"] = _get("Model configuration")
        paths[f"{prefix}/stats"] = _get("Statistics of the model")
        tensors = {"application/json": {"schema": _infer(row["inputs"])}}
        summary = "Infer, by the Open Inference Protocol V2; binary tensors are taken too"
        paths[f"{prefix}/infer"] = _call(row, summary, tensors)
        if row["diagnose"]:
            files = {"application/octet-stream": {}, "application/json": {"schema": _file()}}
            paths[f"{prefix}/diagnose"] = _call(row, "Answer one clinical file with a report", files)
    return paths


def _call(row: Json, summary: str, content: Json) -> Json:
    if row["price"]["maximum"] == "0":
        return {"post": _operation(summary, []) | {"requestBody": _body(content)}}
    quote = _operation("The quote, as the 402 that a call without a payment meets", PAYMENT[:1])
    return {"post": _operation(summary, PAYMENT) | {"requestBody": _body(content)}, "get": quote}


def _infer(inputs: list[Json]) -> Json:
    """The schema of an infer request of one item; of a large or a variable tensor it tells the kind alone."""
    rows = [_tensor(row) for row in inputs]
    tensors = {"type": "array", "prefixItems": rows, "items": False, "minItems": len(rows), "maxItems": len(rows)}
    return {"type": "object", "properties": {"id": {"type": "string", "maxLength": 256}, "inputs": tensors},
            "required": ["inputs"]}  # fmt: skip


def _tensor(row: Json) -> Json:
    shape, values = row["shape"][1:], _values(row["datatype"])
    fixed = min(shape, default=1) > 0 and prod(shape) <= LISTED_VALUES
    data: Json = {"type": "array", "items": values, "minItems": prod(shape), "maxItems": prod(shape)}
    sizes: Json = {"const": [1, *shape]} if fixed else {"type": "array", "items": {"type": "integer", "minimum": 1}}
    return {
        "type": "object",
        "properties": {
            "name": {"const": row["name"]},
            "datatype": {"const": row["datatype"]},
            "shape": sizes,
            "data": data if fixed else {"type": "array"},
        },
        "required": ["name", "datatype", "shape", "data"],
    }


def _values(datatype: str) -> Json:
    if datatype == "BOOL":
        return {"type": "boolean"}
    if datatype == "BYTES":
        return TEXT
    dtype = DTYPES[datatype]
    if dtype.kind in "iu":
        return {"type": "integer", "minimum": int(np.iinfo(dtype).min), "maximum": int(np.iinfo(dtype).max)}
    return {"type": "number", "minimum": -60_000, "maximum": 60_000}


def _get(summary: str, parameters: list[Json] | None = None) -> Json:
    return {"get": _operation(summary, parameters or [])}


def _page(summary: str) -> Json:
    operation = _operation(summary, [])
    operation["responses"]["200"]["content"]["text/html"] = {}
    return operation


def _served(catalogue: list[Json]) -> Json:
    """The name of a DApp in a path."""
    schema = {"enum": [row["name"] for row in catalogue]}
    return {"name": "name", "in": "path", "required": True, "schema": schema}


def _operation(summary: str, parameters: list[Json]) -> Json:
    refused = {"description": "Refused; nothing is charged", "content": {"application/json": {"schema": ERROR}}}
    answered = {"description": "Answered", "content": {"application/json": {}}}
    return {"summary": summary, "parameters": parameters, "responses": {"200": answered, "default": refused}}


def _index() -> Json:
    operation = _operation("The repository's index", [])
    schema = {"type": "object", "properties": {"ready": {"type": "boolean"}}}
    operation["requestBody"] = {"required": False, "content": {"application/json": {"schema": schema}}}
    return operation


def _rpc() -> Json:
    operation = _operation("Read-only Ethereum JSON-RPC over the ledger", [])
    operation["requestBody"] = {"required": False, "content": {"application/json": {}}}
    return operation


def _word(name: str, pattern: str, where: str = "path") -> Json:
    """A parameter of text that must be there."""
    return {"name": name, "in": where, "required": True, "schema": {"type": "string", "pattern": pattern}}


def _statement() -> Json:
    query = (("owner", ADDRESS), ("from", "^[0-9]{1,12}$"), ("to", "^[0-9]{1,12}$"), ("after", "^[0-9]{1,18}$"))
    words = [_word(name, pattern, "query") | {"required": False} for name, pattern in query]
    form = {"name": "format", "in": "query", "required": False, "schema": {"enum": ["json", "csv"]}}
    operation = _operation("What the reader was charged and has earned, in pages", [*words, form, *SIGNED])
    operation["responses"]["200"]["content"]["text/csv"] = {}
    return operation


def _move(summary: str, path: str, pattern: str, *names: str) -> Json:
    """A route that moves money by the signature of whose it is."""
    patterns = {"to": ADDRESS, "amount": AMOUNT, "nonce": AMOUNT, "signature": SIGNATURE}
    wanted = [*names, "nonce", "signature"]
    fields = {name: {"type": "string", "pattern": patterns[name]} for name in wanted}
    schema = {"type": "object", "properties": fields, "required": wanted}
    content = {"application/json": {"schema": schema}}
    return {"post": _operation(summary, [_word(path, pattern)]) | {"requestBody": _body(content)}}


def _body(content: Json) -> Json:
    return {"required": True, "content": content}


def _file() -> Json:
    return {
        "type": "object",
        "properties": {"file": {"type": "string", "contentEncoding": "base64", "format": "byte"}},
        "required": ["file"],
    }
