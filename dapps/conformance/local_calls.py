"""Answers a DApp's calls to other DApps in this process, for an author's tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from dapps.api import ChildFailed, Inputs, asking


@contextmanager
def installed() -> Iterator[None]:
    """Answers calls by the installed DApps in this process, on the CPU and free of charge: for an author's tests."""
    with asking(answer_locally):
        yield


def answer_locally(name: str, inputs: Inputs) -> Inputs:
    """Answers a call to the named DApp in this process, on the CPU and free of charge.

    Raises:
        ChildFailed: no such DApp is installed.
    """
    from dapps.api import from_torch, to_torch

    outputs = loaded(name).forward(**{key: to_torch(array, "cpu") for key, array in inputs.items()})
    return {key: from_torch(value) for key, value in outputs.items()}


@lru_cache(maxsize=8)
def loaded(name: str) -> Any:
    """The installed DApp on the CPU, kept for the calls that follow.

    Raises:
        ChildFailed: no such DApp is installed.
    """
    from dapps.packages import registry

    try:
        dapp = registry.load(name)
    except registry.UnknownDApp as error:
        raise ChildFailed("child_unavailable", str(error)) from error
    dapp.load("cpu")
    return dapp
