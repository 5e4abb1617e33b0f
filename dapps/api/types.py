"""Defines the values of the DApp API: tensors, price, shares, clinical files, findings and reports.

Each is frozen and checked by its constructor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from ml_dtypes import bfloat16

from dapps.notice import RESEARCH_USE

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BF16": np.dtype(bfloat16),
    "BYTES": np.dtype("O"),
}
"""Open Inference Protocol datatype to little-endian numpy dtype; an element of BYTES is a `bytes` object."""

Inputs = dict[str, np.ndarray[Any, Any]]
"""Tensors by name, batch first: every array has shape [n, *Tensor.shape]."""

Array = np.ndarray[Any, np.dtype[Any]]

BASIS_POINTS = 10_000


@dataclass(frozen=True, slots=True)
class Tensor:
    """One named input or output of a DApp, described per item (without the batch dimension).

    Args:
        name: as it appears on the wire, e.g. ``"IMAGE"``.
        datatype: an Open Inference Protocol name, e.g. ``"FP32"``.
        shape: dimensions of one item; -1 means any size of at least 1.
        unit: physical unit of the values, e.g. ``"HU"`` or ``"probability"``; empty if none.
        optional: True where a call may leave this input out.

    Raises:
        ValueError: on an unknown datatype or a dimension that is neither -1 nor positive.
    """

    name: str
    datatype: str
    shape: Sequence[int]
    unit: str = ""
    optional: bool = False

    def __post_init__(self) -> None:
        if self.datatype not in DTYPES:
            raise ValueError(f"tensor {self.name}: unknown datatype {self.datatype!r}; one of {', '.join(DTYPES)}")
        if any(size < 1 and size != -1 for size in self.shape):
            raise ValueError(f"tensor {self.name}: a dimension is -1 or positive, got {list(self.shape)}")
        object.__setattr__(self, "shape", tuple(self.shape))

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy dtype of the values, little-endian."""
        return DTYPES[self.datatype]

    @property
    def is_float(self) -> bool:
        """True for floating-point values, brain floats included, which numpy does not count as floats."""
        return self.dtype.kind == "f" or self.datatype == "BF16"

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """True if one item of this shape fits the declaration."""
        return len(shape) == len(self.shape) and all(
            declared in (-1, size) and size >= 1 for declared, size in zip(self.shape, shape, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Price:
    """What a call costs, in atomic units of the settlement asset: by items, or by the time that it has the device.

    By items: `Price(500)`, or `Price(500, maximum_items=8)`. By time: `Price(per_gpu_second=9_000, maximum=4_000)`. The
    fields are also the names by which an operator changes a price, see `dapps/api/configuration.py`.

    A route quotes `max_price` before a body is decoded, and charges what the call used, never more than the quote. A
    case that a guideline alone answers costs `guideline`, or as much as one item if that is None.

    Args:
        per_item: for each item.
        maximum_items: how many items one call carries at most.
        guideline: for an answer from a guideline alone.
        per_gpu_second: instead of `per_item`: for each second of the device. A batch's time is divided among its
            calls by their rows.
        maximum: with `per_gpu_second`: what one call costs at most.

    Raises:
        ValueError: the numbers do not make a price.
    """

    per_item: int = 0
    maximum_items: int = 32
    guideline: int | None = field(default=None, kw_only=True)
    per_gpu_second: int = field(default=0, kw_only=True)
    maximum: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and type(value) is not int:
                raise ValueError(f"price: {name} is an int in atomic units, never a float")
        if self.per_item < 0 or self.per_gpu_second < 0 or self.maximum_items < 1:
            raise ValueError("price: nothing is below 0 and maximum_items is at least 1")
        if self.per_gpu_second and (self.per_item or self.maximum is None or self.maximum < 1):
            raise ValueError("price: per_gpu_second stands alone, with the maximum of one call")
        if self.maximum is not None and not self.per_gpu_second:
            raise ValueError("price: maximum goes with per_gpu_second; maximum_items bounds a price by items")
        if self.guideline is not None and not 0 <= self.guideline <= (self.maximum or self.per_item):
            raise ValueError("price: a call answered from a guideline alone costs at most as much as one item")

    def units(self, items: int, device_us: int) -> int:
        """The units that a call is charged for and its receipt states: items, or microseconds of the device."""
        return device_us if self.per_gpu_second else items

    def of(self, units: int) -> int:
        """The price of this many units, in atomic units of the asset, rounded up."""
        if self.per_gpu_second:
            return min(-(-self.per_gpu_second * units // 1_000_000), self.max_price)
        return self.per_item * units

    @property
    def max_price(self) -> int:
        """The most that one call costs, in atomic units: its quote."""
        return self.per_item * self.maximum_items if self.maximum is None else self.maximum

    most = max_price  # its name until 0.2

    @property
    def guideline_only(self) -> int:
        """The price of an answer from a guideline alone, in atomic units; such an answer takes no device time."""
        return self.per_item if self.guideline is None else self.guideline


@dataclass(frozen=True, slots=True)
class Shares:
    """How one charge is split among its carriers, in basis points that sum to 10 000.

    Knowledge is paid to the model's author, guideline to the guideline's author, data to the owner of the training
    data, compute to the owner of the machine that answered, operator to the operator of the mesh. A call answered from
    a guideline alone pays the shares of knowledge and data to the guideline's author.
    """

    knowledge: int = 5_000
    data: int = 2_000
    compute: int = 2_500
    operator: int = 500
    guideline: int = 0

    def __post_init__(self) -> None:
        parts = (self.knowledge, self.guideline, self.data, self.compute, self.operator)
        if any(type(part) is not int or part < 0 for part in parts) or sum(parts) != BASIS_POINTS:
            raise ValueError(f"shares are non-negative basis points that sum to {BASIS_POINTS}, got {parts}")


@dataclass(frozen=True, slots=True)
class ClinicalFile:
    """A file as a caller sent it: its bytes, and a name of which only the ending is used.

    The name never reaches a log or an error text: file names of clinical data often hold a patient's name.
    `part` is the caller's label of the file, e.g. an auscultation site: the name of a form field, or `part` in JSON.
    """

    data: bytes = field(repr=False)
    name: str = field(default="", repr=False)
    part: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Case:
    """One patient's files, and the record as undecoded JSON, None if there is none."""

    files: tuple[ClinicalFile, ...] = ()
    record: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A case that passed the intake: the items for the model, and the facts that the report needs besides.

    Args:
        items: tensors [1, *shape] by name; items may carry different optional inputs.
        facts: plain values such as slice positions or measurements; they leave the replica only in the report.
    """

    items: tuple[Inputs, ...]
    facts: Mapping[str, Any] = field(default_factory=dict, repr=False)


class IntakeRefused(Exception):
    """A clinical file that cannot or must not be answered; the call costs nothing.

    Args:
        code: one stable word, e.g. ``unreadable``, ``wrong_modality``, ``low_quality``.
        message: what is wrong and what to send instead; never a value from the file.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class Coding:
    """A concept in a public terminology: the system's URI (SNOMED CT, LOINC, RadLex), and its code there."""

    system: str
    code: str


@dataclass(frozen=True, slots=True)
class Finding:
    """One result or measurement: a coded name, whether it is present or its value, and how certain it is.

    `present` is None in the grey zone between the two cut-offs, and where the question is not yes or no: unknown is
    never "no". A probability has the UCUM unit `1`; a `value` that was measured has its own.
    """

    code: str
    label: str
    present: bool | None
    probability: float | None = None
    unit: str = "1"
    interval: tuple[float, float] | None = None
    coding: Coding | None = None
    value: float | None = None
    quality: str = "good"


@dataclass(frozen=True, slots=True)
class Provenance:
    """Identifies what made a report, by SHA-256 digests in hex of the DApp's package, its weights and the intake."""

    dapp: str
    version: str
    dapp_digest: str
    model_digest: str
    intake_digest: str


@dataclass(frozen=True, slots=True)
class Report:
    """The answer to a case, for a person: findings, a one-line summary and what to do next.

    `decision` explains a recommendation, see `dapps/knowledge/explain.py`. `patient_summary` is written for the
    patient; `traces` hold a number for each slice or moment, e.g. probabilities.
    """

    summary: str
    findings: tuple[Finding, ...]
    recommendation: str = ""
    quality: dict[str, float] = field(default_factory=dict)
    notice: str = field(default=RESEARCH_USE, init=False)
    intended_use: str = field(default="research", init=False)
    patient_summary: str = ""
    traces: dict[str, tuple[float, ...]] = field(default_factory=dict)
    decision: dict[str, Any] | None = None
    provenance: Provenance | None = None
