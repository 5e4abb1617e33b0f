"""Decodes and encodes tensors of the Open Inference Protocol V2 over gRPC. No I/O.

Specification: kserve/open-inference-protocol `open_inference_grpc.proto`; the messages are those of `tritonclient`.
Inputs come raw or typed. Outputs always go raw: a stock client reads no typed numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError
from tritonclient.grpc.service_pb2 import ModelInferRequest, ModelInferResponse

from dapps.api import Inputs, Tensor
from serving.errors import CallError
from serving.protocol.rest import InferRequest, RequestedOutput, check_parameters, request_id, schedule, unknown_output
from serving.tensors import MAX_DIMENSIONS, Array, RawTensor, Shape, collect, from_raw, from_values, to_raw

CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""Field of `InferTensorContents` by datatype; FP16 and BF16 have none and come raw."""
MAX_TENSORS = 64
MODEL_NAME, MODEL_VERSION = 1, 2
MAX_NAME_BYTES = 1024
MAX_FIELDS = 1024
"""Top-level fields of a message. Bounds the scan: a 64 MiB message of two-byte fields would hold the event loop."""
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
MAX_PARTS = 100_000
"""Fields of a message and of all messages within it, which are counted before it is parsed."""
MAX_PACKED_BYTES = 40_000_000
"""One list of typed numbers: five million of the longest, as in JSON."""
MAX_VALUES = 5_000_000
TEXTS = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)


def model_of(body: bytes) -> tuple[str, str]:
    """The model's name and version in a serialized `ModelInferRequest`.

    Scans the top-level fields of the wire format and skips their contents, so that whoever routes the message does not
    parse its tensors. As in protobuf, the last of several values counts, and unknown fields are ignored.

    Raises:
        CallError: `bad_request`: the message is cut or malformed, or has too many fields.
    """
    values = {MODEL_NAME: b"", MODEL_VERSION: b""}
    at, size = 0, len(body)
    for _ in range(MAX_FIELDS):
        if at == size:
            break
        tag, at = _varint(body, at)
        field, kind = tag >> 3, tag & 7
        if kind == LENGTH:
            length, at = _varint(body, at)
            if field in values:
                if length > MAX_NAME_BYTES:
                    raise _unreadable()
                values[field] = body[at : at + length]
            at += length
        elif kind == VARINT:
            _, at = _varint(body, at)
        elif kind in (FIXED64, FIXED32):
            at += 8 if kind == FIXED64 else 4
        else:
            raise _unreadable()
        if at > size or not field:
            raise _unreadable()
    else:
        if at != size:
            raise _unreadable()
    try:
        return values[MODEL_NAME].decode(), values[MODEL_VERSION].decode()
    except UnicodeDecodeError:
        raise _unreadable() from None


def check_parts(body: bytes) -> None:
    """Counts the fields of a message and of those within it, before protobuf builds an object of 50 bytes for each.

    Raises:
        CallError: `body_too_large`, or `bad_request`: it is cut or malformed.
    """
    left = MAX_PARTS
    waiting = [(0, len(body), ModelInferRequest.DESCRIPTOR)]
    while waiting:
        at, end, kind = waiting.pop()
        while at < end:
            left -= 1
            if left < 0:
                raise CallError("body_too_large", f"a message has at most {MAX_PARTS} fields: send tensors raw")
            tag, at = _varint(body, at)
            field, wire = kind.fields_by_number.get(tag >> 3), tag & 7
            if wire == LENGTH:
                length, at = _varint(body, at)
                at += length
                if field is not None and field.message_type is not None:
                    waiting.append((at - length, at, field.message_type))
                elif field is not None and field.type not in TEXTS and length > MAX_PACKED_BYTES:
                    raise CallError("body_too_large", f"a list has at most {MAX_PACKED_BYTES} bytes: send tensors raw")
            elif wire == VARINT:
                _, at = _varint(body, at)
            elif wire in (FIXED64, FIXED32):
                at += 8 if wire == FIXED64 else 4
            else:
                raise _unreadable()
            if at > end:
                raise _unreadable()


def _varint(body: bytes, at: int) -> tuple[int, int]:
    """A varint's value and the place after it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(body):
            break
        byte = body[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise _unreadable()


def _unreadable() -> CallError:
    return CallError("bad_request", "the ModelInferRequest cannot be read")


def decode(body: bytes, inputs: Sequence[Tensor], outputs: Sequence[Tensor], maximum_items: int) -> InferRequest:
    """Reads a serialized `ModelInferRequest`; arguments and refusals are those of `rest.decode`."""
    check_parts(body)
    try:
        message = ModelInferRequest.FromString(body)
    except DecodeError as error:
        raise _unreadable() from error
    if max(len(message.inputs), len(message.outputs)) > MAX_TENSORS:
        raise CallError("bad_request", f"a request names at most {MAX_TENSORS} tensors")
    tensors = collect(_raw_tensors(message), inputs, maximum_items)
    priority, timeout_s = schedule(_parameters(message.parameters))
    return InferRequest(
        tensors=tensors,
        outputs=_requested(message, outputs),
        id=request_id(message.id),
        priority=priority,
        timeout_s=timeout_s,
    )


def encode(name: str, version: str, request: InferRequest, outputs: Inputs, declared: Sequence[Tensor]) -> bytes:
    """Writes a serialized `ModelInferResponse`."""
    kinds = {tensor.name: tensor for tensor in declared}
    message = ModelInferResponse(model_name=name, model_version=version, id=request.id)
    for output in request.outputs:
        if output.name not in outputs and kinds[output.name].optional:
            continue  # it belongs to an input that the call left out
        array, tensor = outputs[output.name], kinds[output.name]
        message.outputs.add(name=output.name, datatype=tensor.datatype, shape=array.shape)
        message.raw_output_contents.append(bytes(to_raw(array, tensor)))
    return bytes(message.SerializeToString())


def _raw_tensors(message: Any) -> Iterator[RawTensor]:
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise CallError("bad_request", "raw_input_contents holds all inputs or none")
    for number, row in enumerate(message.inputs):
        check_parameters(_parameters(row.parameters))

        def read(shape: Shape, tensor: Tensor, number: int = number, row: Any = row) -> Array:
            if raw:
                return from_raw(memoryview(raw[number]), shape, tensor)
            field = CONTENTS.get(tensor.datatype)
            if field is None:
                raise CallError("invalid_tensor", f"input {tensor.name}: {tensor.datatype} is sent raw")
            values = getattr(row.contents, field)
            if len(values) > MAX_VALUES:
                raise CallError("body_too_large", f"input {tensor.name} has over {MAX_VALUES} values: send it raw")
            return from_values(list(values), shape, tensor)

        yield RawTensor(row.name, row.datatype, list(row.shape[: MAX_DIMENSIONS + 1]), read)


def _parameters(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: getattr(value, value.WhichOneof("parameter_choice") or "", None) for name, value in fields.items()}


def _requested(message: Any, outputs: Sequence[Tensor]) -> tuple[RequestedOutput, ...]:
    if not message.outputs:
        return tuple(RequestedOutput(tensor.name, True) for tensor in outputs)
    names = [row.name for row in message.outputs]
    if not set(names) <= {tensor.name for tensor in outputs}:
        raise unknown_output(outputs)
    if len(set(names)) != len(names):
        raise CallError("invalid_tensor", "an output is asked for twice")
    for row in message.outputs:
        check_parameters(_parameters(row.parameters))
    return tuple(RequestedOutput(name, True) for name in names)
