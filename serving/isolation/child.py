"""The child's end of an isolated DApp: reads a message, lets the DApp answer, sends the answer. One at a time.

Here runs a stranger's code, behind the walls of `sandbox.py`. Nothing in this file is a wall: the replica believes none
of its answers.
"""

from __future__ import annotations

import asyncio
import socket
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dapps import Case, ClinicalFile, DApp, IntakeRefused
from dapps.api import MAX_SAMPLES, Prepared, Report
from dapps.packages import registry
from serving.device import TorchRunner
from serving.errors import CallError
from serving.isolation.messages import Blobs, BrokenWire, Json, pack, read_report, receive, send, unpack

KEPT_CASES = 256
"""A replica tells which it is done with; this bounds what it forgets to tell."""
MAX_BYTES = 1 << 40


def serve(channel: socket.socket, name: str) -> None:
    """Answers until the replica ends."""
    channel.setblocking(True)
    loop = asyncio.new_event_loop()
    child = _Child(name, loop)
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
            place = traceback.extract_tb(error.__traceback__)[-1]
            told = f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}"
            # The text may quote a patient's values. What fails before any call has none, and its author needs it.
            answer, data = {"failed": f"{told}: {error}" if message["do"] in ("describe", "start") else told}, []
        send(channel, answer, data)


class _Child:
    def __init__(self, name: str, loop: asyncio.AbstractEventLoop) -> None:
        self._name, self._loop = name, loop
        self._dapp: DApp
        self._runner: TorchRunner
        self.cases: dict[int, Prepared] = {}
        self._last = 0

    def describe(self, message: Json, blobs: Blobs) -> tuple[Json, Blobs]:
        self._dapp = dapp = registry.load(self._name)
        rows, data = pack(dapp.example())
        kind = type(dapp)
        told = {
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
        }
        return told, data

    def start(self, message: Json, blobs: Blobs) -> tuple[Json, Blobs]:
        wanted = (message["device"], message["threads"], message["maximum_batch"], message["optimizations"])
        self._runner = TorchRunner(self._dapp, *wanted)
        return {"device": self._loop.run_until_complete(self._runner.start())}, []

    def run(self, message: Json, blobs: list[memoryview]) -> tuple[Json, Blobs]:
        inputs = unpack(message["tensors"], blobs, self._dapp.inputs)
        rows, data = pack(self._loop.run_until_complete(self._runner.run(inputs)))
        return {"tensors": rows}, data

    def prepare(self, message: Json, blobs: list[memoryview]) -> tuple[Json, Blobs]:
        files = [ClinicalFile(bytes(blob), part=part) for part, blob in zip(message["parts"], blobs, strict=False)]
        record = bytes(blobs[-1]) if message["record"] else None
        prepared = self._dapp.prepare(Case(tuple(files), record))
        self._last += 1
        self.cases[self._last] = prepared
        if len(self.cases) > KEPT_CASES:
            del self.cases[next(iter(self.cases))]
        packed = [pack(item) for item in prepared.items]
        return {"case": self._last, "items": [rows for rows, _ in packed]}, [
            blob for _, data in packed for blob in data
        ]

    def samples(self, message: Json, blobs: Blobs) -> tuple[Json, Blobs]:
        rows, data = [], []
        for name, case in list(self._dapp.samples().items())[:MAX_SAMPLES]:
            rows.append([name, [file.part for file in case.files], case.record is not None])
            data += [*(file.data for file in case.files), *([] if case.record is None else [case.record])]
        return {"samples": rows}, data

    def conclude(self, message: Json, blobs: list[memoryview]) -> tuple[Json, Blobs]:
        report = self._dapp.conclude(self._prepared(message), self._outputs(message, blobs))
        return {"report": asdict(report)}, []

    def picture(self, message: Json, blobs: list[memoryview]) -> tuple[Json, Blobs]:
        report: Report = read_report(message["report"])
        return {}, [self._dapp.picture(self._prepared(message), self._outputs(message, blobs), report)]

    def _prepared(self, message: Json) -> Prepared:
        return self.cases[message["case"]]

    def _outputs(self, message: Json, blobs: list[memoryview]) -> list[Any]:
        return split(message["outputs"], blobs, self._dapp.outputs)


def split(items: Any, blobs: list[memoryview], declared: Any) -> list[Any]:
    """Several items' tensors that came one after another."""
    found, at = [], 0
    for rows in items:
        found.append(unpack(rows, blobs[at : at + len(rows)], declared))
        at += len(rows)
    return found
