"""A refusal of the treasury keeps its class, its code and its message on its way through a Ray handle."""

from __future__ import annotations

import pickle

import pytest
from ray.exceptions import RayTaskError

from channels import errors
from channels.errors import ChannelError, LedgerError, LedgerUnavailable, NotReady
from channels.journal.journal import JournalError, StaleToken
from channels.sql import DatabaseUnavailable
from serving.treasury.client import refusal

REFUSALS = [
    LedgerError("payout_amount", "a payout is more than 0"),
    NotReady("accounts_busy", "too many reads of accounts wait"),
    LedgerUnavailable("chain_stuck", "a transaction is not mined in time"),
    JournalError("journal_tampered", "receipt 1 is not what was written"),
    DatabaseUnavailable("the disk is full"),
    StaleToken(),
]


def through_ray(error: ChannelError) -> Exception:
    """What a caller catches: Ray pickles the error inside its own and raises a class of both."""
    wrapped = RayTaskError("deposit", "Traceback: secret paths", error, proctitle="p", pid=1, ip="127.0.0.1")
    raised: Exception = pickle.loads(pickle.dumps(wrapped)).as_instanceof_cause()  # noqa: S301
    return raised


@pytest.mark.parametrize("error", REFUSALS, ids=lambda error: type(error).__name__)
def test_a_refusal_survives_a_handle(error: ChannelError) -> None:
    raised = through_ray(error)
    assert isinstance(raised, type(error)) and isinstance(raised, ChannelError)
    assert (raised.code, raised.message) == (error.code, error.message)


def test_every_class_of_refusals_survives_pickling() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ChannelError)]
    plain = [kind for kind in kinds if kind.__init__ is ChannelError.__init__]
    assert len(plain) > 5
    for kind in plain:
        again = pickle.loads(pickle.dumps(kind("code", "message")))  # noqa: S301
        assert type(again) is kind and (again.code, again.message, str(again)) == ("code", "message", "message")


def test_a_replica_sees_the_refusal_without_the_other_processs_traceback() -> None:
    for error in REFUSALS[:2]:
        caught = through_ray(error)
        assert isinstance(caught, ChannelError)
        plain = refusal(caught)
        assert type(plain) is type(error) and str(plain) == error.message
    other = refusal(through_ray(REFUSALS[3]))  # type: ignore[arg-type]
    assert type(other) is LedgerError and other.code == "journal_tampered"
