"""Bounds how many parts JSON and YAML from outside have, before a parser builds them.

A parser takes 30 to 250 bytes and a tenth of a microsecond for each array, object and value: 64 MiB of `[],[],…` become
1.9 GB and ten seconds of the interpreter. Counting takes no memory and milliseconds. orjson and `json` bound the
nesting of JSON themselves; that of YAML is bounded here, and so are anchors, which multiply what they name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

STEP_BYTES = 1 << 20
STRING = re.compile(rb'"[^"]*"?')


class StructureRefused(ValueError):
    """A text has more parts than it may. `line` is that of the first part too many in YAML, else 0."""

    def __init__(self, cause: str, line: int = 0) -> None:
        super().__init__(cause)
        self.cause, self.line = cause, line


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonBounds:
    """How many arrays, objects, named fields, separators of values, and strings a JSON text may have."""

    arrays: int
    objects: int
    fields: int
    values: int
    strings: int

    def exceeded(self, text: bytes) -> str:
        """The kind of part that `text` has too many of, or nothing; what stands within strings counts as well."""
        counts = (
            ("arrays", b"[", self.arrays),
            ("objects", b"{", self.objects),
            ("fields", b":", self.fields),
            ("values", b",", self.values),
            ("strings", b'"', 2 * self.strings),
        )
        return next((f"{bound} {kind}" for kind, mark, bound in counts if _more(text, mark, bound)), "")


def _more(text: bytes, mark: bytes, bound: int) -> bool:
    """True if a mark stands in the text more than `bound` times; stops to count where it does."""
    count = 0
    for start in range(0, len(text), STEP_BYTES):
        count += text.count(mark, start, start + STEP_BYTES)
        if count > bound:
            return True
    return False


LARGE_JSON = JsonBounds(arrays=1 << 20, objects=1 << 14, fields=1 << 16, values=5_000_000, strings=1 << 20)
"""A request with tensors as numbers, at most five million of them."""
CASE_JSON = JsonBounds(arrays=2_048, objects=2_048, fields=1 << 14, values=1 << 14, strings=1 << 14)
"""A case: at most 64 files in base64, and a record, which has at most 64 KiB and bounds of its own."""
MESSAGE_JSON = JsonBounds(arrays=1 << 16, objects=1 << 16, fields=1 << 18, values=1 << 20, strings=1 << 19)
"""A report or a list of tensors from the process of an isolated DApp; its tensors travel beside it."""
SMALL_JSON = JsonBounds(arrays=2_048, objects=2_048, fields=4_096, values=8_192, strings=8_192)
"""A request of some kilobytes, without tensors."""


def check_json(text: bytes, bounds: JsonBounds) -> None:
    """Refuses JSON with too many parts; takes no position on whether it is JSON.

    Marks within strings count for nothing: a text may hold any number of commas. They are only told apart where all
    marks together are too many.

    Raises:
        StructureRefused: it has too many.
    """
    if not bounds.exceeded(text):
        return
    if b'"' in text:
        text = text.replace(rb"\\", b"").replace(rb"\"", b"")
        if _more(text, b'"', 2 * bounds.strings):  # before the strings are cut out, which takes memory for each
            raise StructureRefused(f"it has more than {bounds.strings} strings")
        text = STRING.sub(b"", text)
    if excess := bounds.exceeded(text):
        raise StructureRefused(f"it has more than {excess}")


def check_yaml(text: str, *, max_events: int, max_depth: int) -> None:
    """Refuses YAML that is large, deep, or more than plain data, in the flat stream of events: nothing is built.

    Raises:
        StructureRefused: it has too many parts, is nested too deeply, or has anchors, aliases or tags.
        yaml.YAMLError: it is no YAML.
    """
    import yaml  # here, so that the process of an isolated DApp and the JSON routes start without it

    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if count > max_events:
            raise StructureRefused(f"the file has more than {max_events} parts", line)
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise StructureRefused("anchors and aliases (& and *) are not allowed: they can grow without bound", line)
        if getattr(event, "tag", None):
            raise StructureRefused("tags (!) are not allowed: they can ask for code", line)
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > max_depth:
            raise StructureRefused(f"nested deeper than {max_depth}", line)
