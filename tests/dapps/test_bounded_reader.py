"""Tests dapps/intake/bounded_reader.py."""

import pytest

from dapps.api.types import IntakeRefused
from dapps.intake.bounded_reader import MAX_READS, BoundedReader


def test_it_reads_as_any_file_until_it_was_read_too_often() -> None:
    file = BoundedReader(b"abcdef")
    assert file.read(2) == b"ab" and file.read() == b"cdef"
    file.seek(0)
    for _ in range(MAX_READS - 2):
        file.read(1)
    with pytest.raises(IntakeRefused) as refused:
        file.read(1)
    assert refused.value.code == "too_large"
