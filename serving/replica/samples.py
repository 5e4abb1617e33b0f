"""Answers a DApp's own samples, for anyone and free of charge.

A visitor chooses a sample and never sends one, and each answer is computed once and kept: nobody can have a model work
for free by asking often. A sample is answered as every paid call is, but for the paywall.
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
from serving.protocol import JSON, Refusal, Request, Response, describe, refusal
from serving.replica.inference import Inference
from serving.replica.offer import LiveOffer, Offer
from serving.telemetry import CallRecord, Statistics
from serving.tensors import to_json

VIEWS = ("json", "markdown", "png")
PAYER = "sample"
"""The payer's name in the queue, where payers take turns; no payer has this address."""
FAILED_S = 60.0
MAX_KEPT_BYTES = 4 << 20


class Samples:
    """The samples of one DApp and their answers so far.

    Args:
        live: the offer in force; answers of an earlier one are forgotten.
        inference: computes them.
        statistics: counts them.
        now_s: a clock that only moves forward, in seconds.
    """

    def __init__(
        self,
        live: LiveOffer,
        inference: Inference,
        statistics: Statistics,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._live, self._inference, self._statistics, self._now_s = live, inference, statistics, now_s
        self._dapp = live.offer.dapp
        self._turn = asyncio.Lock()
        self._answers: dict[tuple[str, str], tuple[float, Response]] = {}
        self._answered: Offer = live.offer
        self._cases: dict[str, Case] | None = None

    async def answer(self, sample: str, view: str) -> Response:
        """The answer to one of the samples; a refusal is an answer too.

        Args:
            sample: its name in the catalogue.
            view: one of `VIEWS`; a DApp that takes tensors only answers each with V2 JSON.

        Raises:
            CallError: `not_found`: there is no such sample or view.
        """
        async with self._turn:
            cases = await self._samples()
            if sample not in (cases or ("example",)) or view not in VIEWS:
                raise CallError("not_found", "there is no such sample, or no such view of one")
            async with self._live.lock:
                return await self._answer(self._live.offer, cases.get(sample), sample, view)

    async def _answer(self, offer: Offer, case: Case | None, sample: str, view: str) -> Response:
        if offer is not self._answered:
            self._answers.clear()
            self._answered = offer
        until_s, response = self._answers.get((sample, view), (0.0, None))
        if response is not None and self._now_s() < until_s:
            return response
        response = await self._compute(offer, case, view)
        if len(response.body) > MAX_KEPT_BYTES:
            response = refusal(Refusal(500, "internal", "the answer is too long to be shown"))
        # A failure is tried again, but not at the pace of the visitors.
        until_s = float("inf") if response.status < 500 else self._now_s() + FAILED_S
        self._answers[sample, view] = until_s, response
        return response

    async def _samples(self) -> dict[str, Case]:
        if self._cases is None:
            cases = await asyncio.to_thread(self._dapp.samples) if takes_cases(self._dapp) else {}
            self._cases = dict(list(cases.items())[:MAX_SAMPLES])
        return self._cases

    async def _compute(self, offer: Offer, case: Case | None, view: str) -> Response:
        record = CallRecord("sample")
        try:
            if case is None:
                body = await asyncio.to_thread(lambda: orjson.dumps(example_json(self._dapp)))
                result = await self._inference.infer(_request(offer, "infer", body), offer, PAYER, record)
            else:
                body = await asyncio.to_thread(_case_json, case)
                request = _request(offer, "diagnose", body, f"view={view}")
                result = await self._inference.diagnose(request, offer, PAYER, record)
        except Exception as error:
            return refusal(describe(error))
        finally:
            self._statistics.finished(record)
        return result.response


def _request(offer: Offer, verb: str, body: bytes, query: str = "") -> Request:
    path = f"/v2/models/{offer.name}/{verb}"
    return Request("POST", path, path, {"content-type": JSON}, query=query.encode(), body=body)


def example_json(dapp: DApp) -> dict[str, Any]:
    """A DApp's example as the JSON body of an infer request."""
    arrays = dapp.example()
    rows = []
    for tensor in dapp.inputs:
        if (array := arrays.get(tensor.name)) is None:
            continue
        shape = list(array.shape)
        rows.append({"name": tensor.name, "datatype": tensor.datatype, "shape": shape, "data": to_json(array, tensor)})
    return {"inputs": rows}


def _case_json(case: Case) -> bytes:
    body: dict[str, Any] = {}
    if case.files:
        body["files"] = [{"data": base64.b64encode(file.data).decode(), "part": file.part} for file in case.files]
    if case.record is not None:
        body["record"] = orjson.loads(case.record)
    return orjson.dumps(body)
