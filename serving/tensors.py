"""Converts tensors between the wire and numpy, raw bytes and JSON values, and checks them. No I/O.

Raw tensors are little-endian, row-major and unpadded; a BYTES element is four bytes of length and its bytes (Triton's
binary tensor data extension). Texts of refusals name a tensor and its datatype, never a value.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from dapps.api import Inputs, Tensor
from serving.errors import CallError

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]
MAX_DEPTH = 16
MAX_DIMENSIONS = 16
MAX_STRINGS = 1 << 20
"""Most elements of one BYTES tensor: while it is decoded, an element takes ten times its bytes on the wire."""


@dataclass(frozen=True, slots=True)
class RawTensor:
    """An input as a caller sent it: neither checked nor decoded; `read` decodes it."""

    name: object
    datatype: object
    shape: object
    read: Callable[[Shape, Tensor], Array]


def collect(raw_tensors: Iterable[RawTensor], declared: Sequence[Tensor], maximum_items: int) -> Inputs:
    """Decodes the inputs of a call to arrays [n, *shape] and checks them against the declaration.

    Raises:
        CallError: `invalid_tensor`, naming the cause but no value.
    """
    by_name = {tensor.name: tensor for tensor in declared}
    tensors: Inputs = {}
    for row in raw_tensors:
        tensor = by_name.get(row.name) if isinstance(row.name, str) else None
        if tensor is None:
            raise CallError("invalid_tensor", f"unknown input; there are: {', '.join(by_name)}")
        if tensor.name in tensors:
            raise CallError("invalid_tensor", f"input {tensor.name} is given twice")
        array = row.read(_shape(row, tensor), tensor)
        if tensor.is_float and not np.isfinite(array).all():
            raise CallError("invalid_tensor", "inputs are finite numbers: leave out what is not known")
        tensors[tensor.name] = array
    missing = [tensor.name for tensor in declared if not tensor.optional and tensor.name not in tensors]
    if missing:
        raise CallError("invalid_tensor", f"missing input {missing[0]}")
    sizes = {len(array) for array in tensors.values()}
    if len(sizes) != 1 or not 1 <= sizes.pop() <= maximum_items:
        raise CallError("invalid_tensor", f"all inputs carry the same batch of 1 to {maximum_items} items")
    return tensors


def from_raw(raw: memoryview, shape: Shape, tensor: Tensor) -> Array:
    """Raw bytes as an array; their number must fit the shape exactly.

    Raises:
        CallError: `invalid_tensor`.
    """
    if tensor.datatype == "BYTES":
        return _strings(raw, shape, tensor)
    need = prod(shape) * tensor.dtype.itemsize
    if len(raw) != need:
        raise CallError("invalid_tensor", f"input {tensor.name}: binary data is not the {need} bytes of its shape")
    if tensor.datatype == "BOOL":
        # numpy would keep a byte of 2 as it is, neither True nor False.
        return np.not_equal(np.frombuffer(raw, dtype=np.uint8).reshape(shape), 0)
    return np.frombuffer(raw, dtype=tensor.dtype).reshape(shape)


def to_raw(array: Array, tensor: Tensor) -> bytes | memoryview:
    """An output's raw bytes; a view of the array where its memory already has this form."""
    if tensor.datatype == "BYTES":
        return b"".join(struct.pack("<I", len(value)) + value for value in array.ravel().tolist())
    return np.ascontiguousarray(array, dtype=tensor.dtype).ravel().view(np.uint8).data


def from_values(flat: Sequence[Any], shape: Shape, tensor: Tensor) -> Array:
    """A flat list of Python values as an array.

    Raises:
        CallError: `invalid_tensor`: too many or too few values, or one that the datatype cannot hold.
    """
    if len(flat) != prod(shape):
        raise _unfit(tensor)
    try:
        with np.errstate(over="raise"):
            return np.array(flat, dtype=tensor.dtype).reshape(shape)
    except (ValueError, OverflowError, FloatingPointError) as error:
        raise _unfit(tensor) from error


