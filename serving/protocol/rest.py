"""Decodes and encodes tensors of the Open Inference Protocol V2 over REST, in JSON and binary. No I/O.

Specification: kserve/open-inference-protocol `inference_rest.md`, and Triton's extensions for binary tensor data,
parameters and scheduling. A stock `tritonclient` sends no Content-Type, and expects all outputs as binary when it names
none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from dapps.api import Inputs, Tensor
from dapps.structure import LARGE_JSON, StructureRefused, check_json
from serving.errors import CallError
from serving.tensors import Array, RawTensor, Shape, collect, from_json, from_raw, to_json, to_raw

Json = dict[str, Any]
HEADER_LENGTH = "inference-header-content-length"
MAX_TIMEOUT_S = 100.0
NOT_SERVED = ("shared_memory_region", "classification")
"""Parameters that change what a tensor means: refused, because a call that ignores them has a wrong answer."""


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """An output that a caller names, and whether it is to be sent as binary."""

    name: str
    binary: bool


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A decoded request.

    Attributes:
        tensors: arrays [n, *shape] by name.
        outputs: the outputs to send.
        id: the caller's name for the call; the response repeats it.
        priority: 1 is first among the caller's own calls; 0 is after all that have one.
        timeout_s: longest wait in the queue; None: the server's limit.
    """

    tensors: Inputs
    outputs: tuple[RequestedOutput, ...]
    id: str = ""
    priority: int = 0
    timeout_s: float | None = None

    @property
    def items(self) -> int:
        """The batch size n."""
        return len(next(iter(self.tensors.values())))


def decode(
    body: bytes, header_length: str | None, inputs: Sequence[Tensor], outputs: Sequence[Tensor], maximum_items: int
) -> InferRequest:
    """Reads an infer request.

    Args:
        body: JSON, then the binary inputs in the order in which they are named.
        header_length: value of `Inference-Header-Content-Length`; None if the body is JSON alone.
        inputs: the model's inputs, per item.
        outputs: the model's outputs, per item.
        maximum_items: largest batch of one call.

    Raises:
        CallError: `bad_request` or `invalid_tensor`, naming the cause but no value.
    """
    cut = _header_length(header_length, len(body))
    text = body[:cut]
    try:
        check_json(text, LARGE_JSON)
        header = orjson.loads(text)
    except StructureRefused as error:
        raise CallError(
            "body_too_large", f"the request's JSON is too large, {error.cause}: send tensors as binary"
        ) from None
    except ValueError as error:
        raise CallError("bad_request", "the request's JSON cannot be read") from error
    if not isinstance(header, dict):
        raise CallError("bad_request", "the request is a JSON object with `inputs`")
    blobs = _Blobs(memoryview(body)[cut:])
    tensors = collect(_raw_tensors(_rows(header, "inputs"), blobs), inputs, maximum_items)
    if blobs.at != len(blobs.raw):
        raise CallError("bad_request", "the body is longer than its binary inputs")
    priority, timeout_s = schedule(_parameters(header))
    return InferRequest(
        tensors=tensors,
        outputs=_requested(header, outputs),
        id=request_id(_field(header, "id", "")),
        priority=priority,
        timeout_s=timeout_s,
    )


