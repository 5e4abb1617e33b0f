"""`RemoteExecutor`: a DApp whose weights live in a Triton, another V2 server or another mesh, which it pays.

Stands where batcher and runner stand for other DApps. Each call goes by itself: the server makes batches of its own, a
deadline or a hang-up is one caller's, and so is what a mesh charges. Nothing that the server answers is believed before
it is checked against what the DApp declares.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import psutil

from channels.errors import ChannelError
from channels.payer import TritonPayment, Wallet
from channels.protocol import Signer
from channels.receipts import SignedReceipt
from dapps import DApp
from dapps.api import Inputs, Tensor
from serving.device import checked
from serving.errors import CallError, StartError
from serving.execution import remote_spending
from serving.execution.admission import PLACES, ConcurrencyLimit
from serving.telemetry import Execution, Usage

log = logging.getLogger("leben.triton")
PORTS = {"http": 80, "https": 443, "grpc": 8001, "grpcs": 443}
START_S = 30.0
BUSY = ("429", "503", "StatusCode.RESOURCE_EXHAUSTED", "StatusCode.UNAVAILABLE")
LATE = ("504", "StatusCode.DEADLINE_EXCEEDED")


@dataclass(frozen=True, slots=True)
class Remote:
    """A model on a V2 server.

    Args:
        scheme: ``http``, ``https``, ``grpc`` or ``grpcs``.
        address: host and port.
        model, version: as in the path; without a version the server chooses.
    """

    scheme: str
    address: str
    model: str
    version: str = ""

    @classmethod
    def read(cls, url: str) -> Remote:
        """Reads ``http://host:port/v2/models/NAME[/versions/V]``, or ``grpc://`` with the same path.

        Raises:
            StartError: it is none.
        """
        with suppress(ValueError):
            parts = urlsplit(url)
            words = parts.path.strip("/").split("/")
            versioned = len(words) == 5 and words[3] == "versions"
            plain = parts.hostname and not (parts.username or parts.query or parts.fragment)
            named = words[:2] == ["v2", "models"] and (len(words) == 3 or versioned) and all(words)
            if parts.scheme in PORTS and plain and named:
                address = f"{parts.hostname}:{parts.port or PORTS[parts.scheme]}"
                return cls(parts.scheme, address, unquote(words[2]), words[4] if versioned else "")
        raise StartError("LEBEN_REMOTES holds URLs like http://host:8000/v2/models/NAME, or grpc:// with the same path")


class RemoteExecutor:
    """Carries one DApp's calls to a remote model; `submit`, `admit` and `waiting` are those of a batcher.

    Args:
        dapp: what it declares is what the remote model must take and give; its `load` and `forward` are never called.
        remote: where the model is.
        key: of the wallet that pays, 64 hex digits; empty: what asks for money is not paid.
        observe: told of every call that was answered.
    """

    depth = 1

    def __init__(
        self,
        dapp: DApp,
        remote: Remote,
        key: str = "",
        observe: Callable[[Execution], None] = lambda execution: None,
    ) -> None:
        self._dapp, self._remote, self._observe = dapp, remote, observe
        self._http = remote.scheme.startswith("http")
        self._kind: Any = import_module("tritonclient.http.aio" if self._http else "tritonclient.grpc.aio")
        self._payment: TritonPayment | None = None
        if key:
            wallet = Wallet(Signer(bytes.fromhex(key)), remote_spending.QuoteBudget())
            self._payment = TritonPayment(wallet, on_receipt=_count_receipt)
        self._places = ConcurrencyLimit()
        self._client: Any = None

    def bound(self, maximum_batch: int) -> None:
        """There are no batches to bound."""

    @property
    def waiting(self) -> int:
        """Calls under way."""
        return self._places.taken

    async def start(self) -> str:
        """Connects, and holds the remote model's metadata against what the DApp declares; returns "remote".

        Raises:
            StartError: it cannot be reached, or takes or gives something else.
        """
        options: dict[str, Any] = {"ssl": self._remote.scheme.endswith("s")}
        if self._http:
            options |= {"conn_limit": PLACES, "conn_timeout": 120.0}
        self._client = self._kind.InferenceServerClient(self._remote.address, **options)
        try:
            async with asyncio.timeout(START_S):
                told = await self._client.get_model_metadata(self._remote.model, self._remote.version)
        except Exception as error:
            await self._client.close()
            where = f"{self._remote.model} at {self._remote.address}"
            raise StartError(f"the remote model {where} does not answer: {type(error).__name__}") from error
        for declared, rows in (
            (self._dapp.inputs, _rows(told, "inputs")),
            (self._dapp.outputs, _rows(told, "outputs")),
        ):
            if problem := amiss(declared, rows):
                await self._client.close()
                raise StartError(f"the remote model {self._remote.model} does not fit: {problem}")
        if self._payment is not None:
            self._payment.attach(self._client)
        return "remote"

    async def submit(
        self,
        inputs: Inputs,
        payer: str = "",
        timeout_s: float = 60.0,
        priority: int = 0,
        usage: Usage | None = None,
    ) -> Inputs:
        """Has one call's rows answered; see `Batcher.submit`. Dropped with its caller, there as here.

        Raises:
            CallError: `queue_full`, `deadline`, `remote_unavailable`, `remote_refused`, `remote_unpaid`, `not_finite`.
        """
        began_s = time.monotonic()
        with (
            self._places.take(payer),
            remote_spending.errand(self._payment.flow.wallet.address if self._payment else ""),
        ):
            outputs = await self._asked(inputs, timeout_s, priority)
        took_ns = int((time.monotonic() - began_s) * 1e9)
        if usage is not None:
            usage.device_ns += took_ns
        self._observe(Execution(_count(inputs), 1, 0, took_ns))
        return outputs

    def admit(self, payer: str) -> None:
        """See `ConcurrencyLimit.admit`."""
        self._places.admit(payer)

    def healthy(self) -> None:
        """The remote server's health is its own: replacing this process would not mend it."""

    def memory_bytes(self) -> int:
        """What this process has of the machine's memory; the weights are elsewhere."""
        return int(psutil.Process().memory_info().rss)

    async def close(self) -> None:
        """Closes the connections."""
        if self._client is not None:
            await self._client.close()

    async def _asked(self, inputs: Inputs, timeout_s: float, priority: int) -> Inputs:
        from tritonclient.utils import InferenceServerException

        timeout_s = max(timeout_s, 0.001)
        try:
            async with asyncio.timeout(timeout_s):
                return self._read(await self._infer(inputs, timeout_s, priority), _count(inputs))
        except TimeoutError as error:
            raise _late() from error
        except InferenceServerException as error:
            raise _refusal(str(error.status() or "")) from error
        except ChannelError as error:
            log.warning("%s: the other mesh is not paid: %s", type(self._dapp).__name__, error.code)
            raise CallError(
                "remote_unpaid", "the mesh that this model is on cannot be paid; nothing was charged"
            ) from error
        except (OSError, self._broken()) as error:
            raise CallError(
                "remote_unavailable", "the server that has this model does not answer; try again"
            ) from error

    async def _infer(self, inputs: Inputs, timeout_s: float, priority: int) -> Any:
        given = [self._input(tensor, inputs[tensor.name]) for tensor in self._dapp.inputs if tensor.name in inputs]
        # In microseconds, as Triton and a mesh read it: what is not begun by then is dropped there too.
        options: dict[str, Any] = {"timeout": int(timeout_s * 1e6), "priority": priority}
        if not self._http:
            options["client_timeout"] = timeout_s
        return await self._client.infer(self._remote.model, given, self._remote.version, **options)

    def _input(self, tensor: Tensor, array: np.ndarray[Any, Any]) -> Any:
        given = self._kind.InferInput(tensor.name, list(array.shape), tensor.datatype)
        # tritonclient takes BF16 as floats, and cuts them itself.
        given.set_data_from_numpy(array.astype(np.float32) if tensor.datatype == "BF16" else array)
        return given

    def _read(self, result: Any, rows: int) -> Inputs:
        outputs: Inputs = {}
        for tensor in self._dapp.outputs:
            array = result.as_numpy(tensor.name)
            if array is None and tensor.optional:
                continue
            if array is None or array.ndim == 0 or len(array) != rows:
                raise RuntimeError(f"the remote model gave no {tensor.name}, or of another number of rows")
            outputs[tensor.name] = checked(array, tensor)
        return outputs

    def _broken(self) -> type[Exception]:
        kind: type[Exception] = import_module("aiohttp").ClientError if self._http else import_module("grpc").RpcError
        return kind


