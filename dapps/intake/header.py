"""Reads named fields of a DICOM header within bounds on elements, items, depth and the length of a value.

A value is taken only after its length is checked. Every other element is stepped over unread, so that neither a huge
value nor a patient's name leaves the file. pydicom's parser gives none of these bounds; its dictionary is used alone.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from pydicom.datadict import dictionary_VR, tag_for_keyword

from dapps.api import IntakeRefused

MAX_ELEMENTS = 100_000
"""An enhanced CT of 400 frames has about 50 000, delimiters counted."""
MAX_ITEMS = 400
MAX_DEPTH = 6
MAX_VALUE_BYTES = 1024
ELEMENTS_PER_TICK = 1024
IMPLICIT, BIG_ENDIAN, DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
EXPLICIT = "1.2.840.10008.1.2.1"
UNDEFINED = 0xFFFFFFFF
PIXELS, ITEM, ITEM_END, SEQUENCE_END = 0x7FE00010, 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
LONG = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
"""Value representations whose length has four bytes in explicit encoding."""
BINARY = {b"US": "H", b"SS": "h", b"UL": "I", b"SL": "i", b"FL": "f", b"FD": "d"}


class NoImage(IntakeRefused):
    """A file that is no image of the kind but may lie beside the images of a study: a text, a scout, a dose report."""


@dataclass(frozen=True, slots=True)
class Fields:
    """The named fields of a data set: of the file, or of an item of a sequence."""

    order: str = "<"
    values: dict[str, tuple[bytes, bytes]] = field(default_factory=dict)
    """Value representation and bytes by keyword."""
    sequences: dict[str, list[Fields]] = field(default_factory=dict)

    def texts(self, name: str) -> list[str]:
        """The values of a text field, without padding; empty if the field is absent or empty."""
        _, raw = self.values.get(name, (b"", b""))
        text = raw.decode("ascii", "replace").strip(" \0")
        return [part.strip(" \0") for part in text.split("\\")] if text else []

    def text(self, name: str) -> str:
        """The whole of a text field in capitals, "" if it is absent."""
        return "\\".join(self.texts(name)).upper()

    def numbers(self, name: str) -> list[float]:
        """The finite values of a numeric field; empty if the field is absent or empty.

        Raises:
            IntakeRefused: `bad_number`.
        """
        kind, raw = self.values.get(name, (b"", b""))
        try:
            if kind in BINARY:
                count = len(raw) // struct.calcsize(BINARY[kind])
                numbers = [float(value) for value in struct.unpack_from(f"{self.order}{count}{BINARY[kind]}", raw)]
            else:
                numbers = [float(text) for text in self.texts(name)]
        except ValueError:
            numbers = [math.nan]
        if not all(map(math.isfinite, numbers)):
            message = f"{name} holds something else than numbers: write each with a decimal point, not a comma"
            raise IntakeRefused("bad_number", message)
        return numbers

    def number(self, name: str) -> float | None:
        """The one value of a numeric field, None if the field is absent or empty.

        Raises:
            IntakeRefused: `bad_number` or `bad_count`.
        """
        numbers = self.numbers(name)
        refuse_count(name, numbers, 1)
        return numbers[0] if numbers else None

    def whole(self, name: str, default: int = 0) -> int:
        """The one value of a numeric field as an integer.

        Raises:
            IntakeRefused: `bad_number` or `bad_count`.
        """
        number = self.number(name)
        return default if number is None else int(number)

    def everywhere(self, name: str) -> Iterator[str]:
        """The values of a text field here and in every item, in capitals; of a sequence, the codes of its items."""
        yield from (text.upper() for text in self.texts(name) if text)
        for sequence, items in self.sequences.items():
            for item in items:
                if sequence == name:
                    yield item.text("CodeValue") or "NO CODE"
                yield from item.everywhere(name)


@dataclass(frozen=True, slots=True)
class Header(Fields):
    """The named fields of a file, its transfer syntax and its pixel data as stored, None where it has none."""

    syntax: str = ""
    pixels: bytes | None = None
    pixels_vr: str = "OW"


def refuse_count(name: str, numbers: list[float], count: int) -> None:
    """Refuses a field that is present with another number of values.

    Raises:
        IntakeRefused: `bad_count`.
    """
    if numbers and len(numbers) != count:
        values = f"{count} values" if count > 1 else "one value"
        raise IntakeRefused("bad_count", f"{name} must hold {values}: export the image again")


def read_header(data: bytes, names: Iterable[str], tick: Callable[[], None]) -> Header:
    """The named fields of a DICOM file, with or without preamble.

    Args:
        data: the file.
        names: keywords of the DICOM dictionary, of sequences and of fields at any level of them.
        tick: called after every ELEMENTS_PER_TICK elements; raises to stop the reading.

    Raises:
        NoImage: `unreadable` if this is no DICOM file.
        IntakeRefused: `no_transfer_syntax`, `wrong_format`, `unreadable`, `truncated`, `long_value` or `too_large`.
    """
    return _Walk(data, names, tick).header()


class _Walk:
    """Walks the elements of one file and counts them."""

    def __init__(self, data: bytes, names: Iterable[str], tick: Callable[[], None]) -> None:
        self.data, self.tick, self.elements, self.order = data, tick, 0, "<"
        keywords = {tag_for_keyword(name): name for name in (*names, "CodeValue", "TransferSyntaxUID")}
        self.names = {tag: (name, dictionary_VR(tag).encode()) for tag, name in keywords.items() if tag is not None}

    def header(self) -> Header:
        preamble = self.data[128:132] == b"DICM"
        at = 132 if preamble else 0
        group = self.data[at : at + 2]
        # Without a preamble, a file starts with its meta group, or with the first elements of its data set.
        bare = group == b"\x08\x00" and self.data[at + 2 : at + 4] <= b"\x18\x00"
        if not preamble and (len(self.data) < 16 or not (group == b"\x02\x00" or bare)):
            raise NoImage("unreadable", "this is not a DICOM file")
        meta = Fields()
        while self.data[at : at + 2] == b"\x02\x00":
            at = self._field(meta, at, len(self.data), implicit=False, depth=0)
        syntax = "".join(meta.texts("TransferSyntaxUID"))
        implicit = not self.data[at + 4 : at + 6].isupper()  # as the file is, which some labels contradict
        if bare:
            syntax = IMPLICIT if implicit else EXPLICIT
        if not syntax:
            raise IntakeRefused("no_transfer_syntax", "the file lacks TransferSyntaxUID: export it again")
        if syntax == DEFLATED:  # inflating is unbounded
            raise IntakeRefused("wrong_format", "deflated DICOM is not taken: send it uncompressed or as JPEG 2000")
        self.order = ">" if syntax == BIG_ENDIAN else "<"
        fields = Fields(self.order)
        while at + 8 <= len(self.data):
            tag, kind, start, length = self._element(at, len(self.data), implicit)
            if tag == PIXELS:  # the last element but for padding and signatures
                end = self._end(start, length, len(self.data), implicit)
                # The decoder expects the fragments without the delimiter of their sequence.
                pixels = self.data[start : end - 8 if length == UNDEFINED else end]
                return Header(self.order, fields.values, fields.sequences, syntax, pixels, kind.decode() or "OW")
            at = self._field(fields, at, len(self.data), implicit, depth=0)
        return Header(self.order, fields.values, fields.sequences, syntax)

    def _element(self, at: int, end: int, implicit: bool) -> tuple[int, bytes, int, int]:
        """Tag, value representation (empty if implicit), start and length of the value of the element at a place."""
        self.elements += 1
        if self.elements > MAX_ELEMENTS:
            raise IntakeRefused("too_large", "the file has far more parts than one of its kind")
        if self.elements % ELEMENTS_PER_TICK == 0:
            self.tick()
        if at + 8 > end:
            raise _truncated()
        group, number, length = struct.unpack_from(f"{self.order}HHI", self.data, at)
        tag, kind = group << 16 | number, self.data[at + 4 : at + 6]
        if implicit or group == 0xFFFE or not (kind.isalpha() and kind.isupper()):
            return tag, b"", at + 8, length
        if kind not in LONG:
            return tag, kind, at + 8, struct.unpack_from(f"{self.order}H", self.data, at + 6)[0]
        if at + 12 > end:
            raise _truncated()
        return tag, kind, at + 12, struct.unpack_from(f"{self.order}I", self.data, at + 8)[0]

    def _end(self, start: int, length: int, end: int, implicit: bool) -> int:
        """The end of a value that is stepped over, whatever it nests."""
        if length != UNDEFINED:
            if start + length > end:
                raise _truncated()
            return start + length
        levels, at = [implicit], start
        while levels:
            tag, kind, at, inner = self._element(at, end, levels[-1])
            if tag in (ITEM_END, SEQUENCE_END):
                levels.pop()
            elif inner == UNDEFINED:
                levels.append(levels[-1] or kind == b"UN")  # unknown values of undefined length are implicit inside
            else:
                at += inner
        return at

    def _field(self, fields: Fields, at: int, end: int, implicit: bool, depth: int) -> int:
        """Takes one element into the fields if it is named, and returns where the next one starts."""
        tag, kind, start, length = self._element(at, end, implicit)
        inside = implicit or kind == b"UN"
        name, usual = self.names.get(tag, ("", b""))
        if not name or (length == UNDEFINED and usual != b"SQ"):
            return self._end(start, length, end, inside)
        if usual == b"SQ":
            stop = end if length == UNDEFINED else self._end(start, length, end, inside)
            items, after = self._items(name, start, stop, length == UNDEFINED, inside, depth + 1)
            fields.sequences[name] = items
            return after
        if length > MAX_VALUE_BYTES:
            raise IntakeRefused("long_value", f"{name} is longer than such a field may be: export the image again")
        after = self._end(start, length, end, inside)
        fields.values[name] = (usual if kind in (b"", b"UN") else kind, self.data[start:after])
        return after

    def _items(
        self, name: str, at: int, end: int, delimited: bool, implicit: bool, depth: int
    ) -> tuple[list[Fields], int]:
        """The items of a sequence, of undefined or of defined length, and where the sequence ends."""
        if depth > MAX_DEPTH:
            raise IntakeRefused("too_large", f"{name} is nested deeper than in an image of its kind")
        items: list[Fields] = []
        while delimited or at < end:
            tag, _, start, length = self._element(at, end, implicit)
            if delimited and tag == SEQUENCE_END:
                return items, start
            if tag != ITEM:
                raise IntakeRefused("unreadable", f"{name} is damaged: export the image again")
            if len(items) == MAX_ITEMS:
                raise IntakeRefused(
                    "too_large", f"{name} has more than {MAX_ITEMS} items: send fewer frames in one file"
                )
            fields, at = Fields(self.order), start
            stop = end if length == UNDEFINED else self._end(start, length, end, implicit)
            while at < stop:
                if length == UNDEFINED and self.data[at : at + 4] == struct.pack(f"{self.order}HH", 0xFFFE, 0xE00D):
                    at += 8
                    break
                at = self._field(fields, at, stop, implicit, depth)
            items.append(fields)
        return items, at


def _truncated() -> IntakeRefused:
    return IntakeRefused("truncated", "the file ends before its last element does: send the whole file")
