"""Generates the OpenAPI page of a mesh from `schemas` and the catalogue.

It lists every route that a caller may use, and the DApps by name. `docs/wire.md` describes what a 402 asks for.
"""

from __future__ import annotations

from math import prod
from typing import Any, get_args

import numpy as np
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from dapps.api import DTYPES
from serving.control.schemas import base, money, requests, v2
from serving.control.schemas import catalogue as listings

Json = dict[str, Any]
HASH_PATTERN = "^0x[0-9a-f]{64}$"
TEMPLATE = "#/components/schemas/{model}"
MAX_LISTED_VALUES = 1 << 10
"""Up to this many values, a tensor's schema gives their number and range."""


def document(version: str, url: str, catalogue: list[Json], model_control: bool) -> Json:
    """The OpenAPI 3.1 document.

    Args:
        version: of the mesh.
        url: where it answers.
        catalogue: its DApps, as `serving.catalogue.entry` describes them.
        model_control: whether callers may load and unload models.
    """
    paths = _server() | _catalogue(catalogue) | _money()
    for row in catalogue:
        paths |= _model(row)
    if model_control:
        for verb in ("load", "unload"):
            body = v2.LoadRequest if verb == "load" else base.Body
            operation = _operation(f"{verb.capitalize()} a model", base.Empty, [_dapp_name(catalogue)])
            paths[f"/v2/repository/models/{{name}}/{verb}"] = {"post": operation | _optional(body)}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Leben Mesh", "version": version, "description": "Clinical models, paid per call by x402."},
        "servers": [{"url": url}],
        "paths": paths,
        "components": {"schemas": _components()},
    }


def _server() -> Json:
    rpc = _operation("Read-only Ethereum JSON-RPC over the ledger", None)
    rpc["requestBody"] = {"required": False, "content": {"application/json": {}}}
    home = _operation("Links; the catalogue as a page if the request accepts HTML", listings.Home)
    home["responses"]["200"]["content"]["text/html"] = {}
    index = _operation("The repository's index", list[v2.IndexRow]) | _optional(v2.IndexRequest)
    return {
        "/": {"get": home},
        "/openapi.json": _get("This page", None),
        "/v2": _get("Server metadata", v2.ServerMetadata),
        "/v2/health/live": _get("Whether the mesh is alive", v2.Live),
        "/v2/health/ready": _get("Whether paid calls can be taken", v2.Ready),
        "/v2/models/stats": _get("Statistics of all models", v2.Statistics),
        "/v2/repository/index": {"post": index},
        "/v1/rpc": {"post": rpc},
    }


def _catalogue(catalogue: list[Json]) -> Json:
    return {
        "/v1/catalogue": _get("The DApps and their prices", listings.Catalogue),
        "/v1/dapps": _get("The DApps with their health, and those that are not served", listings.DApps),
        "/v1/dapps/{name}": _get("One DApp with its model cards", listings.DAppDetails, [_dapp_name(catalogue)]),
    }


def _money() -> Json:
    channel, receipt = _parameter("id", HASH_PATTERN), _parameter("id", HASH_PATTERN)
    epoch, owner = _parameter("number", "^[0-9]{1,9}$"), _parameter("owner", requests.ADDRESS_PATTERN)
    query = {"owner": requests.ADDRESS_PATTERN} | dict.fromkeys(("from", "to"), "^[0-9]{1,12}$")
    words = [_parameter(name, pattern, "query") for name, pattern in (query | {"after": "^[0-9]{1,18}$"}).items()]
    form = {"name": "format", "in": "query", "required": False, "schema": {"enum": ["json", "csv"]}}
    statement = _get("The reader's charges and earnings, in pages", money.Statement, [*words, form, *SIGNED])
    statement["get"]["responses"]["200"]["content"]["text/csv"] = {}
    initiate, finalize = requests.InitiateRequest, requests.FinalizeRequest
    return {
        "/v1/channels/{id}": _get("A channel", money.Channel, [channel, *SIGNED]),
        "/v1/receipts/{id}": _get("A receipt file", money.ReceiptFile, [receipt, *SIGNED]),
        "/v1/epochs/{number}": _get("A settled epoch", money.Epoch, [epoch, *SIGNED]),
        "/v1/earnings/{owner}": _get("An owner's earnings", money.Earnings, [owner, *SIGNED]),
        "/v1/statements": statement,
        "/v1/earnings/{owner}/withdraw": _post(
            "Move earnings to a wallet", money.Payout, requests.PayoutRequest, owner
        ),
        "/v1/channels/{id}/withdraw/initiate": _post(
            "Give notice of a withdrawal", money.Withdrawal, initiate, channel
        ),
        "/v1/channels/{id}/withdraw/finalize": _post("Finish a withdrawal", money.Withdrawal, finalize, channel),
    }


