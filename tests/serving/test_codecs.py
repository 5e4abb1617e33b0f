"""Checks the V2 codecs: any bytes give a valid request or a refusal, and a valid one survives a round trip."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import orjson
import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tritonclient.grpc.service_pb2 import ModelInferRequest
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from dapps import Tensor
from dapps.api.types import DTYPES
from serving.errors import CallError
from serving.protocol import grpc, rest
from serving.protocol.refusals import STATUS
from serving.tensors import MAX_STRINGS
from tests.examples import examples

INPUTS = (
    Tensor("X", "FP32", [2]),
    Tensor("N", "INT8", [-1], optional=True),
    Tensor("S", "BYTES", [-1], optional=True),
    Tensor("B", "BOOL", [-1, 2], optional=True),
    Tensor("H", "BF16", [-1], optional=True),
)
OUTPUTS = (Tensor("Y", "FP32", [2]), Tensor("T", "BYTES", [1]))
GOOD = {"inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}


def check(request: rest.InferRequest) -> None:
    """A request that was let through is what its declaration says, to the last row."""
    declared = {tensor.name: tensor for tensor in INPUTS}
    assert "X" in request.tensors and set(request.tensors) <= set(declared)
    assert 1 <= request.items <= 4
    for name, array in request.tensors.items():
        tensor = declared[name]
        assert array.dtype == tensor.dtype and tensor.accepts(array.shape[1:]) and len(array) == request.items
        assert not tensor.is_float or np.isfinite(array).all()
    assert {want.name for want in request.outputs} <= {tensor.name for tensor in OUTPUTS}
    assert request.timeout_s is None or 0 < request.timeout_s <= rest.MAX_TIMEOUT_S


def judge(decode: Any, *what: Any) -> rest.InferRequest | None:
    """The request if it was let through, which is then checked; None if it was refused."""
    try:
        request: rest.InferRequest = decode(*what, INPUTS, OUTPUTS, 4)
    except CallError as error:
        assert 400 <= STATUS[error.code] < 500 and error.message
        return None
    check(request)
    return request


def numbers(data: Any, dtype: np.dtype[Any]) -> list[Any]:
    """A row's JSON data as flat values of a datatype, by numpy alone."""
    flat = np.asarray(data, dtype=object).ravel()
    return [word.encode() for word in flat] if dtype.kind == "O" else flat.astype(dtype).tolist()


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=6), st.just("X")
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
NUMBER = st.one_of(st.integers(-3, 9), st.integers(-(2**70), 2**70), st.booleans(), st.floats(), st.text(max_size=2))
ROW = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from([t.name for t in INPUTS + OUTPUTS]) | JSON,
        "datatype": st.sampled_from([*DTYPES, "fp32", ""]) | JSON,
        "shape": st.lists(NUMBER, max_size=3) | st.just([1, 2]) | JSON,
        "data": st.lists(NUMBER, max_size=4) | st.just([1, 2]) | JSON,
        "parameters": st.dictionaries(
            st.sampled_from(["binary_data_size", "binary_data", "classification", "shared_memory_region"]), NUMBER
        )
        | JSON,
    },
)
REQUEST = st.fixed_dictionaries(
    {},
    optional={
        "id": st.text(max_size=5) | JSON,
        "inputs": st.lists(ROW, max_size=3) | JSON | st.just(GOOD["inputs"]),
        "outputs": st.lists(ROW, max_size=3) | JSON,
        "parameters": st.dictionaries(st.sampled_from(["priority", "timeout", "binary_data_output", "x"]), NUMBER)
        | JSON,
    },
)


@settings(max_examples=examples(600))
@given(request=REQUEST, tail=st.binary(max_size=24), length=st.sampled_from([None, "", "0", "-1", "1e3", "right", "²"]))
@example(request=GOOD | {"inputs": [GOOD["inputs"][0] | {"shape": [2**31, 2**31]}]}, tail=b"", length=None)
@example(request=GOOD, tail=b"", length=None)
@example(request=GOOD, tail=b"", length="")
def test_any_json_is_a_valid_request_or_refused(request: dict[str, Any], tail: bytes, length: str | None) -> None:
    head = json.dumps(request).encode()
    accepted = judge(rest.decode, head + tail, str(len(head)) if length == "right" else length)
    assert accepted or request != GOOD or tail or length is not None, "a good request is not refused"
    rows = {row["name"]: row for row in request["inputs"]} if accepted else {}
    assert accepted is None or set(accepted.tensors) == set(rows)
    for name, row in rows.items():
        array = accepted.tensors[name]
        assert list(array.shape) == row["shape"]
        assert "binary_data_size" in row.get("parameters", {}) or array.ravel().tolist() == numbers(
            row["data"], array.dtype
        )


