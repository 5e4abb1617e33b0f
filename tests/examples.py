"""Sets how many random examples a property is tried on."""

from __future__ import annotations

from hypothesis import settings

FULL = 10


def examples(usual: int) -> int:
    """`usual` examples in `make test`, ten times as many with `--full`."""
    return usual * FULL if settings.get_current_profile_name() == "full" else usual
