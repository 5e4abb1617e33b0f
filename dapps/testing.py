"""`check_dapp`: the conformance suite that an author runs on a DApp, and that the mesh's own DApps pass.

Checks what the mesh relies on: declared shapes and dtypes are the real ones, rows do not see each other, the same
question gets the same answer, a sample file goes all the way to a report. Imports torch only when it runs. Read
`dapps/api.py` first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dapps.api import DApp
from dapps.arrays import from_torch, to_torch
from dapps.types import BASIS_POINTS, Case, Inputs, IntakeRefused, Report, Tensor

BATCH = 5


class CheckFailed(AssertionError):
    """A DApp breaks a rule of the mesh.

    Args:
        rule: one stable word, e.g. ``isolation``.
        message: what was seen.
    """

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(f"{rule}: {message}")
        self.rule = rule
        self.message = message


def check_dapp(dapp: DApp, device: str = "cpu") -> None:
    """Loads the DApp on the device and holds it to every rule.

    Raises:
        CheckFailed: at the first rule that does not hold.
    """
    check_declaration(dapp)
    dapp.load(device)
    example = dapp.example()
    check_tensors("example", dapp.inputs, example, 1)
    check_batches(dapp, example, device)
    check_sample(dapp, device)


def check_declaration(dapp: DApp) -> None:
    """Names, price, shares and tensors are declared and make sense together."""
    _hold(bool(dapp.version), "version", "the DApp has no version")
    _hold(bool(dapp.description), "description", "the class has no docstring: its first line describes it to payers")
    _hold(bool(dapp.inputs) and bool(dapp.outputs), "tensors", "inputs and outputs are both needed")
    names = [tensor.name for tensor in (*dapp.inputs, *dapp.outputs)]
    _hold(len(set(names)) == len(names), "tensors", "two tensors have one name")
    _hold(dapp.price.most > 0, "price", "an item or a GPU second must cost something; a free DApp needs no mesh")
    shares = dapp.shares
    total = shares.knowledge + shares.guideline + shares.data + shares.compute + shares.operator
    _hold(total == BASIS_POINTS, "shares", f"shares sum to {total}, not {BASIS_POINTS}")
    _hold(dapp.maximum_batch >= 1, "maximum_batch", "at least one item must fit into a batch")


def check_tensors(where: str, declared: Sequence[Tensor], given: Inputs, items: int) -> None:
    """Arrays are exactly those declared, with the declared dtype, shape and number of items."""
    names = {tensor.name for tensor in declared}
    _hold(set(given) <= names, "tensors", f"{where} holds undeclared tensors")
    for tensor in declared:
        if tensor.name not in given:
            _hold(tensor.optional, "tensors", f"{where} lacks {tensor.name}")
            continue
        array = given[tensor.name]
        _hold(
            array.dtype == tensor.dtype, "dtype", f"{where}: {tensor.name} is {array.dtype}, declared {tensor.datatype}"
        )
        _hold(array.ndim > 0 and len(array) == items, "items", f"{where}: {tensor.name} does not hold {items} items")
        _hold(
            tensor.accepts(array.shape[1:]),
            "shape",
            f"{where}: an item of {tensor.name} is {list(array.shape[1:])}, declared {list(tensor.shape)}",
        )


def check_batches(dapp: DApp, example: Inputs, device: str) -> None:
    """Every row answers alone as it does in company, in any order and place, and twice the same."""
    batch = _variations(example, min(BATCH, dapp.maximum_batch))
    items = len(next(iter(batch.values())))
    together = run(dapp, batch, device)
    check_tensors("forward", dapp.outputs, together, items)
    _same(dapp, "determinism", together, run(dapp, batch, device), "the same batch twice gives two answers")
    order = np.random.default_rng(1).permutation(items)
    moved = run(dapp, {name: array[order] for name, array in batch.items()}, device)
    turned = {name: array[order] for name, array in together.items()}
    _same(dapp, "isolation", turned, moved, "an answer depends on the row's place in the batch")
    for row in range(items):
        alone = run(dapp, {name: array[row : row + 1] for name, array in batch.items()}, device)
        own = {name: array[row : row + 1] for name, array in together.items()}
        _same(dapp, "isolation", own, alone, "an answer depends on the other rows of the batch")
    full = {name: np.repeat(array, dapp.maximum_batch, axis=0) for name, array in example.items()}
    check_tensors("forward", dapp.outputs, run(dapp, full, device), dapp.maximum_batch)


def check_sample(dapp: DApp, device: str) -> None:
    """The sample file, if there is one, goes through intake, forward and report within the declared number of items."""
    try:
        sample = dapp.sample()
    except IntakeRefused:
        return
    prepared = dapp.prepare(Case((sample,)))
    count = len(prepared.items)
    _hold(1 <= count <= dapp.price.maximum_items, "items", f"intake made {count} items of the sample, more than priced")
    outputs = []
    for item in prepared.items:
        check_tensors("intake", dapp.inputs, item, 1)
        outputs.append(run(dapp, item, device))
        check_tensors("forward", dapp.outputs, outputs[-1], 1)
    report = dapp.conclude(prepared, outputs)
    _hold(isinstance(report, Report) and bool(report.summary), "report", "the report has no summary")
    for finding in report.findings:
        probability = finding.probability
        _hold(probability is None or 0 <= probability <= 1, "report", f"{finding.code}: a probability is outside 0..1")


def run(dapp: DApp, inputs: Inputs, device: str = "cpu") -> Inputs:
    """One `forward`, arrays in and arrays out."""
    import torch

    with torch.inference_mode():
        tensors = {name: to_torch(array, device) for name, array in inputs.items()}
        return {name: from_torch(tensor) for name, tensor in dapp.forward(**tensors).items()}


def _variations(example: Inputs, items: int) -> Inputs:
    """Unlike rows of the example's kind: rolled and scaled copies, so that a leak of a mere mean is seen too."""
    return {name: np.concatenate([_vary(array, row) for row in range(items)]) for name, array in example.items()}


def _vary(array: np.ndarray[Any, Any], row: int) -> np.ndarray[Any, Any]:
    if row == 0:
        return array
    moved = np.roll(array, 7 * row, axis=-1) if array.ndim > 1 else array
    if array.dtype.kind == "f":
        return np.asarray(moved / (1 + row / 4), array.dtype)
    if array.dtype.kind in "iu":
        # Halved or less, so that what is added cannot overflow; added, so that an example of zeros varies too.
        half = (max(int(array.max()), 1) + 1) // 2 if row % 2 else 0
        return np.asarray(moved // (row + 1) + array.dtype.type(half), array.dtype)
    return moved


def _same(dapp: DApp, rule: str, first: Inputs, second: Inputs, message: str) -> None:
    for name, array in first.items():
        if array.dtype.kind == "f":
            equal = np.allclose(array, second[name], rtol=0, atol=dapp.tolerance, equal_nan=True)
        else:
            equal = bool(np.array_equal(array, second[name]))
        _hold(equal, rule, f"{name}: {message}")


def _hold(condition: bool, rule: str, message: str) -> None:
    if not condition:
        raise CheckFailed(rule, message)
