"""Decodes an authorised request, runs it on the executor and encodes the result.

Runs under the hold, so an unpaid caller cannot buy work. Large pieces of work leave the event loop, so that they cannot
delay a health check. The call's record gets its times.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np

from channels.receipts import MAX_PARTS
from dapps import ChildFailed, DApp
from dapps.api import Inputs, Tensor
from serving.errors import CallError
from serving.execution import ChildCall, ChildCaller, Completion, Composition, Queue, Submission, spending
from serving.protocol import (
    BINARY_DISCOUNT,
    CALL_TIMEOUT_S,
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
from serving.replica.offer import Offer
from serving.telemetry import CallRecord, tracing
from serving.tensors import RawTensor, collect

LARGE_JSON_BYTES = 1 << 20
MAX_DECODING = 2
"""Bodies with more JSON than that which are decoded at once: numbers take up to twenty times their length meanwhile."""


class Inference:
    """Computes the calls of one DApp.

    Args:
        dapp: the DApp.
        queue: where tensors are computed.
        bodies: the memory that inflated bodies take.
        children: carries the DApp's own calls to others; needed if it declares `calls`.
        remote: True if the queue pays another mesh: what it spends is bounded and enters the receipt.

    Raises:
        ValueError: the DApp calls others, and nothing carries its calls.
    """

    def __init__(
        self,
        dapp: DApp,
        queue: Queue,
        bodies: BodyBudget,
        *,
        children: ChildCaller | None = None,
        remote: bool = False,
    ) -> None:
        if dapp.calls and children is None:
            raise ValueError("a DApp that calls others needs something that carries its calls")
        self._dapp, self._queue, self._bodies, self._remote = dapp, queue, bodies, remote
        self._children = children if dapp.calls else None
        self._decoding = asyncio.Semaphore(MAX_DECODING)
        self._texts = any(tensor.datatype == "BYTES" for tensor in (*dapp.inputs, *dapp.outputs))

    async def infer(self, request: Request, offer: Offer, payer: str, record: CallRecord) -> Result:
        """Answers a V2 request over REST."""
        return await self._timed(self._infer(request, offer, payer, record), offer, offer.price.max_price, record)

    async def infer_grpc(self, request: Request, offer: Offer, payer: str, record: CallRecord) -> Result:
        """Answers a serialized `ModelInferRequest` with a serialized `ModelInferResponse`."""
        return await self._timed(self._infer_grpc(request, offer, payer, record), offer, offer.price.max_price, record)

    async def diagnose(self, request: Request, offer: Offer, payer: str, record: CallRecord) -> Result:
        """Answers a case, files and a record, with a report."""
        return await self._timed(self._diagnose(request, offer, payer, record), offer, offer.price.max_price, record)

    async def child(self, call: ChildCall, offer: Offer, record: CallRecord) -> tuple[Inputs, Result]:
        """Answers another DApp's call: its outputs, and a result without a response.

        Raises:
            ChildFailed: the call closes a circle, or costs more than it may.
            CallError: as for any caller.
        """
        call.check(offer.name)
        dapp, price = self._dapp, offer.price
        inputs = collect(_raw_tensors(call.inputs, dapp.inputs), dapp.inputs, price.maximum_items)
        items = len(next(iter(inputs.values())))
        cost = price.max_price if price.per_gpu_second else price.of(items)
        if cost > call.budget:
            raise ChildFailed("child_budget", f"{offer.name} costs more than is left of the price of this call")
        outputs: Inputs = {}

        async def steps() -> Result:
            timeout_s = min(CALL_TIMEOUT_S, call.timeout_s)
            composition = self._composition(offer, call.payer, cost, call)
            with composition or nullcontext():
                completion = await self._queue.submit(Submission(inputs, call.payer, timeout_s))
            outputs.update(completion.outputs)
            parts = composition.parts if composition else ()
            return Result(Response(200, b""), items, device_us=_device_us(completion), parts=parts)

        return outputs, await self._timed(steps(), offer, call.budget, record)

    def _composition(self, offer: Offer, payer: str, price: int, call: ChildCall | None = None) -> Composition | None:
        """Within its block the DApp may call others, at most at the price of the call; None if it declares no calls."""
        if self._children is None:
            return None
        left_s = CALL_TIMEOUT_S if call is None else min(CALL_TIMEOUT_S, call.timeout_s)
        return Composition(
            self._children,
            chain=(*(() if call is None else call.chain), offer.name),
            payer=payer,
            budget=price,
            max_parts=MAX_PARTS if call is None else call.parts_left - 1,
            until_s=time.monotonic() + left_s,
        )

    async def _timed(self, steps: Awaitable[Result], offer: Offer, budget: int, record: CallRecord) -> Result:
        began_ns = time.monotonic_ns()
        try:
            with tracing.span("work"):
                async with asyncio.timeout(CALL_TIMEOUT_S):
                    result = await (self._paying(steps, offer, budget) if self._remote else steps)
        except TimeoutError as error:
            record.computed = False
            raise CallError("deadline", "the call took too long; it costs nothing") from error
        except Exception:
            record.computed = False
            raise
        finally:
            record.work_ns = time.monotonic_ns() - began_ns
        record.computed = True
        return result

    async def _paying(self, steps: Awaitable[Result], offer: Offer, budget: int) -> Result:
        """Bounds what the steps spend at another mesh, and adds its receipts to the result."""
        with spending(budget) as spent:
            result = await steps
            if not spent:
                return result
            return spent.with_receipts(result, offer.price.of(offer.price.units(result.items, result.device_us)))

    async def _infer(self, request: Request, offer: Offer, payer: str, record: CallRecord) -> Result:
        dapp, price, began_ns = self._dapp, offer.price, time.monotonic_ns()
        async with self._bodies.inflated(request) as body:
            header_length = request.headers.get(rest.HEADER_LENGTH)
            size = self._decoding_size(header_length, body)
            async with self._decoding if size > LARGE_JSON_BYTES else nullcontext():
                decoded = await run_in_thread(
                    size, rest.decode, body, header_length, dapp.inputs, dapp.outputs, price.maximum_items
                )
            record.input_ns = time.monotonic_ns() - began_ns
            composition = self._composition(offer, payer, price.of(decoded.items))
            with composition or nullcontext():
                completion = await self._queue.submit(_submission(decoded, payer))
        ran_ns, outputs = time.monotonic_ns(), completion.outputs
        binary = not self._texts and all(output.binary for output in decoded.outputs)
        size = _size(outputs) // (BINARY_DISCOUNT if binary else 1)
        encoded, headers = await run_in_thread(
            size, rest.encode, offer.name, dapp.version, decoded, outputs, dapp.outputs
        )
        record.output_ns = time.monotonic_ns() - ran_ns
        parts = composition.parts if composition else ()
        return Result(Response(200, encoded, headers), decoded.items, device_us=_device_us(completion), parts=parts)

    def _decoding_size(self, header_length: str | None, body: bytes) -> int:
        """How much there is to decode in a body, in bytes of JSON."""
        length = header_length or ""
        if self._texts or not (length.isascii() and length.isdigit()):
            return len(body)
        return int(length[:12]) + len(body) // BINARY_DISCOUNT

    async def _infer_grpc(self, request: Request, offer: Offer, payer: str, record: CallRecord) -> Result:
        dapp, price, began_ns = self._dapp, offer.price, time.monotonic_ns()
        decoded = await run_in_thread(
            len(request.body), grpc.decode, request.body, dapp.inputs, dapp.outputs, price.maximum_items
        )
        record.input_ns = time.monotonic_ns() - began_ns
        composition = self._composition(offer, payer, price.of(decoded.items))
        with composition or nullcontext():
            completion = await self._queue.submit(_submission(decoded, payer))
        ran_ns, outputs = time.monotonic_ns(), completion.outputs
        encoded = await run_in_thread(
            _size(outputs), grpc.encode, offer.name, dapp.version, decoded, outputs, dapp.outputs
        )
        record.output_ns = time.monotonic_ns() - ran_ns
        parts = composition.parts if composition else ()
        return Result(Response(200, encoded), decoded.items, device_us=_device_us(completion), parts=parts)

    async def _diagnose(self, request: Request, offer: Offer, payer: str, record: CallRecord) -> Result:
        dapp, price, began_ns = self._dapp, offer.price, time.monotonic_ns()
        view = read_view(request.query)
        async with self._bodies.inflated(request) as body:
            case = await asyncio.to_thread(read_case, request.headers.get("content-type", ""), body)
        prepared = await asyncio.to_thread(dapp.prepare, case)
        # A case that a guideline alone answers has no items for the model; it counts as one, at a price of its own.
        guideline_only, items = not prepared.items, max(1, len(prepared.items))
        if items > price.maximum_items:
            raise CallError("bad_request", f"the case holds more than {price.maximum_items} items")
        record.input_ns = time.monotonic_ns() - began_ns
        composition = self._composition(offer, payer, price.guideline_only if guideline_only else price.of(items))
        with composition or nullcontext():
            completions = await self._submit_all(prepared.items, payer)
            ran_ns, outputs = time.monotonic_ns(), [completion.outputs for completion in completions]
            report = replace(await asyncio.to_thread(dapp.conclude, prepared, outputs), provenance=offer.provenance)
        stored = None
        if view == "png":
            response = picture(await asyncio.to_thread(dapp.picture, prepared, outputs, report))
            stored = render("json", offer.name, dapp, report, items)
        else:
            response = await asyncio.to_thread(render, view, offer.name, dapp, report, items)
        record.output_ns = time.monotonic_ns() - ran_ns
        return Result(
            response,
            items,
            stored=stored,
            guideline_only=guideline_only,
            device_us=_device_us(*completions),
            parts=composition.parts if composition else (),
        )

    async def _submit_all(self, items: Sequence[Inputs], payer: str) -> list[Completion]:
        """Submits each item by itself, so that a long case cannot push others' calls out of a batch."""
        submissions = [self._queue.submit(Submission(item, payer, CALL_TIMEOUT_S)) for item in items]
        tasks = [asyncio.ensure_future(submission) for submission in submissions]
        try:
            return list(await asyncio.gather(*tasks))
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise


def _submission(decoded: rest.InferRequest, payer: str) -> Submission:
    timeout_s = CALL_TIMEOUT_S if decoded.timeout_s is None else decoded.timeout_s
    return Submission(decoded.tensors, payer, timeout_s, decoded.priority)


def _raw_tensors(inputs: Inputs, declared: Sequence[Tensor]) -> list[RawTensor]:
    """Arrays of another DApp as inputs that are not checked yet; another dtype than declared has no datatype here."""
    kinds = {tensor.name: tensor for tensor in declared}

    def raw(name: str, array: np.ndarray[Any, Any]) -> RawTensor:
        fits = name in kinds and array.dtype == kinds[name].dtype
        return RawTensor(name, kinds[name].datatype if fits else "", list(array.shape), lambda shape, tensor: array)

    return [raw(name, array) for name, array in inputs.items()]


def _size(outputs: Inputs) -> int:
    return sum(array.nbytes for array in outputs.values())


def _device_us(*completions: Completion) -> int:
    return -(-sum(completion.device_ns for completion in completions) // 1000)
