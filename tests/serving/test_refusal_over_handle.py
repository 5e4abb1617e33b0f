"""A refusal keeps its type, code and message over a Ray handle, and is no failure in Serve's log."""

from __future__ import annotations

import asyncio
import logging
import pickle
from typing import Any

import pytest
from ray.exceptions import RayTaskError

from channels.errors import ChannelError, LedgerError, NotReady, PaymentRefused
from serving.cluster.refusal_log import RefusalFilter
from serving.control.models import ModelRef, Models
from serving.errors import CallError

REFUSALS = [
    CallError("load_failed", "not here"),
    NotReady("not_ready", "later"),
    LedgerError("payout_amount", "too much"),
    PaymentRefused("underpaid", "too little", {"chargedCumulativeAmount": "1"}),
]


def over_handle(error: Exception) -> Exception:
    """The error as the caller of a handle catches it: pickled by Ray, and of both types."""
    sent = RayTaskError("Deployment.method", "Traceback …", error, pid=1, ip="127.0.0.1", actor_repr="", actor_id="")
    return pickle.loads(pickle.dumps(sent)).as_instanceof_cause()  # noqa: S301 - our own bytes


class Remote:
    """A handle's method that refuses."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def remote(self, *words: Any) -> Any:
        raise over_handle(self.error)


class Refusing:
    """A handle whose every method refuses."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __getattr__(self, name: str) -> Remote:
        return Remote(self.error)


@pytest.mark.parametrize("error", REFUSALS, ids=lambda error: type(error).__name__)
def test_a_refusal_keeps_type_code_and_message(error: CallError | ChannelError) -> None:
    with pytest.raises(type(error)) as caught:
        asyncio.run(Remote(error).remote())
    assert (caught.value.code, caught.value.message) == (error.code, error.message)


def test_a_load_that_fails_names_the_model() -> None:
    models = Models((ModelRef("chdr", "1", "CHDr"),), Refusing(CallError("load_failed", "no such model")))
    for call in (models.load("x", {}), models.unload("x")):
        with pytest.raises(CallError, match=r"failed to (un)?load 'x', no such model") as caught:
            asyncio.run(call)
        assert caught.value.code == "load_failed"


def test_serve_logs_failures_and_no_refusals() -> None:
    def logged(error: Exception) -> bool:
        info = (type(error), error, None)
        record = logging.LogRecord("ray.serve", logging.ERROR, __file__, 1, "Request failed.", None, info)
        return RefusalFilter().filter(record)

    assert not any(logged(error) for error in REFUSALS)
    assert logged(ValueError("a fault of ours"))
    assert RefusalFilter().filter(logging.LogRecord("ray.serve", logging.ERROR, __file__, 1, "text", None, None))
