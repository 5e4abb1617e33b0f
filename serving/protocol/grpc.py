"""Open Inference Protocol V2 over gRPC: a serialized message to tensors and back. No I/O.

Facts: kserve/open-inference-protocol `open_inference_grpc.proto`; the messages are those that `tritonclient` ships.
Inputs come raw or typed, outputs always go raw: a stock client reads no typed numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from google.protobuf.message import DecodeError
from tritonclient.grpc.service_pb2 import ModelInferRequest, ModelInferResponse

from dapps.api import Inputs, Tensor
from serving.errors import CallError
from serving.protocol.rest import InferRequest, RequestedOutput, check_parameters, request_id, schedule, unknown_output
from serving.tensors import Array, RawTensor, Shape, collect, from_raw, from_values, to_raw

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


def parse(body: bytes) -> Any:
    """The message.

    Raises:
        CallError: `bad_request`.
    """
    try:
        return ModelInferRequest.FromString(body)
    except DecodeError as error:
        raise CallError("bad_request", "the ModelInferRequest cannot be read") from error


def decode(body: bytes, inputs: Sequence[Tensor], outputs: Sequence[Tensor], maximum_items: int) -> InferRequest:
    """Reads a serialized `ModelInferRequest`; arguments and refusals are those of `oip.decode`."""
    message = parse(body)
    if max(len(message.inputs), len(message.outputs)) > MAX_TENSORS:
        raise CallError("bad_request", f"a request names at most {MAX_TENSORS} tensors")
    tensors = collect(_given(message), inputs, maximum_items)
    scheduled = schedule(_parameters(message.parameters))
    return InferRequest(tensors, _wanted(message, outputs), request_id(message.id), *scheduled)


def encode(name: str, version: str, request: InferRequest, outputs: Inputs, declared: Sequence[Tensor]) -> bytes:
    """Writes a `ModelInferResponse`, serialized."""
    kinds = {t.name: t for t in declared}
    message = ModelInferResponse(model_name=name, model_version=version, id=request.id)
    for want in request.wanted:
        if want.name not in outputs and kinds[want.name].optional:
            continue  # it belongs to an input that the call left out
        array, tensor = outputs[want.name], kinds[want.name]
        message.outputs.add(name=want.name, datatype=tensor.datatype, shape=array.shape)
        message.raw_output_contents.append(bytes(to_raw(array, tensor)))
    return bytes(message.SerializeToString())


def _given(message: Any) -> Iterator[RawTensor]:
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
            return from_values(list(getattr(row.contents, field)), shape, tensor)

        yield RawTensor(row.name, row.datatype, list(row.shape), read)


def _parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: getattr(value, value.WhichOneof("parameter_choice") or "", None) for name, value in given.items()}


def _wanted(message: Any, outputs: Sequence[Tensor]) -> tuple[RequestedOutput, ...]:
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
