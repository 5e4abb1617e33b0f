"""Serves one DApp: the HTTP application, the paywall in front of it and inference behind it.

May import isolation and the floors below. `deployment` loads Ray: `serving.mesh` imports it by name.
"""

from serving.replica.http import Door
from serving.replica.offer import LiveOffer, Offer
from serving.replica.paywall import Paywall

__all__ = ["Door", "LiveOffer", "Offer", "Paywall"]