@settings(max_examples=examples(300))
@given(body=st.binary(max_size=60), length=st.none() | st.integers(-2, 70).map(str))
def test_any_bytes_are_refused(body: bytes, length: str | None) -> None:
    assert judge(rest.decode, body, length) is None
    assert judge(grpc.decode, body) is None


MESSAGE = st.lists(
    st.tuples(
        st.sampled_from(["X", "N", "S", "B", "H", "Y", ""]),
        st.sampled_from([*DTYPES, ""]),
        st.lists(st.integers(-1, 3) | st.integers(-(2**63), 2**63 - 1), max_size=3),
        st.sampled_from([*sorted(set(grpc.CONTENTS.values())), ""]),
        st.integers(0, 5),
        st.none() | st.binary(max_size=12),
    ),
    max_size=4,
)


@settings(max_examples=examples(400))
@given(
    rows=MESSAGE, parameters=st.dictionaries(st.sampled_from(["priority", "timeout"]), st.integers(-(2**63), 2**63 - 1))
)
def test_any_message_is_a_valid_request_or_refused(rows: list[Any], parameters: dict[str, int]) -> None:
    message = ModelInferRequest(model_name="m")
    for name, value in parameters.items():
        message.parameters[name].int64_param = value
    for name, datatype, shape, field, count, raw in rows:
        row = message.inputs.add(name=name, datatype=datatype, shape=shape)
        if field:
            values = [b"ab"] * count if field == "bytes_contents" else [count % 2] * count
            getattr(row.contents, field).extend(values)
        if raw is not None:
            message.raw_input_contents.append(raw)
    accepted = judge(grpc.decode, message.SerializeToString())
    shapes = {name: shape for name, _, shape, *_ in rows}
    assert accepted is None or {name: list(array.shape) for name, array in accepted.tensors.items()} == shapes


def whole(what: dict[str, Any]) -> bytes:
    return json.dumps({"inputs": [GOOD["inputs"][0] | what]}).encode()


BLOB = {"parameters": {"binary_data_size": 8}}
BAD = [
    pytest.param(whole({})[:-3], None, id="truncated JSON"),
    pytest.param(whole({"data": None, "parameters": {"binary_data_size": 8}}) + b"\0" * 7, "head", id="truncated blob"),
    pytest.param(whole({"parameters": {"binary_data_size": 8}}) + b"\0" * 9, "head", id="bytes left over"),
    pytest.param(whole({"parameters": {"binary_data_size": 4}}) + b"\0" * 4, "head", id="wrong byte count"),
    pytest.param(whole({"parameters": {"binary_data_size": -8}}), None, id="negative byte count"),
    pytest.param(whole({"parameters": {"binary_data_size": 8.0}}) + b"\0" * 8, "head", id="byte count no integer"),
    pytest.param(whole({"shape": [-1, 2]}), None, id="negative shape"),
    pytest.param(whole({"shape": [2**62, 2]}), None, id="overflowing shape"),
    pytest.param(whole({"shape": [0, 2], "data": []}), None, id="empty batch"),
    pytest.param(whole({"shape": [True, 2]}), None, id="shape of booleans"),
    pytest.param(b'{"inputs":' + b"[" * 5000 + b"]" * 5000 + b"}", None, id="deep JSON"),
    pytest.param(whole({"data": json.loads("[" * 40 + "1" + "]" * 40)}), None, id="deep data"),
    pytest.param(whole({"datatype": "FLOAT32"}), None, id="wrong dtype name"),
    pytest.param(whole({"datatype": "fp32"}), None, id="dtype in lower case"),
    pytest.param(json.dumps(GOOD | {"outputs": [{"name": "Q"}]}).encode(), None, id="unknown output"),
    pytest.param(json.dumps(GOOD | {"outputs": [{"name": "Y"}] * 2}).encode(), None, id="output twice"),
    pytest.param(json.dumps({"inputs": GOOD["inputs"] * 2}).encode(), None, id="input twice"),
    pytest.param(whole({"data": [float("nan"), 1]}), None, id="NaN in JSON"),
    pytest.param(whole(BLOB) + np.array([np.nan, 1], "<f4").tobytes(), "head", id="NaN"),
    pytest.param(whole(BLOB) + np.array([np.inf, 1], "<f4").tobytes(), "head", id="infinity"),
    pytest.param(whole({"data": [1e39, 1]}), None, id="above the datatype"),
    pytest.param(whole({"parameters": {"shared_memory_region": "r"}}), None, id="shared memory"),
    pytest.param(json.dumps(GOOD | {"parameters": {"priority": -1}}).encode(), None, id="negative priority"),
    pytest.param(json.dumps(GOOD | {"parameters": {"timeout": "5"}}).encode(), None, id="timeout as text"),
    pytest.param(json.dumps(GOOD | {"id": 5}).encode(), None, id="id no text"),
    pytest.param(json.dumps(GOOD).encode(), "99999999999999999999", id="header length past the body"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "length"), BAD)