def from_json(data: object, shape: Shape, tensor: Tensor) -> Array:
    """A nested or flat JSON list as an array; a string is a BYTES element in UTF-8.

    Raises:
        CallError: `invalid_tensor`.
    """
    flat = _leaves(data, prod(shape), _kinds(tensor))
    if flat is None or (tensor.datatype == "BYTES" and len(flat) > MAX_STRINGS):
        raise _unfit(tensor)
    if tensor.datatype == "BYTES":
        flat = [value.encode() for value in flat]
    elif tensor.dtype.kind in "iu":
        # JSON has one kind of number: 1.0 is an integer, 1.5 is not.
        flat = [int(value) if type(value) is float and value.is_integer() else value for value in flat]
        if any(type(value) is float for value in flat):
            raise _unfit(tensor)
    return from_values(flat, shape, tensor)


def to_json(array: Array, tensor: Tensor) -> list[Any] | None:
    """An output's values for JSON, or None for BYTES that are not UTF-8."""
    if tensor.datatype == "BYTES":
        try:
            return [value.decode() for value in array.ravel().tolist()]
        except UnicodeDecodeError:
            return None
    values = np.ascontiguousarray(array, dtype=tensor.dtype)
    return list((values.astype(np.float32) if tensor.datatype == "BF16" else values).ravel().tolist())


def _kinds(tensor: Tensor) -> tuple[type, ...]:
    if tensor.datatype == "BYTES":
        return (str,)
    return (bool,) if tensor.datatype == "BOOL" else (int, float)


def _unfit(tensor: Tensor) -> CallError:
    return CallError("invalid_tensor", f"input {tensor.name}: data are not {tensor.datatype} values of its shape")


def _shape(row: RawTensor, tensor: Tensor) -> Shape:
    shape: Any = row.shape
    whole = (
        isinstance(shape, list)
        and 1 <= len(shape) <= MAX_DIMENSIONS
        and all(type(d) is int and 0 < d < 2**31 for d in shape)
    )
    if row.datatype != tensor.datatype or not whole or not tensor.accepts(tuple(shape[1:])):
        raise CallError("invalid_tensor", f"input {tensor.name} is {tensor.datatype} of shape {[-1, *tensor.shape]}")
    return tuple(shape)


def _strings(raw: memoryview, shape: Shape, tensor: Tensor) -> Array:
    count, at = prod(shape), 0
    values: list[bytes] = []
    if count > MAX_STRINGS:
        raise CallError("invalid_tensor", f"input {tensor.name}: at most {MAX_STRINGS} elements of BYTES")
    while at + 4 <= len(raw) and len(values) < count:
        (size,) = struct.unpack_from("<I", raw, at)
        values.append(bytes(raw[at + 4 : at + 4 + size]))
        at += 4 + size
    if at != len(raw) or len(values) != count:
        raise CallError("invalid_tensor", f"input {tensor.name}: binary data is not {count} elements of BYTES")
    array = np.empty(count, dtype=object)
    array[:] = values
    return array.reshape(shape)


def _leaves(data: object, count: int, kinds: tuple[type, ...]) -> list[Any] | None:
    """The values of a nested or flat list, or None unless they are exactly `count` values of exactly these types.

    Walked before numpy sees them: numpy would truncate 1.5 to an integer, and allocates gigabytes for one long string
    among many short ones.
    """
    if not isinstance(data, list):
        return None
    flat: list[Any] = []
    walks = [iter(data)]
    while walks:
        value = next(walks[-1], walks)
        if value is walks:
            walks.pop()
        elif type(value) is list and len(walks) < MAX_DEPTH:
            walks.append(iter(value))
        elif type(value) in kinds and len(flat) < count:
            flat.append(value)
        else:
            return None
    return flat if len(flat) == count else None
