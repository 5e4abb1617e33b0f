"""`Samples`: answers a DApp's own samples, for anybody and for nothing.

A visitor chooses a sample and never sends one, and each is computed once and kept: nobody can have a model work for
free by asking often. What is tried goes the way of every paid call, but for the paywall.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable
from typing import Any

import orjson

from dapps import DApp
from dapps.api import MAX_SAMPLES, Case
from serving.catalogue import takes_cases
from serving.errors import CallError
from serving.protocol import Request, Response, describe
from serving.replica.inference import Inference
from serving.tensors import to_json

VIEWS = ("json", "markdown", "png")
PAYER = "sample"
"""In the batcher's queue, where payers take turns; no payer has this address."""
FAILED_S = 60.0
KEPT_BYTES = 4 << 20


class Samples:
    """The samples of one DApp, and their answers so far.

    Args:
        name: the DApp's name on the mesh.
        dapp: whose samples are tried.
        calls: what does the work.
        now: seconds of a clock that only moves on.
    """

    def __init__(self, name: str, dapp: DApp, inference: Inference, now: Callable[[], float] = time.monotonic) -> None:
        self._name, self._dapp, self._inference, self._now = name, dapp, inference, now
        self._turn = asyncio.Lock()
        self._kept: dict[tuple[str, str], tuple[float, Response]] = {}
        self._cases: dict[str, Case] | None = None

    async def answer(self, sample: str, view: str) -> Response:
        """The answer to one of the samples; a refusal is an answer too.

        Args:
            sample: its name in the catalogue.
            view: one of `VIEWS`; a DApp that takes tensors only answers V2 JSON to each.

        Raises:
            CallError: `not_found`: there is no such sample or view.
        """
        async with self._turn:
            cases = await self._known()
            if sample not in (cases or ("example",)) or view not in VIEWS:
                raise CallError("not_found", "there is no such sample, or no such view of one")
            until_s, reply = self._kept.get((sample, view), (0.0, None))
            if reply is not None and self._now() < until_s:
                return reply
            reply = await self._run(cases.get(sample), view)
            if len(reply.body) > KEPT_BYTES:
                reply = Response(500, b'{"error": "the answer is too long to be shown", "code": "internal"}')
            # What fails is tried again, but not at the pace of whoever asks.
            until_s = float("inf") if reply.status < 500 else self._now() + FAILED_S
            self._kept[sample, view] = until_s, reply
            return reply

    def forget(self) -> None:
        """What was answered before a change of the DApp is no answer any more."""
        self._kept.clear()

    async def _known(self) -> dict[str, Case]:
        if self._cases is None:
            found = await asyncio.to_thread(self._dapp.samples) if takes_cases(self._dapp) else {}
            self._cases = dict(list(found.items())[:MAX_SAMPLES])
        return self._cases

    async def _run(self, case: Case | None, view: str) -> Response:
        try:
            if case is None:
                body = await asyncio.to_thread(lambda: orjson.dumps(tensors(self._dapp)))
                work = await self._inference.infer(self._asked("infer", body), PAYER)
            else:
                body = await asyncio.to_thread(_case, case)
                work = await self._inference.diagnose(self._asked("diagnose", body, f"view={view}"), PAYER)
        except Exception as error:
            status, code, message = describe(error)
            return Response(status, orjson.dumps({"error": message, "code": code}))
        return work.reply

    def _asked(self, verb: str, body: bytes, query: str = "") -> Request:
        path = f"/v2/models/{self._name}/{verb}"
        return Request("POST", path, path, {"content-type": "application/json"}, body, query.encode())


def tensors(dapp: DApp) -> dict[str, Any]:
    """A DApp's example as the JSON body of an infer request."""
    arrays = dapp.example()
    rows = []
    for tensor in dapp.inputs:
        if (array := arrays.get(tensor.name)) is None:
            continue
        shape = list(array.shape)
        rows.append({"name": tensor.name, "datatype": tensor.datatype, "shape": shape, "data": to_json(array, tensor)})
    return {"inputs": rows}


def _case(case: Case) -> bytes:
    files = [{"data": base64.b64encode(file.data).decode(), "part": file.part} for file in case.files]
    record = None if case.record is None else orjson.loads(case.record)
    return orjson.dumps(({"files": files} if files else {}) | ({"record": record} if record is not None else {}))