def _count_receipt(signed: SignedReceipt) -> None:
    """Counts what the other mesh charged against the call at hand."""
    if errand := remote_spending.REMOTE_CALL.get():
        errand.paid(signed)


def amiss(declared: Sequence[Tensor], rows: dict[str, tuple[str, list[int]]]) -> str:
    """Why tensors are not those of a remote model; empty if they are, or if the server says nothing of its tensors.

    Args:
        declared: as the DApp has them, [*shape].
        rows: the model's, by name: datatype and shape, the batch's dimension first.
    """
    for tensor in declared if rows else ():
        if tensor.name not in rows:
            if tensor.optional:
                continue
            return f"it has no {tensor.name}, only {', '.join(sorted(rows))}"
        datatype, shape = rows[tensor.name]
        if datatype != tensor.datatype:
            return f"{tensor.name} is {datatype} there, and {tensor.datatype} here"
        if shape[:1] != [-1]:
            return f"{tensor.name} takes no batches there: its first dimension is not -1"
        wanted = list(tensor.shape)
        if len(shape) != len(wanted) + 1 or any(b not in (-1, a) for a, b in zip(wanted, shape[1:], strict=True)):
            return f"{tensor.name} is {shape} there, and {[-1, *wanted]} here"
    return ""


def _rows(told: Any, name: str) -> dict[str, tuple[str, list[int]]]:
    found = told.get(name, ()) if isinstance(told, dict) else getattr(told, name)
    pick = (lambda row, key: row[key]) if isinstance(told, dict) else getattr
    return {pick(row, "name"): (pick(row, "datatype"), [int(size) for size in pick(row, "shape")]) for row in found}


def _count(inputs: Inputs) -> int:
    return len(next(iter(inputs.values())))


def _late() -> CallError:
    return CallError("deadline", "the server that has this model did not answer in the time of the call")


def _refusal(status: str) -> CallError:
    """What a server's refusal is here; its words stay there: they may quote the input."""
    if status in LATE:
        return _late()
    if status in BUSY:
        return CallError("remote_unavailable", "the server that has this model is busy: try again shortly")
    if status in ("402", "StatusCode.FAILED_PRECONDITION"):
        return CallError("remote_unpaid", "the mesh that this model is on asks for money that it is not given")
    return CallError("remote_refused", "the server that has this model refused the call")
