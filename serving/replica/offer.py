"""Defines `Offer`: what a DApp answers with and for how much, and the lock under which a change replaces it.

An offer never changes. A call reads it once and keeps it from its quote to its receipt.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import orjson

from channels.metering import Payee, Quote
from channels.receipts import ShareRows, without_model
from dapps import DApp, Price
from dapps.api import Provenance
from serving.replica.config_lock import RWLock


@dataclass(frozen=True)
class Offer:
    """One DApp at one price.

    Attributes:
        name: the DApp's name on the mesh.
        dapp: it, with its present thresholds.
        price: what a call costs.
        quote: the most that one call can cost, as a 402 names it.
        shares: (carrier, owner's address, basis points), in the order in which ties are rounded.
        guideline_shares: the same for a call that a guideline alone answers.
        release: version and guidelines, as receipts name them.
        digest: of everything that answers, in lower-case hex.
        provenance: of the answers, for reports.
        maximum_batch: most rows that the device is given at once.
    """

    name: str
    dapp: DApp
    price: Price
    quote: Quote
    shares: ShareRows
    guideline_shares: ShareRows
    release: str
    digest: str
    provenance: Provenance
    maximum_batch: int

    @classmethod
    def of(cls, name: str, dapp: DApp, quote: Quote, shares: ShareRows, maximum_batch: int = 0) -> Offer:
        """Reads what a DApp offers now; digests read the package's files, so this does not belong on the event loop.

        Args:
            name: see above.
            dapp: see above.
            quote: see above.
            shares: see above.
            maximum_batch: see above; 0: as the DApp declares.
        """
        return cls(
            name=name,
            dapp=dapp,
            price=dapp.price,
            quote=quote,
            shares=shares,
            guideline_shares=without_model(shares),
            release=dapp.release,
            digest=dapp.digest,
            provenance=dapp.provenance,
            maximum_batch=maximum_batch or dapp.maximum_batch,
        )

    @cached_property
    def free(self) -> bool:
        """True if a call costs nothing."""
        return self.quote.amount == 0


class LiveOffer:
    """The offer in force: read it inside `async with live.lock`, replace it inside `live.lock.exclusive()`."""

    def __init__(self, offer: Offer) -> None:
        self.offer = offer
        self.lock = RWLock()


def quote_of(dapp: DApp, payee: Payee, shares: ShareRows, deposit_calls: int) -> Quote:
    """The quote of a DApp at its present price.

    Args:
        dapp: what is paid for.
        payee: who is paid.
        shares: the owners' shares, of which the quote carries a digest.
        deposit_calls: a deposit pays for at least this many calls.
    """
    maximum = dapp.price.max_price
    return Quote(payee, maximum, minimum_deposit=maximum * deposit_calls, terms=_terms(dapp.price, shares))


def _terms(price: Price, shares: ShareRows) -> str:
    """A digest of prices and shares: when they change, calls that were quoted the old ones are quoted anew."""
    terms = [price.per_item, price.maximum_items, price.guideline_only, [list(row) for row in shares]]
    if price.per_gpu_second:
        terms += [price.per_gpu_second, price.max_price]
    return hashlib.sha256(orjson.dumps(terms)).hexdigest()[:16]
