"""Reaches the DApps of a mesh by handle, wherever their replicas run.

HTTP and gRPC both ask here, so an unknown, an unloaded and a busy model are refused in the same words on both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ray import serve

from serving.cluster.liveness import NotAlive, while_alive
from serving.control.schemas.v2 import IndexRow
from serving.errors import CallError

Json = dict[str, Any]
REPLY_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class ModelRef:
    """One version of a DApp in the catalogue, its deployment's name and its application's.

    Of several versions of one name, the first answers where no version is named.
    """

    name: str
    version: str
    deployment: str
    application: str = ""


def serve_handle(model: ModelRef) -> Any:
    """Ray Serve's handle of a model's deployment."""
    return serve.get_deployment_handle(model.deployment, app_name=model.application or model.name)


class Models:
    """The DApps of the catalogue.

    Args:
        refs: all of them, loaded or not.
        loader: handle of the deployment that loads and unloads; None where callers may not.
        handle: returns the handle of a model's replicas.
    """

    def __init__(
        self, refs: tuple[ModelRef, ...], loader: Any = None, handle: Callable[[ModelRef], Any] = serve_handle
    ) -> None:
        self._default: dict[str, ModelRef] = {}
        for ref in refs:
            self._default.setdefault(ref.name, ref)
        self._versions = {(ref.name, ref.version): ref for ref in reversed(refs)}
        self._loader, self._handle = loader, handle
        self._unloaded: frozenset[str] | None = None if loader is not None else frozenset()

    async def replica(self, name: str, version: str = "") -> Any:
        """Returns the handle of a loaded DApp; of an unknown version, the default one's, which refuses it.

        Raises:
            CallError: `unknown_model`.
        """
        if name not in self._default:
            names = ", ".join(self._default)
            message = f"Request for unknown model: none of this name is served here; there are: {names}"
            raise CallError("unknown_model", message)
        if name in await self._absent():
            raise CallError("unknown_model", "Request for unknown model: it is unloaded, and has no version to answer")
        return self._handle(self._versions.get((name, version), self._default[name]))

    async def facts(self, name: str, what: str, version: str = "") -> Json:
        """Returns metadata, configuration, statistics or offer of one model, from one of its replicas.

        Raises:
            CallError: `unknown_model`, `unknown_version`, or `busy`: no replica answers.
        """
        replica = await self.replica(name, version)
        try:
            async with asyncio.timeout(REPLY_TIMEOUT_S):
                facts: Json = await replica.facts.remote(what, version)
        except CallError as error:
            raise CallError(error.code, error.message) from None
        except Exception as error:
            raise CallError("busy", "no replica of this model answers: try again shortly") from error
        return facts

    async def ready(self, name: str, version: str = "") -> bool:
        """True if a replica of this model answers."""
        try:
            await self.facts(name, "metadata", version)
        except CallError:
            return False
        return True

    async def statistics(self, name: str = "", version: str = "") -> Json:
        """Returns V2's `model_stats`, of one model or of all that answer."""
        if name:
            return await self.facts(name, "stats", version)
        replies = await asyncio.gather(*(self.facts(ref, "stats") for ref in self._default), return_exceptions=True)
        return {"model_stats": [row for reply in replies if isinstance(reply, dict) for row in reply["model_stats"]]}

    async def state(self, name: str) -> IndexRow:
        """Returns one model's row of the index; asks no other model's replicas."""
        ref, ready = self._default[name], await self.ready(name)
        reason = "" if ready else "unloaded" if name in await self._absent() else "no replica answers"
        return IndexRow(name=name, version=ref.version, state="READY" if ready else "UNAVAILABLE", reason=reason)

    async def index(self, ready: bool = False) -> list[IndexRow]:
        """Returns the repository's index; with `ready`, only what can be called."""
        rows = await asyncio.gather(*map(self.state, self._default))
        return [row for row in rows if row.state == "READY" or not ready]

    async def load(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Loads a model, or loads it again with another configuration.

        Raises:
            CallError: `forbidden` or `load_failed`.
        """
        await self._control("load", name, dict(parameters))

    async def unload(self, name: str) -> None:
        """Unloads a model: its replicas end and free their memory.

        Raises:
            CallError: `forbidden` or `load_failed`.
        """
        await self._control("unload", name, {})

    async def _control(self, verb: str, name: str, parameters: Json) -> None:
        if self._loader is None:
            raise CallError("forbidden", "models are loaded by the operator alone here; see LEBEN_MODEL_CONTROL")
        try:
            await while_alive(getattr(self._loader, verb).remote(name, parameters), self._loader.unloaded.remote)
        except NotAlive as error:
            raise CallError("load_failed", f"failed to {verb} '{name[:64]}', the mesh does not answer") from error
        except CallError as error:
            raise CallError(error.code, f"failed to {verb} '{name[:64]}', {error.message}") from None
        finally:
            self._unloaded = None

    async def _absent(self) -> frozenset[str]:
        if self._unloaded is None:
            async with asyncio.timeout(REPLY_TIMEOUT_S):
                self._unloaded = frozenset(await self._loader.unloaded.remote())
        return self._unloaded
