"""What a call does once it is let through: from bytes to tensors, through the batcher, and back to bytes.

Both doors come here, inside the hold, so an unpaid caller cannot buy work; what is large runs off the event loop, so
it cannot stall a health check. Counts what it does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from channels.receipts import MAX_PARTS, Part
from dapps import ChildFailed, DApp
from dapps.api import Inputs, Tensor, calls
from dapps.conformance import local_calls
from serving.errors import CallError
from serving.execution import Batcher, ChildCall, ChildCaller, Composition, RemoteExecutor, UnbatchedExecutor, carried
from serving.protocol import (
    CALL_TIMEOUT_S,
    LIGHTER,
    BodyBudget,
    Request,
    Response,
    Result,
    grpc,
    picture,
    read_case,
    read_view,
    render,
    rest,
    run_in_thread,
)
from serving.telemetry import LocalCounters, Statistics, Usage, tracing
from serving.tensors import RawTensor, collect


class Inference:
    """The work of one DApp."""

    def __init__(
        self,
        name: str,
        dapp: DApp,
        batcher: Batcher | UnbatchedExecutor | RemoteExecutor,
        room: BodyBudget,
        statistics: Statistics | None = None,
        reach: ChildCaller | None = None,
    ) -> None:
        self._name, self._dapp, self._batcher, self._room, self._reach = name, dapp, batcher, room, reach
        self._provenance = dapp.provenance
        self._texts = any(tensor.datatype == "BYTES" for tensor in (*dapp.inputs, *dapp.outputs))
        self.statistics = statistics or Statistics(LocalCounters())

    def renew(self) -> None:
        """Reads again which weights and thresholds answer: once after a change, for it reads the package's files."""
        self._provenance = self._dapp.provenance

    async def infer(self, asked: Request, payer: str) -> Result:
        """A V2 request over REST."""
        return await self._counted(self._infer(asked, payer))

    async def infer_grpc(self, asked: Request, payer: str) -> Result:
        """A serialized `ModelInferRequest`; the answer is a serialized `ModelInferResponse`."""
        return await self._counted(self._infer_grpc(asked, payer))

    async def diagnose(self, asked: Request, payer: str) -> Result:
        """A case: files and a record; the answer is a report."""
        return await self._counted(self._diagnose(asked, payer))

    async def errand(self, errand: ChildCall) -> tuple[Inputs, Result]:
        """What another DApp asks of this one: its outputs, and what they took; the work has no reply.

        Raises:
            ChildFailed: it may not be asked this.
            CallError: as for any caller.
        """
        errand.check(self._name)
        dapp, usage, found = self._dapp, Usage(), {}
        inputs = collect(_given(errand.inputs, dapp.inputs), dapp.inputs, dapp.price.maximum_items)
        items = len(next(iter(inputs.values())))
        price = dapp.price.max_price if dapp.price.per_gpu_second else dapp.price.of(items)
        if price > errand.budget:
            raise ChildFailed("child_budget", f"{self._name} costs more than is left of the price of this call")

        async def steps() -> tuple[Result, int, int]:
            timeout_s = min(CALL_TIMEOUT_S, errand.timeout_s)
            async with self._composed(errand.payer, price, errand) as parts:
                found.update(await self._batcher.submit(inputs, errand.payer, timeout_s, usage=usage))
            return Result(Response(200, b""), items, device_us=_us(usage), parts=tuple(parts)), 0, 0

        work = await self._counted(steps(), errand.budget)
        return found, work

    @asynccontextmanager
    async def _composed(self, payer: str, price: int, errand: ChildCall | None = None) -> AsyncIterator[list[Part]]:
        """Lets the DApp ask others in the block, within the price of the call; their parts are known after it."""
        parts: list[Part] = []
        if not self._dapp.calls:
            yield parts
            return
        if self._reach is None:
            with local_calls.installed():
                yield parts
            return
        chain: tuple[str, ...] = () if errand is None else errand.chain
        room = MAX_PARTS if errand is None else errand.room - 1
        left_s = CALL_TIMEOUT_S if errand is None else min(CALL_TIMEOUT_S, errand.timeout_s)
        until_s = time.monotonic() + left_s
        composition = Composition(self._reach, (*chain, self._name), payer, price, room, until_s)
        try:
            with calls.asking(composition.ask):
                yield parts
        finally:
            parts += composition.close()

    async def _counted(self, steps: Awaitable[tuple[Result, int, int]], most: int | None = None) -> Result:
        began_ns = time.monotonic_ns()
        try:
            with tracing.span("work"), carried(self._dapp.price.max_price if most is None else most) as purse:
                async with asyncio.timeout(CALL_TIMEOUT_S):
                    work, input_ns, output_ns = await steps
                if purse:
                    price = self._dapp.price
                    work = purse.embedded(work, price.of(price.units(work.items, work.device_us)))
        except TimeoutError as error:
            self.statistics.failed(time.monotonic_ns() - began_ns)
            raise CallError("deadline", "the call took too long; it costs nothing") from error
        except Exception:
            self.statistics.failed(time.monotonic_ns() - began_ns)
            raise
        self.statistics.succeeded(time.monotonic_ns() - began_ns, input_ns, output_ns)
        return work

    async def _infer(self, asked: Request, payer: str) -> tuple[Result, int, int]:
        dapp, usage, began_ns = self._dapp, Usage(), time.monotonic_ns()
        async with self._room.inflated(asked) as body:
            wanted = (asked.headers.get(rest.HEADER_LENGTH), dapp.inputs, dapp.outputs, dapp.price.maximum_items)
            request = await run_in_thread(self._to_read(asked, body), rest.decode, body, *wanted)
            input_ns = time.monotonic_ns() - began_ns
            async with self._composed(payer, dapp.price.of(request.items)) as parts:
                outputs = await self._submit(request, payer, usage)
        ran_ns = time.monotonic_ns()
        answer = (self._name, dapp.version, request, outputs, dapp.outputs)
        binary = not self._texts and all(want.binary for want in request.wanted)
        encoded, headers = await run_in_thread(_size(outputs) // (LIGHTER if binary else 1), rest.encode, *answer)
        work = Result(Response(200, encoded, headers), request.items, device_us=_us(usage), parts=tuple(parts))
        return work, input_ns, time.monotonic_ns() - ran_ns

    def _to_read(self, asked: Request, body: bytes) -> int:
        """How much there is to go through in a body, in bytes of JSON."""
        length = asked.headers.get(rest.HEADER_LENGTH, "")
        if self._texts or not (length.isascii() and length.isdigit()):
            return len(body)
        return int(length[:12]) + len(body) // LIGHTER

    async def _infer_grpc(self, asked: Request, payer: str) -> tuple[Result, int, int]:
        dapp, usage, began_ns = self._dapp, Usage(), time.monotonic_ns()
        wanted = (dapp.inputs, dapp.outputs, dapp.price.maximum_items)
        request = await run_in_thread(len(asked.body), grpc.decode, asked.body, *wanted)
        input_ns = time.monotonic_ns() - began_ns
        async with self._composed(payer, dapp.price.of(request.items)) as parts:
            outputs = await self._submit(request, payer, usage)
        ran_ns = time.monotonic_ns()
        answer = (self._name, dapp.version, request, outputs, dapp.outputs)
        encoded = await run_in_thread(_size(outputs), grpc.encode, *answer)
        work = Result(Response(200, encoded), request.items, device_us=_us(usage), parts=tuple(parts))
        return work, input_ns, time.monotonic_ns() - ran_ns

    async def _diagnose(self, asked: Request, payer: str) -> tuple[Result, int, int]:
        dapp, usage, began_ns = self._dapp, Usage(), time.monotonic_ns()
        view = read_view(asked)
        async with self._room.inflated(asked) as body:
            case = await asyncio.to_thread(read_case, asked.with_body(body))
        prepared = await asyncio.to_thread(dapp.prepare, case)
        # A case that a guideline alone answers has no items for the model; it counts as one, at a price of its own.
        alone, items = not prepared.items, max(1, len(prepared.items))
        if items > dapp.price.maximum_items:
            raise CallError("bad_request", f"the case holds more than {dapp.price.maximum_items} items")
        input_ns = time.monotonic_ns() - began_ns
        async with self._composed(payer, dapp.price.guideline_only if alone else dapp.price.of(items)) as parts:
            outputs = await self._each(prepared.items, payer, usage)
            ran_ns = time.monotonic_ns()
            report = replace(await asyncio.to_thread(dapp.conclude, prepared, outputs), provenance=self._provenance)
        if view != "png":
            reply = await asyncio.to_thread(render, view, self._name, dapp, report, items)
            work = Result(reply, items, alone=alone, device_us=_us(usage), parts=tuple(parts))
        else:
            png = await asyncio.to_thread(dapp.picture, prepared, outputs, report)
            kept = render("json", self._name, dapp, report, items)
            work = Result(picture(png), items, kept=kept, alone=alone, device_us=_us(usage), parts=tuple(parts))
        return work, input_ns, time.monotonic_ns() - ran_ns

    async def _each(self, items: Sequence[Inputs], payer: str, usage: Usage) -> list[Inputs]:
        """Each item is a submission of its own, so that a long case cannot push others' calls out of a batch."""
        calls = [self._batcher.submit(item, payer, CALL_TIMEOUT_S, usage=usage) for item in items]
        tasks = [asyncio.create_task(call) for call in calls]
        try:
            return list(await asyncio.gather(*tasks))
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    async def _submit(self, request: rest.InferRequest, payer: str, usage: Usage) -> Inputs:
        timeout_s = CALL_TIMEOUT_S if request.timeout_s is None else request.timeout_s
        return await self._batcher.submit(request.tensors, payer, timeout_s, request.priority, usage)


def _given(inputs: Inputs, declared: Sequence[Tensor]) -> list[RawTensor]:
    kinds = {tensor.name: tensor for tensor in declared}

    def row(name: str, array: np.ndarray[Any, Any]) -> RawTensor:
        fits = name in kinds and array.dtype == kinds[name].dtype
        return RawTensor(name, kinds[name].datatype if fits else "", list(array.shape), lambda shape, tensor: array)

    return [row(name, array) for name, array in inputs.items()]


def _size(outputs: Inputs) -> int:
    return sum(array.nbytes for array in outputs.values())


def _us(usage: Usage) -> int:
    return -(-usage.device_ns // 1000)
