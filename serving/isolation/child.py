"""Answers the replica's messages in the process of an isolated DApp, one at a time.

A stranger's code runs here, confined by `sandbox.py`. Nothing in this file confines it: the replica validates every
answer.
"""

from __future__ import annotations

import asyncio
import socket
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dapps import Case, ClinicalFile, DApp, IntakeRefused
from dapps.api import MAX_SAMPLES, Prepared
from dapps.packages import registry
from serving.device import TorchRunner
from serving.errors import CallError
from serving.isolation.messages import Blobs, BrokenWire, Json, pack, read_report, receive, send, unpack, unpack_items

MAX_CASES = 256
"""The replica names the cases that it has dropped; this bounds those that it never names."""
MAX_BYTES = 1 << 40


def serve(channel: socket.socket, name: str) -> None:
    """Answers messages until the replica closes the channel."""
    channel.setblocking(True)
    child = _Child(name, asyncio.new_event_loop())
    while True:
        try:
            message, blobs = receive(channel, MAX_BYTES)
        except BrokenWire:
            return
        for case in message.get("forget", ()):
            child.cases.pop(case, None)
        try:
            answer, data = getattr(child, message["do"])(message, blobs)
        except (IntakeRefused, CallError) as error:
            answer, data = {"refused": type(error).__name__, "code": error.code, "message": error.message}, []
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}"
            # The text may quote a patient's values, except before the first call, where the author needs it.
            answer, data = {"failed": f"{place}: {error}" if message["do"] in ("describe", "start") else place}, []
        send(channel, answer, data)


class _Child:
    """One method for each `do` of a message."""

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop) -> None:
        self._name, self._loop = name, loop
        self._dapp: DApp
        self._runner: TorchRunner
        self.cases: dict[int, Prepared] = {}
        self._last_case = 0

    def describe(self, message: Json, blobs: Blobs) -> tuple[Json, Blobs]:
        self._dapp = dapp = registry.load(self._name)
        rows, data = pack(dapp.example())
        kind = type(dapp)
        declaration = {
            "class": kind.__name__,
            "version": dapp.version,
            "inputs": [asdict(tensor) for tensor in dapp.inputs],
            "outputs": [asdict(tensor) for tensor in dapp.outputs],
            "price": asdict(dapp.price),
            "shares": asdict(dapp.shares),
            "maximum_batch": dapp.maximum_batch,
            "tolerance": dapp.tolerance,
            "title": dapp.title,
            "calls": list(dapp.calls),
            "manifest": asdict(dapp.manifest),
            "cards": [[path, text.decode(errors="replace")] for path, text in dapp.card_files],
            "release": dapp.release,
            "description": dapp.description,
            "provenance": asdict(dapp.provenance),
            "diagnoses": (kind.intake, kind.prepare) != (DApp.intake, DApp.prepare),
            "example": rows,
            "samples": _sample_names(dapp),
        }
        return declaration, data

    def start(self, message: Json, blobs: Blobs) -> tuple[Json, Blobs]:
        self._runner = TorchRunner(
            self._dapp,
            device=message["device"],
            threads=message["threads"],
            maximum_batch=message["maximum_batch"],
            optimizations=message["optimizations"],
        )
        return {"device": self._loop.run_until_complete(self._runner.start())}, []

    def run(self, message: Json, blobs: list[memoryview]) -> tuple[Json, Blobs]:
        inputs = unpack(message["tensors"], blobs, self._dapp.inputs)
        rows, data = pack(self._loop.run_until_complete(self._runner.run(inputs)))
        return {"tensors": rows}, data

    def prepare(self, message: Json, blobs: list[memoryview]) -> tuple[Json, Blobs]:
        files = [ClinicalFile(bytes(blob), part=part) for part, blob in zip(message["parts"], blobs, strict=False)]
        record = bytes(blobs[-1]) if message["record"] else None
        prepared = self._dapp.prepare(Case(tuple(files), record))
        self._last_case += 1
        self.cases[self._last_case] = prepared
        if len(self.cases) > MAX_CASES:
            del self.cases[next(iter(self.cases))]
        items = [pack(item) for item in prepared.items]
        answer = {"case": self._last_case, "items": [rows for rows, _ in items]}
        return answer, [blob for _, data in items for blob in data]

    def samples(self, message: Json, blobs: Blobs) -> tuple[Json, Blobs]:
        rows, data = [], []
        for name, case in list(self._dapp.samples().items())[:MAX_SAMPLES]:
            rows.append([name, [file.part for file in case.files], case.record is not None])
            data += [*(file.data for file in case.files), *([] if case.record is None else [case.record])]
        return {"samples": rows}, data

    def conclude(self, message: Json, blobs: list[memoryview]) -> tuple[Json, Blobs]:
        report = self._dapp.conclude(self.cases[message["case"]], self._outputs(message, blobs))
        return {"report": asdict(report)}, []

    def picture(self, message: Json, blobs: list[memoryview]) -> tuple[Json, Blobs]:
        report = read_report(message["report"])
        return {}, [self._dapp.picture(self.cases[message["case"]], self._outputs(message, blobs), report)]

    def _outputs(self, message: Json, blobs: list[memoryview]) -> list[Any]:
        return unpack_items(message["outputs"], blobs, self._dapp.outputs)


def _sample_names(dapp: DApp) -> list[str]:
    try:
        return dapp.sample_names()[:MAX_SAMPLES]
    except Exception:  # an author's code: without samples nothing can be tried, and that is all
        return []
