"""Says which file of a case is at fault, by its ordinal: a file's name may be a patient's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dapps.api import IntakeRefused


@contextmanager
def file_at_fault(ordinal: int, several: bool) -> Iterator[None]:
    """Puts the file's ordinal before the text of a refusal, where the case has several files.

    Args:
        ordinal: the file's place in the order in which the case came, from 1.
        several: whether the case has other files.

    Raises:
        IntakeRefused: with the code of the refusal inside.
    """
    try:
        yield
    except IntakeRefused as refused:
        raise numbered(refused, ordinal, several) from None


def numbered(refused: IntakeRefused, ordinal: int, several: bool) -> IntakeRefused:
    """The refusal with the file's ordinal before its text, where the case has other files."""
    return IntakeRefused(refused.code, f"file {ordinal}: {refused.message}" if several else refused.message)
