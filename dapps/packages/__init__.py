"""Finds DApps: entry points of installed packages, wheels and folders.

May import api and knowledge.
"""

from dapps.packages.registry import GROUP, NAME, UnknownDApp
from dapps.packages.source import Offer, offers, wheel_distribution

__all__ = ["GROUP", "NAME", "Offer", "UnknownDApp", "offers", "wheel_distribution"]
