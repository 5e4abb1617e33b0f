"""Calls the treasury from other processes: replicas move payers' money and fetch records, the CLI settles."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

from channels.errors import ChannelError, LedgerError, NotReady
from channels.metering import ChargeRecord, Transfer
from channels.protocol import Payment
from serving.cluster.liveness import while_alive
from serving.errors import StartError


async def deposit(payment: Payment) -> Transfer:
    """Settles the deposit of a payment; see `Treasury.deposit`."""
    return await _moved("deposit", payment)


async def refund(payment: Payment) -> Transfer:
    """Gives a channel's unspent money back; see `Treasury.refund`."""
    return await _moved("refund", payment)


async def recall(call_id: str) -> ChargeRecord | None:
    """The record of a call that was charged a while ago; None if SQL does not have it yet.

    Raises:
        NotReady: `treasury_unavailable`.
    """
    try:
        treasury = _treasury()
        record: ChargeRecord | None = await while_alive(treasury.record.remote(call_id), treasury.ping.remote)
        return record
    except Exception as error:
        message = "the call was charged and its answer is no longer kept; its receipt cannot be fetched now, retry"
        raise NotReady("treasury_unavailable", message) from error


def _treasury() -> Any:
    from ray import serve  # late: commands that only name this module start without Ray

    return serve.get_deployment_handle("Treasury", app_name="control")


async def _moved(verb: str, payment: Payment) -> Transfer:
    try:
        treasury = _treasury()
        transfer: Transfer = await while_alive(getattr(treasury, verb).remote(payment), treasury.ping.remote)
        return transfer
    except ChannelError as error:
        raise refusal(error) from None
    except Exception as error:
        message = f"the treasury cannot be reached: the {verb} may have been made, repeat the same one"
        raise NotReady("treasury_unavailable", message) from error


def refusal(error: ChannelError) -> ChannelError:
    """The treasury's refusal without Ray's wrapping, whose text holds the traceback of another process.

    What is neither the ledger's refusal nor a reason to repeat the request is the ledger's refusal to the payer.
    """
    cause = getattr(error, "cause", error)
    return cause if isinstance(cause, LedgerError | NotReady) else LedgerError(error.code, error.message)


SETTLE_TIMEOUT_S = 60.0
PROGRESS_S = 0.5


def settle(progress: Callable[[int, int], None] = lambda done, total: None) -> dict[str, Any]:
    """Asks the treasury of the Ray that this process is connected to for a settlement.

    Args:
        progress: called with (channels settled, channels in all) now and then.

    Returns:
        What was claimed, in how many epochs, the last root, and the payouts; amounts in atomic units.

    Raises:
        StartError: if the treasury has settled nothing for a minute.
    """
    response = _from_driver().settle.remote()
    last, moved_s = (0, 0), time.monotonic()
    while True:
        with suppress(TimeoutError):
            settled: dict[str, Any] = response.result(timeout_s=PROGRESS_S)
            return settled
        counts = _from_driver().progress.remote().result(timeout_s=SETTLE_TIMEOUT_S)
        if counts != last:
            last, moved_s = counts, time.monotonic()
            progress(*counts)
        elif time.monotonic() - moved_s > SETTLE_TIMEOUT_S:
            raise StartError("the treasury settles nothing: its log is in the dashboard")


@cache
def _from_driver() -> Any:
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    handle = serve.get_deployment_handle("Treasury", app_name="control")
    # A driver has no event loop that outlives a call; in throughput mode a handle would otherwise look for one.
    handle._init(_run_router_in_separate_loop=True)  # type: ignore[no-untyped-call]
    return handle
