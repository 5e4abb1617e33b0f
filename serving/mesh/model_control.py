"""`ModelControl`: starts and ends the applications of DApps while the mesh runs.

It holds what a replica is started with, and exists only where `LEBEN_MODEL_CONTROL` is `explicit`: whoever reaches the
port may then load and unload, as with Triton's setting of that name.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from typing import Any

import httpx
import orjson
from ray import serve

from serving.cluster import HEAD_NODE
from serving.cluster.refusal_log import quiet_refusals
from serving.errors import CallError, StartError
from serving.mesh.applications import end, start
from serving.replica.spec import ReplicaSpec

MAX_BATCH = 4_096
ROUTES_WAIT_S = 10.0


@serve.deployment(name="ModelControl", ray_actor_options=HEAD_NODE)
class ModelControl:
    """The deployment; bound under the control application, without a route."""

    def __init__(self, specs: tuple[ReplicaSpec, ...], url: str) -> None:
        self._specs, self._url = {spec.dapp: spec for spec in specs}, url
        self._turn = asyncio.Lock()
        quiet_refusals()

    async def unloaded(self) -> list[str]:
        """Names of the DApps that have no application now."""
        running = (await asyncio.to_thread(serve.status)).applications
        return [name for name in self._specs if name not in running]

    async def load(self, name: str, parameters: dict[str, Any]) -> None:
        """Starts a DApp's application, or restarts it if its configuration differs.

        Raises:
            CallError: `load_failed`.
        """
        spec = replace(self._spec(name), maximum_batch=_override(parameters))
        async with self._turn:
            try:
                await asyncio.to_thread(start, spec)
            except StartError:
                raise CallError("load_failed", "its replicas do not start: their log has the cause") from None
            await self._seen(name, ready=True)

    async def unload(self, name: str, parameters: dict[str, Any]) -> None:
        """Ends a DApp's application.

        Raises:
            CallError: `load_failed`.
        """
        spec = self._spec(name)
        async with self._turn:
            await asyncio.to_thread(end, spec)
            await self._seen(name, ready=False)

    def _spec(self, name: str) -> ReplicaSpec:
        if name not in self._specs:
            raise CallError("load_failed", "there is no such model in the repository")
        return self._specs[name]

    async def _seen(self, name: str, ready: bool) -> None:
        """Waits until the proxy has the new routes: whoever asks next must find what was loaded, and only that."""
        url = f"{self._url}/v2/models/{name}/ready"
        with suppress(TimeoutError, httpx.TransportError):
            async with asyncio.timeout(ROUTES_WAIT_S), httpx.AsyncClient() as client:
                while ((await client.get(url)).status_code == 200) != ready:
                    await asyncio.sleep(0.05)


def _override(parameters: dict[str, Any]) -> int:
    """The largest batch in the parameters of a load; 0 for the DApp's own.

    Raises:
        CallError: `load_failed`.
    """
    if any(name.startswith("file:") for name in parameters):
        raise CallError("load_failed", "models come from installed packages: files are not taken")
    if "config" not in parameters:
        return 0
    try:
        config = orjson.loads(parameters["config"])
    except (ValueError, TypeError) as error:
        raise CallError("load_failed", "its config is not JSON") from error
    if not isinstance(config, dict) or not set(config) <= {"max_batch_size"}:
        raise CallError("load_failed", "its config may override max_batch_size alone")
    wanted = str(config.get("max_batch_size", 0))
    if not wanted.isascii() or not wanted.isdigit() or int(wanted[:6]) > MAX_BATCH:
        raise CallError("load_failed", f"max_batch_size is a whole number up to {MAX_BATCH}")
    return int(wanted)
