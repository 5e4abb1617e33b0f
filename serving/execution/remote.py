"""Runs a DApp's calls on a model elsewhere: a Triton, another V2 server, or another mesh, which it pays.

Each call goes by itself: the server forms its own batches, and a deadline, a hang-up or a charge belongs to one caller.
Every answer is checked against the DApp's declaration before it is used.
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

from channels.errors import ChannelError
from channels.payer import TritonPayment, Wallet
from channels.protocol import Signer
from dapps import DApp
from dapps.api import Inputs, Tensor
from serving.device import checked
from serving.errors import CallError, StartError
from serving.execution import remote_spending
from serving.execution.admission import MAX_CALLS, ConcurrencyLimit
from serving.execution.executor import Completion, Executor, Submission
from serving.telemetry import Execution

log = logging.getLogger("leben.triton")
PORTS = {"http": 80, "https": 443, "grpc": 8001, "grpcs": 443}
START_S = 30.0
BUSY = ("429", "503", "StatusCode.RESOURCE_EXHAUSTED", "StatusCode.UNAVAILABLE")
LATE = ("504", "StatusCode.DEADLINE_EXCEEDED")


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """A model on a V2 server.

    Args:
        scheme: ``http``, ``https``, ``grpc`` or ``grpcs``.
        address: host and port.
        name, version: as in the path; without a version the server chooses.
    """

    scheme: str
    address: str
    name: str
    version: str = ""

    @classmethod
    def read(cls, url: str) -> RemoteModel:
        """Reads ``http://host:port/v2/models/NAME[/versions/V]``, or ``grpc://`` with the same path.

        Raises:
            StartError: the URL has another form.
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


class RemoteExecutor(Executor):
    """Executes one DApp on a remote model.

    Args:
        dapp: the remote model must take and give what it declares; its `load` and `forward` are never called.
        model: where the remote model is.
        key: of the wallet that pays, 64 hex digits; empty: a server that asks for money is not paid.
        observe: called with every call that was answered.
    """

    def __init__(
        self,
        dapp: DApp,
        model: RemoteModel,
        key: str = "",
        observe: Callable[[Execution], None] = lambda execution: None,
    ) -> None:
        self._dapp, self._model, self._observe = dapp, model, observe
        self._http = model.scheme.startswith("http")
        self._kind: Any = import_module("tritonclient.http.aio" if self._http else "tritonclient.grpc.aio")
        self.payment: TritonPayment | None = None
        if key:
            wallet = Wallet(Signer(bytes.fromhex(key)), remote_spending.QuoteBudget(per_call=None))
            self.payment = TritonPayment(wallet, on_receipt=remote_spending.count_receipt)
        self._limit = ConcurrencyLimit()
        self._client: Any = None

    @property
    def waiting(self) -> int:
        """Calls that the remote model has not answered yet."""
        return self._limit.taken

    async def start(self) -> str:
        """Connects, and compares the remote model's metadata with the DApp's declaration; returns "remote".

        Raises:
            StartError: the model cannot be reached, or takes or gives other tensors.
        """
        options: dict[str, Any] = {"ssl": self._model.scheme.endswith("s")}
        if self._http:
            options |= {"conn_limit": MAX_CALLS, "conn_timeout": 120.0}
        self._client = self._kind.InferenceServerClient(self._model.address, **options)
        try:
            async with asyncio.timeout(START_S):
                metadata = await self._client.get_model_metadata(self._model.name, self._model.version)
        except Exception as error:
            await self._client.close()
            where = f"{self._model.name} at {self._model.address}"
            raise StartError(f"the remote model {where} does not answer: {type(error).__name__}") from error
        for declared, rows in (
            (self._dapp.inputs, _rows(metadata, "inputs")),
            (self._dapp.outputs, _rows(metadata, "outputs")),
        ):
            if problem := mismatch(declared, rows):
                await self._client.close()
                raise StartError(f"the remote model {self._model.name} does not fit: {problem}")
        if self.payment is not None:
            self.payment.attach(self._client)
        return "remote"

    def admit(self, payer: str) -> None:
        """See `ConcurrencyLimit.admit`."""
        self._limit.admit(payer)

    async def submit(self, submission: Submission) -> Completion:
        """Has one call's rows computed by the remote model; a caller who hangs up ends the call there too.

        Raises:
            CallError: `queue_full`, `deadline`, `remote_unavailable`, `remote_refused`, `remote_unpaid`, `not_finite`.
        """
        began_s = time.monotonic()
        wallet = self.payment.flow.wallet.address if self.payment else ""
        with self._limit.take(submission.payer), remote_spending.remote_call(wallet):
            outputs = await self._compute(submission)
        took_ns = int((time.monotonic() - began_s) * 1e9)
        self._observe(Execution(rows=submission.rows, calls=1, queued_ns=0, took_ns=took_ns))
        return Completion(outputs, device_ns=took_ns)

    async def close(self) -> None:
        """Closes the connections."""
        if self._client is not None:
            await self._client.close()

    async def _compute(self, submission: Submission) -> Inputs:
        from tritonclient.utils import InferenceServerException

        timeout_s = max(submission.timeout_s, 0.001)
        try:
            async with asyncio.timeout(timeout_s):
                result = await self._infer(submission.tensors, timeout_s, submission.priority)
                return self._read(result, submission.rows)
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
        tensors = [self._input(tensor, inputs[tensor.name]) for tensor in self._dapp.inputs if tensor.name in inputs]
        # In microseconds, as Triton and a mesh read it: the server too drops a call that has not begun by then.
        options: dict[str, Any] = {"timeout": int(timeout_s * 1e6), "priority": priority}
        if not self._http:
            options["client_timeout"] = timeout_s
        return await self._client.infer(self._model.name, tensors, self._model.version, **options)

    def _input(self, tensor: Tensor, array: np.ndarray[Any, Any]) -> Any:
        infer_input = self._kind.InferInput(tensor.name, list(array.shape), tensor.datatype)
        # tritonclient takes BF16 as floats and truncates them itself.
        infer_input.set_data_from_numpy(array.astype(np.float32) if tensor.datatype == "BF16" else array)
        return infer_input

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


