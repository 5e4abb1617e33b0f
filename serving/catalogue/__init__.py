"""Describes each served DApp: the catalogue entry and its V2 metadata.

May import `channels`, `dapps` and serving.errors.
"""

from serving.catalogue.entry import listed, takes_cases, with_current_offer

__all__ = ["listed", "takes_cases", "with_current_offer"]
