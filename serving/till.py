"""What a replica asks of the treasury: to move a payer's money, which it alone can, and for what SQL alone has.

Next: `treasury.py`.
"""

from __future__ import annotations

from typing import Any

from ray import serve

from channels.errors import LedgerError, NotReady
from channels.quote import Movement
from channels.store import Record
from channels.x402 import Payment


async def deposit(payment: Payment) -> Movement:
    """Settles the deposit of a payment; see `Treasury.deposit`."""
    return await _moved("deposit", payment)


async def refund(payment: Payment) -> Movement:
    """Gives a channel's unspent money back; see `Treasury.refund`."""
    return await _moved("refund", payment)


async def recall(call_id: str) -> Record | None:
    """The record of a call that was charged a while ago; None if SQL does not have it yet.

    Raises:
        NotReady: `treasury_unavailable`.
    """
    try:
        found: Record | None = await _treasury().record.remote(call_id)
        return found
    except Exception as error:
        message = "the call was charged and its answer is no longer kept; its receipt cannot be fetched now, retry"
        raise NotReady("treasury_unavailable", message) from error


def _treasury() -> Any:
    return serve.get_deployment_handle("Treasury", app_name="control")


async def _moved(verb: str, payment: Payment) -> Movement:
    """Asks the treasury, which alone holds the ledger's keys, to move a payer's money."""
    try:
        said = await getattr(_treasury(), verb).remote(payment)
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
