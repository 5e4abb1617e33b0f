"""Lets a DApp call other DApps for a part of its answer.

Such a call is paid out of its caller's quote, so it is possible only while a call is answered: the executor sets, for
that block, the function that reaches the others. Knows no network and no money.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np

from dapps.api.types import Inputs

Ask = Callable[[str, Inputs], Inputs]
"""Calls the named DApp with arrays [n, *shape] by input name; returns arrays by output name or raises `ChildFailed`."""

_ask: ContextVar[Ask | None] = ContextVar("ask", default=None)


class ChildFailed(Exception):
    """A DApp that was called did not answer. It costs nothing, and the caller may answer without it.

    Args:
        code: stable: that of the refusal, or `child_undeclared`, `outside_call`, `child_unavailable`, `child_budget`,
            `child_cycle`, `child_too_many`, `child_deadline`.
        message: for people.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@contextmanager
def asking(ask: Ask) -> Iterator[None]:
    """Enables `DApp.call` in this block: in this context, and in threads that run in a copy of it."""
    token = _ask.set(ask)
    try:
        yield
    finally:
        _ask.reset(token)


def call(name: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """See `DApp.call`."""
    ask = _ask.get()
    if ask is None:
        message = "DApps are called while a call is answered: in forward or conclude; in tests, in installed()"
        raise ChildFailed("outside_call", message)
    torch_inputs = [value for value in tensors.values() if not isinstance(value, np.ndarray)]
    if not torch_inputs:
        return dict(ask(name, dict(tensors)))
    from dapps.api.arrays import from_torch, to_torch

    outputs = ask(name, {key: from_torch(value) for key, value in tensors.items()})
    return {key: to_torch(array, str(torch_inputs[0].device)) for key, array in outputs.items()}
