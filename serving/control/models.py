"""`Models`: the DApps of a mesh as the control application reaches them: by handle, wherever their replicas run.

Both doors of the control application ask here, so that an unknown, an unloaded and a busy model are told in the same
words by HTTP and by gRPC. Loading and unloading is the `ModelControl`'s, and only where the operator allows it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray import serve

from serving.errors import CallError

Json = dict[str, Any]
ANSWER_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class ModelRef:
    """One version of a DApp of the catalogue, the name of its deployment, and that of its application.

    The first of a name is the one that answers where no version is asked for.
    """

    name: str
    version: str
    deployment: str
    application: str = ""


class Models:
    """The DApps of the catalogue.

    Args:
        known: all of them, loaded or not.
        loader: handle of the `ModelControl`; None where models are not loaded and unloaded by callers.
    """

    def __init__(self, known: tuple[ModelRef, ...], loader: Any = None) -> None:
        self._known: dict[str, ModelRef] = {}
        for one in known:
            self._known.setdefault(one.name, one)
        self._versions = {(one.name, one.version): one for one in reversed(known)}
        self._loader = loader
        self._unloaded: frozenset[str] | None = None if loader is not None else frozenset()

    async def replica(self, name: str, version: str = "") -> Any:
        """The handle of a loaded DApp, in this version or by default; of an unknown version the default one tells.

        Raises:
            CallError: `unknown_model`.
        """
        if name not in self._known:
            known = ", ".join(self._known)
            message = f"Request for unknown model: none of this name is served here; there are: {known}"
            raise CallError("unknown_model", message)
        if name in await self._absent():
            raise CallError("unknown_model", "Request for unknown model: it is unloaded, and has no version to answer")
        one = self._versions.get((name, version), self._known[name])
        return serve.get_deployment_handle(one.deployment, app_name=one.application or name)

    async def facts(self, name: str, what: str, version: str = "") -> Json:
        """Metadata, configuration or statistics of one model, as its replica tells them.

        Raises:
            CallError: `unknown_model`, `unknown_version`, or `busy`: no replica answers.
        """
        replica = await self.replica(name, version)
        try:
            told = await asyncio.wait_for(_resolved(replica.facts.remote(what, version)), ANSWER_TIMEOUT_S)
        except Exception as error:
            raise CallError("busy", "no replica of this model answers: try again shortly") from error
        if isinstance(told, tuple):
            raise CallError(*told)
        found: Json = told
        return found

    async def ready(self, name: str, version: str = "") -> bool:
        """True if a replica of this model answers."""
        try:
            await self.facts(name, "metadata", version)
        except CallError:
            return False
        return True

    async def statistics(self, name: str = "", version: str = "") -> Json:
        """V2's `model_stats`, of one model or of all that answer."""
        if name:
            return await self.facts(name, "stats", version)
        told = await asyncio.gather(*(self.facts(one, "stats") for one in self._known), return_exceptions=True)
        return {"model_stats": [row for one in told if isinstance(one, dict) for row in one["model_stats"]]}

    async def index(self, ready: bool = False) -> list[Json]:
        """The repository's index; with `ready`, only what can be called."""
        up = await asyncio.gather(*(self.ready(name) for name in self._known))
        absent = await self._absent()
        rows = []
        for one, answers in zip(self._known.values(), up, strict=True):
            state = "READY" if answers else "UNAVAILABLE"
            reason = "" if answers else "unloaded" if one.name in absent else "no replica answers"
            rows.append({"name": one.name, "version": one.version, "state": state, "reason": reason})
        return [row for row in rows if row["state"] == "READY" or not ready]

    async def load(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Loads a model, or loads it anew with another configuration.

        Raises:
            CallError: `forbidden` or `load_failed`.
        """
        await self._control("load", name, dict(parameters))

    async def unload(self, name: str) -> None:
        """Unloads a model: its replicas end, and give back their memory.

        Raises:
            CallError: `forbidden` or `load_failed`.
        """
        await self._control("unload", name, {})

    async def _control(self, verb: str, name: str, parameters: Json) -> None:
        if self._loader is None:
            raise CallError("forbidden", "models are loaded by the operator alone here; see LEBEN_MODEL_CONTROL")
        try:
            await getattr(self._loader, verb).remote(name, parameters)
        except CallError as error:
            raise CallError(error.code, f"failed to {verb} '{name[:64]}', {error.message}") from None
        finally:
            self._unloaded = None

    async def _absent(self) -> frozenset[str]:
        if self._unloaded is None:
            self._unloaded = frozenset(await self._loader.unloaded.remote())
        return self._unloaded


async def _resolved(response: Any) -> Any:
    return await response
