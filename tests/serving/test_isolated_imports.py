"""The process of an isolated DApp imports the DApp's own needs, never the mesh's settings, keys or stores."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from serving.isolation.dapp import open_dapp
from serving.isolation.runner import IsolatedRunner
from serving.isolation.spec import Isolation

PACKAGE = Path(__file__).parents[1] / "hostile"
FORBIDDEN = {
    "channels",
    "coincurve",
    "cryptography",
    "eth_keys",
    "httpx",
    "pydantic_settings",
    "ray",
    "redis",
    "serving.cluster",
    "serving.config",
    "serving.control",
    "serving.isolation.process",
    "serving.protocol",
    "serving.replica",
    "serving.treasury",
    "sqlalchemy",
    "starlette",
}


async def _modules() -> set[str]:
    dapp = open_dapp(Isolation(dapp="hostile", memory_bytes=4 << 30))
    runner = IsolatedRunner(dapp, threads=1)
    try:
        await runner.start()
        outputs = await runner.run({"DEED": np.array([[b"modules", b""]], object)})
        return set(outputs["LOOT"][0, 0].decode().split())
    finally:
        runner.close()


@pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is Linux's")
def test_a_running_child_has_imported_neither_settings_nor_keys_nor_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PACKAGE))
    modules = asyncio.run(_modules())
    assert {"leben_hostile", "serving.isolation.child", "torch"} <= modules
    assert not modules & FORBIDDEN


def test_the_childs_own_modules_import_the_floors_below_alone() -> None:
    code = "import sys, serving.isolation.child; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    modules = set(done.stdout.split())
    assert not modules & FORBIDDEN
    assert {name for name in modules if name.startswith("serving.")} == {
        "serving.device",
        "serving.device.optimizations",
        "serving.device.pinned_memory",
        "serving.device.torch_runner",
        "serving.errors",
        "serving.isolation",
        "serving.isolation.child",
        "serving.isolation.messages",
        "serving.tensors",
    }