def encode(
    name: str, version: str, request: InferRequest, outputs: Inputs, declared: Sequence[Tensor]
) -> tuple[bytes, dict[str, str]]:
    """Writes an infer response: its body and headers.

    A BYTES output that is not UTF-8 is sent as binary even if JSON was requested, which cannot carry it.
    """
    kinds = {tensor.name: tensor for tensor in declared}
    rows: list[Json] = []
    blobs: list[bytes | memoryview] = []
    for output in request.outputs:
        if output.name not in outputs and kinds[output.name].optional:
            continue  # it belongs to an input that the call left out
        array, tensor = outputs[output.name], kinds[output.name]
        row: Json = {"name": output.name, "datatype": tensor.datatype, "shape": list(array.shape)}
        values = None if output.binary else to_json(array, tensor)
        if values is None:
            blobs.append(to_raw(array, tensor))
            row["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            row["data"] = values
        rows.append(row)
    answer: Json = {"model_name": name, "model_version": version, "outputs": rows}
    if request.id:
        answer["id"] = request.id
    head = orjson.dumps(answer)
    if not blobs:
        return head, {"content-type": "application/json"}
    return b"".join((head, *blobs)), {"content-type": "application/octet-stream", HEADER_LENGTH: str(len(head))}


def schedule(parameters: Mapping[str, Any]) -> tuple[int, float | None]:
    """A request's priority, and its timeout in seconds; on the wire it is in microseconds, and 0 means none.

    Raises:
        CallError: `bad_request`.
    """
    priority, timeout_us = _field(parameters, "priority", 0), _field(parameters, "timeout", 0)
    if any(type(value) is not int or not 0 <= value < 2**64 for value in (priority, timeout_us)):
        raise CallError("bad_request", "priority, and timeout in microseconds, are whole numbers of at least 0")
    return priority, min(timeout_us / 1e6, MAX_TIMEOUT_S) if timeout_us else None


def request_id(value: object) -> str:
    """The caller's id of the call.

    Raises:
        CallError: `bad_request`.
    """
    if not isinstance(value, str) or len(value) > 256:
        raise CallError("bad_request", "id is a string of at most 256 characters")
    return value


def check_parameters(parameters: Mapping[str, Any]) -> None:
    """Refuses parameters that would give a wrong answer if they were ignored.

    Raises:
        CallError: `bad_request`.
    """
    for name in NOT_SERVED:
        if parameters.get(name):
            raise CallError("bad_request", f"the parameter {name} is not served here: send and ask for tensors")


def unknown_output(outputs: Sequence[Tensor]) -> CallError:
    """Refuses an output that the model does not have."""
    return CallError(
        "invalid_tensor", f"unknown output; there are: {', '.join(sorted(tensor.name for tensor in outputs))}"
    )


@dataclass(slots=True)
class _Blobs:
    """The binary part of a body, consumed from its beginning."""

    raw: memoryview
    at: int = 0

    def take(self, size: object, tensor: Tensor) -> memoryview:
        if type(size) is not int or not 0 <= size <= len(self.raw) - self.at:
            raise CallError("invalid_tensor", f"input {tensor.name}: binary_data_size is not within the body")
        self.at += size
        return self.raw[self.at - size : self.at]


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


def _raw_tensors(rows: list[Json], blobs: _Blobs) -> Iterator[RawTensor]:
    for row in rows:
        parameters = _parameters(row)
        check_parameters(parameters)
        size = parameters.get("binary_data_size")

        def read(shape: Shape, tensor: Tensor, size: object = size, data: object = row.get("data")) -> Array:
            if size is None:
                return from_json(data, shape, tensor)
            return from_raw(blobs.take(size, tensor), shape, tensor)

        yield RawTensor(row.get("name"), row.get("datatype"), row.get("shape"), read)


def _field(row: Mapping[str, Any], name: str, default: Any) -> Any:
    """An optional field of JSON: null stands for one that is absent."""
    value = row.get(name)
    return default if value is None else value


def _parameters(row: Json) -> Json:
    parameters = _field(row, "parameters", {})
    if not isinstance(parameters, dict):
        raise CallError("bad_request", "`parameters` is a JSON object")
    return parameters


def _requested(header: Json, outputs: Sequence[Tensor]) -> tuple[RequestedOutput, ...]:
    every = _parameters(header).get("binary_data_output") is True
    if not header.get("outputs"):
        return tuple(RequestedOutput(tensor.name, every) for tensor in outputs)
    names = {tensor.name for tensor in outputs}
    requested: dict[str, RequestedOutput] = {}
    for row in _rows(header, "outputs"):
        name = row.get("name")
        if not isinstance(name, str) or name not in names:
            raise unknown_output(outputs)
        if name in requested:
            raise CallError("invalid_tensor", f"output {name} is asked for twice")
        check_parameters(_parameters(row))
        requested[name] = RequestedOutput(name, _field(_parameters(row), "binary_data", every) is True)
    return tuple(requested.values())
