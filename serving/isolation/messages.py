"""Sends and receives messages between a replica and an isolated DApp: JSON and raw tensors in one memory file.

One packet a message; it carries a memory file that is sent once and never used again, so no call finds another's bytes
in it. The receiver copies the file before it reads: later changes by the sender change nothing, and a file that was cut
short is an error instead of a SIGBUS. Nothing is pickled.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
from pydantic import TypeAdapter

from dapps.api import DTYPES, Inputs, Report, Tensor
from dapps.structure import MESSAGE_JSON, check_json
from serving.tensors import from_raw, to_raw

Json = dict[str, Any]
Blobs = Sequence[bytes | memoryview]
LENGTHS = struct.Struct("<QQ")
"""The packet: bytes of JSON, bytes of all blobs."""
DATATYPES = {dtype: name for name, dtype in DTYPES.items()}
F_GET_SEALS = 1034


class BrokenWire(Exception):
    """The other side has ended, or sent something that is no message."""


def send(channel: socket.socket, message: Json, blobs: Blobs = ()) -> None:
    """Sends JSON and byte strings with their sizes.

    Raises:
        OSError: the other side has ended, or the memory file exceeds the limit on files.
    """
    text = orjson.dumps({**message, "sizes": [len(blob) for blob in blobs]}, option=orjson.OPT_SERIALIZE_NUMPY)
    file = os.memfd_create("message", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        for part in (text, *blobs):
            rest = memoryview(part)
            while rest:
                rest = rest[os.write(file, rest) :]
        socket.send_fds(channel, [LENGTHS.pack(len(text), sum(map(len, blobs)))], [file])
    finally:
        os.close(file)


def receive(channel: socket.socket, max_bytes: int) -> tuple[Json, list[memoryview]]:
    """The next message: its JSON and its byte strings, copied.

    Raises:
        BrokenWire: the other side has ended, or the packet is no message of at most `max_bytes`.
        TimeoutError: none came within the channel's timeout.
    """
    try:
        packet, rights, _, _ = channel.recvmsg(LENGTHS.size, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
    except ConnectionError as error:
        raise BrokenWire("it has ended") from error
    files = [number for _, _, data in rights for number in memoryview(data[: len(data) // 4 * 4]).cast("i")]
    try:
        if len(packet) != LENGTHS.size or len(files) != 1:
            raise BrokenWire("it has ended" if not packet else "no message")
        text_bytes, blob_bytes = LENGTHS.unpack(packet)
        if text_bytes + blob_bytes > max_bytes:
            raise BrokenWire("a message is too large")
        fcntl.fcntl(files[0], F_GET_SEALS)  # fails unless it is a memory file: reading a pipe could wait for ever
        data = bytearray(text_bytes + blob_bytes)
        if os.preadv(files[0], [data], 0) != len(data):
            raise BrokenWire("a message is cut short")
        return _decoded(memoryview(data), text_bytes)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BrokenWire("no message") from error
    finally:
        for number in files:
            os.close(number)


def _decoded(data: memoryview, text_bytes: int) -> tuple[Json, list[memoryview]]:
    text = bytes(data[:text_bytes])
    check_json(text, MESSAGE_JSON)
    message = orjson.loads(text)
    sizes, start, blobs = message.pop("sizes"), text_bytes, []
    for size in sizes:
        if type(size) is not int or not 0 <= size <= len(data) - start:
            raise BrokenWire("a message is cut short")
        blobs.append(data[start : start + size])
        start += size
    return message, blobs


def pack(arrays: Inputs) -> tuple[list[Json], list[bytes | memoryview]]:
    """Tensors [n, *shape] by name, as rows for JSON and raw bytes in the same order."""
    tensors = {name: Tensor(name, _datatype(array), ()) for name, array in arrays.items()}
    rows = [{"name": name, "kind": tensors[name].datatype, "shape": list(a.shape)} for name, a in arrays.items()]
    return rows, [to_raw(array, tensors[name]) for name, array in arrays.items()]


def unpack(rows: Any, blobs: Sequence[memoryview], declared: Sequence[Tensor]) -> Inputs:
    """The tensors of a message, [n, *shape] by name, each checked against its declaration.

    Raises:
        BrokenWire: a tensor breaks its declaration, is missing, or has another number of rows than the rest.
    """
    missing, arrays = {tensor.name: tensor for tensor in declared}, {}
    try:
        for row, blob in zip(rows, blobs, strict=True):
            tensor, shape = missing.pop(row["name"]), tuple(row["shape"])
            if row["kind"] != tensor.datatype or not all(type(size) is int and size >= 0 for size in shape):
                raise BrokenWire(f"{tensor.name} is not of its datatype")
            if not tensor.accepts(shape[1:]):
                raise BrokenWire(f"{tensor.name} is not of its declared shape")
            arrays[tensor.name] = from_raw(blob, shape, tensor)
        lengths = {len(array) for array in arrays.values()}
        if any(not tensor.optional for tensor in missing.values()) or len(lengths) != 1:
            raise BrokenWire("tensors are missing, or of different lengths")
    except BrokenWire:
        raise
    except Exception as error:  # a stranger's rows may be of any type
        raise BrokenWire("the tensors cannot be read") from error
    return arrays


def unpack_items(items: Any, blobs: Sequence[memoryview], declared: Sequence[Tensor]) -> list[Inputs]:
    """The tensors of several items that were packed one after another.

    Raises:
        BrokenWire: as `unpack`.
    """
    arrays, start = [], 0
    for rows in items:
        arrays.append(unpack(rows, blobs[start : start + len(rows)], declared))
        start += len(rows)
    return arrays


def _datatype(array: np.ndarray[Any, Any]) -> str:
    return DATATYPES[array.dtype.newbyteorder("<") if array.dtype.byteorder == ">" else array.dtype]


_REPORT = TypeAdapter(Report)
MESH_FIELDS = ("notice", "intended_use", "provenance")
"""Set by the mesh: no DApp may leave out that its answer is for research."""


def read_report(value: Any) -> Report:
    """A report from its JSON.

    Raises:
        ValueError: it is none; the text may quote it.
    """
    if not isinstance(value, dict):
        raise ValueError("not a report")
    return _REPORT.validate_python({name: field for name, field in value.items() if name not in MESH_FIELDS})
