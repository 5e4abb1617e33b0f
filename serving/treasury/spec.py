"""`TreasurySpec`: everything that the treasury is started with. Secrets are wrapped, so that nothing shows them."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import SecretStr

from serving.treasury.ledgers import ChainSpec


@dataclass(frozen=True, slots=True)
class TreasurySpec:
    """What the treasury is given when it starts; `holder` names its lease: no two that run apart have the same."""

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
    """Whose the store has to be, see `ledgers.mesh`; empty: not asked."""
