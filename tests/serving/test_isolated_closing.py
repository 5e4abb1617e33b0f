"""Closing an isolated DApp ends its process whatever it does at that moment, and none is started afterwards."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator

import psutil
import pytest

from serving.errors import CallError, StartError
from serving.isolation.process import Child
from serving.isolation.spec import Isolation
from tests.serving.test_isolated import PACKAGE

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is made of Linux namespaces")
START = {"do": "start", "device": "cpu", "threads": 1, "maximum_batch": 4, "optimizations": []}
HANG = {"do": "prepare", "parts": [""], "record": False}


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> Iterator[Child]:
    monkeypatch.syspath_prepend(str(PACKAGE))
    child = Child(Isolation(dapp="hostile", memory_bytes=4 << 30, call_s=300.0))
    yield child
    child.close()


def sandboxes() -> list[psutil.Process]:
    """The processes that we have started and that wait for a child."""
    return [
        process for process in psutil.Process().children() if any("sandbox.py" in word for word in process.cmdline())
    ]


class Caller(threading.Thread):
    """Runs an exchange and keeps what it raises."""

    def __init__(self, exchange: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._exchange = exchange
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self._exchange()
        except Exception as error:
            self.error = error


def test_nothing_is_started_after_closing(child: Child) -> None:
    child.close()
    with pytest.raises(CallError, match="process ended"):
        child.begin(START)
    with pytest.raises(StartError, match="process ended"):
        child.describe()
    with pytest.raises(CallError, match="process ended"):
        child.ask(HANG, [b"nothing"])
    assert child.pid == 0 and sandboxes() == []


@pytest.mark.parametrize("name", ["begin", "describe"])
def test_an_exchange_that_starts_the_process_meanwhile_fails_and_leaves_none(child: Child, name: str) -> None:
    caller = Caller(child.describe if name == "describe" else lambda: child.begin(START))
    caller.start()
    while child.pid == 0 and caller.is_alive():
        pass
    child.close()
    caller.join(timeout=60)
    assert isinstance(caller.error, StartError if name == "describe" else CallError)
    assert child.pid == 0 and sandboxes() == []
    with pytest.raises(StartError):
        child.describe()
    assert sandboxes() == []


def test_a_call_that_hangs_fails_at_once(child: Child) -> None:
    child.begin(START)
    (process,) = sandboxes()
    caller = Caller(lambda: child.ask(HANG, [b"hang"]))
    caller.start()
    family = [process, *process.children(recursive=True)]
    child.close()
    caller.join(timeout=60)  # the call itself may take 300 s
    assert isinstance(caller.error, CallError) and caller.error.code == "dapp_crashed"
    assert not psutil.wait_procs(family, timeout=60)[1] and sandboxes() == []
