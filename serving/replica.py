"""`Replica`: one DApp in one Ray Serve replica: door, paywall, batcher and runner, put together.

Holds a store connection and the receipt key, and nothing else of value. It is ready only after the model has answered
its own example. Next: `door.py`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from ray import serve

from channels.errors import LedgerError, NotReady
from channels.meter import Meter
from channels.quote import Movement, Payee, Quote
from channels.store_redis import RedisStore
from channels.voucher import Signer
from channels.x402 import Payment
from dapps import registry
from serving.audit import Audited
from serving.audit_log import AuditLog
from serving.batcher import Batcher
from serving.door import Door
from serving.paywall import Paywall
from serving.runner import TorchRunner

IDLE_CHECK_S = 30.0


@dataclass(frozen=True, slots=True)
class ReplicaSpec:
    """What a replica is given when it starts; `audit` is the folder of the audit log."""

    dapp: str
    payee: Payee
    shares: tuple[tuple[str, str, int], ...]
    store_url: SecretStr
    receipt_key: SecretStr = field(repr=False)
    exposure_cap: int
    abandoned_limit: int
    deposit_calls: int
    maximum_body_bytes: int
    torch_threads: int
    audit: str = ""


@serve.deployment
@serve.ingress()
class Replica:
    """The deployment of one DApp."""

    async def __init__(self, spec: ReplicaSpec) -> None:  # type: ignore[misc] # Serve awaits it
        dapp = registry.load(spec.dapp)
        signer = Signer(bytes.fromhex(spec.receipt_key.get_secret_value()))
        self._store = RedisStore(
            spec.store_url.get_secret_value(), spec.exposure_cap, abandoned_limit=spec.abandoned_limit
        )
        meter = Meter(self._store, signer, spec.payee.chain_id, _deposit, _refund)
        most = dapp.price.of(dapp.price.maximum_items)
        quote = Quote(spec.payee, most, minimum_deposit=most * spec.deposit_calls)
        paywall = Paywall(dapp, spec.dapp, meter, quote, spec.shares, signer)
        self._runner = TorchRunner(dapp, threads=spec.torch_threads)
        self._batcher = Batcher(self._runner, dapp.maximum_batch)
        self._door = Door(spec.dapp, dapp, paywall, self._batcher, spec.maximum_body_bytes)
        self._app = self._door.app()
        if spec.audit:
            self._app = Audited(self._app, spec.dapp, AuditLog(Path(spec.audit), spec.dapp))
        self.device = await self._runner.start()
        self._example = dapp.example()
        self._checked_s = time.monotonic()

    def __serve_build_asgi_app__(self) -> Any:
        return self._app

    async def check_health(self) -> None:
        """A real inference now and then: a process that answers but cannot compute is not healthy."""
        if time.monotonic() - self._checked_s > IDLE_CHECK_S:
            await self._batcher.submit(self._example, timeout_s=20.0)
            self._checked_s = time.monotonic()


async def _deposit(payment: Payment) -> Movement:
    return await _moved("deposit", payment)


async def _refund(payment: Payment) -> Movement:
    return await _moved("refund", payment)


async def _moved(verb: str, payment: Payment) -> Movement:
    """Asks the treasury, which alone holds the ledger's keys, to move a payer's money."""
    treasury = serve.get_deployment_handle("Treasury", app_name="control")
    try:
        said = await getattr(treasury, verb).remote(payment)
    except Exception as error:
        message = f"the treasury cannot be reached: the {verb} may have been made, repeat the same one"
        raise NotReady("treasury_unavailable", message) from error
    return movement(said)


def movement(said: Movement | tuple[str, str]) -> Movement:
    """The treasury's answer: what was moved, or its refusal raised again; exceptions lose their code on the way."""
    if isinstance(said, Movement):
        return said
    code, message = said
    if code in ("not_ready", "store_unavailable", "stale_treasury"):
        raise NotReady(code, message)
    raise LedgerError(code, message)
