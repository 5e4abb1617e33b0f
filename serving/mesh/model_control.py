"""Passes callers' loads and unloads to the process that owns the applications.

Exists only where `LEBEN_MODEL_CONTROL` is `explicit`: whoever reaches the port may then load and unload, as with
Triton's setting of that name. `ModelControl` queues requests on the head; `ModelRequests`, a thread of `leben up`,
takes them and carries them out on its `Served`.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from dataclasses import dataclass
from typing import Any, Literal

import orjson
from ray import serve

from serving.cluster import HEAD_NODE, ray_head
from serving.cluster.refusal_log import quiet_refusals
from serving.errors import CallError
from serving.mesh.served import Served

log = logging.getLogger("leben.model_control")
MAX_BATCH = 4_096
TAKE_S = 5.0


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """One caller's request; `maximum_batch` 0 is the DApp's own."""

    number: int
    verb: Literal["load", "unload", "unloaded"]
    name: str = ""
    maximum_batch: int = 0


@serve.deployment(name="ModelControl", ray_actor_options=HEAD_NODE, max_ongoing_requests=1_000)
class ModelControl:
    """The queue; bound under the control application, without a route."""

    def __init__(self) -> None:
        self._requests: asyncio.Queue[ModelRequest] = asyncio.Queue()
        self._answers: dict[int, asyncio.Future[list[str]]] = {}
        self._last = 0
        quiet_refusals()

    async def unloaded(self) -> list[str]:
        """Names of the served DApps that a caller has unloaded."""
        return await self._ask("unloaded")

    async def load(self, name: str, parameters: dict[str, Any]) -> None:
        """Starts a DApp's application, or restarts it if its configuration differs.

        Raises:
            CallError: `load_failed`.
        """
        await self._ask("load", name, _maximum_batch(parameters))

    async def unload(self, name: str, parameters: dict[str, Any]) -> None:
        """Ends a DApp's application.

        Raises:
            CallError: `load_failed`.
        """
        await self._ask("unload", name)

    async def take(self) -> ModelRequest | None:
        """The next request, for the owner; None if none comes within `TAKE_S`."""
        try:
            return await asyncio.wait_for(self._requests.get(), TAKE_S)
        except TimeoutError:
            return None

    async def answer(self, number: int, names: list[str], failure: str) -> None:
        """The owner's answer to a request: names for `unloaded`, and the cause if it failed."""
        future = self._answers.pop(number, None)
        if future is None or future.done():
            return  # the caller has hung up
        if failure:
            future.set_exception(CallError("load_failed", failure))
        else:
            future.set_result(names)

    async def _ask(
        self, verb: Literal["load", "unload", "unloaded"], name: str = "", maximum_batch: int = 0
    ) -> list[str]:
        self._last += 1
        request = ModelRequest(self._last, verb, name, maximum_batch)
        future = self._answers[request.number] = asyncio.get_running_loop().create_future()
        self._requests.put_nowait(request)
        try:
            names: list[str] = await future
            return names
        finally:
            self._answers.pop(request.number, None)


class ModelRequests(threading.Thread):
    """Carries out the requests of `ModelControl`, each on a thread: `Served` puts them in order.

    Args:
        served: what is served.
    """

    def __init__(self, served: Served) -> None:
        super().__init__(name="model-requests", daemon=True)
        self._served = served

    def run(self) -> None:
        """Takes requests until the process ends."""
        queue = ray_head.driver_handle("ModelControl", "control")
        while True:
            try:
                request = queue.take.remote().result(timeout_s=2 * TAKE_S)
            except Exception as error:  # Serve restarts the queue after a crash; it is gone while the mesh stops
                log.warning("no requests to load models can be taken: %s", error)
                time.sleep(TAKE_S)
                continue
            if request is not None:
                threading.Thread(target=self._carry_out, args=(queue, request), daemon=True).start()

    def _carry_out(self, queue: Any, request: ModelRequest) -> None:
        failure = ""
        try:
            if request.verb == "load":
                self._served.load(request.name, request.maximum_batch)
            elif request.verb == "unload":
                self._served.unload(request.name)
        except CallError as error:
            failure = error.message
        except Exception as error:
            log.error("%s of %s failed: %s", request.verb, request.name, error)
            failure = "the mesh's log has the cause"
        queue.answer.remote(request.number, sorted(self._served.unloaded), failure)


def _maximum_batch(parameters: dict[str, Any]) -> int:
    """The maximum batch in the parameters of a load; 0 for the DApp's own.

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
    text = str(config.get("max_batch_size", 0))
    if not text.isascii() or not text.isdigit() or int(text[:6]) > MAX_BATCH:
        raise CallError("load_failed", f"max_batch_size is a whole number up to {MAX_BATCH}")
    return int(text)
