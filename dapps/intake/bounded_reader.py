"""Bounds how often a parser may read from the bytes of a file.

Parsers of nested formats spend microseconds on each element: millions of empty ones occupy a core for a minute.
Counting reads bounds that for any parser and any nesting. The readers of DICOM and WAV use it.
"""

from __future__ import annotations

import io

from dapps.api import IntakeRefused

MAX_READS = 20_000
"""A CT slice has a few hundred header elements, each two or three reads; a WAV file has a handful of chunks."""


class BoundedReader(io.BytesIO):
    """A readable file over bytes that refuses the read after the MAX_READS-th."""

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """The next bytes.

        Raises:
            IntakeRefused: `too_large` if the file was read from too often.
        """
        self.reads += 1
        if self.reads > MAX_READS:
            raise IntakeRefused("too_large", "the file has far more parts than one of its kind")
        return super().read(size)