def test_bad_input_is_a_400(body: bytes, length: str | None) -> None:
    cut = str(body.rindex(b"}]}") + 3) if length == "head" else length
    with pytest.raises(CallError) as refused:
        rest.decode(body, cut, INPUTS, OUTPUTS, 4)
    assert STATUS[refused.value.code] == 400


def binary(name: str, datatype: str, shape: list[int], blob: bytes) -> tuple[bytes, str]:
    x = GOOD["inputs"][0] | {"shape": [shape[0], 2], "data": [0.5] * (2 * shape[0])}
    row = {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(blob)}}
    head = json.dumps({"inputs": [x, row]}).encode()
    return head + blob, str(len(head))


@settings(max_examples=examples(100))
@given(values=st.lists(st.binary(max_size=9), min_size=1, max_size=6))
def test_bytes_come_and_go_as_the_stock_client_packs_them(values: list[bytes]) -> None:
    packed = serialize_byte_tensor(np.array(values, dtype=object)).item()
    body, length = binary("S", "BYTES", [1, len(values)], packed)
    request = rest.decode(body, length, INPUTS, OUTPUTS, 4)
    assert request.tensors["S"].tolist() == [values]
    outputs = {"Y": np.zeros((1, 2), "f4"), "T": np.array([[values[0]]], dtype=object)}
    request_of_both = rest.InferRequest(
        request.tensors, (rest.RequestedOutput("T", True), rest.RequestedOutput("Y", True))
    )
    answer, headers = rest.encode("m", "1", request_of_both, outputs, OUTPUTS)
    cut = int(headers[rest.HEADER_LENGTH])
    size = json.loads(answer[:cut])["outputs"][0]["parameters"]["binary_data_size"]
    assert deserialize_bytes_tensor(answer[cut : cut + size]).tolist() == [values[0]]


def test_bytes_that_are_no_text_go_as_binary_even_if_json_was_asked_for() -> None:
    outputs = {"Y": np.zeros((1, 2), "f4"), "T": np.array([[b"\xff"]], dtype=object)}
    request_of_both = rest.InferRequest(outputs, (rest.RequestedOutput("Y", False), rest.RequestedOutput("T", False)))
    answer, headers = rest.encode("m", "1", request_of_both, outputs, OUTPUTS)
    rows = orjson.loads(answer[: int(headers[rest.HEADER_LENGTH])])["outputs"]
    assert rows[0]["data"] == [0.0, 0.0] and rows[1]["parameters"] == {"binary_data_size": 5}
    assert answer.endswith(struct.pack("<I", 1) + b"\xff")


def test_a_bool_is_true_or_false_whatever_byte_it_came_as() -> None:
    body, length = binary("B", "BOOL", [1, 2, 2], bytes([0, 1, 2, 255]))
    array = rest.decode(body, length, INPUTS, OUTPUTS, 4).tensors["B"]
    assert array.view("u1").ravel().tolist() == [0, 1, 1, 1]


def test_brain_floats_come_as_binary_and_as_json_and_are_finite() -> None:
    dtype = DTYPES["BF16"]
    body, length = binary("H", "BF16", [1, 3], np.array([1.5, -2, 3e38], dtype).tobytes())
    assert rest.decode(body, length, INPUTS, OUTPUTS, 4).tensors["H"].astype("f4")[0, :2].tolist() == [1.5, -2.0]
    rows = [*GOOD["inputs"], {"name": "H", "datatype": "BF16", "shape": [1, 1], "data": [0.25]}]
    request = rest.decode(json.dumps({"inputs": rows}).encode(), None, INPUTS, OUTPUTS, 4)
    assert request.tensors["H"].dtype == dtype and float(request.tensors["H"][0, 0]) == 0.25
    body, length = binary("H", "BF16", [1, 1], np.array([np.nan], dtype).tobytes())
    with pytest.raises(CallError, match="finite"):
        rest.decode(body, length, INPUTS, OUTPUTS, 4)


