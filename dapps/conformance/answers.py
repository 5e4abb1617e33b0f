"""Checks what `forward` returns: declared, finite tensors, equal for a row in any batch and on any device.

A row that changes with its neighbours is the worst fault: one patient's answer then depends on another's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from dapps.api import DApp, Inputs, Tensor, from_torch, to_torch
from dapps.conformance import local_calls
from dapps.conformance.failure import CheckFailed, hold

BATCH = 5
MAX_OPTIONAL = 6
"""Up to so many optional inputs every subset is tried; of more, each alone and each left out."""


def run(dapp: DApp, inputs: Inputs, device: str = "cpu") -> Inputs:
    """One `forward` on arrays; returns arrays."""
    import torch

    with torch.inference_mode(), local_calls.installed():
        tensors = {name: to_torch(array, device) for name, array in inputs.items()}
        answer: Any = dapp.forward(**tensors)
        if not isinstance(answer, dict):
            raise CheckFailed("tensors", "forward returns a dict of tensors by output name", "forward")
        return {name: from_torch(tensor) for name, tensor in answer.items()}


def check_tensors(where: str, declared: Sequence[Tensor], arrays: Inputs, items: int) -> None:
    """Checks that the arrays are those declared, with the declared dtype, shape and number of items, and finite."""
    names = {tensor.name for tensor in declared}
    hold(set(arrays) <= names, "tensors", f"{where} holds undeclared tensors", where)
    for tensor in declared:
        if tensor.name not in arrays:
            hold(tensor.optional, "tensors", f"{where} lacks {tensor.name}", where)
            continue
        array = arrays[tensor.name]
        hold(isinstance(array, np.ndarray), "tensors", f"{where}: {tensor.name} is no array", where)
        difference = f"{where}: {tensor.name} is {array.dtype}, declared {tensor.datatype}"
        hold(array.dtype == tensor.dtype, "dtype", difference, where)
        hold(
            array.ndim > 0 and len(array) == items,
            "items",
            f"{where}: {tensor.name} does not hold {items} items along its first dimension",
            where,
        )
        hold(
            tensor.accepts(array.shape[1:]),
            "shape",
            f"{where}: an item of {tensor.name} is {list(array.shape[1:])}, declared {list(tensor.shape)}",
            where,
        )
        if tensor.is_float:
            finite = bool(np.isfinite(array).all())
            hold(finite, "finite", f"{where}: {tensor.name} is not finite; the mesh refuses such values", where)


def check_batches(dapp: DApp, example: Inputs, device: str) -> None:
    """Checks that every row has the same answer alone, in any batch, order and place, and on a second run."""
    batch = variations(example, min(BATCH, dapp.maximum_batch))
    items = len(next(iter(batch.values())))
    together = run(dapp, batch, device)
    check_tensors("forward", dapp.outputs, together, items)
    same(dapp, "determinism", together, run(dapp, batch, device), "the same batch twice gives two answers")
    order = np.random.default_rng(1).permutation(items)
    moved = run(dapp, {name: array[order] for name, array in batch.items()}, device)
    turned = {name: array[order] for name, array in together.items()}
    same(dapp, "isolation", turned, moved, "an answer depends on the row's place in the batch")
    for row in range(items):
        alone = run(dapp, {name: array[row : row + 1] for name, array in batch.items()}, device)
        own = {name: array[row : row + 1] for name, array in together.items()}
        same(dapp, "isolation", own, alone, "an answer depends on the other rows of the batch")


def check_largest(dapp: DApp, example: Inputs, device: str) -> None:
    """Checks that a batch of `maximum_batch` items is answered."""
    full = {name: np.repeat(array, dapp.maximum_batch, axis=0) for name, array in example.items()}
    check_tensors("forward", dapp.outputs, run(dapp, full, device), dapp.maximum_batch)


def check_optional(dapp: DApp, example: Inputs, device: str) -> None:
    """Checks that a call is answered whichever of the example's optional inputs its caller leaves out."""
    optional = [tensor.name for tensor in dapp.inputs if tensor.optional and tensor.name in example]
    rows = variations(example, min(2, dapp.maximum_batch))
    for absent in _subsets(optional):
        inputs = {name: array for name, array in rows.items() if name not in absent}
        if not inputs:  # a call without any tensor has no rows
            continue
        where = f"forward without {', '.join(absent)}"
        try:
            outputs = run(dapp, inputs, device)
            check_tensors("forward", dapp.outputs, outputs, len(next(iter(inputs.values()))))
        except CheckFailed as failure:
            raise CheckFailed(failure.rule, f"{where}: {failure.message}", "forward") from failure.__cause__
        except Exception as error:
            message = f"{where} raises {type(error).__name__}: {error}; the input is declared optional"
            raise CheckFailed("optional", message, "forward") from error


def _subsets(names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """What is left out: every subset but the empty one; of many names, single ones and all but one."""
    sizes = range(1, len(names) + 1) if len(names) <= MAX_OPTIONAL else (1, len(names) - 1, len(names))
    for size in sizes:
        yield from combinations(names, size)


def check_device(dapp: DApp, example: Inputs, device: str) -> None:
    """Checks the device's answers against the CPU's, within the tolerance; leaves the DApp loaded on the device."""
    batch = variations(example, min(BATCH, dapp.maximum_batch))
    expected = run(dapp, batch, "cpu")
    dapp.load(device)
    difference = f"on {device} it differs from the CPU by more than the tolerance of {dapp.tolerance:g}"
    same(dapp, "tolerance", expected, run(dapp, batch, device), difference)


def same(dapp: DApp, rule: str, first: Inputs, second: Inputs, message: str) -> None:
    """Checks that two answers are equal, floats within the DApp's tolerance."""
    declared = {tensor.name: tensor for tensor in dapp.outputs}
    hold(set(first) == set(second), rule, f"{message}: not the same outputs", "forward")
    for name, array in first.items():
        other = second[name]
        equal = array.shape == other.shape
        if equal and declared[name].is_float:
            pair = (array.astype(np.float64), other.astype(np.float64))
            equal = bool(np.allclose(*pair, rtol=0, atol=dapp.tolerance, equal_nan=True))
        elif equal:
            equal = bool(np.array_equal(array, other))
        hold(equal, rule, f"{name}: {message}", "forward")


def variations(example: Inputs, items: int) -> Inputs:
    """Different rows like the example: rolled and scaled copies, so that a leak of a mean shows too."""
    return {name: np.concatenate([_vary(array, row) for row in range(items)]) for name, array in example.items()}


def _vary(array: np.ndarray[Any, Any], row: int) -> np.ndarray[Any, Any]:
    if row == 0:
        return array
    moved = np.roll(array, 7 * row, axis=-1) if array.ndim > 1 else array
    if array.dtype.kind == "f":
        return np.asarray(moved / (1 + row / 4), array.dtype)
    if array.dtype.kind in "iu":
        # Halving keeps the addition from overflowing; the addition makes an example of zeros vary too.
        half = (max(int(array.max()), 1) + 1) // 2 if row % 2 else 0
        return np.asarray(moved // (row + 1) + array.dtype.type(half), array.dtype)
    return moved
