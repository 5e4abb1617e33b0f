"""Tests dapps/intake/header.py: the named fields of a DICOM file, read within bounds whatever its encoding."""

import struct
from collections.abc import Callable
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import ImplicitVRLittleEndian

from dapps.api.types import IntakeRefused
from dapps.intake.header import (
    ELEMENTS_PER_TICK,
    MAX_DEPTH,
    MAX_ELEMENTS,
    MAX_ITEMS,
    MAX_VALUE_BYTES,
    UNDEFINED,
    Header,
    NoImage,
    read_header,
)
from tests.dapps.drawn import SECRET, dicom, skull

NAMES = {
    *("Modality", "Rows", "PixelSpacing", "ImagePositionPatient", "PlanePositionSequence"),
    *("PerFrameFunctionalGroupsSequence", "RescaleSlope"),
}
META = b"\x02\x00\x10\x00UI\x14\x001.2.840.10008.1.2.1\0"
IMPLICIT_META = b"\x02\x00\x10\x00UI\x12\x001.2.840.10008.1.2\0"
START = bytes(128) + b"DICM"
PER_FRAME, POSITION = 0x52009230, 0x00200032
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD


class Watched(bytes):
    """A file that notes the longest piece that was taken from it."""

    longest = 0

    def __getitem__(self, key: Any) -> Any:
        piece = super().__getitem__(key)
        if isinstance(piece, bytes):
            self.longest = max(self.longest, len(piece))
        return piece


def element(tag: int, value: bytes, length: int | None = None) -> bytes:
    """An element in implicit encoding."""
    return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, len(value) if length is None else length) + value


def read(data: bytes, tick: Callable[[], None] = lambda: None) -> Header:
    return read_header(data, NAMES, tick)


def refusal(data: bytes, tick: Callable[[], None] = lambda: None) -> IntakeRefused:
    with pytest.raises(IntakeRefused) as refused:
        read(data, tick)
    assert refused.value.__cause__ is None and SECRET not in str(refused.value)
    return refused.value


def test_a_long_value_is_refused_before_it_is_taken() -> None:
    data = Watched(START + IMPLICIT_META + element(POSITION, b"0\\" * 3_000_000))
    refused = refusal(data)
    assert refused.code == "long_value" and "ImagePositionPatient" in str(refused)
    assert data.longest <= MAX_VALUE_BYTES


def test_a_long_value_that_nobody_named_is_stepped_over() -> None:
    rows = element(0x00280010, struct.pack("<H", 9))
    data = Watched(START + IMPLICIT_META + element(0x00100010, SECRET.encode() * 500_000) + rows)
    assert read(data).whole("Rows") == 9 and data.longest <= MAX_VALUE_BYTES


@pytest.mark.parametrize("defined", [True, False], ids=["defined", "undefined"])
def test_hundreds_of_thousands_of_empty_items_are_refused_at_the_first_too_many(defined: bool) -> None:
    items = element(ITEM, b"") * 500_000
    sequence = element(PER_FRAME, items, None if defined else UNDEFINED)
    steps: list[None] = []
    data = START + IMPLICIT_META + sequence + (b"" if defined else element(SEQUENCE_END, b""))
    refused = refusal(data, lambda: steps.append(None))
    assert refused.code == "too_large" and len(steps) <= 2 * MAX_ITEMS / ELEMENTS_PER_TICK


@pytest.mark.parametrize("kind", [b"OB", b"UN"])
def test_what_is_stepped_over_is_counted_whatever_it_nests(kind: bytes) -> None:
    opening = b"\x09\x00\x10\x10" + kind + b"\0\0" + b"\xff" * 4
    steps: list[None] = []
    data = START + META + opening + element(ITEM, b"", UNDEFINED) * 4_000_000
    assert refusal(data, lambda: steps.append(None)).code == "too_large"
    assert len(steps) == MAX_ELEMENTS // ELEMENTS_PER_TICK


def test_a_tick_stops_the_reading_of_a_header() -> None:
    def stop() -> None:
        raise IntakeRefused("too_slow", "stop")

    assert refusal(START + IMPLICIT_META + element(0x00090010, b"") * 5000, stop).code == "too_slow"


def test_named_sequences_within_each_other_are_refused_beyond_a_depth() -> None:
    levels = (element(PER_FRAME, b"", UNDEFINED) + element(ITEM, b"", UNDEFINED)) * (MAX_DEPTH + 1)
    assert refusal(START + IMPLICIT_META + levels).code == "too_large"


def nested(file: Any) -> None:
    position, group = Dataset(), Dataset()
    position.ImagePositionPatient = [1.5, 2, -3]
    group.PlanePositionSequence = [position]
    file.PerFrameFunctionalGroupsSequence = [group, group]


def undefined(file: Any) -> None:
    """The same sequences, with delimiters instead of lengths."""
    nested(file)
    for level in (file, *file.PerFrameFunctionalGroupsSequence):
        for part in level:
            if isinstance(part.value, Items):
                part.is_undefined_length = True
                for item in part.value:
                    item.is_undefined_length_sequence_item = True


@pytest.mark.parametrize("edit", [nested, undefined])
@pytest.mark.parametrize("syntax", [None, ImplicitVRLittleEndian])
def test_both_encodings_of_little_endian_give_the_same_fields(edit: Callable[[Any], None], syntax: str | None) -> None:
    def encoded(file: Any) -> None:
        edit(file)
        if syntax:
            file.file_meta.TransferSyntaxUID = syntax

    header = read(dicom(skull(), edit=encoded))
    assert header.text("Modality") == "CT" and header.whole("Rows") == 256
    assert header.numbers("PixelSpacing") == [1.0, 1.0] and header.number("RescaleSlope") == 1.0
    groups = header.sequences["PerFrameFunctionalGroupsSequence"]
    places = [group.sequences["PlanePositionSequence"][0].numbers("ImagePositionPatient") for group in groups]
    assert places == [[1.5, 2.0, -3.0]] * 2
    assert header.pixels is not None and len(header.pixels) == 2 * 256 * 256
    assert SECRET not in repr(header)


@pytest.mark.parametrize("start", [b"\x02\x00\x00\x00", b"\x08\x00\x16\x00"], ids=["meta-group", "data-set"])
def test_a_file_without_preamble_is_read(start: bytes) -> None:
    whole = dicom(skull())
    assert read(whole[whole.index(start) :]).whole("Rows") == 256


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(START, "no_transfer_syntax", id="preamble-alone"),
        pytest.param(START + element(0x00080060, b"CT"), "no_transfer_syntax", id="no-meta-group"),
        pytest.param(START + IMPLICIT_META + element(PER_FRAME, b"12345678"), "unreadable", id="no-item-in-sequence"),
        pytest.param(START + IMPLICIT_META + element(0x00280010, b"12", 4), "truncated", id="value-beyond-the-end"),
        pytest.param(START + IMPLICIT_META + element(PER_FRAME, b"", UNDEFINED), "truncated", id="sequence-not-ended"),
        pytest.param(START + META + b"\x28\x00\x10\x00UN\0\0", "truncated", id="length-cut-off"),
    ],
)
def test_a_broken_header_is_refused_by_its_cause(data: bytes, code: str) -> None:
    assert refusal(data).code == code


@pytest.mark.parametrize(
    "data", [b"", b"A letter to a colleague", b"\xff\xd8\xff\xe0" + bytes(90), b"\x08\0\xff\xff" * 9]
)
def test_what_is_no_dicom_is_told_from_a_broken_one(data: bytes) -> None:
    assert isinstance(refusal(data), NoImage)