def test_a_million_tiny_strings_are_refused_before_they_are_read() -> None:
    inputs = (Tensor("S", "BYTES", [-1]),)
    row = {"name": "S", "datatype": "BYTES", "shape": [1, MAX_STRINGS + 1]}
    head = json.dumps({"inputs": [row | {"parameters": {"binary_data_size": 4 * MAX_STRINGS + 4}}]}).encode()
    with pytest.raises(CallError, match="at most"):
        rest.decode(head + bytes(4 * MAX_STRINGS + 4), str(len(head)), inputs, OUTPUTS, 4)


def test_typed_contents_that_do_not_fit_their_datatype_are_refused() -> None:
    message = ModelInferRequest()
    message.inputs.add(name="X", datatype="FP32", shape=[1, 2]).contents.fp32_contents.extend([1, 2])
    message.inputs.add(name="N", datatype="INT8", shape=[1, 1]).contents.int_contents.append(300)
    with pytest.raises(CallError, match="INT8"):
        grpc.decode(message.SerializeToString(), INPUTS, OUTPUTS, 4)
    message.inputs[1].contents.int_contents[0] = -128
    assert grpc.decode(message.SerializeToString(), INPUTS, OUTPUTS, 4).tensors["N"].tolist() == [[-128]]


TEXT = st.text(max_size=20)
MESSAGES = st.builds(
    lambda name, version, id, raw, priority: ModelInferRequest(
        model_name=name,
        model_version=version,
        id=id,
        raw_input_contents=raw,
        inputs=[{"name": "X", "datatype": "FP32", "shape": [1, 2]}] * len(raw),
        parameters={"priority": {"int64_param": priority}},
    ),
    TEXT,
    TEXT,
    TEXT,
    st.lists(st.binary(max_size=300), max_size=4),
    st.integers(-(2**63), 2**63 - 1),
)


@settings(max_examples=examples(200))
@given(MESSAGES, st.binary(max_size=12))
@example(ModelInferRequest(model_name="first"), ModelInferRequest(model_name="last").SerializeToString())
def test_the_scan_of_a_message_finds_the_model_that_parsing_finds(message: ModelInferRequest, more: bytes) -> None:
    body = message.SerializeToString()
    assert grpc.model_of(body) == (message.model_name, message.model_version)
    try:
        scanned = grpc.model_of(body + more)
    except CallError as error:
        assert error.code == "bad_request"
        return
    try:
        parsed = ModelInferRequest.FromString(body + more)
    except DecodeError:  # it is malformed below the top level: the replica refuses it
        return
    assert scanned == (parsed.model_name, parsed.model_version)


@settings(max_examples=examples(100))
@given(MESSAGES, st.data())
def test_a_message_that_is_cut_is_refused_or_names_no_other_model(
    message: ModelInferRequest, data: st.DataObject
) -> None:
    body = message.SerializeToString()
    cut = body[: data.draw(st.integers(0, len(body)))]
    try:
        name, version = grpc.model_of(cut)
    except CallError as error:
        assert error.code == "bad_request"
    else:
        assert name in ("", message.model_name) and version in ("", message.model_version)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"\x18\x00" * (grpc.MAX_FIELDS + 1), id="more fields than are scanned"),
        pytest.param(b"\x0a\x81\x08" + b"n" * 1025, id="a name of more than a kilobyte"),
        pytest.param(b"\x0a\xff\xff\xff\xff\x0f", id="a name longer than the message"),
        pytest.param(b"\xff" * 11, id="a number that does not end"),
        pytest.param(b"\x0a\x01\xff", id="a name that is no text"),
        pytest.param(b"\x00\x00", id="a field without a number"),
        pytest.param(b"\x0b", id="a group"),
    ],
)
def test_a_message_that_cannot_be_scanned_is_refused(body: bytes) -> None:
    with pytest.raises(CallError) as refused:
        grpc.model_of(body)
    assert refused.value.code == "bad_request"