def mismatch(declared: Sequence[Tensor], rows: dict[str, tuple[str, list[int]]]) -> str:
    """Why declared tensors are not those of a remote model; empty if they are, or if the server lists no tensors.

    Args:
        declared: the DApp's tensors, [*shape].
        rows: the remote model's tensors by name: datatype and shape, the batch dimension first.
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
        declared_shape = list(tensor.shape)
        if len(shape) != len(declared_shape) + 1 or any(
            b not in (-1, a) for a, b in zip(declared_shape, shape[1:], strict=True)
        ):
            return f"{tensor.name} is {shape} there, and {[-1, *declared_shape]} here"
    return ""


def _rows(metadata: Any, name: str) -> dict[str, tuple[str, list[int]]]:
    if isinstance(metadata, dict):  # REST's JSON; gRPC gives a message
        rows = [(row["name"], row["datatype"], row["shape"]) for row in metadata.get(name, ())]
    else:
        rows = [(row.name, row.datatype, row.shape) for row in getattr(metadata, name)]
    return {row_name: (datatype, [int(size) for size in shape]) for row_name, datatype, shape in rows}


def _late() -> CallError:
    return CallError("deadline", "the server that has this model did not answer in the time of the call")


def _refusal(status: str) -> CallError:
    """Our refusal for a server's status; the server's text is dropped: it may quote the input."""
    if status in LATE:
        return _late()
    if status in BUSY:
        return CallError("remote_unavailable", "the server that has this model is busy: try again shortly")
    if status in ("402", "StatusCode.FAILED_PRECONDITION"):
        return CallError("remote_unpaid", "the mesh that this model is on asks for money that it is not given")
    return CallError("remote_refused", "the server that has this model refused the call")
