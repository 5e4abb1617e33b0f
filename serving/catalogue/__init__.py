"""Describes each served DApp: the catalogue entry and its V2 metadata.

May import `channels`, `dapps` and serving.errors.
"""

from serving.catalogue.entry import as_now, listed, takes_cases

__all__ = ["as_now", "listed", "takes_cases"]