def test_json_with_too_many_parts_is_refused_before_it_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest.orjson, "loads", lambda text: pytest.fail("it is parsed"))
    body = b'{"inputs":[' + b"[]," * 20_000_000 + b"0]}"
    with pytest.raises(CallError, match="arrays: send tensors as binary") as refused:
        rest.decode(body, None, INPUTS, OUTPUTS, 4)
    assert STATUS[refused.value.code] == 413


def test_a_million_numbers_in_json_are_read() -> None:
    rows = [{"name": "X", "datatype": "FP32", "shape": [500_000, 2], "data": [0.5] * 1_000_000}]
    request = rest.decode(orjson.dumps({"inputs": rows}), None, INPUTS, OUTPUTS, 500_000)
    assert request.items == 500_000 and request.tensors["X"].sum() == 500_000


INPUT, PARAMETER, CONTENTS = b"\x2a", b"\x22", b"\x2a"


def _field(tag: bytes, body: bytes) -> bytes:
    length, size = b"", len(body)
    while size >= 0x80:
        length, size = length + bytes([size & 0x7F | 0x80]), size >> 7
    return tag + length + bytes([size]) + body


TYPED = _field(CONTENTS, b"\x42\x00" * 200_000)
CROWDED = [
    pytest.param((INPUT + b"\x00") * 200_000, id="empty inputs"),
    pytest.param(_field(INPUT, (PARAMETER + b"\x00") * 200_000), id="parameters of an input"),
    pytest.param(_field(INPUT, TYPED), id="empty strings of an input"),
    pytest.param(_field(INPUT, b"\x18\x01" * 200_000), id="dimensions, one by one"),
    pytest.param(_field(INPUT, _field(b"\x1a", b"\x01" * 50_000_000)), id="packed dimensions"),
]


@pytest.mark.parametrize("body", CROWDED)
def test_a_message_with_too_many_fields_is_refused_before_it_is_parsed(
    body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not ModelInferRequest.FromString(body).model_name, "it is a message"
    monkeypatch.setattr(grpc, "ModelInferRequest", _Unparsed)
    with pytest.raises(CallError, match="send tensors raw") as refused:
        grpc.decode(body, INPUTS, OUTPUTS, 4)
    assert refused.value.code == "body_too_large"


class _Unparsed:
    DESCRIPTOR = ModelInferRequest.DESCRIPTOR

    @staticmethod
    def FromString(body: bytes) -> Any:
        pytest.fail("it is parsed")


@given(st.binary(max_size=64))
def test_counting_refuses_no_message_that_protobuf_reads_but_for_groups(body: bytes) -> None:
    try:
        ModelInferRequest.FromString(body)
    except DecodeError:
        return
    try:
        grpc.check_parts(body)
    except CallError as error:
        assert error.code == "bad_request" and any(byte & 7 in (3, 4) for byte in body), "a group"


NULLED: dict[str, Any] = {
    "id": None,
    "parameters": None,
    "outputs": None,
    "inputs": [GOOD["inputs"][0] | {"parameters": None}],
}
SCHEDULED = {"priority": None, "timeout": None, "binary_data_output": None, "shared_memory_region": None}


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(NULLED, id="fields of the request"),
        pytest.param(GOOD | {"parameters": SCHEDULED}, id="parameters"),
        pytest.param(
            GOOD | {"outputs": [{"name": name, "parameters": None} for name in ("Y", "T")]}, id="parameters of outputs"
        ),
        pytest.param(
            GOOD | {"outputs": [{"name": name, "parameters": {"binary_data": None}} for name in ("Y", "T")]},
            id="a parameter of outputs",
        ),
    ],
)
def test_null_is_as_absent(body: dict[str, Any]) -> None:
    plain = rest.decode(json.dumps(GOOD).encode(), None, INPUTS, OUTPUTS, 4)
    request = rest.decode(json.dumps(body).encode(), None, INPUTS, OUTPUTS, 4)
    assert (request.id, request.priority, request.timeout_s) == (plain.id, plain.priority, plain.timeout_s)
    assert request.outputs == plain.outputs and (request.tensors["X"] == plain.tensors["X"]).all()


def test_null_leaves_a_binary_answer_binary() -> None:
    every = {"parameters": {"binary_data_output": True}}
    body = GOOD | every | {"outputs": [{"name": "Y", "parameters": {"binary_data": None}}]}
    assert rest.decode(json.dumps(body).encode(), None, INPUTS, OUTPUTS, 4).outputs[0].binary
