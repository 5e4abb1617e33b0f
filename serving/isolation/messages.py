"""Messages between a replica and an isolated DApp: JSON and raw tensors in one memory file, never a pickle.

One packet a message: it carries a memory file of that message's own, which is sent once and never used again, so no
call finds another's bytes in it. The receiver copies before it looks: what the other side changes later changes
nothing, and a file that is cut short is an error, not a SIGBUS.
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
from serving.tensors import from_raw, to_raw

Json = dict[str, Any]
Blobs = Sequence[bytes | memoryview]
HEADER = struct.Struct("<QQ")
KINDS = {dtype: name for name, dtype in DTYPES.items()}
F_GET_SEALS = 1034


class BrokenWire(Exception):
    """The other side has ended, or sent what is no message."""


def send(channel: socket.socket, message: Json, blobs: Blobs = ()) -> None:
    """Sends JSON and byte strings; their sizes go along.

    Raises:
        OSError: the other side has ended, or the memory file may not be that large.
    """
    text = orjson.dumps({**message, "sizes": [len(blob) for blob in blobs]}, option=orjson.OPT_SERIALIZE_NUMPY)
    file = os.memfd_create("message", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        for part in (text, *blobs):
            rest = memoryview(part)
            while rest:
                rest = rest[os.write(file, rest) :]
        head = HEADER.pack(len(text), sum(map(len, blobs)))
        socket.send_fds(channel, [head], [file])
    finally:
        os.close(file)


def receive(channel: socket.socket, most_bytes: int) -> tuple[Json, list[memoryview]]:
    """The next message, copied.

    Raises:
        BrokenWire: there is none, or it is no message of at most so many bytes.
        TimeoutError: none came within the channel's timeout.
    """
    try:
        head, rights, _, _ = channel.recvmsg(HEADER.size, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
    except ConnectionError as error:
        raise BrokenWire("it has ended") from error
    files = [number for _, _, data in rights for number in memoryview(data[: len(data) // 4 * 4]).cast("i")]
    try:
        if len(head) != HEADER.size or len(files) != 1:
            raise BrokenWire("it has ended" if not head else "no message")
        text_bytes, blob_bytes = HEADER.unpack(head)
        if text_bytes + blob_bytes > most_bytes:
            raise BrokenWire("a message is too large")
        fcntl.fcntl(files[0], F_GET_SEALS)  # a memory file and nothing else: reading a pipe could wait for ever
        data = bytearray(text_bytes + blob_bytes)
        if os.preadv(files[0], [data], 0) != len(data):
            raise BrokenWire("a message is cut short")
        return _opened(memoryview(data), text_bytes)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BrokenWire("no message") from error
    finally:
        for number in files:
            os.close(number)


def _opened(data: memoryview, text_bytes: int) -> tuple[Json, list[memoryview]]:
    message = orjson.loads(data[:text_bytes])
    sizes, at = message.pop("sizes"), text_bytes
    blobs = []
    for size in sizes:
        if type(size) is not int or not 0 <= size <= len(data) - at:
            raise BrokenWire("a message is cut short")
        blobs.append(data[at : at + size])
        at += size
    return message, blobs


def pack(arrays: Inputs) -> tuple[list[Json], list[bytes | memoryview]]:
    """Tensors as rows for JSON and raw bytes, in one order."""
    tensors = {name: Tensor(name, _kind(array), ()) for name, array in arrays.items()}
    rows = [{"name": name, "kind": tensors[name].datatype, "shape": list(a.shape)} for name, a in arrays.items()]
    return rows, [to_raw(array, tensors[name]) for name, array in arrays.items()]


def unpack(rows: Any, blobs: Sequence[memoryview], declared: Sequence[Tensor]) -> Inputs:
    """The tensors of a message, each checked against its declaration; of one number of rows.

    Raises:
        BrokenWire: they are not those declared.
    """
    known, found = {tensor.name: tensor for tensor in declared}, {}
    try:
        for row, blob in zip(rows, blobs, strict=True):
            tensor, shape = known.pop(row["name"]), tuple(row["shape"])
            if row["kind"] != tensor.datatype or not all(type(size) is int and size >= 0 for size in shape):
                raise BrokenWire(f"{tensor.name} is not of its datatype")
            if not tensor.accepts(shape[1:]):
                raise BrokenWire(f"{tensor.name} is not of its declared shape")
            found[tensor.name] = from_raw(blob, shape, tensor)
        if any(not tensor.optional for tensor in known.values()) or len({len(a) for a in found.values()}) != 1:
            raise BrokenWire("tensors are missing, or of different lengths")
    except BrokenWire:
        raise
    except Exception as error:  # whatever a stranger's rows make of themselves
        raise BrokenWire("the tensors cannot be read") from error
    return found


def _kind(array: np.ndarray[Any, Any]) -> str:
    return KINDS[array.dtype.newbyteorder("<") if array.dtype.byteorder == ">" else array.dtype]


_REPORT = TypeAdapter(Report)
OWN = ("notice", "intended_use", "provenance")
"""What the mesh says itself: no DApp may leave out that its answer is for research."""


def read_report(told: Any) -> Report:
    """The report.

    Raises:
        ValueError: it is none; the text may quote it.
    """
    if not isinstance(told, dict):
        raise ValueError("not a report")
    return _REPORT.validate_python({name: value for name, value in told.items() if name not in OWN})