def _model(row: Json) -> Json:
    default = f"/v2/models/{row['name']}"
    paths: Json = {}
    # Another version may take other tensors: the page describes the default one alone.
    for prefix in (default, f"{default}/versions/{row['version']}"):
        paths[prefix] = _get("Model metadata", v2.ModelMetadata)
        paths[f"{prefix}/ready"] = _get("Whether the model can be called", v2.ModelReady)
        paths[f"{prefix}/config"] = _get("Model configuration", v2.ModelConfig)
        paths[f"{prefix}/stats"] = _get("Statistics of the model", v2.Statistics)
        tensors = {"application/json": {"schema": _infer(row["inputs"])}}
        summary = "Infer, by the Open Inference Protocol V2; binary tensors are taken too"
        paths[f"{prefix}/infer"] = _call(row, summary, v2.InferResponse, tensors)
        if row["diagnose"]:
            files = {"application/octet-stream": {}, "application/json": {"schema": FILE}}
            paths[f"{prefix}/diagnose"] = _call(row, "Answer one clinical file with a report", None, files)
    return paths


def _call(row: Json, summary: str, answer: type[BaseModel] | None, content: Json) -> Json:
    body = {"requestBody": {"required": True, "content": content}}
    if row["price"]["maximum"] == "0":
        return {"post": _operation(summary, answer) | body}
    quote = _operation("The quote, as the 402 that a call without a payment meets", None, PAYMENT[:1])
    return {"post": _operation(summary, answer, PAYMENT) | body, "get": quote}


def _infer(inputs: list[Json]) -> Json:
    """The schema of an infer request of one item; a large or a variable tensor has its datatype alone."""
    rows = [_tensor(row) for row in inputs]
    tensors = {"type": "array", "prefixItems": rows, "items": False, "minItems": len(rows), "maxItems": len(rows)}
    return {"type": "object", "properties": {"id": {"type": ["string", "null"], "maxLength": 256}, "inputs": tensors},
            "required": ["inputs"]}  # fmt: skip


def _tensor(row: Json) -> Json:
    shape, values = row["shape"][1:], _values(row["datatype"])
    fixed = min(shape, default=1) > 0 and prod(shape) <= MAX_LISTED_VALUES
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
        return {"type": "string"}
    dtype = DTYPES[datatype]
    if dtype.kind in "iu":
        return {"type": "integer", "minimum": int(np.iinfo(dtype).min), "maximum": int(np.iinfo(dtype).max)}
    return {"type": "number", "minimum": -60_000, "maximum": 60_000}


def _get(summary: str, answer: Any, parameters: list[Json] | None = None) -> Json:
    return {"get": _operation(summary, answer, parameters)}


def _post(summary: str, answer: type[BaseModel], body: type[BaseModel], parameter: Json) -> Json:
    """A route that moves money by the signature of its owner."""
    content = {"application/json": {"schema": _reference(body)}}
    return {"post": _operation(summary, answer, [parameter]) | {"requestBody": {"required": True, "content": content}}}


def _optional(body: type[BaseModel]) -> Json:
    return {"requestBody": {"required": False, "content": {"application/json": {"schema": _reference(body)}}}}


def _operation(summary: str, answer: Any, parameters: list[Json] | None = None) -> Json:
    """An operation; `answer` is a schema, a list of one, or None for JSON that is not described."""
    content = {"schema": _reference(answer)} if answer else {}
    return {
        "summary": summary,
        "parameters": parameters or [],
        "responses": {
            "200": {"description": "Answered", "content": {"application/json": content}},
            "default": {
                "description": "Refused; nothing is charged",
                "content": {"application/json": {"schema": _reference(base.Error)}},
            },
        },
    }


def _reference(kind: Any) -> Json:
    if get_args(kind):
        return {"type": "array", "items": _reference(get_args(kind)[0])}
    return {"$ref": TEMPLATE.format(model=kind.__name__)}


def _components() -> Json:
    """The JSON schema of every request and answer."""
    kinds = [
        kind
        for module in (base, listings, money, requests, v2)
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, BaseModel) and kind.__module__ == module.__name__
    ]
    modes: list[Any] = [(kind, "validation" if issubclass(kind, base.Body) else "serialization") for kind in kinds]
    components: Json = models_json_schema(modes, ref_template=TEMPLATE)[1]["$defs"]
    return components


def _dapp_name(catalogue: list[Json]) -> Json:
    schema = {"enum": [row["name"] for row in catalogue]}
    return {"name": "name", "in": "path", "required": True, "schema": schema}


def _parameter(name: str, pattern: str, where: str = "path", description: str = "") -> Json:
    schema = {"type": "string", "pattern": pattern}
    described = {"description": description} if description else {}
    return {"name": name, "in": where, "required": where == "path", "schema": schema} | described


SIGNED = [
    _parameter("Leben-Read-Issued", "^[0-9]{1,12}$", "header") | {"required": True},
    _parameter("Leben-Read-Mesh", "^0x[0-9A-Fa-f]{40}$", "header", "`mesh.receipts` of /v1/catalogue")
    | {"required": True},
    _parameter("Leben-Read-Signature", requests.SIGNATURE_PATTERN, "header") | {"required": True},
]
"""A read is signed by a reader who may see it."""
PAYMENT = [
    _parameter(
        "PAYMENT-SIGNATURE",
        "^[A-Za-z0-9+/]+=*$",
        "header",
        "x402: base64 JSON with the voucher, answering the 402's quote",
    ),
    _parameter("Idempotency-Key", "^[!-~]{1,255}$", "header", "the call's identity: repeating a charged call is free"),
]
FILE = {
    "type": "object",
    "properties": {"file": {"type": "string", "contentEncoding": "base64", "format": "byte"}},
    "required": ["file"],
}
