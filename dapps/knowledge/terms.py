"""Checks units and concept codes: UCUM units, LOINC numbers and SNOMED CT identifiers.

A mistyped code silently points at another concept, so the check digits are verified: LOINC's mod 10 and SNOMED CT's
Verhoeff digit. The UCUM atoms are those of clinical data, not all of the standard's.
"""

from __future__ import annotations

import re

PREFIX = "[YZEPTGMkhdcmunpfazy]|da"
METRIC = r"g|L|l|m|mol|s|Pa|m\[Hg\]|U|\[IU\]|\[iU\]|eq|osm|J|W|Hz|V|A|K|Cel|bar|Bq|Gy|Sv|kat|N"
PLAIN = r"%|1|h|min|d|wk|mo|a|10\*-?[0-9]+|10\^-?[0-9]+|\[[A-Za-z_']+\]|deg|dB"
PART = rf"(?:(?:{PLAIN})|(?:(?:{PREFIX})?(?:{METRIC}))(?:-?[0-9])?)(?:\{{[!-z|~]*\}})?|\{{[!-z|~]+\}}"
UCUM = re.compile(rf"/?(?:{PART})(?:[./](?:{PART}))*", re.ASCII)
LOINC = re.compile(r"([0-9]{1,7})-([0-9])", re.ASCII)
SNOMED = re.compile(r"[1-9][0-9]{5,17}", re.ASCII)
TIMES = (
    "0123456789", "1234067895", "2340178956", "3401289567", "4012395678",
    "5987604321", "6598710432", "7659821043", "8765932104", "9876543210",
)  # fmt: skip
"""Multiplication in the dihedral group D5, row by column."""
TURNS = (
    "0123456789", "1576283094", "5803796142", "8916043527", "9453126870", "4286573901", "2793806415", "7046913258",
)  # fmt: skip
"""Verhoeff's permutation, applied 0 to 7 times."""


def is_unit(text: str) -> bool:
    """True for a UCUM unit, e.g. ``mg/dL``, ``10*3/uL``, ``mm[Hg]``, ``{score}``; ``1`` where there is none."""
    return UCUM.fullmatch(text) is not None


def is_code(system: str, code: str) -> bool:
    """True if the code has the form of its system, ``loinc`` or ``snomed``, and its check digit is right."""
    if system == "loinc":
        match = LOINC.fullmatch(code)
        return match is not None and _luhn(match[1]) == int(match[2])
    return SNOMED.fullmatch(code) is not None and _verhoeff(code)


def _luhn(digits: str) -> int:
    total = 0
    for place, digit in enumerate(reversed(digits)):
        doubled = int(digit) * (2 if place % 2 == 0 else 1)
        total += doubled // 10 + doubled % 10
    return -total % 10


def _verhoeff(digits: str) -> bool:
    check = 0
    for place, digit in enumerate(reversed(digits)):
        check = int(TIMES[check][int(TURNS[place % 8][int(digit)])])
    return check == 0
