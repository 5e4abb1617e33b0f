"""Parses a multipart/form-data body that is already in memory.

Uses python-multipart's synchronous parser, so it needs no event loop, and keeps parts in memory: on disk a patient's
file would outlive the call.
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from serving.errors import CallError

MAX_FILES = 64
MAX_FIELDS = 4
MAX_FIELD_BYTES = 1 << 20


@dataclass(slots=True)
class FormPart:
    """One part of a form: a file if it came with a file name, else a text field. The file name itself is dropped."""

    name: str = ""
    is_file: bool = False
    data: bytearray = field(default_factory=bytearray, repr=False)


def parse_form(content_type: str, body: bytes) -> list[FormPart]:
    """Reads the parts of a form, in their order.

    Args:
        content_type: the request's Content-Type, with the boundary.
        body: the whole body.

    Raises:
        CallError: `bad_request`: the body is no form, or has too many parts.
    """
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if boundary is None:
        raise _unreadable()
    collector = _Collector(_charset(options.get(b"charset", b"utf-8")))
    try:
        parser = MultipartParser(boundary, collector.callbacks())  # type: ignore[arg-type]
        parser.write(body)
        parser.finalize()
    except (FormParserError, ValueError):
        raise _unreadable() from None
    return collector.parts


class _Collector:
    """Collects the parser's events into parts."""

    def __init__(self, charset: str) -> None:
        self.parts: list[FormPart] = []
        self._charset = charset
        self._part = FormPart()
        self._files = self._fields = 0
        self._header, self._value, self._disposition = b"", b"", b""

    def callbacks(self) -> dict[str, object]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._part_data,
            "on_part_end": self._end,
        }

    def _begin(self) -> None:
        self._part, self._disposition = FormPart(), b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header, self._value = b"", b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise _unreadable()
        self._part.name = self._text(options[b"name"])
        self._part.is_file = b"filename" in options
        self._files += self._part.is_file
        self._fields += not self._part.is_file
        if self._files > MAX_FILES or self._fields > MAX_FIELDS:
            raise _unreadable()

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if not self._part.is_file and len(self._part.data) + end - start > MAX_FIELD_BYTES:
            raise _unreadable()
        self._part.data += memoryview(data)[start:end]

    def _end(self) -> None:
        if not self._part.is_file:
            self._part.data = bytearray(self._text(bytes(self._part.data)).encode())
        self.parts.append(self._part)

    def _text(self, data: bytes) -> str:
        try:
            return data.decode(self._charset)
        except UnicodeDecodeError:
            return data.decode("latin-1")


def _charset(name: bytes) -> str:
    try:
        return codecs.lookup(name.decode("latin-1")).name
    except LookupError:
        return "latin-1"


def _unreadable() -> CallError:
    return CallError("bad_request", "the multipart body cannot be read")
