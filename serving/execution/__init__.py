"""Computes authorised calls: batched, unbatched or on another server, and the calls of one DApp to others.

May import cluster, telemetry and the floors below.
"""

from serving.execution.batched import BatchedExecutor, DeviceRunner
from serving.execution.composition import ChildCall, ChildCaller, ChildResult, Composition, tensor_bytes
from serving.execution.executor import OWN_PAYERS, START_PAYER, Completion, Executor, Queue, Submission
from serving.execution.remote import RemoteExecutor, RemoteModel
from serving.execution.remote_spending import spending
from serving.execution.unbatched import UnbatchedExecutor

__all__ = [
    "OWN_PAYERS",
    "START_PAYER",
    "BatchedExecutor",
    "ChildCall",
    "ChildCaller",
    "ChildResult",
    "Completion",
    "Composition",
    "DeviceRunner",
    "Executor",
    "Queue",
    "RemoteExecutor",
    "RemoteModel",
    "Submission",
    "UnbatchedExecutor",
    "spending",
    "tensor_bytes",
]
