"""Names images that a DApp may exclude by fields of the DICOM header: contrast, projections, maps, phantoms, animals.

A DApp lists those that its card excludes in its `SliceRules`. Each rests on a field that the standard defines for it;
words that a person typed, such as a name of the series, decide nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from dapps.api import IntakeRefused
from dapps.intake.header import Fields, NoImage

KINDS = ("ImageType", "FrameType")
MAX_LOSSY_RATIO = 15.0
"""The upper end of what radiological societies allow for CT."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exclusion:
    """Images of one kind that are refused.

    Args:
        fields: keywords of the fields that are looked at, in the header and in every item that the reader takes. A
            sequence gives the codes of its items.
        holds: whether a value of them, in capitals, makes the image one of the kind.
        code: the refusal's word.
        message: what is wrong and what to send instead.
        companion: whether such images lie beside those of a study, so that a series passes them over.
    """

    fields: tuple[str, ...]
    holds: Callable[[str], bool]
    code: str
    message: str
    companion: bool = False

    def refuse(self, header: Fields) -> None:
        """Refuses a file of this kind.

        Raises:
            IntakeRefused: with `code`; a `NoImage` if it is a companion.
        """
        if any(self.holds(value) for name in self.fields for value in header.everywhere(name)):
            raise (NoImage if self.companion else IntakeRefused)(self.code, self.message)


def one_of(*words: str) -> Callable[[str], bool]:
    """Holds for these values, and for values that have one of them as a part between other letters and digits."""
    return lambda value: not {value, *re.split(r"[^A-Z0-9]+", value)}.isdisjoint(words)


def other_than(*words: str) -> Callable[[str], bool]:
    """Holds for every value but these."""
    return lambda value: value not in words


def above(limit: float) -> Callable[[str], bool]:
    """Holds for numbers above a limit, and for what is no number."""

    def holds(value: str) -> bool:
        try:
            return not float(value) <= limit
        except ValueError:
            return True

    return holds


CONTRAST = Exclusion(
    fields=("ContrastBolusAgent", "ContrastBolusAgentSequence"),
    holds=other_than(
        *("NONE", "NO", "N", "NON", "NIL", "NO CONTRAST", "NON CONTRAST", "WITHOUT", "WITHOUT CONTRAST", "0", "-"),
        *("NATIVE", "NATIV", "PLAIN", "OHNE", "SANS", "SENZA", "SIN"),
    ),
    code="contrast",
    message="ContrastBolusAgent names a contrast agent: send the series without contrast",
)
NOT_HOUNSFIELD = Exclusion(
    fields=("RescaleType",),
    holds=other_than("HU", "US"),
    code="not_hounsfield",
    message="RescaleType is not HU: send the image in Hounsfield units",
)
PROJECTION = Exclusion(
    fields=KINDS,
    holds=one_of("MIP", "MINIP", "MAX_IP", "MIN_IP", "MAXIP", "VRT", "VOLUME_RENDER", "SURFACE_RENDER"),
    code="projection",
    message="ImageType says that this is a projection of many slices: send the slices",
)
MAP = Exclusion(
    fields=KINDS,
    holds=one_of(
        *("PERFUSION", "CBF", "CBV", "MTT", "TTP", "TMAX", "PENUMBRA", "IODINE", "VNC"),
        *("MAT_SPECIFIC", "MAT_REMOVED", "MAT_FRACTIONAL", "MAT_MODIFIED", "MAT_VALUE_BASED"),
        *("EFF_ATOMIC_NUM", "ELECTRON_DENSITY"),
    ),
    code="computed_map",
    message="ImageType says that this is a computed map, of perfusion or of a material: send the slices as scanned",
)
QUALITY_CONTROL = Exclusion(
    fields=("QualityControlImage",),
    holds=one_of("YES"),
    code="quality_control",
    message="QualityControlImage says that this is a phantom: send an image of a patient",
)
ANIMAL = Exclusion(
    fields=("PatientSpeciesDescription", "PatientSpeciesCodeSequence"),
    holds=other_than("HUMAN", "HOMO SAPIENS", "337915000", "L-85B00"),
    code="animal",
    message="the species is another than human: send an image of a person",
)
SECONDARY_CAPTURE = Exclusion(
    fields=("SOPClassUID",),
    holds=lambda value: f"{value}.".startswith("1.2.840.10008.5.1.4.1.1.7."),
    code="secondary_capture",
    message="this is a secondary capture: send the image that the scanner wrote",
    companion=True,
)
LOSSY = Exclusion(
    fields=("LossyImageCompressionRatio",),
    holds=above(MAX_LOSSY_RATIO),
    code="lossy",
    message=f"LossyImageCompressionRatio is above {MAX_LOSSY_RATIO:g}: send the image with less loss",
)
