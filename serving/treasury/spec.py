"""Holds everything that the treasury starts with. Secrets are wrapped, so that nothing prints them."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import SecretStr

from serving.treasury.ledgers import ChainSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class TreasurySpec:
    """What the treasury starts with; `holder` names its lease and is unique among treasuries."""

    ledger_url: SecretStr
    store_url: SecretStr
    authorizer_key: SecretStr = field(repr=False)
    receipt_key: SecretStr = field(repr=False)
    exposure_cap: int
    settle_interval_s: float
    settle_amount: int
    holder: str = "treasury"
    retired_keys: tuple[SecretStr, ...] = field(default=(), repr=False)
    chain: ChainSpec | None = None
    mesh: str = ""
    """The mesh that the store must belong to, see `ledgers.mesh`; empty: any."""
