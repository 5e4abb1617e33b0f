"""Runs authorised calls: the batcher, unbatched and remote execution, and calls of one DApp to another.

May import cluster, telemetry and the floors below.
"""

from serving.execution.batcher import Batcher
from serving.execution.composition import ChildCall, ChildCaller, ChildResult, Composition, bytes_of
from serving.execution.remote import Remote, RemoteExecutor
from serving.execution.remote_spending import carried
from serving.execution.unbatched import UnbatchedExecutor

__all__ = [
    "Batcher",
    "ChildCall",
    "ChildCaller",
    "ChildResult",
    "Composition",
    "Remote",
    "RemoteExecutor",
    "UnbatchedExecutor",
    "bytes_of",
    "carried",
]
