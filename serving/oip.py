"""Open Inference Protocol V2 over REST: bytes to tensors and back, JSON and binary. No I/O.

Facts: kserve/open-inference-protocol `inference_rest.md` and Triton's binary tensor data extension. What a stock
`tritonclient` sends is the measure: no Content-Type, all outputs binary when none are named. Next: `batcher.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import orjson

from dapps.types import Inputs, Tensor
from serving.errors import CallError

Json = dict[str, Any]
HEADER_LENGTH = "inference-header-content-length"
MAXIMUM_DEPTH = 16


@dataclass(frozen=True, slots=True)
class Wanted:
    """An output a caller named, and whether it wants it as binary."""

    name: str
    binary: bool


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A decoded request: tensors [n, *shape] by name, the outputs to send, and the caller's id."""

    tensors: Inputs
    wanted: tuple[Wanted, ...]
    id: str = ""

    @property
    def items(self) -> int:
        """The batch size n."""
        return len(next(iter(self.tensors.values())))


def metadata(name: str, version: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Json:
    """Model metadata; -1 stands for the batch and for every variable dimension."""

    def rows(tensors: Sequence[Tensor]) -> list[Json]:
        return [{"name": t.name, "datatype": t.datatype, "shape": [-1, *t.shape]} for t in tensors]

    return {
        "name": name,
        "versions": [version],
        "platform": "leben_dapp",
        "inputs": rows(inputs),
        "outputs": rows(outputs),
    }


def decode(
    body: bytes, header_length: str | None, inputs: Sequence[Tensor], outputs: Sequence[Tensor], maximum_items: int
) -> InferRequest:
    """Reads an infer request.

    Args:
        body: JSON, then the blobs of binary inputs in the order they are named.
        header_length: value of `Inference-Header-Content-Length`; None if the body is JSON alone.
        inputs: what the model declares, per item.
        outputs: the same for its outputs.
        maximum_items: largest batch that one call may carry.

    Raises:
        CallError: `bad_request` or `invalid_tensor`, naming the cause but no value.
    """
    cut = _header_length(header_length, len(body))
    try:
        header = orjson.loads(body[:cut])
    except ValueError as error:
        raise CallError("bad_request", "the request's JSON cannot be read") from error
    if not isinstance(header, dict):
        raise CallError("bad_request", "the request is a JSON object with `inputs`")
    tensors = _inputs(_rows(header, "inputs"), memoryview(body)[cut:], {t.name: t for t in inputs})
    missing = [t.name for t in inputs if not t.optional and t.name not in tensors]
    if missing:
        raise CallError("invalid_tensor", f"missing input {missing[0]}")
    if any(array.dtype.kind == "f" and not np.isfinite(array).all() for array in tensors.values()):
        raise CallError("invalid_tensor", "inputs are finite numbers: leave out what is not known")
    sizes = {len(array) for array in tensors.values()}
    if len(sizes) != 1 or not 1 <= sizes.pop() <= maximum_items:
        raise CallError("invalid_tensor", f"all inputs carry the same batch of 1 to {maximum_items} items")
    request_id = header.get("id", "")
    if not isinstance(request_id, str) or len(request_id) > 256:
        raise CallError("bad_request", "id is a string of at most 256 characters")
    return InferRequest(tensors, _wanted(header, outputs), request_id)


def encode(
    name: str, version: str, request: InferRequest, outputs: Inputs, declared: Sequence[Tensor]
) -> tuple[bytes, dict[str, str]]:
    """Writes an infer response: its body and the headers that go with it."""
    kinds = {t.name: t for t in declared}
    rows: list[Json] = []
    blobs: list[bytes] = []
    for want in request.wanted:
        if want.name not in outputs and kinds[want.name].optional:
            continue  # it belongs to an input that the call left out
        array = np.ascontiguousarray(outputs[want.name], dtype=kinds[want.name].dtype)
        row: Json = {"name": want.name, "datatype": kinds[want.name].datatype, "shape": list(array.shape)}
        if want.binary:
            blobs.append(array.tobytes())
            row["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            row["data"] = array.ravel().tolist()
        rows.append(row)
    answer: Json = {"model_name": name, "model_version": version, "outputs": rows}
    if request.id:
        answer["id"] = request.id
    head = orjson.dumps(answer)
    if not blobs:
        return head, {"content-type": "application/json"}
    return head + b"".join(blobs), {"content-type": "application/octet-stream", HEADER_LENGTH: str(len(head))}


def _header_length(raw: str | None, size: int) -> int:
    if raw is None:
        return size
    if not raw.isascii() or not raw.isdigit() or not 0 < int(raw[:12]) <= size:
        raise CallError("bad_request", "Inference-Header-Content-Length is not within the body")
    return int(raw[:12])


def _rows(header: Json, name: str) -> list[Json]:
    rows = header.get(name)
    if not isinstance(rows, list) or len(rows) > 64 or not all(isinstance(row, dict) for row in rows):
        raise CallError("bad_request", f"`{name}` is a list of at most 64 tensors")
    return rows


def _inputs(rows: list[Json], blobs: memoryview, declared: dict[str, Tensor]) -> Inputs:
    tensors: Inputs = {}
    at = 0
    for row in rows:
        name = row.get("name")
        tensor = declared.get(name) if isinstance(name, str) else None
        if tensor is None:
            raise CallError("invalid_tensor", f"unknown input; there are: {', '.join(declared)}")
        if tensor.name in tensors:
            raise CallError("invalid_tensor", f"input {tensor.name} is given twice")
        shape = _shape(row, tensor)
        size = _parameters(row).get("binary_data_size")
        if size is None:
            tensors[tensor.name] = _from_json(row.get("data"), shape, tensor)
            continue
        need = prod(shape) * tensor.dtype.itemsize
        if type(size) is not int or size != need or at + size > len(blobs):
            raise CallError("invalid_tensor", f"input {tensor.name}: binary data is not the {need} bytes of its shape")
        tensors[tensor.name] = np.frombuffer(blobs[at : at + size], dtype=tensor.dtype).reshape(shape)
        at += size
    if at != len(blobs):
        raise CallError("bad_request", "the body is longer than its binary inputs")
    return tensors


def _shape(row: Json, tensor: Tensor) -> tuple[int, ...]:
    shape: Any = row.get("shape")
    whole = isinstance(shape, list) and 1 <= len(shape) <= 16 and all(type(d) is int and 0 < d < 2**31 for d in shape)
    if row.get("datatype") != tensor.datatype or not whole or not tensor.accepts(tuple(shape[1:])):
        raise CallError("invalid_tensor", f"input {tensor.name} is {tensor.datatype} of shape {[-1, *tensor.shape]}")
    return tuple(shape)


def _from_json(data: object, shape: tuple[int, ...], tensor: Tensor) -> np.ndarray[Any, Any]:
    refused = CallError("invalid_tensor", f"input {tensor.name}: data are not {tensor.datatype} values of its shape")
    kinds = {"b": (bool,), "f": (int, float)}.get(tensor.dtype.kind, (int,))
    flat = _leaves(data, prod(shape), kinds)
    if flat is None:
        raise refused
    try:
        with np.errstate(over="raise"):
            return np.array(flat, dtype=tensor.dtype).reshape(shape)
    except (ValueError, OverflowError, FloatingPointError) as error:
        raise refused from error


def _leaves(data: object, count: int, kinds: tuple[type, ...]) -> list[Any] | None:
    """The values of a nested or flat list, or None if they are not exactly `count` of these very types.

    Walked by hand before numpy sees them: 1.5 for an integer would be cut, and one long string among many short ones
    makes numpy take gigabytes.
    """
    if not isinstance(data, list):
        return None
    flat: list[Any] = []
    walks = [iter(data)]
    while walks:
        value = next(walks[-1], walks)
        if value is walks:
            walks.pop()
        elif type(value) is list and len(walks) < MAXIMUM_DEPTH:
            walks.append(iter(value))
        elif type(value) in kinds and len(flat) < count:
            flat.append(value)
        else:
            return None
    return flat if len(flat) == count else None


def _parameters(row: Json) -> Json:
    parameters = row.get("parameters", {})
    if not isinstance(parameters, dict):
        raise CallError("bad_request", "`parameters` is a JSON object")
    return parameters


def _wanted(header: Json, outputs: Sequence[Tensor]) -> tuple[Wanted, ...]:
    every = _parameters(header).get("binary_data_output") is True
    if not header.get("outputs"):
        return tuple(Wanted(tensor.name, every) for tensor in outputs)
    names = {tensor.name for tensor in outputs}
    wanted = []
    for row in _rows(header, "outputs"):
        if not isinstance(row.get("name"), str) or row["name"] not in names:
            raise CallError("invalid_tensor", f"unknown output; there are: {', '.join(sorted(names))}")
        wanted.append(Wanted(row["name"], _parameters(row).get("binary_data", every) is True))
    return tuple(wanted)
